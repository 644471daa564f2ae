//! Writing the records of a run: completions behind a fence, the ledger, dead letters.

use std::time::Duration;

use bytes::Bytes;
use serde_json::value::RawValue;
use tokio::time::sleep;

use super::job::Work;
use super::settle::ToSettle;
use crate::broker::{Clock, Connection, Expect, IngestMessage, Published};
use crate::client::{Fence, fence};
use crate::error::{Error, ErrorKind, Result};
use crate::outcome::{BuryReason, Settlement};
use crate::seal::{SealKeys, seal_result};
use crate::token::Namespace;
use crate::topology::StreamNames;
use crate::wire::time::Time;
use crate::wire::{
    AttemptEvent, AttemptRecord, Completion, DeadInfo, ErrorInfo, Headers, RecordKind, Status,
    name, parse_record, record_subject,
};

/// What a record leaves free of the server's largest message, in bytes.
const RECORD_HEADROOM_BYTES: usize = 16 * 1024;

/// The error's message in a dead letter's header is cut to this many bytes; the ledger has it whole.
const MAX_HEADER_ERROR_BYTES: usize = 2 * 1024;

/// The broker takes 64 KiB of headers, with those that tell it how to store the letter.
const MAX_LETTER_HEADER_BYTES: usize = 63 * 1024;

/// What most records take, in bytes.
const USUAL_RECORD_BYTES: usize = 512;

/// How often a fenced publish is tried again because others are at it.
const FENCE_TRIES: usize = 20;
const FENCE_PAUSE: Duration = Duration::from_millis(20);

/// What became of an entry of the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entered {
    /// It stands there with this sequence.
    Stored(u64),
    /// Another worker has gone on with the job meanwhile.
    Overtaken,
}

/// Whether an entry is one of ours from before, whose confirmation did not come.
fn is_as(there: &AttemptRecord, ours: &AttemptRecord) -> bool {
    // Behind a failure there may be that it is to be buried.
    let is_of_now = there.event == ours.event || there.event == AttemptEvent::ToBury;
    is_of_now && is_of_our_attempt(there, ours)
}

/// Whether an entry says that the attempt of ours has started, and its confirmation did not come.
fn is_announcement(there: &AttemptRecord, ours: &AttemptRecord) -> bool {
    there.event == AttemptEvent::Started && is_of_our_attempt(there, ours)
}

fn is_of_our_attempt(there: &AttemptRecord, ours: &AttemptRecord) -> bool {
    (&there.worker, there.seq, there.attempt) == (&ours.worker, ours.seq, ours.attempt)
}

/// Writes records in the name of one worker.
#[derive(Clone)]
pub(super) struct Recorder {
    pub(super) conn: Connection,
    pub(super) namespace: Namespace,
    pub(super) clock: Clock,
    pub(super) worker: String,
    /// By the worker's list of queues.
    pub(super) streams: std::sync::Arc<[StreamNames]>,
    pub(super) seal_keys: Option<SealKeys>,
}

impl Recorder {
    pub(super) fn streams(&self, work: &Work) -> &StreamNames {
        &self.streams[work.lane.queue]
    }

    /// Adds an entry to the ledger behind the one at `after`, and waits until it is stored. Where
    /// another has added one since, this one comes too late and is not.
    pub(super) async fn attempt(
        &self,
        work: &Work,
        after: u64,
        event: AttemptEvent,
        fill: impl FnOnce(&mut AttemptRecord),
    ) -> Result<Entered> {
        let mut record = AttemptRecord {
            v: AttemptRecord::V,
            id: work.key.id.clone(),
            run: work.key.run.clone(),
            seq: work.sequence,
            attempt: work.attempt.number,
            event,
            at: self.clock.now(),
            retry_at: None,
            snoozes: work.attempt.snoozes,
            worker: self.worker.clone(),
            error: None,
            reason: None,
        };
        fill(&mut record);
        record.error = record.error.map(ErrorInfo::cut);
        let subject = record_subject(&self.namespace, RecordKind::Attempt, &work.key);
        let body = to_json(&record)?;
        let (none, mut expected) = (Headers::new(), after);
        for _ in 0..FENCE_TRIES {
            let expect = Expect::Last(expected);
            let stored = self.conn.store(subject.clone(), &none, body.clone(), expect).await;
            match self.at(&self.streams(work).attempts, stored).await? {
                Published::Stored(sequence) => return Ok(Entered::Stored(sequence)),
                Published::InFlight => sleep(FENCE_PAUSE).await,
                Published::WrongLast(last) => {
                    match self.entry_at(work, last).await? {
                        Some(entry) if is_as(&entry, &record) => return Ok(Entered::Stored(last)),
                        Some(entry) if is_announcement(&entry, &record) => expected = last,
                        Some(_) => return Ok(Entered::Overtaken),
                        // What stands there is no entry of this run: go behind it.
                        None => expected = last,
                    }
                }
            }
        }
        Err(Error::new(ErrorKind::Unknown, format!("cannot add an entry to {subject}")))
    }

