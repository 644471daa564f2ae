//! All that is known of one job, and what is known of those that a cron entry fires.

use tidemill::{AttemptEvent, Priority, Status};

use super::super::history::{Said, Sealing, Stands};
use super::super::piece::PLENTY;

#[derive(Debug, Default)]
pub(super) struct Job {
    pub(super) origin: Origin,
    pub(super) tried: Option<Tried>,
    pub(super) outcome: Outcome,
    pub(super) starts: Vec<Start>,
    pub(super) ends: Vec<End>,
    pub(super) completions: Vec<Ended>,
    pub(super) ledger: Vec<Entry>,
    pub(super) letters: Vec<Letter>,
    /// Where it is in the end, if it is unfinished.
    pub(super) left: Vec<Left>,
    pub(super) cancelled: Option<Cancelled>,
    pub(super) moved: Option<Moved>,
}

#[derive(Clone, Debug)]
pub(super) struct Left {
    pub(super) at_us: u64,
    pub(super) run: String,
    pub(super) stands: Stands,
}

#[derive(Clone, Debug)]
pub(super) struct Tried {
    pub(super) at_us: u64,
    pub(super) fails: u32,
    pub(super) max_attempts: u32,
    pub(super) backoff_us: u64,
    pub(super) run_after_us: Option<u64>,
    pub(super) key: Option<String>,
    pub(super) sealing: Sealing,
    pub(super) sum: String,
}

/// A cancellation by the producer.
#[derive(Clone, Debug, Default)]
pub(super) struct Cancelled {
    /// What it was told, and when; nothing where that is not known.
    pub(super) told: Option<(u64, Status)>,
}

/// A move by the producer.
#[derive(Clone, Debug)]
pub(super) struct Moved {
    pub(super) asked_us: u64,
    /// To which lane; none where it is to run now.
    pub(super) to: Option<Priority>,
    /// When it was told that it is done.
    pub(super) done_us: Option<u64>,
}

impl Tried {
    /// Whether no attempt succeeds.
    pub(super) fn always_fails(&self) -> bool {
        self.fails >= self.max_attempts
    }

    /// The attempts that it takes where nothing is broken.
    pub(super) fn needs(&self) -> u64 {
        u64::from(self.fails.saturating_add(1).min(self.max_attempts))
    }
}

/// What the producer was told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Nothing: it was killed before, or the answer never came.
    #[default]
    Unknown,
    Ok {
        at_us: u64,
        run: String,
    },
    Duplicate {
        at_us: u64,
        /// The run that was there, by what the producer was told.
        of: Option<String>,
    },
    Refused,
}

#[derive(Clone, Debug)]
pub(super) struct Start {
    pub(super) at_us: u64,
    pub(super) run: String,
    pub(super) lane: Priority,
    pub(super) attempt: u32,
    pub(super) sealing: Sealing,
    pub(super) sum: String,
}

#[derive(Clone, Debug)]
pub(super) struct End {
    pub(super) at_us: u64,
    pub(super) by: String,
    pub(super) run: String,
    pub(super) attempt: u32,
    pub(super) said: Said,
}

#[derive(Clone, Debug)]
pub(super) struct Ended {
    pub(super) run: String,
    pub(super) status: Status,
    pub(super) attempt: u32,
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) attempt: u32,
    pub(super) what: AttemptEvent,
    pub(super) worker: String,
}

#[derive(Clone, Debug)]
pub(super) struct Letter {
    pub(super) run: String,
    pub(super) attempts: u32,
    pub(super) reason: String,
    pub(super) sealing: Sealing,
    pub(super) sum: String,
}

impl Job {
    /// The run that counts: the one that the producer was told of, else the first that was seen.
    pub(super) fn run(&self) -> Option<&str> {
        let seen = || {
            let started = self.starts.first().map(|start| start.run.as_str());
            started.or_else(|| self.completions.first().map(|ended| ended.run.as_str()))
        };
        match &self.outcome {
            Outcome::Ok { run, .. } => Some(run),
            Outcome::Unknown | Outcome::Duplicate { .. } | Outcome::Refused => seen(),
        }
    }

    pub(super) fn started(&self, attempt: u32) -> u64 {
        self.starts.iter().filter(|start| start.attempt == attempt).count() as u64
    }

    pub(super) fn entries(&self, attempt: u32, what: AttemptEvent) -> u64 {
        let is_such = |entry: &&Entry| entry.attempt == attempt && entry.what == what;
        self.ledger.iter().filter(is_such).count() as u64
    }

    /// The last failed end of an attempt before a moment that is on record as such.
    pub(super) fn failed_before(&self, attempt: u32, at_us: u64) -> Option<&End> {
        let is_on_record = |end: &&End| {
            self.ledger.iter().any(|entry| {
                entry.attempt == attempt
                    && entry.what == AttemptEvent::Failed
                    && entry.worker == end.by
            })
        };
        self.ends
            .iter()
            .filter(|end| end.attempt == attempt && end.said == Said::Failed && end.at_us < at_us)
            .filter(is_on_record)
            .max_by_key(|end| end.at_us)
    }
}

/// Who enqueues a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Origin {
    #[default]
    Producer,
    Cron,
}

/// A cron entry, with all that it fires.
#[derive(Clone, Debug)]
pub(super) struct Entries {
    pub(super) name: String,
    pub(super) from_us: u64,
    pub(super) every_us: u64,
    pub(super) sealing: Sealing,
    pub(super) sum: String,
}

impl Entries {
    pub(super) fn is_firing(&self, id: &str) -> bool {
        id.strip_prefix("c-")
            .and_then(|rest| rest.strip_prefix(&self.name))
            .is_some_and(|rest| rest.starts_with('-'))
    }

    /// A firing, before anything is known of it but what its entry says.
    pub(super) fn firing(&self) -> Job {
        let tried = Tried {
            at_us: self.from_us,
            fails: 0,
            max_attempts: PLENTY,
            backoff_us: 0,
            run_after_us: None,
            key: None,
            sealing: self.sealing,
            sum: self.sum.clone(),
        };
        Job { tried: Some(tried), origin: Origin::Cron, ..Job::default() }
    }
}
