//! Messages that are too large or hostile. Those that the client library cannot read are in `poison`.

use std::time::Duration;

use tidemill::{DeadLetter, Error, Handler, JobContext, JobError, NewJob, RetryPolicy, Status};

use crate::support::load::is_empty;
use crate::support::raw::publish_raw;
use crate::support::{
    GAP, Numbered, R1, Seen, Setup, Site, Sync, completion, dead, eventually, numbered, short_mill,
    stream_messages,
};

const JOBS: &str = "TIDEMILL_JOBS_default";

/// The largest payload with its headers that a jobs stream takes here: 1 MiB less 64 KiB.
const LARGEST: usize = (1 << 20) - (64 << 10);

/// 23. A job of the largest size is worked, fails, and is buried whole: its dead letter has room. One byte
/// more is refused, and a batch with such a one in it stores nothing.
#[tokio::test]
async fn the_largest_job_is_buried_whole_and_one_byte_more_refused() {
    let mill = short_mill(Sync::Lazy).await;
    let nats = mill.nats().await;
    let handler =
        Handler::raw("large", |_, _| async { Err(JobError::failed("x".repeat(100_000))) });
    let once = RetryPolicy::new(0, tidemill::Backoff::default());
    let worker = mill.worker().handler(handler.retry(once)).build().expect("valid");
    let running = worker.start().await.expect("starts");
    let mut size = LARGEST;
    // The subject and headers count too; how much they take is found out.
    let (job, payload) = loop {
        let payload = vec![b'1'; size];
        match mill.client.enqueue(NewJob::raw("large", payload.clone())).await {
            Ok(job) => break (job, payload),
            Err(error) => assert!(error.is_too_large(), "{error:?}"),
        }
        size -= 1;
        assert!(size > LARGEST - 1024, "nothing near the limit goes through");
    };
    let done = completion(&job).await;
    assert_eq!((done.status, done.attempt), (Status::Dead, 1));
    assert_eq!(dead(&mill).await.pop().expect("one").payload, payload);
    running.drain().await;
    let batch = [NewJob::raw("large", "1"), NewJob::raw("large", vec![b'1'; size + 1])];
    let refused = mill.client.enqueue_all(batch).await.expect_err("too large");
    assert!(refused.is_too_large(), "{refused:?}");
    assert_eq!(stream_messages(&nats, JOBS).await, 0, "none of it is there");
}

/// 24. Headers with line ends are refused here; those that would steer the broker are refused by it, from
/// whatever client they come; and 60 KiB of headers travel to the handler.
#[tokio::test]
async fn headers_steer_nothing() {
    hostile_headers(&Site::start(R1).await).await;
}

