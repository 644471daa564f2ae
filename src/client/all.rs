//! All or nothing: many jobs of a queue in one atomic batch.

use std::collections::HashMap;

use futures_util::future::try_join_all;
use tokio::time::{Instant, sleep};

use super::Client;
use super::completion::JobHandle;
use super::enqueue::unless_full;
use super::new_job::{NewJob, Ready};
use super::resolve::{FIRST_PAUSE, LONGEST_PAUSE};
use super::whereabouts::{Origin, Whereabouts};
use crate::broker::{BatchMessage, Expect, MAX_BATCH, Published};
use crate::error::{Error, ErrorKind, Result};
use crate::token::{Queue, RunId};
use crate::wire::{RecordKey, guard_subject};

/// A batch that is checked and can be sent, as often as it takes.
struct Batch {
    jobs: Vec<Ready>,
    /// By position, of unique jobs.
    keys: HashMap<usize, String>,
    guards: Vec<String>,
    /// Once an answer is missing: what was the last message of the first job's id when none of the
    /// batch was found.
    last_of_first: Option<u64>,
    answers: Answers,
}

/// Whether the broker has told of each time that the batch was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answers {
    Complete,
    Missing,
}

/// The error for a batch that nobody took, whether or not it can be seen why.
fn nobody_took_it(queue: &Queue, error: Error) -> Error {
    if !error.is_unknown() && !error.is_unavailable() {
        return error;
    }
    let message = format!(
        "the stream of queue {queue} takes no jobs just now, and nothing was stored: {error}"
    );
    Error::new(ErrorKind::Unavailable, message)
}

/// Jobs of a batch that are looked for at once.
const LOOKS_AT_ONCE: usize = 32;

impl Client {
    /// Enqueues up to 1000 jobs of one queue in one atomic batch: all of them or none, over
    /// priorities, delays and unique keys.
    ///
    /// # Errors
    /// `is_invalid` for a mistake in a job, jobs of several queues, equal ids or keys, or more than
    /// 1000; `is_duplicate`, naming the key, where a unique one is taken; `is_too_large`, `is_full`;
    /// `is_unknown` where the broker does not say what became of it. In all but the last, none is
    /// stored.
    pub async fn enqueue_all<I>(&self, jobs: I) -> Result<Vec<JobHandle>>
    where
        I: IntoIterator,
        I::Item: Into<NewJob>,
    {
        let batch = Batch::new(self, jobs)?;
        let Some(first) = batch.jobs.first() else { return Ok(Vec::new()) };
        for job in &batch.jobs {
            self.check_size(job)?;
        }
        let queue = first.queue.clone();
        let times = self.whole.times(&queue);
        let published = match self.send_all(&batch).await {
            Err(error) if error.is_unavailable() => {
                let made = self.ensure_again(&queue, times).await;
                made.map_err(|error| nobody_took_it(&queue, error))?;
                self.send_all(&batch).await
            }
            published => published,
        };
        match published {
            Err(error) if error.is_unavailable() => Err(nobody_took_it(&queue, error)),
            published => self.settle_all(batch, published).await,
        }
    }

    async fn send_all(&self, batch: &Batch) -> Result<Published> {
        let id = uuid::Uuid::now_v7().simple().to_string();
        let jobs = batch.jobs.iter().zip(&batch.guards).enumerate();
        let messages = jobs.map(|(index, (job, guard))| BatchMessage {
            subject: self.subject_of(job),
            headers: &job.headers,
            payload: job.payload.clone(),
            expect: match (job.is_guarded(), batch.last_of_first) {
                (true, _) => Expect::LastOf { guard, sequence: 0 },
                (false, Some(sequence)) if index == 0 => Expect::LastOf { guard, sequence },
                (false, _) => Expect::Anything,
            },
        });
        let stored = self.conn.store_all(&id, messages.collect()).await;
        stored.map_err(|error| match batch.jobs.first() {
            Some(first) => unless_full(&first.queue, error),
            None => error,
        })
    }

