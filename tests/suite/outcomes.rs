//! What handlers say and what becomes of their jobs; and what bad input gets.

use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use tidemill::{
    AttemptEvent, Backoff, DeadFilter, DeadLetter, Handler, JobContext, JobError, NewJob, Next,
    Queue, RecordFilter, RetryPolicy, Since, Status,
};

use crate::support::{Mill, Numbered, PATIENCE, Seen, completion, eventually, numbered};

fn quick(retries: u32) -> RetryPolicy {
    RetryPolicy::new(retries, Backoff::fixed(Duration::from_millis(50)))
}

async fn dead(mill: &Mill) -> Vec<DeadLetter> {
    let letters = mill.client.dead_letters(DeadFilter::queue(Queue::default()));
    letters.try_collect().await.expect("reads")
}

#[tokio::test]
async fn a_failed_job_is_retried_with_its_attempts_counted_and_its_errors_kept() {
    let mill = Mill::start().await;
    let seen = Seen::default();
    let note = seen.clone();
    let handler = Handler::new(move |_: Numbered, context: JobContext| {
        note.push((context.attempt(), context.max_attempts()));
        let attempt = context.attempt();
        async move { if attempt < 3 { Err(JobError::failed("not yet")) } else { Ok(()) } }
    })
    .retry(quick(5));
    let running = mill.worker().handler(handler).build().expect("ok").start().await.expect("ok");
    let attempts = RecordFilter::queue(Queue::default()).since(Since::Start);
    let attempts = mill.client.attempts(attempts).await.expect("follows");
    let job = mill.client.enqueue(numbered(1)).await.expect("stored");
    let done = completion(&job).await;
    assert_eq!((done.status, done.attempt), (Status::Done, 3));
    assert_eq!(seen.all(), [(1, 6), (2, 6), (3, 6)]);
    let failed: Vec<(u32, String)> = attempts
        .try_filter(|entry| std::future::ready(entry.event == AttemptEvent::Failed))
        .take(2)
        .map(|entry| entry.map(|entry| (entry.attempt, entry.error.expect("kept").message)))
        .try_collect()
        .await
        .expect("reads");
    assert_eq!(failed, [(1, "not yet".to_owned()), (2, "not yet".to_owned())]);
    running.drain().await;
}

#[tokio::test]
async fn retries_come_when_the_policy_says() {
    let mill = Mill::start().await;
    let starts = Seen::default();
    let note = starts.clone();
    let handler = move |_: Numbered, context: JobContext| {
        note.push(std::time::Instant::now());
        let last = context.attempt() == context.max_attempts();
        async move { if last { Ok(()) } else { Err(JobError::failed("again")) } }
    };
    let running = mill.worker().handle(handler).build().expect("ok").start().await.expect("ok");
    // The job's own law goes before the worker's: 400, 800 and 1200 ms.
    let linear = Backoff::linear(Duration::from_millis(400));
    let job = mill.client.enqueue(numbered(1)).backoff(&linear).max_retries(3).await.expect("ok");
    completion(&job).await;
    let starts = starts.all();
    for (index, pair) in starts.windows(2).enumerate() {
        let delay = pair[1] - pair[0];
        let wanted = Duration::from_millis(400) * (u32::try_from(index).expect("small") + 1);
        assert!(delay >= wanted, "retry {index} after {delay:?}, before {wanted:?}");
        assert!(delay < wanted + Duration::from_secs(1), "retry {index} after {delay:?}");
    }
    running.drain().await;
}

