//! Storing many messages with one word of the broker for all: fast ingest, in short batches.
//!
//! Each message of a batch is stored as it comes in; its reply subject says where it belongs:
//! `<prefix>.<batch>.<flow>.fail.<number>.<operation>.$FI` (ADR-50, nats-server 2.14). In the gap mode
//! `fail` a batch ends at the first message that is missing or refused, and the one word says how many
//! were stored before it. The messages are those of the longest prefix, so that number is all there is
//! to know; what is left is for plain publishes, which tell what is the matter.
//!
//! The broker's words in between are not needed: a batch is shorter than what it lets through before it
//! wants to be waited for.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use async_nats::Subscriber;
use bytes::Bytes;
use futures_util::StreamExt;
use serde::Deserialize;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::api::{ApiError, code};
use super::connection::Connection;
use super::publish::{Expect, header_map};
use crate::error::{Error, Result};
use crate::topology::LEVEL_FAST_INGEST;
use crate::wire::Headers;

/// The most messages of one batch. Measured on one server: beyond some hundreds nothing is won.
pub(crate) const MAX_INGEST: usize = 250;

/// The broker confirms every so many messages, which for a batch is never before its end.
const FLOW: usize = 2 * MAX_INGEST;

/// A way to store batches, over one subscription for all answers.
pub(crate) struct Ingest {
    conn: Connection,
    inbox: String,
    waiting: Arc<Waiting>,
    _reader: AbortOnDropHandle<()>,
}

/// A message of a batch.
#[derive(Debug)]
pub(crate) struct IngestMessage {
    pub(crate) subject: String,
    pub(crate) payload: Bytes,
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ingested {
    /// So many messages, from the first, are stored for sure. What became of the rest is not known.
    Stored(usize),
    /// The stream takes no batches.
    Refused,
}

/// Batches whose end is not known yet, by their tokens.
#[derive(Default)]
struct Waiting(Mutex<HashMap<String, oneshot::Sender<Bytes>>>);

impl Waiting {
    fn all(&self) -> MutexGuard<'_, HashMap<String, oneshot::Sender<Bytes>>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// An answer; one that has a type is no end.
#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    count: usize,
    error: Option<ApiError>,
}

impl Ingest {
    /// `None` where the server knows no batches, or these credentials may not ask it.
    pub(crate) async fn open(conn: &Connection) -> Option<Self> {
        let opened = async {
            match conn.api_level().await? >= LEVEL_FAST_INGEST {
                true => Self::subscribe(conn).await.map(Some),
                false => Ok(None),
            }
        };
        opened.await.unwrap_or_else(|error: Error| {
            tracing::debug!(%error, "messages are not stored in batches");
            None
        })
    }

    async fn subscribe(conn: &Connection) -> Result<Self> {
        let inbox = conn.client().new_inbox();
        let answers = conn.subscribe(format!("{inbox}.>")).await?;
        let waiting = Arc::<Waiting>::default();
        let reader = tokio::spawn(read(answers, inbox.len() + 1, waiting.clone()));
        Ok(Self { conn: conn.clone(), inbox, waiting, _reader: AbortOnDropHandle::new(reader) })
    }

    /// Stores messages in order, at most [`MAX_INGEST`], each only where its subject has none yet.
    pub(crate) async fn store(&self, messages: Vec<IngestMessage>) -> Ingested {
        let Some(first) = messages.first().map(|message| message.subject.clone()) else {
            return Ingested::Stored(0);
        };
        let batch = format!("{:016x}", fastrand::u64(..));
        let (sender, end) = oneshot::channel();
        self.waiting.all().insert(batch.clone(), sender);
        let asked = Instant::now();
        let first = first.into();
        let stored = async {
            self.send(&batch, messages).await?;
            end.await.ok()
        };
        let answer = tokio::select! {
            stored = timeout(self.conn.timeout(), stored) => stored.ok().flatten(),
            _ = self.conn.denied(&first, asked) => None,
        };
        self.waiting.all().remove(&batch);
        answer.map_or(Ingested::Stored(0), |answer| read_end(&answer))
    }

    async fn send(&self, batch: &str, messages: Vec<IngestMessage>) -> Option<()> {
        let headers = header_map(&Headers::new(), Expect::Last(0)).unwrap_or_default();
        let prefix = format!("{}.{batch}.{FLOW}.fail.", self.inbox);
        let last = messages.len();
        for (number, message) in (1..).zip(messages) {
            let operation = match number {
                _ if number == last => Operation::Commit,
                1 => Operation::Start,
                _ => Operation::Append,
            };
            let mut reply = String::with_capacity(prefix.len() + 10);
            reply.push_str(&prefix);
            let _ = write!(reply, "{number}.{}.$FI", operation as u8);
            let IngestMessage { subject, payload } = message;
            let client = self.conn.client();
            let headers = headers.clone();
            client.publish_with_reply_and_headers(subject, reply, headers, payload).await.ok()?;
        }
        Some(())
    }
}

/// What a message is to its batch.
#[derive(Clone, Copy)]
enum Operation {
    Start = 0,
    Append = 1,
    /// The last: it is stored too.
    Commit = 2,
}

/// Hands the ends of batches to who waits for them.
async fn read(mut answers: Subscriber, skip: usize, waiting: Arc<Waiting>) {
    while let Some(answer) = answers.next().await {
        let batch = answer.subject.get(skip..).and_then(|rest| rest.split('.').next());
        let is_end = serde_json::from_slice::<Answer>(&answer.payload)
            .is_ok_and(|answer| answer.kind.is_none());
        // No stream takes the subject: there is nobody who would say more.
        let is_end = is_end || answer.status.is_some();
        let sender = batch.filter(|_| is_end).and_then(|batch| waiting.all().remove(batch));
        if let Some(sender) = sender {
            // It may have given up waiting.
            let _ = sender.send(answer.payload);
        }
    }
}

/// What became of a batch, by its end.
fn read_end(answer: &[u8]) -> Ingested {
    let Ok(answer) = serde_json::from_slice::<Answer>(answer) else { return Ingested::Stored(0) };
    match answer.error {
        Some(error) if error.err_code == code::BATCH_PUBLISH_DISABLED => Ingested::Refused,
        _ => Ingested::Stored(answer.count),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_brokers_last_word_counts() {
        for (answer, end) in [
            (r#"{"stream":"R","seq":260,"batch":"b7","count":250}"#, Ingested::Stored(250)),
            (
                r#"{"error":{"code":400,"err_code":10071},"stream":"R","seq":0}"#,
                Ingested::Stored(0),
            ),
            (r#"{"error":{"code":400,"err_code":10205},"stream":"R","seq":0}"#, Ingested::Refused),
            // A server that knows no batches takes each message for itself, and says nothing of others.
            (r#"{"stream":"R","seq":260}"#, Ingested::Stored(0)),
            ("", Ingested::Stored(0)),
        ] {
            assert_eq!(read_end(answer.as_bytes()), end, "{answer}");
        }
    }
}
