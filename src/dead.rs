//! Dead letters: jobs that will not be tried again, kept for a person to look at, retry or discard.

use std::collections::VecDeque;

use bytes::Bytes;
use futures_util::future::try_join_all;
use futures_util::stream::{self, Stream, TryStreamExt};

use crate::broker::{Start, Stored};
use crate::client::{Client, JobHandle, Ready, sealed_with};
use crate::error::{Error, ErrorKind, Result};
use crate::outcome::BuryReason;
use crate::token::{JobId, Kind, Queue, RunId};
use crate::wire::{
    AttemptRecord, Completion, DeadInfo, Headers, RecordKey, RecordKind, Status, Unvouched, name,
    parse_record, record_filter, record_subject,
};

/// Letters read at once.
const PAGE: usize = 128;

/// A job that was buried.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DeadLetter {
    /// Its sequence in the queue's stream of dead letters.
    pub sequence: u64,
    /// The job's queue.
    pub queue: Queue,
    /// The job's kind; `_` where its subject had none that is valid.
    pub kind: Kind,
    /// The job's id.
    pub id: JobId,
    /// Which enqueue of the id was buried.
    pub run: RunId,
    /// Why, when, and after how many attempts.
    pub info: DeadInfo,
    /// The headers that the job came with, but for the broker's own (`Nats-…`).
    pub headers: Headers,
    /// The payload that the job came with.
    pub payload: Bytes,
}

/// Which dead letters of a queue are meant.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct DeadFilter {
    /// The queue; `default` unless set.
    pub queue: Queue,
    /// Only this kind.
    pub kind: Option<Kind>,
    /// Only this id, over all its runs.
    pub id: Option<JobId>,
    /// Only those buried for this reason.
    pub reason: Option<String>,
}

impl DeadFilter {
    /// All dead letters of a queue.
    pub fn queue(queue: Queue) -> Self {
        Self { queue, ..Self::default() }
    }

    /// Only this kind.
    #[must_use]
    pub fn kind(mut self, kind: Kind) -> Self {
        self.kind = Some(kind);
        self
    }

    /// Only this id, over all its runs.
    #[must_use]
    pub fn id(mut self, id: JobId) -> Self {
        self.id = Some(id);
        self
    }

    /// Only those buried for this reason, such as `attempts_exhausted`.
    #[must_use]
    pub fn reason(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }
}

impl Client {
    /// The dead letters of a queue, the oldest first, a page at a time.
    ///
    /// # Errors
    /// The stream yields `is_unavailable` where the queue does not exist, `is_permission` where these
    /// credentials may not read it.
    pub fn dead_letters(
        &self,
        filter: DeadFilter,
    ) -> impl Stream<Item = Result<DeadLetter>> + Send + use<> {
        let walk =
            Walk { client: self.clone(), filter, next: 1, page: VecDeque::new(), is_over: false };
        stream::try_unfold(walk, |mut walk| async move {
            Ok(walk.next().await?.map(|letter| (letter, walk)))
        })
    }

    /// The newest dead letter of an id.
    ///
    /// # Errors
    /// `is_not_found` where the queue has none.
    pub async fn dead_letter(&self, queue: &Queue, id: &JobId) -> Result<DeadLetter> {
        let filter = DeadFilter::queue(queue.clone()).id(id.clone());
        let letters: Vec<DeadLetter> = self.dead_letters(filter).try_collect().await?;
        letters.into_iter().next_back().ok_or_else(|| {
            let message = format!("queue {queue} has no dead letter of job {id}");
            Error::new(ErrorKind::NotFound, message)
        })
    }

    /// What is on record of the attempts of a dead letter's run, in order.
    ///
    /// # Errors
    /// As [`Client::dead_letters`].
    pub async fn attempts_of(&self, letter: &DeadLetter) -> Result<Vec<AttemptRecord>> {
        self.ledger(&letter.key()).await
    }

    /// Puts a dead letter's job back into its lane, as a new run with all its attempts; what is on
    /// record of the old run stays. Repeating it does not double the job. A job that was signed is
    /// signed anew, by this client's key. One that nobody vouched for is put back as it came, for
    /// workers that trust its signer by now.
    ///
    /// # Errors
    /// `is_invalid` for a signed job where this client has no key to sign the new run with;
    /// `is_duplicate` where the job asks to be unique and another of its id is queued, `is_full`
    /// where the queue has no room; the letter stays then.
    pub async fn retry_dead(&self, letter: &DeadLetter) -> Result<JobHandle> {
        if letter.kind == "_" {
            return Err(Error::invalid(format!(
                "job {} had no valid kind in its subject: enqueue its payload anew and discard the \
                 letter",
                letter.id
            )));
        }
        let job = match letter.is_vouched_for() {
            true => self.sign_new_run(letter.to_job())?,
            // Nobody signs for another what none of the trusted keys has signed.
            false => letter.to_job(),
        };
        let handle = self.store_once(job).await?;
        if handle.is_duplicate() {
            return Err(Error::new(
                ErrorKind::Duplicate,
                format!(
                    "job {} is unique and another of its key is in queue {}: its letter stays",
                    letter.id, letter.queue
                ),
            ));
        }
        self.discard_dead(letter).await?;
        Ok(handle)
    }

