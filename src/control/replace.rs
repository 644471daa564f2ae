//! Replacing a unique job that has not begun: its payload, its time, its priority.

use crate::client::{Client, JobHandle, NewJob, Ready};
use crate::error::{Error, ErrorKind, Result};

/// How often it is tried while others enqueue the same key.
const TRIES: usize = 20;

impl Client {
    /// Enqueues a unique job in place of the one of its key that waits or is not yet due, which ends
    /// as cancelled, with the reason `replaced`. With none there it is a plain enqueue. Of many calls
    /// in a short time, each with a delay, only the last one's job runs (debouncing).
    ///
    /// One that is running is not replaced: it is told as a duplicate, and nothing is stored.
    ///
    /// # Errors
    /// `is_invalid` for a job without a unique key; otherwise those of [`Client::enqueue`].
    pub async fn enqueue_replacing(&self, job: impl Into<NewJob>) -> Result<JobHandle> {
        let job = job.into();
        if !job.is_unique() {
            return Err(Error::invalid(
                "a job that is to replace another needs a key: give it one with `unique`",
            ));
        }
        for _ in 0..TRIES {
            let there = match self.enqueue(job.clone()).await {
                Err(error) if error.is_duplicate() => return Err(self.unseen(job, error).await),
                enqueued => enqueued?,
            };
            if !there.is_duplicate() {
                return Ok(there);
            }
            let (queue, kind, id) = (there.queue(), there.kind(), there.id());
            // Whichever run of the id it is: beside one that runs no other may begin.
            let running = self.running_of(queue, id, 1).await?;
            if let Some(it) = running.into_iter().find(|job| job.kind == *kind && job.id == *id) {
                return Ok(there.of_run(it.run));
            }
            let found = self.find(queue, Some(kind), id).await?;
            let Some(old) = found.iter().find(|found| found.key.run == *there.run()) else {
                continue;
            };
            if let Some(replaced) =
                self.store_beside(self.ready(job.clone())?, old.sequence).await?
            {
                // With what others have left here who were killed before this.
                self.cancel_runs(found, "replaced").await?;
                return Ok(replaced);
            }
        }
        let message = "others enqueue the same key all the time: try again";
        Err(Error::new(ErrorKind::Unavailable, message))
    }

    /// Why a job that is there cannot be replaced by those who may not look at it: the look says which
    /// right they lack.
    async fn unseen(&self, job: NewJob, duplicate: Error) -> Error {
        let looked = async {
            let Ready { queue, kind, id, .. } = job.finish()?;
            self.find(&queue, Some(&kind), &id).await
        };
        looked.await.err().unwrap_or(duplicate)
    }
}
