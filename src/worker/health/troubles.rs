//! Which troubles there are, by what the parts of a worker say. Pure.
//!
//! Each part is well or has one trouble. What several parts say alike, as four lanes do of a stream that
//! is gone, is one trouble: it begins with the first that says so and is over with the last.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{Effect, Trouble, TroubleKind};
use crate::stuck::Outlet;
use crate::wire::RecordKind;
use crate::worker::lanes::LaneId;

/// A part of a worker that can be in trouble. Queues are named by their place in the worker's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::worker) enum Part {
    /// The connection.
    Link,
    /// The subject on which answers come.
    Inbox,
    /// Fetching for a lane.
    Lane(LaneId),
    /// Writing records of a queue.
    Records(usize, RecordKind),
    /// Settling deliveries of a lane.
    Acks(LaneId),
    /// Promoting the timers of a queue.
    Timers(usize),
    /// Making what is missing of a queue.
    Setup(usize),
    /// Hearing what the workers of a queue are told.
    Control(usize),
    /// What remembers what was handed out of a queue.
    Memory(usize, Outlet),
    /// What is handed out of a queue.
    Stuck(usize, Outlet),
    /// Burying jobs of a queue that break the connection.
    Unreadable(usize),
    /// Holding jobs.
    Leases,
}

impl Part {
    /// The queue that it works for.
    pub(in crate::worker) fn queue(self) -> Option<usize> {
        match self {
            Self::Lane(lane) | Self::Acks(lane) => Some(lane.queue),
            Self::Records(queue, _)
            | Self::Timers(queue)
            | Self::Setup(queue)
            | Self::Control(queue)
            | Self::Memory(queue, _)
            | Self::Stuck(queue, _) => Some(queue),
            Self::Unreadable(queue) => Some(queue),
            Self::Link | Self::Inbox | Self::Leases => None,
        }
    }

    /// What its trouble keeps the worker from.
    pub(super) fn effect(self) -> Effect {
        match self {
            Self::Link | Self::Inbox | Self::Lane(_) | Self::Acks(_) => Effect::TakesNoJobs,
            Self::Records(_, RecordKind::Result | RecordKind::Attempt) => Effect::TakesNoJobs,
            // A job whose letter finds no place waits to be buried; the others go on.
            Self::Records(_, RecordKind::Dead) => Effect::WorksOn,
            Self::Timers(_)
            | Self::Setup(_)
            | Self::Control(_)
            | Self::Memory(_, _)
            | Self::Stuck(_, _)
            | Self::Unreadable(_)
            | Self::Leases => Effect::WorksOn,
        }
    }

    /// Whether its trouble means that what a job of the queue comes to could not be settled: then none
    /// may be started, though they could be fetched.
    fn keeps_from_settling(self, queue: usize) -> bool {
        match self {
            Self::Records(of, RecordKind::Result | RecordKind::Attempt) => of == queue,
            Self::Acks(lane) => lane.queue == queue,
            Self::Records(_, RecordKind::Dead)
            | Self::Link
            | Self::Inbox
            | Self::Lane(_)
            | Self::Timers(_)
            | Self::Setup(_)
            | Self::Control(_)
            | Self::Memory(_, _)
            | Self::Stuck(_, _)
            | Self::Unreadable(_)
            | Self::Leases => false,
        }
    }
}

/// What makes two reports one trouble.
type Key = (TroubleKind, Effect, Option<String>);

/// What a report changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Began(Trouble),
    /// A trouble goes on, in other words.
    Reworded,
    /// It is over, after so long.
    Ended(Trouble, Duration),
}

/// The troubles of a worker.
#[derive(Debug, Default)]
pub(super) struct Troubles {
    parts: BTreeMap<Part, Key>,
    open: BTreeMap<Key, (Instant, Trouble)>,
}

impl Troubles {
    /// A part is in trouble.
    pub(super) fn report(&mut self, part: Part, trouble: Trouble, now: Instant) -> Vec<Change> {
        // Without a connection everything is silent: that is one trouble, and known.
        if trouble.kind == TroubleKind::NotAnswering && self.is_cut_off() {
            return Vec::new();
        }
        let key = (trouble.kind, trouble.effect, trouble.place.clone());
        let mut changes = Vec::new();
        let before = self.parts.insert(part, key.clone());
        match self.open.get_mut(&key) {
            Some((_, known)) if known.what != trouble.what => {
                known.what = trouble.what;
                changes.push(Change::Reworded);
            }
            Some(_) => {}
            None => {
                self.open.insert(key.clone(), (now, trouble.clone()));
                changes.push(Change::Began(trouble));
            }
        }
        if let Some(before) = before.filter(|before| *before != key) {
            changes.extend(self.end(&before, now));
        }
        changes
    }

    /// A part is well.
    pub(super) fn clear(&mut self, part: Part, now: Instant) -> Vec<Change> {
        let before = self.parts.remove(&part);
        before.and_then(|before| self.end(&before, now)).into_iter().collect()
    }

    /// Ends a trouble that no part has any more.
    fn end(&mut self, key: &Key, now: Instant) -> Option<Change> {
        if self.parts.values().any(|other| other == key) {
            return None;
        }
        let (since, trouble) = self.open.remove(key)?;
        Some(Change::Ended(trouble, now.saturating_duration_since(since)))
    }

    fn is_cut_off(&self) -> bool {
        self.parts.contains_key(&Part::Link) || self.parts.contains_key(&Part::Inbox)
    }

    /// How many parts are in trouble.
    pub(super) fn parts(&self) -> usize {
        self.parts.len()
    }

