//! Handing events to the outside.

use std::error::Error as StdError;
use std::fmt;
use std::sync::{Arc, RwLock};

use async_trait::async_trait;
use bytes::Bytes;

use super::event::AgentEvent;
use crate::broker::Expect;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::token::JobId;
use crate::wire::{Headers, name};

/// Why an event was not published.
pub type PublishError = Box<dyn StdError + Send + Sync>;

/// Hands events to the outside: a broker, a web hook, a log.
#[async_trait]
pub trait EventPublisher: Send + Sync {
    /// Publishes an event. A job may be worked more than once: `job` is then the same, by which an
    /// outside that can may leave the second out.
    ///
    /// # Errors
    /// Whatever went wrong: the job is tried again by its policy.
    async fn publish(&self, job: &JobId, event: &AgentEvent) -> Result<(), PublishError>;
}

/// Publishes to a JetStream subject, whose stream is the user's own. A second one of the same job is
/// left out by the broker as far as the stream's duplicate window reaches.
#[derive(Clone, Debug)]
pub struct JetStreamPublisher {
    client: Client,
    subject: String,
}

impl JetStreamPublisher {
    /// A publisher to this subject.
    ///
    /// # Errors
    /// `is_invalid` for what is no subject to publish to.
    pub fn new(client: &Client, subject: impl Into<String>) -> Result<Self> {
        let subject = subject.into();
        let is_plain = |token: &str| {
            !token.is_empty()
                && !token.contains(|letter: char| letter.is_whitespace() || "*>".contains(letter))
        };
        if !subject.split('.').all(is_plain) {
            return Err(Error::invalid(format!(
                "{subject:?} is no subject to publish to: use words with dots between, without \
                 wildcards"
            )));
        }
        Ok(Self { client: client.clone(), subject })
    }
}

#[async_trait]
impl EventPublisher for JetStreamPublisher {
    async fn publish(&self, job: &JobId, event: &AgentEvent) -> Result<(), PublishError> {
        let headers: Headers = [(name::MESSAGE_ID, job.as_str())].into_iter().collect();
        let body = Bytes::from(serde_json::to_vec(event)?);
        let subject = self.subject.clone();
        self.client.conn().store(subject, &headers, body, Expect::Anything).await?;
        Ok(())
    }
}

/// Publishes to nobody, and has nothing to say against it.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoOpPublisher;

impl NoOpPublisher {
    /// Such a publisher.
    pub const fn new() -> Self {
        Self
    }
}

#[async_trait]
impl EventPublisher for NoOpPublisher {
    async fn publish(&self, _: &JobId, _: &AgentEvent) -> Result<(), PublishError> {
        Ok(())
    }
}

/// Where handlers find the publisher of the moment; it can be set and replaced while they run. Without
/// one, events are done with.
#[derive(Clone, Default)]
pub struct Publishers(Arc<RwLock<Option<Arc<dyn EventPublisher>>>>);

impl Publishers {
    /// With none yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the publisher, in place of the one before; `None` takes it away.
    pub fn set(&self, publisher: Option<Arc<dyn EventPublisher>>) {
        *self.0.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = publisher;
    }

    pub(super) fn get(&self) -> Option<Arc<dyn EventPublisher>> {
        self.0.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }
}

impl fmt::Debug for Publishers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Publishers").field(&self.get().map(|_| "set")).finish()
    }
}
