//! Unique jobs: at most one of a key, whoever enqueues it where.

use std::time::Duration;

use futures_util::future::join_all;
use tidemill::embedded::{Broker, Cluster};
use tidemill::{
    Backoff, Client, Handler, JobContext, JobError, NewJob, Priority, Queue, QueueConfig,
    RetryPolicy, Status,
};

use crate::proxy::Proxy;
use crate::support::{
    Mill, Numbered, PATIENCE, Seen, completion, connect, eventually, lane_counts, numbered,
    stream_messages,
};

/// 200 at once from several connections, over all lanes, with unguarded traffic beside.
async fn race(clients: Vec<Client>) {
    const RACERS: usize = 200;
    let noise = clients.iter().map(|client| async {
        for n in 0..50 {
            client.enqueue(numbered(n)).await.expect("stored");
        }
    });
    let racers = (0..RACERS).map(|n| {
        let client = clients[n % clients.len()].clone();
        let priority = Priority::ALL[n / 7 % 4];
        async move {
            let job = NewJob::raw("contested", "{}").unique("the-one").priority(priority);
            client.enqueue(job).await.expect("stored or a duplicate")
        }
    });
    let (jobs, _) = tokio::join!(join_all(racers), join_all(noise));
    let stored: Vec<_> = jobs.iter().filter(|job| !job.is_duplicate()).collect();
    assert_eq!(stored.len(), 1, "{stored:?}");
    for job in &jobs {
        assert_eq!((job.id(), job.run()), (stored[0].id(), stored[0].run()), "all name the one");
    }
}

#[tokio::test]
async fn of_two_hundred_racers_one_wins_on_one_server() {
    let broker = Broker::start().await.expect("a broker");
    let clients = join_all((0..5).map(|_| connect(broker.url()))).await;
    clients[0].ensure_queue(&Queue::default()).await.expect("made");
    race(clients).await;
    let nats = async_nats::connect(broker.url()).await.expect("connects");
    assert_eq!(stream_messages(&nats, "TIDEMILL_JOBS_default").await, 251);
}

#[tokio::test]
async fn of_two_hundred_racers_one_wins_on_three_servers() {
    let cluster = Cluster::start(3).await.expect("a cluster");
    let mut config = QueueConfig::default();
    config.replicas = 3;
    let clients = join_all((0..6).map(|n| connect(cluster.node(n % 3).url()))).await;
    let clients: Vec<Client> =
        clients.into_iter().map(|client| client.with_queue_config(config.clone())).collect();
    clients[0].ensure_queue(&Queue::default()).await.expect("made");
    race(clients).await;
    let nats = async_nats::connect(cluster.node(0).url()).await.expect("connects");
    assert_eq!(stream_messages(&nats, "TIDEMILL_JOBS_default").await, 6 * 50 + 1);
}

#[tokio::test]
async fn a_key_is_taken_while_its_job_waits_runs_or_backs_off_and_free_when_it_is_done() {
    let mill = Mill::start().await;
    let seen: Seen<u32> = Seen::default();
    let note = seen.clone();
    let handler = Handler::new(move |_: Numbered, context: JobContext| {
        note.push(context.attempt());
        let attempt = context.attempt();
        async move {
            tokio::time::sleep(Duration::from_millis(300)).await;
            if attempt == 1 { Err(JobError::failed("once")) } else { Ok(attempt) }
        }
    });
    let policy = RetryPolicy::new(3, Backoff::fixed(Duration::from_millis(500)));
    let enqueue = |n: u64| mill.client.enqueue(NewJob::new(&numbered(n)).unique("k"));
    let first = enqueue(1).await.expect("stored");
    assert!(!first.is_duplicate());
    let waiting = enqueue(2).await.expect("told");
    let worker = mill.worker().handler(handler.retry(policy)).build().expect("valid");
    let running = worker.start().await.expect("starts");
    seen.wait_for(1).await;
    let while_running = enqueue(3).await.expect("told");
    crate::support::until(std::time::Instant::now() + Duration::from_millis(450)).await;
    let backing_off = enqueue(4).await.expect("told");
    for duplicate in [&waiting, &while_running, &backing_off] {
        assert!(duplicate.is_duplicate());
        assert_eq!((duplicate.id(), duplicate.run()), (first.id(), first.run()));
    }
    // Whoever awaits a duplicate awaits the one that is there; free it is at once.
    assert_eq!(completion(&backing_off).await.attempt, 2);
    let again = enqueue(5).await.expect("stored");
    assert!(!again.is_duplicate() && again.run() != first.run());
    assert_eq!(completion(&again).await.status, Status::Done);
    // Another kind, another queue, another key are no rivals.
    let other_kind = mill.client.enqueue(NewJob::raw("other", "{}").unique("k")).await.expect("ok");
    let other_queue = enqueue(6).queue("other").await.expect("ok");
    assert!(!other_kind.is_duplicate() && !other_queue.is_duplicate());
    running.drain().await;
}