    /// Deletes a dead letter for good; whether it was still there.
    ///
    /// # Errors
    /// `is_permission` where these credentials may not delete it.
    pub async fn discard_dead(&self, letter: &DeadLetter) -> Result<bool> {
        self.conn().delete(&self.streams(&letter.queue).dead, letter.sequence).await
    }

    /// Whether the run of a letter ended otherwise: a worker died between the letter and the
    /// completion, and another finished the job.
    async fn ended_otherwise(&self, letter: &DeadLetter) -> Result<bool> {
        let key = letter.key();
        let subject = record_subject(self.namespace(), RecordKind::Result, &key);
        let record = self.conn().last(&self.streams(&letter.queue).results, &subject).await?;
        let ended = record.and_then(|record| parse_record::<Completion>(&key, &record.payload));
        Ok(ended.is_some_and(|completion| completion.status != Status::Dead))
    }
}

struct Walk {
    client: Client,
    filter: DeadFilter,
    next: u64,
    page: VecDeque<DeadLetter>,
    is_over: bool,
}

impl Walk {
    async fn next(&mut self) -> Result<Option<DeadLetter>> {
        loop {
            if let Some(letter) = self.page.pop_front() {
                return Ok(Some(letter));
            }
            if self.is_over {
                return Ok(None);
            }
            self.turn_page().await?;
        }
    }

    async fn turn_page(&mut self) -> Result<()> {
        let DeadFilter { queue, kind, id, reason } = &self.filter;
        let ns = self.client.namespace();
        let subjects = record_filter(ns, RecordKind::Dead, queue, kind.as_ref(), id.as_ref());
        let stream = self.client.streams(queue).dead;
        let start = Start::Sequence(self.next);
        let batch = self.client.conn().batch(&stream, &subjects, start, PAGE).await?;
        self.is_over = batch.is_last;
        self.next = batch.messages.last().map_or(self.next, |last| last.sequence + 1);
        let letters: Vec<DeadLetter> = batch
            .messages
            .into_iter()
            .filter_map(|stored| self.client.read_letter(stored))
            .filter(|letter| reason.as_ref().is_none_or(|reason| *reason == letter.info.reason))
            .collect();
        let otherwise =
            try_join_all(letters.iter().map(|letter| self.client.ended_otherwise(letter))).await?;
        let shown = letters.into_iter().zip(otherwise).filter(|(_, otherwise)| !otherwise);
        self.page.extend(shown.map(|(letter, _)| letter));
        Ok(())
    }
}

impl Client {
    /// Reads a letter; `None` for what no worker wrote.
    fn read_letter(&self, stored: Stored) -> Option<DeadLetter> {
        let RecordKey { queue, kind, id, run } =
            RecordKey::parse(self.namespace(), RecordKind::Dead, &stored.subject)?;
        let info = serde_json::from_str(stored.headers.get(name::DEAD)?).ok()?;
        let Stored { sequence, headers, payload, .. } = stored;
        // Those by which the broker was told how to store the letter are not the job's.
        let mut headers = headers.for_copy();
        headers.remove(name::DEAD);
        Some(DeadLetter { sequence, queue, kind, id, run, info, headers, payload })
    }
}

impl DeadLetter {
    /// The id of the key that the payload is sealed with, if it is.
    pub fn sealed_with(&self) -> Option<String> {
        sealed_with(&self.headers)
    }

    /// The payload, opened with this client's keys where it is sealed.
    ///
    /// # Errors
    /// `is_invalid` where they do not open it.
    pub fn open(&self, client: &Client) -> Result<Bytes> {
        let id = self.info.unvouched.as_ref().map_or(&self.id, |claimed| &claimed.id);
        let key = RecordKey { id: id.clone(), ..self.key() };
        client.open_job(&key, &self.headers, &self.payload)
    }

    fn key(&self) -> RecordKey {
        RecordKey {
            queue: self.queue.clone(),
            kind: self.kind.clone(),
            id: self.id.clone(),
            run: self.run.clone(),
        }
    }

    fn is_vouched_for(&self) -> bool {
        self.info.unvouched.is_none()
            && ![BuryReason::Unsigned, BuryReason::BadSignature]
                .into_iter()
                .any(|reason| reason.as_str() == self.info.reason)
    }

    /// The job that retries it. Its run is derived from the letter, so that repeating is harmless.
    fn to_job(&self) -> Ready {
        // What was said of the old run's time does not bind the new one.
        const OF_THE_OLD_RUN: [&str; 7] = [
            name::ATTEMPTS_USED,
            name::BLOCK,
            name::LEFT_OUT,
            name::RUN_AFTER,
            name::EXPIRES_AT,
            name::CREATED_AT,
            name::PROMOTED,
        ];
        let mut headers = self.headers.for_copy();
        let (id, run) = match &self.info.unvouched {
            Some(Unvouched { id, run, .. }) => (id.clone(), run.clone()),
            None => {
                for name in OF_THE_OLD_RUN {
                    headers.remove(name);
                }
                (self.id.clone(), RunId::of_dead_letter(self.sequence))
            }
        };
        headers.set(name::RUN, run.as_str());
        Ready {
            queue: self.queue.clone(),
            priority: self.info.priority,
            kind: self.kind.clone(),
            id,
            run,
            headers,
            payload: self.payload.clone(),
        }
    }
}
