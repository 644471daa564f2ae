//! Workers that are killed when it is worst.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tidemill::agent::{JetStreamRunStore, PersistEvent, RunId, RunStore, persisting};
use tidemill::{Client, ConnectOptions, Queue, QueueConfig, Status, Worker};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::support::{broker, connect, said};
use crate::tricky::{APPENDED, Trick, Tricky};

/// Set, to the broker's URL, for a process of this test that is to be a worker.
const IS_WORKER: &str = "TIDEMILL_TEST_IS_WORKER";

/// A worker that appends, and is then killed before it can ack.
async fn append_and_hang(url: &str) {
    let options = ConnectOptions::new(url).expect("a URL");
    let client = Client::connect(options).await.expect("connects");
    let store = JetStreamRunStore::open(&client).await.expect("a store");
    let store = Arc::new(Tricky::new(store, Trick::Hang));
    let worker = persisting(Worker::builder(&client), store);
    let _running = worker.build().expect("valid").start().await.expect("starts");
    std::future::pending().await
}

#[tokio::test]
async fn a_worker_killed_between_append_and_ack_leaves_one_entry_and_no_gap() {
    if let Ok(url) = std::env::var(IS_WORKER) {
        return append_and_hang(&url).await;
    }
    let broker = broker().await;
    let mut config = QueueConfig::default();
    config.ack_wait = Duration::from_secs(2);
    let client = connect(&broker).await.with_queue_config(config);
    client.ensure_queue(&Queue::default()).await.expect("made");
    let run_id = RunId::new();
    let job = client.enqueue(PersistEvent::new(run_id, said(run_id, "first"))).await;
    let job = job.expect("stored");

    let test = "crash::a_worker_killed_between_append_and_ack_leaves_one_entry_and_no_gap";
    let mut worker = Command::new(std::env::current_exe().expect("this test"));
    worker.args(["--exact", test, "--nocapture"]).env(IS_WORKER, broker.url());
    let mut worker = worker.stdout(Stdio::piped()).kill_on_drop(true).spawn().expect("starts");
    let mut lines = BufReader::new(worker.stdout.take().expect("piped")).lines();
    while !lines.next_line().await.expect("reads").expect("it appends").contains(APPENDED) {}
    worker.kill().await.expect("killed");

    let store = JetStreamRunStore::open(&client).await.expect("a store");
    assert_eq!(store.events(run_id).await.expect("reads").len(), 1, "appended, and not acked");
    let store = Arc::new(store);
    let worker = persisting(Worker::builder(&client), store.clone());
    let running = worker.build().expect("valid").start().await.expect("starts");
    let end = job.completion().await.expect("ends");
    assert_eq!(end.status, Status::Done);
    let next = client.enqueue(PersistEvent::new(run_id, said(run_id, "second"))).await;
    next.expect("stored").completion().await.expect("ends");
    let log = store.events(run_id).await.expect("reads");
    let told: Vec<_> = log.iter().map(|entry| (entry.sequence, entry.event.clone())).collect();
    assert_eq!(told, [(0, said(run_id, "first")), (1, said(run_id, "second"))]);
    running.drain().await;
}
