//! What bad input gets: a dead letter with its reason, or another worker; nothing is lost.

use std::time::Duration;

use tidemill::{DeadLetter, JobContext, JobError, NewJob, Status};

use crate::support::{
    Mill, Numbered, PATIENCE, completion, dead, eventually, lane_counts, numbered, stream_messages,
};

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
        let (waiting, unsettled) = lane_counts(&nats, "default", "normal").await;
        (waiting == 0 && unsettled == 1).then_some(())
    })
    .await;
    running.drain().await;
    assert_eq!(stream_messages(&nats, "TIDEMILL_JOBS_default").await, 1);
    assert!(dead(&mill).await.is_empty());
}
