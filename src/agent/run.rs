//! An agent's run, and what is on record of it.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::event::{self, AgentEvent};
use crate::token::JobId;

/// Which run of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(Uuid);

impl RunId {
    /// A fresh one.
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }

    /// The run with this UUID.
    pub const fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid)
    }

    /// Its UUID.
    pub const fn as_uuid(&self) -> &Uuid {
        &self.0
    }
}

/// A fresh one: two defaults are not the same.
impl Default for RunId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl FromStr for RunId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        text.parse().map(Self)
    }
}

/// How far a run is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum RunStatus {
    /// Not begun.
    Pending,
    /// Its session is there.
    SessionLoaded,
    /// Its context is being built.
    BuildingContext,
    /// The model is being called.
    CallingModel,
    /// Tools run.
    WaitingForTools,
    /// What it came to is being stored.
    Persisting,
    /// Done.
    Completed,
    /// Failed.
    Failed,
    /// Cancelled.
    Cancelled,
    /// One that is not known here: a word, or an object with one field, whose name says what.
    #[serde(untagged)]
    Other(Value),
}

impl RunStatus {
    /// Whether the run is over.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }

    /// Its name on the wire; empty where an unknown one does not tell.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Pending => "Pending",
            Self::SessionLoaded => "SessionLoaded",
            Self::BuildingContext => "BuildingContext",
            Self::CallingModel => "CallingModel",
            Self::WaitingForTools => "WaitingForTools",
            Self::Persisting => "Persisting",
            Self::Completed => "Completed",
            Self::Failed => "Failed",
            Self::Cancelled => "Cancelled",
            Self::Other(status) => event::name(status).unwrap_or_default(),
        }
    }
}

/// What is on record of a run as a whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// The run.
    pub id: RunId,
    /// The session that it belongs to.
    pub session_id: Uuid,
    /// How far it is.
    pub status: RunStatus,
    /// Who runs the model.
    pub provider: String,
    /// The model.
    pub model: String,
    /// What its owner keeps with it.
    pub metadata: Value,
    /// What its client calls the request.
    pub client_request_id: Option<String>,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// When its status was last set.
    pub updated_at: DateTime<Utc>,
    /// Fields that are not known here.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl RunRecord {
    /// A run that has not begun.
    pub fn new(
        id: RunId,
        session_id: Uuid,
        provider: impl Into<String>,
        model: impl Into<String>,
    ) -> Self {
        let now = Utc::now();
        Self {
            id,
            session_id,
            status: RunStatus::Pending,
            provider: provider.into(),
            model: model.into(),
            metadata: Value::Null,
            client_request_id: None,
            created_at: now,
            updated_at: now,
            extra: Map::new(),
        }
    }
}

/// An event in a run's log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunEvent {
    /// Its number in the run, from 0, without gaps.
    pub sequence: u64,
    /// The run.
    pub run_id: RunId,
    /// The job that appended it.
    pub job: JobId,
    /// What happened.
    pub event: AgentEvent,
    /// When it was appended.
    pub timestamp: DateTime<Utc>,
    /// Fields that are not known here.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl RunEvent {
    /// An event that a job appends now.
    pub fn new(sequence: u64, run_id: RunId, job: JobId, event: AgentEvent) -> Self {
        Self { sequence, run_id, job, event, timestamp: Utc::now(), extra: Map::new() }
    }
}

/// Which runs to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunFilter {
    /// Only of this session.
    pub session_id: Option<Uuid>,
    /// Only with this status.
    pub status: Option<RunStatus>,
    /// At most that many; all unless set.
    pub limit: Option<usize>,
    /// That many are passed over first.
    pub offset: usize,
}

impl RunFilter {
    /// Whether a run is one of those.
    pub(super) fn covers(&self, run: &RunRecord) -> bool {
        self.session_id.is_none_or(|session| session == run.session_id)
            && self.status.as_ref().is_none_or(|status| *status == run.status)
    }

    /// Those that it covers, in the order of their creation, of its page.
    pub(super) fn page(&self, mut runs: Vec<RunRecord>) -> Vec<RunRecord> {
        runs.retain(|run| self.covers(run));
        runs.sort_by_key(|run| (run.created_at, run.id));
        let limit = self.limit.unwrap_or(usize::MAX);
        runs.into_iter().skip(self.offset).take(limit).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn statuses_of_later_versions_go_through() {
        for (status, name) in [
            (json!("Pending"), "Pending"),
            (json!("Dreaming"), "Dreaming"),
            (json!({"Paused": {"by": "somebody"}}), "Paused"),
        ] {
            let read: RunStatus = serde_json::from_value(status.clone()).expect("a status");
            assert_eq!(read.as_str(), name);
            assert_eq!(serde_json::to_value(&read).expect("writes"), status);
        }
    }

    #[test]
    fn an_entry_of_a_log_keeps_what_a_later_version_adds() {
        let run = RunId::default();
        let entry = json!({"sequence": 0, "run_id": run, "job": "a", "event": "RunPaused",
            "timestamp": "2026-11-23T07:00:05Z", "added_later": [1, null]});
        let read: RunEvent = serde_json::from_value(entry.clone()).expect("an entry");
        assert_eq!(serde_json::to_value(&read).expect("writes"), entry);
    }
}
