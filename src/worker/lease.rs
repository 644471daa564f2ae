//! Leases: every job that a worker holds is its own only while the broker hears of it in time.
//!
//! The broker hands a job to somebody else `ack_wait` after it last heard of it. The keeper renews
//! each lease every third of that, by request, and counts a lease from the moment it *sent* a renewal
//! that was answered. A lease that runs out is lost for good: the handler is told to stop, and
//! nothing more is said to the broker about that delivery, since another worker may hold the job.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::health::{Part, Supervision, TroubleKind};
use super::job::Held;
use crate::broker::{AckSubject, Connection};
use crate::error::Result;
use crate::wire::time::Time;
use crate::wire::{RecordKey, RunningJob};

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

/// How long it is told that leases were lost.
const LOSS_IS_TOLD: Duration = Duration::from_secs(60);

/// How many leases a worker has lost.
#[derive(Debug, Default)]
pub(crate) struct Lost(AtomicU64);

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
        if self.has_run_out(&state, now) {
            self.stop_under(&state, Stop::LeaseLost);
        }
        (self.stopped() != Some(Stop::LeaseLost)).then(|| state.ack.clone())
    }

    /// Its message is not there any more: what is still said of it must reach no other.
    fn lose_message(&self) {
        let mut state = self.state();
        state.ack = state.ack.to_nothing();
        state.is_gone = true;
    }

    fn has_run_out(&self, state: &State, now: Instant) -> bool {
        has_run_out(now.saturating_duration_since(state.renewed), self.ack_wait)
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

    /// Tells the broker that the job is still being worked.
    async fn renew(&self, conn: &Connection) -> Result<()> {
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

/// A job by its place: the queue's position in the worker's list, and its sequence.
pub(crate) type Place = (usize, u64);

/// All jobs that a worker holds.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    held: Mutex<ByPlace>,
    lost: Arc<Lost>,
}

type ByPlace = HashMap<Place, Arc<Held>, BuildHasherDefault<PlaceHasher>>;

/// Hashes places: two numbers that the broker gives out in order, and nobody can choose.
#[derive(Default)]
struct PlaceHasher(u64);

impl Hasher for PlaceHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64((*byte).into());
        }
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }

    fn write_u64(&mut self, number: u64) {
        // Fibonacci hashing (Knuth, The Art of Computer Programming, 6.4): 2^64 by the golden ratio.
        self.0 = (self.0.rotate_left(32) ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

impl Leases {
    /// Where those count that are lost.
    pub(crate) fn lost(&self) -> &Arc<Lost> {
        &self.lost
    }

    /// Takes hold of a delivery. `None` if the job is held already, as after a broker that forgot
    /// whom it had given the job to: then the hold goes on by the new delivery.
    ///
    /// A broker that lost its newest messages gives out their sequences again, and goes by these alone: of
    /// a job that is lost nothing may be said that it would take for a word about the one in its place.
    pub(crate) fn hold(&self, job: Held) -> Option<Arc<Held>> {
        match self.all().entry(job.place()) {
            Entry::Occupied(mut held) if held.get().stored != job.stored => {
                held.get().lease.lose_message();
                held.insert(Arc::new(job));
                Some(held.get().clone())
            }
            Entry::Occupied(held) => {
                let fresh = job.lease.state().ack.clone();
                let mut state = held.get().lease.state();
                state.ack = fresh;
                state.renewed = job.lease.received;
                None
            }
            Entry::Vacant(free) => Some(free.insert(Arc::new(job)).clone()),
        }
    }

    pub(crate) fn release(&self, job: &Arc<Held>) {
        if let Entry::Occupied(held) = self.all().entry(job.place())
            && Arc::ptr_eq(held.get(), job)
        {
            held.remove();
        }
    }

    /// Stops every handler.
    pub(crate) fn stop_all(&self, why: Stop) {
        for job in self.held() {
            job.lease.stop(why);
        }
    }

    /// What is running, of one of the worker's queues.
    pub(crate) fn running(&self, queue: usize, worker: &str) -> Vec<RunningJob> {
        let all = self.all();
        let of_queue = all.iter().filter(|((at, _), _)| *at == queue);
        of_queue.filter_map(|(_, job)| job.as_running(worker)).collect()
    }

    /// Stops the handler of a run, if it runs here.
    pub(crate) fn stop(&self, key: &RecordKey, why: Stop) {
        for job in self.held() {
            if job.key == *key && job.lease.running().is_some() {
                job.lease.stop(why);
            }
        }
    }

    fn held(&self) -> Vec<Arc<Held>> {
        self.all().values().cloned().collect()
    }

    fn all(&self) -> MutexGuard<'_, ByPlace> {
        self.held.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Renews what is due, and cancels what has run out, until `end`.
    pub(crate) async fn keep(
        self: Arc<Self>,
        conn: Connection,
        supervision: Arc<Supervision>,
        jobs_streams: Vec<String>,
        ack_wait: Duration,
        end: CancellationToken,
    ) {
        let mut losses = Losses::default();
        let mut connected_anew = None;
        let mut epochs = conn.epochs();
        // Looks often enough to try again several times before a lease is lost.
        let mut ticks = interval((ack_wait / 12).max(Duration::from_millis(50)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let due_after = tokio::select! {
                () = end.cancelled() => return,
                _ = ticks.tick() => ack_wait / 3,
                // A new connection: the broker may have restarted, so tell it of everything.
                () = changed(&mut epochs) => {
                    connected_anew = Some(Instant::now());
                    Duration::ZERO
                }
            };
            let look = async {
                let Some(since) = connected_anew else { return };
                // What cannot be told now is asked with the next renewal, which must not wait for it.
                match timeout(ack_wait / 6, self.look(&conn, &jobs_streams, since)).await {
                    Ok(Ok(())) => connected_anew = None,
                    Ok(Err(error)) if error.is_permission() => connected_anew = None,
                    Ok(Err(error)) => {
                        tracing::debug!(%error, "it is not known whether all jobs are still there");
                    }
                    Err(_) => tracing::debug!("it is not known whether all jobs are still there"),
                }
            };
            tokio::join!(look, self.renew_due(&conn, &supervision, due_after));
            losses.tell(self.lost.0.load(Ordering::Relaxed), &supervision);
        }
    }

    /// Looks whether what was held before a new connection is still there: a broker whose power was cut may
    /// have lost it, and give another its place. What it loses is the newest, so that nothing is missing
    /// below a job that is there.
    async fn look(&self, conn: &Connection, jobs_streams: &[String], since: Instant) -> Result<()> {
        for (queue, stream) in jobs_streams.iter().enumerate() {
            let mut held = self.held();
            held.retain(|job| {
                job.lane.queue == queue && job.received() <= since && !job.lease.state().is_gone
            });
            held.sort_unstable_by_key(|job| Reverse(job.sequence));
            for job in held {
                let there = conn.by_sequence(stream, job.sequence).await?;
                if there.is_some_and(|there| there.stored == Some(job.stored)) {
                    break;
                }
                tracing::debug!(job = %job.key.id, "the broker does not have it any more");
                job.lease.lose_message();
            }
        }
        Ok(())
    }

    async fn renew_due(&self, conn: &Connection, supervision: &Supervision, due_after: Duration) {
        let now = Instant::now();
        let mut due = self.held();
        due.retain(|job| {
            job.lease.stopped() != Some(Stop::LeaseLost)
                && now.saturating_duration_since(job.lease.state().renewed) >= due_after
        });
        let renewed = join_all(due.iter().map(|job| job.lease.renew(conn))).await;
        for (job, renewed) in due.iter().zip(renewed) {
            match renewed {
                Ok(()) => {}
                Err(error) if error.is_permission() => {
                    supervision.report(Part::Acks(job.lane), &error);
                }
                Err(_) => {}
            }
        }
    }
}

/// What was told of lost leases.
#[derive(Default)]
struct Losses {
    told: u64,
    last: Option<Instant>,
}

impl Losses {
    /// Tells of those lost since, and for a while after.
    fn tell(&mut self, lost: u64, supervision: &Supervision) {
        if lost > self.told {
            let count = lost - self.told;
            (self.told, self.last) = (lost, Some(Instant::now()));
            supervision.lost_leases(lost);
            let what = format!(
                "the leases of {count} jobs were not renewed in time: others may have them by now"
            );
            supervision.report_kind(Part::Leases, TroubleKind::LeasesLost, None, what);
        } else if self.last.is_some_and(|last| last.elapsed() >= LOSS_IS_TOLD) {
            self.last = None;
            supervision.clear(Part::Leases);
        }
    }
}

async fn changed(epochs: &mut watch::Receiver<u64>) {
    if epochs.changed().await.is_err() {
        // The connection is gone for good; leases run out by the clock.
        std::future::pending().await
    }
}
