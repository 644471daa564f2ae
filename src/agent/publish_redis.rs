//! Events in a Redis stream.

use async_trait::async_trait;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::streams::{StreamAddOptions, StreamTrimStrategy, StreamTrimmingMode};

use super::event::AgentEvent;
use super::publish::{EventPublisher, PublishError};
use crate::token::JobId;

/// Publishes to a Redis stream by `XADD`. An entry has the fields `event`, its JSON, and `job`, by which
/// readers can leave a second one of the same job out.
#[derive(Clone, Debug)]
pub struct RedisStreamsPublisher {
    connection: ConnectionManager,
    key: String,
    max_len: Option<usize>,
}

impl RedisStreamsPublisher {
    /// Connects by a URL such as `redis://127.0.0.1:6379`, and publishes to the stream of this key. A
    /// connection that is lost is made anew.
    ///
    /// # Errors
    /// Where the URL is none, or nobody answers there.
    pub async fn connect(url: &str, key: impl Into<String>) -> Result<Self, PublishError> {
        let client = redis::Client::open(url)?;
        let config = ConnectionManagerConfig::new().set_number_of_retries(1);
        let connection = ConnectionManager::new_with_config(client, config).await?;
        Ok(Self { connection, key: key.into(), max_len: None })
    }

    /// Keeps about that many entries, the oldest going first; all are kept unless it is set.
    #[must_use]
    pub fn max_len(mut self, entries: usize) -> Self {
        self.max_len = Some(entries);
        self
    }
}

#[async_trait]
impl EventPublisher for RedisStreamsPublisher {
    async fn publish(&self, job: &JobId, event: &AgentEvent) -> Result<(), PublishError> {
        let event = serde_json::to_string(event)?;
        let mut options = StreamAddOptions::default();
        if let Some(entries) = self.max_len {
            options = options.trim(StreamTrimStrategy::maxlen(StreamTrimmingMode::Approx, entries));
        }
        let fields = [("event", event.as_str()), ("job", job.as_str())];
        let mut connection = self.connection.clone();
        let _id: Option<String> =
            redis::AsyncCommands::xadd_options(&mut connection, &self.key, "*", &fields, &options)
                .await?;
        Ok(())
    }
}
