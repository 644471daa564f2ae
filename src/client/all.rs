//! All or nothing: many jobs of a queue in one atomic batch.

use std::collections::HashMap;

use tokio::time::{Instant, sleep};

use super::Client;
use super::completion::JobHandle;
use super::new_job::{NewJob, Ready};
use super::resolve::{FIRST_PAUSE, LONGEST_PAUSE};
use crate::broker::{BatchMessage, Expect, MAX_BATCH, Published};
use crate::error::{Error, ErrorKind, Result};
use crate::wire::guard_subject;

/// A batch that is checked and can be sent, as often as it takes.
struct Batch {
    jobs: Vec<Ready>,
    /// By position, of unique jobs.
    keys: HashMap<usize, String>,
    guards: Vec<String>,
}

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
        let mut batch = Batch::new(self, jobs)?;
        let Some(first) = batch.jobs.first() else { return Ok(Vec::new()) };
        for job in &batch.jobs {
            self.check_size(job)?;
        }
        let queue = first.queue.clone();
        let times = self.whole.times(&queue);
        let published = match self.send_all(&batch).await {
            Err(error) if error.is_unavailable() => {
                self.ensure_again(&queue, times).await?;
                self.send_all(&batch).await
            }
            published => published,
        };
        match published {
            Ok(Published::Stored(last)) => return Ok(self.handles(&batch, last)),
            Ok(Published::WrongLast(_)) => return Err(self.taken(&batch).await),
            Ok(Published::InFlight) => {}
            Err(error) if error.is_unknown() => batch.may_be_stored(),
            Err(error) => return Err(error),
        }
        self.settle_batch(batch).await
    }

    async fn send_all(&self, batch: &Batch) -> Result<Published> {
        let id = uuid::Uuid::now_v7().simple().to_string();
        let messages = batch.jobs.iter().zip(&batch.guards).map(|(job, guard)| BatchMessage {
            subject: self.subject_of(job),
            headers: &job.headers,
            payload: job.payload.clone(),
            expect: match job.is_guarded() {
                true => Expect::LastOf { guard, sequence: 0 },
                false => Expect::Anything,
            },
        });
        self.conn.store_all(&id, messages.collect()).await
    }

    /// Finds out what became of a batch whose answer is missing: looks for it, and sends it again
    /// where that cannot store it twice.
    async fn settle_batch(&self, batch: Batch) -> Result<Vec<JobHandle>> {
        let deadline = Instant::now() + self.resolve_window();
        let mut pause = FIRST_PAUSE;
        while Instant::now() < deadline {
            match self.is_there(&batch.jobs[0]).await {
                Ok(Some(first)) => {
                    let last = first + (batch.jobs.len() as u64 - 1);
                    return Ok(self.handles(&batch, last));
                }
                Ok(None) if batch.jobs.iter().all(Ready::is_guarded) => {
                    match self.send_all(&batch).await {
                        Ok(Published::Stored(last)) => return Ok(self.handles(&batch, last)),
                        Ok(Published::WrongLast(_))
                            if self.is_there(&batch.jobs[0]).await?.is_none() =>
                        {
                            return Err(self.taken(&batch).await);
                        }
                        Ok(Published::WrongLast(_) | Published::InFlight) => {}
                        Err(error) if error.is_unknown() || error.is_unavailable() => {}
                        Err(error) => return Err(error),
                    }
                }
                Ok(None) => {}
                Err(error) => tracing::debug!(%error, "a batch cannot be looked for yet"),
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        Err(Error::new(
            ErrorKind::Unknown,
            format!(
                "the broker does not say whether it has the {} jobs; look for job {} when it \
                 answers again: with it, all are there",
                batch.jobs.len(),
                batch.jobs[0].id
            ),
        ))
    }

    /// The sequence of a run that is stored, or was.
    async fn is_there(&self, job: &Ready) -> Result<Option<u64>> {
        let guard = guard_subject(&self.namespace, &job.queue, &job.kind, &job.id);
        let stream = self.streams(&job.queue).jobs;
        if let Some(there) = self.conn.last_of_leader(&stream, &guard).await?
            && job.run_of(&there) == job.run
        {
            return Ok(Some(there.sequence));
        }
        Ok(self.end_of(&job.key()).await?.map(|completion| completion.seq))
    }

    /// The error for a batch that a taken key has kept out.
    async fn taken(&self, batch: &Batch) -> Error {
        for (index, key) in &batch.keys {
            let job = &batch.jobs[*index];
            let stream = self.streams(&job.queue).jobs;
            if let Ok(Some(_)) = self.conn.last_of_leader(&stream, &batch.guards[*index]).await {
                return Error::new(
                    ErrorKind::Duplicate,
                    format!(
                        "key {key:?} is taken: job {} is unfinished in queue {}; none of the {} \
                         jobs is stored",
                        job.id,
                        job.queue,
                        batch.jobs.len()
                    ),
                );
            }
        }
        Error::new(
            ErrorKind::Duplicate,
            format!("a key was taken when the {} jobs came: none is stored", batch.jobs.len()),
        )
    }

    fn handles(&self, batch: &Batch, last: u64) -> Vec<JobHandle> {
        let first = last + 1 - batch.jobs.len() as u64;
        let numbered = (first..).zip(&batch.jobs);
        numbered
            .map(|(sequence, job)| JobHandle::new(self.clone(), job.key(), Some(sequence)))
            .collect()
    }
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
            ready.push(job.finish().map_err(|error| {
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
        Ok(Self { jobs: ready, keys, guards })
    }

    fn may_be_stored(&mut self) {
        for job in &mut self.jobs {
            job.may_be_stored();
        }
    }
}

impl Ready {
    /// Whether another of its id cannot or must not be there.
    fn is_guarded(&self) -> bool {
        self.is_unique() || self.has_fresh_id()
    }
}
