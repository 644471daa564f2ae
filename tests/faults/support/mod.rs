//! What breaks things, and what sees that nothing came of it.

pub(crate) mod chaos;
pub(crate) mod copies;
pub(crate) mod disk;
pub(crate) mod footprint;
pub(crate) mod held;
pub(crate) mod island;
pub(crate) mod load;
pub(crate) mod lost;
#[cfg(target_os = "linux")]
pub(crate) mod power;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod raw;
pub(crate) mod site;

use std::io::Write as _;
use std::time::Duration;

use serde_json::{Value, json};
use tidemill::embedded::{Broker, BrokerBuilder};
use tidemill::{Client, ConnectOptions, Queue, QueueConfig};

pub(crate) use self::mill::*;
pub(crate) use self::site::{R1, Setup, Site};

#[path = "../../suite/support.rs"]
#[expect(dead_code, reason = "the suite has uses for all of it")]
mod mill;

/// How long a job stays with a worker that is silent; short, so that recoveries are.
pub(crate) const ACK_WAIT: Duration = Duration::from_secs(2);

/// How long after the last fault everything may take to be done: the lease, and 15 s.
pub(crate) const RECOVERY: Duration = Duration::from_secs(17);

/// How long work may stand still while a leader or a server is lost.
pub(crate) const GAP: Duration = Duration::from_secs(15);

/// When the broker's writes reach the disk.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sync {
    /// When the system pleases, and every two minutes.
    Lazy,
    /// Every second.
    EverySecond,
    /// Before they are confirmed.
    Always,
}

impl Sync {
    pub(crate) fn builder(self) -> BrokerBuilder {
        Broker::builder().jetstream_config(self.config())
    }

    /// What a server's configuration says of it.
    pub(crate) fn config(self) -> &'static str {
        match self {
            Self::Lazy => "",
            Self::EverySecond => "sync_interval: 1s",
            Self::Always => "sync_interval: always",
        }
    }
}

/// The room of streams that have a limit: servers set it aside, for each of several queues.
const ROOM: u64 = 64 << 20;

/// Queues with short leases and as many replicas.
pub(crate) fn short_leases(replicas: u8) -> QueueConfig {
    let mut config = QueueConfig::default();
    config.max_jobs_bytes = ROOM;
    config.max_results_bytes = ROOM;
    config.max_dead_bytes = ROOM;
    config.ack_wait = ACK_WAIT;
    config.replicas = replicas;
    config
}

/// A client of such queues, that waits a second for an answer; the default queue is there.
pub(crate) async fn impatient(url: &str, config: QueueConfig) -> Client {
    let options = ConnectOptions::new(url).expect("a URL").request_timeout(Duration::from_secs(1));
    let client = Client::connect(options).await.expect("connects").with_queue_config(config);
    eventually("a queue", || async { client.ensure_queue(&Queue::default()).await.ok() }).await;
    client
}

/// A broker with the default queue, leases of which are short, and a client.
pub(crate) async fn short_mill(sync: Sync) -> Mill {
    let broker = sync.builder().start().await.expect("a broker");
    let client = impatient(broker.url(), short_leases(1)).await;
    Mill { broker, client }
}

/// Asks the broker's API, until it answers.
pub(crate) async fn api(nats: &async_nats::Client, verb: &str, body: Value) -> Value {
    let subject = format!("$JS.API.{verb}");
    let body = if body.is_null() { String::new() } else { body.to_string() };
    eventually(&subject, || async {
        let answer = nats.request(subject.clone(), body.clone().into()).await.ok()?;
        serde_json::from_slice(&answer.payload).ok()
    })
    .await
}

/// Changes some options of a stream or consumer, whatever tidemill wants them to be.
pub(crate) async fn change(nats: &async_nats::Client, place: &str, options: Value) {
    let (stream, consumer) = match place.split_once('/') {
        Some((stream, consumer)) => (stream, Some(consumer)),
        None => (place, None),
    };
    let info = match consumer {
        Some(consumer) => format!("CONSUMER.INFO.{stream}.{consumer}"),
        None => format!("STREAM.INFO.{stream}"),
    };
    let mut config = api(nats, &info, Value::Null).await["config"].take();
    for (name, value) in options.as_object().expect("options") {
        config[name] = value.clone();
    }
    let answer = match consumer {
        Some(consumer) => {
            let filter = config["filter_subject"].as_str().expect("one filter").to_owned();
            let verb = format!("CONSUMER.CREATE.{stream}.{consumer}.{filter}");
            let body = json!({ "stream_name": stream, "config": config, "action": "update" });
            api(nats, &verb, body).await
        }
        None => api(nats, &format!("STREAM.UPDATE.{stream}"), config).await,
    };
    assert!(answer["error"].is_null(), "{place}: {answer}");
}

/// Says why a test cannot be run here, where somebody who looks sees it.
pub(crate) fn skip(why: &str) {
    // Past the harness, which keeps to itself what a test that passes has printed.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}
