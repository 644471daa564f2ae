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
//!
//! Where the broker writes every message through to the disk, atomic batches are the faster way; see
//! [`Ways`].
//!
//! Where the subject is imported from another account, the broker gives each message a reply subject of
//! its own: then there is no batch, each message is stored for itself, and confirmed for itself.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use async_nats::{HeaderMap, Subject};
use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::oneshot;
use tokio::time::timeout_at;
use tokio_util::task::AbortOnDropHandle;

use super::api::ApiError;
use super::connection::Connection;
use super::given::Given;
use super::publish::{BATCH_COMMIT, BATCH_ID, BATCH_SEQUENCE, Expect, header_map};
use super::renew::Messages;
use super::way::{Way, Ways};
use crate::error::Result;
use crate::wire::Headers;

/// The most messages of one batch. Measured on one server: beyond some hundreds nothing is won.
pub(crate) const MAX_INGEST: usize = 250;

/// The broker confirms every so many messages, which for a batch is never before its end.
const FLOW: usize = 2 * MAX_INGEST;

/// The oldest server that knows batches.
const OLDEST_SERVER: (u32, u32, u32) = (2, 14, 0);

/// What a connection keeps to store batches: one subscription for all answers.
pub(super) struct Ingest {
    inbox: String,
    waiting: Arc<Waiting>,
    /// By stream.
    ways: Mutex<HashMap<String, Ways>>,
    _reader: AbortOnDropHandle<()>,
}

/// A message of a batch.
#[derive(Debug)]
pub(crate) struct IngestMessage {
    subject: String,
    headers: Option<HeaderMap>,
    payload: Bytes,
}

/// A batch that is sent, and whose end is to be waited for.
pub(crate) struct SentBatch {
    conn: Connection,
    stream: String,
    token: String,
    way: Way,
    messages: usize,
    first: Subject,
    asked: Instant,
    waiting: Arc<Waiting>,
    end: oneshot::Receiver<Ingested>,
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ingested {
    /// So many messages, from the first, are stored for sure; the rest was not taken.
    Stored(usize),
    /// So many, from the first, are stored for sure; what became of the rest the broker does not say.
    BrokenOff(usize),
    /// The stream takes no batches.
    Refused,
    /// No stream takes the first message's subject, or none did when it came; or these credentials may not
    /// publish to it.
    NoStream,
}

/// Batches whose end is not known yet, by their tokens.
#[derive(Default)]
struct Waiting(Mutex<HashMap<String, Awaited>>);

/// A batch whose end is waited for.
struct Awaited {
    end: oneshot::Sender<Ingested>,
    messages: usize,
    /// How many of them, from the first, were stored each for itself.
    singly: usize,
}

impl Waiting {
    fn all(&self) -> MutexGuard<'_, HashMap<String, Awaited>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl IngestMessage {
    pub(crate) fn new(
        subject: String,
        headers: &Headers,
        payload: Bytes,
        expect: Expect<'_>,
    ) -> Self {
        Self { subject, headers: header_map(headers, expect), payload }
    }
}

impl Connection {
    /// Sends messages to be stored in order, at most [`MAX_INGEST`]. `None`, and nothing is sent,
    /// where the server or the stream is known to take no batches.
    pub(crate) async fn send_together(
        &self,
        stream: &str,
        messages: Vec<IngestMessage>,
    ) -> Option<SentBatch> {
        if self.server_version() < OLDEST_SERVER {
            return None;
        }
        let ingest = match self.ingest(|| Ingest::open(self)).await {
            Ok(ingest) => ingest,
            Err(error) => {
                tracing::debug!(%error, "messages are not stored in batches for now");
                return None;
            }
        };
        let way = ingest.ways().entry(stream.to_owned()).or_default().next(messages.len())?;
        let first = Subject::from(messages.first()?.subject.as_str());
        let token = format!("{:016x}", fastrand::u64(..));
        let (sender, end) = oneshot::channel();
        let awaited = Awaited { end: sender, messages: messages.len(), singly: 0 };
        ingest.waiting.all().insert(token.clone(), awaited);
        let batch = SentBatch {
            conn: self.clone(),
            stream: stream.to_owned(),
            way,
            messages: messages.len(),
            first,
            asked: Instant::now(),
            waiting: ingest.waiting.clone(),
            end,
            token,
        };
        let to = format!("{}.{}", ingest.inbox, batch.token);
        let sent = async {
            match way {
                Way::Ingest => self.send_to_ingest(&to, messages).await,
                Way::Atomic => self.send_atomic(&to, &batch.token, messages).await,
            }
        };
        if !matches!(timeout_at(batch.deadline(), sent).await, Ok(Some(()))) {
            // Its end will not come, and is not waited for.
            batch.waiting.all().remove(&batch.token);
        }
        Some(batch)
    }

