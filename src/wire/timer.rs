//! Timers: copies of jobs that the broker holds until they are due (ADR-51).

use super::headers::{Headers, name};
use super::subject::{RecordKey, due_subject, timer_subject};
use super::time::{self, Time};
use crate::priority::Priority;
use crate::token::Namespace;

/// The latest time at which a timer can be due: the broker counts nanoseconds since 1970 in 64 bits, and
/// what goes beyond (in April 2262) has passed for it.
const LATEST_NANOS: i64 = i64::MAX / 1_000_000_000 * 1_000_000_000;

/// A copy of a job: the same run, wherever it is put.
#[derive(Clone, Copy, Debug)]
pub(crate) struct JobCopy<'a> {
    pub(crate) key: &'a RecordKey,
    pub(crate) lane: Priority,
    /// The job's own headers.
    pub(crate) headers: &'a Headers,
    pub(crate) attempts_used: u32,
    pub(crate) enqueued_at: Time,
    /// Not to be run before, where that is not the timer's word.
    pub(crate) run_after: Option<Time>,
}

impl JobCopy<'_> {
    /// The copy's headers: the job's, and what makes it one of the same run.
    pub(crate) fn headers(&self) -> Headers {
        let mut headers = self.headers.for_copy();
        headers.remove(name::RUN_AFTER);
        if let Some(time) = self.run_after {
            headers.set(name::RUN_AFTER, time::to_text(&time));
        }
        headers.set(name::RUN, self.key.run.as_str());
        headers.set(name::ATTEMPTS_USED, self.attempts_used.to_string());
        headers.set(name::CREATED_AT, time::to_text(&self.enqueued_at));
        headers
    }

    /// The subject and the headers by which the broker holds the copy until `due`, or until the end
    /// of the time that it can count.
    pub(crate) fn timer(&self, ns: &Namespace, due: Time) -> (String, Headers) {
        let due = due.min(time::from_nanos(LATEST_NANOS));
        let mut headers = self.headers();
        headers.set(name::SCHEDULE, format!("@at {}", time::to_text(&due)));
        headers.set(name::SCHEDULE_TARGET, due_subject(ns, self.lane, self.key));
        (timer_subject(ns, self.lane, self.key), headers)
    }

    /// The same, and in the same step the run's timer on lane `old` is taken away.
    pub(crate) fn timer_instead(
        &self,
        ns: &Namespace,
        due: Time,
        old: Priority,
    ) -> (String, Headers) {
        let (subject, mut headers) = self.timer(ns, due);
        self.take_away(ns, old, &mut headers);
        (subject, headers)
    }

    /// The subject and the headers that put the copy out now, and take away the run's timer on lane
    /// `old`, which it is of.
    pub(crate) fn due_now(&self, ns: &Namespace, old: Priority) -> (String, Headers) {
        let mut headers = self.headers();
        self.take_away(ns, old, &mut headers);
        (due_subject(ns, self.lane, self.key), headers)
    }

    fn take_away(&self, ns: &Namespace, old: Priority, headers: &mut Headers) {
        headers.set(name::SCHEDULER, timer_subject(ns, old, self.key));
        headers.set(name::SCHEDULE_NEXT, "purge");
    }
}
