//! Waiting for one run's completion without a race that could lose it.

use std::fmt;
use std::time::Duration;

use tokio::time::timeout;

use super::Client;
use super::wakes::Wakes;
use crate::error::{Error, ErrorKind, Result};
use crate::token::{JobId, Kind, Queue, RunId};
use crate::wire::{Completion, RecordKey, RecordKind, parse_record, record_subject};

/// How often to look for a completion before waiting to be woken. The broker hands a message on to whoever
/// has subscribed, and only then stores it: what it handed on just before the subscription wakes nobody, and
/// may be there only a moment after the first look. The time that one look takes is as a rule enough.
const LOOKS: usize = 2;

/// A job that is enqueued.
#[derive(Clone)]
pub struct JobHandle {
    client: Client,
    key: RecordKey,
    sequence: Option<u64>,
    is_duplicate: bool,
}

impl JobHandle {
    pub(super) fn new(client: Client, key: RecordKey, sequence: Option<u64>) -> Self {
        Self { client, key, sequence, is_duplicate: false }
    }

    pub(super) fn duplicate(client: Client, key: RecordKey, sequence: u64) -> Self {
        Self { client, key, sequence: Some(sequence), is_duplicate: true }
    }

    /// The same for another run of its id, which is there in its place.
    pub(crate) fn of_run(self, run: RunId) -> Self {
        let sequence = self.sequence.filter(|_| run == self.key.run);
        Self { sequence, key: RecordKey { run, ..self.key }, ..self }
    }

    /// Whether a unique job was there already: this is the one that was there, and nothing was
    /// stored.
    pub fn is_duplicate(&self) -> bool {
        self.is_duplicate
    }

    /// The job's id.
    pub fn id(&self) -> &JobId {
        &self.key.id
    }

    /// This enqueue of the id.
    pub fn run(&self) -> &RunId {
        &self.key.run
    }

    /// The job's queue.
    pub fn queue(&self) -> &Queue {
        &self.key.queue
    }

    /// The job's kind.
    pub fn kind(&self) -> &Kind {
        &self.key.kind
    }

    /// The job's sequence in its queue's jobs stream; `None` where the broker does not tell, because
    /// it confirmed many at once ([`Client::enqueue_many`]), or an answer was lost and the job is on a
    /// timer by now, or has been moved.
    pub fn sequence(&self) -> Option<u64> {
        self.sequence
    }

    /// Waits, as long as it takes, until this run has ended, and tells how.
    ///
    /// # Errors
    /// `is_permission` where these credentials may not read completions.
    pub async fn completion(&self) -> Result<Completion> {
        self.client.await_completion(&self.key, None).await
    }

    /// The same, for at most `patience`.
    ///
    /// # Errors
    /// `is_timeout` where the run has not ended by then.
    pub async fn completion_within(&self, patience: Duration) -> Result<Completion> {
        self.client.await_completion(&self.key, Some(patience)).await
    }
}

impl fmt::Debug for JobHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobHandle")
            .field("id", self.id())
            .field("run", self.run())
            .field("sequence", &self.sequence)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// The completions of an id, one for each run that has ended and is still kept; the newest last.
    ///
    /// # Errors
    /// `is_unavailable` where the queue does not exist, `is_permission` where these credentials may
    /// not read completions.
    pub async fn completions_of(
        &self,
        queue: &Queue,
        kind: Option<&Kind>,
        id: &JobId,
    ) -> Result<Vec<Completion>> {
        const MAX_RUNS: usize = 1000;
        let filter =
            crate::wire::record_filter(&self.namespace, RecordKind::Result, queue, kind, Some(id));
        let streams = self.streams(queue);
        let found = self.conn.last_of_each(&streams.results, &filter, MAX_RUNS).await?;
        let mut found = found.messages;
        if found.is_empty() {
            // None is missing before the leader says so: a replica may lag behind it.
            found.extend(self.conn.last_of_leader(&streams.results, &filter).await?);
        }
        found.sort_by_key(|record| record.sequence);
        Ok(found
            .iter()
            .filter_map(|record| {
                let key = RecordKey::parse(&self.namespace, RecordKind::Result, &record.subject)?;
                parse_record(&key, &record.payload).map(|completion| self.opened(completion))
            })
            .collect())
    }

    async fn await_completion(
        &self,
        key: &RecordKey,
        patience: Option<Duration>,
    ) -> Result<Completion> {
        let Some(patience) = patience else { return self.watch_for(key).await };
        timeout(patience, self.watch_for(key)).await.unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::Timeout,
                format!("job {} has not ended within {patience:?}; it is still queued", key.id),
            ))
        })
    }

    /// Subscribes first, then looks: what comes between wakes.
    pub(super) async fn watch_for(&self, key: &RecordKey) -> Result<Completion> {
        let subject = record_subject(&self.namespace, RecordKind::Result, key);
        let stream = self.streams(&key.queue).results;
        let mut wakes = Wakes::new(self.conn.subscribe(subject.clone()).await?);
        loop {
            for _ in 0..LOOKS {
                if let Some(completion) = self.read_completion(key, &stream, &subject).await? {
                    return Ok(completion);
                }
            }
            wakes.wait().await?;
        }
    }

    /// The completion of a run, if it can be read.
    async fn read_completion(
        &self,
        key: &RecordKey,
        stream: &str,
        subject: &str,
    ) -> Result<Option<Completion>> {
        let record = match self.conn.last(stream, subject).await {
            Ok(record) => record,
            Err(error) if error.is_unknown() || error.is_unavailable() => None,
            Err(error) => return Err(error),
        };
        let completion = record.and_then(|record| parse_record(key, &record.payload));
        Ok(completion.map(|completion| self.opened(completion)))
    }
}
