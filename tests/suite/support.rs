//! A broker, a client and a few kinds of jobs, for every test.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tidemill::embedded::Broker;
use tidemill::{Client, Completion, ConnectOptions, Job, JobHandle, Queue, QueueConfig, Worker};

/// How long anything may take that should happen.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A job with a number to know it by.
#[derive(Debug, Serialize, Deserialize)]
pub struct Numbered {
    pub n: u64,
}

impl Job for Numbered {
    const KIND: &'static str = "numbered";
}

pub fn numbered(n: u64) -> Numbered {
    Numbered { n }
}

/// A broker of our own with a client on it.
pub struct Mill {
    pub broker: Broker,
    pub client: Client,
}

impl Mill {
    pub async fn start() -> Self {
        Self::with(QueueConfig::default()).await
    }

    /// With queues whose leases run out after `ack_wait`.
    pub async fn with_ack_wait(ack_wait: Duration) -> Self {
        let mut config = QueueConfig::default();
        config.ack_wait = ack_wait;
        Self::with(config).await
    }

    pub async fn with(config: QueueConfig) -> Self {
        let broker = Broker::start().await.expect("a broker");
        let client = connect(broker.url()).await.with_queue_config(config);
        client.ensure_queue(&Queue::default()).await.expect("a queue");
        Self { broker, client }
    }

    /// A client of the bare protocol, as other programs have one.
    pub async fn nats(&self) -> async_nats::Client {
        async_nats::connect(self.broker.url()).await.expect("connects")
    }

    /// A worker builder with little concurrency, so that order shows.
    pub fn worker(&self) -> tidemill::WorkerBuilder {
        Worker::builder(&self.client)
    }
}

pub async fn connect(url: &str) -> Client {
    let options = ConnectOptions::new(url).expect("a URL");
    Client::connect(options).await.expect("connects")
}

/// The completion of a job, which has to come.
pub async fn completion(job: &JobHandle) -> Completion {
    job.completion_within(PATIENCE).await.expect("a completion")
}

/// Asks until the answer is `Some`, or fails the test with what was waited for.
pub async fn eventually<T, F>(what: &str, mut ask: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "it never came: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What handlers saw, in order.
#[derive(Clone, Debug)]
pub struct Seen<T>(Arc<Mutex<Vec<T>>>);

impl<T> Default for Seen<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T: Clone> Seen<T> {
    pub fn push(&self, value: T) {
        self.0.lock().expect("not poisoned").push(value);
    }

    pub fn all(&self) -> Vec<T> {
        self.0.lock().expect("not poisoned").clone()
    }

    pub fn len(&self) -> usize {
        self.0.lock().expect("not poisoned").len()
    }

    /// Waits until there are that many.
    pub async fn wait_for(&self, count: usize) -> Vec<T> {
        eventually(&format!("{count} sightings"), || async {
            (self.len() >= count).then(|| self.all())
        })
        .await
    }
}

/// The broker's figures of a lane: (waiting, handed out and unsettled).
pub async fn lane_counts(nats: &async_nats::Client, queue: &str, lane: &str) -> (u64, u64) {
    let subject = format!("$JS.API.CONSUMER.INFO.TIDEMILL_JOBS_{queue}.{lane}");
    let answer = nats.request(subject, "".into()).await.expect("an answer");
    let info: serde_json::Value = serde_json::from_slice(&answer.payload).expect("JSON");
    let count = |name: &str| info[name].as_u64().expect("a count");
    (count("num_pending"), count("num_ack_pending"))
}

/// How many messages a stream holds.
pub async fn stream_messages(nats: &async_nats::Client, stream: &str) -> u64 {
    let subject = format!("$JS.API.STREAM.INFO.{stream}");
    let answer = nats.request(subject, "".into()).await.expect("an answer");
    let info: serde_json::Value = serde_json::from_slice(&answer.payload).expect("JSON");
    info["state"]["messages"].as_u64().expect("a count")
}

/// A `tidemill work` of its own process, to be killed.
pub struct Child(tokio::process::Child);

impl Child {
    pub fn work(url: &str, arguments: &[&str]) -> Self {
        let child = tokio::process::Command::new(env!("CARGO_BIN_EXE_tidemill"))
            .args(["--server", url, "--quiet", "work"])
            .args(arguments)
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("starts");
        Self(child)
    }

    /// Waits until the process has ended.
    pub async fn gone(&mut self) {
        self.0.wait().await.expect("waits");
    }

    pub async fn kill(&mut self) {
        self.0.kill().await.expect("kills");
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let id = self.0.id().expect("it runs");
        let id = i32::try_from(id).ok().and_then(rustix::process::Pid::from_raw).expect("an id");
        rustix::process::kill_process(id, signal).expect("it runs");
    }

    pub fn freeze(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    pub fn thaw(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    /// Lets it drain, and waits until it has.
    pub async fn terminate(mut self) {
        self.signal(rustix::process::Signal::TERM);
        self.gone().await;
    }
}
