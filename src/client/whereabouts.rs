//! Where a run is: on a lane, held by a timer, or over. Asked wherever a run must not be stored twice.
//!
//! A run moves by copies: from a lane to a timer, from a timer to what that puts out, from there to a
//! lane. While it does, two messages hold it, and the older goes because the younger is there. So
//! messages of a run have an order, which everybody who takes one away goes by; see [`Age`].

use super::Client;
use super::new_job::Ready;
use crate::broker::{Start, Stored};
use crate::error::{Error, ErrorKind, Result};
use crate::wire::{
    Completion, JobHeaders, RecordKey, RecordKind, guard_subject, parse_record, record_subject,
    timed_run_filter,
};

/// Messages of an id that are read at once.
const PAGE: usize = 256;

/// How old a message of a run is beside the others of that run; the greater the younger.
///
/// What is on the timers stream is as old as its sequence. What is on a lane is just younger than the
/// due message that it was promoted from; without one it comes from a producer, before all timers.
/// Among those on lanes that are alike in this, the later sequence is a copy of the earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Age {
    timer: u64,
    on_lane: Option<u64>,
}

impl Age {
    pub(crate) fn on_lane(promoted: Option<u64>, sequence: u64) -> Self {
        Self { timer: promoted.unwrap_or(0), on_lane: Some(sequence) }
    }

    pub(crate) fn timed(sequence: u64) -> Self {
        Self { timer: sequence, on_lane: None }
    }
}

/// What a run that is to be stored comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Origin {
    /// It is enqueued: wherever a message of it is, it is stored.
    Producer,
    /// It is copied from the timers stream's message of this sequence: only what is younger than that
    /// is the copy, and what is older is what the timer was set from.
    Timer(u64),
}

/// Where a run is.
#[derive(Debug)]
pub(super) enum Whereabouts {
    /// On a lane, under this sequence.
    OnLane(u64),
    /// On a timer, or put out by one.
    Timed,
    /// It has ended.
    Ended,
    /// On a lane, as what its timer was set from, and about to be taken away from there.
    BeingMoved,
    /// Nowhere; and the last message of its id on the lanes has this sequence, 0 where there is none.
    Nowhere { last: u64 },
}

impl Client {
    /// Where a run is. It is looked for in the order in which runs move on; what comes to a lane
    /// meanwhile is kept out by the guard, for who then expects what was `last`.
    pub(super) async fn whereabouts(&self, job: &Ready, origin: Origin) -> Result<Whereabouts> {
        let (last, on_lane) = self.on_lanes(job).await?;
        let is_it = |age: Age| match origin {
            Origin::Producer => true,
            Origin::Timer(sequence) => age > Age::timed(sequence),
        };
        if let Some(there) = on_lane.filter(|there| is_it(there.age)) {
            return Ok(Whereabouts::OnLane(there.sequence));
        }
        if self.timed(&job.key()).await?.is_some_and(|sequence| is_it(Age::timed(sequence))) {
            return Ok(Whereabouts::Timed);
        }
        if self.end_of(&job.key()).await?.is_some() {
            return Ok(Whereabouts::Ended);
        }
        Ok(match on_lane {
            Some(_) => Whereabouts::BeingMoved,
            None => Whereabouts::Nowhere { last },
        })
    }

    /// The sequence of the last message of a job's id on the lanes, and the youngest of its run.
    async fn on_lanes(&self, job: &Ready) -> Result<(u64, Option<OnLane>)> {
        let stream = self.streams(&job.queue).jobs;
        let guard = guard_subject(&self.namespace, &job.queue, &job.kind, &job.id);
        let mut youngest = None;
        if let Some(sequence) = job.id.as_sequence() {
            // It may stand there as it was published, without an id in its subject.
            let first = unless_missing(self.conn.by_sequence(&stream, sequence).await)?;
            youngest = first.and_then(|first| OnLane::read(job, &first));
        }
        let last = unless_missing(self.conn.last_of_leader(&stream, &guard).await)?;
        let Some(last) = last else { return Ok((0, youngest)) };
        let of_last = OnLane::read(job, &last);
        if of_last.is_some() || job.has_fresh_id() {
            return Ok((last.sequence, youngest.max(of_last)));
        }
        let mut from = 1;
        loop {
            let page = self.conn.batch(&stream, &guard, Start::Sequence(from), PAGE).await?;
            let found = page.messages.iter().filter_map(|there| OnLane::read(job, there)).max();
            youngest = youngest.max(found);
            let Some(end) = page.messages.last().map(|there| there.sequence) else { break };
            if page.is_last || end >= last.sequence {
                from = end;
                break;
            }
            from = end + 1;
        }
        if youngest.is_none() && from < last.sequence {
            let message = format!("stream {stream} changes, or a replica of it lags");
            return Err(Error::new(ErrorKind::Unavailable, message));
        }
        Ok((last.sequence, youngest))
    }

    /// The youngest message of a run on the timers stream.
    pub(crate) async fn timed(&self, key: &RecordKey) -> Result<Option<u64>> {
        let stream = self.streams(&key.queue).timers;
        let filter = timed_run_filter(&self.namespace, key);
        let there = unless_missing(self.conn.last_of_leader(&stream, &filter).await)?;
        Ok(there.map(|there| there.sequence))
    }

    /// How a run ended, as the stream's leader has it.
    pub(crate) async fn end_of(&self, key: &RecordKey) -> Result<Option<Completion>> {
        let stream = self.streams(&key.queue).results;
        let subject = record_subject(&self.namespace, RecordKind::Result, key);
        let record = unless_missing(self.conn.last_of_leader(&stream, &subject).await)?;
        Ok(record.and_then(|record| parse_record(key, &record.payload)))
    }
}

/// A stream that does not exist, as of a queue yet to be made, holds nothing.
fn unless_missing(found: Result<Option<Stored>>) -> Result<Option<Stored>> {
    match found {
        Err(error) if error.is_not_found() => Ok(None),
        found => found,
    }
}

/// A message of a run on a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct OnLane {
    age: Age,
    sequence: u64,
}

impl OnLane {
    /// `None` where the message is another run's.
    fn read(job: &Ready, there: &Stored) -> Option<Self> {
        (job.run_of(there) == job.run).then(|| {
            let promoted =
                JobHeaders::parse(&there.headers).ok().and_then(|headers| headers.promoted);
            Self { age: Age::on_lane(promoted, there.sequence), sequence: there.sequence }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_of_a_run_is_younger_than_the_one_before() {
        let steps = [
            ("enqueued", Age::on_lane(None, 900)),
            ("moved to another lane", Age::on_lane(None, 901)),
            ("parked", Age::timed(10)),
            ("put out", Age::timed(12)),
            ("promoted", Age::on_lane(Some(12), 950)),
            ("moved again", Age::on_lane(Some(12), 951)),
            ("parked again", Age::timed(14)),
            ("on a timer for another lane", Age::timed(15)),
            ("put out again", Age::timed(16)),
            ("promoted again", Age::on_lane(Some(16), 960)),
        ];
        for pair in steps.windows(2) {
            assert!(pair[0].1 < pair[1].1, "{} and {}", pair[0].0, pair[1].0);
        }
    }
}
