//! The parts of a report: figures of each kind of job, and lost jobs one by one.

use std::fmt::{self, Display, Formatter};

use serde::Serialize;

/// Jobs of which one of a key is unfinished at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Unique {
    pub(super) runs: u64,
    pub(super) refused: u64,
    /// Runs that were unfinished beside another of their key.
    pub(super) overlapping: u64,
    /// Refused with no other of their key there.
    pub(super) wrongly_refused: u64,
}

/// Jobs that the broker enqueued by cron entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Cron {
    pub(super) firings: u64,
    pub(super) endless: u64,
    /// Entries that fired too often, or too rarely.
    pub(super) wrong_counts: u64,
}

/// Jobs that their producer cancelled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Cancelled {
    pub(super) asked: u64,
    /// That are cancelled, as the producer was told; others had ended, or it is not known.
    pub(super) confirmed: u64,
    pub(super) ended_otherwise: u64,
    /// That started long after.
    pub(super) started: u64,
}

/// Jobs that their producer put on another lane, or let run now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Moved {
    pub(super) asked: u64,
    pub(super) confirmed: u64,
    /// That started on another lane than they were moved to.
    pub(super) elsewhere: u64,
}

/// A confirmed job without an end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct LostJob {
    pub(super) id: String,
    pub(super) run: String,
    pub(super) last_seen: LastSeen,
    /// When that was, in milliseconds since the history began.
    pub(super) at_ms: u64,
    /// What was broken then, or next.
    pub(super) faults: Vec<String>,
}

/// Where a job was last seen. No process writes down that a job was delivered to it before it starts, so
/// such a job counts as enqueued, or as waiting as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum LastSeen {
    Enqueued,
    Running,
    BackingOff,
    OnATimer,
}

impl Display for LostJob {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { id, run, last_seen, at_ms, faults } = self;
        let seconds = *at_ms as f64 / 1000.0;
        let faults = if faults.is_empty() { "nothing".to_owned() } else { faults.join(", ") };
        write!(f, "{id} (run {run}) was last seen {last_seen} at {seconds:.1} s; broken: {faults}")
    }
}

impl Display for LastSeen {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Enqueued => "enqueued",
            Self::Running => "running",
            Self::BackingOff => "backing off",
            Self::OnATimer => "on a timer",
        })
    }
}
