//! The pool with the verbs of the in-memory one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use chrono::Utc;
use tidemill::agent::{
    AgentEvent, BackgroundJob, EventPublisher, Execution, JobConditions, JobPool, JobPriority,
    JobType, MemoryRunStore, PublishError, RunId, RunStore,
};
use tidemill::embedded::Broker;
use tidemill::{Client, ConnectOptions, JobId, Queue, RecordFilter, Since, Status};
use tokio::sync::broadcast::Receiver;
use tokio::time::timeout;
use uuid::Uuid;

use crate::support::{broker, connect, eventually, said};

const PENDING: &str = include_str!("../fixtures/pending_jobs.json");

/// A pool of a process of its own, as far as the broker can tell.
async fn pool(client: &Client) -> Arc<JobPool> {
    let pool = JobPool::builder(client, Arc::new(MemoryRunStore::new()));
    pool.open().await.expect("opens")
}

fn test_job(message: &str) -> JobType {
    JobType::TestJob { message: message.to_owned() }
}

async fn schedule(pool: &JobPool, job: JobType) -> Uuid {
    pool.schedule(JobPriority::Normal, job, JobConditions::default()).await
}

async fn next(completed: &mut Receiver<Execution>) -> Execution {
    let next = timeout(Duration::from_secs(30), completed.recv()).await;
    next.expect("an execution").expect("none is missed")
}

#[tokio::test]
async fn what_is_scheduled_is_executed_and_told() {
    let broker = broker().await;
    let pool = pool(&connect(&broker).await).await;
    let mut completed = pool.subscribe_completed();
    assert!(pool.is_empty().await);
    let id = schedule(&pool, test_job("hello")).await;
    assert_eq!(pool.len().await, 1);
    pool.start();
    assert_eq!(next(&mut completed).await, (id, Ok(test_job("hello"))));
    let is_empty = || async { pool.is_empty().await.then_some(()) };
    eventually("an empty pool", is_empty).await;
    pool.shutdown().await;
    drop(pool);
    assert!(completed.recv().await.is_err(), "it ends with the pool");
}

#[tokio::test]
#[should_panic(expected = "started already")]
async fn it_starts_once() {
    let broker = broker().await;
    let pool = pool(&connect(&broker).await).await;
    pool.start();
    pool.start();
}

/// Refuses as often as it is told.
struct Refusing(AtomicU32);

#[async_trait::async_trait]
impl EventPublisher for Refusing {
    async fn publish(&self, _: &JobId, _: &AgentEvent) -> Result<(), PublishError> {
        let left = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        left.map_or(Ok(()), |_| Err("nobody takes it".into()))
    }
}

#[tokio::test]
async fn failed_attempts_are_told_on_every_machine_and_retried_after_two_seconds_more_each() {
    let broker = broker().await;
    let client = connect(&broker).await;
    let (working, looking) = (pool(&client).await, pool(&connect(&broker).await).await);
    working.set_event_publisher(Arc::new(Refusing(2.into())));
    working.start();
    let mut completed = [working.subscribe_completed(), looking.subscribe_completed()];
    let job = JobType::PublishExternalEvent { event: said(RunId::new(), "at last") };
    let since = Utc::now();
    let id = schedule(&looking, job.clone()).await;
    for completed in &mut completed {
        for _ in 0..2 {
            let (failed, result) = next(completed).await;
            assert_eq!((failed, result), (id, Err("nobody takes it".to_owned())));
        }
        assert_eq!(next(completed).await, (id, Ok(job.clone())));
    }
    // Two seconds after the first attempt, four after the second.
    assert!(Utc::now() - since >= chrono::Duration::seconds(6));
    // Used up, it is told four times, and kept as a dead letter.
    working.set_event_publisher(Arc::new(Refusing(u32::MAX.into())));
    let doomed = BackgroundJob {
        id: "d7a0f29b-636e-499b-a6eb-05072292ad09".parse().expect("a UUID"),
        priority: JobPriority::Critical,
        retries: 2,
        max_retries: 3,
        job_type: job,
        conditions: JobConditions::default(),
        created_at: Utc::now(),
    };
    let id = doomed.id;
    looking.enqueue(doomed.clone()).await;
    looking.enqueue(doomed).await;
    for completed in &mut completed {
        for _ in 0..2 {
            assert_eq!(next(completed).await, (id, Err("nobody takes it".to_owned())));
        }
    }
    let id = JobId::new(id.to_string()).expect("valid");
    let end = || async {
        client.completions_of(&Queue::default(), None, &id).await.expect("looks").pop()
    };
    let end = eventually("its end", end).await;
    assert_eq!((end.status, end.attempt), (Status::Dead, 4));
    assert!(completed.iter_mut().all(|completed| completed.try_recv().is_err()), "told once each");
    working.shutdown().await;
}

#[tokio::test]
async fn what_a_pool_leaves_another_works_when_it_is_due() {
    let broker = broker().await;
    let client = connect(&broker).await;
    let store = Arc::new(MemoryRunStore::new());
    let first = JobPool::builder(&client, store.clone()).open().await.expect("opens");
    first.start();
    first.shutdown().await;
    let run_after = Utc::now() + chrono::Duration::seconds(1);
    let conditions = JobConditions { run_after: Some(run_after) };
    let run = RunId::new();
    let job = JobType::PersistEvent { run_id: run, event: said(run, "left") };
    let id = first.schedule(JobPriority::High, job.clone(), conditions).await;
    drop(first);
    let second = JobPool::builder(&client, store.clone()).open().await.expect("opens");
    let mut completed = second.subscribe_completed();
    assert_eq!(second.len().await, 1);
    second.start();
    assert_eq!(next(&mut completed).await, (id, Ok(job)));
    assert!(Utc::now() >= run_after);
    let log = store.events(run).await.expect("reads");
    assert_eq!(log.len(), 1);
    assert_eq!((log[0].sequence, log[0].job.as_str()), (0, id.to_string().as_str()));
    second.shutdown().await;
}

