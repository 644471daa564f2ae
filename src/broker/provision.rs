//! Making a queue's streams and consumers where they are missing, and saying where they differ.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::api::{self, ApiError, code};
use super::clock::Clock;
use super::connection::Connection;
use crate::error::{Error, ErrorKind, Result};
use crate::token::{Namespace, Queue};
use crate::topology::{
    ConsumerSpec, Drift, QueueConfig, ServerTraits, StreamNames, StreamSpec, drift, streams,
};
use crate::wire::time::Time;

/// What making a queue did and found.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Provisioned {
    /// Streams and consumers that were made.
    pub created: Vec<String>,
    /// Options that are not as wanted; they were left alone.
    pub drift: Vec<Drift>,
}

#[derive(Deserialize)]
struct Info {
    config: Value,
    #[serde(default, with = "crate::wire::time::rfc3339_option")]
    ts: Option<Time>,
}

/// What becomes of what is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// It is made.
    Make,
    /// Consumers are made; of a stream it is only told.
    MakeConsumers,
    /// It is only told.
    Tell,
}

/// Makes what is missing of a queue. Repeating it, or doing it from many places at once, is
/// harmless. What is there is compared and never changed.
pub(crate) async fn ensure(
    conn: &Connection,
    ns: &Namespace,
    queue: &Queue,
    config: &QueueConfig,
    clock: &Clock,
    missing: Missing,
) -> Result<Provisioned> {
    config.check()?;
    let server =
        ServerTraits { api_level: conn.api_level().await?, max_payload: conn.max_payload() };
    // A stream that is made anew continues above every sequence it may ever have had: an ack or an
    // id from before must not meet a new job.
    let first_sequence = u64::try_from(clock.now().timestamp_micros()).unwrap_or(1);
    let mut report = Provisioned::default();
    for stream in streams(ns, queue, config, server, first_sequence) {
        let found = ensure_stream(conn, &stream, clock, missing, &mut report).await?;
        if found.is_none() && missing == Missing::MakeConsumers {
            return Err(Error::new(ErrorKind::NoStream, format!("stream {} is gone", stream.name))
                .at(stream.name));
        }
        let beside = found.as_ref().unwrap_or(&stream.config);
        for consumer in stream.consumers {
            let consumer = consumer.beside(beside);
            ensure_consumer(conn, &stream.name, &consumer, missing, &mut report).await?;
        }
    }
    Ok(report)
}

/// How the stream that is there, or was made, is configured; `None` where it is missing.
async fn ensure_stream(
    conn: &Connection,
    spec: &StreamSpec,
    clock: &Clock,
    missing: Missing,
    report: &mut Provisioned,
) -> Result<Option<Value>> {
    let asked = Instant::now();
    let found = match stream_info(conn, &spec.name).await? {
        Some(info) => info,
        None if missing != Missing::Make => {
            report.created.push(spec.name.clone());
            return Ok(None);
        }
        None => {
            let verb = format!("STREAM.CREATE.{}", spec.name);
            match api::call::<Info>(conn, &verb, Some(&spec.config)).await? {
                Ok(info) => {
                    report.created.push(spec.name.clone());
                    info
                }
                // Somebody else was faster, with another first sequence.
                Err(error) if error.err_code == code::STREAM_NAME_IN_USE => {
                    stream_info(conn, &spec.name)
                        .await?
                        .ok_or_else(|| error.into_error(&format!("create stream {}", spec.name)))?
                }
                Err(error) => return Err(cannot_create("stream", &spec.name, error)),
            }
        }
    };
    if let Some(now) = found.ts {
        clock.read(now, asked);
    }
    report.drift.extend(drift(&spec.name, &spec.config, &found.config));
    Ok(Some(found.config))
}

impl Connection {
    /// Makes a stream where it is missing; one that is there is left as it is.
    #[cfg(feature = "agent")]
    pub(crate) async fn make_stream(&self, stream: &str, config: &Value) -> Result<()> {
        if stream_info(self, stream).await?.is_some() {
            return Ok(());
        }
        let verb = format!("STREAM.CREATE.{stream}");
        match api::call::<Value>(self, &verb, Some(config)).await? {
            Ok(_) => Ok(()),
            // Somebody else has just made it.
            Err(error) if error.err_code == code::STREAM_NAME_IN_USE => Ok(()),
            Err(error) => Err(cannot_create("stream", stream, error)),
        }
    }
}

