//! A job as the runtime's own code and file have it.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::event::AgentEvent;
use super::jobs::{PersistEvent, PublishExternalEvent, TestJob};
use super::run::RunId;
use crate::client::Ready;
use crate::error::{Error, Result};
use crate::kind::Job;
use crate::priority::Priority;
use crate::token::{JobId, Kind, Queue};
use crate::wire::{Headers, name, time};

/// The delays of the pool between attempts: 2 s more after each.
const BACKOFF: &str = "linear:2000";

/// Retries after the first attempt, where nobody says otherwise.
pub(super) const MAX_RETRIES: usize = 3;

/// A job of the runtime's pool. Its JSON is that of `behest` 0.2.2.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackgroundJob {
    /// Which job; enqueueing it again adds nothing.
    pub id: Uuid,
    /// How urgent it is.
    pub priority: JobPriority,
    /// Attempts that have failed already.
    pub retries: usize,
    /// How many may fail and be followed by another.
    pub max_retries: usize,
    /// What it does.
    pub job_type: JobType,
    /// When it may run.
    #[serde(default)]
    pub conditions: JobConditions,
    /// When it was created; of one priority, the oldest comes first.
    pub created_at: DateTime<Utc>,
}

/// How urgent a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum JobPriority {
    /// Clean-up, logs.
    Low,
    /// Events to persist.
    Normal,
    /// What others wait for.
    High,
    /// What everything waits for.
    Critical,
}

/// What a job does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", content = "payload")]
#[non_exhaustive]
pub enum JobType {
    /// Appends an event to a run's log: see [`PersistEvent`](super::PersistEvent).
    PersistEvent {
        /// The run.
        run_id: RunId,
        /// What happened.
        event: AgentEvent,
    },
    /// Hands an event to the outside: see [`PublishExternalEvent`](super::PublishExternalEvent).
    PublishExternalEvent {
        /// What happened.
        event: AgentEvent,
    },
    /// Does nothing: see [`TestJob`](super::TestJob).
    TestJob {
        /// For the log.
        message: String,
    },
}

/// When a job may run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobConditions {
    /// Not before this time.
    pub run_after: Option<DateTime<Utc>>,
}

impl From<JobPriority> for Priority {
    fn from(priority: JobPriority) -> Self {
        match priority {
            JobPriority::Low => Self::Low,
            JobPriority::Normal => Self::Normal,
            JobPriority::High => Self::High,
            JobPriority::Critical => Self::Critical,
        }
    }
}

impl BackgroundJob {
    /// A new job of the pool.
    pub(super) fn new(priority: JobPriority, job_type: JobType, conditions: JobConditions) -> Self {
        Self {
            id: Uuid::now_v7(),
            priority,
            retries: 0,
            max_retries: MAX_RETRIES,
            job_type,
            conditions,
            created_at: Utc::now(),
        }
    }

    /// The job as a queue takes it. Its id is its run.
    ///
    /// # Errors
    /// `is_invalid` where its payload does not serialize.
    pub(super) fn into_ready(self, queue: &Queue) -> Result<Ready> {
        let id = JobId::new(self.id.hyphenated().to_string())?;
        let run = id.as_run();
        let mut headers = Headers::new();
        headers.set(name::RUN, run.as_str());
        if self.retries > 0 {
            headers.set(name::ATTEMPTS_USED, self.retries.to_string());
        }
        headers.set(name::MAX_RETRIES, self.max_retries.to_string());
        headers.set(name::BACKOFF, BACKOFF);
        headers.set(name::CREATED_AT, time::to_text(&self.created_at));
        if let Some(run_after) = self.conditions.run_after {
            headers.set(name::RUN_AFTER, time::to_text(&run_after));
        }
        let kind = Kind::new(self.job_type.kind())?;
        let payload = self.job_type.into_payload().map_err(|error| {
            Error::invalid(format!("job {id} does not serialize: {error}")).because(error)
        })?;
        let priority = self.priority.into();
        let payload = payload.into();
        Ok(Ready { queue: queue.clone(), priority, kind, id, run, headers, payload })
    }
}

impl JobType {
    /// The kind of such jobs.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::PersistEvent { .. } => PersistEvent::KIND,
            Self::PublishExternalEvent { .. } => PublishExternalEvent::KIND,
            Self::TestJob { .. } => TestJob::KIND,
        }
    }

    fn into_payload(self) -> serde_json::Result<Vec<u8>> {
        match self {
            Self::PersistEvent { run_id, event } => {
                serde_json::to_vec(&PersistEvent { run_id, event })
            }
            Self::PublishExternalEvent { event } => {
                serde_json::to_vec(&PublishExternalEvent { event })
            }
            Self::TestJob { message } => serde_json::to_vec(&TestJob { message }),
        }
    }
}

impl From<PersistEvent> for JobType {
    fn from(PersistEvent { run_id, event }: PersistEvent) -> Self {
        Self::PersistEvent { run_id, event }
    }
}

impl From<PublishExternalEvent> for JobType {
    fn from(PublishExternalEvent { event }: PublishExternalEvent) -> Self {
        Self::PublishExternalEvent { event }
    }
}

impl From<TestJob> for JobType {
    fn from(TestJob { message }: TestJob) -> Self {
        Self::TestJob { message }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// What the runtime's own crate wrote when it was shut down with jobs left.
    const PENDING: &str = include_str!("../../tests/fixtures/pending_jobs.json");

    #[test]
    fn jobs_are_read_and_written_as_the_runtime_has_them() {
        let entries: Vec<Value> = serde_json::from_str(PENDING).expect("JSON");
        assert_eq!(entries.len(), 14);
        for entry in entries {
            let job: BackgroundJob = serde_json::from_value(entry.clone()).expect("reads");
            let payload = entry["job_type"]["payload"].clone();
            if let JobType::PersistEvent { run_id, event } = &job.job_type {
                assert_eq!(event.run_id(), Some(*run_id));
            }
            if let JobType::PersistEvent { event, .. } | JobType::PublishExternalEvent { event } =
                &job.job_type
            {
                assert!(!matches!(event, AgentEvent::Other(_)), "{payload}");
            }
            assert_eq!(serde_json::to_value(&job.job_type).expect("writes"), entry["job_type"]);
            let sent = job.into_ready(&Queue::default()).expect("valid").payload;
            assert_eq!(serde_json::from_slice::<Value>(&sent).expect("JSON"), payload);
        }
    }
}
