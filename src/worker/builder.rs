//! Configuring a worker.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::context::JobContext;
use super::control::CancelledRuns;
use super::handler::{Handler, HandlerResult, Middleware, Next};
use super::health::{Place, Reprovision, Supervision};
use super::lanes::{Lanes, Order};
use super::park::DEFAULT_PARK_OVER;
use super::record::Recorder;
use super::settle::Settler;
use super::unknown::DEFAULT_UNKNOWN_KIND_GRACE;
use super::{QueueState, Shared, Worker};
use crate::broker::Announcement;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::kind::Job;
use crate::outcome::JobError;
use crate::priority::{MAX_WEIGHT, Weights};
use crate::seal::SealKeys;
use crate::sign::TrustedKeys;
use crate::token::{Kind, Queue};

/// How many jobs a worker runs at once unless told otherwise.
pub const DEFAULT_CONCURRENCY: usize = 16;

/// How long running jobs may go on when a worker drains.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(25);

/// The most jobs that a worker can run at once.
const MAX_CONCURRENCY: usize = 100_000;

/// The most queues that one worker can serve.
const MAX_QUEUES: usize = 64;

/// A worker being configured. A mistake comes out in [`WorkerBuilder::build`].
#[must_use = "a worker does nothing until it is built and started"]
pub struct WorkerBuilder {
    client: Client,
    name: Option<String>,
    queues: Vec<(String, u32)>,
    handlers: Vec<Handler>,
    middleware: Vec<Middleware>,
    concurrency: usize,
    weights: Weights,
    order: Order,
    grace: Duration,
    unknown_kind_grace: Duration,
    park_over: Duration,
    seal_keys: Option<SealKeys>,
    trusted: Vec<(String, TrustedKeys)>,
    reprovision: Reprovision,
}

impl WorkerBuilder {
    pub(super) fn new(client: &Client) -> Self {
        Self {
            client: client.clone(),
            name: None,
            queues: Vec::new(),
            handlers: Vec::new(),
            middleware: Vec::new(),
            concurrency: DEFAULT_CONCURRENCY,
            weights: Weights::default(),
            order: Order::default(),
            grace: DEFAULT_GRACE,
            unknown_kind_grace: DEFAULT_UNKNOWN_KIND_GRACE,
            park_over: DEFAULT_PARK_OVER,
            seal_keys: client.seal_keys().cloned(),
            trusted: Vec::new(),
            reprovision: Reprovision::default(),
        }
    }

    /// A name for records and the registry. Default: `w-` and a few random letters.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Works this queue, with weight 1. Without any, the worker works `default`.
    pub fn queue(self, queue: impl Into<String>) -> Self {
        self.weighted_queue(queue, 1)
    }

    /// Works this queue with a weight: of two queues that both have jobs, one of weight 2 is served
    /// twice as often as one of weight 1, whatever the priorities in them.
    pub fn weighted_queue(mut self, queue: impl Into<String>, weight: u32) -> Self {
        self.queues.push((queue.into(), weight));
        self
    }

