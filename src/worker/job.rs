//! A job in a worker's hands.

use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::lanes::LaneId;
use super::lease::Lease;
use super::leases::Place;
use crate::retry::RetryPolicy;
use crate::wire::time::Time;
use crate::wire::{Headers, JobOptions, RecordKey, RunningJob, Unvouched};

/// A job that this worker holds: as it came, and the hold on it.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) lane: LaneId,
    pub(crate) key: RecordKey,
    /// Its sequence in the jobs stream.
    pub(crate) sequence: u64,
    /// When the broker stored it.
    pub(crate) stored: Time,
    pub(crate) headers: Headers,
    pub(crate) options: JobOptions,
    /// Whose run it says it is, where nobody vouches for that.
    pub(crate) unvouched: Option<Box<Unvouched>>,
    pub(crate) payload: Bytes,
    pub(crate) lease: Lease,
}

/// A job on its way through a worker, and the attempt that is next, or running.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) job: Arc<Held>,
    pub(crate) attempt: Attempt,
}

impl Deref for Work {
    type Target = Held;

    fn deref(&self) -> &Held {
        &self.job
    }
}

/// Where a job stands in its attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attempt {
    /// Counted from 1.
    pub(crate) number: u32,
    /// How often it has been snoozed.
    pub(crate) snoozes: u32,
    /// Whether the attempt has to be written down before it starts. Only an undisturbed first one
    /// need not be.
    pub(crate) announce: bool,
    /// The sequence of the run's last entry in the ledger, as far as it is known here; 0 for none.
    /// Whoever adds an entry expects it to be the last: who was held up is not to take back what
    /// another has entered since.
    pub(crate) ledger: u64,
}

impl Attempt {
    /// The first of a job that nobody has touched.
    pub(crate) const UNDISTURBED: Self = Self { number: 1, snoozes: 0, announce: false, ledger: 0 };
}

impl Held {
    pub(crate) fn place(&self) -> Place {
        (self.lane.queue, self.sequence)
    }

    pub(crate) fn received(&self) -> Instant {
        self.lease.received()
    }

    /// The job as one that runs on this worker, if it does.
    pub(crate) fn as_running(&self, worker: &str) -> Option<RunningJob> {
        let (attempt, started_at) = self.lease.running()?;
        let RecordKey { kind, id, run, .. } = self.key.clone();
        Some(RunningJob {
            kind,
            id,
            run,
            seq: self.sequence,
            priority: self.lane.priority,
            attempt,
            started_at,
            worker: worker.to_owned(),
        })
    }

    /// When the job was enqueued: as its producer says, else when it was stored.
    pub(crate) fn enqueued_at(&self) -> Time {
        self.options.created_at.unwrap_or(self.stored)
    }

    /// The kind's policy with what the job itself asks for.
    pub(crate) fn policy(&self, of_kind: &RetryPolicy) -> RetryPolicy {
        RetryPolicy {
            max_retries: self.options.max_retries.unwrap_or(of_kind.max_retries),
            backoff: self.options.backoff.clone().unwrap_or_else(|| of_kind.backoff.clone()),
        }
    }
}
