//! The numbers of attempts against the ledger, and when attempts came.

use std::collections::BTreeSet;

use tidemill::AttemptEvent;

use super::super::report::Report;
use super::Asked;
use super::books::Books;
use super::crowds::Crowds;
use super::job::{Job, Moved, Start};

/// What clocks and rounding take off a delay.
const TOLERANCE_US: u64 = 5_000;

/// The same where the broker was broken. It may hand a job out too soon, but a worker that gets one asks the
/// broker's clock, which it knows that well, and puts the job off for the rest.
const AFTER_RESTART_US: u64 = 50_000;

/// Attempt numbers: never skipped, never repeated but for a first attempt that left no trace.
pub(super) fn numbers(books: &Books, asked: Asked, report: &mut Report) {
    let mut wrong = Vec::new();
    for (id, job) in &books.jobs {
        if let Some(why) = wrong_number(books, asked, job) {
            wrong.push(format!("{id} {why}"));
        }
    }
    report.wrong_attempts = wrong.len() as u64;
    report.violated_by("a wrong attempt number", &wrong);
}

fn wrong_number(books: &Books, asked: Asked, job: &Job) -> Option<String> {
    use AttemptEvent::{Failed, Released, Started, ToBury};
    let entered = job.ledger.iter().filter(|entry| entry.what == Started);
    let numbers: BTreeSet<u32> = job
        .starts
        .iter()
        .map(|start| start.attempt)
        .chain(entered.map(|entry| entry.attempt))
        .collect();
    for n in numbers {
        let (starts, entries) = (job.started(n), job.entries(n, Started));
        if n == 0 {
            return Some("has an attempt 0".to_owned());
        }
        if entries > 1 + job.entries(n, Released) {
            return Some(format!("began attempt {n} {entries} times, by the ledger"));
        }
        if n == 1 {
            let without_trace = starts.saturating_sub(entries);
            let allowed = 1 + forgotten_starts(books, job) + asked.faults;
            if without_trace > allowed {
                return Some(format!("ran attempt 1 {without_trace} times without a trace"));
            }
            continue;
        }
        if starts > entries {
            return Some(format!("ran attempt {n} {starts} times, {entries} times by the ledger"));
        }
        if [Started, Failed, ToBury].iter().all(|what| job.entries(n - 1, *what) == 0) {
            return Some(format!("began attempt {n}, though {} is not on record", n - 1));
        }
    }
    None
}

/// How often a broker may have forgotten that it had handed the job out.
fn forgotten_starts(books: &Books, job: &Job) -> u64 {
    let first = job.starts.iter().filter(|start| start.attempt == 1).map(|start| start.at_us);
    let Some((from, until)) = first.clone().min().zip(first.max()) else { return 0 };
    books.faults_around(from, until).filter(|fault| !fault.is_of_worker()).count() as u64
}

/// Attempts that came before they were due, or long after.
pub(super) fn times(books: &Books, asked: Asked, report: &mut Report) {
    let (mut early, mut late) = (Vec::new(), Vec::new());
    let crowds = Crowds::of(books);
    for (id, job) in &books.jobs {
        for start in first_of_each_attempt(job) {
            let Some((asked_us, delay_us)) = due(job, start) else { continue };
            let due_us = brought_forward(job, asked_us + delay_us);
            let was_broken = asked.faults > 0 || books.broker_was_broken(asked_us, start.at_us);
            let slack_us = match was_broken {
                true => AFTER_RESTART_US,
                false => TOLERANCE_US,
            };
            if start.at_us + slack_us < due_us {
                let by_ms = (due_us - start.at_us) / 1000;
                early.push(format!("{id} attempt {} by {by_ms} ms", start.attempt));
            }
            let possible_us = due_us.max(books.whole_since_us(start.at_us));
            // Whether it is to run now is not known before the producer is told.
            let possible_us = possible_us.max(moved_us(job));
            let possible_us = possible_us + crowds.wait_us(start.lane, possible_us);
            let late_us = start.at_us.saturating_sub(possible_us);
            if late_us > books.aftermath_us() && asked.faults == 0 {
                let by_ms = late_us / 1000;
                late.push(format!("{id} attempt {} by {by_ms} ms", start.attempt));
            }
        }
    }
    report.early_retries = early.len() as u64;
    report.late_retries = late.len() as u64;
    report.violated_by("started before it was due", &early);
    report.violated_by("started long after it was due, with nothing broken", &late);
}

/// When the producer last had to do with it, or was to be told.
fn moved_us(job: &Job) -> u64 {
    job.moved.as_ref().map_or(0, |moved| moved.done_us.unwrap_or(moved.asked_us))
}

/// When a job is due that its producer may have let run now.
fn brought_forward(job: &Job, due_us: u64) -> u64 {
    match &job.moved {
        Some(Moved { asked_us, to: None, .. }) => due_us.min(*asked_us),
        Some(Moved { to: Some(_), .. }) | None => due_us,
    }
}

/// An attempt that is granted again, or was given back, comes when it comes.
fn first_of_each_attempt(job: &Job) -> impl Iterator<Item = &Start> {
    let mut seen = BTreeSet::new();
    job.starts.iter().filter(move |start| seen.insert(start.attempt))
}

/// From when on, and how long, a start had to wait, if it had to.
fn due(job: &Job, start: &Start) -> Option<(u64, u64)> {
    let tried = job.tried.as_ref()?;
    match start.attempt.checked_sub(1) {
        None => None,
        Some(0) => tried.run_after_us.map(|delay| (tried.at_us, delay)),
        Some(before) => {
            let failed = job.failed_before(before, start.at_us)?;
            Some((failed.at_us, tried.backoff_us))
        }
    }
}
