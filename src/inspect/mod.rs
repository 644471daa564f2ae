//! Looking at jobs: where one stands, which there are, what is running. Nothing is written for it:
//! streams are read, and workers are asked.

mod ended;
mod find;
mod list;
mod state;

use std::ops::ControlFlow;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::stream::Stream;

pub(crate) use self::find::{Found, Place};
pub use self::list::JobFilter;
pub use self::state::JobState;
pub(crate) use self::state::{Stand, state_of};
use crate::broker::Start;
use crate::client::{Client, JobEvent, sealed_with};
use crate::error::{Error, ErrorKind, Result};
use crate::priority::Priority;
use crate::token::{JobId, Kind, Queue, RunId};
use crate::wire::{
    AttemptRecord, Completion, Headers, RecordKey, RecordKind, RunningAnswer, RunningJob,
    RunningRequest, Verb, control_subject, parse_record, record_subject,
};

/// How long to wait for one more worker's answer, when all jobs are asked for that run.
const STALL: Duration = Duration::from_millis(300);

/// The same where on the answer rests whether a job is moved, or told as waiting.
const STALL_OF_MOVED: Duration = Duration::from_secs(1);

/// A job as it stands just now.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct JobInfo {
    /// Its queue.
    pub queue: Queue,
    /// Its kind.
    pub kind: Kind,
    /// Its id.
    pub id: JobId,
    /// Which enqueue of the id this is.
    pub run: RunId,
    /// Its lane.
    pub priority: Priority,
    /// Where it stands.
    pub state: JobState,
    /// When it was enqueued.
    pub enqueued_at: DateTime<Utc>,
    /// Its tags.
    pub tags: Vec<String>,
    /// Its headers, but for the broker's own; empty where only the completion is left.
    pub headers: Headers,
    /// Its payload; empty where only the completion is left.
    pub payload: Bytes,
    /// Why no worker can take it, and the next one will bury it; `None` where one can.
    pub problem: Option<String>,
    /// What is on record of its attempts, in order.
    pub attempts: Vec<AttemptRecord>,
    /// Where a list goes on behind it: see [`JobFilter::after`]. `None` where it was looked up by its id
    /// and has ended.
    pub cursor: Option<String>,
}

impl JobInfo {
    /// The id of the key that the payload is sealed with, if it is.
    pub fn sealed_with(&self) -> Option<String> {
        sealed_with(&self.headers)
    }

    /// The payload, opened with this client's keys where it is sealed.
    ///
    /// # Errors
    /// `is_invalid` where they do not open it.
    pub fn open(&self, client: &Client) -> Result<Bytes> {
        let Self { queue, kind, id, run, .. } = self.clone();
        client.open_job(&RecordKey { queue, kind, id, run }, &self.headers, &self.payload)
    }
}

impl Client {
    /// What is running in a queue just now, by the workers' own word.
    ///
    /// # Errors
    /// `is_permission` where these credentials may not ask the workers.
    pub async fn running(&self, queue: &Queue) -> Result<Vec<RunningJob>> {
        self.ask_what_runs(queue, &RunningRequest::default(), STALL, usize::MAX).await
    }

    /// The same, where on the answers rests whether jobs are moved: slow workers are waited for.
    pub(crate) async fn running_for_certain(&self, queue: &Queue) -> Result<Vec<RunningJob>> {
        self.ask_what_runs(queue, &RunningRequest::default(), STALL_OF_MOVED, usize::MAX).await
    }

    /// Which of an id's runs are running just now; as soon as so many are told of, none else is
    /// waited for.
    pub(crate) async fn running_of(
        &self,
        queue: &Queue,
        id: &JobId,
        at_most: usize,
    ) -> Result<Vec<RunningJob>> {
        let request = RunningRequest { id: Some(id.clone()) };
        self.ask_what_runs(queue, &request, STALL_OF_MOVED, at_most).await
    }

