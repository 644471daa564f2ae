//! The producer's side: enqueue, wait for completions, follow records.

mod all;
mod completion;
mod due;
mod enqueue;
mod fence;
mod follow;
mod import;
mod line;
mod many;
mod new_job;
mod protect;
mod resolve;
mod wakes;
mod watch;
mod whereabouts;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use chrono::{DateTime, Utc};

pub use completion::JobHandle;
pub(crate) use due::{Due, Promotion};
pub use enqueue::Enqueue;
pub(crate) use fence::{Fence, fence};
#[cfg(feature = "agent")]
pub(crate) use follow::Bookmark;
pub use follow::{RecordFilter, Since};
pub use import::Import;
pub use new_job::NewJob;
pub(crate) use new_job::Ready;
pub(crate) use protect::sealed_with;
pub(crate) use resolve::{Copied, Settled};
pub use watch::JobEvent;
pub(crate) use whereabouts::Age;

use crate::broker::{self, Clock, ConnectOptions, Connection, Mend, Missing, Provisioned};
use crate::error::{Error, ErrorKind, Result};
use crate::token::{Namespace, Queue};
use crate::topology::{LEVEL_CRON, QueueConfig, StreamNames};

/// The oldest server that has what we need.
const OLDEST_SERVER: (u32, u32, u32) = (2, 12, 0);

/// A connection to NATS, seen as a place for jobs. Cheap to clone; all clones share the connection.
///
/// ```no_run
/// # async fn example() -> tidemill::Result<()> {
/// # #[derive(serde::Serialize, serde::Deserialize)] struct SendEmail { to: String }
/// # impl tidemill::Job for SendEmail { const KIND: &'static str = "send_email"; }
/// use tidemill::{Client, ConnectOptions, Priority};
///
/// let client = Client::connect(ConnectOptions::new("nats://127.0.0.1:4222")?).await?;
/// let job = client
///     .enqueue(SendEmail { to: "a@example.com".into() })
///     .priority(Priority::High)
///     .max_retries(5)
///     .await?;
/// println!("{} ended as {}", job.id(), job.completion().await?.status);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Client {
    conn: Connection,
    clock: Clock,
    namespace: Namespace,
    queue_config: Arc<QueueConfig>,
    /// Whether somebody chose that configuration. Who did not does not mind another one.
    is_configured: bool,
    whole: Arc<Whole>,
    keys: protect::Keys,
}

/// Queues of a namespace that were seen whole, and how often.
#[derive(Default)]
struct Whole {
    seen: Mutex<HashMap<Queue, u64>>,
    /// Held while a queue is being made because a job found no place, so that of hundreds of jobs
    /// in flight one does it for all.
    making: tokio::sync::Mutex<()>,
}

impl Whole {
    fn times(&self, queue: &Queue) -> u64 {
        self.seen().get(queue).copied().unwrap_or_default()
    }

    fn add(&self, queue: &Queue) {
        *self.seen().entry(queue.clone()).or_default() += 1;
    }

    fn forget(&self, queue: &Queue) {
        self.seen().remove(queue);
    }

