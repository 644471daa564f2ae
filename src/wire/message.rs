//! A message on a jobs stream: whose run it is, what it asks for, or why it cannot be taken.

use super::headers::Headers;
use super::job::{JobHeaders, JobOptions};
use super::subject::{JobSubject, RecordKey};
use crate::priority::Priority;
use crate::token::{JobId, Namespace, Queue, RunId};

/// The most bytes of headers that a job may have. The broker takes 64 KiB, and copies of a job have more
/// than it: those that set a timer, and those that count attempts.
pub(crate) const MAX_HEADER_BYTES: usize = 62 * 1024;

/// What can be read off a message before anything is looked up.
pub(crate) enum Reading {
    Job {
        key: RecordKey,
        options: JobOptions,
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
pub(crate) fn read_job(
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
        (Ok(protocol), _) if protocol > super::PROTOCOL_VERSION => Reading::NewerProtocol,
        (_, Err(bad)) => {
            let problem = bad.to_string();
            Reading::BadSubject { key: key(bad.kind, None, None), problem }
        }
        (Err(error), Ok(subject)) => Reading::BadHeader {
            key: key(subject.kind, subject.id, None),
            problem: error.to_string(),
        },
        (Ok(_), Ok(subject)) if headers.wire_bytes() > MAX_HEADER_BYTES => Reading::BadHeader {
            key: key(subject.kind, subject.id, None),
            problem: format!(
                "its headers have {} bytes, and at most {MAX_HEADER_BYTES} leave room for those that its \
                 copies need",
                headers.wire_bytes()
            ),
        },
        (Ok(_), Ok(subject)) => match JobOptions::parse(headers) {
            Ok(options) => {
                Reading::Job { key: key(subject.kind, subject.id, options.run.clone()), options }
            }
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
            let reading = read_job(&ns, &queue, priority, &vector.subject, &headers, vector.seq);
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
