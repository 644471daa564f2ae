//! Bringing stuck jobs back, after what strands them was mended; see `stuck` for which jobs are.

use std::convert::Infallible;
use std::time::Duration;

use tokio::time::sleep;

use crate::client::Client;
use crate::error::Result;
use crate::priority::Priority;
use crate::stuck::{Outlet, Proof, Revived, StuckJob, StuckJobs, Taking};
use crate::token::Queue;
use crate::wire::time::{self, Time};

/// Longer than a worker holds a job that it does not start.
const HANDS_ARE_EMPTY: Duration = Duration::from_secs(4);

/// How long a lane stays paused at most, should this program not end well. While it works, it renews
/// that every third of it.
const PAUSED_FOR: Duration = Duration::from_secs(60);

impl Client {
    /// Brings stuck jobs of a queue back, each with the attempts that it has used; what became of each.
    ///
    /// Options of consumers that strand jobs are mended first: filters, `max_deliver`, `backoff`. Where
    /// a job may be with a worker, its lane is paused for some seconds, to be certain that it is not.
    ///
    /// # Errors
    /// `is_not_found` where the queue does not exist or lacks a consumer, `is_permission` where these
    /// credentials may not do it.
    pub async fn revive_stuck(&self, queue: &Queue) -> Result<Vec<(StuckJob, Revived)>> {
        self.mend_consumers(queue).await?;
        let mut done = Vec::new();
        for outlet in Outlet::ALL {
            let mut stuck = StuckJobs::default();
            self.stuck_at(queue, outlet, Proof::Consumer, &mut stuck).await?;
            let StuckJobs { jobs, untold } = stuck;
            done.extend(self.bring_all_back(jobs).await?);
            match outlet {
                Outlet::Lane(lane) if untold > 0 => {
                    done.extend(self.revive_paused(queue, lane).await?);
                }
                // What is due is settled within seconds: nobody has to be kept from it.
                Outlet::Lane(_) | Outlet::Due => {}
            }
        }
        Ok(done)
    }

    async fn bring_all_back(&self, jobs: Vec<StuckJob>) -> Result<Vec<(StuckJob, Revived)>> {
        let mut done = Vec::new();
        for job in jobs {
            let revived = self.bring_back(&job, Taking::Delete).await.inspect_err(|_| {
                let (done, id) = (done.len(), &job.id);
                tracing::warn!(done, job = %id, "stopped at this job; see the error");
            })?;
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
        self.pause_for_a_while(queue, lane, paused_before).await?;
        let revived = async {
            sleep(HANDS_ARE_EMPTY).await;
            let mut stuck = StuckJobs::default();
            self.stuck_at(queue, Outlet::Lane(lane), Proof::EmptyHands, &mut stuck).await?;
            self.bring_all_back(stuck.jobs).await
        };
        let revived = tokio::select! {
            revived = revived => revived,
            failed = self.keep_paused(queue, lane, paused_before) => failed.map(|never| match never {}),
        };
        self.set_pause(queue, Some(lane), paused_before).await?;
        revived
    }

    /// Keeps a lane paused; ends only where that fails.
    async fn keep_paused(
        &self,
        queue: &Queue,
        lane: Priority,
        paused_before: Option<Time>,
    ) -> Result<Infallible> {
        loop {
            sleep(PAUSED_FOR / 3).await;
            self.pause_for_a_while(queue, lane, paused_before).await?;
        }
    }

    /// Pauses a lane for a while, unless it is for longer.
    async fn pause_for_a_while(
        &self,
        queue: &Queue,
        lane: Priority,
        paused_before: Option<Time>,
    ) -> Result<()> {
        let until = time::after(self.now(queue).await, PAUSED_FOR);
        if paused_before.is_some_and(|before| before >= until) {
            return Ok(());
        }
        self.set_pause(queue, Some(lane), Some(until)).await
    }
}
