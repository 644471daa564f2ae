//! Several workers: they share a queue, and everybody can see who is there.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tidemill::{JobContext, JobError, NewJob, Status};

use crate::support::{Mill, Numbered, Seen, completion, eventually, numbered};

#[tokio::test]
async fn several_workers_share_one_queue() {
    let mill = Mill::start().await;
    let seen = Seen::default();
    let mut workers = Vec::new();
    for name in ["a", "b", "c"] {
        let note = seen.clone();
        let handler = move |job: Numbered, _: JobContext| {
            note.push((name, job.n));
            async {
                tokio::time::sleep(Duration::from_millis(10)).await;
                Ok::<_, JobError>(())
            }
        };
        let worker = mill.worker().name(name).concurrency(4).handle(handler);
        workers.push(worker.build().expect("valid").start().await.expect("starts"));
    }
    let jobs = (0..600).map(|n| NewJob::new(&numbered(n)));
    for stored in mill.client.enqueue_many(jobs).await {
        stored.expect("stored");
    }
    let starts = seen.wait_for(600).await;
    let numbers: HashSet<u64> = starts.iter().map(|(_, n)| *n).collect();
    assert_eq!((starts.len(), numbers.len()), (600, 600), "each once");
    for name in ["a", "b", "c"] {
        let share = starts.iter().filter(|(worker, _)| *worker == name).count();
        assert!(share > 60, "{name} did {share} of 600");
    }
    for worker in workers {
        worker.drain().await;
    }
}

#[tokio::test]
async fn a_worker_is_a_nats_service_with_its_queues_and_kinds() {
    let mill = Mill::start().await;
    let handler = |_: Numbered, _: JobContext| async { Ok::<_, JobError>(()) };
    let worker = mill.worker().name("w1").queue("default").queue("other").handle(handler);
    let running = worker.build().expect("valid").start().await.expect("starts");
    let nats = mill.nats().await;
    let answer =
        nats.request("$SRV.INFO.tidemill-worker", "".into()).await.expect("it is registered");
    let info: serde_json::Value = serde_json::from_slice(&answer.payload).expect("JSON");
    let metadata = &info["metadata"];
    assert_eq!((&info["name"], &metadata["worker"]), (&"tidemill-worker".into(), &"w1".into()));
    assert_eq!(metadata["queues"], "default,other");
    assert_eq!(metadata["kinds"], "numbered");
    running.drain().await;
    eventually("it has left", || async {
        nats.request("$SRV.INFO.tidemill-worker", "".into()).await.is_err().then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_slow_worker_does_not_hoard_what_another_could_run() {
    let mill = Mill::start().await;
    let slow_seen = Seen::default();
    let note = slow_seen.clone();
    let slow = move |job: Numbered, _: JobContext| {
        note.push(job.n);
        async {
            tokio::time::sleep(Duration::from_secs(20)).await;
            Ok::<_, JobError>(())
        }
    };
    let quick_seen = Seen::default();
    let note = quick_seen.clone();
    let quick = move |job: Numbered, _: JobContext| {
        note.push(job.n);
        async { Ok::<_, JobError>(()) }
    };
    let slow = mill.worker().concurrency(1).grace(Duration::ZERO).handle(slow);
    let slow = slow.build().expect("valid").start().await.expect("starts");
    mill.client.enqueue(numbered(0)).await.expect("stored");
    slow_seen.wait_for(1).await;
    for n in 1..=20 {
        mill.client.enqueue(numbered(n)).await.expect("stored");
    }
    let quick = mill.worker().handle(quick).build().expect("ok").start().await.expect("ok");
    let start = std::time::Instant::now();
    quick_seen.wait_for(20).await;
    // What lies in the slow one's buffer comes back after two seconds.
    assert!(start.elapsed() < Duration::from_secs(10), "after {:?}", start.elapsed());
    slow.drain().await;
    quick.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn handlers_that_keep_their_threads_run_beside_each_other() {
    let mill = Mill::start().await;
    let (at_once, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (now, peak) = (at_once.clone(), most.clone());
    let handler = move |_: Numbered, _: JobContext| {
        let (now, peak) = (now.clone(), peak.clone());
        async move {
            peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(100));
            now.fetch_sub(1, Ordering::SeqCst);
            Ok::<_, JobError>(())
        }
    };
    let stored = mill.client.enqueue_many((0..24).map(numbered)).await;
    let worker = mill.worker().concurrency(8).handle(handler).build().expect("valid");
    let running = worker.start().await.expect("starts");
    for job in stored {
        assert_eq!(completion(&job.expect("stored")).await.status, Status::Done);
    }
    assert!(most.load(Ordering::SeqCst) >= 3, "{most:?} of four threads");
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_job_that_keeps_its_thread_among_brief_ones_does_not_keep_them_waiting() {
    let mill = Mill::start().await;
    let handler = |job: Numbered, _: JobContext| async move {
        if job.n == BLOCKS {
            std::thread::sleep(Duration::from_secs(4));
        }
        Ok::<_, JobError>(())
    };
    let worker = mill.worker().concurrency(8).handle(handler).build().expect("valid");
    let running = worker.start().await.expect("starts");
    // Whoever works jobs of this kind has come to expect that they are over at once.
    for job in mill.client.enqueue_many((1..2000).map(numbered)).await {
        assert_eq!(completion(&job.expect("stored")).await.status, Status::Done);
    }
    let jobs = std::iter::once(BLOCKS).chain(3000..3050).map(numbered);
    let mut stored =
        mill.client.enqueue_many(jobs).await.into_iter().map(|job| job.expect("stored"));
    let (blocks, started) = (stored.next().expect("the first"), Instant::now());
    for job in stored {
        assert_eq!(completion(&job).await.status, Status::Done);
    }
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    assert_eq!(completion(&blocks).await.status, Status::Done);
    running.drain().await;
}

/// The number of the job that keeps its thread.
const BLOCKS: u64 = 0;
