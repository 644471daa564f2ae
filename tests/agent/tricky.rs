//! A run store that is not as good as it should be.

use std::sync::atomic::{AtomicU32, Ordering};

use tidemill::JobId;
use tidemill::agent::{
    AgentEvent, RunEvent, RunFilter, RunId, RunRecord, RunStatus, RunStore, StoreError, StoreResult,
};

/// What a store does instead of appending, or after it.
pub(crate) enum Trick {
    /// Its logs are busy, that many times.
    Busy(AtomicU32),
    /// It appends, says so on standard output, and never returns.
    Hang,
}

/// What [`Trick::Hang`] says.
pub(crate) const APPENDED: &str = "appended";

/// A store that plays a trick on those who append.
pub(crate) struct Tricky<S> {
    store: S,
    trick: Trick,
}

impl<S: RunStore> Tricky<S> {
    pub(crate) fn new(store: S, trick: Trick) -> Self {
        Self { store, trick }
    }
}

fn is_busy(left: &AtomicU32) -> bool {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
}

#[async_trait::async_trait]
impl<S: RunStore> RunStore for Tricky<S> {
    async fn append(&self, id: RunId, job: &JobId, event: AgentEvent) -> StoreResult<u64> {
        match &self.trick {
            Trick::Busy(left) if is_busy(left) => Err(StoreError::Busy(id)),
            Trick::Busy(_) => self.store.append(id, job, event).await,
            Trick::Hang => {
                self.store.append(id, job, event).await?;
                println!("{APPENDED}");
                std::future::pending().await
            }
        }
    }

    async fn create(&self, run: RunRecord) -> StoreResult<()> {
        self.store.create(run).await
    }

    async fn get(&self, id: RunId) -> StoreResult<Option<RunRecord>> {
        self.store.get(id).await
    }

    async fn update_status(&self, id: RunId, status: RunStatus) -> StoreResult<()> {
        self.store.update_status(id, status).await
    }

    async fn events(&self, id: RunId) -> StoreResult<Vec<RunEvent>> {
        self.store.events(id).await
    }

    async fn runs(&self, filter: &RunFilter) -> StoreResult<Vec<RunRecord>> {
        self.store.runs(filter).await
    }

    async fn delete(&self, id: RunId) -> StoreResult<()> {
        self.store.delete(id).await
    }

    async fn health(&self) -> StoreResult<()> {
        self.store.health().await
    }
}
