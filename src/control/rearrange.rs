//! Moving jobs that have not begun: to now, to another time, to another lane.
//!
//! A timer is moved by one message to its own stream, which the broker carries out at once. Elsewhere
//! the job is copied, and the source deleted when the copy is stored: killed in between, both are
//! there, of one run, and of two ends one stands.

use chrono::{DateTime, Utc};

use crate::broker::{Expect, Published};
use crate::client::{Client, Ready};
use crate::error::{Error, ErrorKind, Result};
use crate::inspect::{Found, JobState, Place, state_of};
use crate::priority::Priority;
use crate::token::{JobId, Kind, Queue};
use crate::wire::time::Time;
use crate::wire::{JobCopy, RecordKey, guard_subject, timer_subject};

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
        let found = self.find(queue, kind, id).await?;
        if found.is_empty() {
            let ended = self.completions_of(queue, kind, id).await?.pop();
            let how = ended.map(|end| format!(": it ended as {}", end.status)).unwrap_or_default();
            let message = format!("queue {queue} has no unfinished job {id}{how}");
            return Err(Error::new(ErrorKind::NotFound, message));
        }
        let running = self.running(queue).await?;
        for found in &found {
            let ledger = self.ledger(&found.key).await?;
            let used = ledger.last().map_or(0, |last| last.used());
            let used = used.max(found.options.attempts_used.unwrap_or(0));
            match state_of(found, &ledger, &running, self.clock().now()) {
                JobState::Running(running) => {
                    return Err(Error::invalid(format!(
                        "job {id} is running on {}: cancel it, or let it end",
                        running.worker
                    )));
                }
                JobState::Scheduled(due) | JobState::BackingOff(due) => {
                    self.move_one(found, change, used, Some(due)).await?;
                }
                JobState::Waiting | JobState::Ended(_) => {
                    self.move_one(found, change, used, None).await?;
                }
            }
        }
        Ok(found.len())
    }

    /// Moves a job that is put off until `was_due`, or waits.
    async fn move_one(
        &self,
        found: &Found,
        change: Change,
        used: u32,
        was_due: Option<Time>,
    ) -> Result<()> {
        let (lane, due) = match change {
            Change::Now => (found.priority, None),
            Change::At(time) => (found.priority, Some(time)),
            Change::Lane(lane) => (lane, was_due),
        };
        let due = due.filter(|due| *due > self.clock().now());
        if lane == found.priority && due == was_due {
            return Ok(());
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
    async fn put_on_lane(&self, found: &Found, copy: JobCopy<'_>) -> Result<()> {
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
        match self.publish(&job, Expect::LastOf { guard: &guard, sequence }).await? {
            Published::Stored(_) => self.delete_source(found).await,
            Published::WrongLast(_) | Published::InFlight => Err(has_moved(found)),
        }
    }

    /// A timer, put out at once: in one step.
    async fn put_timer_out(&self, found: &Found, copy: JobCopy<'_>) -> Result<()> {
        let guard = timer_subject(self.namespace(), found.priority, &found.key);
        let (subject, headers) = copy.due_now(self.namespace());
        let expect = Expect::LastOf { guard: &guard, sequence: found.sequence };
        match self.conn().store(subject, &headers, found.payload.clone(), expect).await? {
            Published::Stored(_) => Ok(()),
            Published::WrongLast(_) | Published::InFlight => Err(has_moved(found)),
        }
    }

    /// To a timer, from the lane or from another timer.
    async fn set_timer(&self, found: &Found, copy: JobCopy<'_>, due: Time) -> Result<()> {
        let (subject, headers) = copy.timer(self.namespace(), due);
        let is_in_place = matches!(found.place, Place::Timer(_)) && copy.lane == found.priority;
        let expect = Expect::Last(if is_in_place { found.sequence } else { 0 });
        match self.conn().store(subject, &headers, found.payload.clone(), expect).await? {
            // A new timer in the old one's place is all it takes.
            Published::Stored(_) if is_in_place => Ok(()),
            Published::Stored(_) => self.delete_source(found).await,
            Published::WrongLast(_) | Published::InFlight => Err(has_moved(found)),
        }
    }

    async fn delete_source(&self, found: &Found) -> Result<()> {
        self.conn().delete(&found.stream, found.sequence).await.map(drop)
    }
}

fn has_moved(found: &Found) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!("job {} moved while it was being moved: look at it and try again", found.key.id),
    )
}
