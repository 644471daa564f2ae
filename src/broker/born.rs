//! What a worker has to know of a consumer before it takes the consumer's word.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use super::api::{self, code};
use super::clock::Clock;
use super::connection::Connection;
use crate::error::Result;
use crate::wire::time::{Time, rfc3339, rfc3339_option};

/// A consumer as a worker has to know it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Born {
    /// When the consumer was made: it knows nothing of what was handed out before.
    pub(crate) created: Time,
    /// How long a delivery may go without a word.
    pub(crate) ack_wait: Duration,
    pub(crate) memory: Memory,
}

/// Where a consumer keeps what it has handed out and what of that is settled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Memory {
    /// On the disk of its one server, or in memory for as long as its stream is.
    Lasting,
    /// On the disks of several servers, where that of a server which was away may say that more is
    /// settled than is; see [`crate::guide::what_can_be_lost`].
    Untrue,
    /// In the memory of several servers: it begins anew where too many of them restart at once.
    Passing(Passing),
}

/// How a memory stands that may begin anew.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Passing {
    /// How many messages the consumer remembers to have handed out.
    pub(crate) handed_out: u64,
    /// Messages that it has not handed out, as far as it remembers.
    pub(crate) waiting: u64,
    /// Since when the server leads that tells this; where it does not say, the moment at which it told.
    pub(crate) leader_since: Time,
}

#[derive(Deserialize)]
struct Info {
    config: Value,
    #[serde(with = "rfc3339")]
    created: Time,
    delivered: Delivered,
    num_pending: u64,
    #[serde(default)]
    cluster: Group,
    #[serde(default, with = "rfc3339_option")]
    ts: Option<Time>,
}

#[derive(Deserialize)]
struct Delivered {
    consumer_seq: u64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Group {
    #[serde(with = "rfc3339_option")]
    leader_since: Option<Time>,
    replicas: Vec<Value>,
}

impl Info {
    fn memory(&self, now: Time) -> Memory {
        // One that is made by hand may leave it to its stream how many replicas it has.
        let is_replicated = self.config["num_replicas"].as_u64().unwrap_or_default() > 1
            || !self.cluster.replicas.is_empty();
        match (is_replicated, self.config["mem_storage"] == true) {
            (false, _) => Memory::Lasting,
            (true, false) => Memory::Untrue,
            (true, true) => Memory::Passing(Passing {
                handed_out: self.delivered.consumer_seq,
                waiting: self.num_pending,
                leader_since: self.cluster.leader_since.unwrap_or(now),
            }),
        }
    }
}

/// Looks up when a consumer was made, how long it waits and what it remembers; reads the clock by the way.
///
/// # Errors
/// `is_not_found` where the consumer is gone, or its stream.
pub(crate) async fn consumer_born(
    conn: &Connection,
    stream: &str,
    consumer: &str,
    clock: &Clock,
) -> Result<Born> {
    let (asked, place) = (Instant::now(), format!("{stream}/{consumer}"));
    let verb = format!("CONSUMER.INFO.{stream}.{consumer}");
    let info = match api::call::<Info>(conn, &verb, None).await? {
        Ok(info) => info,
        Err(error) => {
            let place = match error.err_code {
                code::STREAM_NOT_FOUND => stream,
                _ => &place,
            };
            return Err(error.into_error(&format!("look at consumer {place}")).at(place));
        }
    };
    if let Some(now) = info.ts {
        clock.read(now, asked);
    }
    let memory = info.memory(info.ts.unwrap_or_else(|| clock.latest()));
    let ack_wait = info.config.get("ack_wait").and_then(Value::as_u64).unwrap_or_default();
    Ok(Born { created: info.created, ack_wait: Duration::from_nanos(ack_wait), memory })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::wire::time;

    #[test]
    fn where_a_consumer_keeps_what_it_knows_as_a_table() {
        let now = time::parse("2026-12-01T10:00:00Z").expect("a time");
        let since = "2026-12-01T09:00:00Z";
        let passing =
            |leader_since| Memory::Passing(Passing { handed_out: 7, waiting: 3, leader_since });
        let parsed = time::parse(since).expect("a time");
        for (config, cluster, expected) in [
            (json!({}), json!({}), Memory::Lasting),
            (json!({ "num_replicas": 1, "mem_storage": true }), json!({}), Memory::Lasting),
            (json!({ "num_replicas": 3 }), json!({ "leader_since": since }), Memory::Untrue),
            (json!({ "num_replicas": 0 }), json!({ "replicas": [{}, {}] }), Memory::Untrue),
            (
                json!({ "num_replicas": 3, "mem_storage": true }),
                json!({ "leader_since": since }),
                passing(parsed),
            ),
            (json!({ "num_replicas": 3, "mem_storage": true }), json!({}), passing(now)),
        ] {
            let info: Info = serde_json::from_value(json!({
                "config": config, "created": since, "cluster": cluster, "num_pending": 3,
                "delivered": { "consumer_seq": 7, "stream_seq": 9 },
            }))
            .expect("reads");
            assert_eq!(info.memory(now), expected, "{config} {cluster}");
        }
    }
}
