//! Making a queue's consumers what tidemill relies on, where somebody or an earlier version made them
//! otherwise. What is its user's to choose stays.

use serde_json::{Value, json};

use super::api;
use super::connection::Connection;
use super::provision::{config_of_consumer, config_of_stream};
use crate::error::{Error, ErrorKind, Result};
use crate::token::{Namespace, Queue};
use crate::topology::{ConsumerSpec, QueueConfig, ServerTraits, StreamSpec, drift, streams};

/// A consumer that is not as it has to be.
#[derive(Clone, Debug)]
pub(crate) struct Mend {
    pub(crate) stream: String,
    pub(crate) consumer: &'static str,
    filter: String,
    /// As it has to be.
    config: Value,
    pub(crate) by: Mending,
}

/// What it takes to mend a consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mending {
    /// The broker changes it as it is.
    Changed,
    /// It has to be made anew: what is wrong is fixed at its birth. All that it has handed out and that is
    /// not settled is handed out again.
    MadeAnew,
}

/// Options that the broker changes of no consumer (`checkNewConsumerConfig` of nats-server 2.15).
const FIXED_AT_BIRTH: [&str; 5] =
    ["ack_policy", "deliver_policy", "max_waiting", "mem_storage", "replay_policy"];

/// Options that we never set, and that keep jobs from workers or bend their delays.
const NEVER_SET: [&str; 7] = [
    "backoff",
    "filter_subjects",
    "inactive_threshold",
    "max_batch",
    "max_expires",
    "max_bytes",
    "headers_only",
];

/// The consumers of a queue that are not as they have to be; nothing is changed.
///
/// # Errors
/// `is_not_found` where one is missing.
pub(crate) async fn to_mend(
    conn: &Connection,
    ns: &Namespace,
    queue: &Queue,
    config: &QueueConfig,
) -> Result<Vec<Mend>> {
    let server =
        ServerTraits { api_level: conn.api_level().await?, max_payload: conn.max_payload() };
    let mut found = Vec::new();
    for StreamSpec { name, consumers, config, .. } in streams(ns, queue, config, server, 1) {
        if consumers.is_empty() {
            continue;
        }
        let beside = config_of_stream(conn, &name).await?.unwrap_or(config);
        for spec in consumers {
            let spec = spec.beside(&beside);
            let Some(config) = config_of_consumer(conn, &name, spec.name).await? else {
                let place = format!("{name}/{}", spec.name);
                let message =
                    format!("consumer {place} is gone: `tidemill setup {queue}` makes it");
                return Err(Error::new(ErrorKind::NoConsumer, message).at(place));
            };
            found.extend(mend(&name, spec, &config));
        }
    }
    Ok(found)
}

/// What has to be mended of a consumer that is configured so, if anything has.
fn mend(stream: &str, spec: ConsumerSpec, found: &Value) -> Option<Mend> {
    let mut mended = found.clone();
    let options = mended.as_object_mut()?;
    let mut by = Mending::Changed;
    for drift in drift(&format!("{stream}/{}", spec.name), &spec.config, found) {
        if drift.is_choice() {
            continue;
        }
        if FIXED_AT_BIRTH.contains(&drift.option.as_str()) {
            by = Mending::MadeAnew;
        }
        options.insert(drift.option.clone(), spec.config[&drift.option].clone());
    }
    for option in NEVER_SET {
        options.remove(option);
    }
    let ConsumerSpec { name: consumer, filter, .. } = spec;
    let stream = stream.to_owned();
    (mended != *found).then_some(Mend { stream, consumer, filter, config: mended, by })
}

impl Mend {
    /// The consumer, with its stream and a `/` before.
    pub(crate) fn place(&self) -> String {
        format!("{}/{}", self.stream, self.consumer)
    }

    /// Makes the consumer what it has to be. One that is made anew is not paused, whatever it was.
    pub(crate) async fn carry_out(&self, conn: &Connection) -> Result<()> {
        match self.by {
            Mending::Changed => self.store(conn, "update", self.config.clone()).await,
            Mending::MadeAnew => {
                let place = self.place();
                let verb = format!("CONSUMER.DELETE.{}.{}", self.stream, self.consumer);
                match api::call::<Value>(conn, &verb, None).await? {
                    Ok(_) => {}
                    // Somebody else is at it too, or this was broken off between the two steps.
                    Err(error) if error.is_not_found() => {}
                    Err(error) => return Err(error.into_error(&format!("delete consumer {place}"))),
                }
                let mut config = self.config.clone();
                if let Some(options) = config.as_object_mut() {
                    options.remove("pause_until");
                }
                // Whoever makes it meanwhile, as workers may, makes it the same.
                self.store(conn, "", config).await
            }
        }
    }

    async fn store(&self, conn: &Connection, action: &str, config: Value) -> Result<()> {
        let Self { stream, consumer, filter, .. } = self;
        let verb = format!("CONSUMER.CREATE.{stream}.{consumer}.{filter}");
        let request = json!({ "stream_name": stream, "config": config, "action": action });
        match api::call::<Value>(conn, &verb, Some(&request)).await? {
            Ok(_) => Ok(()),
            Err(error) => Err(error.into_error(&format!("mend consumer {}", self.place()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mended_and_how_as_a_table() {
        let wanted = json!({
            "filter_subject": "a.>", "ack_wait": 30, "max_deliver": -1, "mem_storage": true,
        });
        for (what, option, value, expected) in [
            ("nothing", "max_deliver", json!(-1), None),
            ("a choice", "ack_wait", json!(5), None),
            ("a limit", "max_deliver", json!(3), Some(Mending::Changed)),
            ("what is never set", "backoff", json!([1]), Some(Mending::Changed)),
            ("what is fixed at birth", "mem_storage", json!(false), Some(Mending::MadeAnew)),
        ] {
            let mut found = wanted.clone();
            found[option] = value;
            let (name, filter) = ("low", "a.>".to_owned());
            let spec = ConsumerSpec { name, filter, config: wanted.clone() };
            let mend = mend("J", spec, &found);
            assert_eq!(mend.as_ref().map(|mend| mend.by), expected, "{what}");
            if let Some(mend) = mend {
                assert_eq!(mend.config, wanted, "{what}");
                assert_eq!(mend.place(), "J/low");
            }
        }
    }
}
