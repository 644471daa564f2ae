//! Moving jobs that have not begun: to now, to another time, to another lane.
//!
//! A timer is moved by one message to its own stream, which the broker carries out at once. Elsewhere
//! the job is copied, and the source deleted when the copy is stored: killed in between, both are
//! there, of one run, and of two ends one stands.
//!
//! Workers move jobs too, from lanes to timers and back, by a copy and then an ack of the source. A
//! run that is seen at both places is left alone until its source is gone: what took the copy further
//! could find the source there, take it for the job, and drop the copy just before that ack.

use std::collections::HashSet;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::sleep;

use crate::broker::{Expect, Published};
use crate::client::{Client, Ready};
use crate::error::{Error, ErrorKind, Result};
use crate::inspect::{Found, JobState, Place, state_of};
use crate::priority::Priority;
use crate::token::{JobId, Kind, Queue, RunId};
use crate::wire::time::Time;
use crate::wire::{JobCopy, RecordKey, RunningJob, guard_subject, timer_subject};

/// How often jobs are looked at again that were moved by somebody else meanwhile, and the pause before.
const LOOKS: usize = 20;
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What is to be other than it is.
#[derive(Clone, Copy, Debug)]
enum Change {
    Now,
    At(Time),
    Lane(Priority),
}

impl Client {
    /// Lets the unfinished runs of an id run now: those that are scheduled or back off, and are not
    /// running. How many there were.
    ///
    /// # Errors
    /// `is_not_found` where the queue has no such job, `is_invalid` where it is running, `is_full`
    /// where the queue has no room, `is_permission` where these credentials may not move it.
    pub async fn run_now(&self, queue: &Queue, kind: Option<&Kind>, id: &JobId) -> Result<usize> {
        self.change(queue, kind, id, Change::Now).await
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
        self.change(queue, kind, id, Change::At(time)).await
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
        self.change(queue, kind, id, Change::Lane(priority)).await
    }

