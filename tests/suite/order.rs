//! Which job is next: by weight with a bound, strictly, and first in first out within a lane.

use std::time::Duration;

use tidemill::{JobContext, JobError, NewJob, Order, Priority, Weights};

use crate::support::{Mill, Numbered, Seen, completion, numbered};

/// Enqueues `each` jobs per priority.
async fn backlog(mill: &Mill, each: u64) {
    let jobs = (0..each)
        .flat_map(|n| Priority::ALL.map(|priority| NewJob::new(&numbered(n)).priority(priority)));
    for stored in mill.client.enqueue_many(jobs).await {
        stored.expect("stored");
    }
}

/// Runs until `count` jobs have started, and tells their priorities and numbers in that order.
async fn starts(mill: &Mill, order: Order, count: usize) -> Vec<(Priority, u64)> {
    let seen = Seen::default();
    let note = seen.clone();
    let handler = move |job: Numbered, context: JobContext| {
        note.push((context.priority(), job.n));
        async {
            tokio::time::sleep(Duration::from_millis(2)).await;
            Ok::<_, JobError>(())
        }
    };
    let worker = mill.worker().concurrency(4).order(order).handle(handler);
    let running = worker.build().expect("valid").start().await.expect("starts");
    let starts = seen.wait_for(count).await;
    running.drain().await;
    starts
}

#[tokio::test]
async fn with_all_lanes_full_the_shares_are_the_weights_and_the_bound_holds() {
    let mill = Mill::start().await;
    backlog(&mill, 2000).await;
    let starts = starts(&mill, Order::Weighted, 3300).await;
    // Once the lanes have filled; until then a lane may wait for the network.
    let steady: Vec<Priority> = starts[300..3300].iter().map(|(priority, _)| *priority).collect();
    let weights = Weights::default();
    for priority in Priority::ALL {
        let count = steady.iter().filter(|p| **p == priority).count();
        let share = count as f64 / steady.len() as f64;
        let wanted = f64::from(weights.of(priority)) / 15.0;
        assert!((share / wanted - 1.0).abs() < 0.02, "{priority}: {share:.4}, not {wanted:.4}");
        let places: Vec<usize> =
            (0..steady.len()).filter(|place| steady[*place] == priority).collect();
        let gap = places.windows(2).map(|pair| pair[1] - pair[0]).max().expect("many");
        // Attempts start side by side, so that neighbours may be seen in the other order.
        let bound = weights.bound(priority) + 3;
        assert!(gap <= bound, "{priority} waited {gap} starts, and the bound is {bound}");
    }
}

#[tokio::test]
async fn strictly_a_lower_lane_waits_until_the_higher_are_empty() {
    let mill = Mill::start().await;
    backlog(&mill, 150).await;
    let starts = starts(&mill, Order::Strict, 600).await;
    let late_critical =
        starts.iter().rposition(|(priority, _)| *priority == Priority::Critical).expect("some");
    let early_low =
        starts.iter().position(|(priority, _)| *priority == Priority::Low).expect("some");
    let low_before = starts[..late_critical].iter().filter(|(p, _)| *p == Priority::Low).count();
    // The first pulls go out together, before anybody knows that there are critical jobs.
    assert!(low_before <= 8, "{low_before} low jobs before the last critical one ({early_low})");
}

#[tokio::test]
async fn an_idle_system_runs_a_low_job_at_once() {
    let mill = Mill::start().await;
    let handler = |_: Numbered, _: JobContext| async { Ok::<_, JobError>(()) };
    let running = mill.worker().handle(handler).build().expect("ok").start().await.expect("ok");
    for n in 0..20 {
        let job = mill.client.enqueue(numbered(n)).priority(Priority::Low).await.expect("stored");
        let done = completion(&job).await;
        let latency = done.started_at.expect("started") - done.enqueued_at;
        assert!(latency.num_milliseconds() < 200, "job {n} started after {latency}");
    }
    running.drain().await;
}

#[tokio::test]
async fn within_a_lane_first_deliveries_start_in_the_order_of_their_arrival() {
    let mill = Mill::start().await;
    let jobs = (0..500).map(|n| NewJob::new(&numbered(n)));
    for stored in mill.client.enqueue_many(jobs).await {
        stored.expect("stored");
    }
    let seen = Seen::default();
    let note = seen.clone();
    let handler = move |job: Numbered, _: JobContext| {
        note.push(job.n);
        async { Ok::<_, JobError>(()) }
    };
    // One at a time, so that starting and being seen are one.
    let worker = mill.worker().concurrency(1).handle(handler).build().expect("valid");
    let running = worker.start().await.expect("starts");
    assert_eq!(seen.wait_for(500).await, (0..500).collect::<Vec<_>>());
    running.drain().await;
}

#[tokio::test]
async fn queues_share_a_worker_by_their_weights() {
    let mill = Mill::start().await;
    for queue in ["heavy", "light"] {
        let jobs = (0..600).map(|n| NewJob::new(&numbered(n)).queue(queue));
        for stored in mill.client.enqueue_many(jobs).await {
            stored.expect("stored");
        }
    }
    let seen = Seen::default();
    let note = seen.clone();
    let handler = move |_: Numbered, context: JobContext| {
        note.push(context.queue().to_string());
        async {
            tokio::time::sleep(Duration::from_millis(2)).await;
            Ok::<_, JobError>(())
        }
    };
    let worker = mill
        .worker()
        .weighted_queue("heavy", 3)
        .weighted_queue("light", 1)
        .concurrency(4)
        .handle(handler);
    let running = worker.build().expect("valid").start().await.expect("starts");
    let starts = seen.wait_for(600).await;
    let heavy = starts[200..600].iter().filter(|queue| *queue == "heavy").count();
    assert!((290..=310).contains(&heavy), "{heavy} of 400");
    running.drain().await;
}
