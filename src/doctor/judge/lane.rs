//! A queue's consumers, the jobs on its lanes, and what workers need for them.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use serde_json::Value;

use super::fullness;
use crate::broker::ConsumerFacts;
use crate::doctor::{Finding, Severity};
use crate::token::{Kind, Queue};
use crate::topology::fences_long_enough;

/// What of a consumer drift does not tell.
pub(in crate::doctor) fn consumer(
    queue: &Queue,
    place: &str,
    facts: &ConsumerFacts,
) -> Vec<Finding> {
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
pub(in crate::doctor) fn memory(
    results: &str,
    max_age: Duration,
    ack_wait: Duration,
) -> Option<Finding> {
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
pub(in crate::doctor) fn unknown_kinds(
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
pub(in crate::doctor) fn lacks(subject: &str, what_for: &str, severity: Severity) -> Finding {
    Finding::new(
        severity,
        "right_missing",
        subject,
        format!("these credentials may not publish to it: {what_for}"),
        format!("grant the user of workers: publish {subject:?}"),
    )
}

/// Jobs that no consumer reaches.
pub(in crate::doctor) fn stuck(queue: &Queue, place: &str, count: u64) -> Finding {
    Finding::new(
        Severity::Error,
        "stuck_jobs",
        place,
        format!(
            "{count} jobs are beyond the reach of its consumer: nobody gets them before they are \
             brought back"
        ),
        format!("tidemill doctor {queue} --revive"),
    )
}

/// Jobs on subjects that are no lane's.
pub(in crate::doctor) fn uncovered(stream: &str, count: u64) -> Finding {
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

    use super::super::codes;
    use super::*;

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
    fn completions_are_kept_long_enough() {
        let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
        assert!(memory("R", 10 * second, second).is_none());
        assert!(memory("R", Duration::ZERO, second).is_none(), "kept for ever");
        assert!(memory("R", minute, minute).is_some());
    }
}
