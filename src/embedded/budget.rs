//! How often a server that dies is started again, and how soon.
//!
//! One that dies at each start would otherwise be started for ever.

use std::time::Duration;

use tokio::time::Instant;

/// The waits before the restarts in a row; after the last one the server stays down.
const BACK_OFF: [Duration; 3] =
    [Duration::from_millis(100), Duration::from_millis(500), Duration::from_secs(2)];

/// How far apart restarts are to count as in a row.
const IN_A_ROW: Duration = Duration::from_secs(60);

/// How many restarts are left before it is no use.
#[derive(Debug, Default)]
pub(super) struct Budget {
    spent: usize,
    last: Option<Instant>,
}

impl Budget {
    /// When to start again; never, if it was tried too often in a row.
    pub(super) fn spend(&mut self, now: Instant) -> Option<Instant> {
        if self.last.is_none_or(|last| now - last >= IN_A_ROW) {
            self.spent = 0;
        }
        let at = now + *BACK_OFF.get(self.spent)?;
        self.spent += 1;
        self.last = Some(at);
        Some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_in_a_row_back_off_and_end() {
        let start = Instant::now();
        let mut budget = Budget::default();
        let mut now = start;
        for wait in BACK_OFF {
            let at = budget.spend(now).expect("left");
            assert_eq!(at, now + wait);
            now = at;
        }
        assert_eq!(budget.spend(now), None);
    }

    #[test]
    fn a_quiet_minute_renews_the_budget() {
        let mut budget = Budget::default();
        let mut now = Instant::now();
        for _ in 0..10 {
            let at = budget.spend(now).expect("renewed");
            assert_eq!(at, now + BACK_OFF[0]);
            now = at + IN_A_ROW;
        }
    }
}
