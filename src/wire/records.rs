//! Records: the JSON of completions, attempts and dead letters.

use std::fmt;
use std::str::FromStr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::subject::RecordKey;
use super::time::{Time, rfc3339, rfc3339_option};
use crate::error::{Error, Result};
use crate::priority::Priority;
use crate::token::{JobId, Kind, Queue, RunId};

/// The version in every record.
pub(super) const VERSION: u32 = 1;

/// Messages and backtraces of errors are cut to this many bytes each.
pub(crate) const MAX_ERROR_BYTES: usize = 16 * 1024;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Its handler succeeded.
    Done,
    /// It will not be tried again; its dead letter is kept for a person.
    Dead,
    /// It was not wanted any more.
    Cancelled,
    /// It had not started by its expiry.
    Expired,
}

impl Status {
    /// The name used in records.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Status {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        [Self::Done, Self::Dead, Self::Cancelled, Self::Expired]
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| {
                Error::invalid(format!(
                    "status {text:?} is not known: use done, dead, cancelled or expired"
                ))
            })
    }
}

/// What is recorded of an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorInfo {
    /// A class of low cardinality: `failed`, `panic`, `timeout`, `undecodable`, or the handler's.
    pub kind: String,
    /// What happened, with its causes; at most 16 KiB.
    pub message: String,
    /// Where a panic came from; at most 16 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backtrace: Option<String>,
}

impl ErrorInfo {
    pub(crate) fn new(kind: impl Into<String>, message: impl Into<String>) -> Self {
        Self { kind: kind.into(), message: message.into(), backtrace: None }
    }

    /// The same with each text cut to what a record takes.
    pub(crate) fn cut(mut self) -> Self {
        cut(&mut self.kind);
        cut(&mut self.message);
        if let Some(backtrace) = &mut self.backtrace {
            cut(backtrace);
        }
        self
    }
}

fn cut(text: &mut String) {
    const ELLIPSIS: &str = "…";
    if text.len() > MAX_ERROR_BYTES {
        text.truncate(text.floor_char_boundary(MAX_ERROR_BYTES - ELLIPSIS.len()));
        text.push_str(ELLIPSIS);
    }
}

/// The final record of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Completion {
    pub(crate) v: u32,
    /// The job's id.
    pub id: JobId,
    /// Which enqueue of the id this ends.
    pub run: RunId,
    /// The job's sequence in its queue's jobs stream.
    pub seq: u64,
    /// The job's queue.
    pub queue: Queue,
    /// The job's kind.
    pub kind: Kind,
    /// The lane it was worked in.
    pub priority: Priority,
    /// How it ended.
    pub status: Status,
    /// The number of the last attempt; 0 if none was made.
    pub attempt: u32,
    /// When the job was enqueued.
    #[serde(with = "rfc3339")]
    pub enqueued_at: Time,
    /// When the last attempt started.
    #[serde(default, with = "rfc3339_option", skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When the run ended.
    #[serde(with = "rfc3339")]
    pub finished_at: Time,
    /// The worker that ended it.
    pub worker: String,
    /// What the handler returned, if it returned anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Box<RawValue>>,
    /// The same, sealed, where the job was: text of the protocol's, by which who has the key opens it.
    /// A client with the key has it in `result` as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result_sealed: Option<String>,
    /// The size of a result that was too large to keep, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result_omitted: Option<u64>,
    /// Why it was buried, cancelled or expired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The last error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorInfo>,
}

impl Completion {
    /// The version that is written.
    pub(crate) const V: u32 = VERSION;

    /// Reads the result as `T`; `None` if there is none.
    ///
    /// # Errors
    /// [`Error::is_invalid`] where the result is no `T`, or is sealed and this client has not the key.
    pub fn result<T: DeserializeOwned>(&self) -> Result<Option<T>> {
        if let (None, Some(key)) = (&self.result, self.sealed_with()) {
            return Err(Error::invalid(format!(
                "the result of job {} is sealed with key {key}: give the client that key",
                self.id
            )));
        }
        self.result.as_deref().map(|raw| serde_json::from_str(raw.get())).transpose().map_err(
            |error| {
                Error::invalid(format!("the result of job {} does not decode", self.id))
                    .because(error)
            },
        )
    }

    /// The id of the key that the result is sealed with, if it is.
    pub fn sealed_with(&self) -> Option<&str> {
        self.result_sealed.as_deref()?.split(';').nth(1)
    }

    pub(crate) fn key(&self) -> RecordKey {
        RecordKey {
            queue: self.queue.clone(),
            kind: self.kind.clone(),
            id: self.id.clone(),
            run: self.run.clone(),
        }
    }
}