async fn hostile_headers(site: &Site) {
    let nats = site.nats().await;
    for (name, value) in [("X", "a\r\nNats-Rollup: all"), ("X\r\nY", "a"), ("Nats-Rollup", "all")] {
        let refused = site.client.enqueue(numbered(1)).header(name, value).await;
        assert!(refused.as_ref().is_err_and(Error::is_invalid), "{refused:?}");
    }
    site.client.enqueue(numbered(1)).await.expect("stored");
    for (name, value) in [
        ("Nats-Rollup", "all"),
        ("Nats-Rollup", "sub"),
        ("Nats-TTL", "1s"),
        ("Nats-Schedule", "@at 2030-01-01T00:00:00Z"),
    ] {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert(name, value);
        let subject = "tidemill.jobs.default.normal.numbered";
        let answer = nats.request_with_headers(subject, headers, r#"{"n":2}"#.into()).await;
        let answer = answer.expect("an answer").payload;
        assert!(String::from_utf8_lossy(&answer).contains("err_code"), "{name}: {answer:?}");
    }
    assert_eq!(stream_messages(&nats, JOBS).await, 1, "the first is there, and no other");
    let seen = Seen::default();
    let note = seen.clone();
    let handler = move |_: Numbered, context: JobContext| {
        note.push(context.headers().get("X-Much").map(str::len));
        async { Ok::<_, JobError>(()) }
    };
    let running = site.worker().handle(handler).build().expect("ok").start().await.expect("ok");
    let much = site.client.enqueue(numbered(3)).header("X-Much", "x".repeat(60 << 10)).await;
    assert_eq!(completion(&much.expect("stored")).await.status, Status::Done);
    assert!(seen.all().contains(&Some(60 << 10)));
    running.drain().await;
    is_empty(&nats).await;
}

/// Publishes jobs with these header blocks among good ones, which must not be held up by them; how they
/// ended, if they have no more to say than that they are gone from the queue.
async fn among_good_ones(site: &Site, blocks: &[&[u8]]) -> Vec<DeadLetter> {
    let handler = |_: Numbered, _: JobContext| async { Ok::<_, JobError>(()) };
    let running = site.worker().handle(handler).build().expect("ok").start().await.expect("ok");
    for (n, headers) in blocks.iter().enumerate() {
        let subject = format!("tidemill.jobs.default.normal.numbered.odd-{n}");
        publish_raw(site.node(), [(subject.into_bytes(), headers.to_vec())]).await;
    }
    for n in 1..=20 {
        let job = site.client.enqueue(numbered(n)).await.expect("stored");
        let done = job.completion_within(GAP).await.expect("not held up");
        assert_eq!((done.status, done.attempt), (Status::Done, 1), "{n}");
    }
    is_empty(&site.nats().await).await;
    let mut letters = site.dead().await;
    letters.sort_by(|a, b| a.id.as_str().cmp(b.id.as_str()));
    running.drain().await;
    letters
}

/// What no client can read, and what is said of it.
const UNREADABLE: [(&[u8], &str); 3] = [
    (b"NATS/1.0\r\nX-Name: \xff\xfe\r\n\r\n", "UTF-8"),
    (b"NATS/1.0\r\nno colon here\r\n\r\n", "colon"),
    (b"rubbish\r\n\r\n", "NATS/1.0"),
];

async fn unreadable_headers(site: &Site) {
    let letters = among_good_ones(site, &UNREADABLE.map(|(headers, _)| headers)).await;
    assert_eq!(letters.len(), UNREADABLE.len(), "{letters:?}");
    for (n, (letter, (_, flaw))) in letters.iter().zip(UNREADABLE).enumerate() {
        assert_eq!(
            (letter.info.reason.as_str(), letter.id.as_str()),
            ("bad_header", &*format!("odd-{n}"))
        );
        assert!(letter.info.errors[0].message.contains(flaw), "{letter:?}");
        assert_eq!(letter.payload, &b"{\"n\":0}"[..]);
    }
}

/// 22. A payload of rubbish among good ones: it is buried at first sight, and the others are worked
/// without a pause.
#[tokio::test]
async fn rubbish_among_good_jobs_costs_them_nothing() {
    rubbish(&Site::start(R1).await).await;
}

async fn rubbish(site: &Site) {
    let handler = |_: Numbered, _: JobContext| async { Ok::<_, JobError>(()) };
    let running = site.worker().handle(handler).build().expect("ok").start().await.expect("ok");
    let jobs = (0..200_u64).map(|n| match n % 4 {
        0 => NewJob::raw("numbered", vec![0xff, 0x00, n as u8]),
        _ => NewJob::new(&numbered(n)),
    });
    let stored = site.client.enqueue_many(jobs).await;
    for (n, job) in stored.into_iter().enumerate() {
        let done = job.expect("stored").completion_within(Duration::from_secs(20)).await;
        let done = done.expect("in time");
        let end = if n % 4 == 0 { Status::Dead } else { Status::Done };
        assert_eq!((done.status, done.attempt), (end, 1), "{n}");
    }
    assert_eq!(site.dead().await.len(), 50);
    running.drain().await;
}

/// In a row: rubbish among good jobs, headers that would steer the broker, headers that cannot be read.
pub(crate) async fn rubbish_and_hostile_headers(setup: Setup) {
    let site = Site::start(setup).await;
    rubbish(&site).await;
    site.anew("headers that would steer the broker").await;
    hostile_headers(&site).await;
    site.anew("headers that cannot be read").await;
    unreadable_headers(&site).await;
    site.copies_agree().await;
}

/// 24. So many headers that no copy of the job would have room for its own: such a job is refused here,
/// and buried where another client has let it in; its letter keeps what it has room for.
#[tokio::test]
async fn headers_that_leave_no_room_for_those_of_copies_are_buried() {
    let mill = short_mill(Sync::Lazy).await;
    let nats = mill.nats().await;
    let refused = mill.client.enqueue(numbered(1)).header("X", "x".repeat(63 << 10)).await;
    assert!(refused.as_ref().is_err_and(Error::is_too_large), "{refused:?}");
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("X-Small", "kept");
    for (name, kibibytes) in [("X-Large", 50), ("X-Less", 13)] {
        headers.insert(name, "x".repeat(kibibytes << 10));
    }
    let subject = "tidemill.jobs.default.normal.numbered.much";
    let answer = nats.request_with_headers(subject, headers, r#"{"n":2}"#.into()).await;
    let answer = answer.expect("an answer").payload;
    assert!(!String::from_utf8_lossy(&answer).contains("error"), "{answer:?}");
    let handler = |_: Numbered, _: JobContext| async { Ok::<_, JobError>(()) };
    let running = mill.worker().handle(handler).build().expect("ok").start().await.expect("ok");
    let letter = eventually("a dead letter", || async { dead(&mill).await.pop() }).await;
    assert_eq!((letter.info.reason.as_str(), letter.info.attempts), ("bad_header", 0));
    assert_eq!(letter.headers.get("X-Small"), Some("kept"));
    assert_eq!(letter.headers.get("Tidemill-Headers-Left-Out"), Some("1"));
    assert_eq!(letter.headers.get("X-Less").map(str::len), Some(13 << 10));
    is_empty(&nats).await;
    running.drain().await;
}
