//! What is done with a job that has come in: whether somebody vouches for it, the hold on it, and the
//! first decision about it.

use std::sync::Arc;
use std::time::Duration;

use super::Shared;
use super::admit::{Admission, Claim, FirstSight, admit_undisturbed};
use super::entry::Sight;
use super::job::{Attempt, Held, Work};
use super::lanes::LaneId;
use super::lease::Lease;
use crate::broker::Delivery;
use crate::wire::ErrorInfo;

/// A job as it came in.
pub(super) struct Arrival {
    pub(super) lane: LaneId,
    pub(super) ack_wait: Duration,
    pub(super) delivery: Delivery,
    pub(super) claim: Claim,
    pub(super) sight: FirstSight,
}

impl Shared {
    /// Takes hold of a job, and lets one that nobody can have touched into its lane; what else was decided
    /// is left to be carried out.
    pub(super) fn take_up(self: &Arc<Self>, arrival: Arrival) -> Option<(Work, Admission)> {
        let Arrival { lane, ack_wait, delivery, mut claim, sight } = arrival;
        let trusted = &self.queues[lane.queue].trusted;
        if let Some(trusted) = trusted {
            let Delivery { headers, payload, sequence, .. } = &delivery;
            claim = claim.vouched(trusted, headers, payload, *sequence);
        }
        let Claim { key, options, refused, unvouched } = claim;
        let Some(job) = self.leases.hold(Held {
            lane,
            key,
            sequence: delivery.sequence,
            stored: delivery.stored,
            headers: delivery.headers,
            options,
            unvouched,
            payload: delivery.payload,
            lease: Lease::new(delivery.ack, delivery.received, ack_wait, self.leases.lost()),
        }) else {
            // We are at it already.
            self.give_up(lane, 1);
            return None;
        };
        let work = Work { job, attempt: Attempt::UNDISTURBED };
        let is_undisturbed = sight.is_undisturbed(&work.options);
        if let Some((reason, problem)) = refused {
            let error = ErrorInfo::new(reason.as_str(), problem);
            Some((work, Admission::Bury { reason, error, attempts: 0 }))
        } else if is_undisturbed && trusted.is_none() {
            match admit_undisturbed(work.as_candidate(), || self.clock.at(work.received())) {
                Admission::Run(_) if self.handlers.contains_key(&work.key.kind) => {
                    self.enter(work);
                    None
                }
                admission => Some((work, admission)),
            }
        } else {
            // Looked up to the side, so that other jobs need not wait. A signed job always is: whoever
            // has read one can publish it once more.
            let sight = if is_undisturbed { Sight::Undisturbed } else { Sight::Disturbed };
            let shared = self.clone();
            self.tasks.spawn(async move { shared.admit_by_record(work, sight).await });
            None
        }
    }
}
