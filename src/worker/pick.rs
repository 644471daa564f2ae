//! Which lane is served next: weighted-first with a bound that can be read off a table.
//!
//! A [`Wheel`] is a fixed cycle of slots, each owned by a lane; a lane of weight *w* owns *w* of
//! them, spread evenly. Every pick advances the wheel by one slot and serves the slot's owner, or,
//! where the owner has no job, gives the slot away. So while a lane has a job, it is served at least
//! once in any stretch of the cycle that holds one of its slots: its longest gap is its bound, and
//! no coming and going of other lanes can widen it, since slots never move. (Schemes that keep
//! credits or virtual times, such as smooth weighted round-robin or WF²Q, can promise less when
//! lanes fill and empty.)
//!
//! Slots given away are shared by weight as well: a second hand goes around the same cycle and stops
//! at the next owner that has a job.

use crate::priority::{Priority, Weights};

/// A weighted-first choice among up to a few lanes.
#[derive(Clone, Debug)]
pub(crate) struct Wheel {
    /// The owner of each slot.
    slots: Box<[u8]>,
    next: usize,
    spare: usize,
}

impl Wheel {
    /// A wheel for lanes of these weights, the most urgent lane first.
    pub(crate) fn new(weights: &[u32]) -> Self {
        Self { slots: spread(weights), next: 0, spare: 0 }
    }

    /// Chooses among the lanes that have a job; `None` if none has.
    pub(crate) fn pick(&mut self, has_job: impl Fn(usize) -> bool) -> Option<usize> {
        let owner = usize::from(self.slots[self.next]);
        let chosen = if has_job(owner) { owner } else { self.give_away(has_job)? };
        self.next = (self.next + 1) % self.slots.len();
        Some(chosen)
    }

    fn give_away(&mut self, has_job: impl Fn(usize) -> bool) -> Option<usize> {
        for _ in 0..self.slots.len() {
            let owner = usize::from(self.slots[self.spare]);
            self.spare = (self.spare + 1) % self.slots.len();
            if has_job(owner) {
                return Some(owner);
            }
        }
        None
    }

    /// The longest stretch of picks, plus one, in which `lane` may have a job and not be served: the
    /// widest distance between two of its slots.
    pub(crate) fn bound(&self, lane: usize) -> usize {
        let own: Vec<usize> =
            (0..self.slots.len()).filter(|slot| usize::from(self.slots[*slot]) == lane).collect();
        let gaps = own.windows(2).map(|pair| pair[1] - pair[0]);
        let around = own.first().zip(own.last()).map(|(a, z)| a + self.slots.len() - z);
        gaps.chain(around).max().unwrap_or(usize::MAX)
    }
}

impl Weights {
    /// The starvation bound: while a lane has a job, at least one of any this many picks from its
    /// queue is its own, whatever the other lanes do. 2, 4, 8 and 15 for the default weights.
    pub fn bound(&self, priority: Priority) -> usize {
        Wheel::new(self.as_array()).bound(priority.index())
    }
}

