//! Queues as a whole: paused, emptied, waited for, removed.

use std::time::{Duration, Instant};

use chrono::{TimeDelta, Utc};
use futures_util::TryStreamExt;
use tidemill::{JobContext, JobError, JobFilter, JobInfo, NewJob, Priority, Queue, Running};

use crate::support::{
    Mill, Numbered, Seen, completion, eventually, lane_counts, numbered, stream_messages, until,
};

async fn noting(mill: &Mill, seen: &Seen<u64>) -> Running {
    let note = seen.clone();
    let handler = move |job: Numbered, _: JobContext| {
        note.push(job.n);
        async { Ok::<_, JobError>(()) }
    };
    mill.worker().handle(handler).build().expect("valid").start().await.expect("starts")
}

#[tokio::test]
async fn a_paused_queue_hands_out_nothing_until_it_is_resumed_whatever_restarts() {
    let mill = Mill::start().await;
    let (queue, seen) = (Queue::default(), Seen::default());
    mill.client.pause(&queue, None, None).await.expect("paused");
    let before = noting(&mill, &seen).await;
    let job = mill.client.enqueue(numbered(1)).await.expect("stored");
    mill.broker.kill().await.expect("kills");
    mill.broker.restart().await.expect("restarts");
    before.drain().await;
    let after = noting(&mill, &seen).await;
    until(Instant::now() + Duration::from_secs(1)).await;
    assert_eq!(seen.len(), 0);
    let info = mill.client.queue_info(&queue).await.expect("there");
    assert!(info.lanes.iter().all(|lane| lane.is_paused_for_good(Utc::now())), "{info:?}");
    assert_eq!((info.jobs, info.lanes[2].waiting), (1, 1));
    mill.client.resume(&queue, None).await.expect("resumed");
    completion(&job).await;
    assert_eq!(seen.all(), [1]);
    after.drain().await;
}

#[tokio::test]
async fn one_lane_is_paused_until_a_time() {
    let mill = Mill::start().await;
    let (queue, seen) = (Queue::default(), Seen::default());
    let running = noting(&mill, &seen).await;
    let start = Instant::now();
    let time = Utc::now() + TimeDelta::milliseconds(2000);
    mill.client.pause(&queue, Some(Priority::Low), Some(time)).await.expect("paused");
    let low = mill.client.enqueue(numbered(1)).priority(Priority::Low).await.expect("stored");
    let high = mill.client.enqueue(numbered(2)).priority(Priority::High).await.expect("stored");
    completion(&high).await;
    assert!(start.elapsed() < Duration::from_millis(1500), "other lanes go on");
    completion(&low).await;
    assert!(start.elapsed() >= Duration::from_millis(1950), "{:?}", start.elapsed());
    assert_eq!(seen.all(), [2, 1]);
    let info = mill.client.queue_info(&queue).await.expect("there");
    assert!(info.lanes.iter().all(|lane| lane.paused_until.is_none()), "{info:?}");
    let passed = mill.client.pause(&queue, None, Some(Utc::now() - TimeDelta::hours(1))).await;
    assert!(passed.expect_err("too late").is_invalid());
    running.drain().await;
}

#[tokio::test]
async fn a_purge_takes_what_is_unfinished_and_leaves_right_counts() {
    let mill = Mill::start().await;
    let queue = Queue::default();
    for priority in [Priority::High, Priority::Low] {
        let jobs = (0..100).map(|n| NewJob::new(&numbered(n)).priority(priority));
        for stored in mill.client.enqueue_many(jobs).await {
            stored.expect("stored");
        }
    }
    let nats = mill.nats().await;
    assert_eq!(mill.client.purge(&queue, Some(Priority::High)).await.expect("purged"), 100);
    assert_eq!(lane_counts(&nats, "default", "high").await, (0, 0));
    assert_eq!(lane_counts(&nats, "default", "low").await, (100, 0));
    assert_eq!(mill.client.purge(&queue, None).await.expect("purged"), 100);
    assert!(mill.client.queue_info(&queue).await.expect("there").is_empty());
    mill.client.wait_empty(&queue).await.expect("it is");
    // The lanes work as before.
    let seen = Seen::default();
    let running = noting(&mill, &seen).await;
    completion(&mill.client.enqueue(numbered(7)).await.expect("stored")).await;
    running.drain().await;
}

