//! Finding what is stuck: counted, and looked at twice.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::future::try_join_all;
use tokio::time::sleep;

use super::reach::{Outlet, Reach};
use super::{StuckJob, StuckJobs};
use crate::broker::{ConsumerFacts, Start};
use crate::client::Client;
use crate::error::Result;
use crate::inspect::{Found, JobState, state_of};
use crate::token::Queue;
use crate::wire::RunningJob;

/// How often a consumer is looked at until nothing moves meanwhile, and the pause before.
const LOOKS: usize = 10;
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// What is stuck is so still after this; what was on its way is not.
const STILL: Duration = Duration::from_secs(1);

/// The most jobs of an outlet that are brought back at once.
const MAX_STUCK: usize = 100_000;

/// Messages read at once, each of whose ledgers is looked at.
const PAGE: usize = 256;

/// How much has to be known of a job to call it stuck.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proof {
    /// What the consumer says.
    Consumer,
    /// That the lane has been paused for long enough.
    EmptyHands,
}

impl Client {
    /// An outlet at a moment at which nothing moved; `None` where it always moves, or has no consumer.
    pub(crate) async fn reach(&self, queue: &Queue, outlet: Outlet) -> Result<Option<Reach>> {
        let streams = self.streams(queue);
        let look = || self.conn().consumer_facts(outlet.stream(&streams), outlet.consumer());
        let Some(mut before) = look().await? else { return Ok(None) };
        for _ in 0..LOOKS {
            let messages = self.messages_on(queue, outlet).await?;
            let Some(consumer) = look().await? else { return Ok(None) };
            let counts = |facts: &ConsumerFacts| {
                (facts.waiting, facts.unsettled, facts.handed_out, facts.settled_up_to)
            };
            if counts(&before) == counts(&consumer) {
                return Ok(Some(Reach { consumer, messages }));
            }
            before = consumer;
            sleep(LOOK_AGAIN).await;
        }
        Ok(None)
    }

    /// How many messages there are on what an outlet is to hand out.
    pub(crate) async fn messages_on(&self, queue: &Queue, outlet: Outlet) -> Result<u64> {
        let streams = self.streams(queue);
        let (stream, subjects) =
            (outlet.stream(&streams), outlet.subjects(self.namespace(), queue));
        let first = self.conn().batch(stream, &subjects, Start::Sequence(1), 1).await?;
        Ok(first.messages.len() as u64 + first.left)
    }

    /// How many messages of a queue no consumer hands out, by outlet. Looked at twice: what was on its
    /// way the first time is not the second.
    pub(crate) async fn count_stuck(&self, queue: &Queue) -> Result<Vec<(Outlet, u64)>> {
        let first = self.count_stuck_now(queue).await?;
        if first.iter().all(|(_, count)| *count == 0) {
            return Ok(first);
        }
        sleep(STILL).await;
        let second = self.count_stuck_now(queue).await?;
        let counts = first.into_iter().zip(second);
        Ok(counts.map(|((outlet, one), (_, other))| (outlet, one.min(other))).collect())
    }

    async fn count_stuck_now(&self, queue: &Queue) -> Result<Vec<(Outlet, u64)>> {
        let mut counts = Vec::new();
        for outlet in Outlet::ALL {
            let stuck = self.reach(queue, outlet).await?.map_or(0, |reach| reach.stuck());
            counts.push((outlet, stuck));
        }
        Ok(counts)
    }

    /// The jobs of a queue that no consumer reaches, as far as they are certain; nothing is changed.
    ///
    /// # Errors
    /// `is_not_found` where the queue does not exist, `is_permission` where these credentials may not
    /// look.
    pub async fn stuck_jobs(&self, queue: &Queue) -> Result<StuckJobs> {
        let mut all = StuckJobs::default();
        for outlet in Outlet::ALL {
            self.stuck_at(queue, outlet, Proof::Consumer, &mut all).await?;
        }
        Ok(all)
    }

