//! A broker, a client, and events to work with.

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
