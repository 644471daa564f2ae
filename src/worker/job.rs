//! A job in a worker's hands.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::lanes::LaneId;
use super::lease::Lease;
use crate::priority::Priority;
use crate::retry::RetryPolicy;
use crate::token::{JobId, Namespace, Queue, RunId};
use crate::wire::time::Time;
use crate::wire::{Headers, JobHeaders, JobSubject, RecordKey};

/// A job that this worker holds.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) lane: LaneId,
    pub(crate) key: RecordKey,
    /// Its sequence in the jobs stream.
    pub(crate) sequence: u64,
    /// When the broker stored it.
    pub(crate) stored: Time,
    pub(crate) headers: Headers,
    pub(crate) options: JobHeaders,
    pub(crate) payload: Bytes,
    pub(crate) lease: Arc<Lease>,
    /// The attempt that is next, or running.
    pub(crate) attempt: Attempt,
}

/// Where a job stands in its attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attempt {
    /// Counted from 1.
    pub(crate) number: u32,
    /// How often it has been snoozed.
    pub(crate) snoozes: u32,
    /// Whether the attempt has to be written down before it starts. Only an undisturbed first one
    /// need not be.
    pub(crate) announce: bool,
}

impl Attempt {
    /// The first of a job that nobody has touched.
    pub(crate) const UNDISTURBED: Self = Self { number: 1, snoozes: 0, announce: false };
}

impl Work {
    pub(crate) fn received(&self) -> Instant {
        self.lease.received()
    }

    /// When the job was enqueued: as its producer says, else when it was stored.
    pub(crate) fn enqueued_at(&self) -> Time {
        self.options.created_at.unwrap_or(self.stored)
    }

    /// The kind's policy with what the job itself asks for.
    pub(crate) fn policy(&self, of_kind: &RetryPolicy) -> RetryPolicy {
        RetryPolicy {
            max_retries: self.options.max_retries.unwrap_or(of_kind.max_retries),
            backoff: self.options.backoff.clone().unwrap_or_else(|| of_kind.backoff.clone()),
        }
    }
}

/// What can be read off a delivery before anything is looked up.
pub(crate) enum Reading {
    Job {
        key: RecordKey,
        options: Box<JobHeaders>,
    },
    /// It needs a newer protocol than ours.
    NewerProtocol,
    /// A header of ours that does not parse.
    BadHeader {
        key: RecordKey,
        problem: String,
    },
    /// A subject that fits no record.
    BadSubject {
        key: RecordKey,
        problem: String,
    },
}

/// Reads the subject and headers of the message at `sequence`.
pub(crate) fn read(
    ns: &Namespace,
    queue: &Queue,
    priority: Priority,
    subject: &str,
    headers: &Headers,
    sequence: u64,
) -> Reading {
    let key = |kind, id: Option<JobId>, run: Option<RunId>| {
        let id = id.unwrap_or_else(|| JobId::of_sequence(sequence));
        let run = run.unwrap_or_else(|| id.default_run(sequence));
        RecordKey { queue: queue.clone(), kind, id, run }
    };
    let subject = JobSubject::parse(ns, queue, priority, subject);
    match (JobHeaders::protocol(headers), subject) {
        (Ok(protocol), _) if protocol > crate::wire::PROTOCOL_VERSION => Reading::NewerProtocol,
        (_, Err(bad)) => {
            let problem = bad.to_string();
            Reading::BadSubject { key: key(bad.kind, None, None), problem }
        }
        (Err(error), Ok(subject)) => Reading::BadHeader {
            key: key(subject.kind, subject.id, None),
            problem: error.to_string(),
        },
        (Ok(_), Ok(subject)) => match JobHeaders::parse(headers) {
            Ok(options) => Reading::Job {
                key: key(subject.kind, subject.id, options.run.clone()),
                options: Box::new(options),
            },
            Err(error) => Reading::BadHeader {
                key: key(subject.kind, subject.id, None),
                problem: error.to_string(),
            },
        },
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::wire::{RecordKind, record_subject};

    /// A message, and what becomes of it by the protocol's text.
    #[derive(Deserialize)]
    struct Vector {
        subject: String,
        #[serde(default)]
        headers: Vec<(String, String)>,
        seq: u64,
        id: String,
        run: String,
        completion: String,
        #[serde(default)]
        buried: Option<String>,
    }

    #[test]
    fn messages_are_read_as_the_protocol_says() {
        let vectors = crate::wire::protocol_block("json,messages");
        let mut count = 0;
        for line in vectors.lines() {
            let vector: Vector = serde_json::from_str(line).expect(line);
            let headers: Headers = vector.headers.into_iter().collect();
            let (ns, queue) = (Namespace::default(), Queue::default());
            let priority = Priority::High;
            let reading = read(&ns, &queue, priority, &vector.subject, &headers, vector.seq);
            let (key, buried) = match reading {
                Reading::Job { key, .. } => (key, None),
                Reading::BadHeader { key, .. } => (key, Some("bad_header")),
                Reading::BadSubject { key, .. } => (key, Some("bad_subject")),
                Reading::NewerProtocol => panic!("{line}"),
            };
            assert_eq!((key.id.as_str(), key.run.as_str()), (&*vector.id, &*vector.run), "{line}");
            assert_eq!(record_subject(&ns, RecordKind::Result, &key), vector.completion, "{line}");
            assert_eq!(buried, vector.buried.as_deref(), "{line}");
            count += 1;
        }
        assert!(count >= 7, "{count} vectors");
    }
}
