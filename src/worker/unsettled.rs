//! What could not be settled: reported, and kept until it can be.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::health::{Part, TroubleKind, kind_of};
use super::lanes::LaneId;
use super::settle::{ToSettle, Told};
use super::{QueueState, Shared};
use crate::broker::{AckSubject, Word};
use crate::error::{Error, Result};
use crate::outcome::Settlement;
use crate::wire::RecordKind;

/// Refused acks that are kept at most, to be sent when they are allowed; what is not kept is looked up
/// when it comes again.
const MAX_UNSAID: usize = 10_000;

/// What of a queue could not be settled yet.
#[derive(Debug, Default)]
pub(super) struct Unsettled {
    /// How many jobs have an outcome that waits to be written.
    stubborn: AtomicUsize,
    /// Acks that were refused, of jobs whose end is on record.
    unsaid: Mutex<Vec<AckSubject>>,
}

impl Unsettled {
    /// A job's outcome waits to be written.
    pub(super) fn begin(&self) {
        self.stubborn.fetch_add(1, Ordering::AcqRel);
    }

    /// It is written, or the job is not ours any more.
    pub(super) fn end(&self) {
        self.stubborn.fetch_sub(1, Ordering::AcqRel);
    }
}

impl QueueState {
    /// Whether outcomes wait to be written, and are tried again and again.
    pub(super) fn has_stubborn(&self) -> bool {
        self.unsettled.stubborn.load(Ordering::Acquire) > 0
    }

    /// The acks that were refused.
    pub(super) fn take_unsaid(&self) -> Vec<AckSubject> {
        std::mem::take(&mut *self.unsettled.unsaid.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps acks that could not be sent.
    pub(super) fn keep_unsaid(&self, acks: impl Iterator<Item = AckSubject>) {
        let mut unsaid = self.unsettled.unsaid.lock().unwrap_or_else(PoisonError::into_inner);
        let room = MAX_UNSAID.saturating_sub(unsaid.len());
        unsaid.extend(acks.take(room));
    }
}

/// How often it was tried to put something on record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tried {
    Once,
    Again,
}

impl Shared {
    /// What became of a job is on record: so those records can be written.
    pub(super) fn note_recorded(&self, item: &ToSettle) {
        if self.supervision.is_all_well() {
            return;
        }
        // Whether a dead letter finds its place is told where it is stored.
        let records: &[RecordKind] = match item.settlement {
            Settlement::Complete { .. } | Settlement::Cancel { .. } | Settlement::Expire => {
                &[RecordKind::Result]
            }
            Settlement::Retry { .. } | Settlement::Snooze { .. } => &[RecordKind::Attempt],
            Settlement::Bury { .. } if item.started_at.is_some() => &[RecordKind::Attempt],
            Settlement::Release { .. } if item.started_at.is_some() => &[RecordKind::Attempt],
            Settlement::Bury { .. }
            | Settlement::Release { .. }
            | Settlement::PutOff { .. }
            | Settlement::Forget => &[],
        };
        for record in records {
            self.supervision.clear(Part::Records(item.work.lane.queue, *record));
        }
    }

    /// What became of a job cannot be put on record.
    pub(super) fn note_unrecorded(&self, item: &ToSettle, error: &Error, tried: Tried) {
        let job = &item.work.key.id;
        let queue = item.work.lane.queue;
        let streams = &self.queues[queue].streams;
        let all = [RecordKind::Result, RecordKind::Attempt, RecordKind::Dead];
        let record = all.into_iter().find(|record| error.place() == Some(streams.of(*record)));
        match (record, kind_of(error)) {
            // As when a leader changes: that is over when it is tried again.
            (Some(_), TroubleKind::NotAnswering) if tried == Tried::Once => {
                tracing::debug!(%job, %error, "not recorded yet; trying again");
            }
            // That is about the job, not about the stream.
            (None, _) | (Some(_), TroubleKind::Refused) => match tried {
                Tried::Once => tracing::warn!(%job, %error, "not recorded yet; trying again"),
                Tried::Again => tracing::debug!(%job, %error, "still not recorded"),
            },
            (Some(record), _) => {
                tracing::debug!(%job, %error, "not recorded yet; trying again");
                self.supervision.report(Part::Records(queue, record), error);
            }
        }
    }

    /// Whether deliveries of a lane can be settled.
    pub(super) async fn may_settle(&self, lane: LaneId) -> Result<()> {
        let (stream, consumer) = (&self.queues[lane.queue].streams.jobs, lane.priority.as_str());
        AckSubject::of_nothing(stream, consumer).in_progress(&self.conn).await
    }

    /// The broker has not confirmed what it was told.
    pub(super) fn note_unsaid(&self, lane: LaneId, told: &[Told], error: &Error) {
        if !error.is_permission() {
            return tracing::debug!(%error, "acks were not confirmed");
        }
        // What is given back comes back without a word; what has ended must not run again.
        let acks = told.iter().filter_map(|(_, ack, word)| match word {
            Word::Ack => Some(ack.clone()),
            Word::Nak(_) => None,
        });
        self.queues[lane.queue].keep_unsaid(acks);
        self.supervision.report(Part::Acks(lane), error);
    }
}

/// Whether a dead letter finds no place, and the job is to wait until there is one.
pub(super) fn has_no_place(error: &Error) -> bool {
    match kind_of(error) {
        TroubleKind::Full | TroubleKind::PermissionDenied | TroubleKind::StreamMissing => true,
        TroubleKind::ConnectionLost
        | TroubleKind::ConnectionClosed
        | TroubleKind::ConsumerMissing
        | TroubleKind::NotAnswering
        | TroubleKind::Refused
        | TroubleKind::LeasesLost
        | TroubleKind::JobsStuck
        | TroubleKind::JobsAtRisk => false,
    }
}