    /// The parts of a queue that are in trouble, and what kind of it.
    pub(super) fn of_queue(&self, queue: usize) -> Vec<(Part, TroubleKind)> {
        let of_queue = self.parts.iter().filter(|(part, _)| part.queue() == Some(queue));
        of_queue.map(|(part, (kind, _, _))| (*part, *kind)).collect()
    }

    /// Whether no job of a queue may be started, since it could not be settled.
    pub(super) fn keep_from_starting(&self, queue: usize) -> bool {
        self.parts.keys().any(|part| part.keeps_from_settling(queue))
    }

    /// All troubles, the oldest first.
    pub(super) fn list(&self) -> Vec<Trouble> {
        let mut open: Vec<&(Instant, Trouble)> = self.open.values().collect();
        open.sort_by_key(|(since, _)| *since);
        open.into_iter().map(|(_, trouble)| trouble.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::priority::Priority;

    const LOW: Part = Part::Lane(LaneId { queue: 0, priority: Priority::Low });
    const HIGH: Part = Part::Lane(LaneId { queue: 0, priority: Priority::High });
    const RESULTS: Part = Part::Records(0, RecordKind::Result);

    fn trouble(part: Part, kind: TroubleKind, place: &str) -> Trouble {
        Trouble {
            kind,
            effect: part.effect(),
            queue: None,
            place: Some(place.to_owned()),
            since: Utc::now(),
            what: "it is".to_owned(),
            remedy: "do".to_owned(),
        }
    }

    use chrono::Utc;

    /// What a step changes: `+kind`, `-kind seconds`, or nothing.
    fn told(changes: Vec<Change>) -> Vec<String> {
        let told = |change| match change {
            Change::Began(trouble) => format!("+{}", trouble.kind),
            Change::Reworded => "~".to_owned(),
            Change::Ended(trouble, lasted) => format!("-{} {}", trouble.kind, lasted.as_secs()),
        };
        changes.into_iter().map(told).collect()
    }

    #[test]
    fn troubles_come_and_go_as_a_table() {
        use TroubleKind::{
            ConnectionLost, ConsumerMissing, NotAnswering, PermissionDenied, StreamMissing,
        };
        type Step = (u64, Part, Option<(TroubleKind, &'static str)>, &'static [&'static str]);
        let steps: [Step; 15] = [
            (0, LOW, Some((StreamMissing, "JOBS")), &["+stream_missing"]),
            // Said again, and by another part: the same trouble.
            (1, LOW, Some((StreamMissing, "JOBS")), &[]),
            (2, HIGH, Some((StreamMissing, "JOBS")), &[]),
            // The stream is there again; one lane's consumer is not.
            (5, LOW, Some((ConsumerMissing, "JOBS/low")), &["+consumer_missing"]),
            (6, HIGH, None, &["-stream_missing 6"]),
            (9, LOW, None, &["-consumer_missing 4"]),
            (9, LOW, None, &[]),
            // What no answer comes to while the connection is gone is no trouble of its own.
            (10, Part::Link, Some((ConnectionLost, "nats")), &["+connection_lost"]),
            (11, LOW, Some((NotAnswering, "JOBS")), &[]),
            (12, RESULTS, Some((PermissionDenied, "results")), &["+permission_denied"]),
            (15, Part::Link, None, &["-connection_lost 5"]),
            (16, LOW, Some((NotAnswering, "JOBS")), &["+not_answering"]),
            // One trouble gives way to another.
            (
                17,
                RESULTS,
                Some((StreamMissing, "RESULTS")),
                &["+stream_missing", "-permission_denied 5"],
            ),
            (18, LOW, None, &["-not_answering 2"]),
            (19, RESULTS, None, &["-stream_missing 2"]),
        ];
        let (mut troubles, start) = (Troubles::default(), Instant::now());
        for (seconds, part, says, expected) in steps {
            let now = start + Duration::from_secs(seconds);
            let changes = match says {
                Some((kind, place)) => troubles.report(part, trouble(part, kind, place), now),
                None => troubles.clear(part, now),
            };
            assert_eq!(told(changes), expected, "after {seconds} s");
        }
        assert!(troubles.list().is_empty());
        assert_eq!(troubles.parts(), 0);
    }

    #[test]
    fn other_words_for_a_trouble_are_no_other_trouble() {
        let mut troubles = Troubles::default();
        let first = trouble(LOW, TroubleKind::Full, "JOBS");
        let again = Trouble { what: "it still is".to_owned(), ..first.clone() };
        let now = Instant::now();
        assert_eq!(told(troubles.report(LOW, first.clone(), now)), ["+full"]);
        assert_eq!(told(troubles.report(LOW, again, now)), ["~"]);
        let listed = troubles.list();
        assert_eq!((listed.len(), listed[0].what.as_str()), (1, "it still is"));
        assert_eq!(listed[0].since, first.since);
    }

    #[test]
    fn what_cannot_be_settled_is_not_started() {
        let lane = LaneId { queue: 0, priority: Priority::Low };
        for (part, keeps) in [
            (RESULTS, true),
            (Part::Records(0, RecordKind::Attempt), true),
            (Part::Records(0, RecordKind::Dead), false),
            (Part::Records(1, RecordKind::Result), false),
            (Part::Acks(lane), true),
            (Part::Lane(lane), false),
            (Part::Timers(0), false),
            (Part::Link, false),
        ] {
            let mut troubles = Troubles::default();
            let reported = trouble(part, TroubleKind::PermissionDenied, "x");
            troubles.report(part, reported, Instant::now());
            assert_eq!(troubles.keep_from_starting(0), keeps, "{part:?}");
        }
    }
}
