//! What is found, judged. Pure.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use serde_json::Value;

use super::{Finding, Severity};
use crate::broker::{AccountFacts, ConsumerFacts, Group, StreamFacts};
use crate::token::{Kind, Queue};
use crate::topology::{Drift, LEVEL_CRON, fences_long_enough};

/// From this share of a limit on it is told.
const NEARLY_PERCENT: u64 = 80;

/// Clocks that are further apart are told.
const CLOCK_MS: i64 = 2_000;

/// Which of a queue's streams one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Jobs,
    Timers,
    Results,
    Attempts,
    Dead,
}

/// The server by its version, and the account.
pub(super) fn server(version: (u32, u32, u32), account: &AccountFacts) -> Vec<Finding> {
    let (major, minor, patch) = version;
    let name = format!("nats-server {major}.{minor}.{patch}");
    let mut found = Vec::new();
    let has_old_bugs = version < (2, 12, 9) || ((2, 13, 0)..(2, 14, 1)).contains(&version);
    if has_old_bugs {
        found.push(Finding::new(
            Severity::Warning,
            "server_has_known_bugs",
            name.clone(),
            "work queues of this version can lose track of what was settled, in clusters above all",
            "upgrade nats-server to 2.12.9, 2.14.1 or newer",
        ));
    }
    if account.api.level < LEVEL_CRON {
        found.push(Finding::new(
            Severity::Note,
            "server_lacks",
            name.clone(),
            format!(
                "API level {}: no cron, and completions and jobs are not stored in batches",
                account.api.level
            ),
            "upgrade nats-server to 2.14 or newer",
        ));
    }
    found.extend(limits(account));
    found.push(Finding::new(
        Severity::Note,
        "sync_interval_unknown",
        name,
        "a server does not tell its clients how often it syncs to disk; unless it is `always`, a \
         power cut loses what is younger",
        "see `curl -s http://SERVER:8222/jsz?config=true | grep sync`, and set `jetstream { \
         sync_interval: always }` or use 3 replicas",
    ));
    found
}

fn limits(account: &AccountFacts) -> Vec<Finding> {
    let AccountFacts { storage, reserved_storage, streams, consumers, limits, .. } = *account;
    let table = [
        ("storage in bytes", storage.max(reserved_storage), limits.max_storage, "max_file"),
        ("streams", streams, limits.max_streams, "max_streams"),
        ("consumers", consumers, limits.max_consumers, "max_consumers"),
    ];
    let mut found = Vec::new();
    for (what, used, limit, option) in table {
        let Some(severity) = fullness(used, limit) else { continue };
        // What is reserved is no loss of jobs; it only keeps new queues out.
        found.push(Finding::new(
            severity.min(Severity::Warning),
            "account_nearly_full",
            "account",
            format!("{used} of {limit} {what} are used or reserved"),
            format!("raise the account's `{option}`, or remove queues that are not used"),
        ));
    }
    found
}

/// How bad it is that so much of a limit is used; a limit of 0 or less is none.
fn fullness(used: u64, limit: i64) -> Option<Severity> {
    let limit = u64::try_from(limit).ok().filter(|limit| *limit > 0)?;
    if used >= limit {
        Some(Severity::Error)
    } else if used.saturating_mul(100) >= limit.saturating_mul(NEARLY_PERCENT) {
        Some(Severity::Warning)
    } else {
        None
    }
}

/// This machine's clock beside the broker's.
pub(super) fn clock(ahead_ms: i64) -> Option<Finding> {
    (ahead_ms.abs() > CLOCK_MS).then(|| {
        let direction = if ahead_ms > 0 { "ahead of" } else { "behind" };
        Finding::new(
            Severity::Warning,
            "clock_differs",
            "this machine",
            format!("its clock is {} ms {direction} the broker's", ahead_ms.abs()),
            "workers go by the broker's clock, other programs may not: run an NTP client (chrony) on \
             both",
        )
    })
}

