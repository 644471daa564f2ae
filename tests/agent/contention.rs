//! Many who write to one run at once.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use sqlx::postgres::PgPoolOptions;
use tidemill::agent::{
    JetStreamRunStore, MemoryRunStore, PersistEvent, PostgresRunStore, RunFilter, RunId, RunStatus,
    RunStore, persisting,
};
use tidemill::embedded::Cluster;
use tidemill::{JobId, QueueConfig, Status, Worker};

use crate::store::record;
use crate::support::{broker, connect, said};
use crate::tricky::{Trick, Tricky};

/// Appends a run's events by workers that are as many processes, as far as the broker can tell, and
/// looks that no attempt failed and that the log has each event once, without gaps.
async fn no_attempt_is_used_up(events: usize, workers: usize, concurrency: usize) {
    let broker = broker().await;
    let client = connect(&broker).await;
    let run_id = RunId::new();
    let jobs = (0..events).map(|n| PersistEvent::new(run_id, said(run_id, &n.to_string())));
    let jobs = client.enqueue_many(jobs).await;
    let mut running = Vec::new();
    for _ in 0..workers {
        let client = connect(&broker).await;
        let store = JetStreamRunStore::open(&client).await.expect("a store");
        let worker = persisting(Worker::builder(&client), Arc::new(store));
        let worker = worker.concurrency(concurrency).build().expect("valid");
        running.push(worker.start().await.expect("starts"));
    }
    for job in jobs {
        let end = job.expect("stored").completion().await.expect("ends");
        assert_eq!((end.status, end.attempt), (Status::Done, 1));
    }
    let store = JetStreamRunStore::open(&client).await.expect("a store");
    let log = store.events(run_id).await.expect("reads");
    let numbers: Vec<u64> = log.iter().map(|event| event.sequence).collect();
    assert_eq!(numbers, (0..events as u64).collect::<Vec<_>>());
    join_all(running.into_iter().map(|running| running.drain())).await;
}

#[tokio::test]
async fn hundreds_of_appends_at_once_in_a_process_use_up_no_attempt() {
    no_attempt_is_used_up(1000, 1, 300).await;
}

#[tokio::test]
async fn appends_of_several_processes_use_up_no_attempt() {
    no_attempt_is_used_up(300, 4, 75).await;
}

#[tokio::test]
async fn runs_that_change_while_they_are_listed_are_listed_once() {
    const RUNS: usize = 300;
    let broker = broker().await;
    let client = connect(&broker).await;
    let store = JetStreamRunStore::open(&client).await.expect("a store");
    let runs: Vec<_> = (0..RUNS).map(|_| record()).collect();
    join_all(runs.iter().map(|run| async { store.create(run.clone()).await.expect("stored") }))
        .await;
    let change = async {
        for run in runs.iter().cycle().take(3 * RUNS) {
            store.update_status(run.id, RunStatus::Persisting).await.expect("set");
        }
    };
    let list = async {
        loop {
            let listed = store.runs(&RunFilter::default()).await.expect("lists");
            let listed: Vec<RunId> = listed.iter().map(|run| run.id).collect();
            assert_eq!(listed, runs.iter().map(|run| run.id).collect::<Vec<_>>());
        }
    };
    tokio::select! {
        () = change => {}
        () = list => {}
    }
}

#[tokio::test]
async fn what_was_stored_on_three_replicas_is_read_at_once() {
    let cluster = Cluster::start(3).await.expect("a cluster");
    let mut config = QueueConfig::default();
    config.replicas = 3;
    let mut stores = Vec::new();
    for node in 0..3 {
        let options = tidemill::ConnectOptions::new(cluster.node(node).url()).expect("a URL");
        let client = tidemill::Client::connect(options).await.expect("connects");
        let client = client.with_queue_config(config.clone());
        stores.push(JetStreamRunStore::open(&client).await.expect("a store"));
    }
    // Many at once, so that there is something to lag behind.
    let stores = &stores;
    join_all((0..60).map(|n| async move {
        let [writer, reader] = [&stores[n % 3], &stores[(n + 1) % 3]];
        let run = record();
        writer.create(run.clone()).await.expect("stored");
        let listed = reader.runs(&RunFilter::default()).await.expect("lists");
        assert!(listed.iter().any(|there| there.id == run.id), "run {n} is not listed yet");
        for n in 0..20 {
            let job = JobId::new(format!("job-{n}")).expect("valid");
            writer.append(run.id, &job, said(run.id, "more")).await.expect("appended");
            assert_eq!(reader.events(run.id).await.expect("reads").len(), n + 1);
        }
    }))
    .await;
}

#[tokio::test]
async fn a_busy_log_costs_no_attempt() {
    let broker = broker().await;
    let client = connect(&broker).await;
    let store = Arc::new(Tricky::new(MemoryRunStore::new(), Trick::Busy(2.into())));
    let worker = persisting(Worker::builder(&client), store.clone());
    let running = worker.build().expect("valid").start().await.expect("starts");
    let run_id = RunId::new();
    let job = client.enqueue(PersistEvent::new(run_id, said(run_id, "hello"))).max_retries(0);
    let end = job.await.expect("stored").completion().await.expect("ends");
    assert_eq!((end.status, end.attempt), (Status::Done, 1));
    assert_eq!(store.events(run_id).await.expect("reads").len(), 1);
    running.drain().await;
}

#[tokio::test]
async fn appends_to_one_run_do_not_wait_for_connections_of_postgres() {
    let server = crate::servers::postgres();
    crate::store::ready(&server).await;
    // Less than they take together.
    let pool = PgPoolOptions::new().max_connections(2).acquire_timeout(Duration::from_millis(100));
    let pool = pool.connect(&server.url).await.expect("connects");
    let store = &PostgresRunStore::with_pool(pool).await.expect("opens");
    let run = RunId::new();
    let appends = (0..300).map(|n| async move {
        let job = JobId::new(format!("job-{n}")).expect("valid");
        store.append(run, &job, said(run, "more")).await.expect("appended");
    });
    join_all(appends).await;
    assert_eq!(store.events(run).await.expect("reads").len(), 300);
}