#[tokio::test]
async fn enqueueing_on_seeing_the_completion_always_goes_through() {
    let mill = Mill::start().await;
    let handler = |_: Numbered, _: JobContext| async { Ok::<_, JobError>(()) };
    let running = mill.worker().handle(handler).build().expect("ok").start().await.expect("ok");
    let mut runs = std::collections::HashSet::new();
    for n in 0..200 {
        let job = mill.client.enqueue(NewJob::new(&numbered(n)).unique("again")).await;
        let job = job.expect("stored");
        assert!(!job.is_duplicate(), "the {n}th");
        runs.insert(job.run().to_string());
        assert_eq!(completion(&job).await.status, Status::Done);
    }
    assert_eq!(runs.len(), 200);
    running.drain().await;
}

#[tokio::test]
async fn for_a_period_after_it_is_done_another_is_not_run() {
    let mill = Mill::start().await;
    let seen: Seen<u64> = Seen::default();
    let note = seen.clone();
    let handler = move |job: Numbered, _: JobContext| {
        note.push(job.n);
        async { Ok::<_, JobError>(()) }
    };
    let running = mill.worker().handle(handler).build().expect("ok").start().await.expect("ok");
    let enqueue = |n: u64, millis: u64| {
        let period = Duration::from_millis(millis);
        mill.client.enqueue(NewJob::new(&numbered(n)).unique_for("daily", period))
    };
    let first = enqueue(1, 60_000).await.expect("stored");
    assert_eq!(completion(&first).await.status, Status::Done);
    for n in [2, 3] {
        let soon = enqueue(n, 60_000).await.expect("stored");
        let done = completion(&soon).await;
        assert_eq!((done.status, done.reason.as_deref()), (Status::Cancelled, Some("duplicate")));
    }
    // By a shorter period the first is long done; those that were not run do not count.
    crate::support::until(std::time::Instant::now() + Duration::from_millis(400)).await;
    let later = enqueue(4, 300).await.expect("stored");
    assert_eq!(completion(&later).await.status, Status::Done);
    assert_eq!(seen.all(), [1, 4]);
    running.drain().await;
}

#[tokio::test]
async fn a_period_counts_up_to_when_a_job_is_due() {
    let mill = Mill::start().await;
    let seen: Seen<u64> = Seen::default();
    let note = seen.clone();
    let handler = move |job: Numbered, _: JobContext| {
        note.push(job.n);
        async { Ok::<_, JobError>(()) }
    };
    let running = mill.worker().handle(handler).build().expect("ok").start().await.expect("ok");
    let enqueue = |n: u64, delay: u64| {
        let job = NewJob::new(&numbered(n)).unique_for("daily", Duration::from_secs(2));
        mill.client.enqueue(job.delay(Duration::from_millis(delay)))
    };
    completion(&enqueue(1, 0).await.expect("stored")).await;
    let within = completion(&enqueue(2, 300).await.expect("stored")).await;
    assert_eq!(within.reason.as_deref(), Some("duplicate"));
    let after = completion(&enqueue(3, 2500).await.expect("stored")).await;
    assert_eq!(after.status, Status::Done, "{after:?}");
    assert_eq!(seen.all(), [1, 3]);
    running.drain().await;
}

#[tokio::test]
async fn a_dead_letter_whose_key_is_taken_stays() {
    let mill = Mill::start().await;
    let handler = |_: Numbered, _: JobContext| async { Err::<(), _>(JobError::discard("no")) };
    let running = mill.worker().handle(handler).build().expect("ok").start().await.expect("ok");
    let enqueue = || mill.client.enqueue(NewJob::new(&numbered(1)).unique("k"));
    let buried = enqueue().await.expect("stored");
    assert_eq!(completion(&buried).await.status, Status::Dead);
    running.drain().await;
    assert!(!enqueue().await.expect("stored").is_duplicate(), "the key is free");
    let letter = mill.client.dead_letter(&Queue::default(), buried.id()).await.expect("there");
    let error = mill.client.retry_dead(&letter).await.expect_err("the key is taken");
    assert!(error.is_duplicate(), "{error}");
    assert_eq!(crate::support::dead(&mill).await.len(), 1, "the letter stays");
}