/// What is missing of a queue.
pub(super) fn missing(queue: &Queue, place: &str) -> Finding {
    let (code, what) = match place.contains('/') {
        true => {
            ("consumer_missing", "the consumer is not there: no worker gets what it would hand out")
        }
        false => ("stream_missing", "the stream is not there"),
    };
    Finding::new(Severity::Error, code, place, what, format!("tidemill setup {queue}"))
}

/// An option that is not as it should be; `None` where it is its user's to choose.
pub(super) fn drifted(queue: &Queue, role: Role, drift: &Drift) -> Option<Finding> {
    let Drift { place, option, wanted, found } = drift;
    let is_consumer = place.contains('/');
    // Jobs and timers that are dropped by age or by a limit are lost.
    let loses_jobs = !is_consumer
        && match role {
            Role::Jobs => option == "max_age",
            Role::Timers => matches!(option.as_str(), "max_age" | "max_msgs" | "max_bytes"),
            Role::Results | Role::Attempts | Role::Dead => false,
        };
    if drift.is_choice() && !loses_jobs {
        return None;
    }
    let severity = match (is_consumer, option.as_str()) {
        _ if loses_jobs => Severity::Error,
        (_, "metadata" | "description" | "name") => Severity::Note,
        (true, "max_waiting" | "max_ack_pending" | "replay_policy") => Severity::Warning,
        (true, _) => Severity::Error,
        (false, "allow_batched" | "allow_atomic" | "compression" | "duplicate_window") => {
            Severity::Note
        }
        (false, "max_consumers" | "mirror_direct") => Severity::Warning,
        (false, _) => Severity::Error,
    };
    let code = match (is_consumer, option.as_str()) {
        (true, "max_deliver") => "max_deliver",
        (true, "max_ack_pending") => "max_ack_pending",
        (true, "filter_subject") => "filter_subject",
        (true, _) => "consumer_differs",
        (false, _) => "stream_differs",
    };
    let fix = match is_consumer {
        true => format!("tidemill doctor {queue} --revive"),
        false => format!("nats stream edit {place}, so that {option} is {wanted}"),
    };
    let what = format!("{option} is {found}, not {wanted}");
    Some(Finding::new(severity, code, place.as_str(), what, fix))
}

/// What of a stream drift does not tell: options that we do not set, how full it is, who holds it.
pub(super) fn stream(name: &str, role: Role, facts: &StreamFacts) -> Vec<Finding> {
    let mut found = Vec::new();
    if facts.config["persist_mode"] == "async" {
        found.push(Finding::new(
            Severity::Error,
            "persist_mode_async",
            name,
            "persist_mode is async: the broker confirms what is not written yet",
            "it cannot be changed: make the queue anew (move its jobs, `tidemill queue rm`, \
             `tidemill setup`)",
        ));
    }
    for option in ["mirror", "sources", "subject_transform", "republish"] {
        if !facts.config[option].is_null() {
            found.push(Finding::new(
                Severity::Warning,
                "stream_differs",
                name,
                format!("it has {option}, which tidemill does not set"),
                format!("nats stream edit {name}, without {option}"),
            ));
        }
    }
    match role {
        Role::Jobs => found.extend(full(
            name,
            facts,
            "enqueues are refused when it is full",
            "start more workers, or raise its limits: nats stream edit",
        )),
        Role::Dead => found.extend(full(
            name,
            facts,
            "jobs wait to be buried when it is full",
            "retry or discard letters (`tidemill dead ls`), or raise its limits: nats stream edit",
        )),
        // These drop the oldest, or have no limit.
        Role::Results | Role::Attempts | Role::Timers => {}
    }
    found.extend(facts.group.as_ref().into_iter().flat_map(|group| held_by(name, facts, group)));
    found
}

