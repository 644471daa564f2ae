//! Runs on the broker itself: one stream, a subject for each run and one for each of its events.
//!
//! A run's record is the last message of its subject. An event is published under the condition that
//! the run's last one is still the one that its number was counted from, so that of two appends at once
//! one has to count anew; and its subject ends in its job's id, by which an append that comes again
//! finds what it appended before. Within a process appends to a run take turns, so that only processes
//! can be in each other's way.

use std::collections::HashSet;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::Utc;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::{sleep, timeout};

use super::turns::{Turns, pause};
use super::{RunStore, StoreError, StoreResult};
use crate::agent::event::AgentEvent;
use crate::agent::run::{RunEvent, RunFilter, RunId, RunRecord, RunStatus};
use crate::broker::{Expect, Published, Start, Stored};
use crate::client::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::token::JobId;
use crate::wire::{Headers, name};

/// Messages read at once.
const PAGE: usize = 256;

/// How long a call goes on trying while others write to the same run, or a replica lags.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs and events on a stream of the broker's, `<NS>_RUNS`.
#[derive(Clone, Debug)]
pub struct JetStreamRunStore {
    client: Client,
    stream: String,
    turns: Turns,
}

impl JetStreamRunStore {
    /// The store of a client's namespace; made where it is missing, with the replicas and the storage
    /// of the client's queues.
    ///
    /// # Errors
    /// `is_permission` where these credentials may not look at the stream or make it, `is_unsupported`
    /// where JetStream is off.
    pub async fn open(client: &Client) -> Result<Self> {
        let ns = client.namespace();
        let stream = format!("{}_RUNS", ns.as_str().to_ascii_uppercase());
        let subjects = [format!("{ns}.runs.*"), format!("{ns}.run_events.*.*")];
        let (replicas, storage) = client.replicas_and_storage();
        let config = json!({
            "name": stream, "description": "tidemill: runs of agents and their events",
            "subjects": subjects, "retention": "limits", "discard": "new", "storage": storage,
            "num_replicas": replicas, "allow_direct": true, "allow_rollup_hdrs": true,
            "max_msgs": -1, "max_bytes": -1, "max_age": 0,
        });
        client.conn().make_stream(&stream, &config).await?;
        Ok(Self { client: client.clone(), stream, turns: Turns::new() })
    }

    fn run_subject(&self, id: RunId) -> String {
        format!("{}.runs.{id}", self.client.namespace())
    }

    /// The subject of a job's event of a run, or of all.
    fn event_subject(&self, id: RunId, job: &str) -> String {
        format!("{}.run_events.{id}.{job}", self.client.namespace())
    }

    async fn last(&self, subject: &str) -> StoreResult<Option<Stored>> {
        let last = self.client.conn().last_of_leader(&self.stream, subject).await;
        last.map_err(StoreError::backend)
    }

    async fn store(
        &self,
        subject: String,
        headers: &Headers,
        body: Bytes,
        expect: Expect<'_>,
    ) -> StoreResult<Published> {
        let stored = self.client.conn().store(subject, headers, body, expect).await;
        stored.map_err(StoreError::backend)
    }

    /// The last message of each subject that `filter` covers, in order, with all that was stored before
    /// this was called.
    async fn all<T: DeserializeOwned>(&self, filter: &str) -> StoreResult<Vec<T>> {
        let reading = timeout(PATIENCE, self.read_all(filter)).await;
        let mut messages = reading.unwrap_or_else(|_| {
            let message = format!("the replicas of stream {} lag: try again", self.stream);
            Err(StoreError::backend(Error::new(ErrorKind::Unavailable, message)))
        })?;
        // A record that was replaced between two pages is on both.
        let mut seen = HashSet::new();
        messages.reverse();
        messages.retain(|message| seen.insert(message.subject.clone()));
        messages.iter().rev().map(read).collect()
    }

    /// Reads page by page from any replica, up to where the leader is.
    async fn read_all(&self, filter: &str) -> StoreResult<Vec<Stored>> {
        let (mut all, mut from) = (Vec::new(), 1);
        for times in 1.. {
            let Some(end) = self.last(filter).await? else { break };
            loop {
                let start = Start::Sequence(from);
                let page = self.client.conn().batch(&self.stream, filter, start, PAGE).await;
                let page = page.map_err(StoreError::backend)?;
                from = page.messages.last().map_or(from, |last| last.sequence + 1);
                all.extend(page.messages);
                if page.is_last {
                    break;
                }
            }
            if from > end.sequence {
                return Ok(all);
            }
            sleep(pause(times, fastrand::f64())).await;
        }
        // What there was is deleted.
        Ok(Vec::new())
    }

