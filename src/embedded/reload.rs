//! Has a running server read its configuration anew, and waits until it has.
//!
//! A signal gets no answer. The monitor tells when the configuration in use was loaded, and that
//! changes only when the server has taken a new one.

use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::{sleep, timeout};

use super::command::run;
use super::process::Process;
use crate::error::{Error, ErrorKind, Result};

const PACE: Duration = Duration::from_millis(10);
const DEADLINE: Duration = Duration::from_secs(5);

/// More than a server tells about itself.
const ANSWER_BYTES: u64 = 1 << 20;

/// Asks a server's program whether a configuration can be read at all.
pub(super) async fn check(server: &Path, config: &Path) -> Result<()> {
    run(Command::new(server).arg("-t").arg("-c").arg(config), DEADLINE).await.map(drop)
}

/// Signals, and waits until the new configuration is in force.
pub(super) async fn signal(process: &Process, monitor_url: &str) -> Result<()> {
    let before = loaded_at(monitor_url).await?;
    process.signal(Signal::HUP)?;
    timeout(DEADLINE, changed(monitor_url, &before)).await.map_err(|_| {
        let message = format!("it still has the one from before after {} s", DEADLINE.as_secs());
        Error::new(ErrorKind::Timeout, message)
    })?
}

async fn changed(monitor_url: &str, before: &str) -> Result<()> {
    while loaded_at(monitor_url).await? == before {
        sleep(PACE).await;
    }
    Ok(())
}

#[derive(Deserialize)]
struct Varz {
    config_load_time: String,
}

async fn loaded_at(monitor_url: &str) -> Result<String> {
    let failed = || Error::new(ErrorKind::Unavailable, format!("cannot read {monitor_url}/varz"));
    let answer = timeout(DEADLINE, get(monitor_url, "/varz"))
        .await
        .map_err(|e| failed().because(e))?
        .map_err(|e| failed().because(e))?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let varz: Varz = serde_json::from_str(body).map_err(|e| failed().because(e))?;
    Ok(varz.config_load_time)
}

/// The least of HTTP: version 1.0, where the answer ends with the connection.
async fn get(url: &str, path: &str) -> std::io::Result<String> {
    let address = url.strip_prefix("http://").unwrap_or(url);
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES).read_to_string(&mut answer).await?;
    Ok(answer)
}
