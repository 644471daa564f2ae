//! The broker's clock: the one time that all workers share, and how far it can be off.
//!
//! An answer of the broker's carries the time at which the broker wrote it, which was at some moment
//! between asking and hearing. So each answer bounds the broker's clock from both sides: it shows at
//! least the answer's time when the answer comes in, and at most that and all the time that the answer
//! took. Which end of it the truth is at cannot be known: a question that waits in front of a frozen
//! leader is stamped at its end, an answer that waits for a frozen worker at its beginning.
//!
//! Who decides whether something is due goes by the earliest time ([`Clock::now`]); who sets a time
//! before which nothing is to happen goes by the latest ([`Clock::latest`]). Either errs towards later.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::time::Instant;

use crate::wire::time::{self, Time};

/// How often the broker's clock is read anew.
pub(crate) const READ_EVERY: Duration = Duration::from_secs(60);

/// How far two clocks drift apart at most: 500 parts in a million, as fast as NTP lets a clock be
/// slewed (`man 2 adjtimex`).
const DRIFT: f64 = 500e-6;

/// Tells the broker's time by the local monotonic clock. A worker whose own clock is wrong must not
/// run jobs early or let live ones expire.
#[derive(Clone, Debug)]
pub(crate) struct Clock(Arc<RwLock<Reading>>);

#[derive(Clone, Copy, Debug)]
struct Reading {
    bounds: Bounds,
    /// When the broker was asked for it, or in vain.
    asked: Option<Instant>,
}

impl Clock {
    /// A clock that shows `time` just now, by this machine's word.
    pub(crate) fn new(time: Time) -> Self {
        let bounds = Bounds { at: Instant::now(), earliest: time, width: Duration::ZERO };
        Self(Arc::new(RwLock::new(Reading { bounds, asked: None })))
    }

    /// Takes in what the broker's clock showed at some moment between `asked` and now.
    pub(crate) fn read(&self, time: Time, asked: Instant) {
        let answer = Bounds::of_answer(time, asked, Instant::now());
        let mut reading = self.0.write().unwrap_or_else(PoisonError::into_inner);
        reading.bounds = match reading.asked {
            Some(_) => reading.bounds.or(answer),
            // This machine's word counts for nothing beside the broker's.
            None => answer,
        };
        reading.asked = Some(asked);
    }

    /// Goes on as it is: the broker does not tell.
    pub(crate) fn keep(&self) {
        let mut reading = self.0.write().unwrap_or_else(PoisonError::into_inner);
        reading.asked = Some(Instant::now());
    }

    /// Whether the broker was asked lately.
    pub(crate) fn is_fresh(&self) -> bool {
        self.reading().asked.is_some_and(|asked| asked.elapsed() < READ_EVERY)
    }

    /// The broker's time now, at the earliest.
    pub(crate) fn now(&self) -> Time {
        self.at(Instant::now())
    }

    /// The broker's time now, at the latest.
    pub(crate) fn latest(&self) -> Time {
        self.reading().bounds.latest_at(Instant::now())
    }

    /// The broker's time at a moment of this machine's, at the earliest.
    pub(crate) fn at(&self, moment: Instant) -> Time {
        self.reading().bounds.earliest_at(moment)
    }

