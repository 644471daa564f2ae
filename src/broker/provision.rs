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
use crate::wire::time::{Time, rfc3339};

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
    #[serde(with = "rfc3339")]
    created: Time,
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
        let is_there = ensure_stream(conn, &stream, clock, missing, &mut report).await?;
        if !is_there && missing == Missing::MakeConsumers {
            return Err(Error::new(ErrorKind::NoStream, format!("stream {} is gone", stream.name))
                .at(stream.name));
        }
        for consumer in &stream.consumers {
            ensure_consumer(conn, &stream.name, consumer, missing, &mut report).await?;
        }
    }
    Ok(report)
}

/// Whether the stream is there, or was made.
async fn ensure_stream(
    conn: &Connection,
    spec: &StreamSpec,
    clock: &Clock,
    missing: Missing,
    report: &mut Provisioned,
) -> Result<bool> {
    let asked = Instant::now();
    let found = match stream_info(conn, &spec.name).await? {
        Some(info) => info,
        None if missing != Missing::Make => {
            report.created.push(spec.name.clone());
            return Ok(false);
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
        clock.set(now, asked);
    }
    report.drift.extend(drift(&spec.name, &spec.config, &found.config));
    Ok(true)
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

/// Sets what tidemill relies on of a queue's consumers to what it should be, where it is not; what is its
/// user's to choose stays. The consumers that were changed.
pub(crate) async fn mend_consumers(
    conn: &Connection,
    ns: &Namespace,
    queue: &Queue,
    config: &QueueConfig,
) -> Result<Vec<String>> {
    let server =
        ServerTraits { api_level: conn.api_level().await?, max_payload: conn.max_payload() };
    let mut changed = Vec::new();
    for StreamSpec { name, consumers, .. } in streams(ns, queue, config, server, 1) {
        for spec in &consumers {
            let place = format!("{name}/{}", spec.name);
            let Some(found) = consumer_info(conn, &name, spec.name).await? else {
                let message =
                    format!("consumer {place} is gone: `tidemill setup {queue}` makes it");
                return Err(Error::new(ErrorKind::NoConsumer, message).at(place));
            };
            let mended = mended(&place, spec, &found.config);
            if mended == found.config {
                continue;
            }
            let verb = format!("CONSUMER.CREATE.{name}.{}.{}", spec.name, spec.filter);
            let request = json!({ "stream_name": name, "config": mended, "action": "update" });
            match api::call::<Info>(conn, &verb, Some(&request)).await? {
                Ok(_) => changed.push(place),
                Err(error) => return Err(error.into_error(&format!("mend consumer {place}"))),
            }
        }
    }
    Ok(changed)
}

/// A consumer's configuration as it should be.
fn mended(place: &str, spec: &ConsumerSpec, found: &Value) -> Value {
    // Options that we never set, and that keep jobs from workers or bend their delays.
    const NEVER_SET: [&str; 7] = [
        "backoff",
        "filter_subjects",
        "inactive_threshold",
        "max_batch",
        "max_expires",
        "max_bytes",
        "headers_only",
    ];
    let mut mended = found.clone();
    let Some(options) = mended.as_object_mut() else { return mended };
    for drift in drift(place, &spec.config, found) {
        if !drift.is_choice() {
            options.insert(drift.option.clone(), spec.config[&drift.option].clone());
        }
    }
    for option in NEVER_SET {
        options.remove(option);
    }
    mended
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

fn found<T>(answer: Result<T, ApiError>, attempted: &str) -> Result<Option<T>> {
    match answer {
        Ok(info) => Ok(Some(info)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into_error(attempted)),
    }
}

/// What a worker has to know of a lane's consumer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Born {
    /// When the consumer was made: it knows nothing of what was handed out before.
    pub(crate) created: Time,
    /// How long a delivery may go without a word.
    pub(crate) ack_wait: Duration,
}

/// Looks up when a lane's consumer was made and how long it waits; sets the clock by the way.
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
        clock.set(now, asked);
    }
    let ack_wait = info.config.get("ack_wait").and_then(Value::as_u64).unwrap_or_default();
    Ok(Born { created: info.created, ack_wait: Duration::from_nanos(ack_wait) })
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