#[tokio::test]
async fn waiting_for_an_empty_queue_ends_with_its_last_job() {
    let mill = Mill::start().await;
    let handler = |_: Numbered, _: JobContext| async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        Ok::<_, JobError>(())
    };
    let worker = mill.worker().concurrency(4).handle(handler).build().expect("valid");
    let running = worker.start().await.expect("starts");
    for stored in mill.client.enqueue_many((0..100).map(|n| NewJob::new(&numbered(n)))).await {
        stored.expect("stored");
    }
    mill.client.wait_empty(&Queue::default()).await.expect("emptied");
    let nats = mill.nats().await;
    assert_eq!(stream_messages(&nats, "TIDEMILL_RESULTS_default").await, 100);
    running.drain().await;
}

#[tokio::test]
async fn a_queue_with_a_job_that_is_not_due_is_not_empty_wherever_the_job_is() {
    let mill = Mill::start().await;
    let queue = Queue::default();
    let hour = Duration::from_secs(3600);
    mill.client.enqueue(numbered(1)).delay(hour).await.expect("stored");
    let is_empty = async || {
        let patience = Duration::from_millis(300);
        tokio::time::timeout(patience, mill.client.wait_empty(&queue)).await.is_ok()
    };
    assert!(!is_empty().await, "on its lane");
    let running = noting(&mill, &Seen::default()).await;
    let nats = mill.nats().await;
    eventually("it is parked", || async {
        (stream_messages(&nats, "TIDEMILL_TIMERS_default").await == 1).then_some(())
    })
    .await;
    assert!(!is_empty().await, "on a timer");
    assert_eq!(mill.client.unfinished(&queue).await.expect("counts"), 1);
    assert_eq!(mill.client.purge(&queue, None).await.expect("purged"), 1);
    assert!(is_empty().await);
    running.drain().await;
}

#[tokio::test]
async fn a_queue_is_removed_with_all_it_holds_and_made_again_when_needed() {
    let mill = Mill::start().await;
    let queue = Queue::new("fleeting").expect("valid");
    mill.client.enqueue(numbered(1)).queue("fleeting").await.expect("made and stored");
    mill.client.remove_queue(&queue).await.expect("removed");
    assert!(!mill.client.queues().await.expect("lists").contains(&queue));
    assert!(mill.client.queue_info(&queue).await.expect_err("gone").is_not_found());
    assert!(mill.client.remove_queue(&queue).await.expect_err("gone").is_not_found());
    mill.client.enqueue(numbered(2)).queue("fleeting").await.expect("made anew and stored");
    let info =
        eventually("the queue", || async { mill.client.queue_info(&queue).await.ok() }).await;
    assert_eq!((info.jobs, info.results), (1, 0));
}

#[tokio::test]
async fn jobs_are_listed_in_pages_that_large_ones_do_not_burst() {
    let mill = Mill::start().await;
    let large = format!("\"{}\"", "x".repeat(900 * 1024));
    for n in 0..30 {
        let job = NewJob::raw("numbered", large.clone()).id(format!("large-{n}"));
        mill.client.enqueue(job).await.expect("stored");
    }
    let jobs = (0..2500).map(|n| NewJob::new(&numbered(n)));
    for stored in mill.client.enqueue_many(jobs).await {
        stored.expect("stored");
    }
    let listed: Vec<JobInfo> =
        mill.client.jobs(JobFilter::queue(Queue::default())).try_collect().await.expect("lists");
    assert_eq!(listed.len(), 2530);
    assert!(listed[..30].iter().all(|job| job.payload.len() > 900 * 1024));
}
