//! What a settlement puts on record, and in which order. Pure.
//!
//! The order is what makes killing a worker between any two steps harmless: whatever is on record
//! already, the next delivery finds it, and goes on from there.

use crate::outcome::Settlement;
use crate::wire::time::{self, Time};
use crate::wire::{AttemptEvent, AttemptRecord, Status};

/// Something that goes on record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// An entry of the ledger.
    Entry(AttemptEvent),
    /// The dead letter.
    Letter,
    /// The run's completion.
    Completion(Status),
}

/// What goes on record of a job, in this order, before the broker hears a word about it; for one of
/// which an attempt was started at `started_at`, if one was.
pub(super) fn steps(settlement: &Settlement, started_at: Option<Time>) -> &'static [Step] {
    use Step::{Completion, Entry, Letter};
    match (settlement, started_at) {
        (Settlement::Complete { .. }, _) => &[Completion(Status::Done)],
        (Settlement::Cancel { .. }, _) => &[Completion(Status::Cancelled)],
        (Settlement::Expire, _) => &[Completion(Status::Expired)],
        // The entry first, so that a crash from there on does not run the job once more.
        (Settlement::Bury { .. }, Some(_)) => {
            &[Entry(AttemptEvent::Failed), Letter, Completion(Status::Dead)]
        }
        (Settlement::Bury { .. }, None) => &[Letter, Completion(Status::Dead)],
        (Settlement::Retry { .. }, _) => &[Entry(AttemptEvent::Failed)],
        (Settlement::Snooze { .. }, _) => &[Entry(AttemptEvent::Snoozed)],
        (Settlement::Release { .. }, Some(_)) => &[Entry(AttemptEvent::Released)],
        (Settlement::Release { .. }, None)
        | (Settlement::PutOff { .. } | Settlement::Forget, _) => &[],
    }
}

/// Writes into an entry of the ledger what a settlement says, at `now`.
pub(super) fn fill(entry: &mut AttemptRecord, settlement: &Settlement, now: Time) {
    match settlement {
        Settlement::Retry { delay, error } => {
            entry.retry_at = Some(time::after(now, *delay));
            entry.error = Some((**error).clone());
        }
        Settlement::Snooze { delay, snoozes } => {
            entry.retry_at = Some(time::after(now, *delay));
            entry.snoozes = *snoozes;
        }
        Settlement::Bury { reason, error } => {
            entry.error = Some((**error).clone());
            entry.reason = Some(reason.as_str().to_owned());
        }
        Settlement::Complete { .. }
        | Settlement::Cancel { .. }
        | Settlement::Expire
        | Settlement::Forget
        | Settlement::Release { .. }
        | Settlement::PutOff { .. } => {}
    }
}
