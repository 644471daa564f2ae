//! A private nats-server, tried on real ones.

#![cfg(feature = "embedded")]

mod cluster;
mod find;
mod life;
mod orphan;

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, test_kill_process};
use serde_json::Value;
use tokio::time::{Instant, sleep};

/// How long anything that must happen may take.
const DEADLINE: Duration = Duration::from_secs(20);

/// Tries until it succeeds, or gives its last error.
async fn eventually<T>(mut attempt: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match attempt().await {
            Err(_) if Instant::now() < deadline => sleep(Duration::from_millis(5)).await,
            result => return result,
        }
    }
}

async fn eventually_true(what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    eventually(async || if condition() { Ok(()) } else { bail!("not so: {what}") }).await
}

fn pid(id: u32) -> Result<Pid> {
    Pid::from_raw(i32::try_from(id)?).context("a pid is not 0")
}

/// Whether there is no such process, not even one that has ended and waits to be collected.
fn is_gone(id: u32) -> Result<bool> {
    Ok(test_kill_process(pid(id)?).is_err())
}

/// Asks JetStream; an error in the answer is one.
async fn ask(client: &async_nats::Client, subject: &str, body: &str) -> Result<Value> {
    let reply = client.request(subject.to_owned(), body.to_owned().into()).await?;
    let answer: Value = serde_json::from_slice(&reply.payload)?;
    match answer.get("error") {
        Some(error) => bail!("{subject}: {error}"),
        None => Ok(answer),
    }
}

/// Connects, once that works: a client may come before a server that starts again.
async fn connect(url: &str) -> Result<async_nats::Client> {
    let urls: Vec<_> = url.split(',').collect();
    eventually(async || Ok(async_nats::connect(&urls[..]).await?)).await
}

/// Stores one message in a fresh stream.
async fn store_message(url: &str) -> Result<()> {
    let client = connect(url).await?;
    let stream = r#"{"name":"KEPT","subjects":["kept"],"storage":"file"}"#;
    ask(&client, "$JS.API.STREAM.CREATE.KEPT", stream).await?;
    ask(&client, "kept", "a message").await?;
    Ok(())
}

async fn stored_messages(url: &str) -> Result<Value> {
    let client = connect(url).await?;
    let mut info = ask(&client, "$JS.API.STREAM.INFO.KEPT", "").await?;
    Ok(info["state"]["messages"].take())
}