    /// Brings a batch that was sent to a known end. Where an answer is missing it is looked for, and
    /// sent again only if it is not there, under a guard that no batch that came meanwhile passes.
    async fn settle_all(
        &self,
        mut batch: Batch,
        mut published: Result<Published>,
    ) -> Result<Vec<JobHandle>> {
        let deadline = Instant::now() + self.resolve_window();
        let mut pause = FIRST_PAUSE;
        loop {
            match published {
                Ok(Published::Stored(last)) => return Ok(self.handles(&batch, Some(last))),
                Ok(Published::WrongLast(_)) if batch.is_certain() => {
                    if let Some(error) = self.taken(&batch).await {
                        return Err(error);
                    }
                }
                Ok(Published::WrongLast(_) | Published::InFlight) => {}
                Err(error) if error.is_unknown() => batch.may_be_stored(),
                Err(error) if error.is_unavailable() => {}
                Err(error) if batch.is_certain() => return Err(error),
                // It says nothing of the time before, of which the answer is missing.
                Err(error) => tracing::debug!(%error, "a batch that is sent again is refused"),
            }
            if Instant::now() >= deadline {
                return Err(batch.is_unsettled());
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            if !batch.is_certain() {
                match self.look_for(&batch).await {
                    Ok(Looked::There) => return Ok(self.handles(&batch, None)),
                    Ok(Looked::Nowhere { last_of_first }) => {
                        batch.last_of_first = Some(last_of_first);
                        // Whatever keeps it out now is another's.
                        if let Some(error) = self.taken(&batch).await {
                            return Err(error);
                        }
                    }
                    Err(error) => {
                        tracing::debug!(%error, "a batch cannot be looked for yet");
                        published = Ok(Published::InFlight);
                        continue;
                    }
                }
            }
            published = self.send_all(&batch).await;
        }
    }

    /// Looks for a batch: with any of its runs, all are there.
    async fn look_for(&self, batch: &Batch) -> Result<Looked> {
        let mut last_of_first = None;
        for jobs in batch.jobs.chunks(LOOKS_AT_ONCE) {
            let looks = jobs.iter().map(|job| self.whereabouts(job, Origin::Producer));
            for there in try_join_all(looks).await? {
                match there {
                    Whereabouts::Nowhere { last } => last_of_first = last_of_first.or(Some(last)),
                    Whereabouts::OnLane(_)
                    | Whereabouts::Timed
                    | Whereabouts::Ended
                    | Whereabouts::BeingMoved => return Ok(Looked::There),
                }
            }
        }
        Ok(Looked::Nowhere { last_of_first: last_of_first.unwrap_or(0) })
    }

    /// The error for a batch that a taken key keeps out; `None` where none is, or not for long.
    async fn taken(&self, batch: &Batch) -> Option<Error> {
        let none_is_stored = format!("none of the {} jobs is stored", batch.jobs.len());
        for (index, key) in &batch.keys {
            let job = &batch.jobs[*index];
            match self.holder_of(job, &batch.guards[*index]).await {
                Ok(None) => {}
                Ok(Some(_)) => {
                    let message = format!(
                        "key {key:?} is taken: job {} is unfinished in queue {}; {none_is_stored}",
                        job.id, job.queue
                    );
                    return Some(Error::new(ErrorKind::Duplicate, message));
                }
                Err(error) if error.is_permission() => {
                    let message = format!("a key is taken: {none_is_stored}");
                    return Some(Error::new(ErrorKind::Duplicate, message).because(error));
                }
                Err(error) => tracing::debug!(%error, "a key cannot be looked at yet"),
            }
        }
        None
    }

    /// The other run that holds a unique id, unless it has ended and makes room at any moment.
    async fn holder_of(&self, job: &Ready, guard: &str) -> Result<Option<RunId>> {
        let stream = self.streams(&job.queue).jobs;
        let Some(there) = self.conn.last_of_leader(&stream, guard).await? else { return Ok(None) };
        let run = job.run_of(&there);
        let key = RecordKey { run: run.clone(), ..job.key() };
        let has_ended = run == job.run || self.end_of(&key).await?.is_some();
        Ok((!has_ended).then_some(run))
    }

    fn handles(&self, batch: &Batch, last: Option<u64>) -> Vec<JobHandle> {
        let behind = |index: usize| (batch.jobs.len() - 1 - index) as u64;
        let numbered = batch.jobs.iter().enumerate();
        let handle = |(index, job): (usize, &Ready)| {
            JobHandle::new(self.clone(), job.key(), last.map(|last| last - behind(index)))
        };
        numbered.map(handle).collect()
    }
}

/// What became of a batch, by looking.
enum Looked {
    There,
    /// None of its runs is anywhere; and the last message of the first one's id.
    Nowhere {
        last_of_first: u64,
    },
}

impl Batch {
    fn new<I>(client: &Client, jobs: I) -> Result<Self>
    where
        I: IntoIterator,
        I::Item: Into<NewJob>,
    {
        let (mut ready, mut keys) = (Vec::<Ready>::new(), HashMap::new());
        for (index, job) in jobs.into_iter().enumerate() {
            let job: NewJob = job.into();
            if let Some(key) = job.key() {
                keys.insert(index, key.to_owned());
            }
            ready.push(client.ready(job).map_err(|error| {
                Error::invalid(format!("job {} of the batch: {error}", index + 1))
            })?);
        }
        if ready.len() > MAX_BATCH {
            return Err(Error::invalid(format!(
                "{} jobs are too many for one batch: use at most {MAX_BATCH}",
                ready.len()
            )));
        }
        let mut seen = HashMap::new();
        for (index, job) in ready.iter().enumerate() {
            if job.queue != ready[0].queue {
                return Err(Error::invalid(format!(
                    "a batch is of one queue: job 1 goes to {}, job {} to {}",
                    ready[0].queue,
                    index + 1,
                    job.queue
                )));
            }
            // The broker would take both.
            if let Some(before) = seen.insert((&job.kind, &job.id), index) {
                let name = keys.get(&index).map_or(job.id.as_str(), String::as_str);
                return Err(Error::invalid(format!(
                    "jobs {} and {} of the batch have the same id or key {name:?}",
                    before + 1,
                    index + 1
                )));
            }
        }
        let guard = |job: &Ready| guard_subject(&client.namespace, &job.queue, &job.kind, &job.id);
        let guards = ready.iter().map(guard).collect();
        Ok(Self { jobs: ready, keys, guards, last_of_first: None, answers: Answers::Complete })
    }

    fn is_certain(&self) -> bool {
        self.answers == Answers::Complete
    }

    fn may_be_stored(&mut self) {
        self.answers = Answers::Missing;
        for job in &mut self.jobs {
            job.may_be_stored();
        }
    }

    /// The error for a batch whose end is not known in time.
    fn is_unsettled(&self) -> Error {
        let count = self.jobs.len();
        match self.answers {
            Answers::Complete => Error::new(
                ErrorKind::Unavailable,
                format!(
                    "others enqueue the same keys all the time: none of the {count} jobs is stored"
                ),
            ),
            Answers::Missing => Error::new(
                ErrorKind::Unknown,
                format!(
                    "the broker does not say whether it has the {count} jobs; look for job {} when it \
                     answers again: with it, all are there",
                    self.jobs[0].id
                ),
            ),
        }
    }
}

impl Ready {
    /// Whether another of its id cannot or must not be there.
    fn is_guarded(&self) -> bool {
        self.is_unique() || self.has_fresh_id()
    }
}