    /// Adds an async function for a kind: see [`Handler::new`].
    pub fn handle<J, F, Fut, R, E>(self, function: F) -> Self
    where
        J: Job,
        F: Fn(J, JobContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, E>> + Send + 'static,
        R: Serialize,
        E: Into<JobError>,
    {
        self.handler(Handler::new(function))
    }

    /// Adds a handler with limits of its own.
    pub fn handler(mut self, handler: Handler) -> Self {
        self.handlers.push(handler);
        self
    }

    /// Puts a function around all handlers; the first one added is the outermost.
    pub fn middleware<F, Fut>(mut self, function: F) -> Self
    where
        F: Fn(JobContext, Next) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = HandlerResult> + Send + 'static,
    {
        self.middleware.push(Middleware::new(function));
        self
    }

    /// How many jobs run at once. Default [`DEFAULT_CONCURRENCY`].
    pub fn concurrency(mut self, jobs: usize) -> Self {
        self.concurrency = jobs;
        self
    }

    /// The weights of the priorities. Default 8:4:2:1.
    pub fn weights(mut self, weights: Weights) -> Self {
        self.weights = weights;
        self
    }

    /// Whether priorities are served by weight or strictly. Default by weight.
    pub fn order(mut self, order: Order) -> Self {
        self.order = order;
        self
    }

    /// How long running jobs may go on when the worker drains. Default [`DEFAULT_GRACE`].
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// How long a job is kept whose kind no live worker knows. Default
    /// [`DEFAULT_UNKNOWN_KIND_GRACE`].
    pub fn unknown_kind_grace(mut self, grace: Duration) -> Self {
        self.unknown_kind_grace = grace;
        self
    }

    /// Up to which delay a job that is put off waits on its lane; beyond, it becomes a timer of the
    /// broker's, which costs the lane nothing while it waits. Default [`DEFAULT_PARK_OVER`].
    pub fn park_over(mut self, delay: Duration) -> Self {
        self.park_over = delay;
        self
    }

    /// Opens sealed jobs with these keys, and seals their results with the current one. Default: the
    /// client's. A job that they do not open is buried, with the reason `unsealable`.
    #[cfg(feature = "seal")]
    pub fn seal_keys(mut self, keys: SealKeys) -> Self {
        self.seal_keys = Some(keys);
        self
    }

    /// Takes only jobs of this queue that one of these keys has signed. Others are not run: they are
    /// buried, with the reason `unsigned` or `bad_signature`. All workers of the queue have to say so,
    /// since any of them may get a job.
    ///
    /// Each job is looked up before it runs, so that one that has ended does not run again when somebody
    /// publishes it once more.
    pub fn require_signature(mut self, queue: impl Into<String>, trusted: TrustedKeys) -> Self {
        self.trusted.push((queue.into(), trusted));
        self
    }

    /// What is done about streams and consumers that vanish while the worker works. Default
    /// [`Reprovision::Never`]: it says so, waits, and goes on when they are there again.
    pub fn reprovision(mut self, reprovision: Reprovision) -> Self {
        self.reprovision = reprovision;
        self
    }

    /// Checks the configuration.
    ///
    /// # Errors
    /// `is_invalid`, naming the setting: a bad queue or kind, two handlers for a kind, no handler at
    /// all, a weight or a concurrency out of bounds.
    pub fn build(self) -> Result<Worker> {
        let queues = self.checked_queues()?;
        let mut trusted = self.checked_trust(&queues)?;
        let handlers = self.checked_handlers()?;
        if !(1..=MAX_CONCURRENCY).contains(&self.concurrency) {
            return Err(Error::invalid(format!(
                "concurrency is {}: use 1 to {MAX_CONCURRENCY}",
                self.concurrency
            )));
        }
        let worker = self.name.unwrap_or_else(fresh_name);
        let announcement = Announcement {
            worker: worker.clone(),
            namespace: self.client.namespace().clone(),
            queues: queues.iter().map(|(queue, _)| queue.clone()).collect(),
            kinds: handlers.keys().cloned().collect(),
            concurrency: self.concurrency,
        };
        let queue_weights: Vec<u32> = queues.iter().map(|(_, weight)| *weight).collect();
        let queues: Vec<QueueState> = queues
            .into_iter()
            .map(|(queue, _)| QueueState::new(&self.client, trusted.remove(&queue), queue))
            .collect();
        let (settler, settlements) = Settler::new();
        let recorder = Recorder {
            conn: self.client.conn().clone(),
            namespace: self.client.namespace().clone(),
            clock: self.client.clock().clone(),
            worker,
            streams: queues.iter().map(|queue| queue.streams.clone()).collect(),
            seal_keys: self.seal_keys,
        };
        let places = queues
            .iter()
            .map(|queue| Place { queue: queue.name.clone(), streams: queue.streams.clone() });
        let supervision = Supervision::new(
            self.client.namespace().clone(),
            places.collect(),
            self.reprovision,
            self.client.clock().clone(),
        );
        let slots = self.concurrency;
        let lanes = Lanes::new(&queue_weights, &self.weights, self.order, slots, Instant::now());
        let shared = Shared {
            conn: self.client.conn().clone(),
            clock: self.client.clock().clone(),
            namespace: self.client.namespace().clone(),
            queues,
            handlers,
            middleware: self.middleware.into(),
            unknown_kind_grace: self.unknown_kind_grace,
            park_over: self.park_over,
            lanes: Mutex::new(lanes),
            has_work: Notify::new(),
            leases: Arc::default(),
            cancelled: CancelledRuns::default(),
            recorder: Arc::new(recorder),
            supervision: Arc::new(supervision),
            settler,
            stop_fetching: CancellationToken::new(),
            tasks: TaskTracker::new(),
            client: self.client,
        };
        Ok(Worker { shared: Arc::new(shared), settlements, grace: self.grace, announcement })
    }

    fn checked_queues(&self) -> Result<Vec<(Queue, u32)>> {
        if self.queues.is_empty() {
            return Ok(vec![(Queue::default(), 1)]);
        }
        if self.queues.len() > MAX_QUEUES {
            return Err(Error::invalid(format!(
                "the worker has {} queues: use at most {MAX_QUEUES}",
                self.queues.len()
            )));
        }
        let mut checked: Vec<(Queue, u32)> = Vec::new();
        for (name, weight) in &self.queues {
            let queue = Queue::new(name)?;
            if !(1..=MAX_WEIGHT).contains(weight) {
                return Err(Error::invalid(format!(
                    "the weight of queue {queue} is {weight}: use 1 to {MAX_WEIGHT}"
                )));
            }
            if checked.iter().any(|(known, _)| *known == queue) {
                return Err(Error::invalid(format!("queue {queue} is given twice")));
            }
            checked.push((queue, *weight));
        }
        Ok(checked)
    }

    fn checked_trust(&self, queues: &[(Queue, u32)]) -> Result<HashMap<Queue, TrustedKeys>> {
        let mut checked = HashMap::new();
        for (name, trusted) in &self.trusted {
            let queue = Queue::new(name)?;
            if queues.iter().all(|(known, _)| *known != queue) {
                return Err(Error::invalid(format!(
                    "signatures are required of queue {queue}, which this worker does not work"
                )));
            }
            if checked.insert(queue.clone(), trusted.clone()).is_some() {
                return Err(Error::invalid(format!(
                    "signatures are required of queue {queue} twice: name all its keys at once"
                )));
            }
        }
        Ok(checked)
    }

    fn checked_handlers(&self) -> Result<HashMap<Kind, Handler>> {
        let mut checked = HashMap::new();
        for handler in &self.handlers {
            match checked.entry(handler.kind()?) {
                Entry::Vacant(free) => drop(free.insert(handler.clone())),
                Entry::Occupied(taken) => {
                    return Err(Error::invalid(format!("kind {} has two handlers", taken.key())));
                }
            }
        }
        if checked.is_empty() {
            return Err(Error::invalid("the worker has no handler: add one with handle"));
        }
        Ok(checked)
    }
}

impl QueueState {
    fn new(client: &Client, trusted: Option<TrustedKeys>, name: Queue) -> Self {
        Self {
            streams: client.streams(&name),
            trusted,
            unknown: super::unknown::UnknownKinds::default(),
            memory: super::timing::Memory::default(),
            room: std::array::from_fn(|_| Arc::new(Notify::new())),
            unsettled: super::unsettled::Unsettled::default(),
            name,
        }
    }
}

fn fresh_name() -> String {
    let letters: String = std::iter::repeat_with(fastrand::alphanumeric).take(8).collect();
    format!("w-{}", letters.to_lowercase())
}
