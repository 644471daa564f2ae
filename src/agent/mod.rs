//! The jobs of an agent runtime: its runs' events persisted in order and published outward.
//!
//! An agent that works through a conversation emits [`AgentEvent`]s. Two kinds of jobs take them from
//! there: [`PersistEvent`] appends one to the run's log in a [`RunStore`], [`PublishExternalEvent`]
//! hands one to an [`EventPublisher`]. Both may be run more than once by different workers; appends are
//! idempotent by the job's id, so that the log has each event once, numbered without gaps.
//!
//! The types are those of the crate `behest` 0.2.2, whose in-memory pool (`runtime::job`) this takes
//! the place of: they read and write the same JSON. What a later version of it adds, an event, a field,
//! a status, goes through unchanged.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use tidemill::agent::{AgentEvent, JetStreamRunStore, PersistEvent, RunId, RunStore};
//! use tidemill::{Client, Worker};
//!
//! # async fn example(client: Client, run_id: RunId, event: AgentEvent) -> Result<(), Box<dyn std::error::Error>> {
//! let store = Arc::new(JetStreamRunStore::open(&client).await?);
//! let worker = tidemill::agent::persisting(Worker::builder(&client), store.clone());
//! let running = worker.build()?.start().await?;
//! client.enqueue(PersistEvent::new(run_id, event)).await?.completion().await?;
//! println!("{} events", store.events(run_id).await?.len());
//! # Ok(())
//! # }
//! ```

mod background;
mod event;
mod jobs;
mod pool;
mod publish;
#[cfg(feature = "redis")]
mod publish_redis;
mod run;
mod store;

pub use background::{BackgroundJob, JobConditions, JobPriority, JobType};
pub use event::{
    AgentEvent, CompactionCircuitOpened, ContextBuilt, DoomLoopDetected, FinishReason,
    MessageCommitted, ModelStarted, RunCancelled, RunCompleted, RunFailed, RunStarted, TextDelta,
    TokenUsage, ToolCall, ToolCallCompleted, ToolCallDelta, ToolCallStarted, ToolExecutionFinished,
    ToolExecutionResult, ToolExecutionStarted, UsageRecorded,
};
pub use jobs::{PersistEvent, PublishExternalEvent, TestJob, persisting, publishing};
pub use pool::{Execution, JobPool, JobPoolBuilder, PoolFile, PoolImport};
pub use publish::{EventPublisher, JetStreamPublisher, NoOpPublisher, PublishError, Publishers};
#[cfg(feature = "redis")]
pub use publish_redis::RedisStreamsPublisher;
pub use run::{RunEvent, RunFilter, RunId, RunRecord, RunStatus};
#[cfg(feature = "postgres")]
pub use store::PostgresRunStore;
pub use store::{JetStreamRunStore, MemoryRunStore, RunStore, StoreError, StoreResult};
