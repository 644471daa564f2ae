//! How far a consumer reaches, and what becomes of what it does not reach. Pure.

use serde_json::Value;

use crate::broker::ConsumerFacts;
use crate::priority::Priority;
use crate::token::{Namespace, Queue};
use crate::topology::{DUE, StreamNames};

/// Where the broker hands out messages of a queue: one consumer each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Outlet {
    /// Jobs on a lane.
    Lane(Priority),
    /// What timers and cron entries have put out.
    Due,
}

impl Outlet {
    pub(crate) const ALL: [Self; 5] = [
        Self::Lane(Priority::Critical),
        Self::Lane(Priority::High),
        Self::Lane(Priority::Normal),
        Self::Lane(Priority::Low),
        Self::Due,
    ];

    pub(crate) fn stream(self, streams: &StreamNames) -> &str {
        match self {
            Self::Lane(_) => &streams.jobs,
            Self::Due => &streams.timers,
        }
    }

    pub(crate) fn consumer(self) -> &'static str {
        match self {
            Self::Lane(lane) => lane.as_str(),
            Self::Due => DUE,
        }
    }

    /// What its consumer is to hand out.
    pub(crate) fn subjects(self, ns: &Namespace, queue: &Queue) -> String {
        match self {
            Self::Lane(lane) => format!("{ns}.jobs.{queue}.{lane}.>"),
            Self::Due => format!("{ns}.due.{queue}.>"),
        }
    }
}

/// A consumer at a moment at which nothing moved.
#[derive(Debug)]
pub(crate) struct Reach {
    pub(crate) consumer: ConsumerFacts,
    /// How many messages there are on the subjects that it is to hand out.
    pub(crate) messages: u64,
}

impl Reach {
    /// How many the consumer has behind it.
    pub(super) fn passed(&self) -> u64 {
        self.messages.saturating_sub(self.consumer.waiting)
    }

    /// How many it will never hand out.
    pub(crate) fn stuck(&self) -> u64 {
        self.passed().saturating_sub(self.consumer.unsettled)
    }

    /// Whether it is certain that a message that the consumer has behind it is with nobody.
    pub(super) fn is_surely_stuck(&self, sequence: u64) -> bool {
        self.consumer.unsettled == 0 || sequence <= self.consumer.settled_up_to
    }
}

/// The option of a consumer that strands messages, if one does: what is brought back beside it would be
/// stuck again.
pub(crate) fn strands(config: &Value, subjects: &str) -> Option<&'static str> {
    let has_several = config["filter_subjects"].as_array().is_some_and(|list| !list.is_empty());
    if has_several || config["filter_subject"] != subjects {
        return Some("filter_subject");
    }
    config["max_deliver"].as_i64().is_some_and(|limit| limit > 0).then_some("max_deliver")
}

/// What a worker does about a stuck message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Its job has ended: it is taken out of the stream.
    Clear,
    /// It is brought back.
    BringBack,
    /// It is told of.
    Leave,
}

/// Whether a job has an end on record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    OnRecord,
    None,
}

/// What a worker does about a stuck message, beside a consumer with an option that strands messages.
pub(crate) fn fate(end: End, strands: Option<&'static str>) -> Fate {
    match (end, strands) {
        (End::OnRecord, _) => Fate::Clear,
        (End::None, None) => Fate::BringBack,
        (End::None, Some(_)) => Fate::Leave,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_stuck_is_a_matter_of_counting() {
        let reach = |messages, waiting, unsettled, settled_up_to| Reach {
            messages,
            consumer: ConsumerFacts {
                config: json!({}),
                waiting,
                unsettled,
                settled_up_to,
                handed_out: 0,
                paused_until: None,
            },
        };
        for (reach, stuck) in [
            (reach(10, 10, 0, 0), 0),
            (reach(10, 4, 6, 0), 0),
            (reach(10, 4, 5, 0), 1),
            (reach(10, 0, 0, 0), 10),
            // In a moment at which something moved.
            (reach(4, 6, 0, 0), 0),
        ] {
            assert_eq!(reach.stuck(), stuck);
        }
        assert!(reach(3, 0, 0, 0).is_surely_stuck(9), "nothing is with anybody");
        assert!(reach(3, 0, 1, 9).is_surely_stuck(9));
        assert!(!reach(3, 0, 1, 8).is_surely_stuck(9));
    }

    #[test]
    fn options_that_strand_as_a_table() {
        let lane = Outlet::Lane(Priority::Low);
        let subjects = lane.subjects(&Namespace::default(), &Queue::default());
        for (config, expected) in [
            (json!({ "filter_subject": subjects, "max_deliver": -1 }), None),
            (json!({ "filter_subject": subjects }), None),
            (json!({ "filter_subject": subjects, "max_deliver": 1 }), Some("max_deliver")),
            (json!({ "filter_subject": "tidemill.jobs.default.low.a.>" }), Some("filter_subject")),
            (json!({ "filter_subjects": [subjects, "x"] }), Some("filter_subject")),
            (json!({}), Some("filter_subject")),
        ] {
            assert_eq!(strands(&config, &subjects), expected, "{config}");
        }
    }

    #[test]
    fn what_becomes_of_what_is_stuck_as_a_table() {
        for (end, strands, expected) in [
            (End::OnRecord, None, Fate::Clear),
            (End::OnRecord, Some("max_deliver"), Fate::Clear),
            (End::None, None, Fate::BringBack),
            (End::None, Some("max_deliver"), Fate::Leave),
        ] {
            assert_eq!(fate(end, strands), expected, "{end:?} {strands:?}");
        }
    }
}
