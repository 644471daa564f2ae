//! Events handed to the outside: what every publisher must do, and setting one while workers run.

use std::sync::{Arc, Mutex};

use tidemill::agent::{
    AgentEvent, EventPublisher, JetStreamPublisher, PublishError, PublishExternalEvent, Publishers,
    RunId, publishing,
};
use tidemill::{Client, JobId, Status, Worker};

use crate::support::{broker, connect, said};

/// Publishes three events, one of them twice, as a job that is worked again does.
async fn publish_some(publisher: &dyn EventPublisher, run: RunId) {
    for (job, text) in [("a", "one"), ("b", "two"), ("b", "two"), ("c", "three")] {
        let job = JobId::new(job).expect("valid");
        publisher.publish(&job, &said(run, text)).await.expect("published");
    }
}

#[tokio::test]
async fn jetstream_has_each_event_once_and_in_order() {
    let broker = broker().await;
    let client = connect(&broker).await;
    let nats = async_nats::connect(broker.url()).await.expect("connects");
    let config = r#"{"name":"EVENTS","subjects":["events.>"],"allow_direct":true}"#;
    nats.request("$JS.API.STREAM.CREATE.EVENTS", config.into()).await.expect("a stream");
    let publisher = JetStreamPublisher::new(&client, "events.agent").expect("a subject");
    let run = RunId::new();
    publish_some(&publisher, run).await;
    let stored = async |sequence: u64| {
        let request = format!(r#"{{"seq":{sequence}}}"#);
        let answer = nats.request("$JS.API.DIRECT.GET.EVENTS", request.into()).await;
        let message = answer.expect("an answer");
        serde_json::from_slice::<AgentEvent>(&message.payload).ok()
    };
    for (sequence, text) in (1..).zip(["one", "two", "three"]) {
        assert_eq!(stored(sequence).await, Some(said(run, text)));
    }
    assert_eq!(stored(4).await, None, "and no more");
    let nowhere = JetStreamPublisher::new(&client, "nowhere").expect("a subject");
    let job = JobId::new("a").expect("valid");
    assert!(nowhere.publish(&job, &said(run, "lost")).await.is_err());
    for bad in ["", "events.*", "a..b", "a b", "events.>"] {
        assert!(JetStreamPublisher::new(&client, bad).is_err(), "{bad:?}");
    }
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
    let job = client.enqueue(PublishExternalEvent { event }).max_retries(retries);
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
    publishers.set(None);
    assert_eq!(ends(&client, said(run, "to nobody again"), 0).await, Status::Done);
    running.drain().await;
}
