//! A worker at work, and how it stops.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Shared;
use super::lease::Stop;
use crate::broker::Registration;
use crate::outcome::Settlement;

/// How long cancelled handlers and their settlements may take when draining.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// A started worker. Dropping it does not stop it; [`Running::drain`] does.
#[must_use = "a running worker should be drained before the program ends"]
pub struct Running(Parts);

pub(super) struct Parts {
    pub(super) shared: Arc<Shared>,
    pub(super) grace: Duration,
    pub(super) registration: Registration,
    pub(super) fetching: TaskTracker,
    pub(super) dispatching: JoinHandle<()>,
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

    /// Stops without losing, doubling or charging anything.
    ///
    /// 1. Leave the registry, so that nobody counts on this worker.
    /// 2. Stop fetching and starting; what the broker has already sent goes back to it.
    /// 3. Hand back what waits in the buffers: another worker has it at once.
    /// 4. Let running jobs finish within the grace period; leases are kept.
    /// 5. Cancel the rest and give it back, at no cost in attempts.
    /// 6. Settle to the end, with confirmed acks; then end the leases.
    pub async fn drain(self) -> Drained {
        let Parts { shared, grace, registration, fetching, dispatching, settling, background, end } =
            self.0;
        registration.end().await;
        shared.stop_fetching.cancel();
        fetching.close();
        fetching.wait().await;
        // It ends by itself, with at most one slot in its hands.
        let _ = dispatching.await;
        let buffered = shared.lanes().take_all();
        let handed_back = buffered.len();
        for work in buffered {
            shared.settle(work, Settlement::Release { delay: Duration::ZERO }).await;
        }
        shared.tasks.close();
        let in_time = timeout(grace, shared.tasks.wait()).await.is_ok();
        if !in_time {
            shared.leases.stop_all(Stop::Draining);
            if timeout(LAST_WORDS, shared.tasks.wait()).await.is_err() {
                tracing::warn!("some handlers did not stop; their jobs come back after ack_wait");
            }
        }
        // A look-up may have let a job in after the buffers were emptied.
        let late = shared.lanes().take_all();
        for work in late {
            shared.settle(work, Settlement::Release { delay: Duration::ZERO }).await;
        }
        shared.settler.close();
        if timeout(LAST_WORDS, settling).await.is_err() {
            tracing::warn!("some outcomes were not recorded; their jobs come back after ack_wait");
        }
        end.cancel();
        background.close();
        background.wait().await;
        if let Err(error) = shared.conn.flush().await {
            tracing::debug!(%error, "the connection was not flushed");
        }
        Drained { handed_back, in_time }
    }
}