    async fn entry_at(&self, work: &Work, sequence: u64) -> Result<Option<AttemptRecord>> {
        let there = self.conn.by_sequence(&self.streams(work).attempts, sequence).await?;
        Ok(there.and_then(|there| parse_record(&work.key, &there.payload)))
    }

    /// The completion of a run, to be filled in.
    pub(super) fn completion(
        &self,
        work: &Work,
        status: Status,
        started_at: Option<Time>,
    ) -> Completion {
        Completion {
            v: Completion::V,
            id: work.key.id.clone(),
            run: work.key.run.clone(),
            seq: work.sequence,
            queue: work.key.queue.clone(),
            kind: work.key.kind.clone(),
            priority: work.lane.priority,
            status,
            attempt: work.attempt.number,
            enqueued_at: work.enqueued_at(),
            started_at,
            finished_at: self.clock.now(),
            worker: self.worker.clone(),
            result: None,
            result_sealed: None,
            result_omitted: None,
            reason: None,
            error: None,
        }
    }

    /// The completion of a run that is done.
    pub(super) fn done(
        &self,
        work: &Work,
        started_at: Option<Time>,
        result: &Option<Box<RawValue>>,
    ) -> Completion {
        let mut completion = self.completion(work, Status::Done, started_at);
        match (&work.options.seal, result) {
            (Some(_), Some(result)) => self.seal_into(&mut completion, work, result),
            (None, _) | (Some(_), None) => completion.result.clone_from(result),
        }
        completion
    }

    /// The result of a sealed job is sealed too, or not told.
    fn seal_into(&self, completion: &mut Completion, work: &Work, result: &RawValue) {
        let sealed = self.seal_keys.as_ref().map(|keys| seal_result(keys, &work.key, result.get()));
        match sealed {
            Some(Ok(sealed)) => completion.result_sealed = Some(sealed),
            Some(Err(_)) | None => completion.result_omitted = Some(result.get().len() as u64),
        }
    }

    /// The completion of a job that is done, as it is stored; `None` for another settlement, and where
    /// it does not serialize.
    pub(super) fn message_of(&self, item: &ToSettle) -> Option<IngestMessage> {
        let ToSettle { work, settlement: Settlement::Complete { result }, started_at } = item
        else {
            return None;
        };
        let payload = self.fit(&mut self.done(work, *started_at, result)).ok()?;
        let subject = record_subject(&self.namespace, RecordKind::Result, &work.key);
        Some(IngestMessage::new(subject, &Headers::new(), payload, Expect::Last(0)))
    }

    /// Stores a completion unless the run has one.
    pub(super) async fn fence(&self, work: &Work, mut completion: Completion) -> Result<Fence> {
        completion.error = completion.error.map(ErrorInfo::cut);
        let body = self.fit(&mut completion)?;
        let stream = &self.streams(work).results;
        let fenced = fence(&self.conn, &self.namespace, stream, &work.key, body).await;
        self.at(stream, fenced).await
    }

    /// Has an error name the stream that it is about, and that it is gone if it is.
    async fn at<T>(&self, stream: &str, stored: Result<T>) -> Result<T> {
        match stored {
            Ok(stored) => Ok(stored),
            Err(error) => Err(self.conn.why_not_stored(stream, error).await.at(stream)),
        }
    }

