//! Settling a delivery: what its reply subject says, and what is sent to it.

use std::time::Duration;

use bytes::Bytes;

use super::connection::Connection;
use crate::error::Result;
use crate::wire::time::{self, Time};

/// What the broker encodes in a delivery's reply subject (ADR-15), in either of its forms:
/// `$JS.ACK.<stream>.<consumer>.<delivered>.<seq>.<consumer seq>.<time>.<pending>`, or the same
/// behind `<domain>.<account hash>.` and with more behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AckInfo {
    /// How often the broker has handed this message out; 1 the first time.
    pub(crate) delivered: u64,
    pub(crate) sequence: u64,
    /// Counts what this consumer has handed out, to whomever; one that is made anew begins again.
    pub(crate) handed_out: u64,
    pub(crate) stored: Time,
}

const TOKENS_V1: usize = 9;

/// A number of so many digits fits, whatever they are.
const MAX_DIGITS: usize = 19;

pub(super) fn parse(reply: &str) -> Option<AckInfo> {
    // Every job comes by here: to split the subject and parse its tokens takes three times as long.
    let tokens = reply.strip_prefix("$JS.ACK.")?.as_bytes();
    match counts(tokens, 2) {
        Some((info, pending)) if !pending.contains(&b'.') => Some(info),
        Some(_) | None => counts(tokens, 4).map(|(info, _)| info),
    }
}

/// What stands behind so many tokens, and what is left then.
fn counts(mut rest: &[u8], skip: usize) -> Option<(AckInfo, &[u8])> {
    for _ in 0..skip {
        let dot = rest.iter().position(|byte| *byte == b'.')?;
        rest = &rest[dot + 1..];
    }
    let mut next = || number(&mut rest);
    let info = AckInfo {
        delivered: next()?,
        sequence: next()?,
        handed_out: next()?,
        stored: time::from_nanos(next()?.try_into().ok()?),
    };
    Some((info, rest))
}

/// Takes a number and the dot behind it.
fn number(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for (length, byte) in rest.iter().enumerate() {
        match byte {
            b'0'..=b'9' if length < MAX_DIGITS => number = number * 10 + u64::from(byte - b'0'),
            b'.' if length > 0 => {
                *rest = &rest[length + 1..];
                return Some(number);
            }
            _ => return None,
        }
    }
    None
}

/// Reads a reply subject to nowhere.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn read_ack_subject(reply: &str) {
    let _ = parse(reply);
}

/// Where a delivery is settled.
#[derive(Clone, Debug)]
pub(crate) struct AckSubject(pub(super) async_nats::Subject);

impl AckSubject {
    /// Where the last delivery of a message is settled that did not come in here.
    pub(crate) fn of(stream: &str, consumer: &str, sequence: u64) -> Self {
        // The broker goes by the sequence; how often and when it handed the message out it knows.
        Self(format!("$JS.ACK.{stream}.{consumer}.1.{sequence}.0.0.0").into())
    }
}

const ACK: Bytes = Bytes::from_static(b"+ACK");
const IN_PROGRESS: Bytes = Bytes::from_static(b"+WPI");

impl AckSubject {
    /// The subject on which deliveries of a lane are settled, of a delivery that there never was: by it
    /// is asked whether they can be.
    pub(crate) fn of_nothing(stream: &str, consumer: &str) -> Self {
        // Streams begin far above this sequence.
        Self(format!("$JS.ACK.{stream}.{consumer}.1.1.1.1.0").into())
    }

    /// The same for a delivery that there never was, where nothing that is said has an effect.
    pub(crate) fn to_nothing(&self) -> Self {
        let mut tokens = self.0.split('.');
        let is_v1 = tokens.clone().count() == TOKENS_V1;
        let up_to_consumer = if is_v1 { 4 } else { 6 };
        let consumer: Vec<&str> = tokens.by_ref().take(up_to_consumer).collect();
        Self(format!("{}.1.1.1.1.0", consumer.join(".")).into())
    }

    /// Says the word; not confirmed.
    pub(crate) async fn say(&self, conn: &Connection, word: Word) -> Result<()> {
        conn.publish(self.0.clone(), word.body()).await
    }

    /// Says the word and waits until the broker has seen this and all that was sent before it. (The
    /// answer does not say that the delivery was still ours.)
    pub(crate) async fn say_surely(&self, conn: &Connection, word: Word) -> Result<()> {
        conn.request(self.0.clone(), None, word.body()).await.map(drop)
    }

    /// Starts `ack_wait` anew, and waits until the broker has seen it.
    pub(crate) async fn in_progress(&self, conn: &Connection) -> Result<()> {
        conn.request(self.0.clone(), None, IN_PROGRESS).await.map(drop)
    }
}

/// What settles a delivery.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Word {
    /// The job is taken off the queue.
    Ack,
    /// It is given back, to be handed out again after that long.
    Nak(Duration),
}

impl Word {
    fn body(self) -> Bytes {
        match self {
            Self::Ack => ACK,
            Self::Nak(Duration::ZERO) => Bytes::from_static(b"-NAK"),
            Self::Nak(delay) => Bytes::from(format!(r#"-NAK {{"delay": {}}}"#, delay.as_nanos())),
        }
    }
}

/// Says a word of each delivery, in order; not confirmed.
pub(crate) async fn say_each<'a>(
    conn: &Connection,
    words: impl Iterator<Item = (&'a AckSubject, Word)>,
) -> Result<()> {
    conn.publish_each(words.map(|(ack, word)| (&ack.0, word.body()))).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_reply_subject_are_read() {
        let v1 = "$JS.ACK.TIDEMILL_JOBS_default.high.3.1795000000000042.7.1795000000000000000.12";
        let info = parse(v1).expect("v1");
        assert_eq!((info.delivered, info.sequence), (3, 1_795_000_000_000_042));
        assert_eq!(info.handed_out, 7);
        assert_eq!(time::to_text(&info.stored), "2026-11-18T11:06:40.000Z");
        let v2 = v1.replace("$JS.ACK.", "$JS.ACK.hub.AbCdEf.");
        assert_eq!(parse(&v2), Some(info.clone()));
        assert_eq!(parse(&format!("{v2}.extra")), Some(info));
        let bad = [
            "",
            "$JS.ACK",
            "$JS.ACK.a.b.c.d.e.f.g",
            "$JS.ACK.a.b.1.2.3x.4.5",
            "$JS.ACK.a.b.1..3.4.5",
            "$JS.ACK.a.b.1.18446744073709551616.3.4.5",
            "$JS.ACK.a.b.1.2.3.9223372036854775808.5",
            "_INBOX.x",
        ];
        for bad in bad {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn of_nothing_is_on_the_same_lane() {
        let v1 = AckSubject::of("TIDEMILL_JOBS_default", "high", 1_795_000_000_000_042);
        let nothing = AckSubject::of_nothing("TIDEMILL_JOBS_default", "high");
        assert_eq!(v1.to_nothing().0, nothing.0);
        let v2 = AckSubject("$JS.ACK.hub.AbCdEf.JOBS.high.3.42.7.1795.12.more".into());
        assert_eq!(&*v2.to_nothing().0, "$JS.ACK.hub.AbCdEf.JOBS.high.1.1.1.1.0");
    }

    #[test]
    fn a_nak_carries_its_delay_in_nanoseconds() {
        assert_eq!(Word::Nak(Duration::ZERO).body(), "-NAK");
        let later = Word::Nak(Duration::from_millis(1500));
        assert_eq!(later.body(), r#"-NAK {"delay": 1500000000}"#);
    }
}
