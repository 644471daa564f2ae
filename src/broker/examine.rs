//! Looking at streams, consumers and the account as a whole, for who judges them.

use std::time::Duration;

use chrono::Utc;
use serde::Deserialize;
use serde_json::Value;

use super::api::{self, ApiError};
use super::connection::Connection;
use crate::error::Result;
use crate::wire::time::{self, Time};

/// A stream as it is.
#[derive(Clone, Debug)]
pub(crate) struct StreamFacts {
    pub(crate) config: Value,
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    /// `None` where the server is in no cluster.
    pub(crate) group: Option<Group>,
    /// How far this machine's clock is before the broker's, in milliseconds: at least, for the broker
    /// may have stamped its answer at any moment until it came in.
    pub(crate) clock_ahead_ms: Option<i64>,
}

/// A consumer as it is.
#[derive(Clone, Debug)]
pub(crate) struct ConsumerFacts {
    pub(crate) config: Value,
    /// Messages that nobody has been given yet.
    pub(crate) waiting: u64,
    /// Messages that somebody was given and that are not settled.
    pub(crate) unsettled: u64,
    /// Up to this sequence of the stream everything is settled, or was given up.
    pub(crate) settled_up_to: u64,
    /// How many it has handed out in all.
    pub(crate) handed_out: u64,
    pub(crate) paused_until: Option<Time>,
}

impl ConsumerFacts {
    /// How long a delivery may go without a word.
    pub(crate) fn ack_wait(&self) -> Duration {
        Duration::from_nanos(self.config["ack_wait"].as_u64().unwrap_or_default())
    }
}

/// The servers that hold a stream.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub(crate) struct Group {
    pub(crate) name: Option<String>,
    pub(crate) leader: Option<String>,
    pub(crate) replicas: Vec<Replica>,
}

/// One that follows the leader.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub(crate) struct Replica {
    pub(crate) name: String,
    pub(crate) current: bool,
    pub(crate) offline: bool,
}

/// What the account has of JetStream, and how much of it is used. A limit below 0 is none.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct AccountFacts {
    pub(crate) storage: u64,
    pub(crate) reserved_storage: u64,
    pub(crate) streams: u64,
    pub(crate) consumers: u64,
    pub(crate) limits: AccountLimits,
    pub(crate) api: ApiFacts,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default)]
pub(crate) struct AccountLimits {
    pub(crate) max_storage: i64,
    pub(crate) max_streams: i64,
    pub(crate) max_consumers: i64,
}

impl Default for AccountLimits {
    fn default() -> Self {
        Self { max_storage: -1, max_streams: -1, max_consumers: -1 }
    }
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ApiFacts {
    pub(crate) level: u64,
}

/// How far a clock that showed `asked` and `answered` is before another that showed `between` in between,
/// in milliseconds, at least.
fn ahead_ms(asked: Time, between: Time, answered: Time) -> i64 {
    (between.clamp(asked, answered) - between).num_milliseconds()
}

fn unless_gone<T>(answer: Result<T, ApiError>, attempted: &str) -> Result<Option<T>> {
    match answer {
        Ok(info) => Ok(Some(info)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into_error(attempted)),
    }
}

impl Connection {
    pub(crate) async fn account_facts(&self) -> Result<AccountFacts> {
        // It tells well what is the matter where there is no JetStream.
        api::account_info(self).await?;
        let answer = api::call::<AccountFacts>(self, "INFO", None).await?;
        answer.map_err(|error| error.into_error("look at the account"))
    }

    /// A stream as it is; `None` where there is none.
    pub(crate) async fn stream_facts(&self, stream: &str) -> Result<Option<StreamFacts>> {
        #[derive(Deserialize)]
        struct Info {
            config: Value,
            state: State,
            cluster: Option<Group>,
            #[serde(default, with = "crate::wire::time::rfc3339_option")]
            ts: Option<Time>,
        }
        #[derive(Deserialize)]
        struct State {
            messages: u64,
            bytes: u64,
        }
        let asked = Utc::now();
        let answer = api::call::<Info>(self, &format!("STREAM.INFO.{stream}"), None).await?;
        let answered = Utc::now();
        let info = unless_gone(answer, &format!("look at stream {stream}"))?;
        Ok(info.map(|Info { config, state, cluster, ts }| StreamFacts {
            config,
            messages: state.messages,
            bytes: state.bytes,
            group: cluster.filter(|group| group.name.is_some()),
            clock_ahead_ms: ts.map(|ts| ahead_ms(asked, ts, answered)),
        }))
    }

    /// A consumer as it is; `None` where there is none, or no stream.
    pub(crate) async fn consumer_facts(
        &self,
        stream: &str,
        consumer: &str,
    ) -> Result<Option<ConsumerFacts>> {
        #[derive(Deserialize)]
        struct Info {
            config: Value,
            num_pending: u64,
            num_ack_pending: u64,
            delivered: Sequences,
            ack_floor: Sequences,
            #[serde(default)]
            paused: bool,
        }
        #[derive(Deserialize)]
        struct Sequences {
            consumer_seq: u64,
            stream_seq: u64,
        }
        let verb = format!("CONSUMER.INFO.{stream}.{consumer}");
        let answer = api::call::<Info>(self, &verb, None).await?;
        let info = unless_gone(answer, &format!("look at consumer {stream}/{consumer}"))?;
        Ok(info.map(|info| ConsumerFacts {
            waiting: info.num_pending,
            unsettled: info.num_ack_pending,
            settled_up_to: info.ack_floor.stream_seq,
            handed_out: info.delivered.consumer_seq,
            paused_until: info.config["pause_until"]
                .as_str()
                .and_then(time::parse)
                .filter(|_| info.paused),
            config: info.config,
        }))
    }

    /// Whether these credentials may pull from a consumer, by a request that is no request.
    pub(crate) async fn try_pull(&self, stream: &str, consumer: &str) -> Result<()> {
        let subject = self.api_subject(&format!("CONSUMER.MSG.NEXT.{stream}.{consumer}"));
        self.request(subject, None, bytes::Bytes::from_static(b"{")).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_differ_by_what_no_delay_explains_as_a_table() {
        let at = |seconds: i64| time::from_nanos(seconds * 1_000_000_000);
        for (asked, between, answered, ahead) in
            [(10, 10, 20, 0), (10, 20, 20, 0), (10, 7, 20, 3_000), (10, 24, 20, -4_000)]
        {
            assert_eq!(ahead_ms(at(asked), at(between), at(answered)), ahead, "{between}");
        }
    }
}
