//! What a handler is told of its job, and can tell of it.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::job::Work;
use super::lease::Lease;
use crate::broker::{Clock, Connection};
use crate::priority::Priority;
use crate::token::{JobId, Kind, Namespace, Queue, RunId};
use crate::wire::time::{self, Time};
use crate::wire::{Headers, RecordKey, events_subject};

/// The job that a handler is working on. Cheap to clone.
#[derive(Clone, Debug)]
pub struct JobContext(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    key: RecordKey,
    priority: Priority,
    attempt: u32,
    max_attempts: u32,
    headers: Headers,
    enqueued_at: Time,
    started_at: Time,
    lease: Arc<Lease>,
    namespace: Namespace,
    conn: Connection,
    clock: Clock,
}

impl JobContext {
    pub(super) fn new(shared: &Shared, work: &Work, max_attempts: u32, started_at: Time) -> Self {
        Self(Arc::new(Inner {
            key: work.key.clone(),
            priority: work.lane.priority,
            attempt: work.attempt.number,
            max_attempts,
            headers: work.headers.clone(),
            enqueued_at: work.enqueued_at(),
            started_at,
            lease: work.lease.clone(),
            namespace: shared.namespace.clone(),
            conn: shared.conn.clone(),
            clock: shared.clock.clone(),
        }))
    }

    /// The job's id.
    pub fn id(&self) -> &JobId {
        &self.0.key.id
    }

    /// Which enqueue of the id this is.
    pub fn run(&self) -> &RunId {
        &self.0.key.run
    }

    /// The job's queue.
    pub fn queue(&self) -> &Queue {
        &self.0.key.queue
    }

    /// The job's kind.
    pub fn kind(&self) -> &Kind {
        &self.0.key.kind
    }

    /// The lane it came from.
    pub fn priority(&self) -> Priority {
        self.0.priority
    }

    /// The number of this attempt, counted from 1.
    pub fn attempt(&self) -> u32 {
        self.0.attempt
    }

    /// How many attempts the job gets in all.
    pub fn max_attempts(&self) -> u32 {
        self.0.max_attempts
    }

    /// All headers that the job came with.
    pub fn headers(&self) -> &Headers {
        &self.0.headers
    }

    /// When the job was enqueued, by the broker's clock.
    pub fn enqueued_at(&self) -> Time {
        self.0.enqueued_at
    }

    /// When this attempt started, by the broker's clock.
    pub fn started_at(&self) -> Time {
        self.0.started_at
    }

    /// Cancelled when the handler is to stop: its time is up, the worker drains, or the job may be
    /// another worker's by now. A handler that does not stop is dropped two seconds later.
    pub fn cancellation(&self) -> &CancellationToken {
        self.0.lease.cancelled()
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
        let Inner { key, attempt, namespace, conn, clock, .. } = &*self.0;
        event["v"] = json!(crate::wire::PROTOCOL_VERSION);
        event["id"] = json!(key.id);
        event["run"] = json!(key.run);
        event["attempt"] = json!(attempt);
        event["at"] = json!(time::to_text(&clock.now()));
        let subject = events_subject(namespace, &key.queue, &key.kind, &key.id);
        if let Err(error) = conn.publish(subject, Bytes::from(event.to_string())).await {
            tracing::debug!(%error, "an event was not sent");
        }
    }
}
