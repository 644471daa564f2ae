//! Whether every server of a cluster has the same: each is asked for what it holds itself, so that
//! servers that went on without one another are found, whoever leads.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Instant;

use futures_util::StreamExt;
use serde_json::{Value, json};
use tidemill::embedded::{Broker, Cluster};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::site::{Login, nats_at};
use super::{PATIENCE, api, eventually};

/// Messages of one answer; the server ends it sooner where they are large.
const AT_ONCE: u64 = 1000;

/// What one server holds: of each stream its bounds and a digest of all messages, of each consumer what
/// is handed out and settled.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Copies(BTreeMap<String, String>);

impl Copies {
    /// Waits until all servers hold the same, which has to be soon.
    pub(crate) async fn agree(cluster: &Cluster, login: Login) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut all = Vec::new();
            for node in cluster.nodes() {
                all.push(Self::of(node, login).await);
            }
            if all.iter().all(|copies| *copies == all[0] && !copies.0.is_empty()) {
                return;
            }
            assert!(Instant::now() < deadline, "the servers hold different things: {all:#?}");
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    }

    async fn of(node: &Broker, login: Login) -> Self {
        let page = jsz(node).await.unwrap_or_default();
        let nats = nats_at(node.url(), login).await;
        let mut copies = Self::default();
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let accounts = list(&page["account_details"]);
        for stream in accounts.iter().flat_map(|account| list(&account["stream_detail"])) {
            let name = text(&stream["name"]);
            let state = &stream["state"];
            let names = ["messages", "bytes", "first_seq", "last_seq", "num_deleted"];
            let bounds = names.map(|name| state[name].as_u64().unwrap_or_default());
            let digest = digest(&nats, &name, bounds[2]).await;
            for consumer in list(&stream["consumer_detail"]) {
                // How many it has handed out may differ where one was told of it and crashed; not what
                // is settled.
                let settled = (&consumer["ack_floor"]["stream_seq"], &consumer["num_ack_pending"]);
                let key = format!("{name} {}", text(&consumer["name"]));
                copies.0.insert(key, format!("settled {} unsettled {}", settled.0, settled.1));
            }
            copies.0.insert(name, format!("{bounds:?} {digest}"));
        }
        copies
    }
}

impl fmt::Debug for Copies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Waits until every replica of every stream and consumer of the default queue has all that its leader has.
pub(crate) async fn caught_up(nats: &async_nats::Client) {
    let streams = ["JOBS", "RESULTS", "ATTEMPTS", "DEAD", "TIMERS"].into_iter();
    let streams = streams.map(|stream| format!("STREAM.INFO.TIDEMILL_{stream}_default"));
    let lanes = ["critical", "high", "normal", "low"].into_iter();
    let lanes = lanes.map(|lane| format!("CONSUMER.INFO.TIDEMILL_JOBS_default.{lane}"));
    let due = "CONSUMER.INFO.TIDEMILL_TIMERS_default.due".to_owned();
    for verb in streams.chain(lanes).chain([due]) {
        eventually(&format!("replicas that have caught up: {verb}"), || async {
            let info = api(nats, &verb, Value::Null).await;
            let replicas = info["cluster"]["replicas"].as_array()?;
            let has_all = |replica: &Value| {
                replica["current"] == true && replica["lag"].as_u64().unwrap_or(0) == 0
            };
            (replicas.len() == 2 && replicas.iter().all(has_all)).then_some(())
        })
        .await;
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// What a server's monitor says of its own JetStream; none where it does not answer.
pub(crate) async fn jsz(node: &Broker) -> Option<Value> {
    let url = node.monitor_url();
    let mut stream = TcpStream::connect(url.trim_start_matches("http://")).await.ok()?;
    let page = b"GET /jsz?accounts=true&streams=true&consumers=true HTTP/1.0\r\n\r\n";
    stream.write_all(page).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
}

/// A number of all messages of a stream, in order, as the server's own copy has them: of those that could
/// answer it a server prefers itself.
async fn digest(nats: &async_nats::Client, stream: &str, first: u64) -> String {
    let mut hasher = DefaultHasher::new();
    let (mut count, mut next) = (0_u64, first);
    let inbox = nats.new_inbox();
    let mut answers = nats.subscribe(inbox.clone()).await.expect("subscribes");
    loop {
        let ask = json!({ "seq": next, "batch": AT_ONCE }).to_string();
        let subject = format!("$JS.API.DIRECT.GET.{stream}");
        nats.publish_with_reply(subject, inbox.clone(), ask.into()).await.expect("asks");
        let left = loop {
            let answer = tokio::time::timeout(PATIENCE, answers.next()).await;
            let Some(message) = answer.ok().flatten() else { return "no answer".to_owned() };
            let headers = message.headers.clone().unwrap_or_default();
            let number = |name: &str| -> Option<u64> { headers.get(name)?.as_str().parse().ok() };
            let Some(sequence) = number("Nats-Sequence") else {
                // The end of an answer, or that there is no (more) message.
                break number("Nats-Num-Pending").unwrap_or_default();
            };
            let subject = headers.get("Nats-Subject").map(|subject| subject.as_str().to_owned());
            (sequence, subject, &message.payload[..]).hash(&mut hasher);
            count += 1;
            next = sequence + 1;
        };
        if left == 0 {
            return format!("{count} messages, digest {:016x}", hasher.finish());
        }
    }
}
