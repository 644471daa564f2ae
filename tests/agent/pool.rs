//! The runtime's own jobs, taken over from its file and worked.

use std::sync::Arc;

use tidemill::agent::{
    JetStreamRunStore, PoolFile, Publishers, RunId, RunStore, persisting, publishing,
};
use tidemill::{JobId, Queue, Status, Worker};

use crate::support::{broker, connect};

const PENDING: &str = include_str!("../fixtures/pending_jobs.json");
const RUN: &str = "013532ce-c8c2-4d5c-9ea5-f42f9d6ad08c";
/// A job that had been tried twice, of at most four attempts.
const TRIED: &str = "7fbde550-41be-4691-af06-47ddde336907";

#[tokio::test]
async fn what_was_pending_is_worked_with_its_attempts_and_times() {
    let broker = broker().await;
    let client = connect(&broker).await;
    let queue = Queue::default();
    let done = PoolFile::parse(PENDING, &queue).expect("reads").import(&client).await;
    let done = done.expect("imported");
    assert_eq!((done.added.len(), done.there.len(), done.broken.len()), (14, 0, 0));
    let store = Arc::new(JetStreamRunStore::open(&client).await.expect("a store"));
    let worker = persisting(Worker::builder(&client), store.clone());
    let worker = publishing(worker, Publishers::new());
    let running = worker.build().expect("valid").start().await.expect("starts");
    client.wait_empty(&queue).await.expect("empties");
    for id in &done.added {
        let ends = client.completions_of(&queue, None, id).await.expect("looks");
        assert_eq!(ends.len(), 1, "{id}");
        assert_eq!(ends[0].status, Status::Done, "{id}");
    }
    let tried = JobId::new(TRIED).expect("valid");
    let end = &client.completions_of(&queue, None, &tried).await.expect("looks")[0];
    assert_eq!(end.attempt, 3, "two attempts were used before");
    assert_eq!(end.enqueued_at.to_rfc3339(), "2026-11-23T07:00:05.419+00:00");
    let run: RunId = RUN.parse().expect("a run");
    let log = store.events(run).await.expect("reads");
    let mut names: Vec<&str> = log.iter().map(|event| event.event.name()).collect();
    names.sort_unstable();
    assert_eq!(names, ["RunFailed", "RunStarted", "TextDelta", "ToolCallCompleted"]);
    // Now that all are done, importing the file again adds nothing.
    let again = PoolFile::parse(PENDING, &queue).expect("reads").import(&client).await;
    let again = again.expect("imported");
    assert_eq!((again.added.len(), again.there.len()), (0, 14));
    running.drain().await;
}
