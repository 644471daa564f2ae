//! Starting a server again when it dies.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::Core;
use super::process::Process;

/// A server that dies more often than this within [`WINDOW`] is left alone.
const MAX_RESTARTS: usize = 3;
const WINDOW: Duration = Duration::from_secs(60);

/// The pause before a restart, times the number of restarts of late.
const PAUSE: Duration = Duration::from_millis(200);

/// How often to look whether the server lives.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Watches a server until `end`.
pub(super) async fn run(core: Arc<Core>, end: CancellationToken) {
    let mut restarts = VecDeque::new();
    loop {
        tokio::select! {
            () = end.cancelled() => return,
            how = died(&core) => tracing::warn!(how, "nats-server died"),
        }
        let now = Instant::now();
        restarts.retain(|at| now.saturating_duration_since(*at) < WINDOW);
        if restarts.len() >= MAX_RESTARTS {
            tracing::error!(folder = %core.folder.display(), "nats-server keeps dying; left alone");
            return;
        }
        restarts.push_back(now);
        tokio::select! {
            () = end.cancelled() => return,
            () = sleep(PAUSE * u32::try_from(restarts.len()).unwrap_or(1)) => {}
        }
        let mut process = core.process.lock().await;
        if end.is_cancelled() {
            return;
        }
        match core.launch().await {
            Ok(started) => {
                tracing::info!(url = core.url, "nats-server runs again");
                *process = Some(started);
                core.restarts.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => tracing::error!(%error, "nats-server did not start again"),
        }
    }
}

/// Waits until the server has ended without being asked to.
async fn died(core: &Core) -> String {
    loop {
        {
            let mut process = core.process.lock().await;
            if let Some(how) = process.as_mut().and_then(Process::ended) {
                *process = None;
                return how;
            }
        }
        sleep(LOOK_EVERY).await;
    }
}
