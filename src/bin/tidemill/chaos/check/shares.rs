//! Whether lanes were served by their weights while all of them were full and nothing was broken.

use std::collections::BTreeMap;

use tidemill::Priority;

use super::super::report::Report;
use super::books::Books;
use super::job::Outcome;

/// By which lanes are served unless a worker is told otherwise, in the order of the lanes.
const WEIGHTS: [u64; 4] = [8, 4, 2, 1];

/// How many times what all workers run at once has to wait on a lane for it to count as full: each has some
/// fetched already, which the others cannot have.
const FULL: i64 = 4;

/// The picks after which weights come round again.
const ROUND: u64 = 15;

/// Fewer starts show nothing.
const TELLING: u64 = 200;

/// How many starts each lane had, in the order of the lanes.
pub(super) type Starts = [u64; 4];

/// What there is to see of lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// A job is on its lane, to be run at once.
    Waits,
    /// A first attempt begins.
    Starts,
}

pub(super) fn weighted(books: &Books, report: &mut Report) {
    let mut seen = Vec::new();
    for job in books.jobs.values() {
        let Outcome::Ok { at_us, .. } = job.outcome else { continue };
        let is_delayed = job.tried.as_ref().is_none_or(|tried| tried.run_after_us.is_some());
        let Some(first) = job.starts.first().filter(|_| !is_delayed) else { continue };
        // Its producer may hear of it only when it has begun.
        seen.push((at_us.min(first.at_us), first.lane, Seen::Waits));
        seen.push((first.at_us, first.lane, Seen::Starts));
    }
    seen.sort_by_key(|(at_us, ..)| *at_us);
    let (held, workers) = (books.held(), books.workers());
    let full = FULL * i64::try_from(held).unwrap_or(i64::MAX / FULL);
    let is_whole = |at_us| books.faults_around(at_us, at_us).next().is_none();
    // Each begins with what arrives first, and has then to come round.
    let starts = while_full(&seen, full, held + ROUND * workers, is_whole);
    if starts.iter().sum::<u64>() < TELLING {
        return;
    }
    report.shares = Priority::ALL.into_iter().zip(starts).collect::<BTreeMap<_, _>>();
    for (lane, why) in unfair(starts, workers) {
        report.violated(format!("while all lanes were full, {lane} had {why}"));
    }
}

/// The starts of the longest while in which as much as `full` waited on each lane and everything was
/// whole, without as many of its first as `begins`.
fn while_full(
    seen: &[(u64, Priority, Seen)],
    full: i64,
    begins: u64,
    is_whole: impl Fn(u64) -> bool,
) -> Starts {
    let index = |lane| Priority::ALL.iter().position(|of| *of == lane).unwrap_or_default();
    let (mut waiting, mut longest, mut starts) = ([0_i64; 4], Starts::default(), Starts::default());
    let mut count = 0;
    for (at_us, lane, what) in seen {
        let lane = index(*lane);
        waiting[lane] += match what {
            Seen::Waits => 1,
            Seen::Starts => -1,
        };
        if waiting.iter().any(|waiting| *waiting < full) || !is_whole(*at_us) {
            (starts, count) = (Starts::default(), 0);
        } else if *what == Seen::Starts {
            count += 1;
            if count > begins {
                starts[lane] += 1;
            }
        }
        if starts.iter().sum::<u64>() > longest.iter().sum() {
            longest = starts;
        }
    }
    longest
}

/// The lanes whose part of the starts is not that of their weights, and how far it is off. Allowed is what
/// chance makes of so many starts, at four standard deviations, and for each worker two picks at either end:
/// a lane of which a worker has nothing at hand for a moment gives its turn to the next.
fn unfair(starts: Starts, workers: u64) -> Vec<(Priority, String)> {
    let total = starts.iter().sum::<u64>() as f64;
    let mut unfair = Vec::new();
    for ((lane, starts), weight) in Priority::ALL.into_iter().zip(starts).zip(WEIGHTS) {
        let part = weight as f64 / WEIGHTS.iter().sum::<u64>() as f64;
        let due = total * part;
        let allowed = 4.0 * (due * (1.0 - part)).sqrt() + 4.0 * workers as f64;
        if (starts as f64 - due).abs() > allowed {
            unfair.push((lane, format!("{starts} of {total} starts, not {due:.0} ± {allowed:.0}")));
        }
    }
    unfair
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_allow_for_what_chance_makes_of_the_count() {
        for (what, starts, workers, unfair_lanes) in [
            ("exact", [800, 400, 200, 100], 3, 0),
            ("nothing", [0, 0, 0, 0], 3, 0),
            ("a little off", [780, 410, 205, 105], 3, 0),
            ("few, far off", [8, 4, 3, 0], 1, 0),
            ("all alike", [375, 375, 375, 375], 3, 3),
            ("strict", [1500, 0, 0, 0], 3, 4),
            ("low is starved", [857, 429, 214, 0], 3, 1),
            ("two lanes are swapped", [400, 800, 200, 100], 3, 2),
            ("many, a little off", [83_000, 39_000, 19_000, 9_000], 3, 4),
        ] {
            let unfair = unfair(starts, workers);
            assert_eq!(unfair.len(), unfair_lanes, "{what}: {unfair:?}");
        }
    }

    const LANES: [Priority; 4] = Priority::ALL;

    fn filled(each: usize) -> Vec<(u64, Priority, Seen)> {
        LANES.iter().flat_map(|lane| vec![(0, *lane, Seen::Waits); each]).collect()
    }

    #[test]
    fn only_starts_while_all_lanes_are_full_count() {
        let mut seen = filled(10);
        // Critical ones until there are fewer than five, and one beyond.
        seen.extend((1..=6).map(|at| (at, LANES[0], Seen::Starts)));
        seen.push((7, LANES[1], Seen::Starts));
        assert_eq!(while_full(&seen, 5, 0, |_| true), [5, 0, 0, 0]);
        assert_eq!(while_full(&seen, 5, 2, |_| true), [3, 0, 0, 0], "without the first two");
        assert_eq!(while_full(&seen, 11, 0, |_| true), [0; 4], "never full");
        assert_eq!(while_full(&seen, 5, 0, |at| at > 3), [2, 0, 0, 0], "broken until then");
        assert_eq!(while_full(&[], 5, 0, |_| true), [0; 4]);
    }
}
