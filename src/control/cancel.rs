//! Cancelling: an end to jobs that are not wanted, wherever they are.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::ready;
use futures_util::stream::{self, BoxStream, Stream, StreamExt, TryStreamExt};
use tokio::time::sleep;

use crate::client::{Client, Fence, fence};
use crate::error::{Error, ErrorKind, Result};
use crate::inspect::{Found, JobFilter, Stand};
use crate::token::{JobId, Kind, Queue, RunId};
use crate::wire::time::Time;
use crate::wire::{CancelRequest, Completion, RecordKey, Status, Verb, control_subject};

/// Jobs that are cancelled at once.
const AT_ONCE: usize = 32;

/// How often it is looked for what holds a cancelled run still, and the pause between.
const LOOKS: usize = 20;
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// How often a queue is gone over for a filter at most.
const PASSES: usize = 20;

/// The sequence in the completion of a job that was on a timer.
const NOT_ON_A_LANE: u64 = 0;

/// What cancelling a run came to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cancellation {
    /// The run's kind.
    pub kind: Kind,
    /// Its id.
    pub id: JobId,
    /// The run.
    pub run: RunId,
    /// How it has ended: cancelled, or as it had ended before it could be cancelled.
    pub status: Status,
    /// Whether it had ended before, in whatever way.
    pub had_ended: bool,
}

impl Cancellation {
    /// Whether what holds the run is to be taken away.
    fn goes(&self) -> bool {
        self.status == Status::Cancelled
    }
}

impl Client {
    /// Cancels the unfinished runs of an id: one that waits is gone, one that runs is told to stop.
    /// Each has a completion `cancelled` then, unless it had ended before. Repeating it is harmless.
    ///
    /// # Errors
    /// `is_not_found` where the queue knows no such job, `is_permission` where these credentials may
    /// not look for it, write completions or delete jobs.
    pub async fn cancel(
        &self,
        queue: &Queue,
        kind: Option<&Kind>,
        id: &JobId,
        reason: &str,
    ) -> Result<Vec<Cancellation>> {
        let found = self.find(queue, kind, id).await?;
        if !found.is_empty() {
            return self.cancel_runs(found, reason).await;
        }
        let ended = self.completions_of(queue, kind, id).await?;
        match ended.into_iter().next_back() {
            Some(Completion { kind, id, run, status, .. }) => {
                Ok(vec![Cancellation { kind, id, run, status, had_ended: true }])
            }
            None => {
                let message = format!("queue {queue} knows no job {id}");
                Err(Error::new(ErrorKind::NotFound, message))
            }
        }
    }

    /// Cancels all unfinished jobs that a filter leaves, dozens at once, and tells of each; in bounded
    /// memory, however many there are. It goes over the queue until it finds no more that were there
    /// when it began, since jobs move meanwhile. Dropping the stream stops it.
    ///
    /// # Errors
    /// The stream yields those of [`Client::jobs`] and [`Client::cancel`], and ends with the first.
    pub fn cancel_all(
        &self,
        filter: JobFilter,
        reason: &str,
    ) -> impl Stream<Item = Result<Cancellation>> + Send + use<> {
        let sweep = Sweep {
            client: self.clone(),
            filter,
            reason: Arc::from(reason),
            began: self.clock().now(),
            passes: 0,
            cancelled: 0,
            pass: stream::empty().boxed(),
        };
        stream::try_unfold(sweep, |mut sweep| async move {
            Ok(sweep.next().await?.map(|cancelled| (cancelled, sweep)))
        })
    }

    /// Cancels the runs that some messages of one id hold, and takes away all that holds these runs,
    /// wherever it is moved meanwhile.
    pub(crate) async fn cancel_runs(
        &self,
        found: Vec<Found>,
        reason: &str,
    ) -> Result<Vec<Cancellation>> {
        let Some(RecordKey { queue, id, .. }) = found.first().map(|found| found.key.clone()) else {
            return Ok(Vec::new());
        };
        let mut ended: Vec<(RecordKey, Cancellation)> = Vec::new();
        let mut left = found;
        for look in 0..LOOKS {
            for holder in left {
                let cancelled = self.cancel_found(&holder, reason).await?;
                if ended.iter().all(|(key, _)| *key != holder.key) {
                    ended.push((holder.key, cancelled));
                }
            }
            // The workers know by now: what none of them was about to put elsewhere is gone for good.
            self.flush().await?;
            left = self.find(&queue, None, &id).await?;
            left.retain(|holder| ended.iter().any(|(key, end)| *key == holder.key && end.goes()));
            if left.is_empty() && !self.take_timers_away(&ended).await? {
                return Ok(ended.into_iter().map(|(_, cancelled)| cancelled).collect());
            }
            if look > 0 {
                sleep(LOOK_AGAIN).await;
            }
        }
        let message =
            format!("job {id} is cancelled, but is being moved all the time: cancel it again");
        Err(Error::new(ErrorKind::Unavailable, message))
    }

