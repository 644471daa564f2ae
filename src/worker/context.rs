//! What a handler is told of its job, and can tell of it.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::job::{Held, Work};
use super::record::Recorder;
use crate::priority::Priority;
use crate::token::{JobId, Kind, Queue, RunId};
use crate::wire::time::{self, Time};
use crate::wire::{Headers, events_subject};

/// The job that a handler is working on. Cheap to clone.
#[derive(Clone)]
pub struct JobContext {
    job: Arc<Held>,
    recorder: Arc<Recorder>,
    attempt: u32,
    max_attempts: u32,
    started_at: Time,
}

impl JobContext {
    pub(super) fn new(
        work: &Work,
        recorder: &Arc<Recorder>,
        max_attempts: u32,
        started_at: Time,
    ) -> Self {
        let (job, recorder) = (work.job.clone(), recorder.clone());
        Self { job, recorder, attempt: work.attempt.number, max_attempts, started_at }
    }

    /// The job's id.
    pub fn id(&self) -> &JobId {
        &self.job.key.id
    }

    /// Which enqueue of the id this is.
    pub fn run(&self) -> &RunId {
        &self.job.key.run
    }

    /// The job's queue.
    pub fn queue(&self) -> &Queue {
        &self.job.key.queue
    }

    /// The job's kind.
    pub fn kind(&self) -> &Kind {
        &self.job.key.kind
    }

    /// The lane it came from.
    pub fn priority(&self) -> Priority {
        self.job.lane.priority
    }

    /// The number of this attempt, counted from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// How many attempts the job gets in all.
    pub fn max_attempts(&self) -> u32 {
        self.max_attempts
    }

    /// All headers that the job came with.
    pub fn headers(&self) -> &Headers {
        &self.job.headers
    }

    /// Whether its payload is sealed in the broker. Its result is sealed too; what is told of its errors,
    /// its progress and its log is not.
    pub fn is_sealed(&self) -> bool {
        self.job.options.seal.is_some()
    }

    /// When the job was enqueued, by the broker's clock.
    pub fn enqueued_at(&self) -> Time {
        self.job.enqueued_at()
    }

    /// When this attempt started, by the broker's clock.
    pub fn started_at(&self) -> Time {
        self.started_at
    }

    /// Cancelled when the handler is to stop: its time is up, the worker drains, or the job may be
    /// another worker's by now. A handler that does not stop is dropped two seconds later.
    pub fn cancellation(&self) -> &CancellationToken {
        self.job.lease.cancelled()
    }

    /// Tells whoever watches how far the job is, from 0 to 1. Not stored; lost if nobody watches.
    pub async fn progress(&self, done: f64, message: impl AsRef<str>) {
        let done = done.clamp(0.0, 1.0);
        self.tell(json!({ "event": "progress", "progress": done, "message": message.as_ref() }))
            .await;
    }

    /// Tells whoever watches a line of text, and logs it. Not stored.
    pub async fn log(&self, line: impl AsRef<str>) {
        let line = line.as_ref();
        tracing::info!(job = %self.id(), kind = %self.kind(), attempt = self.attempt(), "{line}");
        self.tell(json!({ "event": "log", "message": line })).await;
    }

    async fn tell(&self, mut event: serde_json::Value) {
        let key = &self.job.key;
        let Recorder { namespace, conn, clock, .. } = &*self.recorder;
        event["v"] = json!(crate::wire::PROTOCOL_VERSION);
        event["id"] = json!(key.id);
        event["run"] = json!(key.run);
        event["attempt"] = json!(self.attempt);
        event["at"] = json!(time::to_text(&clock.now()));
        let subject = events_subject(namespace, &key.queue, &key.kind, &key.id);
        if let Err(error) = conn.publish(subject, Bytes::from(event.to_string())).await {
            tracing::debug!(%error, "an event was not sent");
        }
    }
}

impl fmt::Debug for JobContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobContext")
            .field("kind", self.kind())
            .field("id", self.id())
            .field("run", self.run())
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}
