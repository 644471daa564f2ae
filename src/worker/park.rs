//! Putting a job off: for a short while on its lane, for longer on a timer of the broker's.
//!
//! A timer is a copy of the job on a stream of its own, which the broker puts out when it is due;
//! see `promote` for what follows. It costs the lane nothing while it waits, outlives restarts to
//! the second, and can be found and taken away by its subject.

use std::time::Duration;

use super::Shared;
use super::job::Work;
use crate::broker::{Expect, Published, Word};
use crate::client::Age;
use crate::error::{Error, ErrorKind, Result};
use crate::wire::JobCopy;
use crate::wire::time;

/// Delays beyond this are parked unless the worker is told otherwise.
pub const DEFAULT_PARK_OVER: Duration = Duration::from_secs(60);

/// A job that must stay on its lane is given back for at most this long at a time.
const LONGEST_NAK: Duration = Duration::from_secs(3600);

/// How a job is put off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PutOff {
    /// Given back to its lane for this long.
    Nak(Duration),
    /// Set as a timer.
    Park,
}

/// A unique job stays on its lane, where its guard holds.
fn how(delay: Duration, is_unique: bool, park_over: Duration) -> PutOff {
    if is_unique {
        PutOff::Nak(delay.min(LONGEST_NAK))
    } else if delay > park_over {
        PutOff::Park
    } else {
        PutOff::Nak(delay)
    }
}

impl Shared {
    /// Puts a job off that has used `used` attempts; what is left to tell the broker.
    pub(super) async fn put_off(&self, work: &Work, delay: Duration, used: u32) -> Result<Word> {
        // That is on record already, and its timer would stay until it is due.
        if self.cancelled.contains(&work.key) {
            return Ok(Word::Ack);
        }
        match how(delay, work.options.unique.is_some(), self.park_over) {
            PutOff::Nak(delay) => Ok(Word::Nak(delay)),
            PutOff::Park => match self.park(work, delay, used).await {
                Ok(()) => Ok(Word::Ack),
                // Without timers, as on a queue of an earlier version, the lane will do.
                Err(error) if error.is_unavailable() || error.is_permission() => {
                    tracing::warn!(job = %work.key.id, %error, "no timer could be set");
                    Ok(Word::Nak(delay.min(LONGEST_NAK)))
                }
                Err(error) => Err(error),
            },
        }
    }

    /// Sets a timer. One that stands already and is younger than the job was set for the same run
    /// before a crash; one that is older, left by another, gives way: who found it might take it away
    /// in favour of the job.
    async fn park(&self, work: &Work, delay: Duration, used: u32) -> Result<()> {
        // By the latest that it can be now: a timer's word is final, and it must not fire early.
        let due = time::after(self.clock.latest(), delay);
        // The timer's word is final, unless it only wakes the job to see that it has expired.
        let run_after = work.options.run_after.map(|run_after| run_after.due(work.stored));
        let copy = JobCopy {
            key: &work.key,
            lane: work.lane.priority,
            headers: &work.headers,
            attempts_used: used,
            enqueued_at: work.enqueued_at(),
            run_after: run_after.filter(|later| used == 0 && *later > due),
        };
        let (subject, headers) = copy.timer(&self.namespace, due);
        let age = Age::on_lane(work.options.promoted, work.sequence);
        let mut expected = 0;
        loop {
            let expect = Expect::Last(expected);
            let stored = self.conn.store(subject.clone(), &headers, work.payload.clone(), expect);
            match stored.await? {
                Published::Stored(timer) => return self.unless_cancelled(work, timer).await,
                Published::WrongLast(there) if Age::timed(there) > age => return Ok(()),
                Published::WrongLast(older) if older != expected => expected = older,
                // Whoever sets it may fail: it is tried again.
                Published::WrongLast(_) | Published::InFlight => {
                    let message = "somebody else is setting the timer";
                    return Err(Error::new(ErrorKind::Unknown, message));
                }
            }
        }
    }

    /// Takes a timer away again whose run was cancelled while it was set.
    async fn unless_cancelled(&self, work: &Work, timer: u64) -> Result<()> {
        if self.cancelled.contains(&work.key) {
            let stream = &self.queues[work.lane.queue].streams.timers;
            self.conn.delete(stream, timer).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_job_is_put_off_as_a_table() {
        let (second, hour) = (Duration::from_secs(1), LONGEST_NAK);
        let over = DEFAULT_PARK_OVER;
        let table = [
            (second, false, PutOff::Nak(second)),
            (over, false, PutOff::Nak(over)),
            (over + second, false, PutOff::Park),
            (over + second, true, PutOff::Nak(over + second)),
            (3 * hour, true, PutOff::Nak(hour)),
        ];
        for (delay, is_unique, expected) in table {
            assert_eq!(how(delay, is_unique, over), expected, "{delay:?} {is_unique}");
        }
    }
}
