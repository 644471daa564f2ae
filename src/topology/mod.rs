//! The streams and consumers of a queue as they should be, and how what is found differs. Pure.
//!
//! Configurations are JSON as the broker's API speaks it: what is sent, what comes back and what is
//! compared are then one and the same, with every option written out.

mod config;
mod drift;

use std::time::Duration;

use serde_json::{Value, json};

pub(crate) use self::config::fences_long_enough;
pub use self::config::{QueueConfig, Storage};
pub use self::drift::Drift;
pub(crate) use self::drift::drift;
use crate::priority::Priority;
use crate::token::{Namespace, Queue};
use crate::wire::{PROTOCOL_VERSION, RecordKind};

/// What is taken off the server's largest message for a job, in bytes, so that a copy of the job and
/// its dead letter, which carry more headers, fit as well.
pub(crate) const JOB_HEADROOM_BYTES: usize = 64 * 1024;

/// Pull requests that may wait on one lane over all workers. The broker's default of 512 would
/// leave later workers without an answer.
const MAX_WAITING_PULLS: u32 = 8192;

/// The consumer of timers that are due.
pub(crate) const DUE: &str = "due";

/// The API level from which a server takes atomic batches (2.12).
const LEVEL_ATOMIC: u64 = 2;
/// The API level from which a server takes fast-ingest batches (2.14).
pub(crate) const LEVEL_FAST_INGEST: u64 = 4;
/// The API level from which a server knows recurring schedules (2.14).
pub(crate) const LEVEL_CRON: u64 = 4;

/// The names of a queue's streams.
#[derive(Clone, Debug)]
pub(crate) struct StreamNames {
    pub(crate) jobs: String,
    pub(crate) results: String,
    pub(crate) attempts: String,
    pub(crate) dead: String,
    pub(crate) timers: String,
}

impl StreamNames {
    pub(crate) fn new(ns: &Namespace, queue: &Queue) -> Self {
        let ns = ns.as_str().to_ascii_uppercase();
        Self {
            jobs: format!("{ns}_JOBS_{queue}"),
            results: format!("{ns}_RESULTS_{queue}"),
            attempts: format!("{ns}_ATTEMPTS_{queue}"),
            dead: format!("{ns}_DEAD_{queue}"),
            timers: format!("{ns}_TIMERS_{queue}"),
        }
    }

    pub(crate) fn of(&self, record: RecordKind) -> &str {
        match record {
            RecordKind::Result => &self.results,
            RecordKind::Attempt => &self.attempts,
            RecordKind::Dead => &self.dead,
        }
    }

    /// The queue of a jobs stream's name, if it is one of this namespace.
    pub(crate) fn queue_of_jobs_stream(ns: &Namespace, stream: &str) -> Option<Queue> {
        let prefix = format!("{}_JOBS_", ns.as_str().to_ascii_uppercase());
        stream.strip_prefix(&prefix).and_then(|queue| Queue::new(queue).ok())
    }
}

/// What a server can do, as far as it shapes a configuration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ServerTraits {
    /// The JetStream API level.
    pub(crate) api_level: u64,
    /// The largest message, in bytes.
    pub(crate) max_payload: usize,
}

/// A stream as it should be.
pub(crate) struct StreamSpec {
    pub(crate) name: String,
    pub(crate) config: Value,
    pub(crate) consumers: Vec<ConsumerSpec>,
}

/// A consumer as it should be.
pub(crate) struct ConsumerSpec {
    pub(crate) name: &'static str,
    pub(crate) filter: String,
    pub(crate) config: Value,
}

impl ConsumerSpec {
    /// The same beside a stream that is kept otherwise than was wished: a consumer has as many replicas
    /// as its stream, and where it keeps its state follows from that.
    pub(crate) fn beside(self, stream: &Value) -> Self {
        let Some(replicas) = stream["num_replicas"].as_u64() else { return self };
        let config = with(self.config, kept(replicas, stream["storage"] == "memory"));
        Self { config, ..self }
    }
}

