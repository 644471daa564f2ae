//! All or nothing: atomic batches.

use std::time::Duration;

use tidemill::{
    Client, ConnectOptions, JobContext, JobError, NewJob, Priority, Queue, QueueConfig, Status,
};

use crate::proxy::Proxy;
use crate::support::{
    Mill, Numbered, Seen, completion, eventually, lane_counts, numbered, stream_messages,
};

const JOBS: &str = "TIDEMILL_JOBS_default";

#[tokio::test]
async fn a_thousand_go_in_together_over_lanes_delays_and_keys() {
    let mill = Mill::start().await;
    let jobs = (0..1000).map(|n| {
        let job = NewJob::new(&numbered(n)).priority(Priority::ALL[n as usize % 4]);
        match n % 10 {
            7 => job.unique(format!("key-{n}")),
            8 => job.delay(Duration::from_millis(200)),
            9 => job.id(format!("mine-{n}")),
            _ => job,
        }
    });
    let handles = mill.client.enqueue_all(jobs).await.expect("all stored");
    assert_eq!(handles.len(), 1000);
    let nats = mill.nats().await;
    assert_eq!(stream_messages(&nats, JOBS).await, 1000);
    for lane in ["critical", "high", "normal", "low"] {
        assert_eq!(lane_counts(&nats, "default", lane).await, (250, 0));
    }
    assert!(
        handles
            .windows(2)
            .all(|pair| pair[1].sequence() == pair[0].sequence().map(|before| before + 1))
    );
    let handler = |job: Numbered, _: JobContext| async move { Ok::<_, JobError>(job.n) };
    let worker = mill.worker().concurrency(64).handle(handler).build().expect("valid");
    let running = worker.start().await.expect("starts");
    for (n, job) in (0u64..).zip(&handles) {
        let done = completion(job).await;
        assert_eq!((done.status, Some(done.seq)), (Status::Done, job.sequence()));
        assert_eq!(done.result::<u64>().expect("a number"), Some(n));
    }
    running.drain().await;
}

#[tokio::test]
async fn a_taken_key_keeps_all_out_and_is_named() {
    let mill = Mill::start().await;
    mill.client.enqueue(NewJob::new(&numbered(0)).unique("taken")).await.expect("stored");
    let jobs = |key: &'static str| {
        (0..50).map(move |n| {
            let job = NewJob::new(&numbered(n));
            if n == 25 { job.unique(key) } else { job }
        })
    };
    let error = mill.client.enqueue_all(jobs("taken")).await.expect_err("one key is taken");
    assert!(error.is_duplicate(), "{error}");
    assert!(error.to_string().contains("key \"taken\" is taken"), "{error}");
    let nats = mill.nats().await;
    assert_eq!(stream_messages(&nats, JOBS).await, 1, "none is stored");
    mill.client.enqueue_all(jobs("free")).await.expect("all stored");
    assert_eq!(stream_messages(&nats, JOBS).await, 51);
}

#[tokio::test]
async fn mistakes_are_named_before_anything_is_sent() {
    let mill = Mill::start().await;
    let job = |n| NewJob::new(&numbered(n));
    let table: [(Vec<NewJob>, &str); 5] = [
        (vec![job(0).unique("k"), job(1), job(2).unique("k")], "jobs 1 and 3 of the batch"),
        (vec![job(0).id("a"), job(1).id("a")], "same id or key \"a\""),
        (vec![job(0), job(1).queue("other")], "a batch is of one queue"),
        (vec![job(0), NewJob::raw("no kind", "")], "job 2 of the batch: kind"),
        ((0..1001).map(job).collect(), "use at most 1000"),
    ];
    for (jobs, named) in table {
        let error = mill.client.enqueue_all(jobs).await.expect_err(named);
        assert!(error.is_invalid() && error.to_string().contains(named), "{error}");
    }
    assert_eq!(stream_messages(&mill.nats().await, JOBS).await, 0);
    assert!(mill.client.enqueue_all(Vec::<NewJob>::new()).await.expect("nothing").is_empty());
    let fresh = mill.client.enqueue_all([job(0).queue("fresh")]).await.expect("made and stored");
    assert_eq!(fresh[0].queue(), &Queue::new("fresh").expect("valid"));
}

#[tokio::test]
async fn a_lost_answer_is_resolved_by_looking() {
    let mut config = QueueConfig::default();
    config.ack_wait = Duration::from_secs(5);
    let mill = Mill::start().await;
    let options = ConnectOptions::new(mill.broker.url()).expect("a URL");
    let options = options.request_timeout(Duration::from_millis(300));
    let client = Client::connect(options).await.expect("connects").with_queue_config(config);
    mill.broker.freeze().await.expect("freezes");
    let batch = tokio::spawn(async move {
        client.enqueue_all((0..20).map(|n| NewJob::new(&numbered(n)))).await
    });
    // Long enough for the answer to be given up, not for the look-ups.
    crate::support::until(std::time::Instant::now() + Duration::from_secs(1)).await;
    mill.broker.thaw().await.expect("thaws");
    let handles = batch.await.expect("runs").expect("known in the end");
    let nats = mill.nats().await;
    eventually("twenty jobs", || async {
        (stream_messages(&nats, JOBS).await == 20).then_some(())
    })
    .await;
    let get = format!("$JS.API.STREAM.MSG.GET.{JOBS}");
    for job in &handles {
        let request = serde_json::json!({ "seq": job.sequence() }).to_string();
        let there = nats.request(get.clone(), request.into()).await.expect("an answer");
        let there = String::from_utf8_lossy(&there.payload).into_owned();
        assert!(there.contains(job.id().as_str()), "{there}");
    }
}