    async fn set_status(&self, id: RunId, status: RunStatus) -> StoreResult<()> {
        let subject = self.run_subject(id);
        // The new record takes the place of the old.
        let headers: Headers = [(name::ROLLUP, "sub")].into_iter().collect();
        let mut times = 0;
        loop {
            let there = self.last(&subject).await?.ok_or(StoreError::NotFound(id))?;
            let mut run: RunRecord = read(&there)?;
            run.status = status.clone();
            run.updated_at = Utc::now();
            let expect = Expect::Last(there.sequence);
            match self.store(subject.clone(), &headers, body(&run)?, expect).await? {
                Published::Stored(_) => return Ok(()),
                Published::WrongLast(_) | Published::InFlight => {
                    times += 1;
                    sleep(pause(times, fastrand::f64())).await;
                }
            }
        }
    }

    async fn add(&self, id: RunId, job: &JobId, event: AgentEvent) -> StoreResult<u64> {
        let subject = self.event_subject(id, job.as_str());
        let log = self.event_subject(id, "*");
        let mut times = 0;
        loop {
            // The log's end first: were the job's event appended after it was looked for, that end
            // would not hold any more.
            let last = self.last(&log).await?;
            if let Some(there) = self.last(&subject).await? {
                return Ok(read::<RunEvent>(&there)?.sequence);
            }
            let (expected, sequence) = match &last {
                Some(last) => (last.sequence, read::<RunEvent>(last)?.sequence + 1),
                None => (0, 0),
            };
            let record = RunEvent::new(sequence, id, job.clone(), event.clone());
            let expect = Expect::LastOf { guard: &log, sequence: expected };
            match self.store(subject.clone(), &Headers::new(), body(&record)?, expect).await? {
                Published::Stored(_) => return Ok(sequence),
                Published::WrongLast(_) | Published::InFlight => {
                    times += 1;
                    sleep(pause(times, fastrand::f64())).await;
                }
            }
        }
    }

    /// Does what writes to a run when it is its turn; whoever waits too long may have something better
    /// to do.
    async fn in_turn<T>(
        &self,
        id: RunId,
        writing: impl Future<Output = StoreResult<T>>,
    ) -> StoreResult<T> {
        let in_turn = async {
            let _turn = self.turns.take(id).await;
            writing.await
        };
        timeout(PATIENCE, in_turn).await.unwrap_or(Err(StoreError::Busy(id)))
    }
}

fn read<T: DeserializeOwned>(message: &Stored) -> StoreResult<T> {
    serde_json::from_slice(&message.payload).map_err(StoreError::backend)
}

fn body(record: &impl Serialize) -> StoreResult<Bytes> {
    serde_json::to_vec(record).map(Bytes::from).map_err(StoreError::backend)
}

#[async_trait]
impl RunStore for JetStreamRunStore {
    async fn create(&self, run: RunRecord) -> StoreResult<()> {
        let subject = self.run_subject(run.id);
        let none = Headers::new();
        match self.store(subject.clone(), &none, body(&run)?, Expect::Last(0)).await? {
            Published::Stored(_) => Ok(()),
            Published::InFlight => Err(StoreError::Busy(run.id)),
            Published::WrongLast(_) => match self.last(&subject).await? {
                Some(there) if read::<RunRecord>(&there)? == run => Ok(()),
                _ => Err(StoreError::Exists(run.id)),
            },
        }
    }

    async fn get(&self, id: RunId) -> StoreResult<Option<RunRecord>> {
        self.last(&self.run_subject(id)).await?.as_ref().map(read).transpose()
    }

    async fn update_status(&self, id: RunId, status: RunStatus) -> StoreResult<()> {
        self.in_turn(id, self.set_status(id, status)).await
    }

    async fn append(&self, id: RunId, job: &JobId, event: AgentEvent) -> StoreResult<u64> {
        self.in_turn(id, self.add(id, job, event)).await
    }

    async fn events(&self, id: RunId) -> StoreResult<Vec<RunEvent>> {
        self.all(&self.event_subject(id, "*")).await
    }

    async fn runs(&self, filter: &RunFilter) -> StoreResult<Vec<RunRecord>> {
        let all = self.all(&format!("{}.runs.*", self.client.namespace())).await?;
        Ok(filter.page(all))
    }

    async fn delete(&self, id: RunId) -> StoreResult<()> {
        // The record last: what was broken off can be repeated.
        for subjects in [self.event_subject(id, "*"), self.run_subject(id)] {
            let purged = self.client.conn().purge(&self.stream, &subjects).await;
            purged.map_err(StoreError::backend)?;
        }
        Ok(())
    }

    async fn health(&self) -> StoreResult<()> {
        let state = self.client.conn().stream_state(&self.stream, None).await;
        state.map(drop).map_err(StoreError::backend)
    }
}
