//! Jobs to measure with, and workers for them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use indicatif::ProgressBar;
use tidemill::{Client, Handler, HandlerResult, NewJob, Priority, Queue, Running, Worker};
use tokio::sync::Notify;
use tokio::time::sleep;

use super::Bench;

/// The kind of most jobs here.
pub(super) const KIND: &str = "bench";

/// Jobs that are enqueued at once.
const CHUNK: u64 = 10_000;

/// How often progress is shown.
const SHOW_EVERY: Duration = Duration::from_millis(100);

/// Counts what handlers have done, and tells when it is enough.
#[derive(Default)]
pub(super) struct Count {
    done: AtomicU64,
    enough: u64,
    told: Notify,
}

impl Count {
    pub(super) fn until(enough: u64) -> Arc<Self> {
        Arc::new(Self { enough, ..Self::default() })
    }

    pub(super) fn one(&self) {
        if self.done.fetch_add(1, Ordering::Relaxed) + 1 == self.enough {
            self.told.notify_one();
        }
    }

    /// Waits for the last, and shows how far it is.
    pub(super) async fn reached(&self, bar: &ProgressBar) {
        bar.set_length(self.enough);
        let show = async {
            loop {
                bar.set_position(self.done.load(Ordering::Relaxed));
                sleep(SHOW_EVERY).await;
            }
        };
        tokio::select! {
            () = self.told.notified() => {}
            () = show => {}
        }
    }
}

/// When a job should have been enqueued: the first bytes of its payload, as nanoseconds since the
/// measurement began. What a slow moment holds up is so counted as slow too.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stamps(Instant);

impl Stamps {
    pub(super) const DIGITS: usize = 16;

    pub(super) fn from_now() -> Self {
        Self(Instant::now())
    }

    /// A payload that says when it should have been enqueued.
    pub(super) fn payload(self, moment: Instant, bytes: usize) -> Bytes {
        let nanos = moment.saturating_duration_since(self.0).as_nanos();
        let mut payload = format!("{nanos:0width$}", width = Self::DIGITS).into_bytes();
        payload.resize(bytes.max(Self::DIGITS), b'x');
        payload.into()
    }

    /// How long ago that was; `None` for a payload without a stamp.
    pub(super) fn since(self, stamp: &[u8]) -> Option<Duration> {
        let digits = std::str::from_utf8(stamp.get(..Self::DIGITS)?).ok()?;
        let nanos = digits.parse().ok()?;
        Some(self.0.elapsed().saturating_sub(Duration::from_nanos(nanos)))
    }
}

impl Bench {
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
        self.fill_with(jobs, || self.job(payload.clone()).priority(priority)).await
    }

    pub(super) async fn fill_with(
        &self,
        jobs: u64,
        job: impl Fn() -> NewJob,
    ) -> anyhow::Result<()> {
        self.bar.set_length(jobs);
        let mut left = jobs;
        while left > 0 {
            let count = left.min(CHUNK);
            for stored in self.client.enqueue_many((0..count).map(|_| job())).await {
                stored?;
            }
            left -= count;
            self.bar.set_position(jobs - left);
        }
        Ok(())
    }

    /// A worker with these handlers.
    pub(super) async fn worker(
        &self,
        handlers: impl IntoIterator<Item = Handler>,
    ) -> anyhow::Result<Working> {
        let (client, queue) = (&self.client, &self.queue);
        let running = start_worker(client, queue, self.args.concurrency, handlers).await?;
        Ok(self.left.keep(running))
    }

    /// A worker that does nothing but count.
    pub(super) async fn no_op_worker(&self, count: &Arc<Count>) -> anyhow::Result<Working> {
        let count = count.clone();
        let handler = Handler::raw(KIND, move |_, _| {
            count.one();
            async { HandlerResult::Ok(None) }
        });
        let handler = match self.args.no_completions {
            true => handler.without_completions(),
            false => handler,
        };
        self.worker([handler]).await
    }
}

pub(super) async fn start_worker(
    client: &Client,
    queue: &Queue,
    concurrency: usize,
    handlers: impl IntoIterator<Item = Handler>,
) -> anyhow::Result<Running> {
    let worker = Worker::builder(client).queue(queue.as_str()).concurrency(concurrency);
    let worker = handlers.into_iter().fold(worker, |worker, handler| worker.handler(handler));
    Ok(worker.build()?.start().await?)
}

/// Workers of measurements that were broken off.
#[derive(Clone, Default)]
pub(super) struct Left(Arc<Mutex<Vec<Running>>>);

impl Left {
    /// Has a worker drained, by its measurement or in the end.
    pub(super) fn keep(&self, running: Running) -> Working {
        Working { running: Some(running), left: self.clone() }
    }

    /// Drains them all: they are not to work a queue that is taken away.
    pub(super) async fn drain(&self) {
        let left = std::mem::take(&mut *self.all());
        for running in left {
            running.drain().await;
        }
    }

    fn all(&self) -> MutexGuard<'_, Vec<Running>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A worker of a measurement.
pub(super) struct Working {
    running: Option<Running>,
    left: Left,
}

impl Working {
    pub(super) async fn drain(mut self) {
        if let Some(running) = self.running.take() {
            running.drain().await;
        }
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.left.all().extend(self.running.take());
    }
}

/// A handler that takes its time.
pub(super) fn sleeping(takes: Duration) -> Handler {
    Handler::raw(KIND, move |_, _| async move {
        sleep(takes).await;
        HandlerResult::Ok(None)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_read_from_the_payload() {
        let stamps = Stamps::from_now();
        let payload = stamps.payload(stamps.0, 256);
        assert_eq!(payload.len(), 256);
        assert!(stamps.since(&payload).expect("stamped") <= stamps.0.elapsed());
        assert_eq!(stamps.payload(stamps.0 + Duration::from_nanos(7), 0), "0000000000000007");
        assert_eq!(stamps.since(b"too short"), None);
        assert_eq!(stamps.since(&[b'x'; 256]), None);
    }
}
