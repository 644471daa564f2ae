//! A lease: a job that a worker holds is its own only while the broker hears of it in time.
//!
//! The broker hands a job to somebody else `ack_wait` after it last heard of it. A lease counts from the
//! moment at which a renewal was *sent* that was answered. One that runs out is lost for good: the
//! handler is told to stop, and nothing more is said to the broker about that delivery, since another
//! worker may hold the job.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::broker::{AckSubject, Connection};
use crate::error::Result;
use crate::wire::time::Time;

/// Why a handler is to stop before it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Stop {
    /// Its lease is lost: another worker may hold the job.
    LeaseLost = 1,
    /// The worker drains and its grace period is over.
    Draining = 2,
    /// The job is cancelled; that is on record already.
    Cancelled = 3,
}

/// How many leases a worker has lost.
#[derive(Debug, Default)]
pub(crate) struct Lost(AtomicU64);

impl Lost {
    pub(super) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The hold on one delivery.
#[derive(Debug)]
pub(crate) struct Lease {
    lost: Arc<Lost>,
    received: Instant,
    ack_wait: Duration,
    state: Mutex<State>,
    stop: AtomicU8,
    /// Cancelled when the handler is to stop; made when somebody first asks for it, which few handlers
    /// live long enough to do.
    cancelled: OnceLock<CancellationToken>,
    /// Which attempt runs under it and since when, once one does.
    running: OnceLock<(u32, Time)>,
}

#[derive(Debug)]
struct State {
    ack: AckSubject,
    /// When the broker was last surely told.
    renewed: Instant,
    /// Whether the broker does not have the message any more.
    is_gone: bool,
}

impl Lease {
    pub(crate) fn new(
        ack: AckSubject,
        received: Instant,
        ack_wait: Duration,
        lost: &Arc<Lost>,
    ) -> Self {
        Self {
            lost: lost.clone(),
            received,
            ack_wait,
            state: Mutex::new(State { ack, renewed: received, is_gone: false }),
            stop: AtomicU8::new(0),
            cancelled: OnceLock::new(),
            running: OnceLock::new(),
        }
    }

    /// An attempt runs under this lease from now on.
    pub(crate) fn runs(&self, attempt: u32, since: Time) {
        // A lease is of one delivery, and a delivery is run once.
        let _ = self.running.set((attempt, since));
    }

    /// Which attempt runs under it, and since when.
    pub(crate) fn running(&self) -> Option<(u32, Time)> {
        self.running.get().copied()
    }

    /// How long the broker waits to hear of it.
    pub(crate) fn ack_wait(&self) -> Duration {
        self.ack_wait
    }

    pub(crate) fn received(&self) -> Instant {
        self.received
    }

    /// Where to settle, as of the latest delivery; `None` once the lease is lost.
    pub(crate) fn settle_at(&self, now: Instant) -> Option<AckSubject> {
        let state = self.state();
        (!self.is_lost_under(&state, now)).then(|| state.ack.clone())
    }

    /// Whether another worker may hold the job.
    pub(crate) fn is_lost_at(&self, now: Instant) -> bool {
        self.is_lost_under(&self.state(), now)
    }

    /// It may have run out unnoticed, as where the whole process was halted.
    fn is_lost_under(&self, state: &MutexGuard<'_, State>, now: Instant) -> bool {
        if has_run_out(now.saturating_duration_since(state.renewed), self.ack_wait) {
            self.stop_under(state, Stop::LeaseLost);
        }
        self.stopped() == Some(Stop::LeaseLost)
    }

    /// Goes on by another delivery of the same job.
    pub(super) fn goes_on_by(&self, fresh: &Self) {
        let ack = fresh.state().ack.clone();
        let mut state = self.state();
        (state.ack, state.renewed) = (ack, fresh.received);
    }

    /// Whether its message is not there any more.
    pub(super) fn is_without_message(&self) -> bool {
        self.state().is_gone
    }

    /// Its message is not there any more: what is still said of it must reach no other.
    pub(super) fn lose_message(&self) {
        let mut state = self.state();
        state.ack = state.ack.to_nothing();
        state.is_gone = true;
    }

    /// Tells the handler to stop. The first reason stays, but a lost lease overrides it.
    pub(crate) fn stop(&self, why: Stop) {
        self.stop_under(&self.state(), why);
    }

    /// Under the lock, so that a token that is made just now hears of it.
    fn stop_under(&self, _lock: &MutexGuard<'_, State>, why: Stop) {
        match why {
            Stop::LeaseLost => {
                if self.stop.swap(why as u8, Ordering::AcqRel) != why as u8 {
                    self.lost.0.fetch_add(1, Ordering::Relaxed);
                }
            }
            Stop::Draining | Stop::Cancelled => {
                let _ =
                    self.stop.compare_exchange(0, why as u8, Ordering::AcqRel, Ordering::Acquire);
            }
        }
        if let Some(cancelled) = self.cancelled.get() {
            cancelled.cancel();
        }
    }

    /// Why the handler is to stop, if it is.
    pub(crate) fn stopped(&self) -> Option<Stop> {
        match self.stop.load(Ordering::Acquire) {
            1 => Some(Stop::LeaseLost),
            2 => Some(Stop::Draining),
            3 => Some(Stop::Cancelled),
            _ => None,
        }
    }

    pub(crate) fn cancelled(&self) -> &CancellationToken {
        if let Some(cancelled) = self.cancelled.get() {
            return cancelled;
        }
        let _lock = self.state();
        let cancelled = self.cancelled.get_or_init(CancellationToken::new);
        if self.stopped().is_some() {
            cancelled.cancel();
        }
        cancelled
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Whether the broker is to be told again, so long after it last was.
    pub(super) fn is_due(&self, now: Instant, after: Duration) -> bool {
        self.stopped() != Some(Stop::LeaseLost)
            && now.saturating_duration_since(self.state().renewed) >= after
    }

    /// Tells the broker that the job is still being worked.
    pub(super) async fn renew(&self, conn: &Connection) -> Result<()> {
        let asked = Instant::now();
        let Some(ack) = self.settle_at(asked) else { return Ok(()) };
        let renewed = ack.in_progress(conn).await;
        match &renewed {
            Ok(()) => {
                let mut state = self.state();
                // A delivery of the same job may have come in since.
                state.renewed = state.renewed.max(asked);
            }
            Err(error) => tracing::debug!(%error, "a lease was not renewed yet"),
        }
        renewed
    }
}

/// Whether a lease is lost that was last renewed so long ago. What the broker counts is a little older
/// than what we count, so we stop a little earlier.
pub(super) fn has_run_out(since_renewed: Duration, ack_wait: Duration) -> bool {
    since_renewed + ack_wait / 20 > ack_wait
}
