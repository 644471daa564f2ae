//! How much a lane may hold in its buffer: sized by time, not by count. Pure.
//!
//! A buffer is there so that fast jobs never wait for the network; slow jobs must not be hoarded
//! where another worker could run them. So a lane holds what it will start within [`HORIZON`].

use std::time::Duration;

use tokio::time::Instant;

/// How far ahead a lane fetches.
pub(crate) const HORIZON: Duration = Duration::from_millis(250);

/// The most jobs that a lane holds.
pub(crate) const MAX_BUFFERED: usize = 1000;

/// What a lane's room depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// Slots without a job.
    pub(crate) free_slots: usize,
    /// Slots that come free in a second.
    pub(crate) slots_per_second: f64,
    /// Jobs of this lane that start in a second.
    pub(crate) starts_per_second: f64,
}

/// How many jobs a lane may hold: none while no slot is free or about to be.
pub(crate) fn capacity(load: Load) -> usize {
    let horizon = HORIZON.as_secs_f64();
    let free_soon = load.slots_per_second * horizon;
    if load.free_slots == 0 && free_soon < 1.0 {
        return 0;
    }
    let by_speed = (load.starts_per_second * horizon).ceil() as usize;
    by_speed.max(load.free_slots).clamp(1, MAX_BUFFERED)
}

/// How many jobs to ask for, where `held` are held or asked for already. Small refills are put off
/// until a quarter of the room is free, so that a busy lane does not ask for each job by itself.
pub(crate) fn refill(capacity: usize, held: usize) -> usize {
    let room = capacity.saturating_sub(held);
    if room * 4 >= capacity { room } else { 0 }
}

/// Events per second, smoothed over a fifth of a second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    per_second: f64,
    count: u32,
    since: Instant,
}

impl Rate {
    /// The least time over which a new figure is taken.
    const STEP: Duration = Duration::from_millis(20);
    /// The time in which an old figure fades to a third.
    const FADE_SECONDS: f64 = 0.2;

    pub(crate) fn new(now: Instant) -> Self {
        Self { per_second: 0.0, count: 0, since: now }
    }

    pub(crate) fn count(&mut self, now: Instant) {
        self.fold(now);
        self.count += 1;
    }

    pub(crate) fn per_second(&mut self, now: Instant) -> f64 {
        self.fold(now);
        self.per_second
    }

    fn fold(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed < Self::STEP {
            return;
        }
        let seconds = elapsed.as_secs_f64();
        let latest = f64::from(self.count) / seconds;
        let weight = 1.0 - (-seconds / Self::FADE_SECONDS).exp();
        self.per_second += weight * (latest - self.per_second);
        self.count = 0;
        self.since = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capacity_of(free_slots: usize, slots_per_second: f64, starts_per_second: f64) -> usize {
        capacity(Load { free_slots, slots_per_second, starts_per_second })
    }

    #[test]
    fn room_by_load() {
        // Idle: as many as can start at once.
        assert_eq!(capacity_of(50, 0.0, 0.0), 50);
        // All slots busy with slow jobs: none.
        assert_eq!(capacity_of(0, 0.4, 0.4), 0);
        // Busy with fast jobs: what starts within the horizon.
        assert_eq!(capacity_of(0, 1000.0, 400.0), 100);
        // A lane that has not had a job lately must still be able to get one.
        assert_eq!(capacity_of(0, 1000.0, 0.0), 1);
        // However fast, bounded.
        assert_eq!(capacity_of(0, 1e6, 1e6), MAX_BUFFERED);
    }

    #[test]
    fn refills_come_in_quarters() {
        assert_eq!(refill(100, 0), 100);
        assert_eq!(refill(100, 75), 25);
        assert_eq!(refill(100, 76), 0);
        assert_eq!(refill(1, 0), 1);
        assert_eq!(refill(1, 1), 0);
        assert_eq!(refill(0, 0), 0);
        assert_eq!(refill(3, 9), 0);
    }

    #[test]
    fn a_rate_follows_what_it_counts_and_fades() {
        let start = Instant::now();
        let at = |millis: u64| start + Duration::from_millis(millis);
        let mut rate = Rate::new(start);
        for millis in 0..3000 {
            rate.count(at(millis));
        }
        let busy = rate.per_second(at(3000));
        assert!((900.0..1100.0).contains(&busy), "{busy}");
        assert!(rate.per_second(at(8000)) < 1.0);
    }
}
