//! Completions of a group, stored together: one word of the broker for all of them.

use std::sync::atomic::{AtomicBool, Ordering};

use super::record::Recorder;
use super::settle::ToSettle;
use crate::broker::{Connection, Ingest, Ingested};
use crate::outcome::Settlement;

/// The fewest completions that are stored together. One alone is a plain publish, so that latency
/// does not pay for throughput.
const FEWEST: usize = 2;

/// Stores completions together, where the broker and the queue's stream take that.
pub(super) struct Together {
    ingest: Option<Ingest>,
    /// By the worker's list of queues: whether the stream has refused batches.
    refused: Vec<AtomicBool>,
}

/// A group, of which some are completed.
#[derive(Default)]
pub(super) struct Completed {
    /// Their completions are stored.
    pub(super) stored: Vec<ToSettle>,
    /// To be recorded one by one: other settlements, and those of which nothing is known.
    pub(super) rest: Vec<ToSettle>,
}

impl Together {
    /// For a worker of that many queues.
    pub(super) async fn open(conn: &Connection, queues: usize) -> Self {
        let ingest = Ingest::open(conn).await;
        let refused = (0..queues).map(|_| AtomicBool::new(false)).collect();
        Self { ingest, refused }
    }

    /// Stores what can be stored together.
    pub(super) async fn complete(&self, recorder: &Recorder, group: Vec<ToSettle>) -> Completed {
        let Some(ingest) = &self.ingest else {
            return Completed { rest: group, ..Completed::default() };
        };
        let mut completed = Completed::default();
        let mut left = group;
        while let Some(queue) = left.first().map(|item| item.work.lane.queue) {
            let (of_queue, others) =
                left.into_iter().partition(|item| item.work.lane.queue == queue);
            left = others;
            self.complete_of(ingest, recorder, queue, of_queue, &mut completed).await;
        }
        completed
    }

    async fn complete_of(
        &self,
        ingest: &Ingest,
        recorder: &Recorder,
        queue: usize,
        group: Vec<ToSettle>,
        completed: &mut Completed,
    ) {
        let (done, others): (Vec<_>, Vec<_>) = group
            .into_iter()
            .partition(|item| matches!(item.settlement, Settlement::Complete { .. }));
        completed.rest.extend(others);
        let refused = &self.refused[queue];
        if done.len() < FEWEST || refused.load(Ordering::Relaxed) {
            return completed.rest.extend(done);
        }
        let messages: Option<Vec<_>> = done.iter().map(|item| recorder.message_of(item)).collect();
        // What cannot be written says so by itself.
        let Some(messages) = messages else { return completed.rest.extend(done) };
        let count = match ingest.store(messages).await {
            Ingested::Stored(count) => count,
            Ingested::Refused => {
                refused.store(true, Ordering::Relaxed);
                tracing::info!("the results stream takes no batches: completions go one by one");
                0
            }
        };
        let mut done = done.into_iter();
        completed.stored.extend(done.by_ref().take(count));
        completed.rest.extend(done);
    }
}
