//! Messages that the client library cannot read. Where a header block is not as it should be, it breaks
//! the connection off, and over a stray carriage return its task panics; any client may have published
//! such a message. Over the broker's API, which has them in base64, they can be looked at without harm.

use serde::Deserialize;
use serde_json::json;

use super::api;
use super::connection::Connection;
use super::manage::not_set_up;
use super::read::Stored;
use crate::error::Result;

/// A message and what keeps it from being read.
#[derive(Debug)]
pub(crate) struct Unreadable {
    /// As far as it can be read.
    pub(crate) message: Stored,
    pub(crate) flaw: &'static str,
}

impl Connection {
    /// The unreadable ones among what a consumer has handed out and nobody has settled. So many of those
    /// are looked at, each: the oldest; those behind the last that came in here; the newest; and, so that
    /// none stays hidden among many, some anywhere between.
    pub(crate) async fn unreadable(
        &self,
        stream: &str,
        consumer: &str,
        last_here: u64,
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
        let anywhere = fastrand::u64(oldest..=newest.max(oldest));
        let mut starts = [oldest, last_here + 1, newest.saturating_sub(so_many), anywhere];
        starts.sort_unstable();
        let mut next = oldest;
        for start in starts {
            next = next.max(start);
            for _ in 0..so_many {
                let request = json!({ "seq": next, "next_by_subj": info.config.filter_subject });
                let Some(raw) = self.raw_message(stream, &request).await? else { return Ok(found) };
                if raw.seq > newest {
                    return Ok(found);
                }
                next = raw.seq + 1;
                if let Some(flaw) = raw.flaw() {
                    found.push(Unreadable { message: raw.read(stream)?, flaw });
                }
            }
        }
        Ok(found)
    }
}
