//! A job before it is enqueued: what it is and how it is to be treated.

use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};

use crate::error::{Error, Result};
use crate::kind::Job;
use crate::priority::Priority;
use crate::retry::{Backoff, MAX_DELAY};
use crate::token::{JobId, Kind, Queue, RunId, is_token};
use crate::wire::{Headers, name, time};

/// A job to be: payload, queue, priority and options. A mistake in it (a bad name, a payload that
/// does not serialize) comes out when it is enqueued.
///
/// ```
/// # #[derive(serde::Serialize, serde::Deserialize)] struct Resize { width: u32 }
/// # impl tidemill::Job for Resize { const KIND: &'static str = "resize"; }
/// use tidemill::{NewJob, Priority};
///
/// let typed = NewJob::new(&Resize { width: 640 }).priority(Priority::Low).id("cover-17");
/// let raw = NewJob::raw("resize", r#"{"width": 640}"#).queue("images");
/// ```
#[derive(Clone, Debug)]
pub struct NewJob(Result<Draft, String>);

#[derive(Clone, Debug)]
pub(super) struct Draft {
    pub(super) queue: Queue,
    pub(super) priority: Priority,
    pub(super) kind: Kind,
    pub(super) id: Option<JobId>,
    /// What the id of a unique job is derived from.
    pub(super) key: Option<String>,
    pub(super) headers: Headers,
    pub(super) payload: Bytes,
}

impl NewJob {
    /// A job with a typed payload, in the queue that its type names.
    pub fn new<J: Job>(job: &J) -> Self {
        Self(
            serde_json::to_vec(job)
                .map_err(|error| format!("a job of kind {} does not serialize: {error}", J::KIND))
                .and_then(|payload| Draft::new(J::QUEUE, J::KIND, payload.into())),
        )
    }

    /// A job of any kind with these bytes as payload, in the queue `default`. They are taken for
    /// JSON unless a header `Content-Type` says otherwise.
    pub fn raw(kind: impl AsRef<str>, payload: impl Into<Bytes>) -> Self {
        Self(Draft::new("default", kind.as_ref(), payload.into()))
    }

    fn with(self, change: impl FnOnce(&mut Draft) -> Result<()>) -> Self {
        Self(self.0.and_then(|mut draft| match change(&mut draft) {
            Ok(()) => Ok(draft),
            Err(error) => Err(error.to_string()),
        }))
    }

    /// The queue it goes to.
    #[must_use]
    pub fn queue(self, queue: impl AsRef<str>) -> Self {
        self.with(|draft| Queue::new(queue).map(|queue| draft.queue = queue))
    }

    /// Its priority. Default normal.
    #[must_use]
    pub fn priority(self, priority: Priority) -> Self {
        self.with(|draft| {
            draft.priority = priority;
            Ok(())
        })
    }

    /// An id of your own, in place of a fresh one. An id may come back: each time is a run of its
    /// own, with its own completion.
    #[must_use]
    pub fn id(self, id: impl AsRef<str>) -> Self {
        self.with(|draft| JobId::chosen(id.as_ref()).map(|id| draft.id = Some(id)))
    }

    /// At most one job of this key, queue and kind is waiting, running, backing off or not yet due at
    /// any time, over all priorities. Its id is derived from the key. Enqueueing another meanwhile
    /// gives the one that is there: see [`JobHandle::is_duplicate`](super::JobHandle::is_duplicate).
    /// The key is free again when that one has ended.
    #[must_use]
    pub fn unique(self, key: impl AsRef<str>) -> Self {
        self.with(|draft| {
            if key.as_ref().is_empty() {
                return Err(Error::invalid(
                    "a unique key is empty: give one that tells jobs apart",
                ));
            }
            draft.id = Some(JobId::of_key(key.as_ref()));
            draft.key = Some(key.as_ref().to_owned());
            draft.set(name::UNIQUE, "1".to_owned())
        })
    }

    /// The same, and for `period` after one is done another is not run: it ends as cancelled, with
    /// the reason `duplicate`. What counts is when the other is enqueued, or due if that is later.
    /// Whole milliseconds, at least one.
    ///
    /// Who was done when is known by completions: a period over
    /// [`results_age`](crate::QueueConfig::results_age), or over what
    /// [`max_results`](crate::QueueConfig::max_results) leaves, ends when they are gone. The worker
    /// warns of the first.
    #[must_use]
    pub fn unique_for(self, key: impl AsRef<str>, period: Duration) -> Self {
        self.unique(key).with(|draft| {
            if period > MAX_DELAY {
                return Err(Error::invalid(format!(
                    "a period of {period:?} is too long: use at most {MAX_DELAY:?}"
                )));
            }
            draft.set(name::UNIQUE, period.as_millis().max(1).to_string())
        })
    }

