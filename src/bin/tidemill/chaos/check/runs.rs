//! How often handlers were called: on which lanes, how often for each job, and why more than once.

use super::super::history::Said;
use super::super::report::Report;
use super::Asked;
use super::books::Books;
use super::job::{Job, Start};

pub(super) fn count(books: &Books, asked: Asked, report: &mut Report) {
    let mut unexplained = Vec::new();
    for (id, job) in &books.jobs {
        for start in &job.starts {
            *report.lane_starts.entry(start.lane).or_default() += 1;
        }
        let starts = job.starts.len() as u64;
        if starts > 0 {
            *report.runs_per_job.entry(starts).or_default() += 1;
        }
        let needed = job.tried.as_ref().map_or(1, |tried| tried.needs());
        report.extra_runs += starts.saturating_sub(needed);
        let pairs = job.starts.windows(2);
        let without_reason = pairs.filter(|pair| !has_reason(books, job, &pair[0], &pair[1]));
        unexplained.extend(without_reason.map(|_| id.clone()));
    }
    // Any fault hits at most what was held when it struck.
    if unexplained.len() as u64 > asked.faults.saturating_mul(books.held()) {
        report.violated_by("run once more without a fault that explains it", &unexplained);
    }
}

/// Whether a job had to be run again: its attempt failed, or was given back, or something broke.
fn has_reason(books: &Books, job: &Job, before: &Start, again: &Start) -> bool {
    let is_next = again.attempt == before.attempt + 1;
    let has_failed = is_next && job.failed_before(before.attempt, again.at_us).is_some();
    let was_given_back =
        job.ends.iter().any(|end| end.attempt == before.attempt && end.said == Said::Stopped);
    // The worker that had it already, and the one that was given its copy, may both run it.
    let was_moved = job.moved.as_ref().is_some_and(|moved| moved.asked_us <= again.at_us);
    has_failed
        || was_given_back
        || was_moved
        || books.faults_around(before.at_us, again.at_us).next().is_some()
}
