//! How a queue is set up, as its users say it.

use std::time::Duration;

use crate::error::{Error, Result};

/// Where the broker keeps a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Storage {
    /// On disk.
    #[default]
    File,
    /// In memory: gone when the server (or the last of its replicas) ends.
    Memory,
}

impl Storage {
    /// In the broker's words.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Memory => "memory",
        }
    }
}

/// How a queue is set up. The defaults suit one server and a moderate load; each field says what it
/// limits.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueConfig {
    /// Copies of each stream in a cluster: 1, 3 or 5. Default 1.
    pub replicas: u8,
    /// File or memory. Default file.
    pub storage: Storage,
    /// How long a worker may be silent about a job before the job goes to another. At least 1 s;
    /// default 30 s.
    pub ack_wait: Duration,
    /// Unfinished jobs that the queue holds; more are refused. Default 10 million.
    pub max_jobs: u64,
    /// Bytes of unfinished jobs that the queue holds; more are refused. Default 1 GiB.
    pub max_jobs_bytes: u64,
    /// How long completions are kept. Default 7 days. Must exceed ten times `ack_wait`: for that
    /// long a completion is what keeps a second one out.
    pub results_age: Duration,
    /// Completions that are kept, the oldest going first. Default 1 million (about 400 MB of the
    /// broker's memory).
    pub max_results: u64,
    /// Bytes of completions that are kept, the oldest going first. Default 512 MiB.
    pub max_results_bytes: u64,
    /// How long the ledger of attempts is kept. At least 90 days, the default.
    pub attempts_age: Duration,
    /// How long dead letters are kept. Default 90 days.
    pub dead_age: Duration,
    /// Dead letters that are kept; while there is no room, jobs wait to be buried. Default 1 million.
    pub max_dead: u64,
    /// Bytes of dead letters that are kept. Default 256 MiB.
    pub max_dead_bytes: u64,
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const MIB: u64 = 1024 * 1024;

impl Default for QueueConfig {
    fn default() -> Self {
        Self {
            replicas: 1,
            storage: Storage::File,
            ack_wait: Duration::from_secs(30),
            max_jobs: 10_000_000,
            max_jobs_bytes: 1024 * MIB,
            results_age: 7 * DAY,
            max_results: 1_000_000,
            max_results_bytes: 512 * MIB,
            attempts_age: 90 * DAY,
            dead_age: 90 * DAY,
            max_dead: 1_000_000,
            max_dead_bytes: 256 * MIB,
        }
    }
}

impl QueueConfig {
    pub(crate) fn check(&self) -> Result<()> {
        let problem = if !matches!(self.replicas, 1 | 3 | 5) {
            format!("replicas is {}: use 1, 3 or 5", self.replicas)
        } else if self.ack_wait < Duration::from_secs(1) {
            format!("ack_wait is {:?}: use at least 1 s", self.ack_wait)
        } else if !fences_long_enough(self.results_age, self.ack_wait) {
            format!(
                "results_age is {:?}: use at least ten times ack_wait ({:?}), for which time a \
                 completion keeps a second one out",
                self.results_age, self.ack_wait
            )
        } else if self.attempts_age < 90 * DAY {
            format!("attempts_age is {:?}: use at least 90 days", self.attempts_age)
        } else {
            return Ok(());
        };
        Err(Error::invalid(format!("queue configuration: {problem}")))
    }
}

/// Whether completions that are kept for `results_age` keep second ones out for as long as a job can
/// still be in the hands of a worker that was given up.
pub(crate) fn fences_long_enough(results_age: Duration, ack_wait: Duration) -> bool {
    results_age >= 10 * ack_wait
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_would_break_a_promise_are_refused() {
        let short = QueueConfig { results_age: Duration::from_secs(60), ..QueueConfig::default() };
        assert!(short.check().expect_err("too short").to_string().contains("ten times ack_wait"));
        let even = QueueConfig { replicas: 2, ..QueueConfig::default() };
        assert!(even.check().is_err());
        assert!(QueueConfig::default().check().is_ok());
    }
}
