//! The pauses between tries: each twice as long as the one before, up to a bound, and spread, so that
//! workers that were stopped by one cause do not all come back at once.

use std::time::Duration;

/// The first pause, and the longest. What is over is noticed within the longest pause and a pull.
const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);

/// How long to wait before the next try.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Self(FIRST)
    }
}

impl Pause {
    /// It went well: the next pause is the first again.
    pub(super) fn reset(&mut self) {
        self.0 = FIRST;
    }

    /// The next pause, half of it to all of it by `chance`, which is from 0 to 1.
    fn next_by(&mut self, chance: f64) -> Duration {
        let pause = self.0.mul_f64(0.5 + chance / 2.0);
        self.0 = (self.0 * 2).min(LONGEST);
        pause
    }

    pub(super) fn next(&mut self) -> Duration {
        self.next_by(fastrand::f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_their_bound_and_are_spread() {
        let mut pause = Pause::default();
        let longest: Vec<u128> = (0..8).map(|_| pause.next_by(1.0).as_millis()).collect();
        assert_eq!(longest, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(pause.next_by(0.0), LONGEST / 2);
        pause.reset();
        assert_eq!(pause.next_by(0.5), FIRST.mul_f64(0.75));
    }
}
