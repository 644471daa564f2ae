//! A worker at work, and how it stops.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Shared;
use super::health::{Health, HealthWatch};
use super::lease::Stop;
use crate::broker::Registration;
use crate::outcome::Settlement;

/// How long each part of a worker may take to end when draining.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// A started worker. Dropping it does not stop it; [`Running::drain`] does.
#[must_use = "a running worker should be drained before the program ends"]
pub struct Running(Parts);

pub(super) struct Parts {
    pub(super) shared: Arc<Shared>,
    pub(super) grace: Duration,
    pub(super) registration: Registration,
    pub(super) fetching: TaskTracker,
    pub(super) settling: JoinHandle<()>,
    pub(super) background: TaskTracker,
    pub(super) end: CancellationToken,
}

/// How a worker stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Drained {
    /// Jobs that were waiting here and went back to the queue, unstarted.
    pub handed_back: usize,
    /// Whether every running job ended within the grace period. If not, the rest was cancelled and
    /// given back.
    pub in_time: bool,
}

impl Running {
    pub(super) fn new(parts: Parts) -> Self {
        Self(parts)
    }

    /// The worker's name in records and in the registry.
    pub fn name(&self) -> &str {
        &self.0.shared.recorder.worker
    }

    /// How the worker is: what keeps it from working, if anything does.
    pub fn health(&self) -> Health {
        self.0.shared.supervision.health().borrow().clone()
    }

    /// Whether the worker takes jobs of all its queues; see [`Health::is_ready`].
    pub fn is_ready(&self) -> bool {
        self.0.shared.supervision.health().borrow().is_ready()
    }

    /// Follows how the worker is, to its end.
    ///
    /// ```no_run
    /// # async fn example(running: tidemill::Running) {
    /// let mut health = running.watch_health();
    /// while let Some(health) = health.changed().await {
    ///     for trouble in &health.troubles {
    ///         eprintln!("{trouble}");
    ///     }
    /// }
    /// # }
    /// ```
    pub fn watch_health(&self) -> HealthWatch {
        HealthWatch::new(self.0.shared.supervision.health())
    }

    /// Waits until it works no more though nobody told it to stop: its connection has ended for good.
    /// Programs should end then, and be started again.
    pub async fn closed(&self) {
        self.0.shared.stop_fetching.cancelled().await;
    }

    /// Stops without losing, doubling or charging anything.
    ///
    /// 1. Leave the registry, so that nobody counts on this worker.
    /// 2. Stop fetching and starting; what the broker has already sent goes back to it.
    /// 3. Hand back what waits in the buffers: another worker has it at once.
    /// 4. Let running jobs finish within the grace period; leases are kept.
    /// 5. Cancel the rest and give it back, at no cost in attempts.
    /// 6. Settle to the end, with confirmed acks; then end the leases.
    ///
    /// Every step but the fourth takes a few seconds at most, even where the broker is gone: what it
    /// was not told of comes back after `ack_wait`.
    pub async fn drain(self) -> Drained {
        let Parts { shared, grace, registration, fetching, settling, background, end } = self.0;
        shared.supervision.drains();
        let abort_settling = settling.abort_handle();
        ends("the registration", registration.end()).await;
        shared.stop_fetching();
        fetching.close();
        ends("fetching", fetching.wait()).await;
        let handed_back = shared.hand_back().await;
        shared.tasks.close();
        let in_time = timeout(grace, shared.tasks.wait()).await.is_ok();
        if !in_time {
            shared.leases.stop_all(Stop::Draining);
            ends("a handler that was told to stop", shared.tasks.wait()).await;
        }
        // A look-up may have let a job in after the buffers were emptied.
        shared.hand_back().await;
        shared.settler.close();
        if !ends("settling", settling).await {
            abort_settling.abort();
        }
        end.cancel();
        background.close();
        ends("keeping leases", background.wait()).await;
        if let Err(error) = shared.conn.flush().await {
            tracing::debug!(%error, "the connection was not flushed");
        }
        Drained { handed_back, in_time }
    }
}

/// Waits for a part to end, but not for long. Whether it did.
async fn ends(part: &str, ending: impl Future) -> bool {
    let has_ended = timeout(LAST_WORDS, ending).await.is_ok();
    if !has_ended {
        tracing::warn!("{part} did not end in time; its jobs come back after ack_wait");
    }
    has_ended
}

impl Shared {
    /// Gives the jobs in the buffers back to the queue; how many there were.
    async fn hand_back(&self) -> usize {
        let buffered = self.lanes().take_all();
        let count = buffered.len();
        let settled = async {
            for work in buffered {
                self.settle(work, Settlement::Release { delay: Duration::ZERO }).await;
            }
        };
        ends("handing back", settled).await;
        count
    }
}
