//! Doors for fuzzing: what reads bytes that anybody may have written, each with what must hold for all
//! bytes. Behind the feature `fuzzing`, which is for `fuzz/` alone and promises nothing.
//!
//! The tests of this module put arbitrary and broken input through the same doors.

use crate::broker::{read_ack_subject, read_block, read_context};
use crate::client::NewJob;
use crate::priority::Priority;
use crate::schedule::Schedule;
use crate::token::{Namespace, Queue};
use crate::wire::time::{self, Time};
use crate::wire::{
    AttemptRecord, Completion, CronKey, CronNote, DeadInfo, Firing, Headers, JobCopy, JobHeaders,
    Reading, RecordKey, RecordKind, name, parse_due, parse_record, read_job, record_subject,
};

/// The sequence of the message that is read.
const SEQUENCE: u64 = 42;

/// A message on a jobs stream: the first line is its subject, the others are its headers.
pub fn headers(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.lines();
    let subject = format!("tidemill.jobs.default.high.{}", lines.next().unwrap_or_default());
    let headers: Headers =
        lines.filter_map(|line| line.split_once(':')).map(|(n, v)| (n, v.trim())).collect();
    let (ns, queue) = (Namespace::default(), Queue::default());
    let reading = read_job(&ns, &queue, Priority::High, &subject, &headers, SEQUENCE);
    let key = match &reading {
        Reading::Job { key, .. }
        | Reading::BadHeader { key, .. }
        | Reading::BadSubject { key, .. } => key,
        Reading::NewerProtocol => return,
    };
    for kind in [RecordKind::Result, RecordKind::Attempt, RecordKind::Dead] {
        let there = RecordKey::parse(&ns, kind, &record_subject(&ns, kind, key));
        assert_eq!(there.as_ref(), Some(key), "its records are found again");
    }
    if let Reading::Job { key, .. } = &reading {
        let copy = JobCopy {
            key,
            lane: Priority::Low,
            headers: &headers,
            attempts_used: 3,
            enqueued_at: Time::MAX_UTC,
            run_after: Some(Time::MIN_UTC),
        };
        let copied = JobHeaders::parse(&copy.headers()).expect("a copy can be read");
        assert_eq!((copied.run.as_ref(), copied.attempts_used), (Some(&key.run), Some(3)));
        assert!(copied.tags.len() <= 32);
    }
}

/// Header blocks as any client may have written them, and the subject before the first line end. Whatever
/// it is, a copy can carry it on, and a worker can tell what it is.
pub fn blocks(bytes: &[u8]) {
    let (subject, block) =
        bytes.split_at(bytes.iter().position(|byte| *byte == b'\n').unwrap_or(0));
    let headers = read_block(&String::from_utf8_lossy(subject), block);
    let trimmed = |headers: &Headers| {
        let pairs = headers.iter().map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
        let mut headers: Headers = pairs.collect();
        headers.sort();
        headers
    };
    let lines: String =
        headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let again = read_block("a", format!("NATS/1.0\r\n{lines}\r\n").as_bytes());
    assert_eq!(trimmed(&again), trimmed(&headers), "it is carried on as it is");
}

/// Subjects of all kinds, and the reply subjects of deliveries.
pub fn subjects(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let ns = Namespace::default();
    for kind in [RecordKind::Result, RecordKind::Attempt, RecordKind::Dead] {
        if let Some(key) = RecordKey::parse(&ns, kind, &text) {
            let again = RecordKey::parse(&ns, kind, &record_subject(&ns, kind, &key));
            assert_eq!(again, Some(key));
        }
    }
    if let Some(key) = CronKey::parse(&ns, &text) {
        assert_eq!(key.subject(&ns), text);
    }
    let _ = parse_due(&ns, &text);
    read_ack_subject(&text);
}

/// The bodies of records. What is read is written so that it is read again as the same.
pub fn records(bytes: &[u8]) {
    let queue = Queue::default();
    let subject = "tidemill.results.default.send_email.order-17.r1";
    let Some(key) = RecordKey::parse(&Namespace::default(), RecordKind::Result, subject) else {
        return;
    };
    debug_assert_eq!(key.queue, queue);
    if let Some(completion) = parse_record::<Completion>(&key, bytes) {
        let text = serde_json::to_string(&completion).expect("serializes");
        let again: Completion = parse_record(&key, text.as_bytes()).expect("is read again");
        assert_eq!(serde_json::to_string(&again).expect("serializes"), text);
    }
    if let Some(entry) = parse_record::<AttemptRecord>(&key, bytes) {
        assert!(entry.used() <= entry.attempt);
        let text = serde_json::to_string(&entry).expect("serializes");
        let again: AttemptRecord = parse_record(&key, text.as_bytes()).expect("is read again");
        assert_eq!(serde_json::to_string(&again).expect("serializes"), text);
    }
    if let Ok(info) = serde_json::from_slice::<DeadInfo>(bytes) {
        let text = serde_json::to_string(&info).expect("serializes");
        let again: DeadInfo = serde_json::from_str(&text).expect("is read again");
        assert_eq!(serde_json::to_string(&again).expect("serializes"), text);
    }
}

