//! Attempt numbers and retry times are exact, whatever dies in between.

use std::time::{Duration, Instant};

use tidemill::{AttemptEvent, Backoff, Handler, JobContext, JobError, NewJob, RetryPolicy, Status};

use crate::support::{Child, Mill, Numbered, Seen, completion, eventually, numbered};

const SHORT_LEASE: Duration = Duration::from_secs(2);

#[tokio::test]
async fn a_job_that_kills_its_workers_is_buried_when_its_attempts_are_used() {
    let mill = Mill::with_ack_wait(SHORT_LEASE).await;
    let notes = tempfile::NamedTempFile::new().expect("a file");
    let killer = format!(
        "killer=echo $TIDEMILL_ATTEMPT >> {}; kill -9 $PPID; sleep 5",
        notes.path().display()
    );
    let job = NewJob::raw("killer", "{}").max_retries(1);
    let job = mill.client.enqueue(job).await.expect("stored");
    let mut workers = 0;
    let done = loop {
        // As a supervisor would, start the worker again whenever it is gone.
        let mut worker = Child::work(mill.broker.url(), &["--exec", &killer]);
        workers += 1;
        tokio::select! {
            done = completion(&job) => break done,
            () = worker.gone() => {}
        }
        assert!(workers < 10, "it goes on for ever");
    };
    assert_eq!((done.status, done.reason.as_deref()), (Status::Dead, Some("worker_lost")));
    assert_eq!(done.attempt, 2);
    // From outside, a crash before the first start and one after it look alike: the job gets the
    // benefit of the doubt once.
    let seen = std::fs::read_to_string(notes.path()).expect("reads");
    assert_eq!(seen.split_whitespace().collect::<Vec<_>>(), ["1", "1", "2"]);
}

#[tokio::test]
async fn a_worker_that_is_killed_costs_one_attempt_of_what_it_ran_and_none_of_the_rest() {
    let mill = Mill::with_ack_wait(SHORT_LEASE).await;
    let notes = tempfile::NamedTempFile::new().expect("a file");
    let file = notes.path().display();
    // The first attempts fail, so that the second ones are announced.
    let work = format!(
        "slow=echo $TIDEMILL_ATTEMPT >> {file}; \
         if [ $TIDEMILL_ATTEMPT = 1 ]; then exit 1; fi; \
         if [ $TIDEMILL_ATTEMPT = 2 ]; then sleep 30; fi"
    );
    let arguments = ["--exec", &work, "--backoff", "fixed:100", "--concurrency", "2"];
    let mut first = Child::work(mill.broker.url(), &arguments);
    let mut jobs = Vec::new();
    for _ in 0..4 {
        jobs.push(mill.client.enqueue(NewJob::raw("slow", "{}")).await.expect("stored"));
    }
    let lines = || std::fs::read_to_string(notes.path()).expect("reads");
    eventually("two second attempts run", || async {
        (lines().lines().filter(|line| *line == "2").count() == 2).then_some(())
    })
    .await;
    first.kill().await;
    let quick = "slow=exit 0";
    let second = Child::work(mill.broker.url(), &["--exec", quick, "--concurrency", "2"]);
    let mut attempts = Vec::new();
    for job in &jobs {
        attempts.push(completion(job).await.attempt);
    }
    attempts.sort_unstable();
    assert_eq!(attempts, [2, 2, 3, 3]);
    second.terminate().await;
}

/// Lets jobs fail once with a delay, kills the broker right after, and tells when each was tried.
async fn tries_around_a_broker_crash(other_worker: bool) -> Vec<Vec<Instant>> {
    const JOBS: u64 = 12;
    const DELAY: Duration = Duration::from_secs(5);
    let mill = Mill::with_ack_wait(SHORT_LEASE).await;
    let seen = Seen::default();
    let worker = || {
        let note = seen.clone();
        let handler = move |job: Numbered, context: JobContext| {
            note.push((job.n, context.attempt(), Instant::now()));
            let first = context.attempt() == 1;
            async move { if first { Err(JobError::failed("once")) } else { Ok(()) } }
        };
        let policy = RetryPolicy::new(3, Backoff::fixed(DELAY));
        mill.worker().handler(Handler::new(handler).retry(policy)).build().expect("valid")
    };
    let mut running = worker().start().await.expect("starts");
    let jobs = (0..JOBS).map(|n| NewJob::new(&numbered(n)));
    let jobs: Vec<_> = mill.client.enqueue_many(jobs).await.into_iter().flatten().collect();
    let nats = mill.nats().await;
    eventually("all failed once, by the ledger", || async {
        let failed = crate::support::stream_messages(&nats, "TIDEMILL_ATTEMPTS_default").await;
        (failed == JOBS).then_some(())
    })
    .await;
    // The broker writes down who has what only a few times a second.
    mill.broker.kill().await.expect("killed");
    mill.broker.restart().await.expect("back");
    if other_worker {
        running.drain().await;
        running = worker().start().await.expect("starts");
    }
    for job in &jobs {
        let done = completion(job).await;
        assert_eq!((done.status, done.attempt), (Status::Done, 2));
    }
    running.drain().await;
    let mut tries = vec![Vec::new(); usize::try_from(JOBS).expect("small")];
    for (n, attempt, at) in seen.all() {
        tries[usize::try_from(n).expect("small")].push((attempt, at));
    }
    for tries in &tries {
        let attempts: Vec<u32> = tries.iter().map(|(attempt, _)| *attempt).collect();
        assert_eq!(attempts, [1, 2]);
        let delay = tries[1].1 - tries[0].1;
        assert!(delay >= DELAY, "tried again after {delay:?}");
    }
    tries.into_iter().map(|tries| tries.into_iter().map(|(_, at)| at).collect()).collect()
}

