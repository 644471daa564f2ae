//! Taking stock of a consumer: what has to be known before its word on first deliveries is taken.
//!
//! A replicated consumer keeps in its servers' memory what it has handed out. Where too many of them
//! restart at once, it begins anew: then everything that is not settled comes as if for the first time,
//! although its creation is as long ago as ever. The memory of a consumer that has handed out nothing
//! is no older than its leader; what was stored before that leader may have been handed out by another.
//! Whoever sees that first notes it in the ledger, before it asks for anything, since for those that
//! come later the consumer has handed out something again.

use std::time::Duration;

use super::Shared;
use super::health::{Part, TroubleKind};
use crate::broker::{Born, Expect, Memory, Passing, Start, consumer_born};
use crate::error::{Error, ErrorKind, Result};
use crate::stuck::Outlet;
use crate::wire::time::Time;
use crate::wire::{Headers, Lapse, lapse_subject};

/// What is known of a consumer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stock {
    pub(super) ack_wait: Duration,
    /// What was stored up to then may have been handed out before, whatever the consumer says.
    pub(super) remembers_since: Time,
    /// Since when its leader leads, where its memory goes with its leaders.
    pub(super) leader_since: Option<Time>,
}

/// What this worker has seen of a consumer before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// So many messages that it had handed out.
    HandedOut(u64),
    /// Fewer than before.
    CountsAnew,
}

impl Seen {
    /// After a delivery with which the consumer had handed out so many.
    pub(super) fn then(self, handed_out: u64) -> Self {
        match self {
            Self::HandedOut(before) if handed_out > before => Self::HandedOut(handed_out),
            Self::HandedOut(_) | Self::CountsAnew => Self::CountsAnew,
        }
    }
}

/// What was stored by then may have been handed out by a consumer that does not remember; `None` where it
/// remembers all that it has handed out since it was made.
///
/// The server that stores and the one that leads the consumer have clocks of their own. Before a leader
/// that knows nothing there was a silence in which most servers restarted and elected it: clocks may
/// differ by that much.
fn lapse(memory: Passing, seen: Seen) -> Option<Time> {
    let has_forgotten = match seen {
        Seen::HandedOut(count) => memory.handed_out < count,
        Seen::CountsAnew => true,
    };
    (has_forgotten || memory.handed_out == 0).then_some(memory.leader_since)
}

impl Shared {
    /// Learns what has to be known of a consumer.
    pub(super) async fn stock_of(&self, queue: usize, outlet: Outlet, seen: Seen) -> Result<Stock> {
        let stream = outlet.stream(&self.queues[queue].streams);
        let born = consumer_born(&self.conn, stream, outlet.consumer(), &self.clock).await?;
        let part = Part::Memory(queue, outlet);
        let Born { created, ack_wait, memory } = born;
        let memory = match memory {
            Memory::Passing(memory) => memory,
            Memory::Lasting => {
                self.supervision.clear(part);
                return Ok(Stock { ack_wait, remembers_since: created, leader_since: None });
            }
            Memory::Untrue => {
                let what = "its consumer keeps its state on the disks of several servers: when one that \
                            was away comes to lead, nats-server may delete jobs that run or back off";
                let kind = TroubleKind::JobsAtRisk;
                self.supervision.report_kind(part, kind, None, what.to_owned());
                return Ok(Stock { ack_wait, remembers_since: created, leader_since: None });
            }
        };
        self.supervision.clear(part);
        // In this order: who has had something handed out has noted before what was to be noted.
        let noted = self.noted_lapse(queue, outlet).await?;
        let found = lapse(memory, seen).filter(|before| noted.is_none_or(|noted| noted < *before));
        if let Some(before) = found
            && memory.waiting > 0
            && self.has_older(queue, outlet, before).await?
        {
            self.note_lapse(queue, outlet, before).await?;
        }
        let since = [found, noted].into_iter().flatten().max();
        Ok(Stock {
            ack_wait,
            remembers_since: since.map_or(created, |since| since.max(created)),
            leader_since: Some(memory.leader_since),
        })
    }

    /// Whether a consumer may have begun anew since stock was taken of it.
    pub(super) async fn may_have_lapsed(
        &self,
        queue: usize,
        outlet: Outlet,
        stock: &Stock,
    ) -> Result<bool> {
        let Some(leader_since) = stock.leader_since else { return Ok(false) };
        let stream = outlet.stream(&self.queues[queue].streams);
        let born = consumer_born(&self.conn, stream, outlet.consumer(), &self.clock).await?;
        Ok(match born.memory {
            Memory::Passing(memory) => memory.leader_since != leader_since,
            Memory::Lasting | Memory::Untrue => true,
        })
    }

    async fn noted_lapse(&self, queue: usize, outlet: Outlet) -> Result<Option<Time>> {
        let queue = &self.queues[queue];
        let subject = lapse_subject(&self.namespace, &queue.name, outlet.consumer());
        let last = self.conn.last_of_leader(&queue.streams.attempts, &subject).await?;
        let lapse = last.and_then(|last| Lapse::read(&last.payload, outlet.consumer()));
        Ok(lapse.map(|lapse| lapse.before))
    }

    /// Whether a consumer has still to hand out what was stored by then.
    async fn has_older(&self, queue: usize, outlet: Outlet, before: Time) -> Result<bool> {
        let queue = &self.queues[queue];
        let subjects = outlet.subjects(&self.namespace, &queue.name);
        let stream = outlet.stream(&queue.streams);
        let first = self.conn.batch(stream, &subjects, Start::Sequence(1), 1).await?;
        Ok(first.messages.iter().any(|first| first.stored.is_none_or(|stored| stored <= before)))
    }

    async fn note_lapse(&self, queue: usize, outlet: Outlet, before: Time) -> Result<()> {
        let (queue, consumer) = (&self.queues[queue], outlet.consumer());
        let lapse = Lapse::new(consumer, before, &self.recorder.worker);
        let body = serde_json::to_vec(&lapse).map_err(|error| {
            Error::new(ErrorKind::Unknown, "a lapse cannot be written down").because(error)
        })?;
        let subject = lapse_subject(&self.namespace, &queue.name, consumer);
        self.conn.store(subject, &Headers::new(), body.into(), Expect::Anything).await?;
        tracing::warn!(
            queue = %queue.name, consumer, %before,
            "the broker may have forgotten what it had handed out, as where most servers restart at \
             once: what was stored by then is looked up before it runs"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::time;

    #[test]
    fn what_a_consumer_may_have_forgotten_as_a_table() {
        let leader_since = time::from_nanos(1_800_000_000_000_000_000);
        let before = Some(leader_since);
        for (what, handed_out, seen, expected) in [
            ("it has handed out nothing yet, or forgotten all", 0, Seen::HandedOut(0), before),
            ("it has gone on", 12, Seen::HandedOut(7), None),
            ("it stands still", 7, Seen::HandedOut(7), None),
            ("a worker that has just started", 3, Seen::HandedOut(0), None),
            ("it had handed out more", 3, Seen::HandedOut(7), before),
            ("it has begun anew, and gone on", 12, Seen::CountsAnew, before),
        ] {
            let memory = Passing { handed_out, waiting: 1, leader_since };
            assert_eq!(lapse(memory, seen), expected, "{what}");
        }
    }
}
