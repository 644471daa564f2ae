//! Moving jobs that have not begun: to now, to another time, to another lane.
//!
//! A timer is moved by one message to its own stream, which the broker carries out in one step.
//! Elsewhere the job is copied, and the source deleted when the copy is stored: killed in between, both
//! are there, of one run, and of two ends one stands.
//!
//! Workers move jobs too, from lanes to timers and back, by a copy and then an ack of the source. Where
//! several messages hold a run, because whoever moves it is at it or was killed, the older are taken
//! away, as that one was about to, and the youngest is moved: see [`Age`](crate::client::Age) for why
//! nobody takes the youngest away meanwhile.

use std::collections::HashSet;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::sleep;

use super::destination::{Destination, Move, Standing, destination};
use crate::broker::{Expect, Published};
use crate::client::{Client, Copied, Ready, Settled};
use crate::error::{Error, ErrorKind, Result};
use crate::inspect::{Found, JobState, Place, state_of};
use crate::priority::Priority;
use crate::token::{JobId, Kind, Queue, RunId};
use crate::wire::time::Time;
use crate::wire::{Headers, JobCopy, RecordKey, RunningJob, guard_subject, timer_subject};

/// How often jobs are looked at again that were moved by somebody else meanwhile, and the pause before.
const LOOKS: usize = 20;
const LOOK_AGAIN: Duration = Duration::from_millis(100);

impl Client {
    /// Lets the unfinished runs of an id run now: those that are scheduled or back off, and are not
    /// running. How many there were.
    ///
    /// # Errors
    /// `is_not_found` where the queue has no such job, `is_invalid` where it is running, `is_full`
    /// where the queue has no room, `is_permission` where these credentials may not move it.
    pub async fn run_now(&self, queue: &Queue, kind: Option<&Kind>, id: &JobId) -> Result<usize> {
        self.change(queue, kind, id, Move::Now).await
    }

    /// Lets the unfinished runs of an id run at another time; how many there were.
    ///
    /// # Errors
    /// As [`Client::run_now`]; `is_invalid` also for a unique job that has been tried: it stays on its
    /// lane, where its key is held.
    pub async fn reschedule(
        &self,
        queue: &Queue,
        kind: Option<&Kind>,
        id: &JobId,
        time: DateTime<Utc>,
    ) -> Result<usize> {
        self.change(queue, kind, id, Move::At(time)).await
    }

    /// Gives the unfinished runs of an id another priority; how many there were.
    ///
    /// # Errors
    /// As [`Client::reschedule`].
    pub async fn set_priority(
        &self,
        queue: &Queue,
        kind: Option<&Kind>,
        id: &JobId,
        priority: Priority,
    ) -> Result<usize> {
        self.change(queue, kind, id, Move::To(priority)).await
    }

    /// How many runs of an id [`Client::run_now`], [`Client::reschedule`] or [`Client::set_priority`]
    /// would move; nothing is moved.
    ///
    /// # Errors
    /// Theirs, but for the rights that only moving shows.
    pub async fn plan_move(
        &self,
        queue: &Queue,
        kind: Option<&Kind>,
        id: &JobId,
        by: Move,
    ) -> Result<usize> {
        let found = self.find(queue, kind, id).await?;
        if found.is_empty() {
            return Err(self.none_unfinished(queue, kind, id).await?);
        }
        let running = self.running_among(&found).await?;
        let runs = by_run(found);
        for Holders { youngest, .. } in &runs {
            let (was_due, used) = self.standing(youngest, &running).await?;
            destination(standing_of(youngest, was_due, used), by, self.clock().now())?;
        }
        Ok(runs.len())
    }

    async fn change(
        &self,
        queue: &Queue,
        kind: Option<&Kind>,
        id: &JobId,
        by: Move,
    ) -> Result<usize> {
        let mut moved = HashSet::new();
        for _ in 0..LOOKS {
            let found = self.find(queue, kind, id).await?;
            if found.is_empty() && moved.is_empty() {
                return Err(self.none_unfinished(queue, kind, id).await?);
            }
            if self.move_all(found, by, &mut moved).await? {
                return Ok(moved.len());
            }
            sleep(LOOK_AGAIN).await;
        }
        Err(Error::new(
            ErrorKind::Unavailable,
            format!("job {id} is being moved all the time: look at it and try again"),
        ))
    }

