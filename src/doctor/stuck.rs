//! Jobs that their lane's consumer does not reach any more, and how they come back.
//!
//! A consumer that somebody has changed by hand forgets jobs without a word: those that a filter left
//! out when it passed them, and those that were handed out `max_deliver` times. They stay in the stream,
//! and widening the filter or the limit does not bring them back.
//!
//! How many there are is a matter of counting. Of a lane's messages the consumer has all but `waiting`
//! behind it; of those `unsettled` are with workers, or come again; the rest is stuck. Which ones it is
//! has to be found out, since the broker tells of none whether it is unsettled. So a job is brought back
//! only if it is certain that no worker has it: below the sequence up to which all is settled, or where
//! nothing is unsettled at all. Where that is not so, the lane is paused for as long as a worker may hold
//! a job that it has not started, and jobs that no worker runs then, and that are due, are in nobody's
//! hands. One that merely came up for another try then is moved, not doubled.
//!
//! A job is brought back as all jobs are moved: by a copy of the same run, under the guard that the
//! source is the last of its id, with the attempts that it has used; then the source is deleted.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::TryStreamExt;
use tokio::time::sleep;

use crate::broker::{ConsumerFacts, Start};
use crate::client::Client;
use crate::error::Result;
use crate::inspect::{Found, JobFilter, JobState, Stand};
use crate::priority::Priority;
use crate::token::{JobId, Kind, Queue, RunId};
use crate::wire::RecordKey;

/// How often a lane is looked at until nothing moves meanwhile, and the pause before.
const LOOKS: usize = 10;
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// What is stuck is so still after this; what was on its way is not.
const STILL: Duration = Duration::from_secs(1);

/// The most jobs that are brought back at once.
const MAX_STUCK: usize = 100_000;

/// A job that no consumer reaches.
#[derive(Debug)]
#[non_exhaustive]
pub struct StuckJob {
    /// Its queue.
    pub queue: Queue,
    /// Its kind.
    pub kind: Kind,
    /// Its id.
    pub id: JobId,
    /// Which enqueue of the id it is.
    pub run: RunId,
    /// Its lane.
    pub priority: Priority,
    /// Its place in the jobs stream.
    pub sequence: u64,
    pub(super) found: Found,
}

/// What was found of stuck jobs.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct StuckJobs {
    /// Those that are known.
    pub jobs: Vec<StuckJob>,
    /// How many more there are that cannot be told yet from those that workers have, or that back off.
    pub untold: u64,
}

/// How far the consumers of a queue reach.
#[derive(Debug, Default)]
pub(super) struct Reach {
    /// By lane: how many jobs are stuck.
    pub(super) stuck: Vec<(Priority, u64)>,
    /// Messages on subjects of no lane.
    pub(super) uncovered: u64,
}

/// A lane at a moment at which nothing moved.
struct Lane {
    consumer: ConsumerFacts,
    /// How many messages there are.
    messages: u64,
}

impl Lane {
    /// How many the consumer has behind it.
    fn passed(&self) -> u64 {
        self.messages.saturating_sub(self.consumer.waiting)
    }

    fn stuck(&self) -> u64 {
        self.passed().saturating_sub(self.consumer.unsettled)
    }

    /// Whether it is certain that a message that the consumer has behind it is with nobody.
    fn is_surely_stuck(&self, sequence: u64) -> bool {
        self.consumer.unsettled == 0 || sequence <= self.consumer.settled_up_to
    }
}

/// How much has to be known of a job to call it stuck.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    /// What the consumer says.
    Consumer,
    /// That the lane has been paused for long enough.
    EmptyHands,
}

impl Client {
    /// How many jobs the consumers of a queue do not reach. Looked at twice: what was on its way the
    /// first time is not the second.
    pub(super) async fn reach(&self, queue: &Queue) -> Result<Reach> {
        let first = self.reach_now(queue).await?;
        if first.uncovered == 0 && first.stuck.iter().all(|(_, count)| *count == 0) {
            return Ok(first);
        }
        sleep(STILL).await;
        let second = self.reach_now(queue).await?;
        let counts = first.stuck.iter().zip(second.stuck);
        let stuck = counts.map(|((lane, one), (_, other))| (*lane, other.min(*one))).collect();
        Ok(Reach { stuck, uncovered: first.uncovered.min(second.uncovered) })
    }

    async fn reach_now(&self, queue: &Queue) -> Result<Reach> {
        let stream = self.streams(queue).jobs;
        let mut reach = Reach::default();
        let Some(before) = self.conn().stream_facts(&stream).await? else { return Ok(reach) };
        let mut on_lanes = 0;
        for lane in Priority::ALL {
            on_lanes += self.messages_on(queue, lane).await?;
            let stuck = self.still_lane(queue, lane).await?.map_or(0, |lane| lane.stuck());
            reach.stuck.push((lane, stuck));
        }
        reach.uncovered = before.messages.saturating_sub(on_lanes);
        Ok(reach)
    }

    /// How many messages a lane has.
    async fn messages_on(&self, queue: &Queue, lane: Priority) -> Result<u64> {
        let (ns, stream) = (self.namespace(), self.streams(queue).jobs);
        let subjects = format!("{ns}.jobs.{queue}.{lane}.>");
        let first = self.conn().batch(&stream, &subjects, Start::Sequence(1), 1).await?;
        Ok(first.messages.len() as u64 + first.left)
    }

