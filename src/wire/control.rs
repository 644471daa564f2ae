//! What is said to the workers of a queue, and what they answer. Nothing of it is stored.

use serde::{Deserialize, Serialize};

use super::RecordKey;
use super::time::{Time, rfc3339};
use crate::priority::Priority;
use crate::token::{JobId, Kind, Namespace, Queue, RunId};

/// What workers can be told or asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    /// A run is cancelled: stop it, and do not start it.
    Cancel,
    /// Which jobs are running?
    Running,
}

impl Verb {
    const ALL: [Self; 2] = [Self::Cancel, Self::Running];

    const fn token(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Running => "running",
        }
    }

    /// The verb in a control subject.
    pub(crate) fn of_subject(subject: &str) -> Option<Self> {
        let token = subject.rsplit('.').next()?;
        Self::ALL.into_iter().find(|verb| verb.token() == token)
    }
}

/// Where the workers of a queue are told something.
pub(crate) fn control_subject(ns: &Namespace, queue: &Queue, verb: Verb) -> String {
    format!("{ns}.ctl.{queue}.{}", verb.token())
}

/// What a worker of a queue listens to.
pub(crate) fn control_filter(ns: &Namespace, queue: &Queue) -> String {
    format!("{ns}.ctl.{queue}.*")
}

/// A run that is cancelled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CancelRequest {
    pub(crate) v: u32,
    pub(crate) kind: Kind,
    pub(crate) id: JobId,
    pub(crate) run: RunId,
}

impl CancelRequest {
    pub(crate) fn new(key: &RecordKey) -> Self {
        let RecordKey { kind, id, run, .. } = key.clone();
        Self { v: super::PROTOCOL_VERSION, kind, id, run }
    }

    /// The run meant, in the queue whose workers are told.
    pub(crate) fn key(self, queue: Queue) -> RecordKey {
        RecordKey { queue, kind: self.kind, id: self.id, run: self.run }
    }
}

/// A job that is running just now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RunningJob {
    /// Its kind.
    pub kind: Kind,
    /// Its id.
    pub id: JobId,
    /// Its run.
    pub run: RunId,
    /// Its sequence in the queue's jobs stream.
    pub seq: u64,
    /// Its lane.
    pub priority: Priority,
    /// The attempt that runs.
    pub attempt: u32,
    /// Since when, by the broker's clock.
    #[serde(with = "rfc3339")]
    pub started_at: Time,
    /// On which worker.
    pub worker: String,
}

/// Which running jobs are asked for; all where nothing is said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunningRequest {
    /// Only runs of this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<JobId>,
}

/// What a worker tells of what is running, in one of the messages that it takes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct RunningAnswer {
    pub(crate) jobs: Vec<RunningJob>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_are_read_off_their_subjects() {
        let (ns, queue) = (Namespace::default(), Queue::default());
        for verb in Verb::ALL {
            assert_eq!(Verb::of_subject(&control_subject(&ns, &queue, verb)), Some(verb));
        }
        assert_eq!(Verb::of_subject("tidemill.ctl.default.dance"), None);
    }
}
