//! Looking things up in a stream: by subject, by sequence, in order; no consumer needed.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::api::{self, ApiError, code};
use super::block;
use super::careful::Loss;
use super::connection::Connection;
use super::manage::not_set_up;
use super::publish::from_header_map;
use crate::error::{Error, ErrorKind, Result};
use crate::wire::Headers;
use crate::wire::time::{self, Time};

/// A message as a stream keeps it.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) subject: String,
    pub(crate) sequence: u64,
    /// The message's own headers, without those that the look-up adds.
    pub(crate) headers: Headers,
    pub(crate) payload: Bytes,
    /// When it was stored, where the look-up tells.
    pub(crate) stored: Option<Time>,
}

/// Where a batch of messages starts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Start {
    Sequence(u64),
    Time(Time),
}

impl Start {
    pub(super) fn write(self, request: &mut Value) {
        match self {
            Self::Sequence(sequence) => request["seq"] = json!(sequence.max(1)),
            Self::Time(from) => request["start_time"] = json!(time::to_text(&from)),
        }
    }

    /// The lowest sequence that may come.
    pub(super) fn sequence(self) -> u64 {
        match self {
            Self::Sequence(sequence) => sequence.max(1),
            Self::Time(_) => 1,
        }
    }
}

/// A stretch of a stream.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) messages: Vec<Stored>,
    /// Whether the stream held nothing more when it was read.
    pub(crate) is_last: bool,
    /// How much more it held.
    pub(crate) left: u64,
}

const STREAM: &str = "Nats-Stream";
const SUBJECT: &str = "Nats-Subject";
const SEQUENCE: &str = "Nats-Sequence";
const TIME: &str = "Nats-Time-Stamp";
const PENDING: &str = "Nats-Num-Pending";
const LAST: &str = "Nats-Last-Sequence";
/// What a look-up adds to a message's headers.
const ADDED: [&str; 6] = [STREAM, SUBJECT, SEQUENCE, TIME, PENDING, LAST];

/// Bytes that are asked for at once; one message is given in any case.
const MAX_BATCH_BYTES: usize = 8 * 1024 * 1024;

const NOT_FOUND: u16 = 404;
const END_OF_BATCH: u16 = 204;
const NO_RESPONDERS: u16 = 503;

impl Connection {
    /// The last message of `subject`, as any replica has it: it may lag a little.
    pub(crate) async fn last(&self, stream: &str, subject: &str) -> Result<Option<Stored>> {
        if !self.breakers().are_from(stream, 1) {
            let verb = format!("DIRECT.GET.{stream}.{subject}");
            let (loss, until) = (Loss::of(self), Instant::now() + self.timeout());
            tokio::select! {
                biased;
                answer = self.perilous_question(self.api_subject(&verb), Bytes::new()) => {
                    match answer {
                        Ok(answer) => return read(stream, answer),
                        // It may be that very message that breaks the connection.
                        Err(error) if error.is_unknown() => {
                            timeout_at(until, loss.happened()).await.map_err(|_| error)?;
                        }
                        Err(error) => return Err(error),
                    }
                }
                () = loss.happened() => {}
            }
        }
        self.last_of_leader(stream, subject).await
    }

    /// The last message of `subject`, as the stream's leader has it.
    pub(crate) async fn last_of_leader(
        &self,
        stream: &str,
        subject: &str,
    ) -> Result<Option<Stored>> {
        self.message(stream, &json!({ "last_by_subj": subject })).await
    }

    /// The message with this sequence, as the stream's leader has it.
    pub(crate) async fn by_sequence(&self, stream: &str, sequence: u64) -> Result<Option<Stored>> {
        self.message(stream, &json!({ "seq": sequence })).await
    }

    async fn message(&self, stream: &str, request: &Value) -> Result<Option<Stored>> {
        let message = self.raw_message(stream, request).await?;
        message.map(|message| message.read(stream)).transpose()
    }