    async fn send_to_ingest(&self, to: &str, messages: Vec<IngestMessage>) -> Option<()> {
        let (client, last) = (self.client(), messages.len());
        let before_number = format!("{to}.{FLOW}.fail.");
        for (number, message) in (1..).zip(messages) {
            let operation = match number {
                _ if number == last => Operation::Commit,
                1 => Operation::Start,
                _ => Operation::Append,
            };
            let mut reply = String::with_capacity(before_number.len() + "250.0.$FI".len());
            reply.push_str(&before_number);
            let _ = write!(reply, "{number}");
            reply.push_str(operation.behind_number());
            let IngestMessage { subject, headers, payload } = message;
            let (subject, reply) = (Given::new(subject), Given::new(reply));
            match headers {
                Some(headers) => {
                    client.publish_with_reply_and_headers(subject, reply, headers, payload).await
                }
                None => client.publish_with_reply(subject, reply, payload).await,
            }
            .ok()?;
        }
        Some(())
    }

    /// The first is answered so that it is known whether there is somebody to take the rest.
    async fn send_atomic(&self, to: &str, id: &str, messages: Vec<IngestMessage>) -> Option<()> {
        let (client, last) = (self.client(), messages.len());
        for (number, message) in (1..).zip(messages) {
            let IngestMessage { subject, headers, payload } = message;
            let mut headers = headers.unwrap_or_default();
            headers.insert(BATCH_ID, id);
            headers.insert(BATCH_SEQUENCE, number.to_string());
            if number == last {
                headers.insert(BATCH_COMMIT, "1");
            }
            if number == 1 || number == last {
                let reply = format!("{to}.{last}.atomic.{number}");
                client.publish_with_reply_and_headers(subject, reply, headers, payload).await
            } else {
                client.publish_with_headers(subject, headers, payload).await
            }
            .ok()?;
        }
        Some(())
    }
}

impl Ingest {
    async fn open(conn: &Connection) -> Result<Self> {
        let inbox = conn.client().new_inbox();
        let answers = conn.subscribe(format!("{inbox}.>")).await?;
        let waiting = Arc::<Waiting>::default();
        let reader = tokio::spawn(read(answers, inbox.len() + 1, waiting.clone()));
        let ways = Mutex::default();
        Ok(Self { inbox, waiting, ways, _reader: AbortOnDropHandle::new(reader) })
    }

