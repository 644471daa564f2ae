//! What replicas that lag behind their leader, and leaders that are killed, must not spoil.

use std::time::{Duration, Instant};

use chrono::{DurationRound, TimeDelta, Utc};
use futures_util::future::join_all;
use tidemill::embedded::Cluster;
use tidemill::{
    Backoff, Client, CronJob, Handler, JobContext, JobError, NewJob, Priority, Queue, QueueConfig,
    RetryPolicy, Status, Worker,
};

use crate::support::{Numbered, PATIENCE, Seen, completion, connect, eventually, numbered, until};

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

/// Which of the servers leads a stream.
async fn leader_of(cluster: &Cluster, stream: &str) -> usize {
    let nats = async_nats::connect(cluster.node(0).url()).await.expect("connects");
    let subject = format!("$JS.API.STREAM.INFO.{stream}");
    eventually("a leader", || async {
        let answer = nats.request(subject.clone(), "".into()).await.ok()?;
        let info: serde_json::Value = serde_json::from_slice(&answer.payload).expect("JSON");
        let leader = info["cluster"]["leader"].as_str()?.to_owned();
        for (index, node) in cluster.nodes().iter().enumerate() {
            let own = async_nats::connect(node.url()).await.ok()?;
            if own.server_info().server_name == leader {
                return Some(index);
            }
        }
        None
    })
    .await
}

#[tokio::test]
async fn timers_outlive_a_leader_that_is_killed_when_they_are_due() {
    const JOBS: u64 = 60;
    let cluster = Cluster::start(3).await.expect("a cluster");
    let mut config = QueueConfig::default();
    config.replicas = 3;
    let client = connect(&cluster.url()).await.with_queue_config(config);
    let seen = Seen::default();
    let note = seen.clone();
    let handler = move |job: Numbered, context: JobContext| {
        note.push((job.n, context.id().to_string(), context.attempt(), Utc::now()));
        async { Ok::<_, JobError>(()) }
    };
    let worker = Worker::builder(&client).park_over(Duration::from_secs(1)).handle(handler);
    let running = worker.build().expect("valid").start().await.expect("starts");
    let due = Utc::now() + TimeDelta::seconds(6);
    let jobs = (0..JOBS).map(|n| NewJob::new(&numbered(n)).run_at(due));
    let mut handles = Vec::new();
    for stored in client.enqueue_many(jobs).await {
        handles.push(stored.expect("stored"));
    }
    let at = due.format("%S %M %H %d %m *").to_string().parse().expect("a pattern");
    client.cron().add(CronJob::new("once", at, numbered(JOBS))).await.expect("added");
    let nats = async_nats::connect(cluster.node(0).url()).await.expect("connects");
    eventually("all are parked", || async {
        let info = nats.request("$JS.API.STREAM.INFO.TIDEMILL_TIMERS_default", "".into()).await;
        let info: serde_json::Value = serde_json::from_slice(&info.ok()?.payload).expect("JSON");
        (info["state"]["messages"] == JOBS + 1).then_some(())
    })
    .await;
    let leader = leader_of(&cluster, "TIDEMILL_TIMERS_default").await;
    let ahead = (due - Utc::now()).to_std().expect("still ahead");
    until(Instant::now() + ahead.saturating_sub(Duration::from_millis(50))).await;
    cluster.kill(leader).await.expect("kills");
    for job in &handles {
        assert_eq!(completion(job).await.status, Status::Done);
    }
    eventually("what recurs has run", || async {
        seen.all().iter().any(|(n, ..)| *n == JOBS).then_some(())
    })
    .await;
    let mut numbers: Vec<u64> = seen.all().iter().map(|(n, ..)| *n).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..=JOBS).collect::<Vec<_>>(), "none lost, none twice");
    for (n, id, attempt, at) in seen.all() {
        // The pattern of what recurs is in whole seconds.
        let due = if n == JOBS {
            due.duration_trunc(TimeDelta::seconds(1)).expect("a time")
        } else {
            due
        };
        assert!(at >= due - TimeDelta::milliseconds(50), "{n} ran at {at}, due at {due}");
        assert_eq!(attempt, 1, "{id}");
    }
    running.drain().await;
}

