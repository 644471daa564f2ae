//! What every run store must do: one suite for all of them.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use sqlx::postgres::{PgPool, PgPoolOptions};
use tidemill::agent::{
    AgentEvent, JetStreamRunStore, JobType, MemoryRunStore, PersistEvent, PostgresRunStore,
    RunFilter, RunId, RunRecord, RunStatus, RunStore, StoreError, TestJob, persisting,
};
use tidemill::{JobId, Status, Worker};
use uuid::Uuid;

use crate::servers::Server;
use crate::support::{broker, connect, eventually, said};

/// How long a connection may be waited for.
const PATIENCE: Duration = Duration::from_secs(5);

type Store = Arc<dyn RunStore>;

fn job(n: usize) -> JobId {
    JobId::new(format!("job-{n}")).expect("valid")
}

async fn conformance(store: Store) {
    store.health().await.expect("healthy");
    runs_are_created_found_and_updated(&store).await;
    logs_are_numbered_without_gaps(&store).await;
    long_logs_are_read_whole(&store).await;
    appends_at_once_are_each_there_once(&store).await;
    unknown_things_survive(&store).await;
    runs_are_listed_with_filters(&store).await;
    deleting_takes_the_log_along(&store).await;
    deleting_beside_appends_leaves_no_gap(&store).await;
}

pub(crate) fn record() -> RunRecord {
    RunRecord::new(RunId::new(), Uuid::now_v7(), "openai", "gpt-x")
}

async fn runs_are_created_found_and_updated(store: &Store) {
    let mut run = record();
    run.metadata = json!({"of": "me"});
    run.client_request_id = Some("request-7".to_owned());
    assert!(store.get(run.id).await.expect("looks").is_none());
    store.create(run.clone()).await.expect("stored");
    store.create(run.clone()).await.expect("the very same");
    let there = store.get(run.id).await.expect("looks").expect("there");
    assert_eq!(there.metadata, run.metadata);
    assert_eq!((there.id, there.status.clone()), (run.id, RunStatus::Pending));
    let other = RunRecord { model: "gpt-y".to_owned(), ..run.clone() };
    assert!(matches!(store.create(other).await, Err(StoreError::Exists(id)) if id == run.id));
    store.update_status(run.id, RunStatus::CallingModel).await.expect("updated");
    let there = store.get(run.id).await.expect("looks").expect("there");
    assert_eq!(there.status, RunStatus::CallingModel);
    assert!(there.updated_at >= run.updated_at);
    let nobody = store.update_status(RunId::new(), RunStatus::Failed).await;
    assert!(matches!(nobody, Err(StoreError::NotFound(_))));
}

async fn logs_are_numbered_without_gaps(store: &Store) {
    let (run, beside) = (RunId::new(), RunId::new());
    assert!(store.events(run).await.expect("looks").is_empty());
    for n in 0..5 {
        let number = store.append(run, &job(n), said(run, &n.to_string())).await.expect("appended");
        assert_eq!(number, n as u64);
        store.append(beside, &job(n), said(beside, "beside")).await.expect("appended");
    }
    // A job that is worked again appends nothing.
    assert_eq!(store.append(run, &job(2), said(run, "again")).await.expect("known"), 2);
    let log = store.events(run).await.expect("reads");
    let expected: Vec<(u64, AgentEvent)> = (0..5).map(|n| (n, said(run, &n.to_string()))).collect();
    let told: Vec<(u64, AgentEvent)> =
        log.iter().map(|event| (event.sequence, event.event.clone())).collect();
    assert_eq!(told, expected);
    assert!(log.iter().all(|event| event.run_id == run));
    assert_eq!(log[3].job, job(3));
}

async fn long_logs_are_read_whole(store: &Store) {
    const EVENTS: usize = 600;
    let run = RunId::new();
    for n in 0..EVENTS {
        store.append(run, &job(n), said(run, "more")).await.expect("appended");
    }
    let log = store.events(run).await.expect("reads");
    let numbers: Vec<u64> = log.iter().map(|event| event.sequence).collect();
    assert_eq!(numbers, (0..EVENTS as u64).collect::<Vec<_>>());
}