    fn ways(&self) -> MutexGuard<'_, HashMap<String, Ways>> {
        self.ways.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SentBatch {
    fn deadline(&self) -> tokio::time::Instant {
        (self.asked + self.conn.timeout()).into()
    }

    /// Waits for the broker's word, but not longer than for any answer.
    pub(crate) async fn end(mut self) -> Ingested {
        let deadline = self.deadline();
        let ended = tokio::select! {
            biased;
            ended = timeout_at(deadline, &mut self.end) => ended.ok().and_then(Result::ok),
            _ = self.conn.denied(&self.first, self.asked) => Some(Ingested::NoStream),
        };
        let ended = ended.unwrap_or(Ingested::BrokenOff(0));
        self.note(ended);
        ended
    }

    fn note(&self, ended: Ingested) {
        let Some(ingest) = self.conn.opened_ingest() else { return };
        let mut all = ingest.ways();
        let Some(ways) = all.get_mut(&self.stream) else { return };
        match ended {
            Ingested::Stored(count) if count == self.messages => {
                ways.took(self.way, count, self.asked, Instant::now());
            }
            Ingested::Stored(_) | Ingested::BrokenOff(_) => ways.failed(self.way),
            Ingested::Refused => {
                if ways.refused(self.way) {
                    let (stream, way) = (&self.stream, self.way);
                    tracing::info!(stream, ?way, "takes no batches of this kind");
                }
            }
            Ingested::NoStream => {}
        }
    }
}

impl Drop for SentBatch {
    fn drop(&mut self) {
        self.waiting.all().remove(&self.token);
    }
}

/// What a message is to its batch.
#[derive(Clone, Copy)]
enum Operation {
    Start,
    Append,
    /// The last: it is stored too.
    Commit,
}

impl Operation {
    /// The end of the reply subject.
    const fn behind_number(self) -> &'static str {
        match self {
            Self::Start => ".0.$FI",
            Self::Append => ".1.$FI",
            Self::Commit => ".2.$FI",
        }
    }
}

/// Hands the ends of batches to who waits for them.
async fn read(mut answers: Messages, skip: usize, waiting: Arc<Waiting>) {
    while let Some(answer) = answers.next().await {
        let mut tokens = answer.subject.get(skip..).unwrap_or_default().split('.');
        let (token, number) = (tokens.next(), tokens.nth(2));
        let word = match answer.status {
            // There is nobody who would say more. Whether there was, the first message tells.
            Some(_) if number == Some("1") => Word::Last(Ingested::NoStream),
            Some(_) => Word::Last(Ingested::BrokenOff(0)),
            None => read_word(&answer.payload),
        };
        if let Some(token) = token {
            waiting.hear(token, word);
        }
    }
}

impl Waiting {
    /// Takes a word about a batch, and tells its end where that is known by now.
    fn hear(&self, token: &str, word: Word) {
        let mut all = self.all();
        let Some(batch) = all.get_mut(token) else { return };
        let end = match word {
            Word::Between => return,
            // They are confirmed in the order in which they were sent.
            Word::OneStored => {
                batch.singly += 1;
                if batch.singly < batch.messages {
                    return;
                }
                Ingested::Stored(batch.messages)
            }
            Word::Last(Ingested::Stored(count)) => Ingested::Stored(count.max(batch.singly)),
            Word::Last(Ingested::BrokenOff(_)) => Ingested::BrokenOff(batch.singly),
            Word::Last(end @ (Ingested::Refused | Ingested::NoStream)) => end,
        };
        if let Some(batch) = all.remove(token) {
            // It may have given up waiting.
            let _ = batch.end.send(end);
        }
    }
}

/// What the broker says of a batch.
#[derive(Deserialize)]
struct Answer {
    /// On words before the end.
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    count: usize,
    error: Option<ApiError>,
}

/// What a word of the broker's means for its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    /// More is to come, or it does not parse.
    Between,
    /// One message was stored for itself.
    OneStored,
    Last(Ingested),
}

fn read_word(answer: &[u8]) -> Word {
    let Ok(answer) = serde_json::from_slice::<Answer>(answer) else { return Word::Between };
    match (answer.kind, answer.error) {
        (Some(_), _) => Word::Between,
        (None, Some(error)) if error.is_batch_refused() => Word::Last(Ingested::Refused),
        (None, None) if answer.count == 0 && answer.seq > 0 => Word::OneStored,
        (None, _) => Word::Last(Ingested::Stored(answer.count)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_brokers_last_word_counts() {
        let last = Word::Last;
        for (answer, word) in [
            (r#"{"stream":"R","seq":260,"batch":"b7","count":250}"#, last(Ingested::Stored(250))),
            (
                r#"{"error":{"code":400,"err_code":10071},"stream":"R","seq":0}"#,
                last(Ingested::Stored(0)),
            ),
            (
                r#"{"error":{"code":400,"err_code":10205},"stream":"R","seq":0}"#,
                last(Ingested::Refused),
            ),
            (
                r#"{"error":{"code":400,"err_code":10174},"stream":"R","seq":0}"#,
                last(Ingested::Refused),
            ),
            // Where there is no batch, each message is confirmed for itself.
            (r#"{"stream":"R","seq":260}"#, Word::OneStored),
            (r#"{"type":"ack","seq":100,"msgs":100}"#, Word::Between),
            ("", Word::Between),
        ] {
            assert_eq!(read_word(answer.as_bytes()), word, "{answer}");
        }
    }

    #[test]
    fn messages_that_are_stored_singly_count_up_to_the_first_that_is_not() {
        let refused = Word::Last(Ingested::Stored(0));
        for (words, end) in [
            (vec![Word::OneStored; 3], Some(Ingested::Stored(3))),
            (vec![Word::OneStored; 2], None),
            (vec![Word::OneStored, refused, Word::OneStored], Some(Ingested::Stored(1))),
            (vec![refused], Some(Ingested::Stored(0))),
            (vec![Word::Last(Ingested::NoStream)], Some(Ingested::NoStream)),
        ] {
            let waiting = Waiting::default();
            let (sender, mut told) = oneshot::channel();
            let awaited = Awaited { end: sender, messages: 3, singly: 0 };
            waiting.all().insert("b7".into(), awaited);
            for word in &words {
                waiting.hear("b7", *word);
            }
            assert_eq!(told.try_recv().ok(), end, "{words:?}");
        }
    }
}