    /// Takes away what the timers' leader has of runs that have ended, which a replica may not show
    /// yet; whether there was anything.
    async fn take_timers_away(&self, ended: &[(RecordKey, Cancellation)]) -> Result<bool> {
        let mut was_there = false;
        for (key, _) in ended {
            if let Some(sequence) = self.timed(key).await? {
                self.conn().delete(&self.streams(&key.queue).timers, sequence).await?;
                was_there = true;
            }
        }
        Ok(was_there)
    }

    /// Completion first, then the message, then the workers: killed in between, repeating it goes on
    /// where it stopped, and a worker that has the job finds the completion.
    async fn cancel_found(&self, found: &Found, reason: &str) -> Result<Cancellation> {
        let (status, had_ended) = match self.complete_cancelled(found, reason).await? {
            Fence::Ours => (Status::Cancelled, false),
            Fence::Ended(status) => (status, true),
        };
        let RecordKey { kind, id, run, .. } = found.key.clone();
        let cancelled = Cancellation { kind, id, run, status, had_ended };
        // What a worker has ended otherwise it acks itself; on a timer nobody would for long.
        if cancelled.goes() || found.is_timed() {
            self.conn().delete(&found.stream, found.sequence).await?;
        }
        if cancelled.goes() {
            self.tell_workers(&found.key).await?;
        }
        Ok(cancelled)
    }

    /// Stores the completion `cancelled` unless the run has one.
    async fn complete_cancelled(&self, found: &Found, reason: &str) -> Result<Fence> {
        let tried = self.ledger(&found.key).await?.last().map_or(0, |last| last.attempt);
        let now = self.now(&found.key.queue).await;
        let RecordKey { queue, kind, id, run } = found.key.clone();
        let completion = Completion {
            v: Completion::V,
            id,
            run,
            seq: if found.is_timed() { NOT_ON_A_LANE } else { found.sequence },
            queue,
            kind,
            priority: found.priority,
            status: Status::Cancelled,
            attempt: tried.max(found.options.attempts_used.unwrap_or(0)),
            enqueued_at: found.enqueued_at().unwrap_or(now),
            started_at: None,
            finished_at: now,
            worker: "client".to_owned(),
            result: None,
            result_sealed: None,
            result_omitted: None,
            reason: Some(reason.to_owned()),
            error: None,
        };
        let body = serde_json::to_vec(&completion).map(Bytes::from).map_err(|error| {
            Error::new(ErrorKind::Broker, "a completion does not serialize").because(error)
        })?;
        let stream = self.streams(&found.key.queue).results;
        fence(self.conn(), self.namespace(), &stream, &found.key, body).await
    }

    /// Tells the queue's workers, if any listen. Not waited for: the completion is what counts.
    async fn tell_workers(&self, key: &RecordKey) -> Result<()> {
        let request = serde_json::to_vec(&CancelRequest::new(key)).map_err(|error| {
            Error::new(ErrorKind::Broker, "a request does not serialize").because(error)
        })?;
        let subject = control_subject(self.namespace(), &key.queue, Verb::Cancel);
        self.conn().publish(subject, request.into()).await
    }
}

/// Goes over a queue again and again, until there is nothing left to cancel.
struct Sweep {
    client: Client,
    filter: JobFilter,
    reason: Arc<str>,
    /// What is enqueued later is not meant.
    began: Time,
    passes: usize,
    /// Jobs that this pass has cancelled.
    cancelled: usize,
    pass: BoxStream<'static, Result<Cancellation>>,
}

impl Sweep {
    async fn next(&mut self) -> Result<Option<Cancellation>> {
        loop {
            if let Some(cancelled) = self.pass.try_next().await? {
                if !cancelled.had_ended {
                    self.cancelled += 1;
                }
                // Those that had ended are told once.
                if !cancelled.had_ended || self.passes == 1 {
                    return Ok(Some(cancelled));
                }
                continue;
            }
            if self.passes == PASSES || (self.passes > 1 && self.cancelled == 0) {
                return Ok(None);
            }
            self.passes += 1;
            self.cancelled = 0;
            self.pass = self.start_pass();
        }
    }

    fn start_pass(&self) -> BoxStream<'static, Result<Cancellation>> {
        let (client, reason, began) = (self.client.clone(), self.reason.clone(), self.began);
        let is_first = self.passes == 1;
        let is_meant = move |stand: &Stand| {
            is_first || stand.found.enqueued_at().is_none_or(|enqueued| enqueued <= began)
        };
        self.client
            .stands(self.filter.clone())
            .try_filter(move |stand| ready(is_meant(stand)))
            .map_ok(move |stand| {
                let (client, reason) = (client.clone(), reason.clone());
                async move { client.cancel_found(&stand.found, &reason).await }
            })
            .try_buffered(AT_ONCE)
            .boxed()
    }
}
