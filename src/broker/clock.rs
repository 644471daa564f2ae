//! The broker's clock: the one time that all workers share.

use std::sync::{Arc, RwLock};

use tokio::time::Instant;

use crate::wire::time::{self, Time};

/// Tells the broker's time by the local monotonic clock. A worker whose own clock is wrong must not
/// run jobs early or let live ones expire.
#[derive(Clone, Debug)]
pub(crate) struct Clock(Arc<RwLock<Reading>>);

#[derive(Clone, Copy, Debug)]
struct Reading {
    at: Instant,
    time: Time,
}

impl Clock {
    /// A clock that showed `time` just now.
    pub(crate) fn new(time: Time) -> Self {
        Self(Arc::new(RwLock::new(Reading { at: Instant::now(), time })))
    }

    /// Sets the clock by a reading of the broker's that was taken between `asked` and now.
    pub(crate) fn set(&self, time: Time, asked: Instant) {
        let reading = Reading { at: asked + asked.elapsed() / 2, time };
        *self.0.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = reading;
    }

    /// The broker's time now.
    pub(crate) fn now(&self) -> Time {
        let reading = *self.0.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        time::after(reading.time, reading.at.elapsed())
    }
}