/// The streams of a queue, in the order in which they are made: the jobs last, so that a queue that
/// takes jobs is whole.
pub(crate) fn streams(
    ns: &Namespace,
    queue: &Queue,
    config: &QueueConfig,
    server: ServerTraits,
    first_sequence: u64,
) -> Vec<StreamSpec> {
    let names = StreamNames::new(ns, queue);
    let base = |name: &str, subjects: Vec<String>, what: &str| {
        base_config(name, subjects, &format!("tidemill: {what} of queue {queue}"), config)
    };
    let record = |kind: RecordKind| vec![format!("{ns}.{}.{queue}.*.*.*", kind.token())];

    let results = with(
        base(&names.results, record(RecordKind::Result), "completions"),
        json!({
            "retention": "limits", "discard": "old",
            "max_age": nanos(config.results_age),
            "max_msgs": config.max_results, "max_bytes": config.max_results_bytes,
            "max_msg_size": -1,
        }),
    );
    let attempts = with(
        base(&names.attempts, record(RecordKind::Attempt), "attempts"),
        json!({
            "retention": "limits", "discard": "old",
            "max_age": nanos(config.attempts_age),
            "max_msgs": -1, "max_bytes": -1, "max_msgs_per_subject": 50, "max_msg_size": -1,
        }),
    );
    let dead = with(
        base(&names.dead, record(RecordKind::Dead), "dead letters"),
        json!({
            "retention": "limits", "discard": "new", "first_seq": first_sequence,
            "max_age": nanos(config.dead_age),
            "max_msgs": config.max_dead, "max_bytes": config.max_dead_bytes, "max_msg_size": -1,
        }),
    );
    // Limits and ages would drop timers: where there are schedules, a full stream drops the oldest.
    let timers = with(
        base(&names.timers, timer_subjects(ns, queue), "timers"),
        json!({
            "retention": "workqueue", "discard": "old", "first_seq": first_sequence,
            "max_age": 0, "max_msgs": -1, "max_bytes": -1, "max_msg_size": -1,
            "allow_msg_schedules": true, "allow_rollup_hdrs": true,
        }),
    );
    let mut jobs = with(
        base(&names.jobs, lane_subjects(ns, queue), "jobs"),
        json!({
            "retention": "workqueue", "discard": "new", "first_seq": first_sequence,
            "max_age": 0,
            "max_msgs": config.max_jobs, "max_bytes": config.max_jobs_bytes,
            "max_msg_size": server.max_payload.saturating_sub(JOB_HEADROOM_BYTES),
        }),
    );
    let mut results = results;
    if server.api_level >= LEVEL_ATOMIC {
        jobs = with(jobs, json!({ "allow_atomic": true }));
        results = with(results, json!({ "allow_atomic": true }));
    }
    if server.api_level >= LEVEL_FAST_INGEST {
        jobs = with(jobs, json!({ "allow_batched": true }));
        results = with(results, json!({ "allow_batched": true }));
    }
    vec![
        StreamSpec { name: names.results, config: results, consumers: Vec::new() },
        StreamSpec { name: names.attempts, config: attempts, consumers: Vec::new() },
        StreamSpec { name: names.dead, config: dead, consumers: Vec::new() },
        StreamSpec {
            name: names.timers,
            config: timers,
            consumers: vec![consumer(
                DUE,
                format!("{ns}.due.{queue}.>"),
                "timers that are due",
                config,
            )],
        },
        StreamSpec {
            name: names.jobs,
            config: jobs,
            consumers: Priority::ALL
                .map(|lane| consumer(lane.as_str(), lane_filter(ns, queue, lane), "a lane", config))
                .into(),
        },
    ]
}

fn lane_subjects(ns: &Namespace, queue: &Queue) -> Vec<String> {
    Priority::ALL.map(|lane| lane_filter(ns, queue, lane)).into()
}

fn lane_filter(ns: &Namespace, queue: &Queue, lane: Priority) -> String {
    format!("{ns}.jobs.{queue}.{lane}.>")
}

fn base_config(name: &str, subjects: Vec<String>, what: &str, config: &QueueConfig) -> Value {
    json!({
        "name": name,
        "description": what,
        "subjects": subjects,
        "storage": config.storage.as_str(),
        "num_replicas": config.replicas,
        "max_consumers": -1,
        "max_msgs_per_subject": -1,
        "duplicate_window": nanos(Duration::from_secs(120)),
        "compression": "none",
        "allow_direct": true,
        "mirror_direct": false,
        "sealed": false,
        "deny_delete": false,
        "deny_purge": false,
        "allow_rollup_hdrs": false,
        "allow_msg_ttl": false,
        "metadata": metadata(),
    })
}

fn timer_subjects(ns: &Namespace, queue: &Queue) -> Vec<String> {
    ["timers", "due", "cron", "fired"].map(|kind| format!("{ns}.{kind}.{queue}.>")).into()
}