/// A replica that was away for a while answers before it has caught up.
#[tokio::test]
async fn no_verb_takes_what_a_replica_lacks_for_missing() {
    const BEFORE: u64 = 20_000;
    const EACH: usize = 20;
    let cluster = Cluster::start(3).await.expect("a cluster");
    let client = client_at(&cluster, 0).await;
    client.ensure_queue(&Queue::default()).await.expect("made");
    let leader = leader_of(&cluster, "TIDEMILL_JOBS_default").await;
    let client = client_at(&cluster, leader).await;
    let lagging = cluster.node((leader + 1) % 3);
    let (queue, soon) = (Queue::default(), Utc::now() + TimeDelta::hours(2));
    lagging.freeze().await.expect("freezes");
    let jobs = (0..BEFORE).map(|n| NewJob::new(&numbered(n)));
    let asked_for = (0..5 * EACH).map(|n| {
        let hour = Duration::from_secs(3600);
        NewJob::new(&numbered(1)).id(format!("job-{n}")).delay(hour)
    });
    let mut stored = client.enqueue_many(jobs.chain(asked_for)).await.split_off(BEFORE as usize);
    let jobs: Vec<_> = stored.drain(..).map(|stored| stored.expect("stored")).collect();
    let asks = jobs.iter().enumerate().map(|(n, job)| {
        let (client, queue, id) = (&client, &queue, job.id());
        async move {
            let known = match n / EACH {
                0 => client.job(queue, None, id).await.map(drop),
                1 => client.run_now(queue, None, id).await.map(drop),
                2 => client.reschedule(queue, None, id, soon).await.map(drop),
                3 => client.set_priority(queue, None, id, Priority::Low).await.map(drop),
                _ => client.cancel(queue, None, id, "no").await.map(drop),
            };
            known.unwrap_or_else(|error| panic!("verb {}: {error}", n / EACH));
        }
    });
    let (_, thawed) = tokio::join!(join_all(asks), lagging.thaw());
    thawed.expect("thaws");
}

/// What is told of an enqueue that nobody took.
fn says_what_is_so(error: &tidemill::Error) {
    let text = error.to_string();
    assert!(!text.contains("set up") && text.contains("stream"), "{text}");
}

#[tokio::test]
async fn an_enqueue_without_a_quorum_says_that_the_stream_is_silent() {
    let cluster = Cluster::start(3).await.expect("a cluster");
    let mut config = QueueConfig::default();
    (config.replicas, config.ack_wait) = (3, Duration::from_secs(1));
    let client = connect(cluster.node(0).url()).await.with_queue_config(config);
    client.enqueue(numbered(0)).await.expect("stored");
    for node in [1, 2] {
        cluster.kill(node).await.expect("kills");
    }
    for n in 1..4 {
        let error = client.enqueue(numbered(n)).await.expect_err("no quorum");
        assert!(error.is_unknown(), "{error:?}");
        says_what_is_so(&error);
    }
    let all = client.enqueue_all([numbered(4), numbered(5)]).await.expect_err("no quorum");
    assert!(all.is_unavailable() || all.is_unknown(), "{all:?}");
    says_what_is_so(&all);
}

#[tokio::test]
async fn an_enqueue_to_a_stream_whose_only_server_is_down_says_so() {
    let cluster = Cluster::start(3).await.expect("a cluster");
    let mut config = QueueConfig::default();
    config.ack_wait = Duration::from_secs(1);
    let client = connect(cluster.node(0).url()).await.with_queue_config(config.clone());
    client.enqueue(numbered(0)).await.expect("stored");
    let leader = leader_of(&cluster, "TIDEMILL_JOBS_default").await;
    cluster.kill(leader).await.expect("kills");
    let client = connect(cluster.node((leader + 1) % 3).url()).await.with_queue_config(config);
    for n in 1..3 {
        let error = client.enqueue(numbered(n)).await.expect_err("nobody is there");
        assert!(error.is_unknown(), "{error:?}");
        says_what_is_so(&error);
    }
    let all = client.enqueue_all([numbered(4), numbered(5)]).await.expect_err("nobody is there");
    assert!(all.is_unavailable(), "{all:?}");
    says_what_is_so(&all);
}
