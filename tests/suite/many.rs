//! Many jobs at once.

use std::collections::HashMap;
use std::io::Write;
use std::time::{Duration, Instant};

use tidemill::embedded::Broker;
use tidemill::{JobContext, JobError, NewJob, Queue, QueueConfig};

use crate::support::{Mill, Numbered, Seen, eventually, numbered, stream_messages};

const JOBS: &str = "TIDEMILL_JOBS_default";

#[tokio::test]
async fn they_go_in_in_order_and_a_bad_one_among_them_is_named() {
    let mill = Mill::start().await;
    let job = |n: u64| match n {
        700 => NewJob::raw("no kind", ""),
        n => NewJob::new(&numbered(n)),
    };
    let stored = mill.client.enqueue_many((0..2000).map(job)).await;
    assert_eq!(stored.len(), 2000);
    for (n, outcome) in stored.iter().enumerate() {
        assert_eq!(outcome.is_ok(), n != 700, "{n}: {outcome:?}");
    }
    assert!(stored[700].as_ref().expect_err("bad").is_invalid());
    let seen = Seen::default();
    let note = seen.clone();
    let handler = move |job: Numbered, _: JobContext| {
        note.push(job.n);
        async { Ok::<_, JobError>(()) }
    };
    let worker = mill.worker().concurrency(1).handle(handler).build().expect("valid");
    let running = worker.start().await.expect("starts");
    let expected: Vec<u64> = (0..2000).filter(|n| *n != 700).collect();
    assert_eq!(seen.wait_for(1999).await, expected);
    running.drain().await;
}

#[tokio::test]
async fn a_taken_key_among_them_is_told_in_its_place() {
    let mill = Mill::start().await;
    let there = mill.client.enqueue(NewJob::new(&numbered(0)).unique("k")).await.expect("stored");
    let job = |n: u64| match n {
        300 => NewJob::new(&numbered(n)).unique("k"),
        301 => NewJob::new(&numbered(n)).unique("free"),
        n => NewJob::new(&numbered(n)),
    };
    let stored = mill.client.enqueue_many((0..600).map(job)).await;
    let duplicates: Vec<usize> =
        (0..600).filter(|n| stored[*n].as_ref().expect("stored or told").is_duplicate()).collect();
    assert_eq!(duplicates, [300]);
    assert_eq!(stored[300].as_ref().expect("told").run(), there.run());
    let nats = mill.nats().await;
    assert_eq!(stream_messages(&nats, JOBS).await, 600, "599 of them, and the one from before");
}

#[tokio::test]
async fn what_finds_no_room_is_told_and_the_rest_is_there() {
    let mut config = QueueConfig::default();
    config.max_jobs = 600;
    let mill = Mill::with(config).await;
    let stored = mill.client.enqueue_many((0..1000).map(numbered)).await;
    for (n, outcome) in stored.iter().enumerate() {
        match outcome {
            Ok(_) => assert!(n < 600, "{n} is stored"),
            Err(error) => assert!(n >= 600 && error.is_full(), "{n}: {error}"),
        }
    }
    let nats = mill.nats().await;
    assert_eq!(stream_messages(&nats, JOBS).await, 600);
}

#[tokio::test]
async fn a_queue_that_takes_no_batches_takes_them_one_by_one() {
    let mill = Mill::start().await;
    let nats = mill.nats().await;
    let info = nats.request(format!("$JS.API.STREAM.INFO.{JOBS}"), "".into()).await.expect("told");
    let info: serde_json::Value = serde_json::from_slice(&info.payload).expect("JSON");
    let mut config = info["config"].clone();
    config["allow_batched"] = false.into();
    let update = format!("$JS.API.STREAM.UPDATE.{JOBS}");
    let updated = nats.request(update, config.to_string().into()).await.expect("told");
    let updated: serde_json::Value = serde_json::from_slice(&updated.payload).expect("JSON");
    assert!(updated["error"].is_null(), "{updated}");
    for jobs in [600, 300] {
        let stored = mill.client.enqueue_many((0..jobs).map(numbered)).await;
        assert!(stored.iter().all(Result::is_ok));
    }
    assert_eq!(stream_messages(&nats, JOBS).await, 900);
}

