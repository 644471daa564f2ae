//! Run now, another time, another priority.

use std::time::{Duration, Instant};

use chrono::{TimeDelta, Utc};
use tidemill::{
    Backoff, Handler, JobContext, JobError, JobHandle, JobState, NewJob, Priority, RetryPolicy,
    Running, Status,
};

use crate::support::{
    Mill, Numbered, Seen, completion, eventually, lane_counts, numbered, stream_messages,
};

const TIMERS: &str = "TIDEMILL_TIMERS_default";
const HOUR: Duration = Duration::from_secs(3600);

async fn noting(mill: &Mill, seen: &Seen<(u64, u32, Priority)>) -> Running {
    let note = seen.clone();
    let handler = Handler::new(move |job: Numbered, context: JobContext| {
        note.push((job.n, context.attempt(), context.priority()));
        let attempt = context.attempt();
        async move { if job.n == 0 && attempt == 1 { Err(JobError::failed("once")) } else { Ok(job.n) } }
    });
    let policy = RetryPolicy::new(3, Backoff::fixed(Duration::from_secs(30)));
    let worker = mill.worker().park_over(Duration::from_secs(60)).handler(handler.retry(policy));
    worker.build().expect("valid").start().await.expect("starts")
}

async fn state(mill: &Mill, job: &JobHandle) -> JobState {
    let mut jobs = mill.client.job(job.queue(), None, job.id()).await.expect("known");
    jobs.pop().expect("one").state
}

async fn parked(mill: &Mill, n: u64) -> JobHandle {
    let job = mill.client.enqueue(numbered(n)).delay(HOUR).header("X-Of", "me");
    let job = job.await.expect("stored");
    let nats = mill.nats().await;
    eventually("it is parked", || async {
        let lane = lane_counts(&nats, "default", "normal").await;
        (stream_messages(&nats, TIMERS).await >= 1 && lane == (0, 0)).then_some(())
    })
    .await;
    job
}

#[tokio::test]
async fn a_timer_runs_now_or_at_another_time() {
    let mill = Mill::start().await;
    let seen = Seen::default();
    let running = noting(&mill, &seen).await;
    let nats = mill.nats().await;
    let job = parked(&mill, 1).await;
    assert_eq!(mill.client.run_now(job.queue(), None, job.id()).await.expect("moved"), 1);
    let done = completion(&job).await;
    assert_eq!((done.status, done.attempt), (Status::Done, 1));
    assert!(done.enqueued_at <= done.started_at.expect("started"));
    eventually("nothing is left", || async {
        (stream_messages(&nats, TIMERS).await == 0).then_some(())
    })
    .await;

    let job = parked(&mill, 2).await;
    let (start, soon) = (Instant::now(), Utc::now() + TimeDelta::seconds(2));
    mill.client.reschedule(job.queue(), None, job.id(), soon).await.expect("moved");
    assert!(matches!(state(&mill, &job).await, JobState::Scheduled(_)));
    assert_eq!(stream_messages(&nats, TIMERS).await, 1, "in the old one's place");
    assert_eq!(completion(&job).await.status, Status::Done);
    assert!(start.elapsed() >= Duration::from_millis(1950), "{:?}", start.elapsed());
    assert_eq!(seen.all(), [(1, 1, Priority::Normal), (2, 1, Priority::Normal)]);
    running.drain().await;
}

#[tokio::test]
async fn several_runs_of_one_id_do_not_hold_each_other_up() {
    let mill = Mill::start().await;
    let seen = Seen::default();
    let running = noting(&mill, &seen).await;
    let mut jobs = Vec::new();
    for n in 1..=5 {
        let job = mill.client.enqueue(numbered(n)).id("order-17").delay(HOUR).await;
        jobs.push(job.expect("stored"));
    }
    let nats = mill.nats().await;
    eventually("all are parked", || async {
        (stream_messages(&nats, TIMERS).await == 5).then_some(())
    })
    .await;
    let start = Instant::now();
    let moved = mill.client.run_now(jobs[0].queue(), None, jobs[0].id()).await;
    assert_eq!(moved.expect("moved"), 5);
    for job in &jobs {
        assert_eq!(completion(job).await.status, Status::Done);
    }
    // Where one waits for another, it waits 10 s and more.
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    running.drain().await;
}

