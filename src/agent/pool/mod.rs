//! The runtime's pool of jobs, with the verbs of its in-memory one, over a queue.

mod completed;
mod file;
mod take_over;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::broadcast;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use self::completed::Completed;
pub use self::completed::Execution;
pub use self::file::PoolFile;
pub use self::take_over::PoolImport;
use super::background::{BackgroundJob, JobConditions, JobPriority, JobType};
use super::jobs::{persisting, publishing};
use super::publish::{EventPublisher, Publishers};
use super::store::RunStore;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::sign::TrustedKeys;
use crate::token::Queue;
use crate::wire::Scope;
use crate::worker::{DEFAULT_CONCURRENCY, Running, Worker};

/// The pause before the broker is asked again; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The jobs of an agent runtime: as its in-memory pool (`behest` 0.2.2), but kept by the broker, and
/// worked by as many processes as start a pool on the same queue.
///
/// ```no_run
/// # use std::sync::Arc;
/// use tidemill::agent::{
///     JetStreamRunStore, JobConditions, JobPool, JobPriority, JobType, PoolImport,
/// };
/// # async fn example(client: tidemill::Client) -> Result<(), Box<dyn std::error::Error>> {
/// let store = Arc::new(JetStreamRunStore::open(&client).await?);
/// let pool = JobPool::builder(&client, store)
///     .persistence_path("pending_jobs.json")
///     .open()
///     .await?;
/// pool.load_persisted_jobs().await?;
/// pool.start();
///
/// let mut completed = pool.subscribe_completed();
/// let job = JobType::TestJob { message: "hello".into() };
/// let id = pool.schedule(JobPriority::Normal, job, JobConditions::default()).await;
/// assert_eq!(completed.recv().await?.0, id);
/// pool.shutdown().await;
/// # Ok(())
/// # }
/// ```
///
/// What is different, since jobs are not in memory any more:
///
/// - [`schedule`](Self::schedule) and [`enqueue`](Self::enqueue) return when the broker has stored the
///   job. While it cannot be reached they wait.
/// - [`shutdown`](Self::shutdown) leaves in the queue what has not run; there is no file to write. The
///   file of the in-memory pool is taken over by [`load_persisted_jobs`](Self::load_persisted_jobs).
/// - [`len`](Self::len) counts the jobs that are unfinished, those that run just now as well, on
///   whatever machine.
/// - A job that has used up its retries is kept as a dead letter.
/// - Jobs of one priority begin in the order in which they were stored; a higher priority goes first by
///   weight, so that none starves.
pub struct JobPool {
    client: Client,
    queue: Queue,
    store: Arc<dyn RunStore>,
    publishers: Publishers,
    persistence_path: Option<PathBuf>,
    concurrency: usize,
    trusted: Option<TrustedKeys>,
    completed: Completed,
    worker: Mutex<Option<Starting>>,
    /// Ends with the pool.
    end: CancellationToken,
    _ends: DropGuard,
}

/// A worker that is being started, or is.
struct Starting {
    stop: CancellationToken,
    worker: JoinHandle<Option<Running>>,
}

/// A [`JobPool`] being configured.
#[must_use = "a pool does nothing until it is opened"]
pub struct JobPoolBuilder {
    client: Client,
    queue: Queue,
    store: Arc<dyn RunStore>,
    publishers: Publishers,
    persistence_path: Option<PathBuf>,
    concurrency: usize,
    trusted: Option<TrustedKeys>,
}

impl JobPoolBuilder {
    /// The queue; `default` unless set.
    pub fn queue(mut self, queue: Queue) -> Self {
        self.queue = queue;
        self
    }

    /// Who publishes events; nobody unless set, here or by [`JobPool::set_event_publisher`].
    pub fn event_publisher(self, publisher: Arc<dyn EventPublisher>) -> Self {
        self.publishers.set(Some(publisher));
        self
    }

    /// The file of an in-memory pool, for [`JobPool::load_persisted_jobs`].
    pub fn persistence_path(mut self, path: impl Into<PathBuf>) -> Self {
        self.persistence_path = Some(path.into());
        self
    }

