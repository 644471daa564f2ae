//! What is not as it should be with a broker and a queue, and what to do about each: gathered from the
//! broker (`gather`), judged by pure functions (`judge`). Jobs that no consumer reaches any more are
//! brought back (`revive`), consumers made what they have to be (`mend`).

mod gather;
mod judge;
mod mend;
mod quiet;
mod revive;

use std::fmt;

use serde::Serialize;

use crate::token::Queue;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know.
    Note,
    /// It works, but not well, or not for long.
    Warning,
    /// Jobs wait in vain, are lost, or may complete twice.
    Error,
}

impl Severity {
    /// It in one word, such as `warning`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Something that is not as it should be, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is, in one word for programs, such as `consumer_missing`: one of [`Finding::CODES`].
    pub code: &'static str,
    /// The queue that it is about; `None` where it is about the broker.
    pub queue: Option<Queue>,
    /// The stream, the stream and the consumer with a `/` between, or the subject that it is about.
    pub place: String,
    /// What it is, in words.
    pub what: String,
    /// What to do about it: a command where there is one.
    pub fix: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { severity, place, what, fix, .. } = self;
        write!(f, "{severity}: {place}: {what}; {fix}")
    }
}

impl Finding {
    /// All codes, which stay as they are: programs go by them.
    pub const CODES: [&'static str; 26] = [
        "account_nearly_full",
        "backoff",
        "clock_differs",
        "consumer_differs",
        "consumer_missing",
        "filter_subject",
        "jobs_at_risk",
        "max_ack_pending",
        "max_deliver",
        "no_leader",
        "no_worker",
        "one_replica",
        "paused",
        "persist_mode_async",
        "replica_behind",
        "results_too_short",
        "right_missing",
        "server_has_known_bugs",
        "server_lacks",
        "stream_differs",
        "stream_full",
        "stream_missing",
        "stream_nearly_full",
        "stuck_jobs",
        "subjects_uncovered",
        "sync_interval_unknown",
    ];

    fn new(
        severity: Severity,
        code: &'static str,
        place: impl Into<String>,
        what: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        debug_assert!(Self::CODES.contains(&code), "{code} is none of the codes that are told");
        let (place, what, fix) = (place.into(), what.into(), fix.into());
        Self { severity, code, queue: None, place, what, fix }
    }
}
