//! Servers with a configuration of their own, and what a connection to one must do or say.

use std::error::Error as _;
use std::fmt::Write as _;
use std::future::Future;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tidemill::embedded::Broker;
use tidemill::{Client, ConnectOptions, Error, Job};

/// How long anything may take that should happen.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ping;

impl Job for Ping {
    const KIND: &'static str = "ping";
}

/// A server with this text in its configuration. It is put there after the start, so that starting
/// does not rest on what is tested.
pub(crate) async fn server(config: &str) -> Broker {
    let broker = Broker::start().await.expect("a broker");
    broker.reload(config).await.expect("a valid configuration");
    broker
}

pub(crate) fn to(url: &str) -> ConnectOptions {
    ConnectOptions::new(url).expect("a URL")
}

/// The server's URL with another scheme, or a login before the host.
pub(crate) fn url(broker: &Broker, scheme: &str, login: &str) -> String {
    broker.url().replace("nats://", &format!("{scheme}://{login}"))
}

/// Connects and stores a job, which takes a request with an answer.
pub(crate) async fn connects(options: ConnectOptions) -> Client {
    let client = Client::connect(options.clone()).await;
    let client = client.unwrap_or_else(|error| panic!("{options:?}: {}", told(&error)));
    client.enqueue(Ping).await.expect("stored");
    client
}

pub(crate) async fn refused(options: ConnectOptions) -> Error {
    Client::connect(options).await.expect_err("refused")
}

/// An error with its causes, as programs show it.
pub(crate) fn told(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

/// That the message itself, without its causes, says all of this.
#[track_caller]
pub(crate) fn says(error: &Error, words: &[&str]) {
    let message = error.to_string();
    for word in words {
        assert!(message.contains(word), "it does not say {word:?}: {message}");
    }
}

/// Asks until the answer is yes, or fails the test with what was waited for.
pub(crate) async fn eventually<F>(what: &str, mut ask: impl FnMut() -> F)
where
    F: Future<Output = bool>,
{
    let deadline = Instant::now() + PATIENCE;
    while !ask().await {
        assert!(Instant::now() < deadline, "it never came: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