#[tokio::test]
async fn a_broker_that_crashes_right_after_a_nak_keeps_the_retry_time() {
    assert_eq!(tries_around_a_broker_crash(false).await.len(), 12);
}

#[tokio::test]
async fn a_worker_that_starts_after_the_crash_keeps_it_too() {
    assert_eq!(tries_around_a_broker_crash(true).await.len(), 12);
}

#[tokio::test]
async fn a_broker_that_crashes_under_load_costs_no_attempt_and_no_job() {
    const JOBS: u64 = 300;
    // What was on its way to the worker in a crash comes back when its lease runs out.
    let mill = Mill::with_ack_wait(Duration::from_secs(5)).await;
    let handler = |job: Numbered, context: JobContext| {
        let fails = job.n.is_multiple_of(3) && context.attempt() == 1;
        async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            if fails { Err(JobError::failed("once")) } else { Ok(()) }
        }
    };
    let policy = RetryPolicy::new(1, Backoff::fixed(Duration::from_millis(300)));
    let worker = mill.worker().handler(Handler::new(handler).retry(policy));
    let running = worker.build().expect("valid").start().await.expect("starts");
    let jobs = (0..JOBS).map(|n| NewJob::new(&numbered(n)));
    let jobs: Vec<_> =
        mill.client.enqueue_many(jobs).await.into_iter().map(|job| job.expect("stored")).collect();
    for round in 0..3 {
        completion(&jobs[round * 30]).await;
        mill.broker.kill().await.expect("killed");
        mill.broker.restart().await.expect("back");
    }
    for (n, job) in jobs.iter().enumerate() {
        let done = completion(job).await;
        let attempts = if n.is_multiple_of(3) { 2 } else { 1 };
        assert_eq!((done.status, done.attempt), (Status::Done, attempts), "job {n}");
    }
    let nats = mill.nats().await;
    // An ack that the crash swallowed is made up for when its job is handed out again.
    eventually("the queue is empty", || async {
        (crate::support::stream_messages(&nats, "TIDEMILL_JOBS_default").await == 0).then_some(())
    })
    .await;
    assert_eq!(crate::support::stream_messages(&nats, "TIDEMILL_RESULTS_default").await, JOBS);
    running.drain().await;
}

#[tokio::test]
async fn a_worker_that_was_frozen_past_its_lease_stays_silent() {
    let mill = Mill::with_ack_wait(SHORT_LEASE).await;
    let notes = tempfile::NamedTempFile::new().expect("a file");
    let work = format!("slow=echo x >> {}; sleep 1", notes.path().display());
    let zombie = Child::work(mill.broker.url(), &["--exec", &work, "--name", "zombie"]);
    let job = mill.client.enqueue(NewJob::raw("slow", "{}")).await.expect("stored");
    let runs = || std::fs::read_to_string(notes.path()).expect("reads").lines().count();
    eventually("it runs", || async { (runs() == 1).then_some(()) }).await;
    zombie.freeze();
    let other = Child::work(mill.broker.url(), &["--exec", &work, "--name", "other"]);
    let done = completion(&job).await;
    assert_eq!((done.status, done.worker.as_str(), done.attempt), (Status::Done, "other", 1));
    zombie.thaw();
    zombie.terminate().await;
    other.terminate().await;
    assert_eq!(runs(), 2, "its late word caused no third run");
    let nats = mill.nats().await;
    assert_eq!(crate::support::stream_messages(&nats, "TIDEMILL_RESULTS_default").await, 1);
}

