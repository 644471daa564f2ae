//! A queue's streams: what is missing, what differs, how full they are, who holds them.

use super::fullness;
use crate::broker::{Group, StreamFacts};
use crate::doctor::{Finding, Severity};
use crate::token::Queue;
use crate::topology::Drift;

/// Which of a queue's streams one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::doctor) enum Role {
    Jobs,
    Timers,
    Results,
    Attempts,
    Dead,
}

/// What is missing of a queue.
pub(in crate::doctor) fn missing(queue: &Queue, place: &str) -> Finding {
    let (code, what) = match place.contains('/') {
        true => {
            ("consumer_missing", "the consumer is not there: no worker gets what it would hand out")
        }
        false => ("stream_missing", "the stream is not there"),
    };
    Finding::new(Severity::Error, code, place, what, format!("tidemill setup {queue}"))
}

/// An option that is not as it should be; `None` where it is its user's to choose.
pub(in crate::doctor) fn drifted(queue: &Queue, role: Role, drift: &Drift) -> Option<Finding> {
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
    if drift.loses_jobs_under_way() {
        return Some(at_risk(queue, place));
    }
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

/// A consumer that may say that more is settled than is.
fn at_risk(queue: &Queue, place: &str) -> Finding {
    let what = "it keeps its state on the disks of several servers (mem_storage is false): when one that \
                was away comes to lead, nats-server may delete jobs that run or back off";
    let fix = format!("tidemill setup {queue} --apply");
    Finding::new(Severity::Error, "jobs_at_risk", place, what, fix)
}

/// What of a stream drift does not tell: options that we do not set, how full it is, who holds it.
pub(in crate::doctor) fn stream(name: &str, role: Role, facts: &StreamFacts) -> Vec<Finding> {
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::codes;
    use super::*;
    use crate::broker::Replica;

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

    #[test]
    fn a_replicated_consumer_on_disk_is_a_risk_and_told_with_its_remedy() {
        let drift = |wanted: &str, found: &str| Drift {
            place: "J/low".into(),
            option: "mem_storage".into(),
            wanted: wanted.into(),
            found: found.into(),
        };
        let of = |drift| drifted(&Queue::default(), Role::Jobs, &drift).expect("told");
        let at_risk = of(drift("true", "false"));
        assert_eq!((at_risk.code, at_risk.severity), ("jobs_at_risk", Severity::Error));
        assert_eq!(at_risk.fix, "tidemill setup default --apply");
        assert_eq!(of(drift("false", "true")).code, "consumer_differs");
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
}
