//! The runtime's own jobs, taken over from its file and worked.

use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use tidemill::agent::{
    JetStreamRunStore, JobConditions, JobPool, JobPriority, JobType, MemoryRunStore, PoolFile,
    Publishers, RunId, RunStore, persisting, publishing,
};
use tidemill::{
    Client, DeadFilter, JobFilter, JobId, JobInfo, NewJob, Queue, SealKey, SealKeys, SigningKey,
    Status, TrustedKeys, Worker,
};
use tokio::time::timeout;

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

struct Keys {
    client: Client,
    trusted: TrustedKeys,
}

fn keys(client: &Client) -> Keys {
    let seal = SealKeys::new(SealKey::new("k1", [7; 32]).expect("a key"));
    let signing = SigningKey::generate();
    let trusted = TrustedKeys::new([signing.public_key()]).expect("a key");
    Keys { client: client.clone().with_seal_keys(seal).with_signing_key(signing), trusted }
}

async fn waiting(client: &Client) -> Vec<JobInfo> {
    client.jobs(JobFilter::default()).try_collect().await.expect("a list")
}

fn is_sealed_and_signed(job: &JobInfo) -> bool {
    let is_sealed = job.sealed_with().as_deref() == Some("k1");
    is_sealed && job.headers.get("Tidemill-Signature").is_some()
}

/// What a pool schedules is sealed and signed by its client's keys; its worker takes nothing else, and
/// who has subscribed is told of the job as it was.
#[tokio::test]
async fn with_keys_the_pools_jobs_are_sealed_and_signed_and_no_others_run() {
    let broker = broker().await;
    let plain = connect(&broker).await;
    let Keys { client, trusted } = keys(&plain);
    let store = Arc::new(MemoryRunStore::new());
    let pool = JobPool::builder(&client, store).require_signature(trusted).open().await;
    let pool = pool.expect("opens");
    let mut completed = pool.subscribe_completed();
    let secret = JobType::TestJob { message: "hush".into() };
    let id = pool.schedule(JobPriority::Normal, secret.clone(), JobConditions::default()).await;
    let job = waiting(&plain).await.pop().expect("it waits");
    assert!(is_sealed_and_signed(&job), "{job:?}");
    assert!(!String::from_utf8_lossy(&job.payload).contains("hush"));
    // The same payload from one who has no keys.
    let opened = job.open(&client).expect("opens");
    let forged = plain.enqueue(NewJob::raw(job.kind.as_str(), opened)).await.expect("stored");
    pool.start();
    let next = timeout(Duration::from_secs(30), completed.recv()).await;
    assert_eq!(next.expect("in time").expect("none is missed"), (id, Ok(secret)));
    let queue = Queue::default();
    client.wait_empty(&queue).await.expect("empties");
    let letters = plain.dead_letters(DeadFilter::queue(queue));
    let letters: Vec<_> = letters.try_collect().await.expect("a list");
    assert_eq!((letters.len(), letters[0].info.reason.as_str()), (1, "unsigned"));
    let claimed = letters[0].info.unvouched.as_ref().expect("it claimed something");
    assert_eq!(&claimed.id, forged.id());
    pool.shutdown().await;
}

/// What a pool takes over from its file is sealed and signed too.
#[tokio::test]
async fn with_keys_what_is_taken_over_is_sealed_and_signed() {
    let broker = broker().await;
    let plain = connect(&broker).await;
    let Keys { client, trusted } = keys(&plain);
    let queue = Queue::default();
    let done = PoolFile::parse(PENDING, &queue).expect("reads").import(&client).await;
    let added = done.expect("imported").added;
    let jobs = waiting(&plain).await;
    assert_eq!(jobs.len(), added.len());
    assert!(jobs.iter().all(is_sealed_and_signed), "{jobs:?}");
    let store = Arc::new(MemoryRunStore::new());
    let pool = JobPool::builder(&client, store).require_signature(trusted).open().await;
    let pool = pool.expect("opens");
    pool.start();
    client.wait_empty(&queue).await.expect("empties");
    for id in &added {
        let ends = client.completions_of(&queue, None, id).await.expect("looks");
        assert_eq!((ends.len(), ends[0].status), (1, Status::Done), "{id}");
    }
    pool.shutdown().await;
}
