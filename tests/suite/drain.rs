//! Stopping: nothing lost, nothing run twice, buffered jobs back at once, no attempt used.

use std::time::{Duration, Instant};

use tidemill::{JobContext, JobError, NewJob, Status, Worker};

use crate::support::{
    Mill, Numbered, Seen, completion, connect, lane_counts, numbered, stream_messages,
};

#[tokio::test]
async fn draining_under_load_loses_nothing_and_runs_nothing_twice() {
    let mill = Mill::start().await;
    let seen = Seen::default();
    let jobs = (0..2000).map(|n| NewJob::new(&numbered(n)));
    for stored in mill.client.enqueue_many(jobs).await {
        stored.expect("stored");
    }
    let worker = || {
        let note = seen.clone();
        let handler = move |job: Numbered, context: JobContext| {
            note.push((job.n, context.attempt()));
            async {
                tokio::time::sleep(Duration::from_millis(5)).await;
                Ok::<_, JobError>(())
            }
        };
        mill.worker().concurrency(16).handle(handler).build().expect("valid")
    };
    // Four workers come and go, each stopped in the midst of its work.
    for round in 1..=4 {
        let running = worker().start().await.expect("starts");
        seen.wait_for(round * 300).await;
        let drained = running.drain().await;
        assert!(drained.in_time);
    }
    let running = worker().start().await.expect("starts");
    let mut all = seen.wait_for(2000).await;
    running.drain().await;
    all.sort_unstable();
    assert_eq!(all, (0..2000).map(|n| (n, 1)).collect::<Vec<_>>(), "each once, in attempt 1");
    let nats = mill.nats().await;
    assert_eq!(stream_messages(&nats, "TIDEMILL_JOBS_default").await, 0);
    assert_eq!(stream_messages(&nats, "TIDEMILL_RESULTS_default").await, 2000);
}

#[tokio::test]
async fn buffered_jobs_are_back_at_once() {
    let mill = Mill::start().await;
    let seen = Seen::default();
    let note = seen.clone();
    let handler = move |job: Numbered, _: JobContext| {
        note.push(job.n);
        async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            Ok::<_, JobError>(())
        }
    };
    let worker = mill.worker().concurrency(1).handle(handler.clone()).build().expect("valid");
    let running = worker.start().await.expect("starts");
    for n in 0..10 {
        mill.client.enqueue(numbered(n)).await.expect("stored");
    }
    seen.wait_for(1).await;
    running.drain().await;
    // Handed back means waiting or due at once, not held until a lease runs out.
    let stopped = Instant::now();
    let worker = mill.worker().concurrency(20).handle(handler).build().expect("valid");
    let running = worker.start().await.expect("starts");
    seen.wait_for(10).await;
    assert!(stopped.elapsed() < Duration::from_secs(5), "after {:?}", stopped.elapsed());
    running.drain().await;
}

#[tokio::test]
async fn what_does_not_end_in_time_is_cancelled_and_given_back_without_an_attempt() {
    let mill = Mill::start().await;
    let seen = Seen::default();
    let note = seen.clone();
    let endless = move |_: Numbered, context: JobContext| {
        note.push(context.attempt());
        async move {
            context.cancellation().cancelled().await;
            Err::<(), _>(JobError::failed("told to stop"))
        }
    };
    let worker = mill.worker().grace(Duration::from_millis(200)).handle(endless);
    let running = worker.build().expect("valid").start().await.expect("starts");
    let job = mill.client.enqueue(numbered(1)).max_retries(0).await.expect("stored");
    seen.wait_for(1).await;
    let drained = running.drain().await;
    assert!(!drained.in_time);
    let note = seen.clone();
    let quick = move |_: Numbered, context: JobContext| {
        note.push(context.attempt());
        async { Ok::<_, JobError>(()) }
    };
    let running = mill.worker().handle(quick).build().expect("ok").start().await.expect("ok");
    let done = completion(&job).await;
    assert_eq!((done.status, done.attempt), (Status::Done, 1));
    assert_eq!(seen.all(), [1, 1]);
    running.drain().await;
    let (waiting, unsettled) = lane_counts(&mill.nats().await, "default", "normal").await;
    assert_eq!((waiting, unsettled), (0, 0));
}

#[tokio::test]
async fn draining_ends_though_the_broker_does_not_answer() {
    let mill = Mill::with_ack_wait(Duration::from_secs(2)).await;
    let seen = Seen::default();
    let note = seen.clone();
    let handler = move |job: Numbered, _: JobContext| {
        note.push(job.n);
        async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            Ok::<_, JobError>(())
        }
    };
    let worker = || mill.worker().concurrency(4).handle(handler.clone()).build().expect("valid");
    let running = worker().start().await.expect("starts");
    let jobs = (0..40).map(|n| NewJob::new(&numbered(n)));
    let stored = mill.client.enqueue_many(jobs).await;
    let handles: Vec<_> = stored.into_iter().map(|stored| stored.expect("stored")).collect();
    seen.wait_for(4).await;
    mill.broker.freeze().await.expect("freezes");
    let asked = Instant::now();
    running.drain().await;
    assert!(asked.elapsed() < Duration::from_secs(30), "after {:?}", asked.elapsed());
    mill.broker.thaw().await.expect("thaws");
    // What could not be given back or recorded comes back by itself.
    let running = worker().start().await.expect("starts");
    for handle in &handles {
        assert_eq!(completion(handle).await.status, Status::Done);
    }
    running.drain().await;
}

#[tokio::test]
async fn draining_ends_though_the_connection_is_closed() {
    let mill = Mill::start().await;
    let client = connect(mill.broker.url()).await;
    let nothing = |_: Numbered, _: JobContext| async { Ok::<_, JobError>(()) };
    let worker = Worker::builder(&client).handle(nothing).build().expect("valid");
    let running = worker.start().await.expect("starts");
    client.close().await.expect("closes");
    let asked = Instant::now();
    running.drain().await;
    assert!(asked.elapsed() < Duration::from_secs(30), "after {:?}", asked.elapsed());
}
