//! How a worker is: what keeps it from working, since when, and what to do about it.
//!
//! A worker goes on trying whatever happens, with growing pauses. So that it never sits there silently,
//! each part of it reports what is the matter (`report`), what many parts see alike is one trouble
//! (`troubles`), and what nobody would try by himself while no job is taken is tried here (`mend`).

mod mend;
mod report;
mod troubles;

use std::fmt;

use chrono::{DateTime, Utc};
use tokio::sync::watch;

pub(super) use self::mend::{keep_gate, keep_inbox, keep_link, mend};
pub(super) use self::report::{Place, Supervision, kind_of};
pub(super) use self::troubles::Part;
use crate::token::Queue;

/// What is the matter with a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum TroubleKind {
    /// The connection to NATS is gone, and is being made anew.
    ConnectionLost,
    /// The connection to NATS was closed for good: this worker will not work again.
    ConnectionClosed,
    /// The broker refuses these credentials a subject.
    PermissionDenied,
    /// A stream of the queue is gone.
    StreamMissing,
    /// A consumer of the queue is gone.
    ConsumerMissing,
    /// A stream, the account or the broker's disk has no room.
    Full,
    /// The broker does not answer: it is halted, its disk is full or slow, or a stream has no leader.
    NotAnswering,
    /// The broker refuses for another reason, which the text tells.
    Refused,
    /// Jobs went to other workers because this one did not renew its hold on them in time.
    LeasesLost,
    /// Jobs are beyond the reach of their consumer, and this worker cannot bring them back.
    JobsStuck,
    /// The broker may delete jobs that run or back off: replicated consumers keep their state on disk.
    JobsAtRisk,
}

impl TroubleKind {
    /// It in one word, such as `consumer_missing`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ConnectionLost => "connection_lost",
            Self::ConnectionClosed => "connection_closed",
            Self::PermissionDenied => "permission_denied",
            Self::StreamMissing => "stream_missing",
            Self::ConsumerMissing => "consumer_missing",
            Self::Full => "full",
            Self::NotAnswering => "not_answering",
            Self::Refused => "refused",
            Self::LeasesLost => "leases_lost",
            Self::JobsStuck => "jobs_stuck",
            Self::JobsAtRisk => "jobs_at_risk",
        }
    }
}

impl fmt::Display for TroubleKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a trouble keeps a worker from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// It takes no jobs of the lane or the queue, or none at all.
    TakesNoJobs,
    /// It takes jobs; something else is late, as timers are, or was lost.
    WorksOn,
}

/// Something that is the matter with a worker. Shown with `{}`, it says what, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Trouble {
    /// What is the matter.
    pub kind: TroubleKind,
    /// What it keeps the worker from.
    pub effect: Effect,
    /// The queue that it is about, where it is about one.
    pub queue: Option<Queue>,
    /// The stream, the stream and the consumer with a `/` between, or the subject that it is about.
    pub place: Option<String>,
    /// Since when, by the broker's clock.
    pub since: DateTime<Utc>,
    /// What is the matter, in words.
    pub what: String,
    /// What to do about it, in words.
    pub remedy: String,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, queue, place, what, remedy, .. } = self;
        write!(f, "{kind}")?;
        if let Some(place) = place {
            write!(f, " at {place}")?;
        } else if let Some(queue) = queue {
            write!(f, " at queue {queue}")?;
        }
        write!(f, ": {what}; {remedy}")
    }
}

/// How a worker is at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Health {
    /// What is the matter, the oldest first; empty if all is well.
    pub troubles: Vec<Trouble>,
    /// How many jobs went to other workers because this one lost its hold on them, since its start.
    pub lost_leases: u64,
    /// Whether it drains: it takes no more jobs, for good.
    pub is_draining: bool,
}

impl Health {
    /// Whether the worker takes jobs of all its queues.
    pub fn is_ready(&self) -> bool {
        let keeps_from_work = |trouble: &Trouble| trouble.effect == Effect::TakesNoJobs;
        !self.is_draining && !self.troubles.iter().any(keeps_from_work)
    }
}

/// Follows how a worker is; see [`Running::watch_health`](super::Running::watch_health).
#[derive(Clone, Debug)]
pub struct HealthWatch(watch::Receiver<Health>);

impl HealthWatch {
    pub(super) fn new(health: watch::Receiver<Health>) -> Self {
        Self(health)
    }

    /// How the worker is now.
    pub fn now(&mut self) -> Health {
        self.0.borrow_and_update().clone()
    }

    /// Waits until the worker is other than it was when this was last asked, and tells how it is;
    /// `None` once the worker is gone. Changes that follow each other at once may come as one.
    pub async fn changed(&mut self) -> Option<Health> {
        self.0.changed().await.ok()?;
        Some(self.now())
    }
}

/// What a worker does about streams and consumers of its queues that vanish while it works. When it
/// starts, it makes what is missing, as far as its credentials may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reprovision {
    /// It waits until somebody makes them again, and says how.
    #[default]
    Never,
    /// It makes consumers again, which hold no jobs.
    Consumers,
    /// It makes consumers and streams again. What a stream held is gone.
    Everything,
}
