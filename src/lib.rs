//! Background jobs on the NATS JetStream you already run: no Redis, no Postgres, nothing else to
//! operate. Publish a job to a subject from any language, have it worked by as many workers as you
//! start, see its completion on a results subject.
//!
//! - [`Client`] puts jobs in, waits for completions, follows records, handles dead letters, and
//!   declares what recurs ([`Client::cron`]).
//! - [`Worker`] works queues: weighted-first over four priorities, with retries, timeouts, leases,
//!   and a clean stop.
//! - [`embedded`] brings a private nats-server for trying out and for tests (feature `embedded`).
//!
//! ```no_run
//! use serde::{Deserialize, Serialize};
//! use tidemill::{Client, ConnectOptions, Job, JobContext, JobError, Priority, Worker};
//!
//! #[derive(Serialize, Deserialize)]
//! struct SendEmail {
//!     to: String,
//! }
//!
//! impl Job for SendEmail {
//!     const KIND: &'static str = "send_email";
//! }
//!
//! async fn send_email(job: SendEmail, context: JobContext) -> Result<(), JobError> {
//!     println!("to {}, attempt {}", job.to, context.attempt());
//!     Ok(())
//! }
//!
//! # async fn example() -> tidemill::Result<()> {
//! let client = Client::connect(ConnectOptions::new("nats://127.0.0.1:4222")?).await?;
//! let worker = Worker::builder(&client).handle(send_email).build()?.start().await?;
//! let job = client.enqueue(SendEmail { to: "a@example.com".into() }).priority(Priority::High).await?;
//! println!("{}", job.completion().await?.status);
//! worker.drain().await;
//! # Ok(())
//! # }
//! ```
//!
//! # Layout
//!
//! Dependencies point down only; a test checks it.
//!
//! | module | role |
//! |---|---|
//! | [`guide`] | pages on what concerns more than one module |
//! | `agent` | the jobs of an agent runtime, its run store |
//! | `control`, `dead`, `doctor` | operators' verbs: cancel, pause, purge; dead letters; what is not well |
//! | `stuck` | jobs that no consumer hands out any more: found, brought back |
//! | `inspect` | where jobs stand |
//! | `worker` | fetch, admit, pick, lease, execute, settle, record, park, promote, drain |
//! | `cron` | what the broker enqueues by itself: added, listed, reconciled, paused |
//! | `client` | enqueue, await, follow |
//! | `embedded` | finds, installs, starts, watches and ends a private nats-server |
//! | `broker` | the one door to NATS: connection, publish, pull, read, provision |
//! | `seal`, `sign` | payloads that only those read who have a key; jobs that a key vouches for: pure |
//! | `schedule` | cron patterns and intervals, and when the broker runs them: pure |
//! | `topology`, `wire` | streams and consumers; subjects, headers, records: pure |
//! | `outcome`, `retry`, `priority`, `kind`, `token`, `error` | the domain: pure |
//!
//! # Life of a job
//!
//! 1. **Enqueue** stores it in its lane's subject of the queue's jobs stream, sealed and signed where
//!    the client has keys. An enqueue whose answer is lost is sent again under a guard that lets the
//!    same run in once.
//! 2. **Fetch**: each lane keeps one bounded pull open for what its buffer has room for; about a
//!    quarter of a second of work, so that slow jobs are not hoarded.
//! 3. **Admit**: what no trusted key vouches for, where the queue asks for that, is buried before
//!    anything else. What is not due, expired, unreadable, of an unknown kind or ended before is settled
//!    at once. A delivery that may not be the first is looked up: its completion and its ledger. The
//!    consumer's word for first times counts as far back as it remembers, see `worker::stock`.
//! 4. **Pick**: a free slot takes the next job weighted-first; see [`Weights::bound`].
//! 5. **Run**, opened if it is sealed, under a lease that is renewed every third of `ack_wait`, within
//!    its time, panics caught.
//! 6. **Settle**: complete, retry, snooze, bury, cancel or release. First everything is on record,
//!    each record with the broker's word for it; then the delivery is acked or given back. What is
//!    put off for long becomes a timer of the broker's, and any worker brings it back when it is due.
//!
//! # Invariants
//!
//! - A job whose enqueue returned `Ok` reaches exactly one recorded end, as long as the storage
//!   survives. Its handler may run more than once.
//! - A run has at most one completion: it is fenced by the broker itself.
//! - Attempt numbers are exact. Being handed back, drained, buffered or caught in a broker's restart
//!   costs none; a crash in mid-run costs one. The one exception is a first attempt that leaves no
//!   trace, which is granted again once.
//! - Nothing starts before it is due: what decides that goes by the earliest that the broker's clock can
//!   show, what sets a time by the latest.
//! - Consumers of several replicas keep their state in memory; see [`guide::what_can_be_lost`].
//! - A worker that has lost a lease says nothing more about that job.
//! - Nothing is acked before it is on record.
//! - Nothing stays stuck by itself: what the broker would not hand out any more workers clear away,
//!   where it has ended, or bring back.
#![doc = include_str!("wire/protocol.md")]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

#[cfg(feature = "agent")]
pub mod agent;
mod broker;
mod client;
mod control;
mod cron;
mod dead;
mod doctor;
#[cfg(feature = "embedded")]
pub mod embedded;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod guide;
mod inspect;
mod kind;
mod outcome;
mod priority;
mod retry;
mod schedule;
mod seal;
mod sign;
mod stuck;
mod token;
mod topology;
mod wire;
mod worker;

pub use broker::{ConnectOptions, Provisioned};
pub use client::{Client, Enqueue, Import, JobEvent, JobHandle, NewJob, RecordFilter, Since};
pub use control::{Cancellation, LaneInfo, Move, QueueInfo};
pub use cron::{Cron, CronChange, CronEntry, CronJob, Reconciled};
pub use dead::{DeadFilter, DeadLetter};
pub use doctor::{Finding, Severity};
pub use error::{Error, Result};
pub use inspect::{JobFilter, JobInfo, JobState};
pub use kind::Job;
pub use outcome::{JobError, MAX_SNOOZES};
pub use priority::{MAX_WEIGHT, Priority, Weights};
pub use retry::{Backoff, DEFAULT_MAX_RETRIES, RetryPolicy};
pub use schedule::Schedule;
#[cfg(feature = "seal")]
pub use seal::{SealKey, SealKeys};
pub use sign::{SigningKey, TrustedKeys};
pub use stuck::{Revived, StuckJob, StuckJobs};
pub use token::{
    CronName, JobId, Kind, MAX_CRON_NAME_BYTES, MAX_NAMESPACE_BYTES, MAX_TOKEN_BYTES, Namespace,
    Queue, RunId,
};
pub use topology::{Drift, QueueConfig, Storage};
pub use wire::{
    AttemptEvent, AttemptRecord, Completion, DeadInfo, ErrorInfo, Fired, Headers, PROTOCOL_VERSION,
    RunningJob, Status, Unvouched,
};
pub use worker::{
    DEFAULT_CONCURRENCY, DEFAULT_GRACE, DEFAULT_PARK_OVER, DEFAULT_TIMEOUT,
    DEFAULT_UNKNOWN_KIND_GRACE, Drained, Effect, Handler, HandlerResult, Health, HealthWatch,
    JobContext, Next, Order, Reprovision, Running, Trouble, TroubleKind, Worker, WorkerBuilder,
};

/// The README's code, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