    async fn none_unfinished(
        &self,
        queue: &Queue,
        kind: Option<&Kind>,
        id: &JobId,
    ) -> Result<Error> {
        let ended = self.completions_of(queue, kind, id).await?.pop();
        let how = ended.map(|end| format!(": it ended as {}", end.status)).unwrap_or_default();
        let message = format!("queue {queue} has no unfinished job {id}{how}");
        Ok(Error::new(ErrorKind::NotFound, message))
    }

    /// Moves what is found and has not been moved before. Whether that was all there is to move.
    async fn move_all(
        &self,
        found: Vec<Found>,
        by: Move,
        moved: &mut HashSet<RunId>,
    ) -> Result<bool> {
        let running = self.running_among(&found).await?;
        let mut is_all = true;
        for Holders { youngest, older } in by_run(found) {
            if moved.contains(&youngest.key.run) {
                continue;
            }
            if self.move_found(&youngest, &older, by, &running).await? {
                moved.insert(youngest.key.run.clone());
            } else {
                is_all = false;
            }
        }
        Ok(is_all)
    }

    /// Moves one job as it stands; `false` if somebody else has moved it meanwhile.
    async fn move_found(
        &self,
        found: &Found,
        older: &[Found],
        by: Move,
        running: &[RunningJob],
    ) -> Result<bool> {
        let (was_due, used) = self.standing(found, running).await?;
        let to = destination(standing_of(found, was_due, used), by, self.clock().now())?;
        for older in older {
            self.delete_source(older).await?;
        }
        self.move_one(found, to, used).await
    }

    /// Until when a job is put off, if it is, and how many attempts it has used.
    async fn standing(&self, found: &Found, running: &[RunningJob]) -> Result<(Option<Time>, u32)> {
        let ledger = self.ledger(&found.key).await?;
        let used = ledger.last().map_or(0, |last| last.used());
        let used = used.max(found.options.attempts_used.unwrap_or(0));
        let now = self.now(&found.key.queue).await;
        match state_of(found, &ledger, running, now) {
            JobState::Running(running) => Err(Error::invalid(format!(
                "job {} is running on {}: cancel it, or let it end",
                found.key.id, running.worker
            ))),
            JobState::Scheduled(due) | JobState::BackingOff(due) => Ok((Some(due), used)),
            JobState::Waiting | JobState::Ended(_) => Ok((None, used)),
        }
    }

    /// Moves a job; `false` if it has moved meanwhile.
    async fn move_one(&self, found: &Found, to: Destination, used: u32) -> Result<bool> {
        let copy = JobCopy {
            key: &found.key,
            lane: found.priority,
            headers: &found.headers,
            attempts_used: used,
            enqueued_at: found.enqueued_at().unwrap_or_else(|| self.clock().now()),
            run_after: None,
        };
        match to {
            Destination::Here => Ok(true),
            Destination::Lane(lane) => self.put_on_lane(found, JobCopy { lane, ..copy }).await,
            Destination::LaneUntil(lane, due) => {
                self.put_on_lane(found, JobCopy { lane, run_after: Some(due), ..copy }).await
            }
            Destination::Timer(lane, due) => {
                // It wakes to see that it has expired, which counts until its first attempt.
                let expiry = found.options.expires_at.filter(|expiry| used == 0 && *expiry < due);
                let copy = JobCopy { lane, run_after: expiry.map(|_| due), ..copy };
                self.set_timer(found, copy, expiry.unwrap_or(due)).await
            }
        }
    }

    /// To its lane, at once.
    async fn put_on_lane(&self, found: &Found, copy: JobCopy<'_>) -> Result<bool> {
        let RecordKey { queue, kind, id, run } = found.key.clone();
        let (headers, payload) = (copy.headers(), found.payload.clone());
        let job = Ready { queue, priority: copy.lane, kind, id, run, headers, payload };
        // Beside its living source, the source is what is expected there.
        match found.place {
            Place::Lane => self.put_beside(found, &job, found.sequence).await,
            Place::LaneWithoutId => self.put_beside(found, &job, 0).await,
            Place::Timer(_) => self.put_timer_out(found, copy).await,
            Place::Due => match self.store_promoted(job, found.sequence, Copied::Perhaps).await? {
                Settled::Stored(_) => self.delete_source(found).await,
                Settled::Before(_) | Settled::Duplicate(_) | Settled::BeingMoved => Ok(false),
            },
        }
    }

