//! Making a queue's consumers what they have to be, while its jobs are worked.

use std::time::Duration;

use futures_util::future::try_join_all;
use tokio::time::{Instant, sleep};

use super::revive::HANDS_ARE_EMPTY;
use crate::broker::{Mend, Mending};
use crate::client::Client;
use crate::error::Result;
use crate::priority::Priority;
use crate::token::Queue;

/// How long jobs that run may take to end before their lane's consumer is made anew. Those that still
/// run then are handed out again, and may run twice at once.
const RUNNING_MAY_END: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(500);

impl Client {
    /// Makes what tidemill relies on of a queue's consumers what it has to be, with jobs under way; what
    /// is its user's to choose stays. The consumers that were changed, by stream and consumer.
    ///
    /// Most options the broker changes in place. Where a consumer keeps its state is fixed at its birth:
    /// its lane is paused, jobs that run have half a minute to end, and it is made anew. What it had
    /// handed out is handed out again then, with the attempts that it has used and for the rest of its
    /// delay; a job that still runs may run twice at once, and completes once. Repeating it is harmless.
    ///
    /// # Errors
    /// `is_not_found` where the queue does not exist or lacks a consumer, `is_permission` where these
    /// credentials may not make consumers.
    pub async fn mend_queue(&self, queue: &Queue) -> Result<Vec<String>> {
        let mends = self.consumers_to_mend(queue).await?;
        let all = mends.iter().map(|mend| self.carry_out(queue, mend));
        try_join_all(all).await?;
        Ok(mends.iter().map(Mend::place).collect())
    }

    async fn carry_out(&self, queue: &Queue, mend: &Mend) -> Result<()> {
        match (mend.by, mend.consumer.parse::<Priority>()) {
            (Mending::MadeAnew, Ok(lane)) => {
                self.while_paused(queue, lane, async {
                    self.ends_what_runs(queue, lane).await?;
                    mend.carry_out(self.conn()).await
                })
                .await?;
            }
            // What is due is promoted within seconds, and once however often it is handed out.
            (Mending::MadeAnew, Err(_)) | (Mending::Changed, _) => {
                mend.carry_out(self.conn()).await?;
            }
        }
        tracing::info!(%queue, consumer = mend.place(), "mended");
        Ok(())
    }

    /// Waits until nothing of a paused lane runs any more, within bounds.
    async fn ends_what_runs(&self, queue: &Queue, lane: Priority) -> Result<()> {
        let deadline = Instant::now() + RUNNING_MAY_END;
        // What was fetched and does not start is handed back meanwhile.
        sleep(HANDS_ARE_EMPTY).await;
        loop {
            let running = self.running(queue).await?;
            if Instant::now() > deadline || running.iter().all(|job| job.priority != lane) {
                return Ok(());
            }
            sleep(LOOK_AGAIN).await;
        }
    }
}