/// What happened in an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptEvent {
    /// An attempt began (written for all but an undisturbed first one).
    Started,
    /// It failed, and will be tried again at `retry_at`.
    Failed,
    /// Its handler put it off; this cost no attempt.
    Snoozed,
    /// Its worker gave it back unfinished; this cost no attempt.
    Released,
    /// It is to be buried as soon as the dead letters have room again.
    ToBury,
}

impl AttemptEvent {
    /// The name used in records.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Failed => "failed",
            Self::Snoozed => "snoozed",
            Self::Released => "released",
            Self::ToBury => "to_bury",
        }
    }
}

/// An entry of the attempt ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct AttemptRecord {
    pub(crate) v: u32,
    /// The job's id.
    pub id: JobId,
    /// Which enqueue of the id this is about.
    pub run: RunId,
    /// The job's sequence in the jobs stream, to which `retry_at` is bound.
    pub seq: u64,
    /// The attempt's number, counted from 1.
    pub attempt: u32,
    /// What happened.
    pub event: AttemptEvent,
    /// When it happened.
    #[serde(with = "rfc3339")]
    pub at: Time,
    /// Not to be run before.
    #[serde(default, with = "rfc3339_option", skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<Time>,
    /// How often the job has been snoozed so far.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub snoozes: u32,
    /// The worker that wrote this.
    pub worker: String,
    /// What went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorInfo>,
    /// Why it is to be buried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl AttemptRecord {
    /// The version that is written.
    pub(crate) const V: u32 = VERSION;

    /// How many attempts of the run count, where this is its last entry.
    pub fn used(&self) -> u32 {
        match self.event {
            AttemptEvent::Started | AttemptEvent::Failed | AttemptEvent::ToBury => self.attempt,
            AttemptEvent::Snoozed | AttemptEvent::Released => self.attempt.saturating_sub(1),
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields by reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// What a dead letter carries beside the job itself, in the header `Tidemill-Dead`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DeadInfo {
    /// Why the job was buried.
    pub reason: String,
    /// When.
    #[serde(with = "rfc3339")]
    pub at: Time,
    /// How many attempts were made.
    pub attempts: u32,
    /// The lane the job was in.
    pub priority: Priority,
    /// When the job was enqueued.
    #[serde(with = "rfc3339")]
    pub enqueued_at: Time,
    /// The last error, with its message cut short; the ledger has them all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<ErrorInfo>,
    /// Which run the message said it was, where no trusted key vouched for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unvouched: Option<Unvouched>,
}

/// The run that a message claims to be. It is not recorded as that run: else anybody could end another's
/// by a message without a signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Unvouched {
    /// The id it claims.
    pub id: JobId,
    /// The run it claims.
    pub run: RunId,
}

/// A record that names the run it is about.
pub(crate) trait Record: DeserializeOwned {
    fn version(&self) -> u32;
    fn is_about(&self, key: &RecordKey) -> bool;
}

impl Record for Completion {
    fn version(&self) -> u32 {
        self.v
    }

    fn is_about(&self, key: &RecordKey) -> bool {
        self.id == key.id && self.run == key.run && self.queue == key.queue && self.kind == key.kind
    }
}

impl Record for AttemptRecord {
    fn version(&self) -> u32 {
        self.v
    }

    fn is_about(&self, key: &RecordKey) -> bool {
        self.id == key.id && self.run == key.run
    }
}