    /// Beside its source on a lane, which then goes.
    async fn put_beside(&self, found: &Found, job: &Ready, sequence: u64) -> Result<bool> {
        let guard = guard_subject(self.namespace(), &job.queue, &job.kind, &job.id);
        let published = match self.publish(job, Expect::LastOf { guard: &guard, sequence }).await? {
            // What has come after it may be another run of the id, which may stand beside it.
            Published::WrongLast(last) if self.is_beside_another(found, last).await? => {
                self.publish(job, Expect::LastOf { guard: &guard, sequence: last }).await?
            }
            published => published,
        };
        match published {
            Published::Stored(_) => self.delete_source(found).await,
            Published::WrongLast(_) | Published::InFlight => Ok(false),
        }
    }

    /// Whether a job is on its lane still, and the message at `last` is another run's.
    async fn is_beside_another(&self, found: &Found, last: u64) -> Result<bool> {
        if last == 0 || self.conn().by_sequence(&found.stream, found.sequence).await?.is_none() {
            return Ok(false);
        }
        let there = self.conn().by_sequence(&found.stream, last).await?;
        let there = there.and_then(|there| self.read_waiting(&found.key.queue, there));
        Ok(there.is_some_and(|there| there.key.run != found.key.run))
    }

    /// A timer, put out at once: in one step.
    async fn put_timer_out(&self, found: &Found, copy: JobCopy<'_>) -> Result<bool> {
        let (subject, headers) = copy.due_now(self.namespace(), found.priority);
        self.in_place_of(found, subject, &headers).await
    }

    /// To a timer: from another one in one step, from elsewhere by a copy.
    async fn set_timer(&self, found: &Found, copy: JobCopy<'_>, due: Time) -> Result<bool> {
        let ns = self.namespace();
        match found.place {
            Place::Timer(_) if copy.lane == found.priority => {
                let (subject, headers) = copy.timer(ns, due);
                self.in_place_of(found, subject, &headers).await
            }
            Place::Timer(_) => {
                let (subject, headers) = copy.timer_instead(ns, due, found.priority);
                let is_stored = self.in_place_of(found, subject, &headers).await?;
                // A server before 2.14 leaves the old one there.
                Ok(is_stored && self.delete_source(found).await?)
            }
            Place::Lane | Place::LaneWithoutId | Place::Due => {
                let (subject, headers) = copy.timer(ns, due);
                let stored =
                    self.conn().store(subject, &headers, found.payload.clone(), Expect::Last(0));
                match stored.await? {
                    Published::Stored(_) => self.delete_source(found).await,
                    Published::WrongLast(_) | Published::InFlight => Ok(false),
                }
            }
        }
    }

    /// Stores what takes the place of a timer, if that is still there.
    async fn in_place_of(&self, timer: &Found, subject: String, headers: &Headers) -> Result<bool> {
        let guard = timer_subject(self.namespace(), timer.priority, &timer.key);
        let expect = Expect::LastOf { guard: &guard, sequence: timer.sequence };
        match self.conn().store(subject, headers, timer.payload.clone(), expect).await? {
            Published::Stored(_) => Ok(true),
            Published::WrongLast(_) | Published::InFlight => Ok(false),
        }
    }

    async fn delete_source(&self, found: &Found) -> Result<bool> {
        self.conn().delete(&found.stream, found.sequence).await?;
        Ok(true)
    }
}

fn standing_of(found: &Found, was_due: Option<Time>, used: u32) -> Standing<'_> {
    Standing { id: &found.key.id, lane: found.priority, options: &found.options, was_due, used }
}

/// The messages that hold a run.
struct Holders {
    youngest: Found,
    /// What the youngest, or what lies between, was copied from.
    older: Vec<Found>,
}

/// The runs among what was found, in its order.
fn by_run(found: Vec<Found>) -> Vec<Holders> {
    let mut runs: Vec<Holders> = Vec::new();
    for one in found {
        match runs.iter_mut().find(|holders| holders.youngest.key == one.key) {
            None => runs.push(Holders { youngest: one, older: Vec::new() }),
            Some(holders) if one.age() > holders.youngest.age() => {
                holders.older.push(std::mem::replace(&mut holders.youngest, one));
            }
            Some(holders) => holders.older.push(one),
        }
    }
    runs
}