const COMMIT: &str = "Nats-Batch-Commit";

async fn behind(proxy: &Proxy) -> Client {
    let options = ConnectOptions::new(proxy.url()).expect("a URL");
    let options = options.request_timeout(Duration::from_secs(1));
    Client::connect(options).await.expect("connects")
}

#[tokio::test]
async fn a_batch_is_there_once_whether_the_commit_or_its_answer_is_lost() {
    let mill = Mill::start().await;
    let proxy = Proxy::start(mill.broker.url()).await;
    let client = behind(&proxy).await;
    let nats = mill.nats().await;
    let jobs = || (0..20).map(|n| NewJob::new(&numbered(n)));

    proxy.lose_answer_to(COMMIT);
    let handles = client.enqueue_all(jobs()).await.expect("found");
    proxy.met().await;
    assert_eq!(stream_messages(&nats, JOBS).await, 20);
    assert!(handles.iter().all(|job| job.sequence().is_none()), "nobody told");
    for job in &handles {
        mill.client.job(job.queue(), None, job.id()).await.expect("there");
    }

    proxy.hold(COMMIT);
    let sent = tokio::spawn(async move { client.enqueue_all(jobs()).await });
    proxy.met().await;
    proxy.cut();
    let handles = sent.await.expect("no panic").expect("stored");
    assert_eq!(stream_messages(&nats, JOBS).await, 40);
    assert!(handles.iter().all(|job| job.sequence().is_some()), "told when it was sent again");
}

/// What was sent first may still come in.
#[tokio::test]
async fn a_refusal_says_nothing_of_what_was_sent_before_without_an_answer() {
    let mut config = QueueConfig::default();
    (config.max_jobs, config.ack_wait) = (20, Duration::from_secs(1));
    let mill = Mill::with(config.clone()).await;
    let full = async || mill.client.enqueue(numbered(0)).await.is_err_and(|error| error.is_full());
    for (text, count) in [(COMMIT, 5), ("PUB tidemill.jobs", 1)] {
        let proxy = Proxy::start(mill.broker.url()).await;
        let client = behind(&proxy).await.with_queue_config(config.clone());
        client.ensure_queue(&Queue::default()).await.expect("it is there");
        proxy.hold(text);
        let sent = tokio::spawn(async move {
            match count {
                1 => client.enqueue(numbered(1)).await.map(drop),
                _ => client
                    .enqueue_all((0..count).map(|n| NewJob::new(&numbered(n))))
                    .await
                    .map(drop),
            }
        });
        proxy.met().await;
        while !full().await {}
        proxy.cut();
        let error = sent.await.expect("no panic").expect_err("the queue is full");
        assert!(error.is_unknown(), "{text}: {error:?}");
    }
}

#[tokio::test]
async fn a_batch_whose_answer_is_lost_is_found_wherever_its_jobs_are() {
    let mill = Mill::start().await;
    let proxy = Proxy::start(mill.broker.url()).await;
    let client = behind(&proxy).await;
    let seen = Seen::default();
    let note = seen.clone();
    let handler = move |job: Numbered, _: JobContext| {
        note.push(job.n);
        async { Ok::<_, JobError>(()) }
    };
    let worker = mill.worker().park_over(Duration::from_millis(500)).handle(handler);
    let running = worker.build().expect("valid").start().await.expect("starts");
    let chosen = |n: u64| NewJob::new(&numbered(n)).id("order-17");
    let delay = Duration::from_secs(4);
    let batches: [Vec<NewJob>; 3] = [
        // The first is parked, the second waits for ever.
        vec![NewJob::new(&numbered(0)).delay(delay), NewJob::raw("unknown", "{}")],
        // The first is done.
        vec![NewJob::new(&numbered(1)), NewJob::raw("unknown", "{}")],
        // None has an id of its own, and another run of its id comes after it.
        vec![chosen(2)],
    ];
    let mut firsts = Vec::new();
    for batch in batches {
        proxy.lose_answer_to(COMMIT);
        let client = client.clone();
        let sent = tokio::spawn(async move { client.enqueue_all(batch).await });
        proxy.met().await;
        mill.client.enqueue(chosen(3).delay(delay)).await.expect("stored");
        let handles = sent.await.expect("no panic").expect("found");
        firsts.push(handles.into_iter().next().expect("one"));
    }
    for job in &firsts {
        assert_eq!(completion(job).await.status, Status::Done);
    }
    let mut all = seen.wait_for(6).await;
    all.sort_unstable();
    assert_eq!(all, [0, 1, 2, 3, 3, 3], "each once");
    assert_eq!(stream_messages(&mill.nats().await, JOBS).await, 2, "the unknown ones");
    running.drain().await;
}

#[tokio::test]
async fn a_key_that_is_free_in_a_moment_keeps_no_batch_out() {
    let mill = Mill::start().await;
    let handler = |_: Numbered, _: JobContext| async { Ok::<_, JobError>(()) };
    let running = mill.worker().handle(handler).build().expect("ok").start().await.expect("ok");
    for n in 0..100 {
        let job = || NewJob::new(&numbered(n)).unique("again");
        let handles = mill.client.enqueue_all([job(), NewJob::new(&numbered(n))]).await;
        let handles = handles.unwrap_or_else(|error| panic!("the {n}th: {error}"));
        assert_eq!(completion(&handles[0]).await.status, Status::Done);
    }
    running.drain().await;
}
