//! The way into a lane: what was decided about a job before it may run is carried out.

use std::sync::Arc;
use std::time::Duration;

use super::Shared;
use super::admit::{Admission, Candidate, admit};
use super::history::{History, done_since, look_up};
use super::job::{Attempt, Work};
use crate::error::Result;
use crate::outcome::Settlement;
use crate::retry::RetryPolicy;
use crate::wire::{Unique, time};

/// A job that cannot be looked up is given back for this long.
const LOOK_UP_AGAIN: Duration = Duration::from_secs(5);

/// What the broker says of a job that is looked up before it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sight {
    /// Nobody can have touched this message; its run may have ended by another.
    Undisturbed,
    /// Somebody may have.
    Disturbed,
}

impl Work {
    pub(super) fn as_candidate(&self) -> Candidate<'_> {
        Candidate { options: &self.options, sequence: self.sequence, stored: self.stored }
    }
}

impl Shared {
    /// Decides about a job that may have been run before.
    pub(super) async fn admit_by_record(self: &Arc<Self>, mut work: Work, sight: Sight) {
        match self.history(&work).await {
            Ok(history) => {
                let of_kind = self.handlers.get(&work.key.kind).map(|handler| &handler.policy);
                // A kind that is not known here is not judged by attempts.
                let generous = RetryPolicy { max_retries: u32::MAX, ..RetryPolicy::default() };
                let policy = work.policy(of_kind.unwrap_or(&generous));
                work.attempt.ledger = history.ledger;
                let admission = admit(work.as_candidate(), history, &policy, self.clock.now());
                let admission = match (admission, sight) {
                    // Of an undisturbed first attempt nothing need be written down.
                    (Admission::Run(attempt), Sight::Undisturbed) if attempt.number == 1 => {
                        Admission::Run(Attempt { announce: false, ..attempt })
                    }
                    (admission, Sight::Undisturbed | Sight::Disturbed) => admission,
                };
                self.carry_out(work, admission).await;
            }
            Err(error) => {
                tracing::warn!(job = %work.key.id, %error, "cannot look up a job; given back");
                let settlement = Settlement::Release { delay: LOOK_UP_AGAIN };
                self.turn_down(work, settlement, 0).await;
            }
        }
    }

    async fn history(&self, work: &Work) -> Result<History> {
        let queue = &self.queues[work.lane.queue];
        let streams = &queue.streams;
        let (conn, ns, key) = (&self.conn, &self.namespace, &work.key);
        let history = look_up(conn, ns, streams, key).await?;
        let is_duplicate = match work.options.unique {
            Some(Unique::For(period)) if history.used == 0 => {
                queue.warn_of_forgotten_keys(period);
                // One that is put off asks for its turn when it is due. How long it waits beyond
                // that is not its doing: what was a duplicate then is one however long the queue.
                let due = work.options.run_after.map(|run_after| run_after.due(work.stored));
                let asked = due.map_or(work.stored, |due| due.max(work.stored));
                done_since(conn, ns, streams, key, time::before(asked, period)).await?
            }
            Some(_) | None => false,
        };
        Ok(History { is_duplicate, ..history })
    }

    pub(super) async fn carry_out(self: &Arc<Self>, mut work: Work, admission: Admission) {
        match admission {
            Admission::Run(_) if !self.handlers.contains_key(&work.key.kind) => {
                self.give_up(work.lane, 1);
                self.turn_away(work).await;
            }
            Admission::Run(attempt) => {
                work.attempt = attempt;
                self.enter(work);
            }
            Admission::NotYet { delay, used } => {
                self.turn_down(work, Settlement::PutOff { delay, used }, used).await;
            }
            Admission::HasEnded => self.turn_down(work, Settlement::Forget, 0).await,
            Admission::Duplicate => {
                let reason = "duplicate".to_owned();
                self.turn_down(work, Settlement::Cancel { reason }, 0).await;
            }
            Admission::Expired => self.turn_down(work, Settlement::Expire, 0).await,
            Admission::Bury { reason, error, attempts } => {
                self.turn_down(work, Settlement::Bury { reason, error: Box::new(error) }, attempts)
                    .await;
            }
        }
    }

    /// Settles a job that does not get to run, after `attempts` attempts.
    pub(super) async fn turn_down(&self, mut work: Work, settlement: Settlement, attempts: u32) {
        work.attempt.number = attempts;
        self.give_up(work.lane, 1);
        self.settle(work, settlement).await;
    }
}