async fn appends_at_once_are_each_there_once(store: &Store) {
    const JOBS: usize = 40;
    let run = RunId::new();
    // Each twice, as by two workers.
    let appends = (0..2 * JOBS).map(|n| async move {
        let event = said(run, &(n % JOBS).to_string());
        (n % JOBS, store.append(run, &job(n % JOBS), event).await.expect("appended"))
    });
    let numbers = join_all(appends).await;
    let log = store.events(run).await.expect("reads");
    assert_eq!(log.len(), JOBS);
    for (n, event) in log.iter().enumerate() {
        assert_eq!(event.sequence, n as u64, "no gap, and in order");
    }
    for (n, number) in numbers {
        assert_eq!(log[number as usize].job, job(n), "told the number that it has");
    }
}

async fn unknown_things_survive(store: &Store) {
    let run = RunId::new();
    let event = json!({"RunPaused": {"run_id": run, "by": "some\u{0}body", "n": 1.5}});
    let event: AgentEvent = serde_json::from_value(event).expect("reads");
    store.append(run, &job(0), event.clone()).await.expect("appended");
    assert_eq!(store.events(run).await.expect("reads")[0].event, event);
    let mut record = record();
    record.status = RunStatus::Other(json!({"Dreaming": {"of": "sheep"}}));
    record.extra.insert("added_later".to_owned(), json!([1, 2]));
    store.create(record.clone()).await.expect("stored");
    let there = store.get(record.id).await.expect("looks").expect("there");
    assert_eq!((there.status, there.extra), (record.status, record.extra));
}

async fn runs_are_listed_with_filters(store: &Store) {
    let session = Uuid::now_v7();
    let mut ids = Vec::new();
    for n in 0..5 {
        let mut run = record();
        run.session_id = session;
        run.created_at += chrono::TimeDelta::milliseconds(n);
        ids.push(run.id);
        store.create(run).await.expect("stored");
    }
    store.update_status(ids[1], RunStatus::Completed).await.expect("updated");
    let listed = async |filter: RunFilter| {
        let runs = store.runs(&filter).await.expect("lists");
        runs.iter().map(|run| run.id).collect::<Vec<_>>()
    };
    let of_session = RunFilter { session_id: Some(session), ..RunFilter::default() };
    assert_eq!(listed(of_session.clone()).await, ids);
    let done = RunFilter { status: Some(RunStatus::Completed), ..of_session.clone() };
    assert_eq!(listed(done).await, [ids[1]]);
    let page = RunFilter { offset: 1, limit: Some(2), ..of_session };
    assert_eq!(listed(page).await, ids[1..3]);
    assert!(listed(RunFilter::default()).await.len() >= 5);
}

async fn deleting_takes_the_log_along(store: &Store) {
    let run = record();
    store.create(run.clone()).await.expect("stored");
    store.append(run.id, &job(0), said(run.id, "hello")).await.expect("appended");
    store.delete(run.id).await.expect("deleted");
    store.delete(run.id).await.expect("gone already");
    assert!(store.get(run.id).await.expect("looks").is_none());
    assert!(store.events(run.id).await.expect("reads").is_empty());
    let number = store.append(run.id, &job(1), said(run.id, "anew")).await.expect("appended");
    assert_eq!(number, 0, "a log that begins anew");
}

async fn deleting_beside_appends_leaves_no_gap(store: &Store) {
    const CALLS: usize = 12;
    for round in 0..30 {
        let run = RunId::new();
        let calls = (0..CALLS).map(|n| async move {
            match n == CALLS / 2 {
                true => store.delete(run).await.expect("deleted"),
                false => {
                    store.append(run, &job(n), said(run, "more")).await.expect("appended");
                }
            }
        });
        join_all(calls).await;
        let log = store.events(run).await.expect("reads");
        let numbers: Vec<u64> = log.iter().map(|event| event.sequence).collect();
        assert_eq!(numbers, (0..log.len() as u64).collect::<Vec<_>>(), "in round {round}");
    }
}

#[tokio::test]
async fn memory_conforms() {
    conformance(Arc::new(MemoryRunStore::new())).await;
}