    /// How many jobs this process runs at once. Default [`DEFAULT_CONCURRENCY`].
    pub fn concurrency(mut self, jobs: usize) -> Self {
        self.concurrency = jobs;
        self
    }

    /// Has this process run jobs that one of these keys has signed, and bury others. All that work the
    /// queue have to ask for it. What this pool schedules is signed if its client has a signing key, see
    /// [`Client::with_signing_key`].
    pub fn require_signature(mut self, by: TrustedKeys) -> Self {
        self.trusted = Some(by);
        self
    }

    /// Opens the pool; the queue is made where it is missing. Jobs can be scheduled from here on, and
    /// are worked when some process has called [`JobPool::start`].
    ///
    /// # Errors
    /// Those of [`Client::ensure_queue`], and `is_invalid` for a concurrency that cannot be.
    pub async fn open(self) -> Result<Arc<JobPool>> {
        let Self { client, queue, store, publishers, persistence_path, concurrency, trusted } =
            self;
        client.ensure_queue(&queue).await?;
        let end = CancellationToken::new();
        let pool = JobPool {
            client,
            queue,
            store,
            publishers,
            persistence_path,
            concurrency,
            trusted,
            completed: Completed::new(),
            worker: Mutex::default(),
            _ends: end.clone().drop_guard(),
            end,
        };
        pool.build()?;
        Ok(Arc::new(pool))
    }
}

impl JobPool {
    /// A pool to be configured and opened, whose events are persisted in `store`.
    pub fn builder(client: &Client, store: Arc<dyn RunStore>) -> JobPoolBuilder {
        JobPoolBuilder {
            client: client.clone(),
            queue: Queue::default(),
            store,
            publishers: Publishers::new(),
            persistence_path: None,
            concurrency: DEFAULT_CONCURRENCY,
            trusted: None,
        }
    }

    /// Stores a new job, with three retries; its id. Waits while the broker cannot be reached.
    ///
    /// A job that no broker would take, such as one that is too large, or that these credentials may not
    /// enqueue, goes to the log and to [`JobPool::subscribe_completed`], as failed.
    pub async fn schedule(
        &self,
        priority: JobPriority,
        job_type: JobType,
        conditions: JobConditions,
    ) -> Uuid {
        let job = BackgroundJob::new(priority, job_type, conditions);
        let id = job.id;
        self.put(job, true).await;
        id
    }

    /// Stores a job under its own id; once, however often it is called. Otherwise as
    /// [`JobPool::schedule`].
    pub async fn enqueue(&self, job: BackgroundJob) {
        self.put(job, false).await;
    }

    /// Stores a job as [`JobPool::enqueue`] does, but does not wait for long.
    ///
    /// # Errors
    /// Those of [`Client::enqueue`]. After `is_unknown`, calling it again is harmless.
    pub async fn try_enqueue(&self, job: BackgroundJob) -> Result<()> {
        let ready = self.client.protect(job.into_ready(&self.queue)?, Scope::Job)?;
        self.completed.is_read().await;
        self.client.store_once(ready).await.map(drop)
    }

    /// Stores a job, however long the broker is away. Where its id is fresh, nobody else has it, and
    /// only after a failure it may be there already.
    async fn put(&self, job: BackgroundJob, is_fresh: bool) {
        let id = job.id;
        let ready = job.into_ready(&self.queue);
        let ready = match ready.and_then(|ready| self.client.protect(ready, Scope::Job)) {
            Ok(ready) => ready,
            Err(error) => return self.give_up(id, &error),
        };
        self.completed.is_read().await;
        let mut stored = match is_fresh {
            true => self.client.store(ready.clone()).await,
            false => self.client.store_once(ready.clone()).await,
        };
        let mut pause = FIRST_PAUSE;
        while let Err(error) = stored {
            if error.is_invalid() || error.is_too_large() || error.is_permission() {
                return self.give_up(id, &error);
            }
            tracing::warn!(job = %id, %error, "not stored yet; trying again");
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            stored = self.client.store_once(ready.clone()).await;
        }
    }

