//! Where runs and their events are kept.

mod jetstream;
mod memory;
#[cfg(feature = "postgres")]
mod postgres;
mod turns;

use std::error::Error as StdError;

use async_trait::async_trait;

pub use self::jetstream::JetStreamRunStore;
pub use self::memory::MemoryRunStore;
#[cfg(feature = "postgres")]
pub use self::postgres::PostgresRunStore;
use super::event::AgentEvent;
use super::run::{RunEvent, RunFilter, RunId, RunRecord, RunStatus};
use crate::token::JobId;

/// Why a store failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// There is no such run.
    #[error("there is no run {0}")]
    NotFound(RunId),
    /// There is another run of this id.
    #[error("run {0} is there already, and is another")]
    Exists(RunId),
    /// Others write to the run all the time. It is no failure: try again a little later.
    #[error("others write to run {0} all the time: try again")]
    Busy(RunId),
    /// The storage behind it failed, or cannot be reached.
    #[error("the run store failed: {0}")]
    Backend(#[source] Box<dyn StdError + Send + Sync>),
}

impl StoreError {
    /// A failure of what is behind the store.
    pub fn backend(error: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::Backend(error.into())
    }
}

/// The result of a call to a store.
pub type StoreResult<T> = Result<T, StoreError>;

/// A store of runs and their events. Calls may be repeated after a failure: each does its work once.
#[async_trait]
pub trait RunStore: Send + Sync {
    /// Stores a new run. Storing the very same again is fine.
    ///
    /// # Errors
    /// [`StoreError::Exists`] where there is another of its id.
    async fn create(&self, run: RunRecord) -> StoreResult<()>;

    /// A run; `None` where there is none.
    async fn get(&self, id: RunId) -> StoreResult<Option<RunRecord>>;

    /// Sets how far a run is.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] where there is none; [`StoreError::Busy`].
    async fn update_status(&self, id: RunId, status: RunStatus) -> StoreResult<()>;

    /// Appends an event to a run's log, once for a job however often it is called; its number. The log
    /// may be there before the run.
    ///
    /// # Errors
    /// [`StoreError::Busy`], which costs a job that persists an event no attempt.
    async fn append(&self, id: RunId, job: &JobId, event: AgentEvent) -> StoreResult<u64>;

    /// A run's log, in order; empty where there is none.
    async fn events(&self, id: RunId) -> StoreResult<Vec<RunEvent>>;

    /// Runs, in the order of their creation.
    async fn runs(&self, filter: &RunFilter) -> StoreResult<Vec<RunRecord>>;

    /// Deletes a run with its log; nothing to do where there is none.
    async fn delete(&self, id: RunId) -> StoreResult<()>;

    /// Whether the store can be reached and used.
    async fn health(&self) -> StoreResult<()>;
}
