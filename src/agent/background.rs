//! A job as the runtime's own code and file have it.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
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

/// When a job may run. A condition that is not known here is refused when it is read: a job that waits
/// for something must not run as if it did not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "AnyConditions")]
pub struct JobConditions {
    /// Not before this time.
    pub run_after: Option<DateTime<Utc>>,
}

/// Conditions as they are written, by whatever version.
#[derive(Deserialize)]
struct AnyConditions {
    run_after: Option<DateTime<Utc>>,
    #[serde(flatten)]
    unknown: Map<String, Value>,
}

impl TryFrom<AnyConditions> for JobConditions {
    type Error = String;

    fn try_from(AnyConditions { run_after, unknown }: AnyConditions) -> Result<Self, String> {
        // One that is null is not set.
        match unknown.iter().find(|(_, condition)| !condition.is_null()) {
            Some((name, _)) => Err(format!("unknown condition `{name}`")),
            None => Ok(Self { run_after }),
        }
    }
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
            headers.set(name::ATTEMPTS_USED, count(self.retries).to_string());
        }
        headers.set(name::MAX_RETRIES, count(self.max_retries).to_string());
        headers.set(name::BACKOFF, BACKOFF);
        headers.set(name::CREATED_AT, time::to_text(&self.created_at));
        if let Some(run_after) = self.conditions.run_after {
            headers.set(name::RUN_AFTER, time::to_text_not_before(&run_after));
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

/// A number of attempts as it travels: more than that nobody will live to see.
fn count(attempts: usize) -> u32 {
    u32::try_from(attempts).unwrap_or(u32::MAX)
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
                serde_json::to_vec(&PersistEvent::new(run_id, event))
            }
            Self::PublishExternalEvent { event } => {
                serde_json::to_vec(&PublishExternalEvent::new(event))
            }
            Self::TestJob { message } => serde_json::to_vec(&TestJob::new(message)),
        }
    }
}

impl From<PersistEvent> for JobType {
    fn from(PersistEvent { run_id, event, .. }: PersistEvent) -> Self {
        Self::PersistEvent { run_id, event }
    }
}

impl From<PublishExternalEvent> for JobType {
    fn from(PublishExternalEvent { event, .. }: PublishExternalEvent) -> Self {
        Self::PublishExternalEvent { event }
    }
}

impl From<TestJob> for JobType {
    fn from(TestJob { message, .. }: TestJob) -> Self {
        Self::TestJob { message }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::wire::JobHeaders;

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

    fn job(change: impl FnOnce(&mut Value)) -> BackgroundJob {
        let mut entry = serde_json::from_str::<Value>(PENDING).expect("JSON")[0].take();
        change(&mut entry);
        serde_json::from_value(entry).expect("reads")
    }

    #[test]
    fn numbers_and_times_that_cannot_travel_are_cut_to_those_that_can() {
        let run_after = |text: &str| {
            let job = job(|entry| entry["conditions"]["run_after"] = json!(text));
            let headers = job.into_ready(&Queue::default()).expect("valid").headers;
            headers.get(name::RUN_AFTER).expect("set").to_owned()
        };
        // Rather a little later than a little before its time.
        assert_eq!(run_after("2026-11-23T07:00:07.419000001Z"), "2026-11-23T07:00:07.420Z");
        assert_eq!(run_after("2026-11-23T07:00:07.419Z"), "2026-11-23T07:00:07.419Z");
        assert_eq!(run_after("+12000-01-01T00:00:00Z"), "9999-12-31T23:59:59.999Z");
        let many = job(|entry| {
            entry["retries"] = json!(u64::MAX);
            entry["max_retries"] = json!(u64::MAX);
            entry["created_at"] = json!("+12000-01-01T00:00:00Z");
        });
        let headers = many.into_ready(&Queue::default()).expect("valid").headers;
        assert!(JobHeaders::parse(&headers).is_ok(), "{headers:?}");
        assert_eq!(headers.get(name::MAX_RETRIES), Some("4294967295"));
    }

    #[test]
    fn payloads_keep_what_a_later_version_adds() {
        fn round_trip<J: Job>(mut payload: Value) {
            payload["added_later"] = json!({"deep": [1.5, null]});
            let job: J = serde_json::from_value(payload.clone()).expect("reads");
            assert_eq!(serde_json::to_value(&job).expect("writes"), payload);
        }
        let event = json!("RunPaused");
        round_trip::<PersistEvent>(json!({"run_id": RunId::new(), "event": event}));
        round_trip::<PublishExternalEvent>(json!({"event": event}));
        round_trip::<TestJob>(json!({"message": "hello"}));
    }

    #[test]
    fn a_condition_that_is_not_known_is_refused_unless_it_is_not_set() {
        let read = |conditions: Value| serde_json::from_value::<JobConditions>(conditions);
        for unconditional in [json!({}), json!({"run_after": null, "depends_on": null})] {
            assert_eq!(read(unconditional).expect("reads"), JobConditions::default());
        }
        let refused = read(json!({"run_after": null, "depends_on": ["a"]})).expect_err("unknown");
        assert!(refused.to_string().contains("unknown condition `depends_on`"), "{refused}");
    }
}