/// Reads a record that was found under `key`. One that does not parse or is about another run was
/// not written by us and never counts.
pub(crate) fn parse_record<R: Record>(key: &RecordKey, body: &[u8]) -> Option<R> {
    serde_json::from_slice::<R>(body)
        .ok()
        .filter(|record| record.version() == VERSION && record.is_about(key))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::time;

    fn key() -> RecordKey {
        RecordKey {
            queue: Queue::default(),
            kind: Kind::new("send_email").expect("valid"),
            id: JobId::new("order-17").expect("valid"),
            run: RunId::new("r1").expect("valid"),
        }
    }

    fn completion_text() -> &'static str {
        crate::wire::protocol_block("json,completion")
    }

    #[test]
    fn a_completion_is_written_as_it_was_read() {
        let completion: Completion =
            parse_record(&key(), completion_text().as_bytes()).expect("valid");
        assert_eq!(completion.status, Status::Done);
        assert_eq!(serde_json::to_string(&completion).expect("serializes"), completion_text());
        let result: Option<serde_json::Value> = completion.result().expect("decodes");
        assert_eq!(result, Some(serde_json::json!({"sent": true})));
    }

    #[test]
    fn a_record_of_another_run_or_version_or_no_record_at_all_never_counts() {
        let pub_ack = r#"{"stream":"TIDEMILL_JOBS_default","seq":4}"#;
        let another_run = completion_text().replace("\"r1\"", "\"r2\"");
        let another_version = completion_text().replace("\"v\":1", "\"v\":2");
        for forged in [pub_ack, "", "[]", &another_run, &another_version] {
            assert!(parse_record::<Completion>(&key(), forged.as_bytes()).is_none(), "{forged}");
        }
        assert!(parse_record::<AttemptRecord>(&key(), completion_text().as_bytes()).is_none());
    }

    #[test]
    fn an_attempt_is_written_as_it_was_read() {
        let text = crate::wire::protocol_block("json,attempt");
        let record: AttemptRecord = parse_record(&key(), text.as_bytes()).expect("valid");
        assert_eq!(record.retry_at, time::parse("2026-12-01T08:00:04Z"));
        assert_eq!(serde_json::to_string(&record).expect("serializes"), text);
    }

    #[test]
    fn a_dead_letters_header_is_written_as_it_was_read() {
        let text = crate::wire::protocol_block("json,dead");
        let info: DeadInfo = serde_json::from_str(text).expect("valid");
        assert_eq!(info.errors.len(), 1);
        assert_eq!(serde_json::to_string(&info).expect("serializes"), text);
    }

    #[test]
    fn long_errors_are_cut_at_a_character() {
        let info = ErrorInfo::new("failed", "ä".repeat(MAX_ERROR_BYTES)).cut();
        assert!(info.message.len() <= MAX_ERROR_BYTES && info.message.ends_with('…'));
        let short = ErrorInfo::new("failed", "no");
        assert_eq!(short.clone().cut(), short);
    }

    /// A moment in whole milliseconds, as records have it.
    fn moment() -> impl Strategy<Value = Time> {
        (0i64..4_000_000_000_000).prop_map(|millis| time::from_nanos(millis * 1_000_000))
    }

    fn error() -> impl Strategy<Value = Option<ErrorInfo>> {
        let info = (".{0,20}", ".{0,80}", prop::option::of(".{0,80}"));
        prop::option::of(info.prop_map(|(kind, message, backtrace)| ErrorInfo {
            kind,
            message,
            backtrace,
        }))
    }

    fn event() -> impl Strategy<Value = AttemptEvent> {
        use AttemptEvent::{Failed, Released, Snoozed, Started, ToBury};
        prop::sample::select(vec![Started, Failed, Snoozed, Released, ToBury])
    }

    proptest! {
        #[test]
        fn an_entry_of_the_ledger_round_trips(
            (seq, attempt, snoozes) in any::<(u64, u32, u32)>(), event in event(),
            at in moment(), retry_at in prop::option::of(moment()), error in error(),
            worker in ".{0,40}", reason in prop::option::of(".{0,40}"),
        ) {
            let RecordKey { id, run, .. } = key();
            let v = AttemptRecord::V;
            let entry = AttemptRecord {
                v, id, run, seq, attempt, event, at, retry_at, snoozes, worker, error, reason,
            };
            let text = serde_json::to_vec(&entry).expect("serializes");
            prop_assert_eq!(parse_record(&key(), &text), Some(entry));
        }

        #[test]
        fn a_dead_letters_header_round_trips(
            reason in ".{0,40}", at in moment(), enqueued_at in moment(), attempts in any::<u32>(),
            priority in prop::sample::select(Priority::ALL.to_vec()), error in error(),
            is_unvouched: bool,
        ) {
            let errors = error.into_iter().collect();
            let unvouched = is_unvouched
                .then(key)
                .map(|RecordKey { id, run, .. }| Unvouched { id, run });
            let info =
                DeadInfo { reason, at, attempts, priority, enqueued_at, errors, unvouched };
            let text = serde_json::to_string(&info).expect("serializes");
            prop_assert!(!text.contains(['\r', '\n']), "it is a header's value");
            prop_assert_eq!(serde_json::from_str::<DeadInfo>(&text).expect("parses"), info);
        }

        #[test]
        fn a_completion_of_another_run_never_counts(
            id in "[a-z0-9-]{2,20}", run in "[a-z0-9-]{2,20}", kind in "[a-z_]{1,20}",
        ) {
            let of = RecordKey {
                kind: Kind::new(kind).expect("valid"),
                id: JobId::new(id).expect("valid"),
                run: RunId::new(run).expect("valid"),
                ..key()
            };
            let read = parse_record::<Completion>(&of, completion_text().as_bytes());
            prop_assert_eq!(read.is_some(), of == key());
        }

        #[test]
        fn an_error_that_is_cut_is_short_and_begins_as_it_did(
            message in prop::collection::vec(any::<char>(), 0..40), times in 1usize..2000,
        ) {
            let message = message.into_iter().collect::<String>().repeat(times);
            let cut = ErrorInfo::new("failed", message.clone()).cut().message;
            prop_assert!(cut.len() <= MAX_ERROR_BYTES);
            prop_assert!(message.starts_with(cut.strip_suffix('…').unwrap_or(&cut)));
            prop_assert_eq!(cut == message, message.len() <= MAX_ERROR_BYTES);
        }
    }
}
