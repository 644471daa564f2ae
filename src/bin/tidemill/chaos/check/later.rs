//! Whether what producers did to their jobs held: those cancelled did not run, those moved ran elsewhere.

use tidemill::Status;

use super::super::report::Report;
use super::books::Books;
use super::job::{Job, Moved};

/// How long a worker that has a job at hand may take to hear that it is cancelled or moved, and not to start
/// it, with nothing broken. What has not started two seconds after it was fetched is handed back.
const HEARD_WITHIN_US: u64 = 2_500_000;

pub(super) fn cancelled(books: &Books, report: &mut Report) {
    let (mut others, mut started) = (Vec::new(), Vec::new());
    for (id, job) in &books.jobs {
        let Some(cancelled) = &job.cancelled else { continue };
        report.cancelled.asked += 1;
        // Where nobody knows what came of it, the job may have ended either way.
        let Some((at_us, status)) = cancelled.told else { continue };
        report.cancelled.confirmed += u64::from(status == Status::Cancelled);
        if let Some(ended) = job.completions.iter().find(|ended| ended.status != status) {
            others.push(format!("{id} is {} and was said to be {status}", ended.status));
        }
        if status == Status::Cancelled && has_started_after(books, job, at_us) {
            started.push(id.clone());
        }
    }
    report.cancelled.ended_otherwise = others.len() as u64;
    report.cancelled.started = started.len() as u64;
    report.violated_by("ended otherwise than cancelling it said", &others);
    report.violated_by("started long after it was cancelled", &started);
}

/// A worker remembers what is cancelled, and asks for completions before it runs what is given to it again.
/// What it had at hand, and did not hear of because something was broken, it may start.
fn has_started_after(books: &Books, job: &Job, at_us: u64) -> bool {
    job.starts.iter().any(|start| is_beyond_reach(books, at_us, start.at_us))
}

/// Whether at `later_us` every worker knows what was said at `at_us`.
fn is_beyond_reach(books: &Books, at_us: u64, later_us: u64) -> bool {
    later_us > at_us + HEARD_WITHIN_US && books.faults_around(at_us, later_us).next().is_none()
}

pub(super) fn moved(books: &Books, report: &mut Report) {
    let mut elsewhere = Vec::new();
    for (id, job) in &books.jobs {
        let Some(Moved { to, done_us, .. }) = &job.moved else { continue };
        report.moved.asked += 1;
        let Some(done_us) = done_us else { continue };
        report.moved.confirmed += 1;
        let Some(lane) = to else { continue };
        // One that had it at hand before may start it on the lane that it came from.
        let mut starts = job.starts.iter();
        if starts.any(|start| start.lane != *lane && is_beyond_reach(books, *done_us, start.at_us))
        {
            elsewhere.push(id.clone());
        }
    }
    report.moved.elsewhere = elsewhere.len() as u64;
    report.violated_by("started on another lane than it was moved to", &elsewhere);
}
