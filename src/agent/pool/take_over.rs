//! Putting the jobs of a pool's file into a queue: each once, many at a time, in their order.

use std::collections::HashSet;

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::task::unconstrained;

use super::file::{Entry, PoolFile};
use crate::client::{Client, Ready};
use crate::error::Result;
use crate::token::JobId;
use crate::wire::Scope;

/// Jobs that are looked for, and then stored, before those that follow.
const CHUNK: usize = 500;

/// Jobs that are looked for at once.
const LOOKS: usize = 64;

/// What came of taking a file over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolImport {
    /// Jobs that were added.
    pub added: Vec<JobId>,
    /// Jobs that were there already, unfinished or ended, or came before in the file.
    pub there: Vec<JobId>,
    /// Entries that cannot be taken over: the position in the file, from 0, and why.
    pub broken: Vec<(usize, String)>,
}

impl PoolFile {
    /// Takes for broken what is too large for the broker.
    pub fn check_sizes(&mut self, client: &Client) {
        let broken = &mut self.broken;
        self.jobs.retain(|Entry { position, job }| match client.check_size(job) {
            Ok(()) => true,
            Err(error) => {
                broken.push((*position, error.to_string()));
                false
            }
        });
        self.broken.sort_by_key(|(position, _)| *position);
    }

    /// Adds its jobs to the queue, with their ids, priorities, attempts and times. What is there
    /// already is not added again, nor what has ended for as long as the queue keeps results: 7 days
    /// unless configured. So repeating this is harmless, also after it was dropped half-way.
    ///
    /// While the broker is away or the queue is full it goes on trying, without end.
    ///
    /// # Errors
    /// `is_permission` where these credentials may not look at the queue or enqueue, and others of
    /// [`Client::enqueue`] that trying again cannot mend and that are not the job's fault.
    pub async fn import(self, client: &Client) -> Result<PoolImport> {
        self.import_with_progress(client, |_| {}).await
    }

    /// The same; `progress` is told now and then how many jobs are dealt with.
    ///
    /// # Errors
    /// As [`PoolFile::import`].
    pub async fn import_with_progress(
        mut self,
        client: &Client,
        mut progress: impl FnMut(usize),
    ) -> Result<PoolImport> {
        self.check_sizes(client);
        let mut done = PoolImport { broken: self.broken, ..PoolImport::default() };
        let (mut seen, mut count) = (HashSet::new(), 0);
        let mut jobs = self.jobs.into_iter().peekable();
        while let Some(first) = jobs.peek() {
            client.patiently(|| client.ensure_once(&first.job.queue)).await?;
            let chunk: Vec<Entry> = jobs.by_ref().take(CHUNK).collect();
            count += chunk.len();
            let is_new =
                |entry: &Entry| seen.insert((entry.job.kind.clone(), entry.job.id.clone()));
            let (new, again): (Vec<_>, Vec<_>) = chunk.into_iter().partition(is_new);
            done.there.extend(again.into_iter().map(|entry| entry.job.id));
            store_those_not_there(client, new, &mut done).await?;
            progress(count);
        }
        done.broken.sort_by_key(|(position, _)| *position);
        Ok(done)
    }
}

async fn store_those_not_there(
    client: &Client,
    entries: Vec<Entry>,
    done: &mut PoolImport,
) -> Result<()> {
    let looks = entries.iter().map(|entry| client.patiently(|| is_there(client, &entry.job)));
    let there: Vec<bool> = stream::iter(looks).buffered(LOOKS).try_collect().await?;
    let mut absent = Vec::new();
    for (entry, is_there) in entries.into_iter().zip(there) {
        match is_there {
            true => done.there.push(entry.job.id),
            false => absent.push(entry),
        }
    }
    let stores = absent.iter().map(|Entry { job, .. }| async {
        client.store_patiently(client.protect(job.clone(), Scope::Job)?).await
    });
    // Tokio's budget would make some of them yield before they send, and so change their order.
    let stored = unconstrained(stream::iter(stores).buffered(CHUNK).collect::<Vec<_>>()).await;
    for (Entry { position, job }, stored) in absent.into_iter().zip(stored) {
        match stored {
            Ok(stored) if stored.is_duplicate() => done.there.push(job.id),
            Ok(_) => done.added.push(job.id),
            Err(error) if error.is_invalid() || error.is_too_large() => {
                done.broken.push((position, error.to_string()));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether a job is in the queue, or was.
async fn is_there(client: &Client, job: &Ready) -> Result<bool> {
    let found = client.find(&job.queue, Some(&job.kind), &job.id).await?;
    Ok(found.iter().any(|found| found.key.run == job.run)
        || client.end_of(&job.key()).await?.is_some())
}
