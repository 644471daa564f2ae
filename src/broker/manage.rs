//! Looking at streams and consumers in figures, and managing them.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::api::{self, ApiError, code};
use super::clock::Clock;
use super::connection::Connection;
use crate::error::{Error, ErrorKind, Result};
use crate::wire::time::Time;

/// A consumer in figures.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConsumerState {
    /// Messages that nobody has been given yet.
    pub(crate) waiting: u64,
    /// Messages that somebody was given and that are not settled.
    pub(crate) unsettled: u64,
    pub(crate) paused_until: Option<Time>,
    /// The sequence up to which messages were handed out.
    pub(crate) handed_out: u64,
}

/// How a consumer stands, by its leader's word; sets the clock by the way.
pub(crate) async fn consumer_state(
    conn: &Connection,
    clock: &Clock,
    stream: &str,
    consumer: &str,
) -> Result<ConsumerState> {
    #[derive(Deserialize)]
    struct Info {
        num_pending: u64,
        num_ack_pending: u64,
        #[serde(default)]
        paused: bool,
        config: Config,
        delivered: Delivered,
        #[serde(default, with = "crate::wire::time::rfc3339_option")]
        ts: Option<Time>,
    }
    #[derive(Deserialize)]
    struct Delivered {
        stream_seq: u64,
    }
    #[derive(Deserialize)]
    struct Config {
        #[serde(default, with = "crate::wire::time::rfc3339_option")]
        pause_until: Option<Time>,
    }
    let verb = format!("CONSUMER.INFO.{stream}.{consumer}");
    let asked = Instant::now();
    match api::call::<Info>(conn, &verb, None).await? {
        Ok(info) => {
            if let Some(now) = info.ts {
                clock.read(now, asked);
            }
            Ok(ConsumerState {
                waiting: info.num_pending,
                unsettled: info.num_ack_pending,
                paused_until: info.config.pause_until.filter(|_| info.paused),
                handed_out: info.delivered.stream_seq,
            })
        }
        Err(error) => Err(not_set_up(stream, error)),
    }
}

/// A stream in figures, all of one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StreamState {
    pub(crate) last_sequence: u64,
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    /// Messages on the subjects that were asked for.
    pub(crate) matching: u64,
}

impl StreamState {
    /// Whether nothing has come or gone between this look and another.
    pub(crate) fn is_as(&self, other: &Self) -> bool {
        (self.last_sequence, self.messages) == (other.last_sequence, other.messages)
    }
}

#[derive(Deserialize)]
struct StreamInfo {
    state: State,
    #[serde(default)]
    config: Limits,
    #[serde(default, with = "crate::wire::time::rfc3339_option")]
    ts: Option<Time>,
}

/// What limits a stream; nothing does where it is 0 or less.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Limits {
    max_msgs: i64,
    max_bytes: i64,
}

#[derive(Deserialize)]
struct State {
    last_seq: u64,
    messages: u64,
    bytes: u64,
    #[serde(default)]
    subjects: Option<HashMap<String, u64>>,
}

impl Connection {
    /// The level of the server's JetStream API, which grows with what it can do.
    ///
    /// # Errors
    /// `Unsupported` where JetStream is off.
    pub(crate) async fn api_level(&self) -> Result<u64> {
        Ok(api::account_info(self).await?.api.level)
    }

    /// The sequence of a stream's last message.
    pub(crate) async fn last_sequence(&self, stream: &str) -> Result<u64> {
        Ok(self.stream_state(stream, None).await?.last_sequence)
    }

    /// How a stream stands, by its leader's word, and how much of it is on the subjects that `filter`
    /// covers; for a few subjects, since the broker names each.
    pub(crate) async fn stream_state(
        &self,
        stream: &str,
        filter: Option<&str>,
    ) -> Result<StreamState> {
        let State { last_seq, messages, bytes, subjects } =
            self.stream_info(stream, filter).await?.state;
        let matching = subjects.unwrap_or_default().values().sum();
        Ok(StreamState { last_sequence: last_seq, messages, bytes, matching })
    }

    /// Whether a stream that refuses when it is full would take one more message.
    pub(crate) async fn has_room(&self, stream: &str) -> Result<bool> {
        let StreamInfo { state, config, .. } = self.stream_info(stream, None).await?;
        let below = |used, limit: i64| u64::try_from(limit).is_ok_and(|limit| used < limit);
        let Limits { max_msgs, max_bytes } = config;
        let is_unlimited = |limit| limit <= 0;
        Ok((is_unlimited(max_msgs) || below(state.messages, max_msgs))
            && (is_unlimited(max_bytes) || below(state.bytes, max_bytes)))
    }

    /// Why a message was not stored that was meant for a stream. Where nothing takes its subject, the
    /// stream may be gone.
    pub(crate) async fn why_not_stored(&self, stream: &str, error: Error) -> Error {
        if error.kind() != ErrorKind::NoResponders {
            return error;
        }
        match self.last_sequence(stream).await {
            Err(gone) if gone.kind() == ErrorKind::NoStream => gone,
            Ok(_) | Err(_) => error,
        }
    }

    /// Reads the broker's clock off what it says of a stream.
    pub(crate) async fn read_clock(&self, clock: &Clock, stream: &str) -> Result<()> {
        let asked = Instant::now();
        if let Some(now) = self.stream_info(stream, None).await?.ts {
            clock.read(now, asked);
        }
        Ok(())
    }

    async fn stream_info(&self, stream: &str, filter: Option<&str>) -> Result<StreamInfo> {
        let request = filter.map(|filter| json!({ "subjects_filter": filter }));
        let verb = format!("STREAM.INFO.{stream}");
        match api::call::<StreamInfo>(self, &verb, request.as_ref()).await? {
            Ok(info) => Ok(info),
            Err(error) => Err(not_set_up(stream, error)),
        }
    }

    /// Deletes all messages of the subjects that `filter` covers; how many there were.
    pub(crate) async fn purge(&self, stream: &str, filter: &str) -> Result<u64> {
        #[derive(Deserialize)]
        struct Purged {
            purged: u64,
        }
        let (verb, request) = (format!("STREAM.PURGE.{stream}"), json!({ "filter": filter }));
        match api::call::<Purged>(self, &verb, Some(&request)).await? {
            Ok(done) => Ok(done.purged),
            Err(error) if error.is_not_found() => Err(not_set_up(stream, error)),
            Err(error) => Err(error.into_error(&format!("purge stream {stream}"))),
        }
    }

    /// A call of the JetStream API of which only success matters.
    pub(crate) async fn command(&self, verb: &str, request: &Value, attempted: &str) -> Result<()> {
        match api::call::<Value>(self, verb, Some(request)).await? {
            Ok(_) => Ok(()),
            Err(error) => Err(error.into_error(attempted)),
        }
    }
}

pub(super) fn not_set_up(stream: &str, error: ApiError) -> Error {
    if error.is_not_found() {
        let message = format!("there is no stream {stream}: the queue has not been set up");
        let kind = match error.err_code {
            code::CONSUMER_NOT_FOUND => ErrorKind::NoConsumer,
            _ => ErrorKind::NoStream,
        };
        return Error::new(kind, message).at(stream);
    }
    error.into_error(&format!("look at stream {stream}")).at(stream)
}
