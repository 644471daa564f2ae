//! Whether a queue has anything left to do, wherever its jobs are: on lanes, on timers, or between.

use std::time::Duration;

use tokio::time::sleep;

use crate::broker::{Start, StreamState};
use crate::client::Client;
use crate::error::Result;
use crate::priority::Priority;
use crate::token::Queue;
use crate::wire::{cron_filter, fired_subject};

/// How soon to look again whether a queue is empty.
const FIRST_LOOK: Duration = Duration::from_millis(50);
const LONGEST_LOOK: Duration = Duration::from_secs(2);

/// What a queue's stream of timers holds.
pub(super) struct Timers {
    pub(super) jobs: u64,
    pub(super) cron: u64,
    /// Whether nothing came or went while it was counted.
    is_of_one_moment: bool,
}

/// A look for unfinished jobs: on the lanes, among the timers, and on the lanes again, since workers
/// move jobs from one to the other while they are looked for.
struct Look {
    before: StreamState,
    timers: Timers,
    after: StreamState,
}

impl Look {
    /// Rather one too many than one too few.
    fn unfinished(&self) -> u64 {
        self.timers.jobs + self.before.messages.max(self.after.messages)
    }

    /// Whether nothing is unfinished. A job that this look has found nowhere went from its timer to its
    /// lane after the lanes were first looked at, and their last sequence tells of it.
    fn is_empty(&self) -> bool {
        self.unfinished() == 0 && self.timers.is_of_one_moment && self.before.is_as(&self.after)
    }
}

impl Client {
    /// How many jobs of a queue are unfinished: waiting, running, backing off or not yet due. One that
    /// is moved just now, from its lane to a timer or back, may count twice.
    ///
    /// # Errors
    /// As [`Client::queue_info`].
    pub async fn unfinished(&self, queue: &Queue) -> Result<u64> {
        Ok(self.look_at(queue).await?.unfinished())
    }

    /// How many jobs of a queue, or of one of its lanes, the broker holds until they are due.
    ///
    /// # Errors
    /// `is_not_found` where the queue does not exist, `is_permission` where these credentials may not
    /// read its timers.
    pub async fn timers(&self, queue: &Queue, lane: Option<Priority>) -> Result<u64> {
        let stream = self.streams(queue).timers;
        let mut count = 0;
        for subjects in self.timed_subjects(queue, lane) {
            let first = self.conn().batch(&stream, &subjects, Start::Sequence(1), 1).await?;
            count += first.messages.len() as u64 + first.left;
        }
        Ok(count)
    }

    /// Waits until a queue has no unfinished jobs: none that waits, runs, backs off or is not yet due.
    ///
    /// # Errors
    /// As [`Client::queue_info`].
    pub async fn wait_empty(&self, queue: &Queue) -> Result<()> {
        let mut pause = FIRST_LOOK;
        while !self.look_at(queue).await?.is_empty() {
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_LOOK);
        }
        Ok(())
    }

    /// Looks for unfinished jobs wherever they can be.
    async fn look_at(&self, queue: &Queue) -> Result<Look> {
        let (conn, stream) = (self.conn(), self.streams(queue).jobs);
        let before = conn.stream_state(&stream, None).await?;
        let timers = self.timers_and_cron(queue).await?;
        let after = conn.stream_state(&stream, None).await?;
        Ok(Look { before, timers, after })
    }

    /// How many jobs of a queue the broker holds until they are due, and its cron entries: told from
    /// each other by counting what there is few of.
    pub(super) async fn timers_and_cron(&self, queue: &Queue) -> Result<Timers> {
        let (ns, conn, stream) = (self.namespace(), self.conn(), self.streams(queue).timers);
        let entries = cron_filter(ns, queue, None);
        let cron = conn.stream_state(&stream, Some(&entries)).await?;
        let notes = fired_subject(ns, queue, None);
        let fired = conn.stream_state(&stream, Some(&notes)).await?;
        Ok(Timers {
            jobs: fired.messages.saturating_sub(cron.matching + fired.matching),
            cron: cron.matching,
            is_of_one_moment: cron.is_as(&fired),
        })
    }

    /// The subjects of jobs that are not yet due, and of those that are on their way to their lane.
    pub(super) fn timed_subjects(&self, queue: &Queue, lane: Option<Priority>) -> [String; 2] {
        let (ns, lane) = (self.namespace(), lane.map_or("*", Priority::as_str));
        ["timers", "due"].map(|what| format!("{ns}.{what}.{queue}.{lane}.>"))
    }
}