    fn give_up(&self, id: Uuid, error: &Error) {
        tracing::error!(job = %id, %error, "no job that could be stored");
        self.completed.tell_failed(id, error);
    }

    /// Starts to work the queue in this process. While the broker cannot be reached, it is tried again.
    ///
    /// # Panics
    /// Where the pool is started already, and outside of a Tokio runtime.
    pub fn start(self: &Arc<Self>) {
        let mut worker = self.worker();
        assert!(worker.is_none(), "the job pool is started already");
        let stop = CancellationToken::new();
        let starting = stop.clone().run_until_cancelled_owned(self.clone().until_started());
        *worker = Some(Starting { stop, worker: tokio::spawn(starting) });
    }

    async fn until_started(self: Arc<Self>) -> Running {
        self.completed.is_read().await;
        let mut pause = FIRST_PAUSE;
        loop {
            let started = async { self.build()?.start().await };
            match started.await {
                Ok(running) => return running,
                Err(error) => tracing::warn!(%error, "the job pool has not started; trying again"),
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn build(&self) -> Result<Worker> {
        let mut worker =
            Worker::builder(&self.client).queue(self.queue.as_str()).concurrency(self.concurrency);
        if let Some(trusted) = &self.trusted {
            worker = worker.require_signature(self.queue.as_str(), trusted.clone());
        }
        publishing(persisting(worker, self.store.clone()), self.publishers.clone()).build()
    }

    /// Stops working the queue in this process: jobs that run may end, for 25 s at most; all others
    /// stay in the queue, for other processes or a later start.
    pub async fn shutdown(&self) {
        let Some(Starting { stop, worker }) = self.worker().take() else { return };
        stop.cancel();
        match worker.await {
            Ok(Some(running)) => {
                running.drain().await;
            }
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "the job pool's start failed"),
        }
    }

    /// What becomes of jobs from now on, on whatever machine they are worked: every execution, failed
    /// attempts included. One that is told of as failed may run again.
    ///
    /// Of more than a thousand that are not received, the oldest are dropped, and the receiver is told
    /// how many. Where a worker could not learn whether the record of a failure was stored, that
    /// failure may come twice.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    pub fn subscribe_completed(&self) -> broadcast::Receiver<Execution> {
        self.completed.subscribe(&self.client, &self.queue, &self.end)
    }

    /// Sets who publishes events in this process, in place of the one before.
    pub fn set_event_publisher(&self, publisher: Arc<dyn EventPublisher>) {
        self.publishers.set(Some(publisher));
    }

    /// Takes over the jobs in the file of an in-memory pool, if there is one; see
    /// [`PoolFile::import`] and [`PoolFile::put_aside`]. Where an entry is broken, the file stays.
    ///
    /// Waits while the broker cannot be reached or the queue is full: where the file may have more jobs
    /// than the queue takes, [`start`](Self::start) the pool first.
    ///
    /// # Errors
    /// `is_invalid` where the file cannot be read or is no such file, and those of
    /// [`PoolFile::import`].
    pub async fn load_persisted_jobs(&self) -> Result<PoolImport> {
        let Some(path) = self.persistence_path.as_deref().filter(|path| path.exists()) else {
            return Ok(PoolImport::default());
        };
        let done = PoolFile::read(path, &self.queue)?.import(&self.client).await?;
        for (position, problem) in &done.broken {
            tracing::error!(position, problem, path = %path.display(), "an entry was left out");
        }
        if done.broken.is_empty() {
            PoolFile::put_aside(path)?;
        }
        Ok(done)
    }

    /// How many jobs are unfinished, whatever their kinds: waiting, running, backing off or not yet
    /// due. Waits while the broker cannot be reached.
    pub async fn len(&self) -> usize {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.client.unfinished(&self.queue).await {
                Ok(count) => return usize::try_from(count).unwrap_or(usize::MAX),
                Err(error) => tracing::warn!(%error, "jobs are not counted yet; trying again"),
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Whether no job is unfinished.
    pub async fn is_empty(&self) -> bool {
        self.len().await == 0
    }

    fn worker(&self) -> MutexGuard<'_, Option<Starting>> {
        self.worker.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