#[tokio::test]
async fn while_the_broker_is_away_it_waits() {
    let broker = broker().await;
    let pool = pool(&connect(&broker).await).await;
    let mut completed = pool.subscribe_completed();
    broker.kill().await.expect("killed");
    pool.start();
    let scheduling = {
        let pool = pool.clone();
        tokio::spawn(async move { schedule(&pool, test_job("hello")).await })
    };
    broker.restart().await.expect("restarted");
    let id = scheduling.await.expect("scheduled");
    assert_eq!(next(&mut completed).await, (id, Ok(test_job("hello"))));
    pool.shutdown().await;
}

#[tokio::test]
async fn a_job_that_no_broker_takes_is_told_as_failed() {
    let broker = broker().await;
    let pool = pool(&connect(&broker).await).await;
    let mut completed = pool.subscribe_completed();
    let huge = test_job(&"x".repeat(1024 * 1024));
    let id = schedule(&pool, huge).await;
    let (failed, result) = next(&mut completed).await;
    assert_eq!(failed, id);
    assert!(result.expect_err("too large").contains("this server takes"));
    assert!(pool.is_empty().await);
}

#[tokio::test]
async fn the_file_of_an_in_memory_pool_is_taken_over_once() {
    let broker = broker().await;
    let client = connect(&broker).await;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("pending_jobs.json");
    let store = Arc::new(MemoryRunStore::new());
    let pool = JobPool::builder(&client, store).persistence_path(&path).open().await;
    let pool = pool.expect("opens");
    assert_eq!(pool.load_persisted_jobs().await.expect("no file").added.len(), 0);
    let broken = PENDING.replacen("\"Normal\"", "\"Urgent\"", 1);
    for (text, added, there) in [(broken.as_str(), 13, 0), (PENDING, 1, 13)] {
        std::fs::write(&path, text).expect("writes");
        let done = pool.load_persisted_jobs().await.expect("taken over");
        assert_eq!((done.added.len(), done.there.len()), (added, there));
        assert_eq!(path.exists(), !done.broken.is_empty());
    }
    assert_eq!(pool.len().await, 14);
    pool.start();
    eventually("an empty pool", || async { pool.is_empty().await.then_some(()) }).await;
    // Each of them has one end.
    let all = RecordFilter::queue(Queue::default()).since(Since::Start);
    let ends = client.completions(all).await.expect("follows");
    let ends: Vec<_> =
        futures_util::StreamExt::collect(futures_util::StreamExt::take(ends, 14)).await;
    assert!(ends.iter().all(|end| end.as_ref().is_ok_and(|end| end.status == Status::Done)));
    pool.shutdown().await;
}

/// A broker where `guest` may do all but publish to these subjects.
fn denying(subjects: &str) -> String {
    format!(
        r#"accounts {{ JOBS {{ jetstream: enabled, users: [
            {{ user: admin, password: admin }}
            {{ user: guest, password: guest, permissions {{
                publish: {{ allow: ">", deny: ["{subjects}"] }}, subscribe: ">"
            }} }}
        ] }} }}"#
    )
}

async fn broker_denying(subjects: &str) -> Broker {
    let as_admin = |options: ConnectOptions| options.user_password("admin", "admin");
    let builder = Broker::builder().config(denying(subjects)).connect_with(as_admin);
    builder.start().await.expect("a broker")
}

async fn pool_of(user: &str, broker: &Broker) -> Arc<JobPool> {
    let options = ConnectOptions::new(broker.url()).expect("a URL").user_password(user, user);
    pool(&Client::connect(options).await.expect("connects")).await
}

#[tokio::test]
async fn a_job_that_may_not_be_enqueued_is_told_as_failed() {
    let broker = broker_denying("tidemill.jobs.default.low.>").await;
    let pool = pool_of("guest", &broker).await;
    let mut completed = pool.subscribe_completed();
    let job = test_job("hello");
    let id = pool.schedule(JobPriority::Low, job.clone(), JobConditions::default()).await;
    let (failed, result) = next(&mut completed).await;
    assert_eq!(failed, id);
    assert!(result.expect_err("refused").contains("no permission to publish"));
    schedule(&pool, job).await;
    assert_eq!(pool.len().await, 1);
}

#[tokio::test]
async fn what_is_executed_while_it_cannot_be_read_is_told_later() {
    let broker = broker_denying("nothing").await;
    let (working, looking) = (pool_of("admin", &broker).await, pool_of("guest", &broker).await);
    let mut executed = working.subscribe_completed();
    let mut told = looking.subscribe_completed();
    working.start();
    let first = schedule(&looking, test_job("first")).await;
    assert_eq!(next(&mut told).await.0, first);
    assert_eq!(next(&mut executed).await.0, first);
    broker.reload(denying("$JS.API.DIRECT.GET.>")).await.expect("in force");
    let second = schedule(&working, test_job("second")).await;
    assert_eq!(next(&mut executed).await.0, second);
    broker.reload(denying("nothing")).await.expect("in force");
    assert_eq!(next(&mut told).await.0, second);
    working.shutdown().await;
}
