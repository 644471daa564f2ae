//! A broker, a client, and events to work with.

use std::future::Future;
use std::time::{Duration, Instant};

use serde_json::json;
use tidemill::agent::{AgentEvent, RunId};
use tidemill::embedded::Broker;
use tidemill::{Client, ConnectOptions};

pub(crate) async fn broker() -> Broker {
    Broker::start().await.expect("a broker")
}

pub(crate) async fn connect(broker: &Broker) -> Client {
    let options = ConnectOptions::new(broker.url()).expect("a URL");
    Client::connect(options).await.expect("connects")
}

/// What a model says in a run.
pub(crate) fn said(run: RunId, text: &str) -> AgentEvent {
    let event = json!({ "TextDelta": {
        "run_id": run, "delta": text, "timestamp": "2026-11-23T07:00:05.419310569Z",
    }});
    serde_json::from_value(event).expect("an event")
}

/// Asks until the answer is `Some`, or fails the test with what was waited for.
pub(crate) async fn eventually<T, F>(what: &str, mut ask: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "it never came: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
