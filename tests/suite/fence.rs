//! One completion for a run, however many workers ran it, and whatever others publish.

use std::sync::Arc;
use std::time::Duration;

use tidemill::{JobContext, JobError, JobHandle, Status};
use tokio::sync::Barrier;

use crate::support::{Mill, Numbered, Seen, completion, eventually, numbered, stream_messages};

#[tokio::test]
async fn of_two_workers_that_both_run_a_job_one_completion_stands() {
    let mill = Mill::with_ack_wait(Duration::from_secs(2)).await;
    let seen: Seen<String> = Seen::default();
    let note = seen.clone();
    // Its worker's broker connection is frozen while it works: the lease runs out, another worker
    // gets the job, and both come to an end.
    let handler = move |_: Numbered, context: JobContext| {
        let note = note.clone();
        async move {
            note.push(context.id().to_string());
            tokio::time::sleep(Duration::from_millis(300)).await;
            Ok::<_, JobError>(())
        }
    };
    let first = mill.worker().name("first").handle(handler.clone()).build().expect("ok");
    let first = first.start().await.expect("starts");
    let jobs: Vec<u64> = (0..20).collect();
    let mut handles = Vec::new();
    for n in jobs {
        handles.push(mill.client.enqueue(numbered(n)).await.expect("stored"));
    }
    // The consumer is told to hand everything out again, as after a lost lease.
    let nats = mill.nats().await;
    seen.wait_for(4).await;
    let second = mill.worker().name("second").handle(handler).build().expect("ok");
    let second = second.start().await.expect("starts");
    let reset = "$JS.API.CONSUMER.RESET.TIDEMILL_JOBS_default.normal";
    nats.request(reset, "".into()).await.expect("an answer");
    for handle in &handles {
        assert_eq!(completion(handle).await.status, Status::Done);
    }
    eventually("the queue is empty", || async {
        (stream_messages(&nats, "TIDEMILL_JOBS_default").await == 0).then_some(())
    })
    .await;
    assert_eq!(stream_messages(&nats, "TIDEMILL_RESULTS_default").await, 20);
    first.drain().await;
    second.drain().await;
}

#[tokio::test]
async fn a_forged_record_never_counts() {
    let mill = Mill::start().await;
    let nats = mill.nats().await;
    let job = mill.client.enqueue(numbered(1)).id("order-17").await.expect("stored");
    let subject = format!("tidemill.results.default.numbered.order-17.{}", job.run());
    // A publish elsewhere with this reply subject makes the broker write its PubAck there.
    nats.publish_with_reply("tidemill.jobs.default.low.numbered", subject, r#"{"n":2}"#.into())
        .await
        .expect("sent");
    eventually("the forged record", || async {
        (stream_messages(&nats, "TIDEMILL_RESULTS_default").await == 1).then_some(())
    })
    .await;
    let early = job.completion_within(Duration::from_millis(700)).await;
    assert!(early.expect_err("nobody has worked it").is_timeout());
    let handler = |job: Numbered, _: JobContext| async move { Ok::<_, JobError>(job.n) };
    let running = mill.worker().handle(handler).build().expect("ok").start().await.expect("ok");
    let done = completion(&job).await;
    assert_eq!(done.result::<u64>().expect("a number"), Some(1));
    running.drain().await;
}

/// Runs that many jobs to their end at one moment, so that their completions are stored together.
async fn all_end_at_once(mill: &Mill, jobs: &[JobHandle]) {
    let barrier = Arc::new(Barrier::new(jobs.len()));
    let handler = move |job: Numbered, _: JobContext| {
        let barrier = barrier.clone();
        async move {
            barrier.wait().await;
            Ok::<_, JobError>(job.n)
        }
    };
    let worker = mill.worker().concurrency(jobs.len()).handle(handler).build().expect("ok");
    let running = worker.start().await.expect("starts");
    for job in jobs {
        assert_eq!(completion(job).await.status, Status::Done);
    }
    let nats = mill.nats().await;
    eventually("the queue is empty", || async {
        (stream_messages(&nats, "TIDEMILL_JOBS_default").await == 0).then_some(())
    })
    .await;
    let results = stream_messages(&nats, "TIDEMILL_RESULTS_default").await;
    assert_eq!(results, jobs.len() as u64, "one for each");
    running.drain().await;
}

async fn sixty(mill: &Mill) -> Vec<JobHandle> {
    let mut jobs = Vec::new();
    for n in 0..60 {
        jobs.push(mill.client.enqueue(numbered(n)).await.expect("stored"));
    }
    jobs
}

#[tokio::test]
async fn completions_that_are_stored_together_are_each_behind_their_fence() {
    let mill = Mill::start().await;
    let jobs = sixty(&mill).await;
    // Others have completed some of them before, at the beginning, in the middle and at the end.
    let nats = mill.nats().await;
    for job in [&jobs[0], &jobs[29], &jobs[30], &jobs[59]] {
        let id = job.id();
        let now = "2026-12-01T08:00:00.000Z";
        let record = serde_json::json!({
            "v": 1, "id": id, "run": job.run(), "seq": job.sequence(), "queue": "default",
            "kind": "numbered", "priority": "normal", "status": "done", "attempt": 1,
            "enqueued_at": now, "finished_at": now, "worker": "another", "result": 1000,
        });
        let subject = format!("tidemill.results.default.numbered.{id}._");
        nats.request(subject, record.to_string().into()).await.expect("stored");
    }
    all_end_at_once(&mill, &jobs).await;
    for (n, job) in jobs.iter().enumerate() {
        let expected = if [0, 29, 30, 59].contains(&n) { 1000 } else { n as u64 };
        let result = completion(job).await.result::<u64>().expect("a number");
        assert_eq!(result, Some(expected), "job {n}: the first one stands");
    }
}

#[tokio::test]
async fn a_stream_that_takes_no_batches_gets_completions_one_by_one() {
    let mill = Mill::start().await;
    let jobs = sixty(&mill).await;
    let nats = mill.nats().await;
    let ask = async |verb: &str, body: String| -> serde_json::Value {
        let subject = format!("$JS.API.STREAM.{verb}.TIDEMILL_RESULTS_default");
        let answer = nats.request(subject, body.into()).await.expect("an answer");
        serde_json::from_slice(&answer.payload).expect("JSON")
    };
    let mut config = ask("INFO", String::new()).await["config"].take();
    assert_eq!(config["allow_batched"], true);
    config["allow_batched"] = false.into();
    let updated = ask("UPDATE", config.to_string()).await;
    assert!(updated["error"].is_null(), "{updated}");
    all_end_at_once(&mill, &jobs).await;
}
