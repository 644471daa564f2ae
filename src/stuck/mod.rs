//! Messages that no consumer hands out any more: found (`find`), judged (`reach`), brought back
//! (`revive`). The doctor does it when it is told to, workers do by themselves.
//!
//! They come about in two ways. A broker that is stopped between an ack and the deletion that follows
//! it, or whose disk is full, may keep what has been settled. And a consumer that somebody has changed
//! by hand forgets messages without a word: those that a filter left out when it passed them, and those
//! that were handed out `max_deliver` times; widening the filter or the limit does not bring them back.
//!
//! How many there are is a matter of counting. Of its messages a consumer has all but `waiting` behind
//! it; of those `unsettled` are with workers, or come again; the rest is stuck. Which ones it is has to
//! be found out, since the broker tells of none whether it is unsettled. So a job is brought back only
//! if it is certain that no worker has it: below the sequence up to which all is settled, or where
//! nothing is unsettled at all. Where that is not so, the doctor pauses the lane for as long as a worker
//! may hold a job that it has not started, and jobs that no worker runs then, and that are due, are in
//! nobody's hands. One that merely came up for another try then is moved, not doubled.
//!
//! A job on a lane whose end is on record is taken out of the stream. Any other is brought back as all
//! jobs are moved: by a copy of the same run, under the guard that the source is the last of its id,
//! with the attempts that it has used; then the source is taken out. What was due is put on its lane as
//! a worker would have. A message is taken out by its sequence, which no other ever has: a job that is
//! enqueued meanwhile under the same id is another message.

mod find;
mod reach;
mod revive;

use serde::Serialize;

pub(crate) use self::find::Proof;
pub(crate) use self::reach::{Fate, Outlet, fate, strands};
pub(crate) use self::revive::Taking;
use crate::inspect::Found;
use crate::priority::Priority;
use crate::token::{JobId, Kind, Queue, RunId};
use crate::wire::RecordKey;

/// A job that no consumer reaches.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StuckJob {
    /// Its queue.
    pub queue: Queue,
    /// Its kind.
    pub kind: Kind,
    /// Its id.
    pub id: JobId,
    /// Which enqueue of the id it is.
    pub run: RunId,
    /// Its lane, or the one that it was to come to.
    pub priority: Priority,
    /// The stream that it is in: the queue's jobs, or its timers where it has come due.
    pub stream: String,
    /// Its place in that stream.
    pub sequence: u64,
    pub(crate) outlet: Outlet,
}

impl StuckJob {
    fn of(found: Found, outlet: Outlet) -> Self {
        let Found { key, priority, stream, sequence, .. } = found;
        let RecordKey { queue, kind, id, run } = key;
        Self { queue, kind, id, run, priority, stream, sequence, outlet }
    }

    pub(crate) fn key(&self) -> RecordKey {
        let Self { queue, kind, id, run, .. } = self.clone();
        RecordKey { queue, kind, id, run }
    }
}

/// What was found of stuck jobs.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct StuckJobs {
    /// Those that are known.
    pub jobs: Vec<StuckJob>,
    /// How many more there are that cannot be told yet from those that workers have, or that back off.
    pub untold: u64,
}

/// What became of a stuck job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Revived {
    /// It is on its lane again, for workers to take.
    Moved,
    /// It had ended before, or a copy of it was there: only its message was left, and is gone.
    Cleared,
    /// It had gone meanwhile.
    Gone,
    /// Another job of its unique key is there: it stays as it is.
    KeptOut,
    /// What its timer was set from is still on a lane: it stays as it is until that has been run.
    BeingMoved,
}

impl Revived {
    /// It in one word, such as `kept_out`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Moved => "moved",
            Self::Cleared => "cleared",
            Self::Gone => "gone",
            Self::KeptOut => "kept_out",
            Self::BeingMoved => "being_moved",
        }
    }
}