    /// Which of these are running just now, all of one id.
    pub(crate) async fn running_among(&self, found: &[Found]) -> Result<Vec<RunningJob>> {
        Ok(self.moment_of(found).await?.running)
    }

    async fn ask_what_runs(
        &self,
        queue: &Queue,
        request: &RunningRequest,
        stall: Duration,
        at_most: usize,
    ) -> Result<Vec<RunningJob>> {
        let subject = control_subject(self.namespace(), queue, Verb::Running);
        let body = serde_json::to_vec(request).map(Bytes::from).map_err(|error| {
            Error::new(ErrorKind::Broker, "a request does not serialize").because(error)
        })?;
        let mut running = Vec::new();
        let hear = |answer: &[u8]| {
            let told = serde_json::from_slice::<RunningAnswer>(answer).unwrap_or_default();
            let is_asked_for =
                |job: &RunningJob| request.id.as_ref().is_none_or(|id| *id == job.id);
            running.extend(told.jobs.into_iter().filter(is_asked_for));
            match running.len() >= at_most {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        };
        self.conn().gather(subject, body, stall, hear).await?;
        Ok(running)
    }

    /// Where the runs of an id stand, each that is unfinished or still on record; the newest last.
    ///
    /// # Errors
    /// `is_not_found` where the queue knows no such job, `is_permission` where these credentials may
    /// not look.
    pub async fn job(
        &self,
        queue: &Queue,
        kind: Option<&Kind>,
        id: &JobId,
    ) -> Result<Vec<JobInfo>> {
        let found = self.find(queue, kind, id).await?;
        let moment = self.moment_of(&found).await?;
        let mut jobs: Vec<JobInfo> = Vec::new();
        for completion in self.completions_of(queue, kind, id).await? {
            jobs.push(self.ended(completion).await?);
        }
        for found in found {
            // One that has ended may still wait for its ack.
            if jobs.iter().all(|ended| ended.run != found.key.run) {
                jobs.push(self.stand_of(found, &moment).await?.into_info(self.clock().now()));
            }
        }
        if jobs.is_empty() {
            let message = format!("queue {queue} knows no job {id}");
            return Err(Error::new(ErrorKind::NotFound, message));
        }
        Ok(jobs)
    }

    /// What a job's handler tells of it from now on, its progress and its log, ending with its
    /// completion. What was told before is gone: events are not stored.
    ///
    /// # Errors
    /// `is_permission` where these credentials may not subscribe or read completions.
    pub async fn watch(
        &self,
        job: &JobInfo,
    ) -> Result<impl Stream<Item = Result<JobEvent>> + Send + use<>> {
        let JobInfo { queue, kind, id, run, .. } = job.clone();
        self.watch_run(RecordKey { queue, kind, id, run }).await
    }

    async fn ended(&self, completion: Completion) -> Result<JobInfo> {
        let Completion { queue, kind, id, run, .. } = completion.clone();
        let attempts = self.ledger(&RecordKey { queue, kind, id, run }).await?;
        let Completion { queue, kind, id, run, priority, enqueued_at, .. } = completion.clone();
        Ok(JobInfo {
            queue,
            kind,
            id,
            run,
            priority,
            enqueued_at,
            state: JobState::Ended(Box::new(completion)),
            tags: Vec::new(),
            headers: Headers::new(),
            payload: Bytes::new(),
            problem: None,
            attempts,
            cursor: None,
        })
    }

    /// What is on record of a run's attempts, in order.
    pub(crate) async fn ledger(&self, key: &RecordKey) -> Result<Vec<AttemptRecord>> {
        const MAX_ENTRIES: usize = 50;
        let subject = record_subject(self.namespace(), RecordKind::Attempt, key);
        let stream = self.streams(&key.queue).attempts;
        let found = self.conn().batch(&stream, &subject, Start::Sequence(1), MAX_ENTRIES).await?;
        Ok(found.messages.iter().filter_map(|entry| parse_record(key, &entry.payload)).collect())
    }
}
