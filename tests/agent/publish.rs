//! Events handed to the outside: what every publisher must do, and setting one while workers run.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use redis::AsyncCommands;
use redis::streams::StreamRangeReply;
use tidemill::agent::{
    AgentEvent, EventPublisher, JetStreamPublisher, NoOpPublisher, PublishError,
    PublishExternalEvent, Publishers, RedisStreamsPublisher, RunId, publishing,
};
use tidemill::{Client, JobId, Status, Worker};

use crate::support::{broker, connect, said};

/// What every publisher must do: it takes what events there are, known or not, and one that comes again.
/// What it took, for those that have an outside: there it is to be in order, each event at least once.
async fn conformance(publisher: &dyn EventPublisher) -> Vec<AgentEvent> {
    let run = RunId::new();
    // One of them twice, as a job that is worked again does it.
    for (job, text) in [("a", "one"), ("b", "two"), ("b", "two"), ("c", "three")] {
        let job = JobId::new(job).expect("valid");
        publisher.publish(&job, &said(run, text)).await.expect("published");
    }
    let unknown = serde_json::json!({"RunPaused": {"run_id": run, "n": [1.5, null]}});
    let unknown: AgentEvent = serde_json::from_value(unknown).expect("an event");
    publisher.publish(&JobId::new("d").expect("valid"), &unknown).await.expect("published");
    let mut expected: Vec<AgentEvent> = ["one", "two", "three"].map(|text| said(run, text)).into();
    expected.push(unknown);
    expected
}

#[tokio::test]
async fn publishing_to_nobody_conforms() {
    conformance(&NoOpPublisher::new()).await;
}

#[tokio::test]
async fn jetstream_conforms() {
    let broker = broker().await;
    let client = connect(&broker).await;
    let nats = async_nats::connect(broker.url()).await.expect("connects");
    let config = r#"{"name":"EVENTS","subjects":["events.>"],"allow_direct":true}"#;
    nats.request("$JS.API.STREAM.CREATE.EVENTS", config.into()).await.expect("a stream");
    let publisher = JetStreamPublisher::new(&client, "events.agent").expect("a subject");
    let published = conformance(&publisher).await;
    let mut stored: Vec<AgentEvent> = Vec::new();
    for sequence in 1.. {
        let request = format!(r#"{{"seq":{sequence}}}"#);
        let answer = nats.request("$JS.API.DIRECT.GET.EVENTS", request.into()).await;
        let message = answer.expect("an answer");
        let Ok(event) = serde_json::from_slice(&message.payload) else { break };
        stored.push(event);
    }
    assert_eq!(stored, published);
    let run = RunId::new();
    let nowhere = JetStreamPublisher::new(&client, "nowhere").expect("a subject");
    let job = JobId::new("a").expect("valid");
    assert!(nowhere.publish(&job, &said(run, "lost")).await.is_err());
    for bad in ["", "events.*", "a..b", "a b", "events.>"] {
        assert!(JetStreamPublisher::new(&client, bad).is_err(), "{bad:?}");
    }
}

#[tokio::test]
async fn redis_streams_conform() {
    let server = crate::servers::redis();
    let publisher = RedisStreamsPublisher::connect(&server.url, "events").await.expect("connects");
    let client = redis::Client::open(server.url.as_str()).expect("a URL");
    let mut connection = client.get_multiplexed_async_connection().await.expect("connects");
    let published = conformance(&publisher).await;
    let all: StreamRangeReply = connection.xrange_all("events").await.expect("reads");
    let (mut seen, mut stored) = (HashSet::new(), Vec::<AgentEvent>::new());
    for entry in all.ids {
        let field = |name: &str| entry.get::<String>(name).expect("a field");
        if seen.insert(field("job")) {
            stored.push(serde_json::from_str(&field("event")).expect("an event"));
        }
    }
    assert_eq!(stored, published);
    let few = publisher.clone().max_len(100);
    let (job, run) = (JobId::new("a").expect("valid"), RunId::new());
    for n in 0..1000 {
        few.publish(&job, &said(run, &n.to_string())).await.expect("published");
    }
    let length: usize = connection.xlen("events").await.expect("a length");
    assert!((100..400).contains(&length), "trimmed to about a hundred: {length}");
    drop(server);
    assert!(few.publish(&job, &said(run, "lost")).await.is_err());
}

/// Notes what it is given, or refuses it.
#[derive(Default)]
struct Noting {
    seen: Mutex<Vec<AgentEvent>>,
    refuses: bool,
}

#[async_trait::async_trait]
impl EventPublisher for Noting {
    async fn publish(&self, _: &JobId, event: &AgentEvent) -> Result<(), PublishError> {
        if self.refuses {
            return Err("nobody takes it".into());
        }
        self.seen.lock().expect("not poisoned").push(event.clone());
        Ok(())
    }
}

async fn ends(client: &Client, event: AgentEvent, retries: u32) -> Status {
    let job = client.enqueue(PublishExternalEvent::new(event)).max_retries(retries);
    job.await.expect("stored").completion().await.expect("ends").status
}

#[tokio::test]
async fn a_publisher_is_set_and_replaced_while_the_worker_runs() {
    let broker = broker().await;
    let client = connect(&broker).await;
    let publishers = Publishers::new();
    let worker = publishing(Worker::builder(&client), publishers.clone());
    let running = worker.build().expect("valid").start().await.expect("starts");
    let run = RunId::new();
    assert_eq!(ends(&client, said(run, "to nobody"), 0).await, Status::Done);
    let (first, second) = (Arc::new(Noting::default()), Arc::new(Noting::default()));
    for (publisher, text) in [(&first, "one"), (&second, "two")] {
        publishers.set(Some(publisher.clone()));
        assert_eq!(ends(&client, said(run, text), 0).await, Status::Done);
        assert_eq!(*publisher.seen.lock().expect("not poisoned"), [said(run, text)]);
    }
    publishers.set(Some(Arc::new(Noting { refuses: true, ..Noting::default() })));
    assert_eq!(ends(&client, said(run, "refused"), 0).await, Status::Dead);
    publishers.set(Some(Arc::new(NoOpPublisher)));
    assert_eq!(ends(&client, said(run, "to nobody by name"), 0).await, Status::Done);
    publishers.set(None);
    assert_eq!(ends(&client, said(run, "to nobody again"), 0).await, Status::Done);
    running.drain().await;
}
