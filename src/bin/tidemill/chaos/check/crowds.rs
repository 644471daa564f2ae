//! How long what came to a lane had to wait there for what was before it.
//!
//! A job whose time has come may stand behind all that waits on its lane. Where more come in than are worked,
//! as on a busy machine, it is no later than those that came with it.

use std::collections::BTreeMap;

use tidemill::Priority;

use super::books::Books;
use super::job::Outcome;

/// What came as closely together as this waited alike.
const TOGETHER_US: u64 = 1_000_000;

/// By lane and second: the shortest that a job which could run at once had to wait. One that waited longer was
/// kept by something else.
#[derive(Debug, Default)]
pub(super) struct Crowds(BTreeMap<(Priority, u64), u64>);

impl Crowds {
    pub(super) fn of(books: &Books) -> Self {
        let mut crowds = Self::default();
        for job in books.jobs.values() {
            let Outcome::Ok { at_us, .. } = job.outcome else { continue };
            let is_plain = job.tried.as_ref().is_some_and(|tried| tried.run_after_us.is_none());
            let Some(first) = job.starts.first().filter(|_| is_plain && job.moved.is_none()) else {
                continue;
            };
            let waited = crowds.0.entry((first.lane, at_us / TOGETHER_US)).or_insert(u64::MAX);
            *waited = (*waited).min(first.at_us.saturating_sub(at_us));
        }
        crowds
    }

    /// How long what came to a lane at that time had to wait; what came a little before or after as well.
    pub(super) fn wait_us(&self, lane: Priority, at_us: u64) -> u64 {
        let second = at_us / TOGETHER_US;
        let around = (lane, second.saturating_sub(1))..=(lane, second + 1);
        self.0.range(around).map(|(_, waited)| *waited).max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_to_a_full_lane_waits_as_the_others_do() {
        let (low, high, second) = (Priority::Low, Priority::High, TOGETHER_US);
        let crowds = Crowds([((low, 10), 7 * second), ((low, 11), 2 * second)].into());
        for (what, lane, at_us, expected) in [
            ("with them", low, 10 * second, 7 * second),
            ("a second before", low, 9 * second + 5, 7 * second),
            ("when there were fewer", low, 12 * second, 2 * second),
            ("when there was nobody", low, 20 * second, 0),
            ("on another lane", high, 10 * second, 0),
        ] {
            assert_eq!(crowds.wait_us(lane, at_us), expected, "{what}");
        }
    }
}