    async fn change(
        &self,
        queue: &Queue,
        kind: Option<&Kind>,
        id: &JobId,
        change: Change,
    ) -> Result<usize> {
        let mut moved = HashSet::new();
        for _ in 0..LOOKS {
            let found = self.find(queue, kind, id).await?;
            if found.is_empty() && moved.is_empty() {
                return Err(self.none_unfinished(queue, kind, id).await?);
            }
            if self.move_all(&found, change, &mut moved).await? {
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

    /// Moves what is found, has not been moved before, and is not on its way elsewhere. Whether that
    /// was all there is to move.
    async fn move_all(
        &self,
        found: &[Found],
        change: Change,
        moved: &mut HashSet<RunId>,
    ) -> Result<bool> {
        let running = self.running_among(found).await?;
        let mut is_all = true;
        for one in found {
            if moved.contains(&one.key.run) {
                continue;
            }
            if is_on_its_way(one, found) || !self.move_found(one, change, &running).await? {
                is_all = false;
                continue;
            }
            moved.insert(one.key.run.clone());
        }
        Ok(is_all)
    }

    /// Moves one job as it stands; `false` if somebody else has moved it meanwhile.
    async fn move_found(
        &self,
        found: &Found,
        change: Change,
        running: &[RunningJob],
    ) -> Result<bool> {
        let ledger = self.ledger(&found.key).await?;
        let used = ledger.last().map_or(0, |last| last.used());
        let used = used.max(found.options.attempts_used.unwrap_or(0));
        let now = self.now(&found.key.queue).await;
        match state_of(found, &ledger, running, now) {
            JobState::Running(running) => Err(Error::invalid(format!(
                "job {} is running on {}: cancel it, or let it end",
                found.key.id, running.worker
            ))),
            JobState::Scheduled(due) | JobState::BackingOff(due) => {
                self.move_one(found, change, used, Some(due)).await
            }
            JobState::Waiting | JobState::Ended(_) => {
                self.move_one(found, change, used, None).await
            }
        }
    }

    /// Moves a job that is put off until `was_due`, or waits; `false` if it has moved meanwhile.
    async fn move_one(
        &self,
        found: &Found,
        change: Change,
        used: u32,
        was_due: Option<Time>,
    ) -> Result<bool> {
        let (lane, due) = match change {
            Change::Now => (found.priority, None),
            Change::At(time) => (found.priority, Some(time)),
            Change::Lane(lane) => (lane, was_due),
        };
        let due = due.filter(|due| *due > self.clock().now());
        if lane == found.priority && due == was_due {
            return Ok(true);
        }
        let copy = JobCopy {
            key: &found.key,
            lane,
            headers: &found.headers,
            attempts_used: used,
            enqueued_at: found.enqueued_at().unwrap_or_else(|| self.clock().now()),
            run_after: None,
        };
        match due {
            None => self.put_on_lane(found, copy).await,
            Some(due) if found.options.unique.is_none() => self.set_timer(found, copy, due).await,
            Some(_) if used > 0 => Err(Error::invalid(format!(
                "job {} is unique and has been tried: it stays on its lane until its next attempt",
                found.key.id
            ))),
            Some(due) => self.put_on_lane(found, JobCopy { run_after: Some(due), ..copy }).await,
        }
    }

    /// To its lane, at once.
    async fn put_on_lane(&self, found: &Found, copy: JobCopy<'_>) -> Result<bool> {
        let RecordKey { queue, kind, id, run } = found.key.clone();
        let guard = guard_subject(self.namespace(), &queue, &kind, &id);
        let (headers, payload) = (copy.headers(), found.payload.clone());
        let job = Ready { queue, priority: copy.lane, kind, id, run, headers, payload };
        // Beside its living source, the source is what is expected there.
        let sequence = match found.place {
            Place::Lane => found.sequence,
            Place::LaneWithoutId => 0,
            Place::Timer(_) if copy.lane == found.priority => {
                return self.put_timer_out(found, copy).await;
            }
            Place::Timer(_) | Place::Due => {
                self.store_once(job).await?;
                return self.delete_source(found).await;
            }
        };
        let published = match self.publish(&job, Expect::LastOf { guard: &guard, sequence }).await?
        {
            // Another run of the id came after it, which may stand beside it.
            Published::WrongLast(last) if last > sequence && found.options.unique.is_none() => {
                match self.conn().by_sequence(&found.stream, found.sequence).await? {
                    Some(_) => {
                        self.publish(&job, Expect::LastOf { guard: &guard, sequence: last }).await?
                    }
                    None => return Ok(false),
                }
            }
            published => published,
        };
        match published {
            Published::Stored(_) => self.delete_source(found).await,
            Published::WrongLast(_) | Published::InFlight => Ok(false),
        }
    }

    /// A timer, put out at once: in one step.
    async fn put_timer_out(&self, found: &Found, copy: JobCopy<'_>) -> Result<bool> {
        let guard = timer_subject(self.namespace(), found.priority, &found.key);
        let (subject, headers) = copy.due_now(self.namespace());
        let expect = Expect::LastOf { guard: &guard, sequence: found.sequence };
        match self.conn().store(subject, &headers, found.payload.clone(), expect).await? {
            Published::Stored(_) => Ok(true),
            Published::WrongLast(_) | Published::InFlight => Ok(false),
        }
    }

    /// To a timer, from the lane or from another timer.
    async fn set_timer(&self, found: &Found, copy: JobCopy<'_>, due: Time) -> Result<bool> {
        let (subject, headers) = copy.timer(self.namespace(), due);
        let is_in_place = matches!(found.place, Place::Timer(_)) && copy.lane == found.priority;
        let expect = Expect::Last(if is_in_place { found.sequence } else { 0 });
        match self.conn().store(subject, &headers, found.payload.clone(), expect).await? {
            // A new timer in the old one's place is all it takes.
            Published::Stored(_) if is_in_place => Ok(true),
            Published::Stored(_) => self.delete_source(found).await,
            Published::WrongLast(_) | Published::InFlight => Ok(false),
        }
    }

    async fn delete_source(&self, found: &Found) -> Result<bool> {
        self.conn().delete(&found.stream, found.sequence).await?;
        Ok(true)
    }
}

/// Whether the run is on a lane and among the timers at once: a worker is moving it.
fn is_on_its_way(one: &Found, found: &[Found]) -> bool {
    let is_on_lane = |found: &Found| match found.place {
        Place::Lane | Place::LaneWithoutId => true,
        Place::Timer(_) | Place::Due => false,
    };
    let elsewhere = |other: &Found| other.key == one.key && is_on_lane(other) != is_on_lane(one);
    found.iter().any(elsewhere)
}
