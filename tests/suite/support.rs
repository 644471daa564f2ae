//! A broker, a client and a few kinds of jobs, for every test.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use serde::{Deserialize, Serialize};
use tidemill::embedded::Broker;
use tidemill::{
    Client, Completion, ConnectOptions, DeadFilter, DeadLetter, Job, JobHandle, Queue, QueueConfig,
    Worker,
};

/// How long anything may take that should happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A job with a number to know it by.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Numbered {
    pub(crate) n: u64,
}

impl Job for Numbered {
    const KIND: &'static str = "numbered";
}

pub(crate) fn numbered(n: u64) -> Numbered {
    Numbered { n }
}

/// A broker of our own with a client on it.
pub(crate) struct Mill {
    pub(crate) broker: Broker,
    pub(crate) client: Client,
}

impl Mill {
    pub(crate) async fn start() -> Self {
        Self::with(QueueConfig::default()).await
    }

    /// With queues whose leases run out after `ack_wait`.
    pub(crate) async fn with_ack_wait(ack_wait: Duration) -> Self {
        let mut config = QueueConfig::default();
        config.ack_wait = ack_wait;
        Self::with(config).await
    }

    pub(crate) async fn with(config: QueueConfig) -> Self {
        Self::of(Broker::start().await.expect("a broker"), config).await
    }

    pub(crate) async fn of(broker: Broker, config: QueueConfig) -> Self {
        let client = connect(broker.url()).await.with_queue_config(config);
        client.ensure_queue(&Queue::default()).await.expect("a queue");
        Self { broker, client }
    }

    /// A client of the bare protocol, as other programs have one.
    pub(crate) async fn nats(&self) -> async_nats::Client {
        async_nats::connect(self.broker.url()).await.expect("connects")
    }

    /// A worker builder with little concurrency, so that order shows.
    pub(crate) fn worker(&self) -> tidemill::WorkerBuilder {
        Worker::builder(&self.client)
    }
}

pub(crate) async fn connect(url: &str) -> Client {
    let options = ConnectOptions::new(url).expect("a URL");
    Client::connect(options).await.expect("connects")
}

/// The completion of a job, which has to come.
pub(crate) async fn completion(job: &JobHandle) -> Completion {
    job.completion_within(PATIENCE).await.expect("a completion")
}

/// The dead letters of the default queue.
pub(crate) async fn dead(mill: &Mill) -> Vec<DeadLetter> {
    let letters = mill.client.dead_letters(DeadFilter::queue(Queue::default()));
    letters.try_collect().await.expect("reads")
}

/// No subject of ours.
pub(crate) const NOTHING: &str = "nothing";

/// A broker's users: `admin`, and `worker` with all rights but these.
pub(crate) fn worker_without(may_not_publish: &str, may_not_subscribe: &str) -> String {
    format!(
        r#"
accounts {{
  JOBS {{
    jetstream: enabled
    users: [
      {{ user: admin, password: admin }}
      {{ user: worker, password: worker, permissions {{
          publish: {{ allow: ">", deny: ["{may_not_publish}"] }}
          subscribe: {{ allow: ">", deny: ["{may_not_subscribe}"] }} }} }}
    ]
  }}
}}
"#
    )
}

/// Asks until the answer is `Some`, or fails the test with what was waited for.
pub(crate) async fn eventually<T, F>(what: &str, mut ask: impl FnMut() -> F) -> T
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

/// Waits for a moment.
pub(crate) async fn until(moment: Instant) {
    tokio::time::sleep_until(moment.into()).await;
}

/// What handlers saw, in order.
#[derive(Clone, Debug)]
pub(crate) struct Seen<T>(Arc<Mutex<Vec<T>>>);

impl<T> Default for Seen<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T: Clone> Seen<T> {
    pub(crate) fn push(&self, value: T) {
        self.0.lock().expect("not poisoned").push(value);
    }

    pub(crate) fn all(&self) -> Vec<T> {
        self.0.lock().expect("not poisoned").clone()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.lock().expect("not poisoned").len()
    }

    /// Waits until there are that many.
    pub(crate) async fn wait_for(&self, count: usize) -> Vec<T> {
        eventually(&format!("{count} sightings"), || async {
            (self.len() >= count).then(|| self.all())
        })
        .await
    }
}

/// The broker's figures of a lane: (waiting, handed out and unsettled).
pub(crate) async fn lane_counts(nats: &async_nats::Client, queue: &str, lane: &str) -> (u64, u64) {
    consumer_counts(nats, &format!("TIDEMILL_JOBS_{queue}"), lane).await
}

/// The same of any consumer.
pub(crate) async fn consumer_counts(
    nats: &async_nats::Client,
    stream: &str,
    consumer: &str,
) -> (u64, u64) {
    let subject = format!("$JS.API.CONSUMER.INFO.{stream}.{consumer}");
    let answer = nats.request(subject, "".into()).await.expect("an answer");
    let info: serde_json::Value = serde_json::from_slice(&answer.payload).expect("JSON");
    let count = |name: &str| info[name].as_u64().expect("a count");
    (count("num_pending"), count("num_ack_pending"))
}

/// How many messages a stream holds.
pub(crate) async fn stream_messages(nats: &async_nats::Client, stream: &str) -> u64 {
    let subject = format!("$JS.API.STREAM.INFO.{stream}");
    let answer = nats.request(subject, "".into()).await.expect("an answer");
    let info: serde_json::Value = serde_json::from_slice(&answer.payload).expect("JSON");
    info["state"]["messages"].as_u64().expect("a count")
}

/// A `tidemill work` of its own process, to be killed.
pub(crate) struct Child(tokio::process::Child);

impl Child {
    pub(crate) fn work(url: &str, arguments: &[&str]) -> Self {
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
    pub(crate) async fn gone(&mut self) {
        self.0.wait().await.expect("waits");
    }

    pub(crate) async fn kill(&mut self) {
        self.0.kill().await.expect("kills");
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let id = self.0.id().expect("it runs");
        let id = i32::try_from(id).ok().and_then(rustix::process::Pid::from_raw).expect("an id");
        rustix::process::kill_process(id, signal).expect("it runs");
    }

    pub(crate) fn freeze(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    pub(crate) fn thaw(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    /// Lets it drain, and waits until it has.
    pub(crate) async fn terminate(mut self) {
        self.signal(rustix::process::Signal::TERM);
        self.gone().await;
    }
}