#[tokio::test]
async fn over_a_broker_that_is_killed_none_is_lost_and_none_is_run_twice() {
    const JOBS: u64 = 30_000;
    let mill = Mill::start().await;
    let client = mill.client.clone();
    let enqueueing =
        tokio::spawn(async move { client.enqueue_many((0..JOBS).map(numbered)).await });
    let nats = mill.nats().await;
    eventually("some are stored", || async {
        (stream_messages(&nats, self::JOBS).await > 2_000).then_some(())
    })
    .await;
    mill.broker.kill().await.expect("kills");
    mill.broker.restart().await.expect("restarts");
    let stored = enqueueing.await.expect("no panic");

    let seen = Seen::default();
    let note = seen.clone();
    let handler = move |job: Numbered, _: JobContext| {
        note.push(job.n);
        async { Ok::<_, JobError>(()) }
    };
    let worker = mill.worker().concurrency(200).handle(handler).build().expect("valid");
    let running = worker.start().await.expect("starts");
    let queue = Queue::default();
    let empty = mill.client.wait_empty(&queue);
    let empty = tokio::time::timeout(Duration::from_secs(60), empty).await;
    empty.expect("all are worked").expect("the queue is there");
    running.drain().await;
    let mut runs = HashMap::<u64, u32>::new();
    for n in seen.all() {
        *runs.entry(n).or_default() += 1;
    }
    for (n, outcome) in (0..).zip(&stored) {
        let runs = runs.get(&n).copied().unwrap_or_default();
        match outcome {
            Ok(_) => assert_eq!(runs, 1, "{n}"),
            Err(error) => assert!(error.is_unknown() && runs <= 1, "{n}: {error}"),
        }
    }
}

/// How long a write takes to reach the disk here.
fn sync_takes() -> Duration {
    const WRITES: u32 = 50;
    let mut file = tempfile::tempfile().expect("a file");
    let started = Instant::now();
    for _ in 0..WRITES {
        file.write_all(&[0; 400]).expect("written");
        file.sync_all().expect("on disk");
    }
    started.elapsed() / WRITES
}

#[tokio::test]
async fn where_every_write_reaches_the_disk_batches_share_one() {
    let broker = Broker::builder().jetstream_config("sync_interval: always").start().await;
    let mill = Mill::of(broker.expect("a broker"), QueueConfig::default()).await;
    let stored = mill.client.enqueue_many((0..4000).map(numbered)).await;
    assert_eq!(stored.iter().filter(|job| job.is_ok()).count(), 4000);
    let jetstream = async_nats::jetstream::new(mill.nats().await);
    let jobs = jetstream.get_stream(JOBS).await.expect("it is there");
    let last = jobs.get_last_raw_message_by_subject("tidemill.jobs.default.normal.>").await;
    let is_atomic = last.expect("stored").headers.get("Nats-Batch-Id").is_some();
    // Where the disk is no slower than memory, nothing is to be won.
    if sync_takes() > Duration::from_micros(200) {
        assert!(is_atomic, "each message was written by itself");
    }
    let seen = Seen::default();
    let note = seen.clone();
    let handler = move |job: Numbered, _: JobContext| {
        note.push(job.n);
        async { Ok::<_, JobError>(()) }
    };
    let worker = mill.worker().concurrency(1).handle(handler).build().expect("valid");
    let running = worker.start().await.expect("starts");
    assert_eq!(seen.wait_for(4000).await, (0..4000).collect::<Vec<_>>(), "in order, each once");
    mill.client.wait_empty(&Queue::default()).await.expect("the queue is there");
    running.drain().await;
    let nats = mill.nats().await;
    assert_eq!(stream_messages(&nats, "TIDEMILL_RESULTS_default").await, 4000);
}
