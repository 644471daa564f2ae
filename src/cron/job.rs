//! What is to run again and again.

use crate::client::{NewJob, Ready};
use crate::error::{Error, Result};
use crate::schedule::Schedule;
use crate::token::CronName;
use crate::wire::{CronKey, CronNote, name};

/// A cron entry to be: a name, a schedule, and the job that each firing enqueues.
///
/// A mistake in it comes out when it is added.
#[derive(Clone, Debug)]
pub struct CronJob {
    name: String,
    schedule: Schedule,
    job: NewJob,
    skips_overlap: bool,
}

impl CronJob {
    /// An entry that enqueues `job` whenever `schedule` says so, under a name that its queue knows it
    /// by. Each firing is a job of its own, with the id `c-<name>-<number>`.
    pub fn new(name: impl AsRef<str>, schedule: Schedule, job: impl Into<NewJob>) -> Self {
        let name = name.as_ref().to_owned();
        Self { name, schedule, job: job.into(), skips_overlap: false }
    }

    /// Leaves a firing out while the job of an earlier one is unfinished. All its jobs then have the
    /// id `c-<name>`, which the broker lets in once at a time.
    #[must_use]
    pub fn skip_overlap(mut self) -> Self {
        self.skips_overlap = true;
        self
    }

    pub(super) fn finish(self, set: Option<&str>) -> Result<Entry> {
        let name = CronName::new(&self.name)?;
        let of_entry = |error| Error::invalid(format!("cron entry {:?}: {error}", self.name));
        let job = self.job.finish().map_err(of_entry)?;
        if !job.has_fresh_id() {
            return Err(of_entry(Error::invalid(
                "its jobs get ids of their own: leave out id and unique key, and say skip_overlap \
                 for one at a time",
            )));
        }
        for (header, option) in
            [(name::RUN_AFTER, "a time or delay"), (name::EXPIRES_AT, "an expiry")]
        {
            if job.headers.get(header).is_some() {
                return Err(of_entry(Error::invalid(format!(
                    "its jobs run when the schedule says so: leave out {option}"
                ))));
            }
        }
        let key =
            CronKey { queue: job.queue.clone(), lane: job.priority, kind: job.kind.clone(), name };
        let note = CronNote {
            schedule: self.schedule.to_string(),
            zone: self.schedule.zone().map(str::to_owned),
            skip_overlap: self.skips_overlap,
            set: set.map(str::to_owned),
            paused_at: None,
        };
        Ok(Entry { key, note, schedule: self.schedule.to_wire(), job })
    }
}

/// An entry that was checked and can be written.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: CronKey,
    pub(super) note: CronNote,
    /// As the broker takes it.
    pub(super) schedule: String,
    pub(super) job: Ready,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_makes_no_sense_is_refused_with_the_reason() {
        let hourly: Schedule = "@hourly".parse().expect("valid");
        let job = || NewJob::raw("report", "{}");
        let long = "x".repeat(41);
        let table = [
            ("nightly", job().id("mine"), "ids of their own"),
            ("nightly", job().unique("mine"), "skip_overlap"),
            ("nightly", job().delay(Duration::from_secs(1)), "a time or delay"),
            ("nightly", NewJob::raw("re port", "{}"), "kind \"re port\""),
            ("night.ly", job(), "cron name \"night.ly\""),
            (&long, job(), "use 1 to 40 characters"),
        ];
        for (name, job, reason) in table {
            let error = CronJob::new(name, hourly.clone(), job).finish(None).expect_err(reason);
            assert!(error.is_invalid() && error.to_string().contains(reason), "{error}");
        }
    }
}
