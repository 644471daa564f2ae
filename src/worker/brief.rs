//! Which kinds of jobs are over as soon as they begin. Pure but for the count that it keeps.
//!
//! A slot that works such a job is back sooner than another could be woken to look for the next one.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

/// An attempt that takes no longer is over at once: one slot then works more of them in a second than a
/// stream hands out.
const AT_MOST: Duration = Duration::from_micros(10);

/// So many attempts in a row have to be over at once, before the next is taken for one that will be.
const ENOUGH: u8 = 64;

/// How many attempts of a kind were over at once since the last that was not, up to [`ENOUGH`].
#[derive(Debug, Default)]
pub(super) struct Brevity(AtomicU8);

impl Brevity {
    /// Whether the next attempt is likely to be over at once.
    pub(super) fn is_likely(&self) -> bool {
        self.0.load(Ordering::Relaxed) == ENOUGH
    }

    /// Takes into account how long an attempt took.
    pub(super) fn note(&self, took: Duration) {
        let before = self.0.load(Ordering::Relaxed);
        let after = if took <= AT_MOST { before.saturating_add(1).min(ENOUGH) } else { 0 };
        // As a rule nothing changes, and what many read is best left alone.
        if after != before {
            self.0.store(after, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_kind_that_was_always_brief_is_taken_for_brief() {
        let (brief, long) = (AT_MOST, AT_MOST + Duration::from_nanos(1));
        let many = usize::from(ENOUGH);
        for (attempts, is_likely) in [
            (vec![], false),
            (vec![brief; many - 1], false),
            (vec![brief; many], true),
            (vec![brief; 1000], true),
            ([vec![brief; many], vec![long]].concat(), false),
            ([vec![brief; many], vec![long], vec![brief; many - 1]].concat(), false),
            ([vec![brief; many], vec![long], vec![brief; many]].concat(), true),
        ] {
            let brevity = Brevity::default();
            for took in &attempts {
                brevity.note(*took);
            }
            assert_eq!(brevity.is_likely(), is_likely, "{attempts:?}");
        }
    }
}