fn full(name: &str, facts: &StreamFacts, then: &str, fix: &str) -> Option<Finding> {
    let limit = |option: &str| facts.config[option].as_i64().unwrap_or(-1);
    let (messages, bytes) = (limit("max_msgs"), limit("max_bytes"));
    let by_messages = fullness(facts.messages, messages);
    let by_bytes = fullness(facts.bytes, bytes);
    let severity = by_messages.max(by_bytes)?;
    let what = match by_messages == Some(severity) {
        true => format!("it holds {} of at most {messages} messages: {then}", facts.messages),
        false => format!("it holds {} of at most {bytes} bytes: {then}", facts.bytes),
    };
    let code = if severity == Severity::Error { "stream_full" } else { "stream_nearly_full" };
    Some(Finding::new(severity, code, name, what, format!("{fix} {name}")))
}

fn held_by(name: &str, facts: &StreamFacts, group: &Group) -> Vec<Finding> {
    let mut found = Vec::new();
    if facts.config["num_replicas"].as_u64().unwrap_or(1) < 2 {
        found.push(Finding::new(
            Severity::Warning,
            "one_replica",
            name,
            "one server of the cluster holds it: while that is down, the queue is, and with its disk \
             the jobs are gone",
            format!("nats stream edit {name} --replicas 3"),
        ));
    }
    if group.leader.as_ref().is_none_or(String::is_empty) {
        found.push(Finding::new(
            Severity::Error,
            "no_leader",
            name,
            "it has no leader: nothing is stored or handed out",
            "start the servers that hold it: nats server report jetstream",
        ));
    }
    for replica in group.replicas.iter().filter(|replica| replica.offline || !replica.current) {
        let how = if replica.offline { "is offline" } else { "lags behind" };
        found.push(Finding::new(
            Severity::Warning,
            "replica_behind",
            name,
            format!("its replica on {} {how}", replica.name),
            "see that server's log: nats server report jetstream",
        ));
    }
    found
}

/// What of a consumer drift does not tell.
pub(super) fn consumer(queue: &Queue, place: &str, facts: &ConsumerFacts) -> Vec<Finding> {
    let mut found = Vec::new();
    let revive = format!("tidemill doctor {queue} --revive");
    let has = |option: &str| match &facts.config[option] {
        Value::Null | Value::Bool(false) => false,
        Value::Array(list) => !list.is_empty(),
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Bool(true) | Value::Object(_) => true,
    };
    for (option, code, what) in [
        ("backoff", "backoff", "it has a backoff of its own, which bends the delays of retries"),
        ("filter_subjects", "filter_subject", "it has several filters in place of its lane's"),
        ("inactive_threshold", "consumer_differs", "the broker deletes it when no worker runs"),
        ("max_batch", "consumer_differs", "max_batch refuses what workers ask for"),
        ("max_expires", "consumer_differs", "max_expires may refuse what workers ask for"),
        ("headers_only", "consumer_differs", "headers_only keeps payloads from workers"),
    ] {
        if has(option) {
            found.push(Finding::new(Severity::Error, code, place, what, revive.clone()));
        }
    }
    let limit = facts.config["max_ack_pending"].as_i64().unwrap_or(-1);
    if fullness(facts.unsettled, limit).is_some() {
        found.push(Finding::new(
            Severity::Error,
            "max_ack_pending",
            place,
            format!(
                "{} jobs run or back off, of at most {limit} (max_ack_pending): then no new job is \
                 handed out",
                facts.unsettled
            ),
            revive,
        ));
    }
    if let Some(until) = facts.paused_until {
        let until = crate::wire::time::to_text(&until);
        let lane = place.rsplit('/').next().unwrap_or_default();
        found.push(Finding::new(
            Severity::Warning,
            "paused",
            place,
            format!("it is paused until {until}"),
            format!("tidemill queue resume {queue} --priority {lane}"),
        ));
    }
    found
}

