//! Background jobs on NATS JetStream.

#![forbid(unsafe_code)]

#[cfg(feature = "embedded")]
pub mod embedded;
mod error;
mod kind;
mod outcome;
mod priority;
mod retry;
mod token;
mod wire;
mod worker;

pub use error::{Error, Result};
pub use kind::Job;
pub use outcome::{JobError, MAX_SNOOZES};
pub use priority::{MAX_WEIGHT, Priority, Weights};
pub use retry::{Backoff, DEFAULT_MAX_RETRIES, RetryPolicy};
pub use token::{JobId, Kind, MAX_NAMESPACE_BYTES, MAX_TOKEN_BYTES, Namespace, Queue, RunId};
pub use wire::{
    AttemptEvent, AttemptRecord, Completion, DeadInfo, ErrorInfo, Headers, PROTOCOL_VERSION, Status,
};