    fn seen(&self) -> MutexGuard<'_, HashMap<Queue, u64>> {
        self.seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Client {
    /// Connects, in the namespace `tidemill`.
    ///
    /// # Errors
    /// `is_invalid` where a file cannot be read or used, `is_unavailable` where nobody answers or
    /// TLS fails, `is_permission` where the credentials or the client certificate are refused,
    /// `is_unsupported` where the server is older than 2.12.
    pub async fn connect(options: ConnectOptions) -> Result<Self> {
        let conn = Connection::open(&options).await?;
        let (major, minor, patch) = conn.server_version();
        if (1, 0, 0) <= (major, minor, patch) && (major, minor, patch) < OLDEST_SERVER {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("nats-server is {major}.{minor}.{patch}: tidemill needs 2.12 or newer"),
            ));
        }
        Ok(Self {
            conn,
            clock: Clock::new(Utc::now()),
            namespace: Namespace::default(),
            queue_config: Arc::default(),
            is_configured: false,
            whole: Arc::default(),
            keys: protect::Keys::default(),
        })
    }

    /// The same connection in another namespace.
    #[must_use]
    pub fn with_namespace(mut self, namespace: Namespace) -> Self {
        self.namespace = namespace;
        self.whole = Arc::default();
        self
    }

    /// The same connection with another configuration for queues that it has to make, or compares.
    #[must_use]
    pub fn with_queue_config(mut self, config: QueueConfig) -> Self {
        self.queue_config = Arc::new(config);
        self.is_configured = true;
        self.whole = Arc::default();
        self
    }

    /// The namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The version of the server, as `(major, minor, patch)`.
    pub fn server_version(&self) -> (u32, u32, u32) {
        self.conn.server_version()
    }

    /// Makes a queue's streams and consumers where they are missing, and tells where they differ
    /// from [`QueueConfig`]; what is there is left as it is. Repeating it is harmless.
    ///
    /// Enqueueing to a queue and working it do this by themselves the first time.
    ///
    /// # Errors
    /// `is_unsupported` where JetStream is off, `is_permission` where these credentials may not look
    /// at streams or make them, `is_full` where the account has no room for the configured sizes.
    pub async fn ensure_queue(&self, queue: &Queue) -> Result<Provisioned> {
        let report = self.provision(queue, Missing::Make).await.map_err(|error| {
            let message = if error.is_permission() {
                format!(
                    "queue {queue} may be missing, and these credentials may not set it up: {error}"
                )
            } else if error.is_unavailable() || error.is_unknown() {
                format!("whether queue {queue} is there cannot be seen just now: {error}")
            } else {
                format!("queue {queue} cannot be set up: {error}")
            };
            let place = error.place().map(str::to_owned);
            let told = Error::new(error.kind(), message).because(error);
            match place {
                Some(place) => told.at(place),
                None => told,
            }
        })?;
        for made in &report.created {
            tracing::info!(%queue, made, "set up");
        }
        self.whole.add(queue);
        Ok(report)
    }

    /// Makes the consumers that a queue lacks, and no stream.
    pub(crate) async fn ensure_consumers(&self, queue: &Queue) -> Result<Provisioned> {
        let report = self.provision(queue, Missing::MakeConsumers).await?;
        for made in &report.created {
            tracing::info!(%queue, made, "made again");
        }
        Ok(report)
    }

    /// The consumers of a queue that are not as they have to be.
    pub(crate) async fn consumers_to_mend(&self, queue: &Queue) -> Result<Vec<Mend>> {
        let Self { conn, namespace, queue_config, .. } = self;
        broker::to_mend(conn, namespace, queue, queue_config).await
    }

    /// What [`Client::ensure_queue`] would make, and where what is there differs; nothing is made.
    ///
    /// # Errors
    /// `is_unsupported` where JetStream is off, `is_permission` where these credentials may not look
    /// at streams.
    pub async fn plan_queue(&self, queue: &Queue) -> Result<Provisioned> {
        self.provision(queue, Missing::Tell).await
    }

    async fn provision(&self, queue: &Queue, missing: Missing) -> Result<Provisioned> {
        let Self { conn, namespace, queue_config, clock, .. } = self;
        broker::ensure(conn, namespace, queue, queue_config, clock, missing).await
    }

    /// [`Client::ensure_queue`], once per queue and client; drift that matters goes to the log.
    pub(crate) async fn ensure_once(&self, queue: &Queue) -> Result<()> {
        if self.whole.times(queue) > 0 {
            return Ok(());
        }
        for drift in self.ensure_queue(queue).await?.drift {
            if self.is_configured || !drift.is_choice() {
                tracing::warn!(%queue, %drift, "the queue is not as it should be");
            }
        }
        Ok(())
    }

    /// [`Client::ensure_queue`] for a job that found no place when the queue had been seen whole
    /// `times` times; nothing to do where somebody else has seen to it since.
    async fn ensure_again(&self, queue: &Queue, times: u64) -> Result<()> {
        let _making = self.whole.making.lock().await;
        if self.whole.times(queue) == times {
            self.ensure_queue(queue).await?;
        }
        Ok(())
    }

    /// The time by the broker's clock, which is what all times of jobs are counted by: this machine's
    /// may be off. It is read of the queue, at most once a minute; where it does not exist, or these
    /// credentials may not look at it, this machine's has to do.
    pub async fn now(&self, queue: &Queue) -> DateTime<Utc> {
        if !self.clock.is_fresh()
            && let Err(error) = self.conn.read_clock(&self.clock, &self.streams(queue).jobs).await
        {
            tracing::debug!(%queue, %error, "the broker's clock was not read");
            self.clock.keep();
        }
        self.clock.now()
    }

    /// The queues of the namespace.
    ///
    /// # Errors
    /// `is_permission` where these credentials may not list streams.
    pub async fn queues(&self) -> Result<Vec<Queue>> {
        broker::queue_names(&self.conn, &self.namespace).await
    }

    /// Sends what is still on its way.
    ///
    /// # Errors
    /// `is_unavailable` where the connection is gone.
    pub async fn flush(&self) -> Result<()> {
        self.conn.flush().await
    }

    /// Sends what is still on its way and closes the connection, for all clones of this client.
    /// Where it is not closed, it ends with the last clone.
    ///
    /// # Errors
    /// `is_unavailable` where not all could be sent; the connection is closed all the same.
    pub async fn close(self) -> Result<()> {
        self.conn.close().await
    }

    /// Says what is missing where the server cannot put out messages again and again.
    pub(crate) async fn require_cron(&self) -> Result<()> {
        if self.conn.api_level().await? >= LEVEL_CRON {
            return Ok(());
        }
        let (major, minor, patch) = self.server_version();
        Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "cron needs nats-server 2.14 or newer: this one is {major}.{minor}.{patch}; all else \
                 works with it"
            ),
        ))
    }

    /// The queue is gone, and to be made again by whoever needs it next.
    pub(crate) fn forget_queue(&self, queue: &Queue) {
        self.whole.forget(queue);
    }

    pub(crate) fn conn(&self) -> &Connection {
        &self.conn
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    pub(crate) fn streams(&self, queue: &Queue) -> StreamNames {
        StreamNames::new(&self.namespace, queue)
    }

    /// How many replicas its queues have, and their storage in the broker's words.
    #[cfg(feature = "agent")]
    pub(crate) fn replicas_and_storage(&self) -> (u8, &'static str) {
        let QueueConfig { replicas, storage, .. } = *self.queue_config;
        (replicas, storage.as_str())
    }

    /// How long an enqueue whose outcome is unknown is asked again.
    pub(crate) fn resolve_window(&self) -> Duration {
        2 * self.queue_config.ack_wait
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}
