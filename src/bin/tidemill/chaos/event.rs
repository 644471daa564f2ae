//! The lines of a history: what a process attempted or saw, and when.

use serde::{Deserialize, Serialize};
use tidemill::{AttemptEvent, Priority, Status};

/// Something that a process attempted or saw.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Event {
    /// A run begins: what it can be repeated by, and what its bounds follow from.
    Setup { seed: u64, ack_wait_ms: u64 },
    /// A producer begins.
    Producing { seed: u64, jobs: u64, rate: f64 },
    /// A job is about to be enqueued.
    Try {
        id: String,
        lane: Priority,
        /// In how many attempts it fails before it succeeds.
        fails: u32,
        max_attempts: u32,
        takes_ms: u64,
        /// Between a failed attempt and the next.
        backoff_ms: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        run_after_ms: Option<u64>,
        /// What others share with it, if it is unique.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<String>,
        #[serde(default)]
        sealing: Sealing,
        sum: String,
    },
    /// The broker has it.
    Ok {
        id: String,
        run: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sequence: Option<u64>,
    },
    /// One of its key was there already.
    Duplicate {
        id: String,
        /// The run that was there.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        of: Option<String>,
    },
    /// It may or may not be there.
    Unknown { id: String, error: String },
    /// It is not there.
    Refused { id: String, error: String },
    /// A cron entry is about to be added.
    Cron {
        name: String,
        every_ms: u64,
        #[serde(default)]
        sealing: Sealing,
        sum: String,
    },
    /// All cron entries are removed.
    CronRemoved,
    /// An enqueued job is about to be cancelled, by whoever enqueued it.
    Cancel { id: String },
    /// It has ended so, as the one who cancelled it was told.
    Cancelled { id: String, status: Status },
    /// It is about to be put on a lane, or let run now.
    Move {
        id: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        to: Option<Priority>,
    },
    /// It was, as the one who moved it was told.
    Moved { id: String },
    /// What was done to it last may or may not be done, or could not be.
    NotDone { id: String, error: String },
    /// A worker begins.
    Working {
        concurrency: u64,
        /// The delay over which it sets a timer.
        #[serde(default = "usual_park_over_ms")]
        park_over_ms: u64,
    },
    /// A handler was called.
    Start {
        id: String,
        run: String,
        lane: Priority,
        attempt: u32,
        #[serde(default)]
        sealing: Sealing,
        sum: String,
    },
    /// A handler returns.
    End { id: String, run: String, attempt: u32, said: Said },
    /// Something is broken from now on.
    Fault { what: String },
    /// It is whole again.
    Healed { what: String },
    /// Everything is whole again, for good.
    AllHealed,
    /// What a process took of the machine while nothing was broken by its own kind of fault.
    Footprint { of: String, rss_kib: u64, files: u64 },
    /// The queue was seen without unfinished jobs.
    Emptied,
    /// A completion that the broker has.
    Completion { id: String, run: String, status: Status, attempt: u32 },
    /// An entry of the ledger of attempts.
    Ledger { id: String, run: String, attempt: u32, what: AttemptEvent, worker: String },
    /// A dead letter.
    Letter {
        id: String,
        run: String,
        attempts: u32,
        reason: String,
        #[serde(default)]
        sealing: Sealing,
        sum: String,
    },
    /// A job that is unfinished in the end, and how it stands.
    Left { id: String, run: String, stands: Stands },
    /// How the queue's streams stand in the end.
    Streams(Streams),
}

/// What a handler said of its attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Said {
    Done,
    Failed,
    /// It was told to stop.
    Stopped,
}

/// Whether the broker has a payload sealed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Sealing {
    #[default]
    Open,
    Sealed,
}

/// How an unfinished job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Stands {
    Waiting,
    Running,
    BackingOff,
    /// On a timer, or on its lane.
    Scheduled,
}

fn usual_park_over_ms() -> u64 {
    60_000
}

/// A queue's streams in figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Streams {
    /// Messages on the lanes.
    pub(super) jobs: u64,
    /// Of these, such as no worker was given, by the lanes' consumers.
    pub(super) waiting: u64,
    /// Of these, such as a worker was given and has not settled.
    pub(super) unsettled: u64,
    pub(super) timers: u64,
    pub(super) results: u64,
    pub(super) dead: u64,
}

/// An event, and when it was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Line {
    pub(super) at_us: u64,
    #[serde(flatten)]
    pub(super) event: Event,
}