    /// The completion as JSON, without its result if that makes it larger than a message may be.
    fn fit(&self, completion: &mut Completion) -> Result<Bytes> {
        let limit = || self.conn.max_payload().saturating_sub(RECORD_HEADROOM_BYTES);
        let plain = completion.result.as_ref().map_or(0, |result| result.get().len());
        let sealed = completion.result_sealed.as_ref().map_or(0, String::len);
        let result_bytes = plain.max(sealed);
        if result_bytes > 0 && result_bytes >= limit() {
            (completion.result, completion.result_sealed) = (None, None);
            completion.result_omitted = Some(result_bytes as u64);
        }
        to_json(completion)
    }

    /// Stores the dead letter of a run, unless it is there already; its sequence.
    pub(super) async fn dead_letter(
        &self,
        work: &Work,
        reason: BuryReason,
        error: &ErrorInfo,
    ) -> Result<u64> {
        let mut brief = error.clone();
        brief.backtrace = None;
        brief.message.truncate(brief.message.floor_char_boundary(MAX_HEADER_ERROR_BYTES));
        brief.kind.truncate(brief.kind.floor_char_boundary(MAX_HEADER_ERROR_BYTES));
        let info = DeadInfo {
            reason: reason.as_str().to_owned(),
            at: self.clock.now(),
            attempts: work.attempt.number,
            priority: work.lane.priority,
            enqueued_at: work.enqueued_at(),
            errors: vec![brief],
            unvouched: work.unvouched.as_deref().cloned(),
        };
        let mut headers = work.headers.for_copy();
        headers.set(name::DEAD, ascii_json(&info)?);
        let left_out = headers.cut_to(MAX_LETTER_HEADER_BYTES, name::DEAD);
        if left_out > 0 {
            tracing::warn!(job = %work.key.id, left_out, "a dead letter has no room for all headers");
            headers.set(name::LEFT_OUT, left_out.to_string());
        }
        let subject = record_subject(&self.namespace, RecordKind::Dead, &work.key);
        for _ in 0..FENCE_TRIES {
            let payload = work.payload.clone();
            let stored = self.conn.store(subject.clone(), &headers, payload, Expect::Last(0)).await;
            match self.at(&self.streams(work).dead, stored).await? {
                Published::Stored(sequence) | Published::WrongLast(sequence) => {
                    return Ok(sequence);
                }
                Published::InFlight => sleep(FENCE_PAUSE).await,
            }
        }
        Err(Error::new(ErrorKind::Unknown, format!("cannot store a dead letter on {subject}")))
    }

    /// Takes a dead letter away again, whose run did not end dead after all.
    pub(super) async fn withdraw(&self, work: &Work, letter: u64) -> Result<()> {
        self.conn.delete(&self.streams(work).dead, letter).await.map(drop)
    }
}

fn to_json(record: &impl serde::Serialize) -> Result<Bytes> {
    let mut json = Vec::with_capacity(USUAL_RECORD_BYTES);
    serde_json::to_writer(&mut json, record).map_err(|error| {
        Error::new(ErrorKind::Broker, "a record does not serialize").because(error)
    })?;
    // Of its exact length, so that it is one allocation.
    Ok(json.into_boxed_slice().into())
}

/// JSON on one line of ASCII, as a header value has to be.
fn ascii_json(record: &impl serde::Serialize) -> Result<String> {
    let json = to_json(record)?;
    let text = String::from_utf8_lossy(&json);
    let mut ascii = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_ascii() {
            ascii.push(character);
        } else {
            let mut units = [0; 2];
            for unit in character.encode_utf16(&mut units) {
                ascii.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    Ok(ascii)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_json_is_ascii_and_reads_back() {
        let info = ErrorInfo::new("failed", "kein Käse 🧀\nda");
        let json = ascii_json(&info).expect("serializes");
        assert!(json.is_ascii() && !json.contains('\n'));
        assert_eq!(serde_json::from_str::<ErrorInfo>(&json).expect("reads back"), info);
    }
}
