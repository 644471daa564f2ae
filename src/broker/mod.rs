//! The one door to NATS: no other module names its client library.

mod ack;
mod api;
mod block;
mod born;
mod careful;
mod clock;
mod connection;
mod context;
mod credentials;
mod deaf;
mod dial;
mod events;
mod examine;
mod failure;
mod given;
mod ingest;
mod jwt;
mod manage;
mod mend;
mod options;
mod provision;
mod publish;
mod pull;
mod read;
mod registry;
mod renew;
mod servers;
mod tls;
mod told;
mod unreadable;
mod way;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use ack::read_ack_subject;
pub(crate) use ack::{AckSubject, Word, say_each};
#[cfg(feature = "embedded")]
pub(crate) use api::ask;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use block::read_block;
pub(crate) use born::{Born, Memory, Passing, consumer_born};
pub(crate) use clock::{Clock, READ_EVERY};
pub(crate) use connection::Connection;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use context::read_context;
pub(crate) use events::Link;
#[cfg(test)]
pub(crate) use examine::Replica;
pub(crate) use examine::{AccountFacts, ConsumerFacts, Group, StreamFacts};
pub(crate) use ingest::{IngestMessage, Ingested, MAX_INGEST, SentBatch};
pub(crate) use manage::{ConsumerState, StreamState, consumer_state};
pub(crate) use mend::{Mend, Mending, to_mend};
pub use options::ConnectOptions;
pub use provision::Provisioned;
pub(crate) use provision::{Missing, ensure, kept_for, queue_names};
pub(crate) use publish::{BatchMessage, Expect, MAX_BATCH, Published};
pub(crate) use pull::{Broken, Delivery, Pulled, Puller};
pub(crate) use read::{Batch, Start, Stored};
pub(crate) use registry::{Announcement, Registration, announced_kinds};
pub(crate) use renew::Messages;
pub(crate) use told::Told;
pub(crate) use unreadable::Unreadable;
