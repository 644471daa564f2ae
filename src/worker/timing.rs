//! Time as the broker has it: its clock, and how long its queues let a worker be silent.

use std::sync::OnceLock;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::{QueueState, Shared};
use crate::broker::{Born, READ_EVERY, consumer_born, kept_for};
use crate::error::Result;
use crate::priority::Priority;
use crate::topology::fences_long_enough;

/// How far back a queue's completions go, by which a key is known to be taken.
#[derive(Debug, Default)]
pub(super) struct Memory {
    kept_for: OnceLock<Duration>,
    warned: OnceLock<()>,
}

impl QueueState {
    /// Says, once, that a key cannot be held for so long as a job asks.
    pub(super) fn warn_of_forgotten_keys(&self, period: Duration) {
        let Some(kept_for) = self.memory.kept_for.get().filter(|kept_for| period > **kept_for)
        else {
            return;
        };
        self.memory.warned.get_or_init(|| {
            let (queue, stream) = (&self.name, &self.streams.results);
            tracing::warn!(
                %queue, stream, max_age = ?kept_for, ?period,
                "completions are kept for less than a unique job's period: its key is free again as \
                 soon as they are gone; raise the stream's max_age"
            );
        });
    }
}

impl Shared {
    /// The shortest `ack_wait` of the worker's queues. Warns of a queue that forgets completions too
    /// soon.
    pub(super) async fn shortest_ack_wait(&self) -> Result<Duration> {
        let mut shortest = Duration::MAX;
        for queue in &self.queues {
            let ack_wait = self.born(queue).await?.ack_wait;
            shortest = shortest.min(ack_wait);
            let Some(age) = kept_for(&self.conn, &queue.streams.results).await? else { continue };
            // One that was started before has seen it; it is not changed while workers work.
            let _ = queue.memory.kept_for.set(age);
            if !fences_long_enough(age, ack_wait) {
                let (queue, stream) = (&queue.name, &queue.streams.results);
                tracing::warn!(
                    %queue, stream, max_age = ?age, ?ack_wait,
                    "completions are kept for less than ten times ack_wait: a job may complete \
                     twice; raise the stream's max_age"
                );
            }
        }
        Ok(shortest)
    }

    /// Looks at a consumer of the queue, which also brings the broker's time.
    pub(super) async fn born(&self, queue: &QueueState) -> Result<Born> {
        let (stream, lane) = (&queue.streams.jobs, Priority::Critical.as_str());
        consumer_born(&self.conn, stream, lane, &self.clock).await
    }
}

/// Keeps the worker's clock at the broker's time until `end`.
pub(super) async fn keep_clock(shared: std::sync::Arc<Shared>, end: CancellationToken) {
    let mut ticks = interval(READ_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = end.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if let Err(error) = shared.born(&shared.queues[0]).await {
            tracing::debug!(%error, "the broker's clock was not read");
        }
    }
}