/// How long completions are kept, beside `ack_wait`.
pub(super) fn memory(results: &str, max_age: Duration, ack_wait: Duration) -> Option<Finding> {
    let is_kept = max_age.is_zero() || fences_long_enough(max_age, ack_wait);
    (!is_kept).then(|| {
        Finding::new(
            Severity::Error,
            "results_too_short",
            results,
            format!(
                "completions are kept for {max_age:?}, less than ten times ack_wait ({ack_wait:?}): a \
                 job may complete twice"
            ),
            format!("nats stream edit {results} --max-age {}s", (ack_wait * 10).as_secs()),
        )
    })
}

/// Kinds of waiting jobs that no live worker announces.
pub(super) fn unknown_kinds(
    queue: &Queue,
    waiting: &BTreeMap<Kind, usize>,
    announced: &HashSet<Kind>,
    looked_at: usize,
) -> Vec<Finding> {
    let unknown = waiting.iter().filter(|(kind, _)| !announced.contains(*kind));
    unknown
        .map(|(kind, count)| {
            let who = if announced.is_empty() {
                "no worker of the queue runs"
            } else {
                "no live worker of the queue knows it"
            };
            Finding::new(
                Severity::Warning,
                "no_worker",
                queue.as_str(),
                format!("{count} of the first {looked_at} jobs are of kind {kind}: {who}"),
                format!("tidemill work --queue {queue} --exec {kind}=COMMAND"),
            )
        })
        .collect()
}

/// A right that these credentials lack.
pub(super) fn lacks(subject: &str, what_for: &str, severity: Severity) -> Finding {
    Finding::new(
        severity,
        "right_missing",
        subject,
        format!("these credentials may not publish to it: {what_for}"),
        format!("grant the user of workers: publish {subject:?}"),
    )
}

/// Jobs that no consumer reaches.
pub(super) fn stuck(queue: &Queue, place: &str, count: u64) -> Finding {
    Finding::new(
        Severity::Error,
        "stuck_jobs",
        place,
        format!("{count} jobs are beyond the reach of its consumer: nobody will get them"),
        format!("tidemill doctor {queue} --revive"),
    )
}

