//! Subjects: where jobs, records and events are published. See the crate docs for the table.

use crate::priority::Priority;
use crate::token::{JobId, Kind, Namespace, Queue, RunId, is_token};

/// The token that stands for the run where the run is the id.
const RUN_IS_ID: &str = "_";

/// The subject to publish a job to; without an id the broker's sequence becomes the id.
pub(crate) fn job_subject(
    ns: &Namespace,
    queue: &Queue,
    priority: Priority,
    kind: &Kind,
    id: Option<&JobId>,
) -> String {
    let id = id.map_or("", JobId::as_str);
    let tokens = [ns.as_str(), "jobs", queue.as_str(), priority.as_str(), kind.as_str(), id];
    let count = if id.is_empty() { tokens.len() - 1 } else { tokens.len() };
    tokens[..count].join(".")
}

/// The one string by which every guard on a jobs stream names an id. It must always be exactly
/// this: while publishes are in flight, a cluster compares guards as strings.
pub(crate) fn guard_subject(ns: &Namespace, queue: &Queue, kind: &Kind, id: &JobId) -> String {
    format!("{ns}.jobs.{queue}.*.{kind}.{id}")
}

/// What a worker announces about a running job; not stored.
pub(crate) fn events_subject(ns: &Namespace, queue: &Queue, kind: &Kind, id: &JobId) -> String {
    format!("{ns}.events.{queue}.{kind}.{id}")
}

/// The three streams of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum RecordKind {
    Result,
    Attempt,
    Dead,
}

impl RecordKind {
    pub(crate) const fn token(self) -> &'static str {
        match self {
            Self::Result => "results",
            Self::Attempt => "attempts",
            Self::Dead => "dead",
        }
    }
}

/// Which run a record is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RecordKey {
    pub(crate) queue: Queue,
    pub(crate) kind: Kind,
    pub(crate) id: JobId,
    pub(crate) run: RunId,
}

impl RecordKey {
    /// Of a run that is written in a test.
    #[cfg(test)]
    pub(crate) fn of(queue: &str, kind: &str, id: &str, run: &str) -> Self {
        Self {
            queue: Queue::new(queue).expect("a queue"),
            kind: Kind::new(kind).expect("a kind"),
            id: JobId::new(id).expect("an id"),
            run: RunId::new(run).expect("a run"),
        }
    }

    /// Reads a record's subject; `None` if it is none of that kind.
    pub(crate) fn parse(ns: &Namespace, record: RecordKind, subject: &str) -> Option<Self> {
        let rest = subject.strip_prefix(ns.as_str())?.strip_prefix('.')?;
        let mut tokens = rest.strip_prefix(record.token())?.strip_prefix('.')?.split('.');
        let queue = Queue::new(tokens.next()?).ok()?;
        Self::parse_tail(queue, tokens)
    }

    /// Reads the last three tokens of a subject, `<kind>.<id>.<run>`.
    fn parse_tail<'a>(queue: Queue, mut tail: impl Iterator<Item = &'a str>) -> Option<Self> {
        let kind = Kind::new(tail.next()?).ok()?;
        let id = JobId::new(tail.next()?).ok()?;
        let run = match tail.next()? {
            RUN_IS_ID => id.as_run(),
            run => RunId::new(run).ok()?,
        };
        tail.next().is_none().then_some(Self { queue, kind, id, run })
    }

    fn run_token(&self) -> &str {
        if self.run.as_str() == self.id.as_str() { RUN_IS_ID } else { self.run.as_str() }
    }
}

/// The subject of one run's records.
pub(crate) fn record_subject(ns: &Namespace, record: RecordKind, key: &RecordKey) -> String {
    let RecordKey { queue, kind, id, .. } = key;
    let tokens =
        [ns.as_str(), record.token(), queue.as_str(), kind.as_str(), id.as_str(), key.run_token()];
    tokens.join(".")
}

/// The subjects of the records of a queue, or only of one kind, or of one id over all its runs.
pub(crate) fn record_filter(
    ns: &Namespace,
    record: RecordKind,
    queue: &Queue,
    kind: Option<&Kind>,
    id: Option<&JobId>,
) -> String {
    let kind = kind.map_or("*", Kind::as_str);
    let id = id.map_or("*", JobId::as_str);
    format!("{ns}.{}.{queue}.{kind}.{id}.*", record.token())
}

/// Where a timer waits: the broker holds one message there until it is due.
pub(crate) fn timer_subject(ns: &Namespace, lane: Priority, key: &RecordKey) -> String {
    timed("timers", ns, lane, key)
}

