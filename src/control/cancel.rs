//! Cancelling: an end to jobs that are not wanted, wherever they are.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{Stream, TryStreamExt};

use crate::client::{Client, Fence, fence};
use crate::error::{Error, ErrorKind, Result};
use crate::inspect::{Found, JobFilter};
use crate::token::{JobId, Kind, Queue, RunId};
use crate::wire::{CancelRequest, Completion, RecordKey, Status, Verb, control_subject};

/// Jobs that are cancelled at once.
const AT_ONCE: usize = 32;

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
        let mut cancelled = Vec::new();
        for found in &found {
            cancelled.push(self.cancel_found(found, reason).await?);
        }
        if !cancelled.is_empty() {
            self.flush().await?;
            return Ok(cancelled);
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
    /// memory, however many there are. Dropping the stream stops it.
    ///
    /// # Errors
    /// The stream yields those of [`Client::jobs`] and [`Client::cancel`], and ends with the first.
    pub fn cancel_all(
        &self,
        filter: JobFilter,
        reason: &str,
    ) -> impl Stream<Item = Result<Cancellation>> + Send + use<> {
        let (client, reason) = (self.clone(), Arc::<str>::from(reason));
        self.stands(filter)
            .map_ok(move |stand| {
                let (client, reason) = (client.clone(), reason.clone());
                async move { client.cancel_found(&stand.found, &reason).await }
            })
            .try_buffered(AT_ONCE)
    }

    /// Completion first, then the message, then the workers: killed in between, repeating it goes on
    /// where it stopped, and a worker that has the job finds the completion.
    pub(crate) async fn cancel_found(&self, found: &Found, reason: &str) -> Result<Cancellation> {
        let (status, had_ended) = match self.complete_cancelled(found, reason).await? {
            Fence::Ours => (Status::Cancelled, false),
            Fence::Ended(status) => (status, true),
        };
        if status == Status::Cancelled {
            self.conn().delete(&found.stream, found.sequence).await?;
            self.tell_workers(&found.key).await?;
        }
        let RecordKey { kind, id, run, .. } = found.key.clone();
        Ok(Cancellation { kind, id, run, status, had_ended })
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
            seq: found.sequence,
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