    fn reading(&self) -> Reading {
        *self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the broker's clock can have shown at a moment of this machine's.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Bounds {
    at: Instant,
    earliest: Time,
    /// How much later than that it can have been.
    width: Duration,
}

impl Bounds {
    /// By an answer that carries `time`, was asked for at one moment and came in at another.
    fn of_answer(time: Time, asked: Instant, came: Instant) -> Self {
        let took = came.saturating_duration_since(asked);
        Self { at: came, earliest: time, width: took + took.mul_f64(DRIFT) }
    }

    fn earliest_at(self, moment: Instant) -> Time {
        let (elapsed, drift) = self.away(moment);
        match moment >= self.at {
            true => time::after(self.earliest, elapsed.saturating_sub(drift)),
            false => time::before(self.earliest, elapsed + drift),
        }
    }

    fn latest_at(self, moment: Instant) -> Time {
        let (elapsed, drift) = self.away(moment);
        let latest = time::after(self.earliest, self.width);
        match moment >= self.at {
            true => time::after(latest, elapsed + drift),
            false => time::before(latest, elapsed.saturating_sub(drift)),
        }
    }

    /// How far a moment is from this one, and how much clocks can have drifted between the two.
    fn away(self, moment: Instant) -> (Duration, Duration) {
        let elapsed = match moment.checked_duration_since(self.at) {
            Some(since) => since,
            None => self.at.saturating_duration_since(moment),
        };
        (elapsed, elapsed.mul_f64(DRIFT))
    }

    /// Whichever of two tells more: the closer one. A slow answer is thrown away thereby, for as long as
    /// an earlier one is worth more. But where both cannot be true, the broker's clock was set, or it is
    /// another server's: then the answer counts, however slow.
    fn or(self, answer: Self) -> Self {
        let (earliest, latest) = (self.earliest_at(answer.at), self.latest_at(answer.at));
        let is_contradicted = answer.earliest > latest || answer.latest_at(answer.at) < earliest;
        let width = time::until(latest, earliest);
        if is_contradicted || answer.width <= width { answer } else { self }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    /// What the broker's clock shows so long after the beginning.
    fn shows(after: Duration) -> Time {
        time::after(time::from_nanos(1_800_000_000_000_000_000), after)
    }

    /// An answer that was asked for, stamped and heard so long after the beginning.
    fn answer(start: Instant, asked: u64, stamped: u64, heard: u64) -> Bounds {
        Bounds::of_answer(shows(ms(stamped)), start + ms(asked), start + ms(heard))
    }

    #[test]
    fn a_slow_answer_is_never_taken_for_early() {
        let start = Instant::now();
        // A frozen leader answers after 5 s, with the time of the end; a frozen worker hears an answer
        // late, with the time of the beginning.
        for stamped in [0, 2500, 5000] {
            let bounds = answer(start, 0, stamped, 5000);
            assert!(bounds.earliest_at(start + ms(6000)) <= shows(ms(6000)), "{stamped}");
            assert!(bounds.latest_at(start + ms(6000)) >= shows(ms(6000)), "{stamped}");
        }
    }

    #[test]
    fn slow_answers_are_thrown_away_as_a_table() {
        let start = Instant::now();
        let quick = answer(start, 0, 1, 2);
        for (what, later, is_taken) in [
            ("as quick", answer(start, 60_000, 60_001, 60_002), true),
            ("a little slower, a minute later", answer(start, 60_000, 60_010, 60_030), true),
            ("half a second slower", answer(start, 60_000, 60_400, 60_500), false),
            ("slow, and stamped at its end", answer(start, 60_000, 65_000, 65_000), false),
            ("slow, an hour later", answer(start, 3_600_000, 3_601_000, 3_602_000), true),
        ] {
            let taken = quick.or(later);
            assert_eq!(taken, if is_taken { later } else { quick }, "{what}");
        }
    }

    #[test]
    fn a_clock_that_was_set_is_followed_at_once() {
        let start = Instant::now();
        let before = answer(start, 0, 1, 2);
        for hours in [-1_i64, 1] {
            let set = shows(ms(1000)) + chrono::TimeDelta::hours(hours);
            let slow = Bounds::of_answer(set, start + ms(500), start + ms(1500));
            assert_eq!(before.or(slow), slow, "{hours} hours");
        }
    }

    #[test]
    fn this_machines_word_gives_way_to_any_answer() {
        let clock = Clock::new(shows(ms(0)));
        assert!(!clock.is_fresh());
        let asked = Instant::now().checked_sub(ms(5000)).expect("up for 5 s");
        clock.read(shows(ms(3_600_000)), asked);
        assert!(clock.is_fresh());
        assert!(clock.now() >= shows(ms(3_600_000)));
        assert!(clock.latest() >= shows(ms(3_605_000)));
    }

    /// An answer, in milliseconds: the pause before it is asked for, until it is stamped, until it is
    /// heard; and of how many questions later ones may be heard before it.
    fn exchanges() -> impl Strategy<Value = Vec<(u64, u64, u64)>> {
        let delay = prop_oneof![6 => 0u64..5, 2 => 0u64..600, 1 => 0u64..30_000];
        prop::collection::vec((0u64..90_000, delay.clone(), delay), 1..40)
    }

    proptest! {
        /// Whatever is delayed on the way there, on the way back or by the worker itself, and in whatever
        /// order answers come in: the truth lies within the bounds at all times, of clocks that drift too.
        #[test]
        fn the_truth_lies_within_the_bounds(
            exchanges in exchanges(), drift in -0.9 * DRIFT..0.9 * DRIFT, look in 0u64..120_000,
        ) {
            let (start, mut asked) = (Instant::now() + Duration::from_secs(60), 0);
            let at = |millis: u64| start + ms(millis);
            let truth = |millis: u64| shows(ms(millis).mul_f64(1.0 + drift));
            let mut answers = Vec::new();
            for (pause, there, back) in exchanges {
                asked += pause;
                answers.push((asked, asked + there, asked + there + back));
            }
            answers.sort_by_key(|(.., heard)| *heard);
            let mut bounds: Option<Bounds> = None;
            for (asked, stamped, heard) in answers {
                let answer = Bounds::of_answer(truth(stamped), at(asked), at(heard));
                let taken = bounds.map_or(answer, |known| known.or(answer));
                let slip = Duration::from_micros(1); // of rounding
                for moment in [heard, heard + look] {
                    prop_assert!(taken.earliest_at(at(moment)) <= time::after(truth(moment), slip));
                    prop_assert!(time::after(taken.latest_at(at(moment)), slip) >= truth(moment));
                }
                // Nothing that comes in makes it worse than it was.
                let width = |of: Bounds| time::until(of.latest_at(at(heard)), of.earliest_at(at(heard)));
                prop_assert!(bounds.is_none_or(|known| width(taken) <= width(known) + slip));
                bounds = Some(taken);
            }
        }
    }
}
