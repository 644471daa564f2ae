//! Bringing stuck jobs back, after what strands them was mended; see `stuck` for which jobs are.

use std::time::Duration;

use tokio::time::sleep;

use crate::client::Client;
use crate::error::Result;
use crate::priority::Priority;
use crate::stuck::{Outlet, Proof, Revived, StuckJob, StuckJobs, Taking};
use crate::token::Queue;

/// Longer than a worker holds a job that it does not start.
pub(super) const HANDS_ARE_EMPTY: Duration = Duration::from_secs(4);

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
        self.mend_queue(queue).await?;
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
        self.while_paused(queue, lane, async {
            sleep(HANDS_ARE_EMPTY).await;
            let mut stuck = StuckJobs::default();
            self.stuck_at(queue, Outlet::Lane(lane), Proof::EmptyHands, &mut stuck).await?;
            self.bring_all_back(stuck.jobs).await
        })
        .await
    }
}