#[tokio::test]
async fn when_the_attempts_are_used_up_the_job_is_buried_with_everything() {
    let mill = Mill::start().await;
    let handler = |_: Numbered, _: JobContext| async { Err::<(), _>(JobError::failed("never")) };
    let handler = Handler::new(handler).retry(quick(2));
    let running = mill.worker().handler(handler).build().expect("ok").start().await.expect("ok");
    let job = mill.client.enqueue(numbered(8)).header("X-Tenant", "7").await.expect("stored");
    let done = completion(&job).await;
    assert_eq!((done.status, done.attempt), (Status::Dead, 3));
    assert_eq!(done.reason.as_deref(), Some("attempts_exhausted"));
    assert_eq!(done.error.expect("kept").message, "never");
    let letters = dead(&mill).await;
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].payload, r#"{"n":8}"#);
    assert_eq!(letters[0].headers.get("X-Tenant"), Some("7"));
    assert_eq!(
        (letters[0].info.attempts, letters[0].info.reason.as_str()),
        (3, "attempts_exhausted")
    );
    let attempts = mill.client.attempts_of(&letters[0]).await.expect("reads");
    let failed: Vec<u32> = attempts
        .iter()
        .filter(|entry| entry.event == AttemptEvent::Failed)
        .map(|entry| entry.attempt)
        .collect();
    assert_eq!(failed, [1, 2, 3]);
    running.drain().await;
}

#[tokio::test]
async fn handlers_can_snooze_discard_cancel_and_name_the_delay() {
    let mill = Mill::start().await;
    let seen = Seen::default();
    let note = seen.clone();
    let handler = move |job: Numbered, context: JobContext| {
        let count = note.all().iter().filter(|n| **n == job.n).count();
        note.push(job.n);
        let attempt = context.attempt();
        async move {
            match (job.n, count) {
                (1, 0 | 1) => Err(JobError::snooze(Duration::from_millis(100))),
                (2, _) => Err(JobError::discard("pointless")),
                (3, _) => Err(JobError::cancelled("not wanted")),
                (4, 0) => Err(JobError::failed("busy").retry_after(Duration::from_millis(100))),
                _ => Ok(attempt),
            }
        }
    };
    let running = mill.worker().handle(handler).build().expect("ok").start().await.expect("ok");
    let client = &mill.client;
    let enqueue = |n| async move { client.enqueue(numbered(n)).await.expect("stored") };
    let [snoozed, discarded, cancelled, late] =
        [enqueue(1).await, enqueue(2).await, enqueue(3).await, enqueue(4).await];
    let done = completion(&snoozed).await;
    assert_eq!((done.status, done.attempt), (Status::Done, 1), "a snooze costs no attempt");
    let done = completion(&discarded).await;
    assert_eq!((done.status, done.reason.as_deref()), (Status::Dead, Some("discarded")));
    let done = completion(&cancelled).await;
    assert_eq!((done.status, done.reason.as_deref()), (Status::Cancelled, Some("not wanted")));
    let done = completion(&late).await;
    assert_eq!((done.status, done.attempt), (Status::Done, 2));
    running.drain().await;
}

#[tokio::test]
async fn a_panic_is_a_failed_attempt_with_message_and_backtrace() {
    let mill = Mill::start().await;
    let handler = |job: Numbered, _: JobContext| async move {
        assert!(job.n != 13, "unlucky {}", job.n);
        Ok::<_, JobError>(())
    };
    let running = mill
        .worker()
        .handler(Handler::new(handler).retry(quick(0)))
        .build()
        .expect("ok")
        .start()
        .await
        .expect("ok");
    let unlucky = mill.client.enqueue(numbered(13)).await.expect("stored");
    let error = completion(&unlucky).await.error.expect("kept");
    assert_eq!((error.kind.as_str(), error.message.as_str()), ("panic", "panicked: unlucky 13"));
    assert!(error.backtrace.expect("captured").contains("outcomes"));
    let lucky = mill.client.enqueue(numbered(7)).await.expect("stored");
    assert_eq!(completion(&lucky).await.status, Status::Done, "the worker goes on");
    running.drain().await;
}

#[tokio::test]
async fn blocking_handlers_run_beside_and_their_panics_are_caught() {
    let mill = Mill::start().await;
    let handler = Handler::blocking(|job: Numbered, _: JobContext| {
        std::thread::sleep(Duration::from_millis(50));
        assert!(job.n > 0, "nothing to do");
        Ok::<_, JobError>(job.n + 1)
    });
    let running = mill
        .worker()
        .handler(handler.retry(quick(0)))
        .build()
        .expect("ok")
        .start()
        .await
        .expect("ok");
    let good = mill.client.enqueue(numbered(1)).await.expect("stored");
    let bad = mill.client.enqueue(numbered(0)).await.expect("stored");
    assert_eq!(completion(&good).await.result::<u64>().expect("a number"), Some(2));
    let error = completion(&bad).await.error.expect("kept");
    assert_eq!(error.message, "panicked: nothing to do");
    running.drain().await;
}