/// Jobs on subjects that are no lane's.
pub(super) fn uncovered(stream: &str, count: u64) -> Finding {
    Finding::new(
        Severity::Error,
        "subjects_uncovered",
        stream,
        format!("{count} messages are on subjects of no lane: no consumer covers them"),
        format!(
            "nats stream subjects {stream}; remove what is no lane's from the stream's subjects"
        ),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn codes(found: &[Finding]) -> Vec<(&'static str, Severity)> {
        found.iter().map(|finding| (finding.code, finding.severity)).collect()
    }

    #[test]
    fn servers_as_a_table() {
        use Severity::{Note, Warning};
        let bugs = ("server_has_known_bugs", Warning);
        let (old, sync) = (("server_lacks", Note), ("sync_interval_unknown", Note));
        for (version, level, expected) in [
            ((2, 12, 8), 2, vec![bugs, old, sync]),
            ((2, 12, 9), 2, vec![old, sync]),
            ((2, 14, 0), 4, vec![bugs, sync]),
            ((2, 14, 1), 4, vec![sync]),
            ((2, 15, 1), 5, vec![sync]),
        ] {
            let mut account = AccountFacts::default();
            account.api.level = level;
            assert_eq!(codes(&server(version, &account)), expected, "{version:?}");
        }
        let mut full = AccountFacts { streams: 9, ..AccountFacts::default() };
        full.api.level = 5;
        full.limits.max_streams = 10;
        let expected = [("account_nearly_full", Warning), sync];
        assert_eq!(codes(&server((2, 15, 1), &full)), expected);
    }

    #[test]
    fn fullness_as_a_table() {
        for (used, limit, expected) in [
            (79, 100, None),
            (80, 100, Some(Severity::Warning)),
            (100, 100, Some(Severity::Error)),
            (u64::MAX, 100, Some(Severity::Error)),
            (100, 0, None),
            (100, -1, None),
        ] {
            assert_eq!(fullness(used, limit), expected, "{used} of {limit}");
        }
    }

    #[test]
    fn drift_as_a_table() {
        use Severity::{Error, Note, Warning};
        let of = |role, place: &str, option: &str| {
            let drift = Drift {
                place: place.into(),
                option: option.into(),
                wanted: "1".into(),
                found: "2".into(),
            };
            drifted(&Queue::default(), role, &drift).map(|found| found.severity)
        };
        for (role, place, option, expected) in [
            (Role::Jobs, "J", "max_age", Some(Error)),
            (Role::Results, "R", "max_age", None),
            (Role::Jobs, "J", "max_msgs", None),
            (Role::Timers, "T", "max_msgs", Some(Error)),
            (Role::Jobs, "J", "discard", Some(Error)),
            (Role::Jobs, "J", "allow_batched", Some(Note)),
            (Role::Jobs, "J/low", "max_deliver", Some(Error)),
            (Role::Jobs, "J/low", "max_ack_pending", Some(Warning)),
            (Role::Jobs, "J/low", "ack_wait", None),
            (Role::Jobs, "J/low", "description", Some(Note)),
        ] {
            assert_eq!(of(role, place, option), expected, "{place} {option}");
        }
    }

    fn stream_facts(config: Value, group: Option<Group>) -> StreamFacts {
        StreamFacts { config, messages: 85, bytes: 0, group, clock_ahead_ms: None }
    }

    #[test]
    fn streams_as_a_table() {
        let plain = json!({ "max_msgs": 100, "num_replicas": 1 });
        let nearly = [("stream_nearly_full", Severity::Warning)];
        let facts = stream_facts(plain.clone(), None);
        assert_eq!(codes(&stream("J", Role::Jobs, &facts)), nearly);
        assert_eq!(codes(&stream("R", Role::Results, &facts)), []);
        let lazy = stream_facts(json!({ "persist_mode": "async" }), None);
        assert_eq!(
            codes(&stream("R", Role::Results, &lazy)),
            [("persist_mode_async", Severity::Error)]
        );
        let replica = Replica { name: "n2".into(), current: false, offline: true };
        let group = Group { name: Some("c".into()), leader: None, replicas: vec![replica] };
        let facts = stream_facts(json!({ "num_replicas": 1 }), Some(group));
        let expected = [
            ("one_replica", Severity::Warning),
            ("no_leader", Severity::Error),
            ("replica_behind", Severity::Warning),
        ];
        assert_eq!(codes(&stream("J", Role::Jobs, &facts)), expected);
    }

    use crate::broker::Replica;

    #[test]
    fn consumers_as_a_table() {
        let judged = |config: Value, unsettled| {
            let facts = ConsumerFacts {
                config,
                waiting: 0,
                unsettled,
                settled_up_to: 0,
                handed_out: 0,
                paused_until: None,
            };
            codes(&consumer(&Queue::default(), "J/low", &facts))
        };
        let error = |code| vec![(code, Severity::Error)];
        assert_eq!(judged(json!({ "backoff": [1, 2] }), 0), error("backoff"));
        assert_eq!(judged(json!({ "backoff": [] }), 0), []);
        assert_eq!(judged(json!({ "max_ack_pending": 10 }), 8), error("max_ack_pending"));
        assert_eq!(judged(json!({ "max_ack_pending": -1 }), 8), []);
        assert_eq!(judged(json!({ "inactive_threshold": 5 }), 0), error("consumer_differs"));
    }

    #[test]
    fn clocks_and_memories() {
        assert!(clock(1_900).is_none() && clock(-1_900).is_none());
        assert!(clock(-5_000).expect("differs").what.contains("5000 ms behind"));
        let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
        assert!(memory("R", 10 * second, second).is_none());
        assert!(memory("R", Duration::ZERO, second).is_none(), "kept for ever");
        assert!(memory("R", minute, minute).is_some());
    }
}
