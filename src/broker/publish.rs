//! Storing a message and seeing the broker's word for it.

use async_nats::header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE;
use async_nats::{HeaderMap, HeaderValue};
use bytes::Bytes;
use serde::Deserialize;

use super::api::{ApiError, code};
use super::connection::Connection;
use crate::error::{Error, ErrorKind, Result};
use crate::wire::Headers;

const EXPECTED_LAST_SUBJECT_SEQUENCE_SUBJECT: &str = "Nats-Expected-Last-Subject-Sequence-Subject";

/// The condition under which a message is stored.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Expect<'a> {
    /// None.
    Anything,
    /// The last message of this very subject has this sequence; 0: there is none.
    Last(u64),
    /// The last message of the subjects that `guard` covers has this sequence; 0: there is none.
    LastOf { guard: &'a str, sequence: u64 },
}

/// What the broker did with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Published {
    /// It stands in the stream under this sequence.
    Stored(u64),
    /// The condition does not hold: this is the sequence of the last message there.
    WrongLast(u64),
    /// Another message under the same condition is on its way; ask again.
    InFlight,
}

/// A message of a batch.
#[derive(Debug)]
pub(crate) struct BatchMessage<'a> {
    pub(crate) subject: String,
    pub(crate) headers: &'a Headers,
    pub(crate) payload: Bytes,
    pub(crate) expect: Expect<'a>,
}

/// The most messages of a batch that is stored whole or not at all (ADR-50).
pub(crate) const MAX_BATCH: usize = 1000;

pub(super) const BATCH_ID: &str = "Nats-Batch-Id";
pub(super) const BATCH_SEQUENCE: &str = "Nats-Batch-Sequence";
pub(super) const BATCH_COMMIT: &str = "Nats-Batch-Commit";

#[derive(Deserialize)]
struct PubAck {
    #[serde(default)]
    error: Option<ApiError>,
    #[serde(default)]
    seq: u64,
}

impl Connection {
    /// Stores a message and waits for the broker's word.
    ///
    /// # Errors
    /// `Unknown` where no answer came in time: the message may be stored or not. `Unavailable` where
    /// no stream takes the subject, which stores nothing.
    pub(crate) async fn store(
        &self,
        subject: String,
        headers: &Headers,
        payload: Bytes,
        expect: Expect<'_>,
    ) -> Result<Published> {
        let headers = header_map(headers, expect);
        let answer = self.request(subject.clone(), headers, payload).await?;
        read_ack(&subject, &answer.payload)
    }

    /// Stores all messages or none, at most [`MAX_BATCH`]; where they are stored, in one row, this is
    /// the sequence of the last.
    ///
    /// # Errors
    /// As [`Connection::store`].
    pub(crate) async fn store_all(
        &self,
        id: &str,
        messages: Vec<BatchMessage<'_>>,
    ) -> Result<Published> {
        let count = messages.len();
        let mut published = Published::InFlight;
        for (index, message) in messages.into_iter().enumerate() {
            let BatchMessage { subject, headers, payload, expect } = message;
            let mut headers = header_map(headers, expect).unwrap_or_default();
            headers.insert(BATCH_ID, id);
            headers.insert(BATCH_SEQUENCE, (index + 1).to_string());
            let is_last = index + 1 == count;
            if is_last {
                headers.insert(BATCH_COMMIT, "1");
            }
            if is_last || index == 0 {
                // The first answer tells whether there is somebody to take the rest; it is empty.
                let answer = self.request(subject.clone(), Some(headers), payload).await?;
                if is_last || !answer.payload.is_empty() {
                    published = read_ack(&subject, &answer.payload)?;
                }
                if !is_last && published != Published::InFlight {
                    return Ok(published);
                }
            } else {
                self.publish_with_headers(subject, headers, payload).await?;
            }
        }
        Ok(published)
    }
}

fn read_ack(subject: &str, body: &[u8]) -> Result<Published> {
    let ack: PubAck = serde_json::from_slice(body).map_err(|error| {
        Error::new(ErrorKind::Unknown, format!("the answer to a publish on {subject} is no PubAck"))
            .because(error)
    })?;
    match ack.error {
        None if ack.seq > 0 => Ok(Published::Stored(ack.seq)),
        None => Err(Error::new(
            ErrorKind::Unknown,
            format!("the answer to a publish on {subject} has no sequence"),
        )),
        Some(error) if error.err_code == code::SEQUENCE_IN_FLIGHT => Ok(Published::InFlight),
        Some(error) if error.err_code == code::WRONG_LAST_SEQUENCE => {
            match last_number(&error.description) {
                Some(sequence) => Ok(Published::WrongLast(sequence)),
                None => Err(error.into_error(&format!("publish on {subject}"))),
            }
        }
        Some(error) => Err(error.into_error(&format!("publish on {subject}"))),
    }
}

/// The number that ends `wrong last sequence: <n>`; the broker tells it nowhere else.
fn last_number(description: &str) -> Option<u64> {
    description.rsplit(' ').next()?.parse().ok()
}

pub(super) fn header_map(headers: &Headers, expect: Expect<'_>) -> Option<HeaderMap> {
    if headers.is_empty() && matches!(expect, Expect::Anything) {
        return None;
    }
    let mut map = HeaderMap::new();
    for (name, value) in headers.iter() {
        map.append(name, value);
    }
    match expect {
        Expect::Anything => {}
        Expect::Last(sequence) => {
            map.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, HeaderValue::from(sequence))
        }
        Expect::LastOf { guard, sequence } => {
            map.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, HeaderValue::from(sequence));
            map.insert(EXPECTED_LAST_SUBJECT_SEQUENCE_SUBJECT, guard);
        }
    }
    Some(map)
}

/// Headers that came with a message, as ours: sorted by name, since the client library does not
/// keep the order of different names.
pub(super) fn from_header_map(map: &HeaderMap) -> Headers {
    let mut headers: Headers = map
        .iter()
        .flat_map(|(name, values)| values.iter().map(|value| (name.to_string(), value.to_string())))
        .collect();
    headers.sort();
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_brokers_word_as_a_table() {
        let wrong = r#"{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 42"},"seq":0}"#;
        let flight = r#"{"error":{"code":400,"err_code":10164,"description":"in flight"}}"#;
        let table = [
            (r#"{"stream":"S","seq":7}"#, Published::Stored(7)),
            (wrong, Published::WrongLast(42)),
            (flight, Published::InFlight),
        ];
        for (body, published) in table {
            assert_eq!(read_ack("s", body.as_bytes()).expect(body), published);
        }
    }

    #[test]
    fn what_is_no_word_is_unknown_and_a_full_stream_is_full() {
        for body in ["", "{}", "+OK"] {
            assert!(read_ack("s", body.as_bytes()).expect_err(body).is_unknown());
        }
        let full =
            r#"{"error":{"code":400,"err_code":10077,"description":"maximum messages exceeded"}}"#;
        assert!(read_ack("s", full.as_bytes()).expect_err("full").is_full());
    }
}
