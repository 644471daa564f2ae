//! All jobs that a worker holds, and the keeper of their leases, which renews each every third of
//! `ack_wait`, by request.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::health::{Part, Supervision, TroubleKind};
use super::job::Held;
use super::lease::{Lost, Stop};
use crate::broker::Connection;
use crate::error::Result;
use crate::wire::{RecordKey, RunningJob};

/// How long it is told that leases were lost.
const LOSS_IS_TOLD: Duration = Duration::from_secs(60);

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
                held.get().lease.goes_on_by(&job.lease);
                None
            }
            Entry::Vacant(free) => Some(free.insert(Arc::new(job)).clone()),
        }
    }

    /// Lets go of jobs, but for those that are held anew.
    pub(crate) fn release<'a>(&self, jobs: impl IntoIterator<Item = &'a Arc<Held>>) {
        let mut all = self.all();
        for job in jobs {
            if let Entry::Occupied(held) = all.entry(job.place())
                && Arc::ptr_eq(held.get(), job)
            {
                held.remove();
            }
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
            losses.tell(self.lost.count(), &supervision);
        }
    }

    /// Looks whether what was held before a new connection is still there: a broker whose power was cut may
    /// have lost it, and give another its place. What it loses is the newest, so that nothing is missing
    /// below a job that is there.
    async fn look(&self, conn: &Connection, jobs_streams: &[String], since: Instant) -> Result<()> {
        for (queue, stream) in jobs_streams.iter().enumerate() {
            let mut held = self.held();
            held.retain(|job| {
                job.lane.queue == queue
                    && job.received() <= since
                    && !job.lease.is_without_message()
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
        due.retain(|job| job.lease.is_due(now, due_after));
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
