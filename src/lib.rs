//! Background jobs on NATS JetStream.

#![forbid(unsafe_code)]

mod broker;
mod client;
mod dead;
#[cfg(feature = "embedded")]
pub mod embedded;
mod error;
mod kind;
mod outcome;
mod priority;
mod retry;
mod token;
mod topology;
mod wire;
mod worker;

pub use broker::{ConnectOptions, Provisioned};
pub use client::{Client, Enqueue, JobHandle, NewJob, RecordFilter, Since};
pub use dead::{DeadFilter, DeadLetter};
pub use error::{Error, Result};
pub use kind::Job;
pub use outcome::{JobError, MAX_SNOOZES};
pub use priority::{MAX_WEIGHT, Priority, Weights};
pub use retry::{Backoff, DEFAULT_MAX_RETRIES, RetryPolicy};
pub use token::{JobId, Kind, MAX_NAMESPACE_BYTES, MAX_TOKEN_BYTES, Namespace, Queue, RunId};
pub use topology::{Drift, QueueConfig, Storage};
pub use wire::{
    AttemptEvent, AttemptRecord, Completion, DeadInfo, ErrorInfo, Headers, PROTOCOL_VERSION, Status,
};
pub use worker::{
    DEFAULT_CONCURRENCY, DEFAULT_GRACE, DEFAULT_TIMEOUT, DEFAULT_UNKNOWN_KIND_GRACE, Drained,
    Handler, HandlerResult, JobContext, Next, Order, Running, Worker, WorkerBuilder,
};