#[tokio::test]
async fn long_jobs_keep_their_lease() {
    let mill = Mill::with_ack_wait(SHORT_LEASE).await;
    let seen = Seen::default();
    let note = seen.clone();
    let handler = move |_: Numbered, _: JobContext| {
        note.push(());
        async {
            tokio::time::sleep(3 * SHORT_LEASE).await;
            Ok::<_, JobError>(())
        }
    };
    let running = mill.worker().handle(handler).build().expect("ok").start().await.expect("ok");
    let job = mill.client.enqueue(numbered(1)).await.expect("stored");
    assert_eq!(completion(&job).await.attempt, 1);
    assert_eq!(seen.len(), 1, "nobody else got it");
    running.drain().await;
}

#[tokio::test]
async fn an_id_that_comes_back_does_not_inherit_attempts() {
    let mill = Mill::start().await;
    let handler = |job: Numbered, context: JobContext| {
        let attempt = context.attempt();
        async move { if job.n == 0 { Err(JobError::failed("no")) } else { Ok(attempt) } }
    };
    let policy = RetryPolicy::new(1, Backoff::fixed(Duration::from_millis(50)));
    let worker = mill.worker().handler(Handler::new(handler).retry(policy));
    let running = worker.build().expect("valid").start().await.expect("starts");
    let first = mill.client.enqueue(numbered(0)).id("order-17").await.expect("stored");
    assert_eq!(completion(&first).await.attempt, 2);
    let second = mill.client.enqueue(numbered(1)).id("order-17").await.expect("stored");
    assert_eq!(completion(&second).await.attempt, 1);
    let letter = mill.client.dead_letter(first.queue(), first.id()).await.expect("there");
    let events: Vec<(AttemptEvent, u32)> = mill
        .client
        .attempts_of(&letter)
        .await
        .expect("reads")
        .iter()
        .map(|entry| (entry.event, entry.attempt))
        .collect();
    let (failed, started) = (AttemptEvent::Failed, AttemptEvent::Started);
    assert_eq!(events, [(failed, 1), (started, 2), (failed, 2)]);
    running.drain().await;
}

#[tokio::test]
async fn what_is_given_back_without_a_delay_runs_again_at_once() {
    const JOBS: u64 = 300;
    let mill = Mill::start().await;
    let handler = |_: Numbered, context: JobContext| {
        let attempt = context.attempt();
        async move { if attempt < 5 { Err(JobError::failed("not yet")) } else { Ok(()) } }
    };
    let policy = RetryPolicy::new(4, Backoff::fixed(Duration::ZERO));
    let worker = mill.worker().handler(Handler::new(handler).retry(policy)).build();
    let running = worker.expect("valid").start().await.expect("starts");
    let started = Instant::now();
    let mut jobs = Vec::new();
    for stored in mill.client.enqueue_many((0..JOBS).map(|n| NewJob::new(&numbered(n)))).await {
        jobs.push(stored.expect("stored"));
    }
    for job in &jobs {
        let done = completion(job).await;
        assert_eq!((done.status, done.attempt), (Status::Done, 5));
    }
    // Nobody had to wait for a lease to run out, which would take 30 s.
    assert!(started.elapsed() < Duration::from_secs(15), "after {:?}", started.elapsed());
    running.drain().await;
}

/// A worker that was held up writes down what it saw only after another has gone on with the job.
#[tokio::test]
async fn what_is_told_too_late_takes_no_attempt_back() {
    let mill = Mill::with_ack_wait(SHORT_LEASE).await;
    let (nats, seen) = (mill.nats().await, Seen::default());
    let note = seen.clone();
    let handler = Handler::raw("late", move |_, context: JobContext| {
        let (nats, note) = (nats.clone(), note.clone());
        async move {
            note.push(context.attempt());
            if context.attempt() > 1 {
                return Ok(None);
            }
            let (id, run) = (context.id(), context.run());
            let entry = format!(
                r#"{{"v":1,"id":"{id}","run":"{run}","seq":1,"attempt":2,"event":"started",
                "at":"2026-12-01T08:00:00.000Z","worker":"another"}}"#
            );
            let subject = format!("tidemill.attempts.default.late.{id}._");
            nats.request(subject, entry.into()).await?;
            Err(JobError::failed("told too late"))
        }
    });
    let policy = RetryPolicy::new(5, Backoff::fixed(Duration::ZERO));
    let running = mill.worker().handler(handler.retry(policy)).build().expect("valid");
    let running = running.start().await.expect("starts");
    let job = mill.client.enqueue(NewJob::raw("late", "{}")).await.expect("stored");
    let done = completion(&job).await;
    assert_eq!((done.status, done.attempt), (Status::Done, 3));
    assert_eq!(seen.all(), [1, 3], "attempt 2 is another's");
    let info = mill.client.job(job.queue(), None, job.id()).await.expect("known");
    let ledger: Vec<_> =
        info[0].attempts.iter().map(|entry| (entry.attempt, entry.event)).collect();
    assert_eq!(ledger, [(2, AttemptEvent::Started), (3, AttemptEvent::Started)]);
    running.drain().await;
}
