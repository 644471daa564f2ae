//! Bringing stuck jobs back. Copies have to be such that nothing is lost or doubled whoever is killed in
//! between, and however many are at it.

use std::time::Duration;

use tokio::time::sleep;

use super::reach::{End, Outlet};
use super::{Revived, StuckJob};
use crate::broker::{AckSubject, Expect, Published, Word};
use crate::client::{Client, Copied, Due, Promotion, Ready};
use crate::error::{Error, ErrorKind, Result};
use crate::inspect::{Found, Place};
use crate::wire::{
    Completion, JobCopy, RecordKey, RecordKind, guard_subject, parse_record, record_subject,
};

/// How often a copy is tried again because others are at it.
const TRIES: usize = 10;
const TRY_AGAIN: Duration = Duration::from_millis(50);

/// How a message is taken out of its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taking {
    /// Deleted, which is an operator's right.
    Delete,
    /// Acked as if it had been handed out, which is a worker's. The broker deletes it for that, unless
    /// its consumer has it still to hand out; then there is no answer.
    Ack,
}

impl Client {
    /// Whether a stuck job has ended. Where completions are missing altogether, nobody can tell.
    pub(crate) async fn end_of_stuck(&self, key: &RecordKey) -> Result<End> {
        let stream = self.streams(&key.queue).results;
        let subject = record_subject(self.namespace(), RecordKind::Result, key);
        let record = self.conn().last_of_leader(&stream, &subject).await?;
        let ended = record.and_then(|record| parse_record::<Completion>(key, &record.payload));
        Ok(if ended.is_some() { End::OnRecord } else { End::None })
    }

    /// Puts a stuck job on its lane again, or takes away what is left of one that has ended.
    pub(crate) async fn bring_back(&self, job: &StuckJob, taking: Taking) -> Result<Revived> {
        // As the stream's leader has it, and not as it was read before.
        let Some(stored) = self.conn().by_sequence(&job.stream, job.sequence).await? else {
            return Ok(Revived::Gone);
        };
        let revived = match job.outlet {
            Outlet::Lane(_) => match self.read_waiting(&job.queue, stored) {
                Some(found) => self.copy_beside(&found).await?,
                None => Revived::Gone,
            },
            Outlet::Due => match self.read_due(stored) {
                Some(due) => self.put_out(job, due).await?,
                None => Revived::Gone,
            },
        };
        match revived {
            Revived::Moved | Revived::Cleared => self.take_out(job, taking).await?,
            Revived::Gone | Revived::KeptOut | Revived::BeingMoved => {}
        }
        Ok(revived)
    }

    /// Puts what was due on its lane, unless it is there or has ended.
    async fn put_out(&self, job: &StuckJob, due: Due) -> Result<Revived> {
        let end = self.end_of_stuck(&job.key()).await?;
        Ok(match (self.promote(due, Copied::Perhaps).await?, end) {
            (Promotion::Done, End::None) => Revived::Moved,
            (Promotion::Done, End::OnRecord) => Revived::Cleared,
            (Promotion::BeingMoved, _) => Revived::BeingMoved,
            (Promotion::KeptOut, _) => Revived::KeptOut,
        })
    }

    /// Takes a message out of its stream.
    async fn take_out(&self, job: &StuckJob, taking: Taking) -> Result<()> {
        let (stream, sequence) = (&job.stream, job.sequence);
        match taking {
            Taking::Delete => self.conn().delete(stream, sequence).await.map(drop),
            Taking::Ack => {
                let ack = AckSubject::of(stream, job.outlet.consumer(), sequence);
                ack.say_surely(self.conn(), Word::Ack).await
            }
        }
    }

    /// Puts a job on a lane beside its stuck source, unless it is there or has ended.
    async fn copy_beside(&self, found: &Found) -> Result<Revived> {
        if self.end_of_stuck(&found.key).await? == End::OnRecord {
            return Ok(Revived::Cleared);
        }
        let job = self.copy_of(found).await?;
        let guard = guard_subject(self.namespace(), &job.queue, &job.kind, &job.id);
        let mut expected = match found.place {
            Place::Lane => found.sequence,
            // No guard covers what was published without an id.
            Place::LaneWithoutId | Place::Timer(_) | Place::Due => 0,
        };
        for _ in 0..TRIES {
            let expect = Expect::LastOf { guard: &guard, sequence: expected };
            let last = match self.publish(&job, expect).await? {
                Published::Stored(_) => return Ok(Revived::Moved),
                Published::WrongLast(last) => last,
                Published::InFlight => {
                    sleep(TRY_AGAIN).await;
                    continue;
                }
            };
            let there = match last {
                0 => None,
                last => self.conn().by_sequence(&found.stream, last).await?,
            };
            let Some(there) = there else {
                // Nothing of its id is there any more: the source is gone too.
                return Ok(Revived::Gone);
            };
            let there = self.read_waiting(&found.key.queue, there);
            match there.map(|there| there.key.run == found.key.run) {
                // A copy, of somebody who was killed before the source went.
                Some(true) => return Ok(Revived::Cleared),
                Some(false) | None if found.options.unique.is_some() => {
                    return Ok(Revived::KeptOut);
                }
                Some(false) | None => expected = last,
            }
        }
        let message = format!("job {} cannot be brought back just now: try again", found.key.id);
        Err(Error::new(ErrorKind::Unavailable, message))
    }

    async fn copy_of(&self, found: &Found) -> Result<Ready> {
        let ledger = self.ledger(&found.key).await?;
        let used = ledger.last().map_or(0, |last| last.used());
        let copy = JobCopy {
            key: &found.key,
            lane: found.priority,
            headers: &found.headers,
            attempts_used: used.max(found.options.attempts_used.unwrap_or(0)),
            enqueued_at: found.enqueued_at().unwrap_or_else(|| self.clock().now()),
            run_after: None,
        };
        let RecordKey { queue, kind, id, run } = found.key.clone();
        let (headers, payload) = (copy.headers(), found.payload.clone());
        Ok(Ready { queue, priority: copy.lane, kind, id, run, headers, payload })
    }
}