#[tokio::test]
async fn several_waiting_runs_of_one_id_change_their_lane() {
    let mill = Mill::start().await;
    let mut jobs = Vec::new();
    for n in 1..=3 {
        jobs.push(mill.client.enqueue(numbered(n)).id("order-18").await.expect("stored"));
    }
    let (queue, id) = (jobs[0].queue(), jobs[0].id());
    let moved = mill.client.set_priority(queue, None, id, Priority::High).await;
    assert_eq!(moved.expect("moved"), 3);
    let nats = mill.nats().await;
    assert_eq!(lane_counts(&nats, "default", "normal").await, (0, 0));
    assert_eq!(lane_counts(&nats, "default", "high").await, (3, 0));
    let seen = Seen::default();
    let running = noting(&mill, &seen).await;
    for job in &jobs {
        assert_eq!(completion(job).await.status, Status::Done);
    }
    // They start side by side.
    let mut all = seen.all();
    all.sort_unstable();
    assert_eq!(all, [1, 2, 3].map(|n| (n, 1, Priority::High)));
    running.drain().await;
}

/// A worker that parks a job stores the timer and then acks the source; in between, both are there.
#[tokio::test]
async fn a_job_that_is_being_parked_is_moved_as_if_it_had_arrived() {
    let mill = Mill::start().await;
    let seen = Seen::default();
    let running = noting(&mill, &seen).await;
    let job = parked(&mill, 1).await;
    running.drain().await;
    let nats = mill.nats().await;
    let subject = format!("tidemill.jobs.default.normal.numbered.{}", job.id());
    nats.request(subject, r#"{"n":1}"#.into()).await.expect("stored");

    let later = Utc::now() + TimeDelta::hours(2);
    let moved = mill.client.reschedule(job.queue(), None, job.id(), later).await;
    assert_eq!(moved.expect("moved"), 1);
    assert_eq!(lane_counts(&nats, "default", "normal").await, (0, 0), "the source has gone");
    assert!(
        matches!(state(&mill, &job).await, JobState::Scheduled(due) if due > later - TimeDelta::seconds(1))
    );
    assert_eq!(mill.client.run_now(job.queue(), None, job.id()).await.expect("moved"), 1);

    let running = noting(&mill, &seen).await;
    assert_eq!(completion(&job).await.status, Status::Done);
    assert_eq!(seen.len(), 1);
    running.drain().await;
}

#[tokio::test]
async fn what_is_to_run_at_the_end_of_time_waits() {
    let mill = Mill::start().await;
    let seen = Seen::default();
    let running = noting(&mill, &seen).await;
    let end = "9999-12-31T00:00:00Z".parse().expect("a time");
    let late = mill.client.enqueue(numbered(1)).run_at(end).await.expect("stored");
    let moved = parked(&mill, 2).await;
    mill.client.reschedule(moved.queue(), None, moved.id(), end).await.expect("moved");
    let nats = mill.nats().await;
    eventually("both are timers", || async {
        (stream_messages(&nats, TIMERS).await == 2).then_some(())
    })
    .await;
    // What the broker takes for past comes out within a quarter of a second.
    completion(&mill.client.enqueue(numbered(3)).delay(HOUR / 3600).await.expect("stored")).await;
    assert_eq!(seen.all().len(), 1, "only the one that was due");
    for job in [&late, &moved] {
        assert!(matches!(state(&mill, job).await, JobState::Scheduled(_)));
    }
    running.drain().await;
}

#[tokio::test]
async fn a_timer_and_a_waiting_job_change_their_lane() {
    let mill = Mill::start().await;
    let seen = Seen::default();
    let running = noting(&mill, &seen).await;
    let timed = parked(&mill, 1).await;
    let set = |job: JobHandle, priority| {
        let client = mill.client.clone();
        async move { client.set_priority(job.queue(), None, job.id(), priority).await }
    };
    set(timed.clone(), Priority::Critical).await.expect("moved");
    assert!(matches!(state(&mill, &timed).await, JobState::Scheduled(_)), "it stays later");
    running.drain().await;

    let waiting = mill.client.enqueue(numbered(2)).priority(Priority::Low).await.expect("stored");
    set(waiting.clone(), Priority::High).await.expect("moved");
    let nats = mill.nats().await;
    assert_eq!(lane_counts(&nats, "default", "low").await, (0, 0));
    assert_eq!(lane_counts(&nats, "default", "high").await, (1, 0));
    // One that was published without an id, too.
    let plain = nats.request("tidemill.jobs.default.low.numbered", r#"{"n":3}"#.into()).await;
    let plain: serde_json::Value =
        serde_json::from_slice(&plain.expect("stored").payload).expect("JSON");
    let plain = tidemill::JobId::new(format!("s-{}", plain["seq"])).expect("an id");
    mill.client
        .set_priority(waiting.queue(), None, &plain, Priority::Critical)
        .await
        .expect("moved");

    let running = noting(&mill, &seen).await;
    mill.client.run_now(timed.queue(), None, timed.id()).await.expect("moved");
    for job in [&waiting, &timed] {
        assert_eq!(completion(job).await.status, Status::Done);
    }
    let mut all = seen.wait_for(3).await;
    all.sort_unstable();
    let expected = [(1, 1, Priority::Critical), (2, 1, Priority::High), (3, 1, Priority::Critical)];
    assert_eq!(all, expected);
    let ended = mill.client.completions_of(timed.queue(), None, &plain).await.expect("reads");
    assert_eq!(ended.len(), 1, "under its id from before");
    running.drain().await;
}

#[tokio::test]
async fn a_job_that_backs_off_runs_now_with_its_next_attempt() {
    let mill = Mill::start().await;
    let seen = Seen::default();
    let running = noting(&mill, &seen).await;
    let job = mill.client.enqueue(numbered(0)).await.expect("stored");
    eventually("it backs off", || async {
        matches!(state(&mill, &job).await, JobState::BackingOff(_)).then_some(())
    })
    .await;
    mill.client.run_now(job.queue(), None, job.id()).await.expect("moved");
    let done = completion(&job).await;
    assert_eq!((done.status, done.attempt), (Status::Done, 2));
    assert_eq!(seen.len(), 2);
    let nats = mill.nats().await;
    eventually("its source is gone", || async {
        (stream_messages(&nats, "TIDEMILL_JOBS_default").await == 0).then_some(())
    })
    .await;
    running.drain().await;
}

#[tokio::test]
async fn a_parked_job_that_backs_off_runs_now_or_sooner_with_its_next_attempt() {
    let mill = Mill::start().await;
    let seen = Seen::default();
    let note = seen.clone();
    let handler = Handler::new(move |job: Numbered, context: JobContext| {
        note.push((job.n, context.attempt()));
        let attempt = context.attempt();
        async move { if attempt == 1 { Err(JobError::failed("once")) } else { Ok(()) } }
    });
    let policy = RetryPolicy::new(3, Backoff::fixed(HOUR));
    let running = mill.worker().handler(handler.retry(policy)).build().expect("valid");
    let running = running.start().await.expect("starts");
    let nats = mill.nats().await;
    let mut jobs = Vec::new();
    for n in [1, 2] {
        let job = mill.client.enqueue(numbered(n)).await.expect("stored");
        eventually("it is parked", || async {
            let lane = lane_counts(&nats, "default", "normal").await;
            let is_parked = matches!(state(&mill, &job).await, JobState::BackingOff(_));
            (is_parked && lane == (0, 0)).then_some(())
        })
        .await;
        jobs.push(job);
    }
    mill.client.run_now(jobs[0].queue(), None, jobs[0].id()).await.expect("moved");
    let soon = Utc::now() + TimeDelta::milliseconds(800);
    mill.client.reschedule(jobs[1].queue(), None, jobs[1].id(), soon).await.expect("moved");
    assert_eq!(stream_messages(&nats, TIMERS).await, 1, "the one of the second");
    for job in &jobs {
        let done = completion(job).await;
        assert_eq!((done.status, done.attempt), (Status::Done, 2));
    }
    assert!(Utc::now() >= soon, "not early");
    assert_eq!(seen.all(), [(1, 1), (2, 1), (1, 2), (2, 2)]);
    running.drain().await;
}

#[tokio::test]
async fn a_unique_job_that_is_not_due_runs_now_or_at_another_time_with_its_key() {
    let mill = Mill::start().await;
    let seen = Seen::default();
    let running = noting(&mill, &seen).await;
    let later = |n| NewJob::new(&numbered(n)).unique(format!("key-{n}")).delay(HOUR);
    let now = mill.client.enqueue(later(1)).await.expect("stored");
    let sooner = mill.client.enqueue(later(2)).await.expect("stored");
    mill.client.run_now(now.queue(), None, now.id()).await.expect("moved");
    assert_eq!(completion(&now).await.attempt, 1);
    let soon = Utc::now() + TimeDelta::seconds(3);
    mill.client.reschedule(sooner.queue(), None, sooner.id(), soon).await.expect("moved");
    assert!(mill.client.enqueue(later(2)).await.expect("told").is_duplicate(), "its key is held");
    assert_eq!(completion(&sooner).await.attempt, 1);
    assert!(Utc::now() >= soon, "not early");
    assert_eq!(seen.all(), [(1, 1, Priority::Normal), (2, 1, Priority::Normal)]);
    // One that has been tried stays where its key is held, and may only run at once.
    let tried = mill.client.enqueue(NewJob::new(&numbered(0)).unique("tried")).await.expect("ok");
    eventually("it backs off", || async {
        matches!(state(&mill, &tried).await, JobState::BackingOff(_)).then_some(())
    })
    .await;
    let moved = mill.client.reschedule(tried.queue(), None, tried.id(), Utc::now() + HOUR).await;
    let error = moved.expect_err("it has been tried");
    assert!(error.is_invalid() && error.to_string().contains("is unique and has been tried"));
    mill.client.run_now(tried.queue(), None, tried.id()).await.expect("moved");
    assert_eq!(completion(&tried).await.attempt, 2);
    running.drain().await;
}

#[tokio::test]
async fn what_is_rescheduled_beyond_its_expiry_ends_at_its_expiry() {
    let mill = Mill::start().await;
    let expiry = Utc::now() + TimeDelta::milliseconds(2500);
    let job = mill.client.enqueue(numbered(1)).expires_at(expiry).await.expect("stored");
    let later = Utc::now() + TimeDelta::hours(1);
    mill.client.reschedule(job.queue(), None, job.id(), later).await.expect("moved");
    let seen = Seen::default();
    let running = noting(&mill, &seen).await;
    let done = completion(&job).await;
    assert_eq!((done.status, done.attempt), (Status::Expired, 0));
    assert!(done.finished_at >= expiry, "not before");
    assert_eq!(seen.len(), 0);
    running.drain().await;
}

#[tokio::test]
async fn what_runs_or_is_not_there_is_not_moved() {
    let mill = Mill::start().await;
    let handler = |_: Numbered, context: JobContext| async move {
        context.cancellation().cancelled().await;
        Err::<(), _>(JobError::failed("stopped"))
    };
    let running = mill.worker().handle(handler).build().expect("ok").start().await.expect("ok");
    let job = mill.client.enqueue(NewJob::new(&numbered(1)).unique("k")).await.expect("stored");
    eventually("it runs", || async {
        matches!(state(&mill, &job).await, JobState::Running(_)).then_some(())
    })
    .await;
    let moved = mill.client.set_priority(job.queue(), None, job.id(), Priority::Low).await;
    let error = moved.expect_err("it runs");
    assert!(error.is_invalid() && error.to_string().contains("is running on"), "{error}");
    mill.client.cancel(job.queue(), None, job.id(), "enough").await.expect("cancelled");
    let gone = mill.client.run_now(job.queue(), None, job.id()).await;
    assert!(gone.expect_err("it has ended").is_not_found());
    // A unique job that waits moves with its key.
    running.drain().await;
    let job = mill.client.enqueue(NewJob::new(&numbered(1)).unique("k")).await.expect("stored");
    mill.client.set_priority(job.queue(), None, job.id(), Priority::Low).await.expect("moved");
    let again = mill.client.enqueue(NewJob::new(&numbered(1)).unique("k")).await.expect("told");
    assert!(again.is_duplicate() && again.run() == job.run());
}
