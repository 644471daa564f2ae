//! The one door to NATS: no other module names its client library.

mod ack;
mod api;
mod clock;
mod connection;
mod context;
mod credentials;
mod options;
#[cfg(feature = "embedded")]
mod probe;
mod provision;
mod publish;
mod pull;
mod read;
mod registry;

pub(crate) use ack::AckSubject;
pub(crate) use clock::Clock;
pub(crate) use connection::{Connection, Messages};
pub use options::ConnectOptions;
#[cfg(feature = "embedded")]
pub(crate) use probe::{probe, probe_replicas};
pub use provision::Provisioned;
pub(crate) use provision::{Born, consumer_born, ensure, queue_names};
pub(crate) use publish::{Expect, Published};
pub(crate) use pull::{Delivery, Pulled, Puller};
pub(crate) use read::{Start, Stored};
pub(crate) use registry::{Announcement, Registration, announced_kinds};
