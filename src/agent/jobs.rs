//! The runtime's kinds of jobs, and their handlers.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

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

/// A worker that also persists events in `store`, and works test jobs.
pub fn persisting(worker: WorkerBuilder, store: Arc<dyn RunStore>) -> WorkerBuilder {
    let persist = move |job: PersistEvent, context: JobContext| {
        let store = store.clone();
        async move {
            let number = store.append(job.run_id, context.id(), job.event).await?;
            Ok::<u64, JobError>(number)
        }
    };
    let test = |job: TestJob, _: JobContext| async move {
        tracing::info!(job.message, "a test job");
        Ok::<String, JobError>(job.message)
    };
    let persist = Handler::new(persist).retry(policy());
    worker.handler(persist).handler(Handler::new(test).retry(policy()))
}

/// A worker that also publishes events by the publisher of the moment; without one they are done with.
pub fn publishing(worker: WorkerBuilder, publishers: Publishers) -> WorkerBuilder {
    let publish = move |job: PublishExternalEvent, context: JobContext| {
        let publisher = publishers.get();
        async move {
            if let Some(publisher) = publisher {
                let published = publisher.publish(context.id(), &job.event).await;
                published.map_err(|error| JobError::failed(error.to_string()))?;
            }
            Ok::<(), JobError>(())
        }
    };
    worker.handler(Handler::new(publish).retry(policy()))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// What the runtime's own crate wrote when it was shut down with jobs left.
    const PENDING: &str = include_str!("../../tests/fixtures/pending_jobs.json");

    #[test]
    fn payloads_are_read_and_written_as_the_runtime_has_them() {
        let jobs: Vec<Value> = serde_json::from_str(PENDING).expect("JSON");
        assert_eq!(jobs.len(), 14);
        for job in jobs {
            let (kind, payload) = (&job["job_type"]["type"], job["job_type"]["payload"].clone());
            let written = match kind.as_str().expect("a name") {
                "PersistEvent" => {
                    let job: PersistEvent = serde_json::from_value(payload.clone()).expect("reads");
                    assert_eq!(job.event.run_id(), Some(job.run_id));
                    assert!(!matches!(job.event, AgentEvent::Other(_)), "{payload}");
                    serde_json::to_value(job)
                }
                "PublishExternalEvent" => {
                    let job = serde_json::from_value::<PublishExternalEvent>(payload.clone());
                    serde_json::to_value(job.expect("reads"))
                }
                "TestJob" => serde_json::to_value(
                    serde_json::from_value::<TestJob>(payload.clone()).expect("reads"),
                ),
                other => panic!("a kind of job that is not known: {other}"),
            };
            assert_eq!(written.expect("writes"), payload);
        }
    }
}
