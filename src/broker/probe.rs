//! Asking whether a server is ready; for starting one of our own.

use std::time::Duration;

use serde_json::{Value, json};

use super::api;
use super::connection::Connection;
use super::options::ConnectOptions;
use crate::error::Result;

/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(2);

async fn connect(url: &str, credentials: Option<&(String, String)>) -> Result<Connection> {
    let mut options = ConnectOptions::new(url)?.request_timeout(PATIENCE).connect_timeout(PATIENCE);
    if let Some((user, password)) = credentials {
        options = options.user_password(user, password);
    }
    Connection::open(&options).await
}

/// Whether a client can connect and, if that is wanted, JetStream answers.
pub(crate) async fn probe(
    url: &str,
    credentials: Option<&(String, String)>,
    jetstream: bool,
) -> Result<()> {
    let conn = connect(url, credentials).await?;
    if jetstream {
        api::account_info(&conn).await?;
    }
    Ok(())
}

/// Whether a stream with that many copies can be made; it is removed again.
pub(crate) async fn probe_replicas(url: &str, replicas: usize) -> Result<()> {
    const STREAM: &str = "TIDEMILL_PROBE";
    let conn = connect(url, None).await?;
    let config = json!({
        "name": STREAM, "subjects": ["tidemill-probe"], "storage": "memory",
        "retention": "limits", "discard": "old", "num_replicas": replicas,
    });
    let made = api::call::<Value>(&conn, &format!("STREAM.CREATE.{STREAM}"), Some(&config)).await?;
    made.map_err(|error| error.into_error("make a stream with a copy on each server"))?;
    let gone = api::call::<Value>(&conn, &format!("STREAM.DELETE.{STREAM}"), None).await?;
    gone.map(drop).map_err(|error| error.into_error("remove that stream"))
}
