//! Many jobs at once, in order: in batches that the broker confirms with one word each, and one by
//! one where that cannot be.

use std::iter::{self, Peekable};

use futures_util::StreamExt;
use futures_util::stream::{self, FuturesOrdered};
use tokio::task::unconstrained;

use super::Client;
use super::completion::JobHandle;
use super::new_job::{NewJob, Ready};
use crate::broker::{Expect, IngestMessage, Ingested, MAX_INGEST, SentBatch};
use crate::error::Result;

/// Jobs in flight at once that are stored one by one. On three replicas a larger window was measured
/// to halve the rate.
pub(super) const PIPELINE: usize = 500;

/// Batches in flight at once.
const BATCHES: usize = 4;

/// A batch takes no more jobs once its payloads have this many bytes.
const FULL_BATCH_BYTES: usize = 4 * 1024 * 1024;

impl Client {
    /// Enqueues many jobs in order, hundreds in flight at once, and tells of each what became of it.
    /// Not all-or-nothing: some may fail while others are stored.
    ///
    /// Where the broker can (nats-server 2.14), it confirms jobs that are not unique in batches: by
    /// far the fastest way in.
    pub async fn enqueue_many<I>(&self, jobs: I) -> Vec<Result<JobHandle>>
    where
        I: IntoIterator,
        I::Item: Into<NewJob>,
    {
        self.store_many(jobs.into_iter().map(|job| self.ready(job.into()))).await
    }

    /// Stores jobs in order; what is no job is told in its place.
    pub(super) async fn store_many(
        &self,
        jobs: impl Iterator<Item = Result<Ready>>,
    ) -> Vec<Result<JobHandle>> {
        let mut outcomes = Vec::with_capacity(jobs.size_hint().0);
        let mut jobs =
            jobs.map(|job| job.and_then(|job| self.check_size(&job).map(|()| job))).peekable();
        let mut under_way = FuturesOrdered::new();
        let mut can_batch = true;
        while jobs.peek().is_some() {
            let mut batch = Vec::new();
            if can_batch {
                batch = next_batch(&mut jobs);
                let sent = self.send_batch(&batch).await;
                can_batch = batch.len() < FEWEST || sent.is_some();
                if let Some(sent) = sent {
                    under_way.push_back(self.end_batch(batch, sent));
                    if under_way.len() == BATCHES {
                        outcomes.extend(under_way.next().await.into_iter().flatten());
                    }
                    continue;
                }
            }
            outcomes.extend(under_way.by_ref().collect::<Vec<_>>().await.into_iter().flatten());
            let more = iter::from_fn(|| jobs.next_if(|job| !can_batch || !is_batchable(job)));
            outcomes.extend(self.store_each(batch.into_iter().map(Ok).chain(more)).await);
        }
        outcomes.extend(under_way.collect::<Vec<_>>().await.into_iter().flatten());
        outcomes
    }

    async fn store_each(
        &self,
        jobs: impl Iterator<Item = Result<Ready>>,
    ) -> Vec<Result<JobHandle>> {
        let stores = jobs.map(|job| async { self.store(job?).await });
        // Tokio's budget would make some of them yield before they send, and so change their order.
        unconstrained(stream::iter(stores).buffered(PIPELINE).collect()).await
    }

    /// `None` where there is no batch, or batches are not taken.
    async fn send_batch(&self, batch: &[Ready]) -> Option<SentBatch> {
        let first = batch.first().filter(|_| batch.len() >= FEWEST)?;
        let stream = self.streams(&first.queue).jobs;
        let message = |job: &Ready| {
            let (subject, payload) = (self.subject_of(job), job.payload.clone());
            IngestMessage::new(subject, &job.headers, payload, Expect::Anything)
        };
        self.conn.send_together(&stream, batch.iter().map(message).collect()).await
    }

    async fn end_batch(&self, mut batch: Vec<Ready>, sent: SentBatch) -> Vec<Result<JobHandle>> {
        let ended = sent.end().await;
        let stored = match ended {
            Ingested::Stored(count) | Ingested::BrokenOff(count) => count.min(batch.len()),
            Ingested::Refused | Ingested::NoStream => 0,
        };
        let rest = batch.split_off(stored);
        let handle = |job: Ready| Ok(JobHandle::new(self.clone(), job.key(), None));
        let mut outcomes: Vec<_> = batch.into_iter().map(handle).collect();
        let stores = rest.into_iter().map(|mut job| async move {
            match ended {
                Ingested::Refused | Ingested::NoStream => self.store(job).await,
                // It was not taken, by the broker's word; looked for all the same.
                Ingested::Stored(_) => self.store_once(job).await,
                Ingested::BrokenOff(_) => {
                    job.may_be_stored();
                    self.resolve(job).await
                }
            }
        });
        outcomes.extend(stream::iter(stores).buffered(PIPELINE).collect::<Vec<_>>().await);
        outcomes
    }
}

/// The fewest jobs that make a batch.
const FEWEST: usize = 2;

/// Takes off the jobs that can be stored in one batch: none of them unique, all of one queue.
fn next_batch(jobs: &mut Peekable<impl Iterator<Item = Result<Ready>>>) -> Vec<Ready> {
    let (mut batch, mut bytes) = (Vec::<Ready>::new(), 0);
    while batch.len() < MAX_INGEST && bytes < FULL_BATCH_BYTES {
        let fits = |job: &Result<Ready>| {
            is_batchable(job)
                && batch
                    .first()
                    .is_none_or(|first| job.as_ref().is_ok_and(|job| job.queue == first.queue))
        };
        let Some(Ok(job)) = jobs.next_if(fits) else { break };
        bytes += job.payload.len();
        batch.push(job);
    }
    batch
}

/// Whether it needs no word of its own: a batch would end at a unique job whose key is taken.
fn is_batchable(job: &Result<Ready>) -> bool {
    job.as_ref().is_ok_and(|job| !job.is_unique())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    /// `a`, `b`: jobs of two queues; `u`: a unique one; `!`: none.
    fn batches(jobs: &str) -> Vec<usize> {
        let job = |letter: char| match letter {
            'u' => NewJob::raw("any", "{}").queue("a").unique("key").finish(),
            '!' => Err(Error::invalid("no job")),
            queue => NewJob::raw("any", "{}").queue(queue.to_string()).finish(),
        };
        let mut jobs = jobs.chars().map(job).peekable();
        let mut sizes = Vec::new();
        while jobs.peek().is_some() {
            let batch = next_batch(&mut jobs);
            sizes.push(batch.len());
            if batch.is_empty() {
                jobs.next();
            }
        }
        sizes
    }

    #[test]
    fn a_batch_is_of_one_queue_and_has_nothing_that_could_end_it() {
        for (jobs, sizes) in [
            ("", &[][..]),
            ("aaa", &[3]),
            ("aabba", &[2, 2, 1]),
            ("aaua", &[2, 0, 1]),
            ("u!a", &[0, 0, 1]),
        ] {
            assert_eq!(batches(jobs), sizes, "{jobs}");
        }
        assert_eq!(batches(&"a".repeat(2 * MAX_INGEST + 1)), [MAX_INGEST, MAX_INGEST, 1]);
    }
}