async fn ensure_consumer(
    conn: &Connection,
    stream: &str,
    spec: &ConsumerSpec,
    missing: Missing,
    report: &mut Provisioned,
) -> Result<()> {
    let place = format!("{stream}/{}", spec.name);
    let found = match consumer_info(conn, stream, spec.name).await? {
        Some(info) => info,
        None if missing == Missing::Tell => {
            report.created.push(place);
            return Ok(());
        }
        None => {
            let verb = format!("CONSUMER.CREATE.{stream}.{}.{}", spec.name, spec.filter);
            let request =
                json!({ "stream_name": stream, "config": spec.config, "action": "create" });
            match api::call::<Info>(conn, &verb, Some(&request)).await? {
                Ok(info) => {
                    report.created.push(place.clone());
                    info
                }
                Err(error) if error.err_code == code::CONSUMER_EXISTS => {
                    consumer_info(conn, stream, spec.name)
                        .await?
                        .ok_or_else(|| error.into_error(&format!("create consumer {place}")))?
                }
                Err(error) => return Err(cannot_create("consumer", &place, error)),
            }
        }
    };
    report.drift.extend(drift(&place, &spec.config, &found.config));
    Ok(())
}

fn cannot_create(what: &str, name: &str, error: ApiError) -> Error {
    let lacks_room = matches!(error.err_code, code::STORAGE_RESOURCES | code::MEMORY_RESOURCES);
    let error = error.into_error(&format!("create {what} {name}"));
    if !lacks_room {
        return error;
    }
    let message = format!("{error}: lower the queue's size limits or raise the account's");
    Error::new(error.kind(), message)
}

async fn stream_info(conn: &Connection, stream: &str) -> Result<Option<Info>> {
    let verb = format!("STREAM.INFO.{stream}");
    found(api::call(conn, &verb, None).await?, &format!("look at stream {stream}"))
}

async fn consumer_info(conn: &Connection, stream: &str, consumer: &str) -> Result<Option<Info>> {
    let verb = format!("CONSUMER.INFO.{stream}.{consumer}");
    found(api::call(conn, &verb, None).await?, &format!("look at consumer {stream}/{consumer}"))
}

/// How a stream is configured; `None` where there is none.
pub(super) async fn config_of_stream(conn: &Connection, stream: &str) -> Result<Option<Value>> {
    Ok(stream_info(conn, stream).await?.map(|info| info.config))
}

/// How a consumer is configured; `None` where there is none.
pub(super) async fn config_of_consumer(
    conn: &Connection,
    stream: &str,
    consumer: &str,
) -> Result<Option<Value>> {
    Ok(consumer_info(conn, stream, consumer).await?.map(|info| info.config))
}

fn found<T>(answer: Result<T, ApiError>, attempted: &str) -> Result<Option<T>> {
    match answer {
        Ok(info) => Ok(Some(info)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into_error(attempted)),
    }
}

/// How long a stream keeps messages; `None` for ever.
pub(crate) async fn kept_for(conn: &Connection, stream: &str) -> Result<Option<Duration>> {
    let info = stream_info(conn, stream).await?;
    let nanos = info.and_then(|info| info.config.get("max_age")?.as_u64());
    Ok(nanos.filter(|nanos| *nanos > 0).map(Duration::from_nanos))
}

/// The queues of a namespace, by its jobs streams.
pub(crate) async fn queue_names(conn: &Connection, ns: &Namespace) -> Result<Vec<Queue>> {
    #[derive(Deserialize)]
    struct Names {
        total: usize,
        streams: Option<Vec<String>>,
    }
    let mut queues = Vec::new();
    let mut seen = 0;
    loop {
        let request = json!({ "subject": format!("{ns}.jobs.>"), "offset": seen });
        let names = match api::call::<Names>(conn, "STREAM.NAMES", Some(&request)).await? {
            Ok(names) => names,
            Err(error) => return Err(error.into_error("list streams")),
        };
        let page = names.streams.unwrap_or_default();
        seen += page.len();
        queues.extend(page.iter().filter_map(|name| StreamNames::queue_of_jobs_stream(ns, name)));
        if page.is_empty() || seen >= names.total {
            queues.sort();
            return Ok(queues);
        }
    }
}