/// Where a timer comes out when it is due.
pub(crate) fn due_subject(ns: &Namespace, lane: Priority, key: &RecordKey) -> String {
    timed("due", ns, lane, key)
}

fn timed(what: &str, ns: &Namespace, lane: Priority, key: &RecordKey) -> String {
    let RecordKey { queue, kind, id, .. } = key;
    format!("{ns}.{what}.{queue}.{lane}.{kind}.{id}.{}", key.run_token())
}

/// The timers of an id over all its runs and lanes; `what` is `timers` or `due`.
pub(crate) fn timed_filter(
    what: &str,
    ns: &Namespace,
    queue: &Queue,
    kind: Option<&Kind>,
    id: Option<&JobId>,
) -> String {
    let kind = kind.map_or("*", Kind::as_str);
    let id = id.map_or("*", JobId::as_str);
    format!("{ns}.{what}.{queue}.*.{kind}.{id}.*")
}

/// All that the timers stream may hold of one run: its timer on any lane, or what that has put out.
pub(crate) fn timed_run_filter(ns: &Namespace, key: &RecordKey) -> String {
    let RecordKey { queue, kind, id, .. } = key;
    format!("{ns}.*.{queue}.*.{kind}.{id}.{}", key.run_token())
}

/// Reads the subject of a timer that is due.
pub(crate) fn parse_due(ns: &Namespace, subject: &str) -> Option<(Priority, RecordKey)> {
    parse_timed("due", ns, subject)
}

/// Reads the subject of a timer, waiting (`timers`) or due (`due`).
pub(crate) fn parse_timed(
    what: &str,
    ns: &Namespace,
    subject: &str,
) -> Option<(Priority, RecordKey)> {
    let rest = subject.strip_prefix(ns.as_str())?.strip_prefix('.')?;
    let mut tokens = rest.strip_prefix(what)?.strip_prefix('.')?.split('.');
    let queue = Queue::new(tokens.next()?).ok()?;
    let lane = tokens.next()?.parse().ok()?;
    Some((lane, RecordKey::parse_tail(queue, tokens)?))
}

/// What a job's subject says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct JobSubject {
    pub(crate) kind: Kind,
    pub(crate) id: Option<JobId>,
}

/// A job's subject that fits no record; `kind` is what can be saved of it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub(crate) struct BadSubject {
    pub(crate) kind: Kind,
    problem: String,
}

impl JobSubject {
    /// Reads the part of a job's subject behind the lane: `<kind>[.<id>]`.
    pub(crate) fn parse(
        ns: &Namespace,
        queue: &Queue,
        priority: Priority,
        subject: &str,
    ) -> Result<Self, BadSubject> {
        let lane = [ns.as_str(), "jobs", queue.as_str(), priority.as_str()];
        let mut rest = lane.iter();
        let tail =
            rest.try_fold(subject, |rest, token| rest.strip_prefix(token)?.strip_prefix('.'));
        Self::parse_tail(tail.unwrap_or_default())
    }

