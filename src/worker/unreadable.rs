//! Jobs that break the connection of every worker they are handed to, since the client library cannot read
//! their headers: looked for whenever a connection may have been broken by one, and buried unseen.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::Shared;
use super::admit::Claim;
use super::job::{Attempt, Held, Work};
use super::lanes::LaneId;
use super::lease::Lease;
use crate::broker::{AckSubject, Stored, Unreadable};
use crate::error::Result;
use crate::outcome::{BuryReason, Settlement};
use crate::wire::{ErrorInfo, JobHeaders, Reading, RecordKey, read_job};

/// How many of the unsettled jobs are looked at, the oldest and the newest.
const LOOKS: u64 = 32;

/// How long that may take.
const LIMIT: Duration = Duration::from_secs(10);

impl Shared {
    /// Buries what is unreadable among the unsettled jobs of a lane.
    pub(super) async fn bury_unreadable(&self, lane: LaneId, ack_wait: Duration) -> Result<()> {
        let stream = &self.queues[lane.queue].streams.jobs;
        let looking = self.conn.unreadable(stream, lane.priority.as_str(), LOOKS);
        let Ok(found) = timeout(LIMIT, looking).await else { return Ok(()) };
        for Unreadable { message, flaw } in found? {
            let Some((work, sequence)) = self.take_unread(lane, ack_wait, message) else {
                continue;
            };
            tracing::warn!(job = %work.key.id, sequence, flaw, "headers cannot be read; buried");
            let reason = BuryReason::BadHeader;
            let error = ErrorInfo::new(reason.as_str(), format!("headers cannot be read: {flaw}"));
            self.settle(work, Settlement::Bury { reason, error }).await;
        }
        Ok(())
    }

    /// Takes hold of a job that was not handed over here, and could not be.
    fn take_unread(
        &self,
        lane: LaneId,
        ack_wait: Duration,
        message: Stored,
    ) -> Option<(Work, u64)> {
        let queue = &self.queues[lane.queue];
        let Stored { subject, sequence, headers, payload, stored } = message;
        let key: RecordKey = match read_job(
            &self.namespace,
            &queue.name,
            lane.priority,
            &subject,
            &headers,
            sequence,
        ) {
            Reading::Job { key, .. }
            | Reading::BadHeader { key, .. }
            | Reading::BadSubject { key, .. } => key,
            Reading::NewerProtocol => return None,
        };
        // In a queue that takes signed jobs alone, it cannot be who it says it is.
        let refused = Some((BuryReason::BadHeader, String::new()));
        let mut claim = Claim::new(key, JobHeaders::default(), refused);
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
        Some((Work { job, attempt: Attempt { number: 0, ..Attempt::UNDISTURBED } }, sequence))
    }
}