#[tokio::test]
async fn a_job_whose_time_passes_is_a_failed_attempt() {
    let mill = Mill::start().await;
    let told = Seen::default();
    let note = told.clone();
    let handler = move |_: Numbered, context: JobContext| {
        let note = note.clone();
        async move {
            context.cancellation().cancelled().await;
            note.push(context.attempt());
            std::future::pending::<()>().await;
            Ok::<_, JobError>(())
        }
    };
    let running = mill.worker().handle(handler).build().expect("ok").start().await.expect("ok");
    let limit = Duration::from_millis(100);
    let job = mill.client.enqueue(numbered(1)).timeout(limit).max_retries(0).await.expect("ok");
    let done = completion(&job).await;
    assert_eq!(done.status, Status::Dead);
    let error = done.error.expect("kept");
    assert_eq!((error.kind.as_str(), error.message.as_str()), ("timeout", "timed out after 100ms"));
    assert_eq!(told.all(), [1], "the handler was told first");
    running.drain().await;
}

#[tokio::test]
async fn middleware_goes_around_handlers_in_order() {
    let mill = Mill::start().await;
    let seen: Seen<String> = Seen::default();
    let (outer, inner, core) = (seen.clone(), seen.clone(), seen.clone());
    let handler = move |_: Numbered, _: JobContext| {
        core.push("handler".into());
        async { Ok::<_, JobError>(()) }
    };
    let around = |name: &'static str, note: Seen<String>| {
        move |context: JobContext, next: Next| {
            let note = note.clone();
            async move {
                note.push(format!("{name} in"));
                let outcome = next.run(context).await;
                note.push(format!("{name} out"));
                outcome
            }
        }
    };
    let running = mill
        .worker()
        .middleware(around("outer", outer))
        .middleware(around("inner", inner))
        .handle(handler)
        .build()
        .expect("ok")
        .start()
        .await
        .expect("ok");
    completion(&mill.client.enqueue(numbered(1)).await.expect("stored")).await;
    assert_eq!(seen.all(), ["outer in", "inner in", "handler", "inner out", "outer out"]);
    running.drain().await;
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Order {
    items: Vec<Item>,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Item {
    price: u32,
}

impl tidemill::Job for Order {
    const KIND: &'static str = "order";
}

/// Publishes a message as any client may, and gives the dead letter that comes of it.
async fn buried(subject: &str, headers: &[(&str, &str)], body: &str) -> DeadLetter {
    let mill = Mill::start().await;
    let handler = |_: Order, _: JobContext| async { Ok::<_, JobError>(()) };
    let running = mill.worker().handle(handler).build().expect("ok").start().await.expect("ok");
    let nats = mill.nats().await;
    let mut map = async_nats::HeaderMap::new();
    for (name, value) in headers {
        map.append(*name, *value);
    }
    let body = body.to_owned().into();
    nats.request_with_headers(subject.to_owned(), map, body).await.expect("stored");
    let letter = eventually("a dead letter", || async { dead(&mill).await.pop() }).await;
    running.drain().await;
    letter
}

#[tokio::test]
async fn a_payload_that_does_not_decode_is_buried_with_the_path() {
    let body = r#"{"items":[{"price":1},{"price":"cheap"}]}"#;
    let letter = buried("tidemill.jobs.default.normal.order", &[], body).await;
    assert_eq!(letter.info.reason, "undecodable");
    let message = &letter.info.errors[0].message;
    assert!(message.contains("at items[1].price: invalid type: string \"cheap\""), "{message}");
    assert_eq!(letter.payload, body);
}

#[tokio::test]
async fn another_content_type_is_buried() {
    let headers = [("Content-Type", "application/x-protobuf")];
    let letter = buried("tidemill.jobs.default.normal.order", &headers, "{}").await;
    assert_eq!(letter.info.reason, "undecodable");
    assert!(letter.info.errors[0].message.contains("application/x-protobuf"));
}

#[tokio::test]
async fn a_header_of_ours_that_does_not_parse_or_comes_twice_is_buried() {
    let subject = "tidemill.jobs.default.normal.order.order-1";
    let letter = buried(subject, &[("Tidemill-Max-Retries", "many")], r#"{"items":[]}"#).await;
    assert_eq!((letter.info.reason.as_str(), letter.id.as_str()), ("bad_header", "order-1"));
    let message = &letter.info.errors[0].message;
    assert!(message.contains("Tidemill-Max-Retries is \"many\""), "{message}");
    let twice = [("Tidemill-Timeout", "1"), ("Tidemill-Timeout", "2")];
    let letter = buried(subject, &twice, r#"{"items":[]}"#).await;
    assert!(letter.info.errors[0].message.contains("given twice"));
}

#[tokio::test]
async fn a_subject_that_fits_no_record_is_buried() {
    let letter = buried("tidemill.jobs.default.normal.or%der.x", &[], "{}").await;
    assert_eq!((letter.info.reason.as_str(), letter.kind.as_str()), ("bad_subject", "_"));
    assert_eq!(letter.id.as_str(), format!("s-{}", letter.run.as_str().trim_start_matches("s-")));
    let letter = buried("tidemill.jobs.default.normal.order.x.y", &[], "{}").await;
    assert_eq!((letter.info.reason.as_str(), letter.kind.as_str()), ("bad_subject", "order"));
}

#[tokio::test]
async fn an_unknown_kind_waits_for_a_worker_that_knows_it() {
    let mill = Mill::start().await;
    let handler = |_: Numbered, _: JobContext| async { Ok::<_, JobError>(()) };
    let other = |_: Order, _: JobContext| async { Ok::<_, JobError>(()) };
    let knows_other = mill
        .worker()
        .handle(other)
        .unknown_kind_grace(Duration::from_secs(1))
        .build()
        .expect("ok")
        .start()
        .await
        .expect("ok");
    let job = mill.client.enqueue(numbered(1)).await.expect("stored");
    let knows = mill.worker().handle(handler).build().expect("ok").start().await.expect("ok");
    let done = job.completion_within(PATIENCE).await.expect("in time");
    assert_eq!((done.status, done.attempt), (Status::Done, 1), "being turned away costs nothing");
    knows_other.drain().await;
    knows.drain().await;
}

#[tokio::test]
async fn an_unknown_kind_is_buried_when_nobody_knows_it_for_long_enough() {
    let mill = Mill::start().await;
    let handler = |_: Order, _: JobContext| async { Ok::<_, JobError>(()) };
    let running = mill
        .worker()
        .handle(handler)
        .unknown_kind_grace(Duration::from_secs(1))
        .build()
        .expect("ok")
        .start()
        .await
        .expect("ok");
    let started = std::time::Instant::now();
    let job = mill.client.enqueue(NewJob::raw("nobody", "{}")).await.expect("stored");
    let done = completion(&job).await;
    assert!(started.elapsed() >= Duration::from_secs(1), "not before its time");
    assert_eq!((done.status, done.reason.as_deref()), (Status::Dead, Some("unknown_kind")));
    running.drain().await;
}

#[tokio::test]
async fn a_newer_protocol_is_left_for_newer_workers() {
    let mill = Mill::start().await;
    let handler = |_: Numbered, _: JobContext| async { Ok::<_, JobError>(()) };
    let running = mill.worker().handle(handler).build().expect("ok").start().await.expect("ok");
    let nats = mill.nats().await;
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Tidemill-Protocol", "2");
    let subject = "tidemill.jobs.default.normal.numbered";
    nats.request_with_headers(subject, headers, r#"{"n":1}"#.into()).await.expect("stored");
    eventually("it is handed out and given back", || async {
        let (waiting, unsettled) = crate::support::lane_counts(&nats, "default", "normal").await;
        (waiting == 0 && unsettled == 1).then_some(())
    })
    .await;
    running.drain().await;
    assert_eq!(crate::support::stream_messages(&nats, "TIDEMILL_JOBS_default").await, 1);
    assert!(dead(&mill).await.is_empty());
}