/// Schedules, and what a cron entry says of itself.
pub fn cron(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(schedule) = text.parse::<Schedule>() {
        let wire = schedule.to_wire();
        let again: Schedule = wire.parse().expect("what the broker is given can be read");
        assert_eq!(again.to_wire(), wire);
        #[cfg(feature = "cron")]
        {
            let now = time::from_nanos(1_800_000_000_000_000_000);
            assert!(schedule.next(now, now).is_none_or(|next| next > now), "{text}");
        }
    }
    let ns = Namespace::default();
    let headers: Headers = [
        (name::SCHEDULER, "tidemill.cron.default.low.report.nightly"),
        (name::CRON, &*text),
        (name::SCHEDULE_NEXT, &*text),
    ]
    .into_iter()
    .collect();
    let note = CronNote::of(&headers);
    let firing = Firing::read(&ns, &headers, SEQUENCE, time::from_nanos(0)).expect("a firing");
    assert_eq!(firing.headers.get(name::UNIQUE).is_some(), note.skip_overlap);
    assert!(JobHeaders::parse(&firing.headers).is_ok(), "its job can be read");
}

/// Lines of a file of jobs. What is taken can be stored, and read by a worker.
pub fn ndjson(bytes: &[u8]) {
    for line in bytes.split(|byte| *byte == b'\n') {
        if let Ok(job) = NewJob::from_json(line) {
            let job = job.finish().expect("it was checked");
            JobHeaders::parse(&job.headers).expect("a worker can read it");
            assert!(job.payload.len() <= line.len().max(2));
        }
    }
}

/// Context files of the `nats` command line.
pub fn context(bytes: &[u8]) {
    if let Some(options) = read_context(bytes) {
        let _ = format!("{options:?}");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Door = fn(&[u8]);

    const DOORS: [Door; 7] = [headers, blocks, subjects, records, cron, ndjson, context];

    /// Input that means something, to be broken.
    fn samples() -> Vec<&'static str> {
        vec![
            "send_email.order-17\nTidemill-Run: r1\nTidemill-Backoff: exp:2000:2:3600000\nX: y",
            "send_email\nTidemill-Run-After: +5\nTidemill-Tags: a,b\nNats-Rollup: all",
            "a.b\nNATS/1.0\r\nTidemill-Run: a\r\n b\r\nX: y\rz\r\n\r\n",
            "a.b\nNATS/1.0 404 None\r\nX: y\nZ\r\n",
            "tidemill.results.default.send_email.order-17._",
            "tidemill.due.default.low.send_email.order-17.r1",
            "tidemill.cron.default.low.report.nightly",
            "$JS.ACK.TIDEMILL_JOBS_default.high.3.179.7.1795000000000000000.12",
            "$JS.ACK._.hash.TIDEMILL_JOBS_default.high.3.179.7.1795000000000000000.12",
            crate::wire::protocol_block("json,completion"),
            crate::wire::protocol_block("json,attempt"),
            crate::wire::protocol_block("json,dead"),
            crate::wire::protocol_block("json,cron"),
            "0 9 * * mon-fri",
            "30 */5 0-23 1,15 jan-dec *",
            "@every 1h30m",
            "@daily",
            r#"{"kind":"resize","payload":{"w":[1.50,null]},"priority":"low","id":"a-1","tags":["a"],
                "run_at":"2036-12-01T09:00:00Z","headers":{"X-Tenant":"blue"}}"#,
            r#"{"kind":"resize","unique":"k","unique_for_ms":5000,"backoff":"fixed:500"}"#,
            r#"{"url":"tls://a,tls://b","user":"me","password":"p","cert":"/c","key":"/k"}"#,
        ]
    }

    #[test]
    fn samples_go_through() {
        for sample in samples() {
            DOORS.iter().for_each(|door| door(sample.as_bytes()));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

        #[test]
        fn any_bytes_go_through(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            DOORS.iter().for_each(|door| door(&bytes));
        }

        #[test]
        fn any_text_goes_through(text in ".{0,200}") {
            DOORS.iter().for_each(|door| door(text.as_bytes()));
        }

        #[test]
        fn broken_samples_go_through(
            sample in prop::sample::select(samples()),
            breaks in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..4), 1..6),
        ) {
            let mut bytes = sample.as_bytes().to_vec();
            for (at, byte, how) in breaks {
                let at = at.index(bytes.len().max(1)).min(bytes.len());
                match how {
                    0 => bytes.insert(at, byte),
                    1 => bytes.truncate(at),
                    2 => bytes.extend_from_within(..at),
                    _ => {
                        if let Some(there) = bytes.get_mut(at) {
                            *there = byte;
                        }
                    }
                }
            }
            DOORS.iter().for_each(|door| door(&bytes));
        }
    }

    #[test]
    fn what_is_deep_or_long_is_bounded() {
        let deep =
            format!(r#"{{"kind":"a","payload":{}1{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        let long = format!("send_email\nTidemill-Tags: {}", "a,".repeat(100_000));
        let numbers = format!("{} * * * *", "1,".repeat(100_000));
        let name = "x".repeat(1_000_000);
        for text in [deep, long, numbers, name] {
            DOORS.iter().for_each(|door| door(text.as_bytes()));
        }
    }
}
