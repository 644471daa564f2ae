//! Declared sets: what the code says is what there is.

use std::collections::{BTreeSet, HashSet};

use super::{Cron, CronChange, CronJob};
use crate::error::{Error, Result};
use crate::token::{CronName, Queue, is_token};

/// The set of an application that names none.
const DEFAULT_SET: &str = "default";

/// What came of declaring a set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reconciled {
    /// Entries that are new.
    pub added: Vec<CronName>,
    /// Entries that were changed.
    pub updated: Vec<CronName>,
    /// Entries that were there as they are.
    pub unchanged: Vec<CronName>,
    /// Entries of the set that were not declared any more.
    pub removed: Vec<CronName>,
}

impl Cron<'_> {
    /// Makes the entries that the code declares be exactly those that are there: adds and changes
    /// what differs, and removes what an earlier call declared and this one does not, in all queues of
    /// the namespace. Entries that were added by hand are not touched.
    ///
    /// Applications that share a namespace declare sets of their own: see [`Cron::reconcile_set`].
    ///
    /// # Errors
    /// As [`Cron::add`] and [`Cron::remove`]; `is_invalid` also where a name is declared twice for a
    /// queue. Repeating it goes on where it stopped.
    pub async fn reconcile(&self, jobs: impl IntoIterator<Item = CronJob>) -> Result<Reconciled> {
        self.reconcile_set(DEFAULT_SET, jobs).await
    }

    /// [`Cron::reconcile`] for the set of one application among several.
    ///
    /// # Errors
    /// As [`Cron::reconcile`].
    pub async fn reconcile_set(
        &self,
        set: &str,
        jobs: impl IntoIterator<Item = CronJob>,
    ) -> Result<Reconciled> {
        if !is_token(set) {
            return Err(Error::invalid(format!(
                "the name of a set, {set:?}, is not a valid token"
            )));
        }
        let jobs = jobs.into_iter().map(|job| job.finish(Some(set)));
        let entries = jobs.collect::<Result<Vec<_>>>()?;
        let mut declared: HashSet<(Queue, CronName)> = HashSet::new();
        for entry in &entries {
            let (queue, name) = (entry.key.queue.clone(), entry.key.name.clone());
            if !declared.insert((queue, name)) {
                return Err(Error::invalid(format!(
                    "cron entry {} is declared twice for queue {}",
                    entry.key.name, entry.key.queue
                )));
            }
        }
        self.client.require_cron().await?;
        let mut done = Reconciled::default();
        for entry in entries {
            let name = entry.key.name.clone();
            match self.put(entry).await? {
                CronChange::Added => done.added.push(name),
                CronChange::Updated => done.updated.push(name),
                CronChange::Unchanged => done.unchanged.push(name),
            }
        }
        let queues: BTreeSet<Queue> = self.client.queues().await?.into_iter().collect();
        for queue in queues {
            for there in self.read_entries(&queue).await? {
                let is_ours = there.set.as_deref() == Some(set);
                if is_ours && !declared.contains(&(queue.clone(), there.name.clone())) {
                    self.remove(&queue, &there.name).await?;
                    done.removed.push(there.name);
                }
            }
        }
        Ok(done)
    }
}
