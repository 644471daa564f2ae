//! Where a lost job was last seen, by what all processes have written down.

use super::super::figures::{LastSeen, LostJob};
use super::super::history::{Said, Stands};
use super::books::Books;
use super::job::Job;

/// How long after a job was last seen what is broken is told with it: it is lost then or later.
const AROUND_US: u64 = 30_000_000;

/// Tells of a job that was confirmed at a moment, and of no end.
pub(super) fn lost_job(
    books: &Books,
    id: &str,
    run: &str,
    job: &Job,
    confirmed_us: u64,
) -> LostJob {
    let (at_us, last_seen) = last_seen(books, job, run, confirmed_us);
    let mut faults: Vec<String> = books
        .faults
        .iter()
        .filter(|fault| fault.from_us <= at_us + AROUND_US)
        .filter(|fault| fault.until_us.is_none_or(|until| until >= at_us))
        .map(|fault| fault.what.clone())
        .collect();
    faults.dedup();
    let at_ms = at_us.saturating_sub(books.began_us) / 1000;
    LostJob { id: id.to_owned(), run: run.to_owned(), last_seen, at_ms, faults }
}

/// The last sighting: unfinished in the end, or a handler's start or end, or the confirmation.
fn last_seen(books: &Books, job: &Job, run: &str, confirmed_us: u64) -> (u64, LastSeen) {
    if let Some(left) = job.left.iter().rfind(|left| left.run == run) {
        return (left.at_us, standing(left.stands));
    }
    let started = job.starts.last().map(|start| (start.at_us, LastSeen::Running));
    let ended = job.ends.last().map(|end| {
        let seen = match end.said {
            Said::Failed => put_off(books, job, &end.by),
            // It is running until its end is recorded, or it is given back, which nobody writes down.
            Said::Done | Said::Stopped => LastSeen::Running,
        };
        (end.at_us, seen)
    });
    let seen = started.into_iter().chain(ended).max_by_key(|(at_us, _)| *at_us);
    seen.unwrap_or((confirmed_us, LastSeen::Enqueued))
}

/// Where a worker leaves a job that has failed.
fn put_off(books: &Books, job: &Job, by: &str) -> LastSeen {
    let backoff_us = job.tried.as_ref().map_or(0, |tried| tried.backoff_us);
    match books.sets_timer(by, backoff_us) {
        true => LastSeen::OnATimer,
        false => LastSeen::BackingOff,
    }
}

fn standing(stands: Stands) -> LastSeen {
    match stands {
        Stands::Waiting => LastSeen::Enqueued,
        Stands::Running => LastSeen::Running,
        Stands::BackingOff => LastSeen::BackingOff,
        Stands::Scheduled => LastSeen::OnATimer,
    }
}
