//! Kinds that leave nothing of jobs that are done.

use tidemill::{Handler, JobContext, JobError, Queue, Status};

use crate::support::{Mill, Numbered, Seen, completion, lane_counts, numbered, stream_messages};

#[tokio::test]
async fn what_is_done_leaves_nothing_and_every_other_end_is_recorded() {
    let mill = Mill::start().await;
    let seen = Seen::default();
    let note = seen.clone();
    let handler = Handler::new(move |job: Numbered, context: JobContext| {
        note.push((job.n, context.attempt()));
        let attempt = context.attempt();
        async move {
            match (job.n, attempt) {
                (2, _) => Err(JobError::discard("never")),
                (3, 1) => Err(JobError::failed("once").retry_after(std::time::Duration::ZERO)),
                _ => Ok(job.n),
            }
        }
    });
    let worker = mill.worker().handler(handler.without_completions()).build().expect("valid");
    let running = worker.start().await.expect("starts");
    let jobs = mill.client.enqueue_many((1..=200).map(numbered)).await;
    let jobs: Vec<_> = jobs.into_iter().map(|job| job.expect("stored")).collect();
    assert_eq!(completion(&jobs[1]).await.status, Status::Dead);
    mill.client.wait_empty(&Queue::default()).await.expect("the queue is there");
    running.drain().await;
    let nats = mill.nats().await;
    assert_eq!(lane_counts(&nats, "default", "normal").await, (0, 0));
    assert_eq!(stream_messages(&nats, "TIDEMILL_RESULTS_default").await, 1, "that of the dead one");
    let mut all = seen.all();
    all.sort_unstable();
    let mut expected: Vec<(u64, u32)> = (1..=200).map(|n| (n, 1)).chain([(3, 2)]).collect();
    expected.sort_unstable();
    assert_eq!(all, expected, "each once, but the one that failed");
}
