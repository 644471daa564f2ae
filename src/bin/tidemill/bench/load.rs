//! Jobs to measure with, and workers for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tidemill::{Handler, NewJob, Priority, Running, Worker};
use tokio::sync::Notify;

use super::Bench;

/// The kind of all jobs here.
pub(super) const KIND: &str = "bench";

/// Jobs that are enqueued at once.
const CHUNK: u64 = 10_000;

/// Counts what handlers have done, and tells when it is enough.
#[derive(Default)]
pub(super) struct Count {
    done: AtomicU64,
    enough: AtomicU64,
    told: Notify,
}

impl Count {
    pub(super) fn until(enough: u64) -> Arc<Self> {
        Arc::new(Self { enough: enough.into(), ..Self::default() })
    }

    fn one(&self) {
        if self.done.fetch_add(1, Ordering::Relaxed) + 1 == self.enough.load(Ordering::Relaxed) {
            self.told.notify_one();
        }
    }

    /// Waits for the last.
    pub(super) async fn reached(&self) {
        self.told.notified().await;
    }
}

impl Bench<'_> {
    pub(super) fn job(&self, payload: Bytes) -> NewJob {
        NewJob::raw(KIND, payload).queue(&self.queue)
    }

    /// A payload of as many bytes as were asked for.
    pub(super) fn payload(&self) -> Bytes {
        vec![b'x'; self.args.payload].into()
    }

    /// Fills the queue.
    pub(super) async fn fill(&self, jobs: u64, priority: Priority) -> anyhow::Result<()> {
        let payload = self.payload();
        let mut left = jobs;
        while left > 0 {
            let count = left.min(CHUNK);
            let chunk = (0..count).map(|_| self.job(payload.clone()).priority(priority));
            for stored in self.client.enqueue_many(chunk).await {
                stored?;
            }
            left -= count;
        }
        Ok(())
    }

    /// A worker that does nothing but count.
    pub(super) async fn no_op_worker(&self, count: &Arc<Count>) -> anyhow::Result<Running> {
        let count = count.clone();
        let handler = Handler::raw(KIND, move |_, _| {
            count.one();
            async { Ok(None) }
        });
        let worker = Worker::builder(&self.client)
            .queue(self.queue.as_str())
            .concurrency(self.args.concurrency)
            .handler(handler);
        Ok(worker.build()?.start().await?)
    }
}
