//! Later: delays, times, timers of the broker's, expiry.

use std::time::{Duration, Instant};

use chrono::{TimeDelta, Utc};
use tidemill::{
    Backoff, Handler, JobContext, JobError, JobHandle, NewJob, QueueConfig, RetryPolicy, Running,
    Status,
};

use crate::support::{
    Mill, Numbered, Seen, completion, consumer_counts, eventually, lane_counts, numbered,
    stream_messages, until,
};

const TIMERS: &str = "TIDEMILL_TIMERS_default";

/// A worker that notes when it runs what, and parks delays over a second.
async fn noting(mill: &Mill, seen: &Seen<(u64, u32, Instant)>) -> Running {
    let note = seen.clone();
    let handler = move |job: Numbered, context: JobContext| {
        note.push((job.n, context.attempt(), Instant::now()));
        async { Ok::<_, JobError>(()) }
    };
    let worker = mill.worker().park_over(Duration::from_secs(1)).handle(handler);
    worker.build().expect("valid").start().await.expect("starts")
}

/// How long after `start` a job was first run.
fn ran(seen: &Seen<(u64, u32, Instant)>, n: u64, start: Instant) -> Duration {
    let all = seen.all();
    let (_, attempt, at) = all.iter().find(|(seen, _, _)| *seen == n).expect("it ran");
    assert_eq!(*attempt, 1, "a delay is no attempt");
    at.duration_since(start)
}

#[tokio::test]
async fn short_delays_wait_on_the_lane_long_ones_on_a_timer() {
    let mill = Mill::start().await;
    let seen = Seen::default();
    let running = noting(&mill, &seen).await;
    let start = Instant::now();
    let enqueue = |n: u64, millis: u64| {
        let client = mill.client.clone();
        async move {
            let delay = Duration::from_millis(millis);
            client.enqueue(numbered(n)).delay(delay).await.expect("stored")
        }
    };
    let (short, long) = (enqueue(1, 800).await, enqueue(2, 3000).await);
    let at = Utc::now() + TimeDelta::milliseconds(3500);
    let at = mill.client.enqueue(numbered(3)).run_at(at).await.expect("stored");
    let overdue = Utc::now() - TimeDelta::days(1);
    let overdue = mill.client.enqueue(numbered(4)).run_at(overdue).await.expect("stored");
    let nats = mill.nats().await;
    eventually("two timers", || async {
        (stream_messages(&nats, TIMERS).await == 2).then_some(())
    })
    .await;
    completion(&overdue).await;
    assert!(start.elapsed() < Duration::from_secs(2), "what is overdue runs at once");
    for job in [&short, &long, &at] {
        assert_eq!(completion(job).await.status, Status::Done);
    }
    for (n, millis) in [(1, 800), (2, 3000), (3, 3500)] {
        let after = ran(&seen, n, start);
        let due = Duration::from_millis(millis);
        assert!(after >= due - Duration::from_millis(50), "{n} ran after {after:?}");
        assert!(after < due + Duration::from_secs(2), "{n} ran after {after:?}");
    }
    assert_eq!(stream_messages(&nats, TIMERS).await, 0, "nothing is left");
    assert_eq!(stream_messages(&nats, "TIDEMILL_JOBS_default").await, 0);
    running.drain().await;
}

#[tokio::test]
async fn a_header_from_any_client_is_enough() {
    let mill = Mill::start().await;
    let seen = Seen::default();
    let running = noting(&mill, &seen).await;
    let nats = mill.nats().await;
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Tidemill-Run-After", "+2500");
    headers.insert("X-Tenant", "blue");
    let start = Instant::now();
    let subject = "tidemill.jobs.default.high.numbered";
    nats.request_with_headers(subject, headers, r#"{"n":7}"#.into()).await.expect("stored");
    seen.wait_for(1).await;
    assert!(ran(&seen, 7, start) >= Duration::from_millis(2450));
    running.drain().await;
}

#[tokio::test]
async fn long_retries_are_parked_with_their_attempts() {
    let mill = Mill::start().await;
    let seen = Seen::default();
    let note = seen.clone();
    let handler = Handler::new(move |_: Numbered, context: JobContext| {
        note.push((context.attempt(), Instant::now(), context.headers().get("X-Of").is_some()));
        let attempt = context.attempt();
        async move {
            match attempt {
                1 => Err(JobError::failed("not yet")),
                2 => Err(JobError::snooze(Duration::from_secs(2))),
                _ => Ok(()),
            }
        }
    });
    let policy = RetryPolicy::new(2, Backoff::fixed(Duration::from_secs(2)));
    let worker = mill.worker().park_over(Duration::from_secs(1)).handler(handler.retry(policy));
    let running = worker.build().expect("valid").start().await.expect("starts");
    let job = mill.client.enqueue(numbered(1)).header("X-Of", "me").await.expect("stored");
    let nats = mill.nats().await;
    eventually("it is parked and gone from its lane", || async {
        let lane = lane_counts(&nats, "default", "normal").await;
        (stream_messages(&nats, TIMERS).await == 1 && lane == (0, 0)).then_some(())
    })
    .await;
    seen.wait_for(3).await;
    // A snooze costs no attempt, so the second comes again, until the test has seen enough.
    let all = seen.all();
    assert_eq!([all[0].0, all[1].0, all[2].0], [1, 2, 2]);
    assert!(all.iter().all(|(_, _, of_me)| *of_me), "its headers go with it");
    for pair in all.windows(2) {
        let between = pair[1].1 - pair[0].1;
        assert!(between >= Duration::from_millis(1950), "{between:?}");
    }
    drop(job);
    running.drain().await;
}

#[tokio::test]
async fn timers_outlive_a_broker_that_is_killed_when_they_are_due() {
    const JOBS: u64 = 60;
    let mill = Mill::start().await;
    let seen = Seen::default();
    let running = noting(&mill, &seen).await;
    let start = Instant::now();
    let delay = Duration::from_secs(4);
    let jobs = (0..JOBS).map(|n| NewJob::new(&numbered(n)).delay(delay));
    let mut handles: Vec<JobHandle> = Vec::new();
    for stored in mill.client.enqueue_many(jobs).await {
        handles.push(stored.expect("stored"));
    }
    let nats = mill.nats().await;
    eventually("all are parked", || async {
        (stream_messages(&nats, TIMERS).await == JOBS).then_some(())
    })
    .await;
    until(start + delay - Duration::from_millis(30)).await;
    mill.broker.kill().await.expect("kills");
    mill.broker.restart().await.expect("restarts");
    for job in &handles {
        assert_eq!(completion(job).await.status, Status::Done);
    }
    let mut numbers: Vec<u64> = seen.all().iter().map(|(n, _, _)| *n).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..JOBS).collect::<Vec<_>>(), "none lost, none twice");
    for (n, attempt, at) in seen.all() {
        let after = at - start;
        assert!(after >= delay - Duration::from_millis(50), "{n} ran after {after:?}");
        assert_eq!(attempt, 1);
    }
    running.drain().await;
}

