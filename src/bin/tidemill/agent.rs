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

/// What a worker does of an agent runtime's jobs.
#[derive(Debug, Args)]
#[command(next_help_heading = "Agent runtime")]
pub(crate) struct AgentArgs {
    /// Work persist_event and test_job, with runs kept there: jetstream, or
    /// postgres://USER@HOST/DATABASE
    #[arg(long, value_name = "STORE", env = "TIDEMILL_RUN_STORE", hide_env_values = true)]
    run_store: Option<Url>,
    /// Work publish_external_event, with events sent there: nats:SUBJECT, redis://HOST/0#STREAM, or
    /// none
    #[arg(long, value_name = "TO", env = "TIDEMILL_EVENT_PUBLISHER", hide_env_values = true)]
    event_publisher: Option<Url>,
    /// Keep about that many events in the Redis stream; default: all
    #[arg(long, value_name = "COUNT", requires = "event_publisher")]
    event_limit: Option<usize>,
}

/// The same, understood.
pub(crate) struct Agent {
    store: Option<Store>,
    publisher: Option<Publisher>,
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
    /// What they say.
    pub(crate) fn read(&self) -> Result<Agent, UsageError> {
        let store = self.run_store.as_ref().map(|it| it.0.parse()).transpose();
        let publisher = self.event_publisher.as_ref().map(|it| it.0.parse()).transpose();
        let mut agent = Agent {
            store: store.map_err(|rule: String| UsageError(format!("--run-store: {rule}")))?,
            publisher: publisher
                .map_err(|rule: String| UsageError(format!("--event-publisher: {rule}")))?,
        };
        match &mut agent.publisher {
            Some(Publisher::Redis { limit, .. }) => *limit = self.event_limit,
            _ if self.event_limit.is_some() => {
                let rule =
                    "--event-limit is for a Redis stream: give a JetStream stream its own limits";
                return Err(UsageError(rule.to_owned()));
            }
            _ => {}
        }
        Ok(agent)
    }
}

impl Agent {
    /// The kinds that are worked.
    pub(crate) fn kinds(&self) -> Vec<&'static str> {
        let mut kinds = Vec::new();
        if self.store.is_some() {
            kinds.extend([PersistEvent::KIND, TestJob::KIND]);
        }
        if self.publisher.is_some() {
            kinds.push(PublishExternalEvent::KIND);
        }
        kinds
    }

    /// A worker that works them also; stores and publishers are connected to first.
    pub(crate) async fn apply(
        &self,
        client: &Client,
        mut worker: WorkerBuilder,
    ) -> anyhow::Result<WorkerBuilder> {
        if let Some(store) = &self.store {
            let store = store.open(client).await.context("cannot open the run store")?;
            worker = persisting(worker, store);
        }
        if let Some(publisher) = &self.publisher {
            let publishers = Publishers::new();
            let publisher = publisher.open(client).await;
            publishers.set(publisher.context("cannot open the event publisher")?);
            worker = publishing(worker, publishers);
        }
        Ok(worker)
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
