//! The runtime's kinds of jobs, and their handlers.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::event::AgentEvent;
use super::publish::Publishers;
use super::run::RunId;
use super::store::{RunStore, StoreError};
use crate::kind::Job;
use crate::outcome::JobError;
use crate::retry::{Backoff, RetryPolicy};
use crate::worker::{Handler, JobContext, WorkerBuilder};

/// Appends an event to a run's log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PersistEvent {
    /// The run.
    pub run_id: RunId,
    /// What happened.
    pub event: AgentEvent,
    /// Fields that are not known here.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl PersistEvent {
    /// An event to append.
    pub fn new(run_id: RunId, event: AgentEvent) -> Self {
        Self { run_id, event, extra: Map::new() }
    }
}

impl Job for PersistEvent {
    const KIND: &'static str = "persist_event";
}

/// Hands an event to the outside.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PublishExternalEvent {
    /// What happened.
    pub event: AgentEvent,
    /// Fields that are not known here.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl PublishExternalEvent {
    /// An event to hand out.
    pub fn new(event: AgentEvent) -> Self {
        Self { event, extra: Map::new() }
    }
}

impl Job for PublishExternalEvent {
    const KIND: &'static str = "publish_external_event";
}

/// Does nothing, to see that jobs are worked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestJob {
    /// For the log.
    pub message: String,
    /// Fields that are not known here.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl TestJob {
    /// A job that does nothing.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), extra: Map::new() }
    }
}

impl Job for TestJob {
    const KIND: &'static str = "test_job";
}

/// How long an event is put off whose run's log is busy; it costs no attempt.
const BUSY: Duration = Duration::from_secs(1);

/// What the runtime's pool did between attempts: 2 s, 4 s, 6 s, and then gave up.
fn policy() -> RetryPolicy {
    const STEP: Duration = Duration::from_secs(2);
    RetryPolicy::new(3, Backoff::linear(STEP))
}

/// The result of a job: what was done, as a [`JobType`](super::JobType) is written, with the fields that
/// are not known here.
#[derive(Serialize)]
#[serde(tag = "type", content = "payload")]
enum Done {
    PersistEvent(PersistEvent),
    PublishExternalEvent(PublishExternalEvent),
    TestJob(TestJob),
}

/// A worker that also persists events in `store`, and works test jobs. What was done is the result: a
/// [`JobType`](super::JobType).
pub fn persisting(worker: WorkerBuilder, store: Arc<dyn RunStore>) -> WorkerBuilder {
    let persist = move |job: PersistEvent, context: JobContext| {
        let store = store.clone();
        async move {
            match store.append(job.run_id, context.id(), job.event.clone()).await {
                Ok(_) => {}
                Err(StoreError::Busy(_)) => return Err(JobError::snooze(BUSY)),
                Err(error) => return Err(error.into()),
            }
            Ok::<Done, JobError>(Done::PersistEvent(job))
        }
    };
    let test = |job: TestJob, _: JobContext| async move {
        tracing::info!(job.message, "a test job");
        Ok::<Done, JobError>(Done::TestJob(job))
    };
    let persist = Handler::new(persist).retry(policy());
    worker.handler(persist).handler(Handler::new(test).retry(policy()))
}

/// A worker that also publishes events by the publisher of the moment; without one they are done with.
/// What was done is the result: a [`JobType`](super::JobType).
pub fn publishing(worker: WorkerBuilder, publishers: Publishers) -> WorkerBuilder {
    let publish = move |job: PublishExternalEvent, context: JobContext| {
        let publisher = publishers.get();
        async move {
            if let Some(publisher) = publisher {
                let published = publisher.publish(context.id(), &job.event).await;
                published.map_err(|error| JobError::failed(error.to_string()))?;
            }
            Ok::<Done, JobError>(Done::PublishExternalEvent(job))
        }
    };
    worker.handler(Handler::new(publish).retry(policy()))
}
