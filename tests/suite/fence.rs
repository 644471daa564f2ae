//! One completion for a run, however many workers ran it, and whatever others publish.

use std::time::Duration;

use tidemill::{JobContext, JobError, Status};

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
