//! The worker: fetches jobs into lanes, picks weighted-first, runs, settles, and stops cleanly.
//!
//! The order in which things start and stop stands in [`Worker::start`] and [`Running::drain`].

mod admit;
mod arrive;
mod brief;
mod builder;
mod catch_up;
mod context;
mod control;
mod entry;
mod execute;
mod fetch;
mod handler;
mod health;
mod history;
mod job;
mod lanes;
mod lease;
mod leases;
mod panic;
mod park;
mod pause;
mod pick;
mod prefetch;
mod promote;
mod record;
mod running;
mod settle;
#[cfg(test)]
mod simulation;
mod slot;
mod steps;
mod stock;
mod stuck;
mod timing;
mod together;
mod unknown;
mod unreadable;
mod unsettled;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use builder::{DEFAULT_CONCURRENCY, DEFAULT_GRACE, WorkerBuilder};
pub use context::JobContext;
pub use handler::{DEFAULT_TIMEOUT, Handler, HandlerResult, Next};
pub use health::{Effect, Health, HealthWatch, Reprovision, Trouble, TroubleKind};
pub use lanes::Order;
pub use park::DEFAULT_PARK_OVER;
pub use running::{Drained, Running};
pub use unknown::DEFAULT_UNKNOWN_KIND_GRACE;

use self::control::CancelledRuns;
use self::handler::Middleware;
use self::health::Supervision;
use self::job::Work;
use self::lanes::{LaneId, Lanes, MAX_BUFFERED_FOR};
use self::leases::Leases;
use self::record::Recorder;
use self::settle::Settler;
use self::timing::Memory;
use self::unknown::UnknownKinds;
use crate::broker::{Announcement, Clock, Connection, Registration};
use crate::client::Client;
use crate::error::Result;
use crate::outcome::Settlement;
use crate::priority::Priority;
use crate::sign::TrustedKeys;
use crate::token::{Kind, Namespace, Queue};
use crate::topology::StreamNames;

/// How often buffers are searched for jobs that lie too long.
const SWEEP_EVERY: Duration = Duration::from_millis(250);

/// A set of handlers for some queues, ready to work. Start as many, on as many machines, as it
/// takes: they share the work, and none needs a name or an order.
///
/// ```no_run
/// # async fn example(client: tidemill::Client) -> tidemill::Result<()> {
/// # #[derive(serde::Serialize, serde::Deserialize)] struct SendEmail { to: String }
/// # impl tidemill::Job for SendEmail { const KIND: &'static str = "send_email"; }
/// use tidemill::{JobContext, JobError, Worker};
///
/// async fn send_email(job: SendEmail, context: JobContext) -> Result<(), JobError> {
///     println!("to {}, attempt {}", job.to, context.attempt());
///     Ok(())
/// }
///
/// let worker = Worker::builder(&client).queue("default").concurrency(20).handle(send_email);
/// let running = worker.build()?.start().await?;
/// // … until the program is told to stop:
/// running.drain().await;
/// # Ok(())
/// # }
/// ```
pub struct Worker {
    shared: Arc<Shared>,
    settlements: tokio::sync::mpsc::Receiver<settle::ToSettle>,
    grace: Duration,
    announcement: Announcement,
}

/// What all parts of a worker share.
pub(crate) struct Shared {
    client: Client,
    conn: Connection,
    clock: Clock,
    namespace: Namespace,
    queues: Vec<QueueState>,
    handlers: HashMap<Kind, Handler>,
    middleware: Arc<[Middleware]>,
    unknown_kind_grace: Duration,
    /// Delays beyond this become timers.
    park_over: Duration,
    lanes: Mutex<Lanes>,
    /// Told when there is a job for one of those that wait for jobs.
    has_work: Notify,
    leases: Arc<Leases>,
    cancelled: CancelledRuns,
    recorder: Arc<Recorder>,
    supervision: Arc<Supervision>,
    settler: Settler,
    /// Cancelled first: nothing more is fetched or started.
    stop_fetching: CancellationToken,
    /// Look-ups, and slots that run jobs.
    tasks: TaskTracker,
}

/// One of a worker's queues.
struct QueueState {
    name: Queue,
    streams: StreamNames,
    /// Whose jobs alone it takes, where it does not take all.
    trusted: Option<TrustedKeys>,
    unknown: UnknownKinds,
    memory: Memory,
    /// By priority: told when a lane has room.
    room: [Arc<Notify>; 4],
    unsettled: unsettled::Unsettled,
}

