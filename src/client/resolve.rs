//! Bringing an enqueue to a known end: under a guard that lets a run in once, asked again until the
//! broker says what became of it.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Client;
use super::completion::JobHandle;
use super::new_job::Ready;
use crate::broker::{Expect, Published, Stored};
use crate::error::{Error, ErrorKind, Result};
use crate::token::RunId;
use crate::wire::{
    Completion, JobHeaders, RecordKey, RecordKind, guard_subject, name, parse_record,
    record_subject,
};

/// The first pause before the broker is asked again; it doubles up to [`LONGEST_PAUSE`].
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(20);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Whose the message is that keeps a run out.
enum Whose {
    /// This very run's: it is there, or was worked already.
    Ours(u64),
    /// Another run's, of an id that may be there more than once.
    Another,
    /// Another run's, of a unique id.
    Duplicate(RunId),
    /// A run's that has ended, and makes room at any moment.
    Leaving,
    /// Nobody's any more.
    Gone,
}

impl Client {
    /// Stores a run that may be stored already, or worked already: once in any case.
    pub(crate) async fn store_once(&self, mut job: Ready) -> Result<JobHandle> {
        job.may_be_stored();
        self.resolve(job).await
    }

    /// Sends a run under its guard until its outcome is known.
    pub(super) async fn resolve(&self, mut job: Ready) -> Result<JobHandle> {
        let guard = guard_subject(&self.namespace, &job.queue, &job.kind, &job.id);
        let deadline = Instant::now() + self.resolve_window();
        let key = job.key();
        let stored = |sequence| Ok(JobHandle::new(self.clone(), key.clone(), sequence));
        let mut expected = 0;
        let mut pause = FIRST_PAUSE;
        loop {
            let expect = Expect::LastOf { guard: &guard, sequence: expected };
            match self.publish(&job, expect).await {
                Ok(Published::Stored(sequence)) => return stored(sequence),
                Ok(Published::WrongLast(last)) => match self.whose(&job, last).await {
                    Ok(Whose::Ours(sequence)) => return stored(sequence),
                    Ok(Whose::Duplicate(run)) => {
                        let key = RecordKey { run, ..key };
                        return Ok(JobHandle::duplicate(self.clone(), key, last));
                    }
                    Ok(Whose::Another) => expected = last,
                    Ok(Whose::Gone | Whose::Leaving) => expected = 0,
                    Err(error) if error.is_permission() && job.has_fresh_id() => {
                        return stored(last);
                    }
                    Err(error) if error.is_permission() => return Err(not_ours_to_see(&job)),
                    Err(error) => tracing::debug!(%error, "cannot look up an enqueue"),
                },
                Ok(Published::InFlight) => {}
                Err(error) if error.is_unknown() || error.is_unavailable() => {
                    tracing::debug!(%error, "an enqueue is still unknown");
                    job.may_be_stored();
                }
                Err(error) => return Err(error),
            }
            if Instant::now() >= deadline {
                return Err(still_unknown(&job));
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    pub(crate) fn handle(&self, job: &Ready, sequence: u64) -> JobHandle {
        JobHandle::new(self.clone(), job.key(), sequence)
    }

    /// Whose the message at `sequence` is, which keeps ours out.
    async fn whose(&self, job: &Ready, sequence: u64) -> Result<Whose> {
        let streams = self.streams(&job.queue);
        let there = match sequence {
            // The one that was expected has gone meanwhile.
            0 => None,
            _ => self.conn.by_sequence(&streams.jobs, sequence).await?,
        };
        let Some(there) = there else {
            // It was just worked. If that was our run, its completion is there.
            let ended = self.end_of(&job.key()).await?;
            return Ok(ended.map_or(Whose::Gone, |completion| Whose::Ours(completion.seq)));
        };
        let run = job.run_of(&there);
        if run == job.run {
            return Ok(Whose::Ours(sequence));
        }
        if !job.is_unique() {
            return Ok(Whose::Another);
        }
        let key = RecordKey { run: run.clone(), ..job.key() };
        Ok(match self.end_of(&key).await? {
            Some(_) => Whose::Leaving,
            None => Whose::Duplicate(run),
        })
    }

    /// How a run ended, as the stream's leader has it.
    pub(crate) async fn end_of(&self, key: &RecordKey) -> Result<Option<Completion>> {
        let stream = self.streams(&key.queue).results;
        let subject = record_subject(&self.namespace, RecordKind::Result, key);
        let record = self.conn.last_of_leader(&stream, &subject).await?;
        Ok(record.and_then(|record| parse_record(key, &record.payload)))
    }
}

fn still_unknown(job: &Ready) -> Error {
    Error::new(
        ErrorKind::Unknown,
        format!(
            "the broker does not say whether it has job {}: look for that id when it answers \
             again, before you enqueue it anew",
            job.id
        ),
    )
}

fn not_ours_to_see(job: &Ready) -> Error {
    Error::new(
        ErrorKind::Duplicate,
        format!(
            "a job with id {} is in queue {} already; these credentials may not see whether it is \
             this one",
            job.id, job.queue
        ),
    )
}

impl Ready {
    pub(crate) fn key(&self) -> RecordKey {
        RecordKey {
            queue: self.queue.clone(),
            kind: self.kind.clone(),
            id: self.id.clone(),
            run: self.run.clone(),
        }
    }

    pub(super) fn is_unique(&self) -> bool {
        self.headers.get(name::UNIQUE).is_some()
    }

    /// Makes the worker look for a completion of this run before it runs it.
    pub(super) fn may_be_stored(&mut self) {
        if self.headers.get(name::ATTEMPTS_USED).is_none() {
            self.headers.set(name::ATTEMPTS_USED, "0");
        }
    }

    pub(crate) fn has_fresh_id(&self) -> bool {
        self.id.as_str() == self.run.as_str()
    }

    /// The run of a message of the same id.
    pub(super) fn run_of(&self, there: &Stored) -> RunId {
        let run = JobHeaders::parse(&there.headers).ok().and_then(|headers| headers.run);
        run.unwrap_or_else(|| self.id.default_run(there.sequence))
    }
}