    /// Adds what is stuck at an outlet.
    pub(crate) async fn stuck_at(
        &self,
        queue: &Queue,
        outlet: Outlet,
        proof: Proof,
        all: &mut StuckJobs,
    ) -> Result<()> {
        let Some((first, seen)) = self.look_once(queue, outlet, proof).await? else {
            return Ok(());
        };
        let seen: HashSet<u64> = seen.into_iter().map(|job| job.sequence).collect();
        sleep(STILL).await;
        let Some((second, mut again)) = self.look_once(queue, outlet, proof).await? else {
            return Ok(());
        };
        again.retain(|job| seen.contains(&job.sequence));
        all.untold += first.stuck().min(second.stuck()).saturating_sub(again.len() as u64);
        all.jobs.extend(again);
        Ok(())
    }

    /// What is surely stuck at an outlet, by the workers' word too; `None` where nothing is stuck.
    async fn look_once(
        &self,
        queue: &Queue,
        outlet: Outlet,
        proof: Proof,
    ) -> Result<Option<(Reach, Vec<StuckJob>)>> {
        let Some(reach) = self.reach(queue, outlet).await?.filter(|reach| reach.stuck() > 0) else {
            return Ok(None);
        };
        let running = match reach.consumer.unsettled {
            // What runs is unsettled: nobody has to be asked, and waited for, about nothing.
            0 => Vec::new(),
            _ => self.running_for_certain(queue).await?,
        };
        let stuck = self.surely_stuck(queue, outlet, &reach, proof, &running, MAX_STUCK).await?;
        Ok(Some((reach, stuck)))
    }

    /// What the consumer has behind it, is due, is none of these that run, and is certain not to be with
    /// a worker: the oldest so many.
    pub(crate) async fn surely_stuck(
        &self,
        queue: &Queue,
        outlet: Outlet,
        reach: &Reach,
        proof: Proof,
        running: &[RunningJob],
        at_most: usize,
    ) -> Result<Vec<StuckJob>> {
        let (mut stuck, mut passed, mut from) = (Vec::new(), reach.passed(), 1);
        while passed > 0 && stuck.len() < at_most {
            let page = self.page(queue, outlet, from).await?;
            let Some(last) = page.last else { break };
            from = last + 1;
            // Those behind are ahead of the consumer, or may be with a worker.
            let count = page.found.len().min(usize::try_from(passed).unwrap_or(usize::MAX));
            passed -= count as u64;
            let certain = page.found.into_iter().take(count).filter(|(sequence, _)| match proof {
                Proof::Consumer => reach.is_surely_stuck(*sequence),
                Proof::EmptyHands => true,
            });
            let certain = certain.filter_map(|(_, found)| found);
            let due = try_join_all(certain.map(|found| self.if_waiting(found, running))).await?;
            stuck.extend(due.into_iter().flatten().map(|found| StuckJob::of(found, outlet)));
            if proof == Proof::Consumer && !reach.is_surely_stuck(last) {
                break;
            }
        }
        stuck.truncate(at_most);
        Ok(stuck)
    }

    async fn page(&self, queue: &Queue, outlet: Outlet, from: u64) -> Result<Page> {
        let streams = self.streams(queue);
        let (stream, subjects) =
            (outlet.stream(&streams), outlet.subjects(self.namespace(), queue));
        let batch = self.conn().batch(stream, &subjects, Start::Sequence(from), PAGE).await?;
        let last = batch.messages.last().map(|last| last.sequence);
        let read = |stored| match outlet {
            Outlet::Lane(_) => self.read_waiting(queue, stored),
            Outlet::Due => self.read_timer(queue, stored),
        };
        let found = batch.messages.into_iter().map(|stored| (stored.sequence, read(stored)));
        Ok(Page { last, found: found.collect() })
    }

    /// The job, if it waits: those that are put off are with nobody either, whatever the ledger says, but
    /// are brought back when they are due.
    async fn if_waiting(&self, found: Found, running: &[RunningJob]) -> Result<Option<Found>> {
        let ledger = match found.is_timed() {
            true => Vec::new(),
            false => self.ledger(&found.key).await?,
        };
        Ok(match state_of(&found, &ledger, running, self.clock().now()) {
            JobState::Waiting => Some(found),
            JobState::Scheduled(_)
            | JobState::BackingOff(_)
            | JobState::Running(_)
            | JobState::Ended(_) => None,
        })
    }
}

/// A stretch of an outlet's messages.
struct Page {
    last: Option<u64>,
    /// By sequence; `None` where there is no job to be read.
    found: Vec<(u64, Option<Found>)>,
}