impl Worker {
    /// A worker on this connection, to be configured.
    pub fn builder(client: &Client) -> WorkerBuilder {
        WorkerBuilder::new(client)
    }

    /// Starts working.
    ///
    /// What can fail comes first: the queues are made or looked at, and the worker announces itself.
    /// Then its parts start, from the end of a job's way to its beginning, so that each finds the
    /// next one there: settling, leases, running, fetching, promoting.
    ///
    /// # Errors
    /// Where a queue cannot be made or looked at; see [`Client::ensure_queue`].
    pub async fn start(self) -> Result<Running> {
        let Self { shared, settlements, grace, announcement } = self;
        for queue in &shared.queues {
            shared.client.ensure_once(&queue.name).await?;
        }
        let ack_wait = shared.shortest_ack_wait().await?;
        let registration = Registration::new(&shared.conn, &announcement).await?;
        panic::watch();
        let end = CancellationToken::new();
        let background = TaskTracker::new();
        let settling = tokio::spawn(settle::run(shared.clone(), settlements));
        let leases = shared.leases.clone();
        let supervision = shared.supervision.clone();
        let jobs = shared.queues.iter().map(|queue| queue.streams.jobs.clone()).collect();
        background.spawn(leases.keep(
            shared.conn.clone(),
            supervision,
            jobs,
            ack_wait,
            end.clone(),
        ));
        background.spawn(health::keep_link(shared.clone(), end.clone()));
        background.spawn(health::keep_inbox(shared.clone(), end.clone()));
        background.spawn(timing::keep_clock(shared.clone(), end.clone()));
        background.spawn(sweep(shared.clone(), ack_wait, end.clone()));
        for queue in 0..shared.queues.len() {
            background.spawn(control::listen(shared.clone(), queue, ack_wait, end.clone()));
            background.spawn(health::keep_gate(shared.clone(), queue, end.clone()));
            background.spawn(health::mend(shared.clone(), queue, end.clone()));
        }
        let fetching = TaskTracker::new();
        for lane in shared.lane_ids() {
            fetching.spawn(fetch::run(shared.clone(), lane));
        }
        for queue in 0..shared.queues.len() {
            fetching.spawn(promote::run(shared.clone(), queue));
            fetching.spawn(catch_up::run(shared.clone(), queue));
            fetching.spawn(stuck::run(shared.clone(), queue, ack_wait));
        }
        tracing::info!(worker = announcement.worker, "working");
        Ok(Running::new(running::Parts {
            shared,
            grace,
            registration,
            fetching,
            settling,
            background,
            end,
        }))
    }
}

/// Hands back what has lain in a buffer for too long, and has the rest looked for.
async fn sweep(shared: Arc<Shared>, ack_wait: Duration, end: CancellationToken) {
    let longest = MAX_BUFFERED_FOR.min(ack_wait / 3);
    let mut ticks = interval(SWEEP_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = end.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let Some(oldest) = Instant::now().checked_sub(longest) else { continue };
        let (stale, call) = shared.lanes().sweep(oldest);
        shared.call(call);
        for work in stale {
            shared.settle(work, Settlement::Release { delay: Duration::ZERO }).await;
        }
    }
}

impl Shared {
    /// Fetches and starts nothing more.
    fn stop_fetching(&self) {
        self.lanes().close();
        self.stop_fetching.cancel();
    }

    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn lane_ids(&self) -> impl Iterator<Item = LaneId> + use<> {
        (0..self.queues.len())
            .flat_map(|queue| Priority::ALL.map(|priority| LaneId { queue, priority }))
    }

    fn room(&self, lane: LaneId) -> &Arc<Notify> {
        &self.queues[lane.queue].room[lane.priority.index()]
    }

    fn ask(&self, lane: LaneId) -> usize {
        self.lanes().ask(lane, Instant::now())
    }

    fn give_up(&self, lane: LaneId, count: usize) {
        let is_waiting = self.lanes().give_up(lane, count);
        if is_waiting {
            self.room(lane).notify_one();
        }
    }

    fn enter(self: &Arc<Self>, work: Work) {
        let call = self.lanes().enter(work.lane, work);
        self.call(call);
    }

    /// Lets jobs of a queue be fetched and started again.
    fn open_lanes(self: &Arc<Self>, queue: usize) {
        let (refill, call) = self.lanes().open(queue, Instant::now());
        for lane in refill {
            self.room(lane).notify_one();
        }
        self.call(call);
    }

    /// Lets go of a job that is settled, or not ours any more.
    fn release(&self, work: &Work) {
        self.leases.release([&work.job]);
    }
}
