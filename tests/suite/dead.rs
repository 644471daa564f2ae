//! Dead letters: listed, shown, retried as new runs, discarded.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::TryStreamExt;
use tidemill::{
    DeadFilter, DeadLetter, Handler, JobContext, JobError, Kind, NewJob, Queue, QueueConfig,
    RetryPolicy, Running, Status,
};

use crate::proxy::Proxy;
use crate::support::{Mill, Numbered, completion, eventually, numbered, stream_messages};

/// A worker whose handler fails as long as it is told to.
async fn moody(mill: &Mill, fails: &Arc<AtomicBool>) -> Running {
    let fails = fails.clone();
    let handler = move |_: Numbered, context: JobContext| {
        let fails = fails.load(Ordering::SeqCst);
        let attempt = context.attempt();
        async move { if fails { Err(JobError::failed("mood")) } else { Ok(attempt) } }
    };
    let once = RetryPolicy::new(0, tidemill::Backoff::default());
    let worker = mill.worker().handler(Handler::new(handler).retry(once));
    worker.build().expect("valid").start().await.expect("starts")
}

async fn letters(mill: &Mill, filter: DeadFilter) -> Vec<DeadLetter> {
    mill.client.dead_letters(filter).try_collect().await.expect("reads")
}

fn all() -> DeadFilter {
    DeadFilter::queue(Queue::default())
}

#[tokio::test]
async fn a_retry_is_a_new_run_with_all_attempts_and_the_history_stays() {
    let mill = Mill::start().await;
    let fails = Arc::new(AtomicBool::new(true));
    let running = moody(&mill, &fails).await;
    let job = mill.client.enqueue(numbered(1)).id("order-17").await.expect("stored");
    assert_eq!(completion(&job).await.status, Status::Dead);
    let letter = letters(&mill, all()).await.pop().expect("one");
    fails.store(false, Ordering::SeqCst);
    let retry = mill.client.retry_dead(&letter).await.expect("stored");
    assert_eq!(retry.run().as_str(), format!("d-{}", letter.sequence));
    let done = completion(&retry).await;
    assert_eq!((done.status, done.result::<u32>().expect("a number")), (Status::Done, Some(1)));
    assert_eq!(completion(&job).await.status, Status::Dead, "the old run's end stays its own");
    assert!(letters(&mill, all()).await.is_empty());
    assert!(!mill.client.attempts_of(&letter).await.expect("reads").is_empty());
    running.drain().await;
}

#[tokio::test]
async fn repeating_a_retry_does_not_double_the_job() {
    let mill = Mill::start().await;
    let fails = Arc::new(AtomicBool::new(true));
    let running = moody(&mill, &fails).await;
    completion(&mill.client.enqueue(numbered(1)).await.expect("stored")).await;
    running.drain().await;
    let letter = letters(&mill, all()).await.pop().expect("one");
    let first = mill.client.retry_dead(&letter).await.expect("stored");
    let second = mill.client.retry_dead(&letter).await.expect("the same");
    assert_eq!((first.run(), first.sequence()), (second.run(), second.sequence()));
    let nats = mill.nats().await;
    assert_eq!(stream_messages(&nats, "TIDEMILL_JOBS_default").await, 1);
    fails.store(false, Ordering::SeqCst);
    let running = moody(&mill, &fails).await;
    assert_eq!(completion(&first).await.status, Status::Done);
    // Even when its run has ended: the worker finds the completion and runs nothing.
    mill.client.retry_dead(&letter).await.expect("harmless");
    eventually("the queue is empty", || async {
        (stream_messages(&nats, "TIDEMILL_JOBS_default").await == 0).then_some(())
    })
    .await;
    assert_eq!(stream_messages(&nats, "TIDEMILL_RESULTS_default").await, 2);
    running.drain().await;
}