    fn parse_tail(tail: &str) -> Result<Self, BadSubject> {
        let mut tokens = tail.split('.');
        let kind = tokens.next().unwrap_or_default();
        let id = tokens.next();
        let extra = tokens.next();
        let bad = |problem: String| {
            let kind = if is_token(kind) { kind } else { "_" };
            let kind = Kind::new(kind).expect("it is a token, or the underscore");
            Err(BadSubject { kind, problem })
        };
        if extra.is_some() {
            return bad(format!("subject ends in {tail:?}, which is more than <kind>.<id>"));
        }
        match (Kind::new(kind), id.map(JobId::new).transpose()) {
            (Ok(kind), Ok(id)) => Ok(Self { kind, id }),
            (Err(error), _) | (Ok(_), Err(error)) => bad(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ns() -> Namespace {
        Namespace::default()
    }

    fn key(id: &str, run: &str) -> RecordKey {
        RecordKey {
            queue: Queue::default(),
            kind: Kind::new("send_email").expect("valid"),
            id: JobId::new(id).expect("valid"),
            run: RunId::new(run).expect("valid"),
        }
    }

    #[test]
    fn the_run_token_is_an_underscore_where_run_and_id_are_one() {
        let one = key("order-17", "order-17");
        let subject = record_subject(&ns(), RecordKind::Result, &one);
        assert_eq!(subject, "tidemill.results.default.send_email.order-17._");
        assert_eq!(RecordKey::parse(&ns(), RecordKind::Result, &subject), Some(one));
        let two = key("order-17", "d-3");
        let subject = record_subject(&ns(), RecordKind::Dead, &two);
        assert_eq!(subject, "tidemill.dead.default.send_email.order-17.d-3");
        assert_eq!(RecordKey::parse(&ns(), RecordKind::Dead, &subject), Some(two));
    }

    #[test]
    fn timers_come_out_as_what_went_in() {
        for key in [key("order-17", "order-17"), key("order-17", "d-3")] {
            let waiting = timer_subject(&ns(), Priority::Low, &key);
            assert!(waiting.starts_with("tidemill.timers.default.low.send_email.order-17."));
            let due = due_subject(&ns(), Priority::Low, &key);
            assert_eq!(parse_due(&ns(), &due), Some((Priority::Low, key)));
        }
        for bad in ["tidemill.due.default.low.a.b", "tidemill.due.default.urgent.a.b.c", "other"] {
            assert_eq!(parse_due(&ns(), bad), None, "{bad}");
        }
    }

    #[test]
    fn job_subjects_with_and_without_id() {
        let parse =
            |subject: &str| JobSubject::parse(&ns(), &Queue::default(), Priority::High, subject);
        let job = parse("tidemill.jobs.default.high.send_email").expect("valid");
        assert_eq!((job.kind.as_str(), job.id), ("send_email", None));
        let job = parse("tidemill.jobs.default.high.send_email.a-1").expect("valid");
        assert_eq!(job.id.expect("given").as_str(), "a-1");
    }

    #[test]
    fn a_bad_subject_keeps_what_fits() {
        let long = "x".repeat(65);
        let table = [
            ("send_email.a.b".to_owned(), "send_email"),
            (format!("{long}.a"), "_"),
            (format!("send_email.{long}"), "send_email"),
            ("sänd".to_owned(), "_"),
        ];
        for (tail, kind) in table {
            let subject = format!("tidemill.jobs.default.low.{tail}");
            let bad = JobSubject::parse(&ns(), &Queue::default(), Priority::Low, &subject)
                .expect_err(&tail);
            assert_eq!(bad.kind.as_str(), kind);
        }
    }

    proptest! {
        #[test]
        fn record_subjects_round_trip(
            queue in "[A-Za-z0-9_-]{1,64}", kind in "[A-Za-z0-9_-]{1,64}",
            id in "[A-Za-z0-9_-]{2,64}", run in "[A-Za-z0-9_-]{2,64}",
        ) {
            let key = RecordKey {
                queue: Queue::new(queue).expect("valid"),
                kind: Kind::new(kind).expect("valid"),
                id: JobId::new(id).expect("valid"),
                run: RunId::new(run).expect("valid"),
            };
            let subject = record_subject(&ns(), RecordKind::Attempt, &key);
            prop_assert_eq!(RecordKey::parse(&ns(), RecordKind::Attempt, &subject), Some(key));
        }

        #[test]
        fn job_subjects_and_timers_round_trip(
            queue in "[A-Za-z0-9_-]{1,64}", kind in "[A-Za-z0-9_-]{1,64}",
            id in prop::option::of("[A-Za-z0-9_-]{2,64}"), run in "[A-Za-z0-9_-]{2,64}",
            lane in prop::sample::select(Priority::ALL.to_vec()),
        ) {
            let (queue, kind) = (Queue::new(queue).expect("valid"), Kind::new(kind).expect("valid"));
            let id = id.map(|id| JobId::new(id).expect("valid"));
            let subject = job_subject(&ns(), &queue, lane, &kind, id.as_ref());
            let read = JobSubject::parse(&ns(), &queue, lane, &subject).expect("valid");
            prop_assert_eq!(&read, &JobSubject { kind: kind.clone(), id: id.clone() });
            if let Some(id) = id {
                let key = RecordKey { queue, kind, id, run: RunId::new(run).expect("valid") };
                for (what, subject) in [
                    ("timers", timer_subject(&ns(), lane, &key)),
                    ("due", due_subject(&ns(), lane, &key)),
                ] {
                    prop_assert_eq!(parse_timed(what, &ns(), &subject), Some((lane, key.clone())));
                }
            }
        }

        #[test]
        fn no_subject_panics(text in ".*") {
            let _ = JobSubject::parse_tail(&text);
            let _ = RecordKey::parse(&ns(), RecordKind::Result, &text);
        }
    }
}
