// An agent's run, whose events go through tidemill: two worker processes persist and publish them, and
// they are read back from the store in order.
//
//     cargo run --example agent_runtime            with a private broker
//     NATS_URL=nats://… cargo run --example …      with yours

use std::collections::BTreeMap;
use std::error::Error;
use std::process::Stdio;
use std::sync::Arc;

use chrono::Utc;
use serde_json::{Map, json};
use tidemill::agent::{
    AgentEvent, FinishReason, JetStreamPublisher, JetStreamRunStore, JobConditions, JobPool,
    JobPriority, JobType, Publishers, RunCompleted, RunId, RunRecord, RunStarted, RunStatus,
    RunStore, TextDelta, persisting, publishing,
};
use tidemill::embedded::Broker;
use tidemill::{Client, ConnectOptions, JobId, Queue, Worker};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, stdin};
use tokio::process::{Child, Command};
use uuid::Uuid;

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// Where events are published: the subject of a stream that others read.
const SUBJECT: &str = "agent.events";

/// Set for a process that is to be a worker.
const IS_WORKER: &str = "AGENT_RUNTIME_IS_WORKER";

#[tokio::main]
async fn main() -> Result<()> {
    if std::env::var_os(IS_WORKER).is_some() {
        return work(&std::env::var("NATS_URL")?).await;
    }
    let (broker, url) = match std::env::var("NATS_URL") {
        Ok(url) => (None, url),
        Err(_) => {
            let broker = Broker::start().await?;
            let url = broker.url().to_owned();
            (Some(broker), url)
        }
    };
    run_agent(&url).await?;
    if let Some(broker) = broker {
        broker.stop().await?;
    }
    Ok(())
}

/// A worker: persists and publishes until its standard input ends.
async fn work(url: &str) -> Result<()> {
    let client = Client::connect(ConnectOptions::new(url)?).await?;
    let store = Arc::new(JetStreamRunStore::open(&client).await?);
    let publishers = Publishers::new();
    publishers.set(Some(Arc::new(JetStreamPublisher::new(&client, SUBJECT)?)));
    let worker = publishing(persisting(Worker::builder(&client), store), publishers);
    let running = worker.build()?.start().await?;
    println!("ready");
    stdin().read_to_end(&mut Vec::new()).await?;
    running.drain().await;
    Ok(())
}

/// An agent: says something, and has its events persisted and published.
async fn run_agent(url: &str) -> Result<()> {
    let client = Client::connect(ConnectOptions::new(url)?).await?;
    let store = Arc::new(JetStreamRunStore::open(&client).await?);
    let pool = JobPool::builder(&client, store.clone()).open().await?;
    let mut completed = pool.subscribe_completed();
    let published = publish_into_a_stream(url).await?;
    let workers = [start_worker(url).await?, start_worker(url).await?];

    let (run_id, session_id) = (RunId::new(), Uuid::now_v7());
    store.create(RunRecord::new(run_id, session_id, "example", "parrot")).await?;
    let (mut jobs, mut publishing) = (Vec::new(), 0);
    for event in events(run_id, session_id) {
        let job = JobType::PublishExternalEvent { event: event.clone() };
        jobs.push(pool.schedule(JobPriority::Normal, job, JobConditions::default()).await);
        publishing += 1;
        // The log has events in the order in which they are appended: one after the other.
        let job = JobType::PersistEvent { run_id, event };
        let persisting = pool.schedule(JobPriority::High, job, JobConditions::default()).await;
        jobs.push(persisting);
        loop {
            match completed.recv().await? {
                (id, Ok(_)) if id == persisting => break,
                (_, Ok(_)) => publishing -= 1,
                (id, Err(error)) => println!("job {id} failed, and is tried again: {error}"),
            }
        }
    }
    while publishing > 0 {
        if completed.recv().await?.1.is_ok() {
            publishing -= 1;
        }
    }
    store.update_status(run_id, RunStatus::Completed).await?;

    println!("run {run_id}:");
    for entry in store.events(run_id).await? {
        println!("{:>3} {}", entry.sequence, text(&entry.event));
    }
    println!("{} events are published", count(&published).await?);
    for (worker, jobs) in by_worker(&client, &jobs).await? {
        println!("{jobs} jobs were done by {worker}");
    }
    for mut worker in workers {
        drop(worker.stdin.take());
        worker.wait().await?;
    }
    Ok(())
}

/// This program as a worker, once it is ready.
async fn start_worker(url: &str) -> Result<Child> {
    let mut worker = Command::new(std::env::current_exe()?);
    worker.args(std::env::args().skip(1)).env("NATS_URL", url).env(IS_WORKER, "1");
    worker.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut worker = worker.kill_on_drop(true).spawn()?;
    let mut lines = BufReader::new(worker.stdout.take().ok_or("it has an output")?).lines();
    while let Some(line) = lines.next_line().await? {
        if line == "ready" {
            return Ok(worker);
        }
    }
    Err("the worker ended before it was ready".into())
}

/// What happens in the run.
fn events(run_id: RunId, session_id: Uuid) -> Vec<AgentEvent> {
    let (timestamp, extra) = (Utc::now(), Map::new());
    let said = |delta: &str| {
        let (delta, extra) = (delta.to_owned(), extra.clone());
        AgentEvent::TextDelta(TextDelta { run_id, delta, timestamp, extra })
    };
    let (provider, model) = ("example".to_owned(), "parrot".to_owned());
    let started =
        RunStarted { run_id, session_id, provider, model, timestamp, extra: extra.clone() };
    let mut events = vec![AgentEvent::RunStarted(started)];
    events.extend("pieces of eight, pieces of eight".split(' ').map(said));
    let finish_reason = FinishReason::Stop;
    let completed = RunCompleted { run_id, finish_reason, iterations: 1, timestamp, extra };
    events.push(AgentEvent::RunCompleted(completed));
    events
}

fn text(event: &AgentEvent) -> String {
    match event {
        AgentEvent::TextDelta(said) => format!("{}: {}", event.name(), said.delta),
        _ => event.name().to_owned(),
    }
}

/// How many of the jobs each worker has done.
async fn by_worker(client: &Client, jobs: &[Uuid]) -> Result<BTreeMap<String, usize>> {
    let mut by_worker = BTreeMap::new();
    for job in jobs {
        let id = JobId::new(job.to_string())?;
        for completion in client.completions_of(&Queue::default(), None, &id).await? {
            *by_worker.entry(completion.worker).or_default() += 1;
        }
    }
    Ok(by_worker)
}

/// A stream for published events, and the connection it was made by. It is the application's own.
async fn publish_into_a_stream(url: &str) -> Result<async_nats::Client> {
    let nats = async_nats::connect(url).await?;
    let config = json!({ "name": "AGENT_EVENTS", "subjects": [SUBJECT] }).to_string();
    nats.request("$JS.API.STREAM.CREATE.AGENT_EVENTS", config.into()).await?;
    Ok(nats)
}

async fn count(nats: &async_nats::Client) -> Result<u64> {
    let info = nats.request("$JS.API.STREAM.INFO.AGENT_EVENTS", "".into()).await?;
    let info: serde_json::Value = serde_json::from_slice(&info.payload)?;
    Ok(info["state"]["messages"].as_u64().unwrap_or_default())
}