#[tokio::test]
async fn letters_are_filtered_and_discarded() {
    let mill = Mill::start().await;
    let fails = Arc::new(AtomicBool::new(true));
    let running = moody(&mill, &fails).await;
    for n in 0..5 {
        completion(&mill.client.enqueue(numbered(n)).await.expect("stored")).await;
    }
    completion(&mill.client.enqueue(NewJob::raw("numbered", "rubbish")).await.expect("ok")).await;
    assert_eq!(letters(&mill, all()).await.len(), 6);
    assert_eq!(letters(&mill, all().reason("undecodable")).await.len(), 1);
    let kind = Kind::new("other").expect("valid");
    assert!(letters(&mill, all().kind(kind)).await.is_empty());
    for letter in letters(&mill, all().reason("attempts_exhausted")).await {
        assert!(mill.client.discard_dead(&letter).await.expect("deleted"));
        assert!(!mill.client.discard_dead(&letter).await.expect("gone already"));
    }
    assert_eq!(letters(&mill, all()).await.len(), 1);
    running.drain().await;
}

#[tokio::test]
async fn a_letter_whose_run_ended_otherwise_is_not_shown() {
    let mill = Mill::start().await;
    let fails = Arc::new(AtomicBool::new(false));
    let running = moody(&mill, &fails).await;
    let job = mill.client.enqueue(numbered(1)).await.expect("stored");
    assert_eq!(completion(&job).await.status, Status::Done);
    // What a worker leaves that died between the letter and the completion.
    let nats = mill.nats().await;
    let mut headers = async_nats::HeaderMap::new();
    let info = r#"{"reason":"attempts_exhausted","at":"2026-12-01T08:00:00Z","attempts":1,"priority":"normal","enqueued_at":"2026-12-01T08:00:00Z"}"#;
    headers.insert("Tidemill-Dead", info);
    let subject = format!("tidemill.dead.default.numbered.{}._", job.id());
    nats.request_with_headers(subject, headers, r#"{"n":1}"#.into()).await.expect("stored");
    assert_eq!(stream_messages(&nats, "TIDEMILL_DEAD_default").await, 1);
    assert!(letters(&mill, all()).await.is_empty());
    running.drain().await;
}

#[tokio::test]
async fn while_there_is_no_room_for_letters_jobs_wait_to_be_buried() {
    let mut config = QueueConfig::default();
    config.max_dead = 1;
    let mill = Mill::with(config).await;
    let fails = Arc::new(AtomicBool::new(true));
    let running = moody(&mill, &fails).await;
    completion(&mill.client.enqueue(numbered(1)).await.expect("stored")).await;
    let waiting = mill.client.enqueue(numbered(2)).await.expect("stored");
    let nats = mill.nats().await;
    let ledger = format!("tidemill.attempts.default.numbered.{}._", waiting.id());
    eventually("it is down to be buried", || async {
        let last = nats
            .request(format!("$JS.API.DIRECT.GET.TIDEMILL_ATTEMPTS_default.{ledger}"), "".into())
            .await
            .expect("an answer");
        String::from_utf8_lossy(&last.payload).contains("\"to_bury\"").then_some(())
    })
    .await;
    assert_eq!(stream_messages(&nats, "TIDEMILL_JOBS_default").await, 1, "it is not lost");
    running.drain().await;
}

#[tokio::test]
async fn a_retry_that_is_killed_is_not_doubled_by_the_next_whatever_came_between() {
    let mill = Mill::start().await;
    let running = moody(&mill, &Arc::new(AtomicBool::new(true))).await;
    let job = || NewJob::new(&numbered(1)).id("order-17");
    let buried = mill.client.enqueue(job()).await.expect("stored");
    assert_eq!(completion(&buried).await.status, Status::Dead);
    running.drain().await;
    let letter = letters(&mill, all()).await.pop().expect("one");
    let proxy = Proxy::start(mill.broker.url()).await;
    let client = proxy.client().await;
    proxy.hold("STREAM.MSG.DELETE");
    let same = letter.clone();
    let retrying = tokio::spawn(async move { client.retry_dead(&same).await });
    proxy.met().await;
    retrying.abort();
    proxy.cut();
    // Another run of its id, of which its guard tells first.
    mill.client.enqueue(job()).await.expect("stored");
    mill.client.retry_dead(&letter).await.expect("there");
    assert_eq!(stream_messages(&mill.nats().await, "TIDEMILL_JOBS_default").await, 2);
    assert!(letters(&mill, all()).await.is_empty());
}
