//! What is seen and done over a slow line, or by a clock of another time, is what is so.

use std::time::Duration;

use chrono::{Datelike, TimeDelta, Utc};
use tidemill::{
    Client, Handler, JobContext, JobError, JobId, JobState, NewJob, Priority, Queue, Running,
    Status, Worker,
};

use crate::link::Link;
use crate::support::{Mill, Numbered, completion, connect, eventually, numbered, stream_messages};

/// A worker whose jobs run until they are told to stop.
async fn endless(client: &Client, concurrency: usize) -> Running {
    let handler = |_: Numbered, context: JobContext| async move {
        context.cancellation().cancelled().await;
        Err::<(), _>(JobError::failed("stopped"))
    };
    let worker = Worker::builder(client).concurrency(concurrency).handle(handler);
    worker.build().expect("valid").start().await.expect("starts")
}

async fn state(client: &Client, id: &JobId) -> JobState {
    let mut jobs = client.job(&Queue::default(), None, id).await.expect("known");
    jobs.pop().expect("one").state
}

async fn runs(client: &Client, id: &JobId) {
    eventually("it runs", || async {
        matches!(state(client, id).await, JobState::Running(_)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_runs_is_not_taken_for_waiting_from_afar() {
    let mill = Mill::start().await;
    let running = endless(&mill.client, 4).await;
    let unique = || NewJob::new(&numbered(1)).unique("one");
    let job = mill.client.enqueue(unique()).await.expect("stored");
    runs(&mill.client, job.id()).await;

    let link = Link::slow(mill.broker.url(), Duration::from_millis(250)).await;
    let far = connect(&link.url).await;
    assert!(matches!(state(&far, job.id()).await, JobState::Running(_)));
    let moved = far.set_priority(job.queue(), None, job.id(), Priority::Low).await;
    assert!(moved.expect_err("it runs").to_string().contains("is running on"));
    let replaced = far.enqueue_replacing(unique()).await.expect("told");
    assert!(replaced.is_duplicate());
    assert_eq!(replaced.run(), job.run());
    running.drain().await;
}

#[tokio::test]
async fn what_runs_on_a_slow_worker_beside_a_quick_one_is_seen() {
    let mill = Mill::start().await;
    let link = Link::slow(mill.broker.url(), Duration::from_millis(250)).await;
    let slow = endless(&connect(&link.url).await, 1).await;
    let job = mill.client.enqueue(numbered(1)).await.expect("stored");
    let queue = Queue::default();
    eventually("the slow one has it", || async {
        let all = mill.client.running(&queue).await.expect("told");
        (all.len() == 1).then_some(())
    })
    .await;
    let quick = endless(&mill.client, 1).await;
    assert!(matches!(state(&mill.client, job.id()).await, JobState::Running(_)));
    let moved = mill.client.set_priority(&queue, None, job.id(), Priority::Low).await;
    assert!(moved.expect_err("it runs").to_string().contains("is running on"));
    quick.drain().await;
    slow.drain().await;
}

#[tokio::test]
async fn however_many_a_worker_runs_each_is_told() {
    const JOBS: u64 = 2300;
    let mill = Mill::start().await;
    let jobs = (0..JOBS).map(|n| NewJob::new(&numbered(n)));
    for stored in mill.client.enqueue_many(jobs).await {
        stored.expect("stored");
    }
    let running = endless(&mill.client, 2500).await;
    eventually("all run, by the worker's word", || async {
        let all = mill.client.running(&Queue::default()).await.expect("told");
        (all.len() as u64 == JOBS).then_some(())
    })
    .await;
    running.drain().await;
}

/// Jobs go from lane to timer and back without end; a look over a slow line takes long enough for
/// each to be at neither place when it is looked for there.
#[tokio::test]
async fn a_queue_whose_jobs_are_on_the_move_is_not_empty() {
    let mill = Mill::start().await;
    let restless = Handler::new(|_: Numbered, _: JobContext| async {
        Err::<(), _>(JobError::snooze(Duration::from_millis(300)))
    });
    let worker = mill.worker().park_over(Duration::from_millis(10)).handler(restless);
    let running = worker.build().expect("valid").start().await.expect("starts");
    mill.client.enqueue(numbered(1)).await.expect("stored");
    let nats = mill.nats().await;
    eventually("it is on a timer", || async {
        (stream_messages(&nats, "TIDEMILL_TIMERS_default").await == 1).then_some(())
    })
    .await;
    let link = Link::slow(mill.broker.url(), Duration::from_millis(40)).await;
    let far = connect(&link.url).await;
    let patience = Duration::from_secs(12);
    let emptied = tokio::time::timeout(patience, far.wait_empty(&Queue::default())).await;
    assert!(emptied.is_err(), "it was never empty");
    running.drain().await;
}

#[tokio::test]
async fn what_a_replica_lacks_is_not_missing() {
    let mill = Mill::start().await;
    let queue = Queue::default();
    let hour = Duration::from_secs(3600);
    let later = async |id: &str| {
        let job = mill.client.enqueue(numbered(1)).id(id).delay(hour).await.expect("stored");
        job.id().clone()
    };
    let link = Link::to_a_replica_that_lacks_all(mill.broker.url()).await;
    let far = connect(&link.url).await;
    let waits = later("waits").await;
    assert!(matches!(state(&far, &waits).await, JobState::Scheduled(_)));
    let soon = Utc::now() + TimeDelta::hours(2);
    far.reschedule(&queue, None, &waits, soon).await.expect("moved to a timer");
    assert!(
        matches!(state(&far, &waits).await, JobState::Scheduled(due) if due + TimeDelta::seconds(1) > soon)
    );
    far.set_priority(&queue, None, &waits, Priority::Low).await.expect("moved among the timers");
    far.run_now(&queue, None, &later("now").await).await.expect("moved to its lane");
    let cancelled = far.cancel(&queue, None, &waits, "no").await.expect("cancelled");
    assert_eq!(cancelled[0].status, Status::Cancelled);
    let again = far.cancel(&queue, None, &waits, "no").await.expect("told");
    assert!(again[0].had_ended);
    assert!(matches!(state(&far, &waits).await, JobState::Ended(_)));
    let nobody = JobId::new("nobody").expect("an id");
    assert!(far.job(&queue, None, &nobody).await.expect_err("not there").is_not_found());
}

#[tokio::test]
async fn times_are_counted_by_the_clock_of_the_broker() {
    let mill = Mill::start().await;
    let link = Link::to_the_next_century(mill.broker.url()).await;
    let year = Utc::now().year() + 100;
    let tidemill = async |arguments: &[&str]| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_tidemill"));
        let output = command.args(["--server", &link.url]).args(arguments).output().await;
        let output = output.expect("runs");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let job = mill.client.enqueue(numbered(1)).id("a").await.expect("stored");
    mill.client.enqueue(numbered(1)).id("b").await.expect("stored");
    let moved = tidemill(&["job", "reschedule", "a", "--in", "1h"]).await;
    assert!(moved.starts_with(&format!("moved a to run at {year}-")), "{moved}");
    tidemill(&["queue", "pause", "--for", "1h"]).await;
    let paused = tidemill(&["queue", "info"]).await;
    assert!(paused.contains(&format!("until {year}-")), "{paused}");
    tidemill(&["job", "cancel", "a", "b"]).await;
    let done = completion(&job).await;
    assert_eq!((done.status, done.finished_at.year()), (Status::Cancelled, year));
}
