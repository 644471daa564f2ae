//! Background jobs on NATS JetStream.

#![forbid(unsafe_code)]

#[cfg(feature = "embedded")]
pub mod embedded;
mod error;

pub use error::{Error, Result};