#[tokio::test]
async fn jetstream_conforms() {
    let broker = broker().await;
    let client = connect(&broker).await;
    let store = JetStreamRunStore::open(&client).await.expect("a store");
    conformance(Arc::new(store)).await;
    // Opened again it is the same.
    let again = JetStreamRunStore::open(&client).await.expect("the same store");
    assert!(!again.runs(&RunFilter::default()).await.expect("lists").is_empty());
}

/// It takes connections a moment before it is ready for them.
pub(crate) async fn ready(server: &Server) -> PgPool {
    eventually("a connection", || async { PgPool::connect(&server.url).await.ok() }).await
}

#[tokio::test]
async fn postgres_conforms() {
    let server = crate::servers::postgres();
    ready(&server).await;
    let store = PostgresRunStore::connect(&server.url).await.expect("a store");
    conformance(Arc::new(store)).await;
    let many = join_all((0..5).map(|_| PostgresRunStore::connect(&server.url))).await;
    assert!(many.iter().all(Result::is_ok), "opened at once by many: {many:?}");
    drop(server);
    let gone = many.into_iter().next().expect("one").expect("a store").health().await;
    assert!(matches!(gone, Err(StoreError::Backend(_))), "{gone:?}");
}

#[tokio::test]
async fn postgres_may_be_shared_with_an_application_that_migrates_its_own_tables() {
    let server = crate::servers::postgres();
    let theirs = ready(&server).await;
    let make = "CREATE TABLE _sqlx_migrations (
                    version BIGINT PRIMARY KEY, description TEXT NOT NULL,
                    installed_on TIMESTAMPTZ NOT NULL DEFAULT now(), success BOOLEAN NOT NULL,
                    checksum BYTEA NOT NULL, execution_time BIGINT NOT NULL
                );
                INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
                SELECT n, 'theirs', true, 'sum', 1 FROM generate_series(1, 6) AS n";
    sqlx::raw_sql(make).execute(&theirs).await.expect("made");
    let noted = async || {
        let noted = sqlx::query_scalar("SELECT string_agg(m::text, ' ') FROM _sqlx_migrations m");
        noted.fetch_one(&theirs).await.expect("reads")
    };
    let before: String = noted().await;
    for _ in 0..2 {
        // One connection has to do.
        let pool = PgPoolOptions::new().max_connections(1).acquire_timeout(PATIENCE);
        let pool = pool.connect(&server.url).await.expect("connects");
        let store = PostgresRunStore::with_pool(pool).await.expect("opens");
        store.create(record()).await.expect("stored");
    }
    assert_eq!(noted().await, before);
}

#[tokio::test]
async fn who_may_only_use_the_tables_of_postgres_can_open_the_store() {
    let server = crate::servers::postgres();
    let owner = ready(&server).await;
    PostgresRunStore::with_pool(owner.clone()).await.expect("made");
    let grant = "CREATE ROLE guest LOGIN;
                 GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO guest";
    sqlx::raw_sql(grant).execute(&owner).await.expect("granted");
    let url = server.url.replace("tidemill@", "guest@");
    let store = PostgresRunStore::connect(&url).await.expect("opens");
    store.create(record()).await.expect("stored");
}

#[tokio::test]
async fn events_are_persisted_by_workers() {
    let broker = broker().await;
    let client = connect(&broker).await;
    let store = Arc::new(JetStreamRunStore::open(&client).await.expect("a store"));
    let worker = persisting(Worker::builder(&client), store.clone());
    let running = worker.build().expect("valid").start().await.expect("starts");
    let run_id = RunId::new();
    for n in 0..3 {
        let job = PersistEvent::new(run_id, said(run_id, &n.to_string()));
        let stored = client.enqueue(job.clone()).await.expect("stored");
        let done = stored.completion().await.expect("ends").result().expect("a job");
        assert_eq!(done, Some(JobType::from(job)), "what was done is the result");
    }
    let test = client.enqueue(TestJob::new("hello")).await.expect("stored");
    assert_eq!(test.completion().await.expect("ends").status, Status::Done);
    assert_eq!(store.events(run_id).await.expect("reads").len(), 3);
    running.drain().await;
}
