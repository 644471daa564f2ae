//! Which way the batches of a stream are stored: found out by trying, since no client is told how its
//! server writes. Pure.
//!
//! Fast ingest costs a server the least work, but where it writes through to the disk (`sync_interval:
//! always`) it does so for every message. An atomic batch is two to four times the work, and is written
//! through once, with its commit.

use std::time::Duration;

/// How a batch is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Each message as it comes in (ADR-50, fast ingest).
    Ingest,
    /// All at the commit, or none (ADR-50, atomic).
    Atomic,
}

/// What is known of the two ways into a stream.
#[derive(Debug, Default)]
pub(super) struct Ways {
    ingest: Pace,
    atomic: Pace,
    batches: u32,
}

/// How fast a way is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Pace {
    #[default]
    Unknown,
    /// Microseconds for a message, smoothed.
    Micros(f64),
    Refused,
}

/// Fast ingest that takes no longer for a message is not compared with anything.
const FAST_MICROS: f64 = 100.0;

/// What a batch counts for that was not stored whole.
const FAILED_MICROS: f64 = 10_000.0;

/// Batches of fewer messages are no measure.
const FEWEST: usize = 8;

/// Every so many batches the slower way is tried: the load may have changed.
const TRY_EVERY: u32 = 64;

/// The weight of what was measured last.
const LATEST: f64 = 0.25;

impl Ways {
    /// The way for the next batch; `None` where the stream takes no batches.
    pub(super) fn next(&mut self, messages: usize) -> Option<Way> {
        let (ingest, atomic) = match (self.ingest, self.atomic) {
            (Pace::Refused, _) => return None,
            (Pace::Micros(ingest), Pace::Micros(atomic)) => (ingest, atomic),
            (Pace::Micros(ingest), Pace::Unknown) => (ingest, 0.0),
            (Pace::Unknown, _) | (_, Pace::Refused) => return Some(Way::Ingest),
        };
        if ingest <= FAST_MICROS || messages < FEWEST {
            return Some(Way::Ingest);
        }
        self.batches = self.batches.wrapping_add(1);
        let is_trial = self.batches.is_multiple_of(TRY_EVERY);
        Some(if (atomic < ingest) != is_trial { Way::Atomic } else { Way::Ingest })
    }

    /// A batch was stored.
    pub(super) fn took(&mut self, way: Way, messages: usize, took: Duration) {
        if messages >= FEWEST {
            self.note(way, took.as_secs_f64() * 1e6 / messages as f64);
        }
    }

    /// A batch was not stored, or in part only.
    pub(super) fn failed(&mut self, way: Way) {
        match way {
            // That what is stored ends somewhere is usual, and says nothing of its speed.
            Way::Ingest => {}
            Way::Atomic => self.note(way, FAILED_MICROS),
        }
    }

    /// The stream takes no batches of that kind. Whether that is news.
    pub(super) fn refused(&mut self, way: Way) -> bool {
        let pace = self.pace(way);
        std::mem::replace(pace, Pace::Refused) != Pace::Refused
    }

    fn note(&mut self, way: Way, micros: f64) {
        let pace = self.pace(way);
        *pace = match *pace {
            Pace::Unknown => Pace::Micros(micros),
            Pace::Micros(before) => Pace::Micros(before + LATEST * (micros - before)),
            Pace::Refused => Pace::Refused,
        };
    }

    fn pace(&mut self, way: Way) -> &mut Pace {
        match way {
            Way::Ingest => &mut self.ingest,
            Way::Atomic => &mut self.atomic,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ways of so many batches of 100 messages, where a message takes so long.
    fn ways(ways: &mut Ways, batches: usize, ingest: u64, atomic: u64) -> (usize, usize) {
        let mut count = (0, 0);
        for _ in 0..batches {
            let way = ways.next(100).expect("batches are taken");
            let micros = match way {
                Way::Ingest => ingest,
                Way::Atomic => atomic,
            };
            ways.took(way, 100, Duration::from_micros(100 * micros));
            match way {
                Way::Ingest => count.0 += 1,
                Way::Atomic => count.1 += 1,
            }
        }
        count
    }

    #[test]
    fn what_is_fast_is_not_compared() {
        assert_eq!(ways(&mut Ways::default(), 1000, 20, 1), (1000, 0));
    }

    #[test]
    fn what_is_slow_is_compared_and_the_faster_way_taken() {
        assert_eq!(ways(&mut Ways::default(), 640, 800, 40), (10, 630));
        assert_eq!(ways(&mut Ways::default(), 640, 800, 1600), (630, 10));
    }

    #[test]
    fn a_change_of_the_load_is_noticed() {
        let mut known = Ways::default();
        ways(&mut known, 64, 800, 40);
        let (ingest, _) = ways(&mut known, 2000, 20, 40);
        assert!(ingest > 1000, "{ingest} of 2000");
    }

    #[test]
    fn what_is_refused_is_not_tried_again() {
        let mut known = Ways::default();
        ways(&mut known, 1, 800, 40);
        assert_eq!(known.next(100), Some(Way::Atomic));
        assert!(known.refused(Way::Atomic));
        assert!(!known.refused(Way::Atomic));
        assert_eq!(known.next(100), Some(Way::Ingest));
        assert!(known.refused(Way::Ingest));
        assert_eq!(known.next(100), None);
    }

    #[test]
    fn atomic_batches_that_fail_give_way() {
        let mut known = Ways::default();
        ways(&mut known, 10, 800, 40);
        known.failed(Way::Atomic);
        assert_eq!(known.next(100), Some(Way::Ingest));
    }

    #[test]
    fn few_messages_take_the_way_that_waits_for_nothing() {
        let mut known = Ways::default();
        ways(&mut known, 10, 800, 40);
        assert_eq!(known.next(2), Some(Way::Ingest));
        known.took(Way::Ingest, 2, Duration::ZERO);
        assert_eq!(known.next(100), Some(Way::Atomic));
    }
}