    /// Retries after the first attempt, in place of the worker's policy.
    #[must_use]
    pub fn max_retries(self, retries: u32) -> Self {
        self.with(|draft| draft.set(name::MAX_RETRIES, retries.to_string()))
    }

    /// The delays between attempts, in place of the worker's policy. A custom law cannot travel.
    #[must_use]
    pub fn backoff(self, backoff: &Backoff) -> Self {
        self.with(|draft| match backoff.to_wire() {
            Some(text) => draft.set(name::BACKOFF, text),
            None => Err(Error::invalid(
                "a custom backoff cannot travel with a job: give it to the worker",
            )),
        })
    }

    /// How long one attempt may take, in place of the worker's limit; whole milliseconds.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        self.with(|draft| draft.set(name::TIMEOUT, timeout.as_millis().max(1).to_string()))
    }

    /// Not to be run before this time, by the broker's clock; a time that has passed means now.
    #[must_use]
    pub fn run_at(self, time: DateTime<Utc>) -> Self {
        self.with(|draft| draft.set(name::RUN_AFTER, time::to_text_not_before(&time)))
    }

    /// Not to be run before this long after the broker has stored it; whole milliseconds.
    #[must_use]
    pub fn delay(self, delay: Duration) -> Self {
        self.with(|draft| {
            if delay > MAX_DELAY {
                return Err(Error::invalid(format!(
                    "a delay of {delay:?} is too long: use at most {MAX_DELAY:?}"
                )));
            }
            draft.set(name::RUN_AFTER, format!("+{}", delay.as_millis()))
        })
    }

    /// Not to be run at all if its first attempt has not started by this time; it then ends as
    /// `expired`.
    #[must_use]
    pub fn expires_at(self, time: DateTime<Utc>) -> Self {
        self.with(|draft| draft.set(name::EXPIRES_AT, time::to_text(&time)))
    }

    /// A tag to find it by.
    #[must_use]
    pub fn tag(self, tag: impl AsRef<str>) -> Self {
        self.with(|draft| {
            let tag = tag.as_ref();
            if !is_token(tag) {
                return Err(Error::invalid(format!("tag {tag:?} is not a valid token")));
            }
            let tags = match draft.headers.get(name::TAGS) {
                Some(tags) => format!("{tags},{tag}"),
                None => tag.to_owned(),
            };
            draft.set(name::TAGS, tags)
        })
    }

    /// A header of your own; handlers see it. The names that begin `Nats-` and `Tidemill-` are taken.
    #[must_use]
    pub fn header(self, name: impl AsRef<str>, value: impl AsRef<str>) -> Self {
        self.with(|draft| {
            check_header(name.as_ref(), value.as_ref())?;
            draft.headers.append(name.as_ref(), value.as_ref());
            Ok(())
        })
    }

    /// The key of a unique job.
    pub(super) fn key(&self) -> Option<&str> {
        self.0.as_ref().ok()?.key.as_deref()
    }

    pub(crate) fn is_unique(&self) -> bool {
        self.key().is_some()
    }

    /// The job if there is no mistake in it, as enqueueing it would find.
    ///
    /// # Errors
    /// `is_invalid`, naming the first mistake.
    pub fn check(self) -> Result<Self> {
        match self.0 {
            Ok(_) => Ok(self),
            Err(problem) => Err(Error::invalid(problem)),
        }
    }

    pub(crate) fn finish(self) -> Result<Ready> {
        self.0.map(Ready::new).map_err(Error::invalid)
    }
}

impl<J: Job> From<J> for NewJob {
    fn from(job: J) -> Self {
        Self::new(&job)
    }
}

impl Draft {
    fn new(queue: &str, kind: &str, payload: Bytes) -> Result<Self, String> {
        let names = Queue::new(queue).and_then(|queue| Ok((queue, Kind::new(kind)?)));
        let (queue, kind) = names.map_err(|error| error.to_string())?;
        Ok(Self {
            queue,
            priority: Priority::default(),
            kind,
            id: None,
            key: None,
            headers: Headers::new(),
            payload,
        })
    }

    fn set(&mut self, name: &str, value: String) -> Result<()> {
        self.headers.set(name, value);
        Ok(())
    }
}