    /// The message as the API puts it, which can be had whatever is in it.
    pub(super) async fn raw_message(
        &self,
        stream: &str,
        request: &Value,
    ) -> Result<Option<RawMessage>> {
        #[derive(Deserialize)]
        struct Answer {
            message: RawMessage,
        }
        match api::call::<Answer>(self, &format!("STREAM.MSG.GET.{stream}"), Some(request)).await? {
            Ok(answer) => Ok(Some(answer.message)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(not_set_up(stream, error)),
        }
    }

    /// Up to `count` messages of the subjects that `filter` covers, in order, from `start` on.
    pub(crate) async fn batch(
        &self,
        stream: &str,
        filter: &str,
        start: Start,
        count: usize,
    ) -> Result<Batch> {
        let mut request =
            json!({ "next_by_subj": filter, "batch": count, "max_bytes": MAX_BATCH_BYTES });
        start.write(&mut request);
        match self.read_batch(stream, &request, start.sequence(), count).await? {
            Some(batch) => Ok(batch),
            None => self.batch_with_care(stream, filter, start, count).await,
        }
    }

    /// The last message of each subject that `filter` covers, at most `count`.
    pub(crate) async fn last_of_each(
        &self,
        stream: &str,
        filter: &str,
        count: usize,
    ) -> Result<Batch> {
        let request = json!({ "multi_last": [filter], "batch": count });
        match self.read_batch(stream, &request, 1, count).await? {
            Some(batch) => Ok(batch),
            None => self.last_of_each_with_care(stream, filter, count).await,
        }
    }

    /// `None` where the connection is lost over it, or has been over a message from `first` on.
    async fn read_batch(
        &self,
        stream: &str,
        request: &Value,
        first: u64,
        count: usize,
    ) -> Result<Option<Batch>> {
        if self.breakers().are_from(stream, first) {
            return Ok(None);
        }
        let loss = Loss::of(self);
        let subject = self.api_subject(&format!("DIRECT.GET.{stream}"));
        let asked = self.question_many(subject, Bytes::from(request.to_string()));
        let (mut next, mut answers) = tokio::select! {
            biased;
            asked = asked => asked?,
            () = loss.happened() => return Ok(None),
        };
        let mut messages = Vec::with_capacity(count.min(1024));
        loop {
            let answer = next.ok_or_else(|| {
                Error::new(
                    ErrorKind::Unavailable,
                    format!("the broker stopped answering while stream {stream} was read"),
                )
            })?;
            match status_of(&answer) {
                None => messages.extend(read(stream, answer)?),
                Some(NOT_FOUND) => return Ok(Some(Batch { messages, is_last: true, left: 0 })),
                Some(END_OF_BATCH) => {
                    let pending = answer.headers.as_ref().and_then(|headers| headers.get(PENDING));
                    let left = pending.and_then(|pending| pending.as_str().parse().ok());
                    let left = left.unwrap_or_default();
                    return Ok(Some(Batch { messages, is_last: left == 0, left }));
                }
                Some(NO_RESPONDERS) => return Err(self.why_nobody_reads(stream).await),
                Some(_) => return Err(refusal(stream, &answer)),
            }
            next = tokio::select! {
                biased;
                answer = answers.next(self.timeout()) => answer?,
                () = loss.happened() => return Ok(None),
            };
        }
    }

    /// Why nobody answers for a stream: there is none, or its servers are not ready.
    async fn why_nobody_reads(&self, stream: &str) -> Error {
        match self.last_sequence(stream).await {
            Ok(_) => Error::new(
                ErrorKind::Unavailable,
                format!("stream {stream} cannot be read just now: its servers are not ready"),
            ),
            Err(error) => error,
        }
    }

    /// Deletes one message; `false` if it was not there.
    pub(crate) async fn delete(&self, stream: &str, sequence: u64) -> Result<bool> {
        #[derive(Deserialize)]
        struct Answer {
            success: bool,
        }
        let request = json!({ "seq": sequence, "no_erase": true });
        let verb = format!("STREAM.MSG.DELETE.{stream}");
        match api::call::<Answer>(self, &verb, Some(&request)).await? {
            Ok(answer) => Ok(answer.success),
            Err(error) if is_absent(&error) => Ok(false),
            Err(error) => {
                Err(error.into_error(&format!("delete message {sequence} of stream {stream}")))
            }
        }
    }
}

/// Whether the API says that there is no such message. A stream that does not exist is an error.
fn is_absent(error: &ApiError) -> bool {
    // Deleting what is gone is a failed delete with a text of its own, or a sequence not found.
    matches!(error.err_code, code::MESSAGE_NOT_FOUND | code::SEQUENCE_NOT_FOUND)
        || (error.err_code == code::MESSAGE_DELETE_FAILED
            && error.description == "no message found")
}

fn refusal(stream: &str, answer: &async_nats::Message) -> Error {
    let why = answer.description.as_deref().unwrap_or("no reason given");
    Error::new(ErrorKind::Broker, format!("cannot read stream {stream}: {why}"))
}

/// The status by which the broker says something itself. To what it has looked up it adds the sequence; a
/// status in that is of whoever published it.
fn status_of(answer: &async_nats::Message) -> Option<u16> {
    let is_message = answer.headers.as_ref().is_some_and(|headers| headers.get(SEQUENCE).is_some());
    answer.status.filter(|_| !is_message).map(|status| status.as_u16())
}

/// Reads the answer to a direct get.
fn read(stream: &str, answer: async_nats::Message) -> Result<Option<Stored>> {
    match status_of(&answer) {
        None => {}
        Some(NOT_FOUND) => return Ok(None),
        Some(_) => return Err(refusal(stream, &answer)),
    }
    let Some(map) = &answer.headers else { return Err(refusal(stream, &answer)) };
    // What the broker adds stands last; before it may be anything that the message has by the same name.
    let added = |name: &str| map.get_last(name).map(|value| value.as_str());
    let sequence = added(SEQUENCE).and_then(|sequence| sequence.parse().ok());
    let (Some(subject), Some(sequence)) = (added(SUBJECT), sequence) else {
        return Err(refusal(stream, &answer));
    };
    let (subject, stored) = (subject.to_owned(), added(TIME).and_then(time::parse));
    let mut headers = from_header_map(map);
    for name in ADDED {
        headers.remove(name);
    }
    Ok(Some(Stored { subject, sequence, headers, payload: answer.payload, stored }))
}

/// A message in the JSON of the API, its bytes in base64.
#[derive(Deserialize)]
pub(super) struct RawMessage {
    subject: String,
    pub(super) seq: u64,
    #[serde(default)]
    hdrs: Option<String>,
    #[serde(default)]
    data: Option<String>,
    #[serde(default, with = "crate::wire::time::rfc3339_option")]
    time: Option<Time>,
}

impl RawMessage {
    /// Its header block; empty if it has none.
    fn header_block(&self) -> Vec<u8> {
        base64_decode(self.hdrs.as_deref().unwrap_or_default()).unwrap_or_default()
    }

    /// Whether the client library cannot read it where it is looked up directly.
    pub(super) fn breaks_look_ups(&self) -> bool {
        block::breaks_look_ups(&self.subject, &self.header_block())
    }

    /// What keeps it from being handed out to the client library, if anything.
    pub(super) fn flaw(&self) -> Option<&'static str> {
        block::flaw_of(&self.subject, &self.header_block())
    }

    /// Headers that the client library could not read are what can be made of them.
    pub(super) fn read(self, stream: &str) -> Result<Stored> {
        let garbled =
            || Error::new(ErrorKind::Broker, format!("a message of stream {stream} is garbled"));
        let block = self.header_block();
        let headers = match block.is_empty() {
            true => Headers::new(),
            false => block::read(&block).unwrap_or_else(|_| block::salvage(&block)),
        };
        Ok(Stored {
            headers,
            payload: base64_decode(&self.data.unwrap_or_default()).ok_or_else(garbled)?.into(),
            subject: self.subject,
            sequence: self.seq,
            stored: self.time,
        })
    }
}

fn base64_decode(text: &str) -> Option<Vec<u8>> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(text).ok()
}