#[tokio::test]
async fn what_has_not_started_by_its_expiry_never_runs() {
    let mill = Mill::start().await;
    let soon = || Utc::now() + TimeDelta::milliseconds(1500);
    let waiting = mill.client.enqueue(numbered(1)).expires_at(soon()).await.expect("stored");
    let late = Duration::from_secs(60);
    let parked = mill.client.enqueue(numbered(2)).delay(late).expires_at(soon());
    let parked = parked.await.expect("stored");
    let in_time = mill.client.enqueue(numbered(3)).expires_at(Utc::now() + TimeDelta::hours(1));
    let in_time = in_time.await.expect("stored");
    until(Instant::now() + Duration::from_millis(1600)).await;
    let seen = Seen::default();
    let running = noting(&mill, &seen).await;
    let another = mill.client.enqueue(numbered(4)).delay(late).expires_at(soon());
    let another = another.await.expect("stored");
    for job in [&waiting, &parked, &another] {
        let done = completion(job).await;
        assert_eq!((done.status, done.attempt), (Status::Expired, 0));
    }
    assert_eq!(completion(&in_time).await.status, Status::Done);
    assert_eq!(seen.len(), 1, "only what was in time has run");
    running.drain().await;
}

#[tokio::test]
async fn a_unique_job_waits_on_its_lane_where_its_guard_holds() {
    let mill = Mill::start().await;
    let seen = Seen::default();
    let running = noting(&mill, &seen).await;
    let nats = mill.nats().await;
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Tidemill-Run-After", "+3000");
    headers.insert("Tidemill-Unique", "1");
    let subject = "tidemill.jobs.default.normal.numbered.only-one";
    let start = Instant::now();
    nats.request_with_headers(subject, headers, r#"{"n":5}"#.into()).await.expect("stored");
    eventually("it is given back", || async {
        (lane_counts(&nats, "default", "normal").await == (0, 1)).then_some(())
    })
    .await;
    assert_eq!(stream_messages(&nats, TIMERS).await, 0);
    seen.wait_for(1).await;
    assert!(ran(&seen, 5, start) >= Duration::from_millis(2950));
    running.drain().await;
}

#[tokio::test]
async fn a_full_queue_lets_timers_wait() {
    let mut config = QueueConfig::default();
    config.max_jobs = 3;
    let mill = Mill::with(config).await;
    let seen = Seen::default();
    let running = noting(&mill, &seen).await;
    let delay = Duration::from_secs(2);
    let late = mill.client.enqueue(numbered(1)).delay(delay).await.expect("stored");
    let nats = mill.nats().await;
    eventually("it is parked", || async {
        (stream_messages(&nats, TIMERS).await == 1).then_some(())
    })
    .await;
    // Jobs of an unknown kind fill the queue.
    for _ in 0..3 {
        mill.client.enqueue(NewJob::raw("unknown", "{}")).await.expect("stored");
    }
    eventually("it is due, and given back", || async {
        (consumer_counts(&nats, TIMERS, "due").await == (0, 1)).then_some(())
    })
    .await;
    assert_eq!(seen.len(), 0);
    assert_eq!(stream_messages(&nats, TIMERS).await, 1, "the timer waits");
    let purge = "$JS.API.STREAM.PURGE.TIDEMILL_JOBS_default";
    nats.request(purge, "".into()).await.expect("an answer");
    assert_eq!(late.completion_within(Duration::from_secs(40)).await.expect("comes").attempt, 1);
    running.drain().await;
}