fn check_header(name: &str, value: &str) -> Result<()> {
    let printable = |byte: u8| byte.is_ascii_graphic() && byte != b':';
    if name.is_empty() || !name.bytes().all(printable) {
        return Err(Error::invalid(format!(
            "header name {name:?} is not valid: use printable ASCII without spaces and colons"
        )));
    }
    if crate::wire::is_brokers(name) || crate::wire::is_ours(name) {
        return Err(Error::invalid(format!(
            "header name {name:?} is taken: names that begin Nats- or Tidemill- steer the broker \
             and tidemill"
        )));
    }
    if value.contains(['\r', '\n']) {
        return Err(Error::invalid(format!("the value of header {name} has a line break")));
    }
    Ok(())
}

/// A job with its id and run, ready to be stored, as often as it takes.
#[derive(Clone, Debug)]
pub(crate) struct Ready {
    pub(crate) queue: Queue,
    pub(crate) priority: Priority,
    pub(crate) kind: Kind,
    pub(crate) id: JobId,
    pub(crate) run: RunId,
    pub(crate) headers: Headers,
    pub(crate) payload: Bytes,
}

impl Ready {
    fn new(draft: Draft) -> Self {
        let Draft { queue, priority, kind, id, key: _, mut headers, payload } = draft;
        // A fresh id is its own run; an id that may come back needs one.
        let (id, run) = match id {
            None => {
                let id = JobId::fresh();
                let run = id.as_run();
                (id, run)
            }
            Some(id) => {
                let run = RunId::fresh();
                headers.set(name::RUN, run.as_str());
                (id, run)
            }
        };
        Self { queue, priority, kind, id, run, headers, payload }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(job: NewJob) -> String {
        job.finish().expect_err("should be refused").to_string()
    }

    #[test]
    fn a_fresh_job_needs_no_header_and_a_chosen_id_gets_a_run() {
        let fresh = NewJob::raw("send", "{}").finish().expect("valid");
        assert!(fresh.headers.is_empty());
        assert_eq!(fresh.id.as_str(), fresh.run.as_str());
        let chosen = NewJob::raw("send", "{}").id("order-17").finish().expect("valid");
        assert_eq!(chosen.headers.get("Tidemill-Run"), Some(chosen.run.as_str()));
        assert_ne!(chosen.id.as_str(), chosen.run.as_str());
    }

    #[test]
    fn a_unique_job_has_the_id_of_its_key_and_a_run_of_its_own() {
        let one = || NewJob::raw("send", "{}").unique("user-7").finish().expect("valid");
        assert_eq!(one().id, one().id);
        assert_ne!(one().run, one().run);
        assert_eq!(one().headers.get("Tidemill-Unique"), Some("1"));
        let period = Duration::from_secs(60);
        let timed = NewJob::raw("send", "{}").unique_for("user-7", period).finish().expect("valid");
        assert_eq!(timed.headers.get("Tidemill-Unique"), Some("60000"));
        assert_eq!(timed.id, one().id);
    }

    #[test]
    fn options_travel_as_headers() {
        let job = NewJob::raw("send", "{}")
            .max_retries(5)
            .timeout(Duration::from_secs(2))
            .backoff(&Backoff::fixed(Duration::from_millis(500)))
            .tag("a")
            .tag("b")
            .header("X-Tenant", "7")
            .finish()
            .expect("valid");
        let expected: Headers = [
            ("Tidemill-Max-Retries", "5"),
            ("Tidemill-Timeout", "2000"),
            ("Tidemill-Backoff", "fixed:500"),
            ("Tidemill-Tags", "a,b"),
            ("X-Tenant", "7"),
        ]
        .into_iter()
        .collect();
        assert_eq!(job.headers, expected);
    }

    #[test]
    fn mistakes_are_named_with_the_rule() {
        let raw = || NewJob::raw("send", "{}");
        assert!(error(NewJob::raw("send email", "")).contains("kind \"send email\""));
        assert!(error(raw().unique("")).contains("key is empty"));
        assert!(error(raw().queue("a.b")).contains("queue \"a.b\""));
        assert!(error(raw().id("s-7")).contains("kept for ids that tidemill derives"));
        assert!(error(raw().header("Nats-Rollup", "all")).contains("is taken"));
        assert!(error(raw().header("tidemill-run", "x")).contains("is taken"));
        assert!(error(raw().header("X", "a\r\nNats-Rollup: all")).contains("line break"));
        assert!(error(raw().backoff(&Backoff::custom(|_| Duration::ZERO))).contains("custom"));
        // The first mistake is the one that is told.
        assert!(error(raw().id("").priority(Priority::Low).tag("")).contains("job id"));
    }
}
