//! Bringing stuck jobs back. Copies have to be such that nothing is lost or doubled whoever is killed in
//! between; see `stuck` for which jobs are.

use std::time::Duration;

use tokio::time::sleep;

use super::stuck::{Proof, StuckJob, StuckJobs};
use crate::broker::{Expect, Published};
use crate::client::{Client, Ready};
use crate::error::{Error, ErrorKind, Result};
use crate::inspect::{Found, Place};
use crate::priority::Priority;
use crate::token::Queue;
use crate::wire::time;
use crate::wire::{JobCopy, RecordKey, guard_subject};

/// Longer than a worker holds a job that it does not start.
const HANDS_ARE_EMPTY: Duration = Duration::from_secs(4);

/// How long a lane is paused at most, should this program not end well.
const PAUSED_FOR: Duration = Duration::from_secs(60);

/// How often a copy is tried again because others are at it.
const TRIES: usize = 10;
const TRY_AGAIN: Duration = Duration::from_millis(50);

/// What became of a stuck job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Revived {
    /// It is on its lane again, for workers to take.
    Moved,
    /// It had ended before, or a copy of it was there: only its message was left, and is gone.
    Cleared,
    /// It had gone meanwhile.
    Gone,
    /// Another job of its unique key is there: it stays as it is.
    KeptOut,
}

impl Client {
    /// Brings stuck jobs of a queue back, each with the attempts that it has used; what became of each.
    ///
    /// Options of lanes that strand jobs are mended first: filters, `max_deliver`, `backoff`. Where a
    /// job may be with a worker, its lane is paused for some seconds, to be certain that it is not.
    ///
    /// # Errors
    /// `is_not_found` where the queue does not exist or lacks a consumer, `is_permission` where these
    /// credentials may not do it.
    pub async fn revive_stuck(&self, queue: &Queue) -> Result<Vec<(StuckJob, Revived)>> {
        self.mend_lanes(queue).await?;
        let mut done = Vec::new();
        for lane in Priority::ALL {
            let mut stuck = StuckJobs::default();
            self.stuck_on(queue, lane, Proof::Consumer, &mut stuck).await?;
            let StuckJobs { jobs, untold } = stuck;
            done.extend(self.revive_all(jobs).await?);
            if untold > 0 {
                done.extend(self.revive_paused(queue, lane).await?);
            }
        }
        Ok(done)
    }

    async fn revive_all(&self, jobs: Vec<StuckJob>) -> Result<Vec<(StuckJob, Revived)>> {
        let mut done = Vec::new();
        for job in jobs {
            let revived = self.revive(&job.found).await?;
            done.push((job, revived));
        }
        Ok(done)
    }

    /// Brings back what cannot be told from what workers have, while they get nothing.
    async fn revive_paused(
        &self,
        queue: &Queue,
        lane: Priority,
    ) -> Result<Vec<(StuckJob, Revived)>> {
        let stream = self.streams(queue).jobs;
        let facts = self.conn().consumer_facts(&stream, lane.as_str()).await?;
        let paused_before = facts.and_then(|facts| facts.paused_until);
        let until = time::after(self.now(queue).await, PAUSED_FOR);
        if paused_before.is_none_or(|before| before < until) {
            self.set_pause(queue, Some(lane), Some(until)).await?;
        }
        sleep(HANDS_ARE_EMPTY).await;
        let revived = async {
            let mut stuck = StuckJobs::default();
            self.stuck_on(queue, lane, Proof::EmptyHands, &mut stuck).await?;
            self.revive_all(stuck.jobs).await
        };
        let revived = revived.await;
        self.set_pause(queue, Some(lane), paused_before).await?;
        revived
    }

    /// Puts a job beside its stuck source, which then goes.
    async fn revive(&self, found: &Found) -> Result<Revived> {
        let conn = self.conn();
        if conn.by_sequence(&found.stream, found.sequence).await?.is_none() {
            return Ok(Revived::Gone);
        }
        if self.end_of(&found.key).await?.is_some() {
            return self.clear_source(found, Revived::Cleared).await;
        }
        let job = self.copy_of(found).await?;
        let guard = guard_subject(self.namespace(), &job.queue, &job.kind, &job.id);
        let mut expected = match found.place {
            Place::Lane => found.sequence,
            // No guard covers what was published without an id.
            Place::LaneWithoutId | Place::Timer(_) | Place::Due => 0,
        };
        for _ in 0..TRIES {
            let expect = Expect::LastOf { guard: &guard, sequence: expected };
            let last = match self.publish(&job, expect).await? {
                Published::Stored(_) => return self.clear_source(found, Revived::Moved).await,
                Published::WrongLast(last) => last,
                Published::InFlight => {
                    sleep(TRY_AGAIN).await;
                    continue;
                }
            };
            let there = match last {
                0 => None,
                last => conn.by_sequence(&found.stream, last).await?,
            };
            let Some(there) = there else {
                // Nothing of its id is there any more: the source is gone too.
                return Ok(Revived::Gone);
            };
            let there = self.read_waiting(&found.key.queue, there);
            match there.map(|there| there.key.run == found.key.run) {
                // A copy, of somebody who was killed before the source went.
                Some(true) => return self.clear_source(found, Revived::Cleared).await,
                Some(false) | None if found.options.unique.is_some() => {
                    return Ok(Revived::KeptOut);
                }
                Some(false) | None => expected = last,
            }
        }
        let message = format!("job {} cannot be brought back just now: try again", found.key.id);
        Err(Error::new(ErrorKind::Unavailable, message))
    }

    async fn copy_of(&self, found: &Found) -> Result<Ready> {
        let ledger = self.ledger(&found.key).await?;
        let used = ledger.last().map_or(0, |last| last.used());
        let copy = JobCopy {
            key: &found.key,
            lane: found.priority,
            headers: &found.headers,
            attempts_used: used.max(found.options.attempts_used.unwrap_or(0)),
            enqueued_at: found.enqueued_at().unwrap_or_else(|| self.clock().now()),
            run_after: None,
        };
        let RecordKey { queue, kind, id, run } = found.key.clone();
        let (headers, payload) = (copy.headers(), found.payload.clone());
        Ok(Ready { queue, priority: copy.lane, kind, id, run, headers, payload })
    }

    async fn clear_source(&self, found: &Found, revived: Revived) -> Result<Revived> {
        self.conn().delete(&found.stream, found.sequence).await?;
        Ok(revived)
    }
}