fn consumer(name: &'static str, filter: String, what: &str, config: &QueueConfig) -> ConsumerSpec {
    let options = json!({
        "durable_name": name,
        "name": name,
        "description": format!("tidemill: {what}"),
        "deliver_policy": "all",
        "ack_policy": "explicit",
        "ack_wait": nanos(config.ack_wait),
        // The worker counts attempts; a limit here would strand jobs.
        "max_deliver": -1,
        "filter_subject": filter,
        "replay_policy": "instant",
        "max_waiting": MAX_WAITING_PULLS,
        // Delayed retries count as pending; a limit here would stop new jobs.
        "max_ack_pending": -1,
        "metadata": metadata(),
    });
    let is_in_memory = matches!(config.storage, Storage::Memory);
    let options = with(options, kept(config.replicas.into(), is_in_memory));
    ConsumerSpec { name, filter, config: options }
}

/// How a consumer of a stream with so many replicas is kept.
///
/// Of several replicas each keeps the consumer's state in memory. On disk, that of a server which was
/// away says more than was so, and when that server leads, jobs under way are deleted from the work
/// queue; see [`crate::guide::what_can_be_lost`].
fn kept(replicas: u64, is_stream_in_memory: bool) -> Value {
    json!({ "num_replicas": replicas, "mem_storage": is_stream_in_memory || replicas > 1 })
}

fn metadata() -> Value {
    json!({ "tidemill.protocol": PROTOCOL_VERSION.to_string() })
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(i64::MAX as u64)
}

fn with(mut config: Value, more: Value) -> Value {
    if let (Value::Object(config), Value::Object(more)) = (&mut config, more) {
        config.extend(more);
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    fn specs(api_level: u64) -> Vec<StreamSpec> {
        let server = ServerTraits { api_level, max_payload: 1024 * 1024 };
        streams(&Namespace::default(), &Queue::default(), &QueueConfig::default(), server, 7)
    }

    #[test]
    fn the_jobs_stream_is_plain_and_refuses_when_full() {
        let jobs = specs(5).pop().expect("jobs come last");
        assert_eq!(jobs.name, "TIDEMILL_JOBS_default");
        assert_eq!(jobs.config["discard"], "new");
        assert_eq!(jobs.config["retention"], "workqueue");
        assert_eq!(jobs.config["max_age"], 0);
        assert_eq!(jobs.config["allow_msg_ttl"], false);
        assert_eq!(jobs.config["allow_rollup_hdrs"], false);
        assert_eq!(jobs.config["first_seq"], 7);
        assert_eq!(jobs.config["max_msg_size"], 1024 * 1024 - 64 * 1024);
        assert_eq!(jobs.config["subjects"][0], "tidemill.jobs.default.critical.>");
        let lanes: Vec<&str> = jobs.consumers.iter().map(|lane| lane.name).collect();
        assert_eq!(lanes, ["critical", "high", "normal", "low"]);
        for lane in &jobs.consumers {
            assert_eq!(lane.config["max_deliver"], -1);
            assert_eq!(lane.config["max_ack_pending"], -1);
            assert!(lane.config.get("backoff").is_none());
        }
    }

    #[test]
    fn where_consumers_keep_their_state_follows_from_the_stream_as_a_table() {
        for (replicas, storage, expected) in [
            (1, "file", json!([1, false])),
            (1, "memory", json!([1, true])),
            (3, "file", json!([3, true])),
            (5, "file", json!([5, true])),
        ] {
            let stream = json!({ "num_replicas": replicas, "storage": storage });
            for lane in specs(5).pop().expect("jobs come last").consumers {
                let config = lane.beside(&stream).config;
                let kept = json!([config["num_replicas"], config["mem_storage"]]);
                assert_eq!(kept, expected, "{stream}");
            }
        }
        let wished = QueueConfig { replicas: 3, ..QueueConfig::default() };
        let server = ServerTraits { api_level: 5, max_payload: 1024 * 1024 };
        let made = streams(&Namespace::default(), &Queue::default(), &wished, server, 7);
        for consumer in made.iter().flat_map(|stream| &stream.consumers) {
            assert_eq!(consumer.config["mem_storage"], true, "{}", consumer.name);
        }
        assert_eq!(made.iter().map(|stream| stream.consumers.len()).sum::<usize>(), 5);
    }

    #[test]
    fn batches_are_on_where_the_server_knows_them() {
        for (level, atomic, batched) in [(1, false, false), (2, true, false), (5, true, true)] {
            let jobs = specs(level).pop().expect("jobs come last").config;
            assert_eq!(jobs.get("allow_atomic").is_some(), atomic, "level {level}");
            assert_eq!(jobs.get("allow_batched").is_some(), batched, "level {level}");
        }
    }
}
