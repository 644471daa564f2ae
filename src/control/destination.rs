//! Where a job goes that is moved. Pure.

use chrono::{DateTime, Utc};

use crate::error::{Error, Result};
use crate::priority::Priority;
use crate::token::JobId;
use crate::wire::JobHeaders;
use crate::wire::time::Time;

/// What is to be other than it is about a job that has not begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// It is to run now.
    Now,
    /// It is to run at this time.
    At(DateTime<Utc>),
    /// It is to have this priority.
    To(Priority),
}

/// Where a job stands that is to be moved.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing<'a> {
    pub(super) id: &'a JobId,
    pub(super) lane: Priority,
    pub(super) options: &'a JobHeaders,
    /// Until when it is put off, if it is.
    pub(super) was_due: Option<Time>,
    /// Attempts that it has used.
    pub(super) used: u32,
}

/// Where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Destination {
    /// It is there already.
    Here,
    /// To a lane, to run now.
    Lane(Priority),
    /// To a lane, to wait there until then: where its key is held.
    LaneUntil(Priority, Time),
    /// To a timer for a lane.
    Timer(Priority, Time),
}

/// Where a job goes by a move, at `now`.
///
/// # Errors
/// `is_invalid` for one that has to stay where its key is held.
pub(super) fn destination(job: Standing<'_>, by: Move, now: Time) -> Result<Destination> {
    let (lane, due) = match by {
        Move::Now => (job.lane, None),
        Move::At(time) => (job.lane, Some(time)),
        Move::To(lane) => (lane, job.was_due),
    };
    let due = due.filter(|due| *due > now);
    if lane == job.lane && due == job.was_due {
        return Ok(Destination::Here);
    }
    match due {
        None => Ok(Destination::Lane(lane)),
        Some(due) if job.options.unique.is_none() => Ok(Destination::Timer(lane, due)),
        Some(_) if job.used > 0 => Err(Error::invalid(format!(
            "job {} is unique and has been tried: it stays on its lane until its next attempt",
            job.id
        ))),
        Some(due) => Ok(Destination::LaneUntil(lane, due)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Headers, name, time};

    #[test]
    fn destinations_as_a_table() {
        use Priority::{High, Low};
        let (now, then, later) = (time::from_nanos(10), time::from_nanos(20), time::from_nanos(30));
        let unique: Headers = [(name::UNIQUE, "1")].into_iter().collect();
        let unique = JobHeaders::parse(&unique).expect("valid");
        let plain = JobHeaders::default();
        let id = JobId::new("a").expect("valid");
        let at = |options, was_due, used| Standing { id: &id, lane: Low, options, was_due, used };
        for (job, by, expected) in [
            (at(&plain, None, 0), Move::Now, Some(Destination::Here)),
            (at(&plain, Some(then), 1), Move::Now, Some(Destination::Lane(Low))),
            (at(&plain, Some(then), 0), Move::At(then), Some(Destination::Here)),
            (at(&plain, Some(then), 0), Move::At(later), Some(Destination::Timer(Low, later))),
            (at(&plain, Some(then), 0), Move::At(now), Some(Destination::Lane(Low))),
            (at(&plain, None, 0), Move::To(High), Some(Destination::Lane(High))),
            (at(&plain, Some(then), 2), Move::To(High), Some(Destination::Timer(High, then))),
            (at(&unique, Some(then), 0), Move::At(later), Some(Destination::LaneUntil(Low, later))),
            (at(&unique, Some(then), 1), Move::Now, Some(Destination::Lane(Low))),
            (at(&unique, Some(then), 1), Move::At(later), None),
            (at(&unique, Some(then), 1), Move::To(High), None),
            (at(&unique, Some(then), 1), Move::To(Low), Some(Destination::Here)),
        ] {
            assert_eq!(destination(job, by, now).ok(), expected, "{job:?} {by:?}");
        }
    }
}
