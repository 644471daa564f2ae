//! The broker's clock: the one time that all workers share.

use std::sync::{Arc, RwLock};
use std::time::Duration;

use tokio::time::Instant;

use crate::wire::time::{self, Time};

/// How often the broker's clock is read anew.
pub(crate) const READ_EVERY: Duration = Duration::from_secs(60);

/// Tells the broker's time by the local monotonic clock. A worker whose own clock is wrong must not
/// run jobs early or let live ones expire.
#[derive(Clone, Debug)]
pub(crate) struct Clock(Arc<RwLock<Reading>>);

#[derive(Clone, Copy, Debug)]
struct Reading {
    at: Instant,
    time: Time,
    /// When the broker was asked for it, or in vain.
    asked: Option<Instant>,
}

impl Clock {
    /// A clock that showed `time` just now, by this machine's word.
    pub(crate) fn new(time: Time) -> Self {
        Self(Arc::new(RwLock::new(Reading { at: Instant::now(), time, asked: None })))
    }

    /// Sets the clock by a reading of the broker's that was taken between `asked` and now.
    pub(crate) fn set(&self, time: Time, asked: Instant) {
        let reading = Reading { at: asked + asked.elapsed() / 2, time, asked: Some(asked) };
        *self.0.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = reading;
    }

    /// Goes on as it is: the broker does not tell.
    pub(crate) fn keep(&self) {
        let mut reading = self.0.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        reading.asked = Some(Instant::now());
    }

    /// Whether the broker was asked lately.
    pub(crate) fn is_fresh(&self) -> bool {
        let reading = *self.0.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        reading.asked.is_some_and(|asked| asked.elapsed() < READ_EVERY)
    }

    /// The broker's time now.
    pub(crate) fn now(&self) -> Time {
        self.at(Instant::now())
    }

    /// The broker's time at a moment of this machine's.
    pub(crate) fn at(&self, moment: Instant) -> Time {
        let reading = *self.0.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        match moment.checked_duration_since(reading.at) {
            Some(since) => time::after(reading.time, since),
            None => time::before(reading.time, reading.at.saturating_duration_since(moment)),
        }
    }
}
