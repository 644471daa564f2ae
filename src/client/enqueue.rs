//! Enqueue: one job or many, to a known end even where the broker's answer is lost.

use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use tokio::task::unconstrained;
use tokio::time::{Instant, sleep};

use super::Client;
use super::completion::JobHandle;
use super::new_job::{NewJob, Ready};
use crate::broker::{Expect, Published, Stored};
use crate::error::{Error, ErrorKind, Result};
use crate::priority::Priority;
use crate::retry::Backoff;
use crate::topology::JOB_HEADROOM_BYTES;
use crate::wire::{
    Completion, JobHeaders, RecordKey, RecordKind, guard_subject, job_subject, name, parse_record,
    record_subject,
};

/// Publishes in flight at once in [`Client::enqueue_many`]. On three replicas a larger window was
/// measured to halve the rate.
const PIPELINE: usize = 500;

/// The first pause before an enqueue with an unknown outcome is asked again; it doubles up to
/// [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// A job about to be enqueued: set its options, then `.await` it.
///
/// The options are those of [`NewJob`].
#[must_use = "an enqueue does nothing until it is awaited"]
#[derive(Debug)]
pub struct Enqueue {
    client: Client,
    job: NewJob,
}

/// Forwards options to the job.
macro_rules! options {
    ($($(#[$doc:meta])* $name:ident($($arg:ident: $type:ty),*);)*) => {
        impl Enqueue {
            $($(#[$doc])*
            pub fn $name(mut self, $($arg: $type),*) -> Self {
                self.job = self.job.$name($($arg),*);
                self
            })*
        }
    };
}

options! {
    /// See [`NewJob::queue`].
    queue(queue: impl AsRef<str>);
    /// See [`NewJob::priority`].
    priority(priority: Priority);
    /// See [`NewJob::id`].
    id(id: impl AsRef<str>);
    /// See [`NewJob::max_retries`].
    max_retries(retries: u32);
    /// See [`NewJob::backoff`].
    backoff(backoff: &Backoff);
    /// See [`NewJob::timeout`].
    timeout(timeout: Duration);
    /// See [`NewJob::run_at`].
    run_at(time: chrono::DateTime<chrono::Utc>);
    /// See [`NewJob::delay`].
    delay(delay: Duration);
    /// See [`NewJob::expires_at`].
    expires_at(time: chrono::DateTime<chrono::Utc>);
    /// See [`NewJob::tag`].
    tag(tag: impl AsRef<str>);
    /// See [`NewJob::header`].
    header(name: impl AsRef<str>, value: impl AsRef<str>);
}

impl IntoFuture for Enqueue {
    type Output = Result<JobHandle>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { self.client.store(self.job.finish()?).await })
    }
}

impl Client {
    /// Puts a job into its queue; see [`NewJob`] for what can be said of it. `Ok` means that the
    /// broker has stored it.
    ///
    /// # Errors
    /// `is_invalid` for a mistake in the job, `is_too_large` for a payload over the server's limit,
    /// `is_full` where the queue takes no more for now, `is_unknown` where the broker answers
    /// neither this nor the questions after it: the job may or may not be there.
    pub fn enqueue(&self, job: impl Into<NewJob>) -> Enqueue {
        Enqueue { client: self.clone(), job: job.into() }
    }

    /// Enqueues many jobs in order, hundreds in flight at once, and tells of each what became of it.
    /// Not all-or-nothing: some may fail while others are stored.
    pub async fn enqueue_many<I>(&self, jobs: I) -> Vec<Result<JobHandle>>
    where
        I: IntoIterator,
        I::Item: Into<NewJob>,
    {
        let stores = jobs.into_iter().map(|job| {
            let job = job.into().finish();
            async { self.store(job?).await }
        });
        // Tokio's budget would make some of them yield before they send, and so change their order.
        unconstrained(stream::iter(stores).buffered(PIPELINE).collect()).await
    }

    async fn store(&self, job: Ready) -> Result<JobHandle> {
        self.check_size(&job)?;
        let times = self.whole.times(&job.queue);
        let sequence = match self.publish(&job, Expect::Anything).await {
            // Nothing listens there: the queue has to be made first.
            Err(error) if error.is_unavailable() => {
                self.ensure_again(&job.queue, times).await?;
                self.publish(&job, Expect::Anything).await
            }
            published => published,
        };
        let sequence = match sequence {
            Ok(Published::Stored(sequence)) => sequence,
            Err(error) if !error.is_unknown() => return Err(error),
            // Published without a condition, so only the answer is missing.
            Ok(Published::WrongLast(_) | Published::InFlight) | Err(_) => {
                return self.store_once(job).await;
            }
        };
        Ok(JobHandle::new(self.clone(), job.key(), sequence))
    }

    /// Stores a run that may be stored already, or worked already: once in any case.
    pub(crate) async fn store_once(&self, mut job: Ready) -> Result<JobHandle> {
        // Makes the worker look for a completion of this run before it runs it.
        if job.headers.get(name::ATTEMPTS_USED).is_none() {
            job.headers.set(name::ATTEMPTS_USED, "0");
        }
        let sequence = self.resolve(&job).await?;
        Ok(JobHandle::new(self.clone(), job.key(), sequence))
    }

    async fn publish(&self, job: &Ready, expect: Expect<'_>) -> Result<Published> {
        let Ready { queue, priority, kind, id, headers, payload, .. } = job;
        let subject = job_subject(&self.namespace, queue, *priority, kind, Some(id));
        self.conn.store(subject, headers, payload.clone(), expect).await
    }

    fn check_size(&self, job: &Ready) -> Result<()> {
        let limit = self.conn.max_payload().saturating_sub(JOB_HEADROOM_BYTES);
        let size = job.payload.len() + job.headers.wire_bytes();
        if size <= limit {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::TooLarge,
            format!(
                "job {} of kind {} has {size} bytes with its headers: this server takes {limit} (its \
                 max_payload less 64 KiB); keep large data elsewhere and enqueue a reference",
                job.id, job.kind
            ),
        ))
    }

    /// Sends a run under a guard that lets it in once, until its outcome is known.
    async fn resolve(&self, job: &Ready) -> Result<u64> {
        let guard = guard_subject(&self.namespace, &job.queue, &job.kind, &job.id);
        let deadline = Instant::now() + self.resolve_window();
        let mut expected = 0;
        let mut pause = FIRST_PAUSE;
        loop {
            let expect = Expect::LastOf { guard: &guard, sequence: expected };
            match self.publish(job, expect).await {
                Ok(Published::Stored(sequence)) => return Ok(sequence),
                Ok(Published::WrongLast(last)) => match self.whose(job, last).await {
                    Ok(Whose::Ours(sequence)) => return Ok(sequence),
                    Ok(Whose::Another) if job.headers.get(name::UNIQUE).is_some() => {
                        return Err(duplicate(job));
                    }
                    Ok(Whose::Another) => expected = last,
                    Ok(Whose::Gone) => expected = 0,
                    Err(error) if error.is_permission() && job.has_fresh_id() => return Ok(last),
                    Err(error) if error.is_permission() => return Err(not_ours_to_see(job)),
                    Err(error) => tracing::debug!(%error, "cannot look up an enqueue"),
                },
                Ok(Published::InFlight) => {}
                Err(error) if error.is_unknown() || error.is_unavailable() => {
                    tracing::debug!(%error, "an enqueue is still unknown");
                }
                Err(error) => return Err(error),
            }
            if Instant::now() >= deadline {
                return Err(Error::new(
                    ErrorKind::Unknown,
                    format!(
                        "the broker does not say whether it has job {}: look for that id when it \
                         answers again, before you enqueue it anew",
                        job.id
                    ),
                ));
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Whose the message at `sequence` is, which keeps ours out.
    async fn whose(&self, job: &Ready, sequence: u64) -> Result<Whose> {
        let streams = self.streams(&job.queue);
        if let Some(there) = self.conn.by_sequence(&streams.jobs, sequence).await? {
            return Ok(if job.is_run_of(&there) { Whose::Ours(sequence) } else { Whose::Another });
        }
        // It was just worked. If that was our run, its completion is there.
        let key = job.key();
        let subject = record_subject(&self.namespace, RecordKind::Result, &key);
        let ended = self.conn.last_of_leader(&streams.results, &subject).await?;
        let ended = ended.and_then(|record| parse_record::<Completion>(&key, &record.payload));
        Ok(ended.map_or(Whose::Gone, |completion| Whose::Ours(completion.seq)))
    }
}

enum Whose {
    Ours(u64),
    Another,
    Gone,
}

fn duplicate(job: &Ready) -> Error {
    Error::new(
        ErrorKind::Duplicate,
        format!("job {} is to be unique, and another of its id is in queue {}", job.id, job.queue),
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
    fn key(&self) -> RecordKey {
        RecordKey {
            queue: self.queue.clone(),
            kind: self.kind.clone(),
            id: self.id.clone(),
            run: self.run.clone(),
        }
    }

    fn has_fresh_id(&self) -> bool {
        self.id.as_str() == self.run.as_str()
    }

    fn is_run_of(&self, there: &Stored) -> bool {
        let run = JobHeaders::parse(&there.headers).ok().and_then(|headers| headers.run);
        run.unwrap_or_else(|| self.id.default_run(there.sequence)) == self.run
    }
}