#[tokio::test]
async fn the_last_of_many_replaces_those_before_it() {
    let mill = Mill::start().await;
    let seen: Seen<u64> = Seen::default();
    let note = seen.clone();
    let handler = move |job: Numbered, _: JobContext| {
        note.push(job.n);
        async move {
            if job.n == 100 {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            Ok::<_, JobError>(())
        }
    };
    let running = mill.worker().handle(handler).build().expect("ok").start().await.expect("ok");
    let job =
        |n, millis| NewJob::new(&numbered(n)).unique("typed").delay(Duration::from_millis(millis));
    let mut jobs = Vec::new();
    for n in 0..10 {
        let replaced = mill.client.enqueue_replacing(job(n, 1500)).await.expect("stored");
        assert!(!replaced.is_duplicate());
        jobs.push(replaced);
    }
    let last = jobs.pop().expect("ten");
    assert_eq!(completion(&last).await.status, Status::Done);
    assert_eq!(seen.all(), [9], "only the last one ran");
    for job in &jobs {
        let done = completion(job).await;
        assert_eq!((done.status, done.reason.as_deref()), (Status::Cancelled, Some("replaced")));
    }
    // One that runs is let be.
    let runs = mill.client.enqueue_replacing(job(100, 0)).await.expect("stored");
    seen.wait_for(2).await;
    let told = mill.client.enqueue_replacing(job(101, 0)).await.expect("told");
    assert!(told.is_duplicate());
    assert_eq!(told.run(), runs.run());
    assert_eq!(completion(&told).await.status, Status::Done);
    let plain = mill.client.enqueue_replacing(numbered(1)).await;
    assert!(plain.expect_err("no key").is_invalid());
    running.drain().await;
}

#[tokio::test]
async fn replacing_leaves_one_job_of_the_key_whatever_is_lost_or_killed() {
    const JOBS: &str = "TIDEMILL_JOBS_default";
    let mill = Mill::start().await;
    let nats = mill.nats().await;
    let job = |n| NewJob::new(&numbered(n)).unique("typed");
    let first = mill.client.enqueue(job(1)).await.expect("stored");
    // The answer to storing the second is lost.
    let proxy = Proxy::start(mill.broker.url()).await;
    let options = tidemill::ConnectOptions::new(proxy.url()).expect("a URL");
    let options = options.request_timeout(Duration::from_secs(1));
    let client = Client::connect(options).await.expect("connects");
    let sequence = first.sequence().expect("told");
    let expecting = format!("Nats-Expected-Last-Subject-Sequence: {sequence}");
    proxy.lose_answer_to(expecting.leak());
    let second = client.enqueue_replacing(job(2)).await.expect("stored");
    proxy.met().await;
    assert!(!second.is_duplicate());
    assert_eq!(stream_messages(&nats, JOBS).await, 1);
    assert_eq!(completion(&first).await.reason.as_deref(), Some("replaced"));
    // Killed before it ends the second.
    proxy.hold("HPUB tidemill.results.default");
    let replacing = tokio::spawn(async move { client.enqueue_replacing(job(3)).await });
    proxy.met().await;
    replacing.abort();
    proxy.cut();
    assert_eq!(stream_messages(&nats, JOBS).await, 2);
    let last = mill.client.enqueue_replacing(job(4)).await.expect("stored");
    assert_eq!(stream_messages(&nats, JOBS).await, 1);
    assert_eq!(completion(&second).await.reason.as_deref(), Some("replaced"));
    let seen: Seen<u64> = Seen::default();
    let note = seen.clone();
    let handler = move |job: Numbered, _: JobContext| {
        note.push(job.n);
        async { Ok::<_, JobError>(()) }
    };
    let running = mill.worker().handle(handler).build().expect("ok").start().await.expect("ok");
    assert_eq!(completion(&last).await.status, Status::Done);
    assert_eq!(seen.all(), [4]);
    running.drain().await;
}

#[tokio::test]
async fn a_key_is_taken_while_its_job_is_not_due_however_long() {
    let mill = Mill::start().await;
    let handler = |_: Numbered, _: JobContext| async { Ok::<_, JobError>(()) };
    let worker = mill.worker().park_over(Duration::from_millis(200)).handle(handler);
    let running = worker.build().expect("ok").start().await.expect("ok");
    let later = NewJob::new(&numbered(1)).unique("k").delay(Duration::from_secs(3));
    let first = mill.client.enqueue(later).await.expect("stored");
    let nats = mill.nats().await;
    eventually("a worker has put it off", || async {
        (lane_counts(&nats, "default", "normal").await == (0, 1)).then_some(())
    })
    .await;
    let again = || mill.client.enqueue(NewJob::new(&numbered(2)).unique("k"));
    let told = again().await.expect("told");
    assert!(told.is_duplicate() && told.run() == first.run());
    assert_eq!(completion(&first).await.status, Status::Done);
    assert!(!again().await.expect("stored").is_duplicate());
    running.drain().await;
}

#[tokio::test]
async fn on_three_servers_a_key_is_free_on_seeing_the_completion() {
    let cluster = Cluster::start(3).await.expect("a cluster");
    let mut config = QueueConfig::default();
    config.replicas = 3;
    let at = |node| {
        let (url, config) = (cluster.node(node).url().to_owned(), config.clone());
        async move { connect(&url).await.with_queue_config(config) }
    };
    let (producer, worker) = (at(0).await, at(1).await);
    let handler = |_: Numbered, _: JobContext| async { Ok::<_, JobError>(()) };
    let worker = tidemill::Worker::builder(&worker).handle(handler).build().expect("valid");
    let running = worker.start().await.expect("starts");
    for n in 0..100 {
        let job = producer.enqueue(NewJob::new(&numbered(n)).unique("again")).await;
        let job = job.expect("stored");
        assert!(!job.is_duplicate(), "the {n}th");
        let done = job.completion_within(PATIENCE).await.expect("done");
        assert_eq!(done.status, Status::Done);
    }
    running.drain().await;
}
