//! What replicas that lag behind their leader must not spoil.

use std::time::Duration;

use futures_util::future::join_all;
use tidemill::embedded::Cluster;
use tidemill::{
    Backoff, Client, Handler, JobContext, JobError, NewJob, QueueConfig, RetryPolicy, Status,
    Worker,
};

use crate::support::{Numbered, PATIENCE, Seen, completion, connect, numbered};

/// A client at one of the servers; its queues have three replicas.
async fn client_at(cluster: &Cluster, node: usize) -> Client {
    let mut config = QueueConfig::default();
    config.replicas = 3;
    connect(cluster.node(node).url()).await.with_queue_config(config)
}

#[tokio::test]
async fn awaiting_never_misses() {
    let cluster = Cluster::start(3).await.expect("a cluster");
    // Everybody at another server, so that replicas that lag are asked too.
    let producer = client_at(&cluster, 0).await;
    let client = client_at(&cluster, 1).await;
    let handler = |job: Numbered, _: JobContext| async move { Ok::<_, JobError>(job.n) };
    let worker = Worker::builder(&client).concurrency(64).handle(handler).build().expect("ok");
    let running = worker.start().await.expect("starts");
    let waits = (0..400).map(|n| {
        let producer = producer.clone();
        async move {
            let job = producer.enqueue(numbered(n)).await.expect("stored");
            let done = job.completion_within(PATIENCE).await.expect("not missed");
            assert_eq!(done.result::<u64>().expect("a number"), Some(n));
        }
    });
    join_all(waits).await;
    running.drain().await;
}

#[tokio::test]
async fn attempts_that_follow_at_once_are_exact() {
    const JOBS: u64 = 200;
    let cluster = Cluster::start(3).await.expect("a cluster");
    let seen = Seen::default();
    let mut workers = Vec::new();
    for node in 0..3 {
        let client = client_at(&cluster, node).await;
        let note = seen.clone();
        let handler = move |job: Numbered, context: JobContext| {
            note.push((job.n, context.attempt()));
            async { Err::<(), _>(JobError::failed("never")) }
        };
        let policy = RetryPolicy::new(4, Backoff::fixed(Duration::ZERO));
        let handler = Handler::new(handler).retry(policy);
        let worker = Worker::builder(&client).handler(handler).build().expect("valid");
        workers.push(worker.start().await.expect("starts"));
    }
    let client = client_at(&cluster, 0).await;
    let mut jobs = Vec::new();
    for stored in client.enqueue_many((0..JOBS).map(|n| NewJob::new(&numbered(n)))).await {
        jobs.push(stored.expect("stored"));
    }
    for job in &jobs {
        let done = completion(job).await;
        assert_eq!((done.status, done.attempt), (Status::Dead, 5));
    }
    let mut all = seen.all();
    all.sort_unstable();
    let each_five_times = (0..JOBS).flat_map(|n| (1..=5).map(move |attempt| (n, attempt)));
    assert_eq!(all, each_five_times.collect::<Vec<_>>());
    for running in workers {
        running.drain().await;
    }
}
