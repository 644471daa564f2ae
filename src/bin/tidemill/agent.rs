//! An agent runtime's jobs as built-in kinds: where its runs are kept, and who gets its events.

use std::convert::Infallible;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use tidemill::agent::{
    EventPublisher, JetStreamPublisher, JetStreamRunStore, PersistEvent, PublishExternalEvent,
    Publishers, RunStore, TestJob, persisting, publishing,
};
use tidemill::{Client, Job, WorkerBuilder};

use crate::exit::UsageError;

/// How a worker does an agent runtime's jobs: all three kinds, if one of these is given.
#[derive(Debug, Args)]
#[command(next_help_heading = "Agent runtime")]
pub(crate) struct AgentArgs {
    /// Work an agent runtime's jobs, with runs kept there: jetstream (the default if events are sent
    /// somewhere), or postgres://USER@HOST/DATABASE; the same for all workers of a queue
    #[arg(long, value_name = "STORE", env = "TIDEMILL_RUN_STORE", hide_env_values = true)]
    run_store: Option<Url>,
    /// Work an agent runtime's jobs, with events sent there: nats:SUBJECT, redis://HOST/0#STREAM, or
    /// none (the default if runs are kept somewhere); the same for all workers of a queue
    #[arg(long, value_name = "TO", env = "TIDEMILL_EVENT_PUBLISHER", hide_env_values = true)]
    event_publisher: Option<Url>,
    /// Keep about that many events in the Redis stream; default: all
    #[arg(long, value_name = "COUNT", requires = "event_publisher")]
    event_limit: Option<usize>,
}

/// The same, understood. A worker does all of its kinds: one that is left out would be buried as
/// unknown, where no other worker does it.
pub(crate) struct Agent {
    store: Store,
    publisher: Publisher,
}

#[derive(Clone, Debug)]
enum Store {
    JetStream,
    Postgres(Url),
}

#[derive(Clone, Debug)]
enum Publisher {
    Nobody,
    JetStream(String),
    Redis { url: Url, stream: String, limit: Option<usize> },
}

/// A URL, or another word for a place. It may have a password in it, and is never shown.
#[derive(Clone)]
struct Url(String);

impl FromStr for Url {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_owned()))
    }
}

impl std::fmt::Debug for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Url(…)")
    }
}

impl FromStr for Store {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "jetstream" {
            return Ok(Self::JetStream);
        }
        if !["postgres://", "postgresql://"].iter().any(|scheme| text.starts_with(scheme)) {
            return Err("use jetstream or postgres://USER@HOST/DATABASE".to_owned());
        }
        Ok(Self::Postgres(Url(text.to_owned())))
    }
}

impl FromStr for Publisher {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::Nobody);
        }
        if let Some(subject) = text.strip_prefix("nats:") {
            return Ok(Self::JetStream(subject.to_owned()));
        }
        let schemes = ["redis://", "rediss://", "redis+unix://"];
        let stream = match text.split_once('#') {
            Some((_, stream)) if schemes.iter().any(|scheme| text.starts_with(scheme)) => stream,
            _ => "",
        };
        if stream.is_empty() {
            return Err("use nats:SUBJECT, redis://HOST/0#STREAM or none".to_owned());
        }
        let url = &text[..text.len() - stream.len() - 1];
        Ok(Self::Redis { url: Url(url.to_owned()), stream: stream.to_owned(), limit: None })
    }
}

impl AgentArgs {
    /// What they say; `None` where none is given.
    pub(crate) fn read(&self) -> Result<Option<Agent>, UsageError> {
        if self.run_store.is_none() && self.event_publisher.is_none() {
            return Ok(None);
        }
        let store = self.run_store.as_ref().map_or(Ok(Store::JetStream), |it| it.0.parse());
        let publisher =
            self.event_publisher.as_ref().map_or(Ok(Publisher::Nobody), |it| it.0.parse());
        let mut agent = Agent {
            store: store.map_err(|rule: String| UsageError(format!("--run-store: {rule}")))?,
            publisher: publisher
                .map_err(|rule: String| UsageError(format!("--event-publisher: {rule}")))?,
        };
        match &mut agent.publisher {
            Publisher::Redis { limit, .. } => *limit = self.event_limit,
            Publisher::Nobody | Publisher::JetStream(_) if self.event_limit.is_some() => {
                let rule =
                    "--event-limit is for a Redis stream: give a JetStream stream its own limits";
                return Err(UsageError(rule.to_owned()));
            }
            Publisher::Nobody | Publisher::JetStream(_) => {}
        }
        Ok(Some(agent))
    }
}

impl Agent {
    /// The kinds that are worked.
    pub(crate) const KINDS: [&str; 3] =
        [PersistEvent::KIND, PublishExternalEvent::KIND, TestJob::KIND];

    /// A worker that works them also; stores and publishers are connected to first.
    pub(crate) async fn apply(
        &self,
        client: &Client,
        worker: WorkerBuilder,
    ) -> anyhow::Result<WorkerBuilder> {
        let store = self.store.open(client).await.context("cannot open the run store")?;
        let publishers = Publishers::new();
        let publisher = self.publisher.open(client).await;
        publishers.set(publisher.context("cannot open the event publisher")?);
        Ok(publishing(persisting(worker, store), publishers))
    }
}

impl Store {
    async fn open(&self, client: &Client) -> anyhow::Result<Arc<dyn RunStore>> {
        match self {
            Self::JetStream => Ok(Arc::new(JetStreamRunStore::open(client).await?)),
            Self::Postgres(url) => {
                Ok(Arc::new(tidemill::agent::PostgresRunStore::connect(&url.0).await?))
            }
        }
    }
}

impl Publisher {
    async fn open(&self, client: &Client) -> anyhow::Result<Option<Arc<dyn EventPublisher>>> {
        match self {
            Self::Nobody => Ok(None),
            Self::JetStream(subject) => {
                Ok(Some(Arc::new(JetStreamPublisher::new(client, subject)?)))
            }
            Self::Redis { url, stream, limit } => {
                let connecting = tidemill::agent::RedisStreamsPublisher::connect(&url.0, stream);
                let publisher = connecting.await.map_err(|error| anyhow::anyhow!(error))?;
                Ok(Some(Arc::new(match limit {
                    Some(entries) => publisher.max_len(*entries),
                    None => publisher,
                })))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_and_publishers_are_told_by_their_schemes() {
        assert!(matches!("jetstream".parse(), Ok(Store::JetStream)));
        assert!("postgres://localhost/runs".parse::<Store>().is_ok());
        assert!("mysql://localhost".parse::<Store>().expect_err("unknown").contains("postgres://"));
        assert!(matches!("nats:events.agent".parse(), Ok(Publisher::JetStream(_))));
        assert!(matches!("redis://:secret@h/0#events".parse(),
            Ok(Publisher::Redis { url, stream, .. }) if url.0 == "redis://:secret@h/0" && stream == "events"));
        let parsed = "redis://:secret@h/0#events".parse::<Publisher>().expect("a publisher");
        assert!(!format!("{parsed:?}").contains("secret"));
        for bad in ["redis://h/0", "redis://h/0#", "http://h#events", "some"] {
            assert!(bad.parse::<Publisher>().is_err(), "{bad}");
        }
    }
}
