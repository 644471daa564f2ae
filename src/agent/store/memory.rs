//! Runs in memory, for tests.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use async_trait::async_trait;
use chrono::Utc;

use super::{RunStore, StoreError, StoreResult};
use crate::agent::event::AgentEvent;
use crate::agent::run::{RunEvent, RunFilter, RunId, RunRecord, RunStatus};
use crate::token::JobId;

/// A store that is gone with the process.
#[derive(Debug, Default)]
pub struct MemoryRunStore(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    runs: HashMap<RunId, RunRecord>,
    events: HashMap<RunId, Vec<RunEvent>>,
}

impl MemoryRunStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[async_trait]
impl RunStore for MemoryRunStore {
    async fn create(&self, run: RunRecord) -> StoreResult<()> {
        let mut kept = self.kept();
        match kept.runs.get(&run.id) {
            Some(there) if *there != run => Err(StoreError::Exists(run.id)),
            Some(_) => Ok(()),
            None => {
                kept.runs.insert(run.id, run);
                Ok(())
            }
        }
    }

    async fn get(&self, id: RunId) -> StoreResult<Option<RunRecord>> {
        Ok(self.kept().runs.get(&id).cloned())
    }

    async fn update_status(&self, id: RunId, status: RunStatus) -> StoreResult<()> {
        let mut kept = self.kept();
        let run = kept.runs.get_mut(&id).ok_or(StoreError::NotFound(id))?;
        run.status = status;
        run.updated_at = Utc::now();
        Ok(())
    }

    async fn append(&self, id: RunId, job: &JobId, event: AgentEvent) -> StoreResult<u64> {
        let mut kept = self.kept();
        let log = kept.events.entry(id).or_default();
        if let Some(there) = log.iter().find(|there| there.job == *job) {
            return Ok(there.sequence);
        }
        let sequence = log.len() as u64;
        log.push(RunEvent::new(sequence, id, job.clone(), event));
        Ok(sequence)
    }

    async fn events(&self, id: RunId) -> StoreResult<Vec<RunEvent>> {
        Ok(self.kept().events.get(&id).cloned().unwrap_or_default())
    }

    async fn runs(&self, filter: &RunFilter) -> StoreResult<Vec<RunRecord>> {
        Ok(filter.page(self.kept().runs.values().cloned().collect()))
    }

    async fn delete(&self, id: RunId) -> StoreResult<()> {
        let mut kept = self.kept();
        kept.runs.remove(&id);
        kept.events.remove(&id);
        Ok(())
    }

    async fn health(&self) -> StoreResult<()> {
        Ok(())
    }
}
