//! Jobs that break the connection of every worker they are handed to, since the client library cannot read
//! their headers: looked for whenever a connection may have been broken by one, and buried unseen. Timers
//! of that kind are put on their lanes, where they are jobs to be buried.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::Shared;
use super::admit::Claim;
use super::health::Part;
use super::job::{Attempt, Held, Work};
use super::lanes::LaneId;
use super::lease::Lease;
use super::pause::Pause;
use crate::broker::{AckSubject, Delivery, Stored, Unreadable};
use crate::outcome::{BuryReason, Settlement};
use crate::topology::DUE;
use crate::wire::{ErrorInfo, JobOptions, Reading, read_job};

/// How many of the unsettled jobs are looked at, at each of some places.
const LOOKS: u64 = 64;

/// When timers are looked at once more.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// How long that may take.
const LIMIT: Duration = Duration::from_secs(10);

impl Shared {
    /// Buries what is unreadable among the unsettled jobs of a lane, of which the last that came in here
    /// has the sequence `last_here`.
    pub(super) async fn bury_unreadable(&self, lane: LaneId, ack_wait: Duration, last_here: u64) {
        let stream = &self.queues[lane.queue].streams.jobs;
        let (part, consumer) = (Part::Unreadable(lane.queue), lane.priority.as_str());
        for Unreadable { message, flaw } in self.look(part, stream, consumer, last_here).await {
            let sequence = message.sequence;
            let Some((work, reason)) = self.take_unread(lane, ack_wait, message) else { continue };
            tracing::warn!(job = %work.key.id, sequence, flaw, "cannot be read; buried");
            let error = ErrorInfo::new(reason.as_str(), format!("it cannot be read: {flaw}"));
            self.settle(work, Settlement::Bury { reason, error: Box::new(error) }).await;
        }
    }

    /// Puts what is unreadable among the due timers of a queue on its lane, as far as it can be read.
    pub(super) async fn promote_unreadable(&self, queue: usize) {
        self.promote_unreadable_now(queue).await;
        // The broker may not have known yet that it has handed one out.
        tokio::select! {
            () = self.stop_fetching.cancelled() => {}
            () = sleep(LOOK_AGAIN) => self.promote_unreadable_now(queue).await,
        }
    }

    async fn promote_unreadable_now(&self, queue: usize) {
        let stream = &self.queues[queue].streams.timers;
        for Unreadable { message, flaw } in self.look(Part::Timers(queue), stream, DUE, 0).await {
            tracing::warn!(subject = message.subject, flaw, "a timer cannot be read");
            let ack = AckSubject::of(stream, DUE, message.sequence);
            let delivery = Delivery::unread(message, ack, self.clock.now());
            if let Err(error) = self.promote(delivery, None).await {
                tracing::debug!(%error, "a timer was not settled; it comes again");
            }
        }
    }

    /// Looks until it could, or somebody else does so after a newer connection.
    async fn look(
        &self,
        part: Part,
        stream: &str,
        consumer: &str,
        last_here: u64,
    ) -> Vec<Unreadable> {
        let mut epochs = self.conn.epochs();
        let mut pause = Pause::default();
        loop {
            let looking = self.conn.unreadable(stream, consumer, last_here, LOOKS);
            match timeout(LIMIT, looking).await {
                Ok(Ok(found)) => {
                    self.supervision.clear(part);
                    return found;
                }
                Ok(Err(error)) => {
                    tracing::debug!(stream, consumer, %error, "what is unsettled was not looked at");
                    if error.is_permission() {
                        self.supervision.report(part, &error);
                    }
                    if error.is_permission() || error.is_not_found() {
                        return Vec::new();
                    }
                }
                Err(_) => {
                    tracing::debug!(stream, consumer, "looking at what is unsettled took long")
                }
            }
            tokio::select! {
                () = self.stop_fetching.cancelled() => return Vec::new(),
                _ = epochs.changed() => return Vec::new(),
                () = sleep(pause.next()) => {}
            }
        }
    }

    /// Takes hold of a job that was not handed over here, and could not be; and why it is to be buried.
    fn take_unread(
        &self,
        lane: LaneId,
        ack_wait: Duration,
        message: Stored,
    ) -> Option<(Work, BuryReason)> {
        let queue = &self.queues[lane.queue];
        let Stored { subject, sequence, headers, payload, stored } = message;
        let (ns, priority) = (&self.namespace, lane.priority);
        let (key, reason) = match read_job(ns, &queue.name, priority, &subject, &headers, sequence)
        {
            Reading::Job { key, .. } | Reading::BadHeader { key, .. } => {
                (key, BuryReason::BadHeader)
            }
            Reading::BadSubject { key, .. } => (key, BuryReason::BadSubject),
            Reading::NewerProtocol => return None,
        };
        // In a queue that takes signed jobs alone, it cannot be who it says it is.
        let refused = Some((reason, String::new()));
        let mut claim = Claim::new(key, JobOptions::default(), refused);
        if let Some(trusted) = &queue.trusted {
            claim = claim.vouched(trusted, &headers, &payload, sequence);
        }
        let Claim { key, options, unvouched, .. } = claim;
        let ack = AckSubject::of(&queue.streams.jobs, lane.priority.as_str(), sequence);
        let job = self.leases.hold(Held {
            lane,
            key,
            sequence,
            stored: stored.unwrap_or_else(|| self.clock.now()),
            headers,
            options,
            payload,
            unvouched,
            lease: Lease::new(ack, Instant::now(), ack_wait, self.leases.lost()),
        })?;
        Some((Work { job, attempt: Attempt { number: 0, ..Attempt::UNDISTURBED } }, reason))
    }
}