/// Spreads each lane's slots evenly, by smooth weighted round-robin over lanes that all have jobs:
/// each step every lane earns its weight, the richest is served (ties to the more urgent) and pays
/// the whole round. (I. Sysoev's algorithm of nginx, 2012.)
fn spread(weights: &[u32]) -> Box<[u8]> {
    let total: i64 = weights.iter().copied().map(i64::from).sum();
    let mut credit = vec![0i64; weights.len()];
    (0..total)
        .map(|_| {
            let mut richest = 0;
            for lane in 0..weights.len() {
                credit[lane] += i64::from(weights[lane]);
                if credit[lane] > credit[richest] {
                    richest = lane;
                }
            }
            credit[richest] -= total;
            u8::try_from(richest).expect("there are fewer than 256 lanes")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DEFAULT: [u32; 4] = [8, 4, 2, 1];

    #[test]
    fn the_default_bounds_are_as_published() {
        let wheel = Wheel::new(&DEFAULT);
        let bounds: Vec<usize> = (0..4).map(|lane| wheel.bound(lane)).collect();
        assert_eq!(bounds, [2, 4, 8, 15], "{:?}", wheel.slots);
    }

    #[test]
    fn full_lanes_get_exactly_their_weights() {
        let mut wheel = Wheel::new(&DEFAULT);
        let mut served = [0u32; 4];
        for _ in 0..15 * 7 {
            served[wheel.pick(|_| true).expect("all have jobs")] += 1;
        }
        assert_eq!(served, DEFAULT.map(|weight| weight * 7));
    }

    #[test]
    fn an_empty_lane_gives_its_share_away_by_weight() {
        let mut wheel = Wheel::new(&DEFAULT);
        let mut served = [0u32; 4];
        for _ in 0..15 * 700 {
            served[wheel.pick(|lane| lane != 0).expect("three have jobs")] += 1;
        }
        assert_eq!(served[0], 0);
        let share = |lane: usize| f64::from(served[lane]) / f64::from(15 * 700);
        for (lane, weight) in [(1, 4.0), (2, 2.0), (3, 1.0)] {
            assert!((share(lane) - weight / 7.0).abs() < 0.01, "{served:?}");
        }
    }

    #[test]
    fn a_lone_lane_is_always_served_and_no_lane_is_none() {
        let mut wheel = Wheel::new(&DEFAULT);
        for _ in 0..40 {
            assert_eq!(wheel.pick(|lane| lane == 3), Some(3));
        }
        assert_eq!(wheel.pick(|_| false), None);
    }

    proptest! {
        #[test]
        fn no_lane_starves_whatever_the_others_do(
            weights in prop::collection::vec(1u32..=12, 1..6),
            // One bit per lane and step: does it have a job?
            steps in prop::collection::vec(any::<u8>(), 1..600),
        ) {
            let mut wheel = Wheel::new(&weights);
            let bounds: Vec<usize> = (0..weights.len()).map(|lane| wheel.bound(lane)).collect();
            let mut waited = vec![0usize; weights.len()];
            for step in steps {
                let has_job = |lane: usize| step & (1 << lane) != 0;
                let picked = wheel.pick(has_job);
                prop_assert_eq!(picked.is_some(), (0..weights.len()).any(has_job));
                if picked.is_none() {
                    continue;
                }
                for lane in 0..weights.len() {
                    waited[lane] = if has_job(lane) && picked != Some(lane) { waited[lane] + 1 } else { 0 };
                    prop_assert!(waited[lane] < bounds[lane], "lane {} of {:?}", lane, &weights);
                }
            }
        }

        #[test]
        fn the_bound_is_below_twice_the_fair_distance(
            weights in prop::collection::vec(1u32..=100, 1..9),
        ) {
            let wheel = Wheel::new(&weights);
            let total: u32 = weights.iter().sum();
            for (lane, weight) in weights.iter().enumerate() {
                prop_assert!(wheel.bound(lane) < 2 * total.div_ceil(*weight) as usize + 1);
            }
        }

        #[test]
        fn shares_are_exact_over_a_turn(weights in prop::collection::vec(1u32..=100, 1..9)) {
            let mut wheel = Wheel::new(&weights);
            let total: u32 = weights.iter().sum();
            let mut served = vec![0u32; weights.len()];
            for _ in 0..total {
                served[wheel.pick(|_| true).expect("all have jobs")] += 1;
            }
            prop_assert_eq!(served, weights);
        }

        #[test]
        fn a_lane_that_always_has_jobs_gets_its_weight_in_every_turn_whatever_the_others_do(
            weights in prop::collection::vec(1u32..=12, 2..6),
            lane in any::<prop::sample::Index>(),
            steps in prop::collection::vec(any::<u8>(), 1..600),
        ) {
            let lane = lane.index(weights.len());
            let turn: u32 = weights.iter().sum();
            let mut wheel = Wheel::new(&weights);
            let mut served = Vec::new();
            for step in steps {
                let picked = wheel.pick(|other| other == lane || step & (1 << other) != 0);
                served.push(u32::from(picked == Some(lane)));
            }
            for window in served.windows(turn as usize) {
                prop_assert!(window.iter().sum::<u32>() >= weights[lane], "{weights:?}");
            }
        }

        #[test]
        fn what_empty_lanes_leave_goes_to_the_others_by_weight(
            weights in prop::collection::vec(1u32..=12, 2..6), empty in any::<u8>(),
        ) {
            let has_job = |lane: usize| empty & (1 << lane) == 0;
            let full: u32 = (0..weights.len()).filter(|lane| has_job(*lane)).map(|l| weights[l]).sum();
            prop_assume!(full > 0);
            let turns = 200 * full;
            let picks = turns * weights.iter().sum::<u32>();
            let mut wheel = Wheel::new(&weights);
            let mut served = vec![0u32; weights.len()];
            for _ in 0..picks {
                served[wheel.pick(has_job).expect("some have jobs")] += 1;
            }
            for lane in 0..weights.len() {
                let fair = if has_job(lane) { f64::from(weights[lane]) / f64::from(full) } else { 0.0 };
                let share = f64::from(served[lane]) / f64::from(picks);
                prop_assert!((share - fair).abs() < 0.01, "{share} for {fair} of {weights:?}");
            }
        }
    }
}