    /// A lane at a moment at which nothing moved; `None` where it always moves, or has no consumer.
    async fn still_lane(&self, queue: &Queue, lane: Priority) -> Result<Option<Lane>> {
        let stream = self.streams(queue).jobs;
        let look = || self.conn().consumer_facts(&stream, lane.as_str());
        let Some(mut before) = look().await? else { return Ok(None) };
        for _ in 0..LOOKS {
            let messages = self.messages_on(queue, lane).await?;
            let Some(consumer) = look().await? else { return Ok(None) };
            let counts = |facts: &ConsumerFacts| {
                (facts.waiting, facts.unsettled, facts.handed_out, facts.settled_up_to)
            };
            if counts(&before) == counts(&consumer) {
                return Ok(Some(Lane { consumer, messages }));
            }
            before = consumer;
            sleep(LOOK_AGAIN).await;
        }
        Ok(None)
    }

    /// The jobs of a queue that no consumer reaches, as far as they are certain; nothing is changed.
    ///
    /// # Errors
    /// `is_not_found` where the queue does not exist, `is_permission` where these credentials may not
    /// look.
    pub async fn stuck_jobs(&self, queue: &Queue) -> Result<StuckJobs> {
        let mut all = StuckJobs::default();
        for lane in Priority::ALL {
            self.stuck_on(queue, lane, Proof::Consumer, &mut all).await?;
        }
        Ok(all)
    }

    /// Adds the stuck jobs of a lane.
    pub(super) async fn stuck_on(
        &self,
        queue: &Queue,
        lane: Priority,
        proof: Proof,
        all: &mut StuckJobs,
    ) -> Result<()> {
        let Some(first) = self.still_lane(queue, lane).await?.filter(|lane| lane.stuck() > 0)
        else {
            return Ok(());
        };
        let seen = self.candidates(queue, lane, &first, proof).await?;
        let seen: HashSet<u64> = seen.into_iter().map(|found| found.sequence).collect();
        sleep(STILL).await;
        let Some(second) = self.still_lane(queue, lane).await? else { return Ok(()) };
        let mut again = self.candidates(queue, lane, &second, proof).await?;
        again.retain(|found| seen.contains(&found.sequence));
        all.untold += first.stuck().min(second.stuck()).saturating_sub(again.len() as u64);
        all.jobs.extend(again.into_iter().map(StuckJob::of));
        Ok(())
    }

    /// What the consumer has behind it, is due, is not run by anybody, and is certain not to be with a
    /// worker.
    async fn candidates(
        &self,
        queue: &Queue,
        priority: Priority,
        lane: &Lane,
        proof: Proof,
    ) -> Result<Vec<Found>> {
        let mut filter = JobFilter::queue(queue.clone());
        filter.priority = Some(priority);
        let passed = usize::try_from(lane.passed()).unwrap_or(usize::MAX).min(MAX_STUCK);
        if passed == 0 {
            return Ok(Vec::new());
        }
        let mut stands = std::pin::pin!(self.stands(filter));
        let (mut candidates, mut looked_at) = (Vec::new(), 0);
        while looked_at < passed
            && let Some(Stand { found, state, .. }) = stands.try_next().await?
        {
            // The timers come behind the lane.
            if found.is_timed() {
                break;
            }
            looked_at += 1;
            let is_certain = match proof {
                Proof::Consumer => lane.is_surely_stuck(found.sequence),
                Proof::EmptyHands => true,
            };
            match state {
                JobState::Waiting if is_certain => candidates.push(found),
                // Those of the consumer's certainty are with nobody, whatever the ledger says; they
                // are brought back when they are due.
                JobState::Waiting
                | JobState::Scheduled(_)
                | JobState::BackingOff(_)
                | JobState::Running(_)
                | JobState::Ended(_) => {}
            }
        }
        Ok(candidates)
    }
}

impl StuckJob {
    fn of(found: Found) -> Self {
        let RecordKey { queue, kind, id, run } = found.key.clone();
        Self { queue, kind, id, run, priority: found.priority, sequence: found.sequence, found }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_stuck_is_a_matter_of_counting() {
        let lane = |messages, waiting, unsettled, settled_up_to| Lane {
            messages,
            consumer: ConsumerFacts {
                config: json!({}),
                waiting,
                unsettled,
                settled_up_to,
                handed_out: 0,
                paused_until: None,
            },
        };
        for (lane, stuck) in [
            (lane(10, 10, 0, 0), 0),
            (lane(10, 4, 6, 0), 0),
            (lane(10, 4, 5, 0), 1),
            (lane(10, 0, 0, 0), 10),
            // In a moment at which something moved.
            (lane(4, 6, 0, 0), 0),
        ] {
            assert_eq!(lane.stuck(), stuck);
        }
        assert!(lane(3, 0, 0, 0).is_surely_stuck(9), "nothing is with anybody");
        assert!(lane(3, 0, 1, 9).is_surely_stuck(9));
        assert!(!lane(3, 0, 1, 8).is_surely_stuck(9));
    }
}
