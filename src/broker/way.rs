//! Which way the batches of a stream are stored: found out by trying, since no client is told how its
//! server writes. Pure.
//!
//! Fast ingest costs a server the least work, but where it writes through to the disk (`sync_interval:
//! always`) it does so for every message. An atomic batch is two to four times the work, and is written
//! through once, with its commit.

use std::time::{Duration, Instant};

/// How a batch is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Each message as it comes in (ADR-50, fast ingest).
    Ingest,
    /// All at the commit, or none (ADR-50, atomic).
    Atomic,
}

/// What is known of the two ways into a stream.
#[derive(Debug)]
pub(super) struct Ways {
    ingest: Measure,
    atomic: Measure,
    /// Batches for which there was a choice.
    batches: u32,
    /// When a batch was stored last, and which way.
    stored: Option<(Instant, Way)>,
}

/// How fast a way is, and what was measured since that was found.
#[derive(Debug)]
struct Measure {
    pace: Pace,
    /// How long batches took, of how many messages.
    busy: Duration,
    messages: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Pace {
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

/// A pace is found over so much time at least: the ends of several batches may come in at once.
const SPAN: Duration = Duration::from_millis(20);

/// Every so many batches the slower way is tried, with so many in a row: the load may have changed.
const TRY_EVERY: u32 = 512;
const TRIAL: u32 = 8;

/// So many times faster atomic batches have to be. Where that matters they are five to ten times.
const FASTER: f64 = 2.0;

/// So many times slower than before a way counts for at most: one halt of a process or a disk is not
/// taken for how things are.
const SLOWER: f64 = 2.0;

/// The weight of what was measured last, where it was slower than before, and where it was not: a halt
/// makes things slow, but nothing makes them fast by chance.
const LATEST_SLOWER: f64 = 0.4;
const LATEST_FASTER: f64 = 0.75;

impl Default for Ways {
    fn default() -> Self {
        Self {
            ingest: Measure::new(Pace::Micros(0.0)),
            atomic: Measure::new(Pace::Unknown),
            batches: 0,
            stored: None,
        }
    }
}

impl Ways {
    /// The way for the next batch; `None` where the stream takes no batches.
    pub(super) fn next(&mut self, messages: usize) -> Option<Way> {
        let (ingest, atomic) = match (self.ingest.pace, self.atomic.pace) {
            (Pace::Refused, _) => return None,
            (Pace::Micros(ingest), Pace::Micros(atomic)) => (ingest, atomic),
            (Pace::Micros(ingest), Pace::Unknown) => (ingest, 0.0),
            (Pace::Unknown, _) | (_, Pace::Refused) => return Some(Way::Ingest),
        };
        if ingest <= FAST_MICROS || messages < FEWEST {
            return Some(Way::Ingest);
        }
        self.batches = self.batches.wrapping_add(1);
        let is_trial = self.batches % TRY_EVERY >= TRY_EVERY - TRIAL;
        let is_better = FASTER * atomic < ingest;
        Some(if is_better != is_trial { Way::Atomic } else { Way::Ingest })
    }

    /// A batch that was sent at `sent` was stored `now`.
    pub(super) fn took(&mut self, way: Way, messages: usize, sent: Instant, now: Instant) {
        let before = self.stored.replace((now, way));
        // Until the one before it was stored, it waited for that; how long one of the other way took says
        // nothing of this one.
        let begun = match before {
            Some((stored, other)) if stored > sent && other != way => return,
            Some((stored, _)) => stored.max(sent),
            None => sent,
        };
        if messages >= FEWEST {
            self.of(way).add(messages, now.saturating_duration_since(begun));
        }
    }

    /// A batch was not stored, or in part only.
    pub(super) fn failed(&mut self, way: Way) {
        match way {
            // That what is stored ends somewhere is usual, and says nothing of its speed.
            Way::Ingest => {}
            Way::Atomic => self.atomic = Measure::new(Pace::Micros(FAILED_MICROS)),
        }
    }

    /// The stream takes no batches of that kind. Whether that is news.
    pub(super) fn refused(&mut self, way: Way) -> bool {
        std::mem::replace(&mut self.of(way).pace, Pace::Refused) != Pace::Refused
    }

    fn of(&mut self, way: Way) -> &mut Measure {
        match way {
            Way::Ingest => &mut self.ingest,
            Way::Atomic => &mut self.atomic,
        }
    }
}

impl Measure {
    fn new(pace: Pace) -> Self {
        Self { pace, busy: Duration::ZERO, messages: 0 }
    }

    /// So many messages took so long.
    fn add(&mut self, messages: usize, took: Duration) {
        self.busy += took;
        self.messages += messages;
        if self.busy >= SPAN {
            let micros = self.busy.as_secs_f64() * 1e6 / self.messages as f64;
            *self = Self::new(self.pace.then(micros));
        }
    }
}

impl Pace {
    fn then(self, micros: f64) -> Self {
        match self {
            Self::Unknown => Self::Micros(micros),
            Self::Micros(before) => {
                let micros = micros.min(SLOWER * before.max(FAST_MICROS));
                let weight = if micros > before { LATEST_SLOWER } else { LATEST_FASTER };
                Self::Micros(before + weight * (micros - before))
            }
            Self::Refused => Self::Refused,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Batches of 100 messages one after the other, where a message takes so many microseconds; how many
    /// went each way.
    fn ways(ways: &mut Ways, batches: usize, ingest: u64, atomic: u64) -> (usize, usize) {
        let mut count = (0, 0);
        let mut now = ways.stored.map_or_else(Instant::now, |(stored, _)| stored);
        for _ in 0..batches {
            let way = ways.next(100).expect("batches are taken");
            let micros = match way {
                Way::Ingest => ingest,
                Way::Atomic => atomic,
            };
            let sent = now;
            now += Duration::from_micros(100 * micros);
            ways.took(way, 100, sent, now);
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
        assert_eq!(ways(&mut Ways::default(), 640, 800, 1600), (631, 9));
        // Hardly faster is not worth it.
        assert_eq!(ways(&mut Ways::default(), 640, 800, 600), (631, 9));
    }

    #[test]
    fn a_change_of_the_load_is_noticed() {
        let mut known = Ways::default();
        ways(&mut known, 64, 800, 40);
        let (ingest, _) = ways(&mut known, 2000, 20, 40);
        assert!(ingest > 1000, "{ingest} of 2000");
    }

    #[test]
    fn those_that_wait_for_each_other_are_not_slow() {
        let mut known = Ways::default();
        let begun = Instant::now();
        // All sent at once, and stored one after the other.
        for n in 1..=100 {
            known.next(100);
            known.took(Way::Ingest, 100, begun, begun + n * Duration::from_millis(2));
        }
        assert_eq!(known.batches, 0, "nothing was compared");
    }

    #[test]
    fn those_of_one_way_do_not_count_for_the_other() {
        let mut known = Ways::default();
        ways(&mut known, 3, 800, 40);
        let sent = known.stored.expect("stored").0;
        let ended = sent + Duration::from_millis(80);
        known.took(Way::Ingest, 100, sent, ended);
        for n in 0..8 {
            known.took(Way::Atomic, 100, sent, ended + n * Duration::from_millis(4));
        }
        assert_eq!(known.atomic.pace, Pace::Micros(40.0));
    }

    #[test]
    fn those_that_are_told_of_at_once_are_not_fast() {
        let mut known = Ways::default();
        let mut now = Instant::now();
        for _ in 0..10 {
            let sent = now;
            now += Duration::from_millis(4 * 80);
            for _ in 0..4 {
                known.took(Way::Ingest, 100, sent, now);
            }
        }
        assert_eq!(known.next(100), Some(Way::Atomic));
    }

    #[test]
    fn a_halt_is_not_how_things_are() {
        let mut known = Ways::default();
        for _ in 0..100 {
            ways(&mut known, 40, 20, 40);
            // Two seconds.
            ways(&mut known, 1, 20_000, 40);
        }
        assert_eq!(known.batches, 0, "nothing was compared");
    }

    #[test]
    fn what_is_refused_is_not_tried_again() {
        let mut known = Ways::default();
        ways(&mut known, 3, 800, 40);
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
        let now = Instant::now();
        known.took(Way::Ingest, 2, now, now);
        assert_eq!(known.next(100), Some(Way::Atomic));
    }
}
