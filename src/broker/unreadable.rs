//! Messages that the client library cannot read. Where a header block is not as it should be, it breaks
//! the connection off, and over a stray carriage return its task panics; any client may have published
//! such a message. Over the broker's API, which has them in base64, they can be looked at without harm.

use std::str::from_utf8;

use serde::Deserialize;
use serde_json::json;

use super::api;
use super::connection::Connection;
use super::manage::not_set_up;
use super::read::Stored;
use crate::error::Result;

/// How a header block begins.
const VERSION: &str = "NATS/1.0";

/// A message and what keeps it from being read.
#[derive(Debug)]
pub(crate) struct Unreadable {
    /// As far as it can be read.
    pub(crate) message: Stored,
    pub(crate) flaw: &'static str,
}

impl Connection {
    /// The unreadable ones among what a consumer has handed out and nobody has settled; the oldest so
    /// many of those are looked at, and those among the last so many of the stream.
    pub(crate) async fn unreadable(
        &self,
        stream: &str,
        consumer: &str,
        so_many: u64,
    ) -> Result<Vec<Unreadable>> {
        #[derive(Deserialize)]
        struct Info {
            num_ack_pending: u64,
            ack_floor: At,
            delivered: At,
            config: Config,
        }
        #[derive(Deserialize)]
        struct At {
            stream_seq: u64,
        }
        #[derive(Deserialize)]
        struct Config {
            #[serde(default)]
            filter_subject: String,
        }
        let verb = format!("CONSUMER.INFO.{stream}.{consumer}");
        let info = api::call::<Info>(self, &verb, None).await?;
        let info = info.map_err(|error| not_set_up(stream, error))?;
        let mut found = Vec::new();
        if info.num_ack_pending == 0 {
            return Ok(found);
        }
        let (oldest, newest) = (info.ack_floor.stream_seq + 1, info.delivered.stream_seq);
        let mut next = oldest;
        let mut looks = 0;
        while next <= newest {
            let request = json!({ "seq": next, "next_by_subj": info.config.filter_subject });
            let Some(raw) = self.raw_message(stream, &request).await? else { break };
            if raw.seq > newest {
                break;
            }
            next = raw.seq + 1;
            let flaw = raw.header_block().and_then(|block| flaw_of(&block));
            if let Some(flaw) = flaw {
                found.push(Unreadable { message: raw.read(stream)?, flaw });
            }
            looks += 1;
            if looks == so_many {
                next = next.max(newest.saturating_sub(so_many));
            }
        }
        Ok(found)
    }
}

/// What the client library objects to in a header block, if anything.
fn flaw_of(block: &[u8]) -> Option<&'static str> {
    let Ok(text) = from_utf8(block) else { return Some("they are no UTF-8") };
    let mut lines = text.lines().peekable();
    let Some(status) = lines.next().and_then(|line| line.strip_prefix(VERSION)) else {
        return Some("they do not begin with NATS/1.0");
    };
    let status = status.trim();
    let code = status.split_once(' ').map_or(status, |(code, _)| code);
    if !code.is_empty() && !is_status(code) {
        return Some("they begin with a status that is none");
    }
    while let Some(line) = lines.next() {
        if line.is_empty() {
            continue;
        }
        let Some((name, value)) = line.split_once(':') else {
            return Some("a line of them has no colon");
        };
        if !name.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Some("a name among them has characters that no name has");
        }
        let mut value = value.trim_start().to_owned();
        while let Some(more) = lines.next_if(|line| line.starts_with(char::is_whitespace)) {
            value.push_str(more);
        }
        if value.trim_end().contains('\r') {
            return Some("a value among them has a carriage return");
        }
    }
    None
}

/// Three digits, the first of which is not 0.
fn is_status(code: &str) -> bool {
    let mut digits = code.bytes();
    code.len() == 3
        && digits.next().is_some_and(|first| (b'1'..=b'9').contains(&first))
        && digits.all(|digit| digit.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_read_as_a_table() {
        for fine in [
            "NATS/1.0\r\n\r\n",
            "NATS/1.0\r\nA: b\r\nA:\r\n\r\n",
            "NATS/1.0\r\nA: b\r\n  goes on\r\n\r\n",
            "NATS/1.0 404 Not Found\r\n\r\n",
            "NATS/1.0\r\nA: ünïcode\r\n\r\n",
            "NATS/1.0\nA: b\n\n",
        ] {
            assert_eq!(flaw_of(fine.as_bytes()), None, "{fine:?}");
        }
        for (bad, flaw) in [
            (&b"NATS/1.0\r\nA: \xff\r\n\r\n"[..], "UTF-8"),
            (b"", "NATS/1.0"),
            (b"HTTP/1.0\r\n\r\n", "NATS/1.0"),
            (b"NATS/1.0 no status\r\n\r\n", "status"),
            (b"NATS/1.0\r\nno colon\r\n\r\n", "colon"),
            (b"NATS/1.0\r\nA b: c\r\n\r\n", "name"),
            (b"NATS/1.0\r\nA: b\rc\r\n\r\n", "carriage return"),
            (b"NATS/1.0\r\nA: b\nc\r\n\r\n", "colon"),
        ] {
            assert!(flaw_of(bad).is_some_and(|found| found.contains(flaw)), "{bad:?}");
        }
    }
}
