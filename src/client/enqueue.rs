//! Enqueue: a job, to a known end even where the broker's answer is lost.

use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::time::Duration;

use super::Client;
use super::completion::JobHandle;
use super::new_job::{NewJob, Ready};
use crate::broker::{Expect, Published};
use crate::error::{Error, ErrorKind, Result};
use crate::priority::Priority;
use crate::retry::Backoff;
use crate::token::Queue;
use crate::topology::JOB_HEADROOM_BYTES;
use crate::wire::{MAX_HEADER_BYTES, guard_subject, job_subject};

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
    /// See [`NewJob::unique`].
    unique(key: impl AsRef<str>);
    /// See [`NewJob::unique_for`].
    unique_for(key: impl AsRef<str>, period: Duration);
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
        Box::pin(async move { self.client.store(self.client.ready(self.job)?).await })
    }
}

impl Client {
    /// Puts a job into its queue; see [`NewJob`] for what can be said of it. `Ok` means that the
    /// broker has stored it.
    ///
    /// # Errors
    /// `is_invalid` for a mistake in the job, `is_too_large` for a payload over the server's limit,
    /// `is_full` where the queue takes no more for now, `is_unknown` where the broker answers
    /// neither this nor the questions after it: the job may or may not be there. `is_duplicate` for
    /// a unique job where these credentials may not look at the one that is there; with the right to
    /// look, that is no error: see [`JobHandle::is_duplicate`].
    pub fn enqueue(&self, job: impl Into<NewJob>) -> Enqueue {
        Enqueue { client: self.clone(), job: job.into() }
    }

    pub(crate) async fn store(&self, mut job: Ready) -> Result<JobHandle> {
        self.check_size(&job)?;
        let times = self.whole.times(&job.queue);
        let guard =
            job.is_unique().then(|| guard_subject(&self.namespace, &job.queue, &job.kind, &job.id));
        let expect = match &guard {
            Some(guard) => Expect::LastOf { guard, sequence: 0 },
            None => Expect::Anything,
        };
        let published = match self.publish(&job, expect).await {
            // Nothing listens there: the queue has to be made first.
            Err(error) if error.is_unavailable() => {
                match self.ensure_again(&job.queue, times).await {
                    Ok(()) => self.publish(&job, expect).await,
                    Err(error) => Err(error),
                }
            }
            published => published,
        };
        match published {
            Ok(Published::Stored(sequence)) => {
                return Ok(JobHandle::new(self.clone(), job.key(), Some(sequence)));
            }
            Ok(Published::WrongLast(_) | Published::InFlight) => {}
            // Only the answer may be missing.
            Err(error) if error.is_unknown() => job.may_be_stored(),
            // The queue is there, or nobody can tell, as while its leader is elected.
            Err(error) if error.is_unavailable() => {}
            Err(error) => return Err(error),
        }
        self.resolve(job).await
    }

    pub(crate) async fn publish(&self, job: &Ready, expect: Expect<'_>) -> Result<Published> {
        let subject = self.subject_of(job);
        let stored = self.conn.store(subject, &job.headers, job.payload.clone(), expect).await;
        stored.map_err(|error| unless_full(&job.queue, error))
    }

    pub(super) fn subject_of(&self, job: &Ready) -> String {
        job_subject(&self.namespace, &job.queue, job.priority, &job.kind, Some(&job.id))
    }

    pub(crate) fn check_size(&self, job: &Ready) -> Result<()> {
        let limit = self.conn.max_payload().saturating_sub(JOB_HEADROOM_BYTES);
        let headers = job.headers.wire_bytes();
        if headers > MAX_HEADER_BYTES {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!(
                    "job {} of kind {} has {headers} bytes of headers: at most {MAX_HEADER_BYTES} leave \
                     room for those of its copies; put into the payload what is large",
                    job.id, job.kind
                ),
            ));
        }
        let size = job.payload.len() + headers;
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
}

/// Says of a queue that is full that it is.
pub(super) fn unless_full(queue: &Queue, error: Error) -> Error {
    if !error.is_full() {
        return error;
    }
    let message = format!(
        "queue {queue} is full: {error}; there is room again when workers have ended jobs, or its \
         limits, or the account's, are raised"
    );
    Error::new(ErrorKind::Full, message)
}
