//! The runtime's kinds of jobs, and their handlers.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::background::JobType;
use super::event::AgentEvent;
use super::publish::Publishers;
use super::run::RunId;
use super::store::RunStore;
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
}

impl Job for PersistEvent {
    const KIND: &'static str = "persist_event";
}

/// Hands an event to the outside.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PublishExternalEvent {
    /// What happened.
    pub event: AgentEvent,
}

impl Job for PublishExternalEvent {
    const KIND: &'static str = "publish_external_event";
}

/// Does nothing, to see that jobs are worked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestJob {
    /// For the log.
    pub message: String,
}

impl Job for TestJob {
    const KIND: &'static str = "test_job";
}

/// What the runtime's pool did between attempts: 2 s, 4 s, 6 s, and then gave up.
fn policy() -> RetryPolicy {
    const STEP: Duration = Duration::from_secs(2);
    RetryPolicy::new(3, Backoff::linear(STEP))
}

/// A worker that also persists events in `store`, and works test jobs. What was done is the result: a
/// [`JobType`].
pub fn persisting(worker: WorkerBuilder, store: Arc<dyn RunStore>) -> WorkerBuilder {
    let persist = move |job: PersistEvent, context: JobContext| {
        let store = store.clone();
        async move {
            store.append(job.run_id, context.id(), job.event.clone()).await?;
            Ok::<JobType, JobError>(job.into())
        }
    };
    let test = |job: TestJob, _: JobContext| async move {
        tracing::info!(job.message, "a test job");
        Ok::<JobType, JobError>(job.into())
    };
    let persist = Handler::new(persist).retry(policy());
    worker.handler(persist).handler(Handler::new(test).retry(policy()))
}

/// A worker that also publishes events by the publisher of the moment; without one they are done with.
/// What was done is the result: a [`JobType`].
pub fn publishing(worker: WorkerBuilder, publishers: Publishers) -> WorkerBuilder {
    let publish = move |job: PublishExternalEvent, context: JobContext| {
        let publisher = publishers.get();
        async move {
            if let Some(publisher) = publisher {
                let published = publisher.publish(context.id(), &job.event).await;
                published.map_err(|error| JobError::failed(error.to_string()))?;
            }
            Ok::<JobType, JobError>(job.into())
        }
    };
    worker.handler(Handler::new(publish).retry(policy()))
}
