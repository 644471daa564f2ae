//! What became of each job: lost, doubled, made up, or ended as it should not have.

use tidemill::Status;

use super::super::history::Said;
use super::super::report::{Enqueued, Lost, Report};
use super::books::Books;
use super::job::{Ended, Job, Origin, Outcome, Tried};
use super::last_seen::lost_job;

/// How many lost jobs are told one by one.
const LOST_TOLD: usize = 1000;

pub(super) fn enqueued(books: &Books, report: &mut Report) {
    let mut duplicates = Vec::new();
    let mut enqueued = Enqueued::default();
    for (id, job) in &books.jobs {
        let Some(tried) = job.tried.as_ref().filter(|_| job.origin == Origin::Producer) else {
            continue;
        };
        match job.outcome {
            Outcome::Ok { .. } => enqueued.ok += 1,
            Outcome::Unknown => enqueued.unknown += 1,
            Outcome::Refused => enqueued.refused += 1,
            Outcome::Duplicate { .. } => {
                enqueued.duplicate += 1;
                if tried.key.is_none() {
                    duplicates.push(id.clone());
                }
            }
        }
    }
    report.enqueued = enqueued;
    report.violated_by("called a duplicate, though nobody else has its id", &duplicates);
}

/// Jobs that the broker confirmed and that have no end: at the beginning of all that it confirmed, at
/// the end, or between. What is lost at the end was perhaps not on disk yet; in the middle, nothing
/// explains it.
pub(super) fn lost(books: &Books, report: &mut Report) {
    let mut confirmed: Vec<(u64, &str, bool)> = books
        .jobs
        .iter()
        .filter_map(|(id, job)| match &job.outcome {
            Outcome::Ok { at_us, run } => {
                let has_ended = job.completions.iter().any(|ended| ended.run == *run);
                Some((*at_us, id.as_str(), has_ended))
            }
            Outcome::Unknown | Outcome::Duplicate { .. } | Outcome::Refused => None,
        })
        .collect();
    confirmed.sort_unstable();
    let is_lost = |(_, _, has_ended): &&(u64, &str, bool)| !has_ended;
    let prefix = confirmed.iter().take_while(is_lost).count();
    let rest = &confirmed[prefix..];
    let suffix = rest.iter().rev().take_while(is_lost).count();
    let middle = rest[..rest.len() - suffix].iter().filter(is_lost).count();
    let counts = [prefix, middle, suffix].map(|count| count as u64);
    report.lost = Lost { prefix: counts[0], middle: counts[1], suffix: counts[2] };
    let ids: Vec<String> =
        confirmed.iter().filter(is_lost).map(|(_, id, _)| (*id).to_owned()).collect();
    report.violated_by("confirmed, but without an end", &ids);
    let lost = confirmed.iter().filter(is_lost).take(LOST_TOLD);
    report.lost_jobs = lost
        .filter_map(|(at_us, id, _)| {
            let job = books.jobs.get(*id)?;
            Some(lost_job(books, id, job.run()?, job, *at_us))
        })
        .collect();
}

type Question = fn(&Job) -> bool;

/// What was run or recorded though nobody enqueued it, or not like that.
pub(super) fn phantoms(books: &Books, report: &mut Report) {
    let questions: [(&str, Question); 6] = [
        ("started or ended, though nobody enqueued it", is_of_nobody),
        ("refused to its producer, and yet it was there", is_refused_and_there),
        ("of another payload than was enqueued", is_of_another_payload),
        ("sealed by nobody who enqueued it, or not sealed", is_sealed_otherwise),
        ("of a run that nobody enqueued", is_of_another_run),
        ("done by no handler's word", is_done_by_nobody),
    ];
    for (what, is_so) in questions {
        let jobs = books.jobs.iter().filter(|(_, job)| is_so(job));
        let ids: Vec<String> = jobs.map(|(id, _)| id.clone()).collect();
        report.phantoms += ids.len() as u64;
        report.violated_by(what, &ids);
    }
}

fn is_there(job: &Job) -> bool {
    !(job.starts.is_empty() && job.completions.is_empty() && job.letters.is_empty())
}

fn is_of_nobody(job: &Job) -> bool {
    job.tried.is_none() && (is_there(job) || !job.ends.is_empty() || !job.ledger.is_empty())
}

fn is_refused_and_there(job: &Job) -> bool {
    let is_refused = matches!(job.outcome, Outcome::Refused | Outcome::Duplicate { .. });
    is_refused && is_there(job)
}

fn is_of_another_payload(job: &Job) -> bool {
    let Some(Tried { sum, .. }) = &job.tried else { return false };
    let mut sums = job.starts.iter().map(|start| &start.sum);
    sums.any(|seen| seen != sum) || job.letters.iter().any(|letter| letter.sum != *sum)
}

fn is_sealed_otherwise(job: &Job) -> bool {
    let Some(Tried { sealing, .. }) = &job.tried else { return false };
    let mut of_starts = job.starts.iter().map(|start| start.sealing);
    of_starts.any(|seen| seen != *sealing)
        || job.letters.iter().any(|letter| letter.sealing != *sealing)
}

fn is_of_another_run(job: &Job) -> bool {
    let Some(run) = job.run() else { return false };
    let mut runs = job.starts.iter().map(|start| &start.run);
    runs.any(|seen| seen != run)
        || job.completions.iter().any(|ended| ended.run != run)
        || job.letters.iter().any(|letter| letter.run != run)
}

fn is_done_by_nobody(job: &Job) -> bool {
    let says_so = |ended: &Ended| {
        job.ends
            .iter()
            .any(|end| (&end.run, end.attempt, end.said) == (&ended.run, ended.attempt, Said::Done))
    };
    let mut done = job.completions.iter().filter(|ended| ended.status == Status::Done);
    job.tried.is_some() && done.any(|ended| !says_so(ended))
}

pub(super) fn completions(books: &Books, report: &mut Report) {
    let again = books.jobs.iter().filter(|(_, job)| job.completions.len() > 1);
    let mut ids = Vec::new();
    for (id, job) in again {
        report.second_completions += job.completions.len() as u64 - 1;
        ids.push(id.clone());
    }
    report.violated_by("completed more than once", &ids);
}

/// Jobs that ended otherwise than their handler makes them end.
pub(super) fn wrong_ends(books: &Books, report: &mut Report) {
    let mut wrong = Vec::new();
    for (id, job) in &books.jobs {
        let (Some(tried), Some(ended)) = (&job.tried, job.completions.first()) else { continue };
        if let Some(why) = wrong_end(tried, ended, job) {
            wrong.push(format!("{id} {why}"));
        }
    }
    report.wrong_ends = wrong.len() as u64;
    report.violated_by("ended as it should not have", &wrong);
}

fn wrong_end(tried: &Tried, ended: &Ended, job: &Job) -> Option<String> {
    let Tried { fails, max_attempts, .. } = *tried;
    match ended.status {
        Status::Done if tried.always_fails() => Some("is done, though it always fails".to_owned()),
        Status::Done if ended.attempt <= fails => {
            Some(format!("is done in attempt {}, though it fails in {fails}", ended.attempt))
        }
        Status::Done if !job.letters.is_empty() => Some("is done and has a dead letter".to_owned()),
        Status::Done => None,
        Status::Dead if !tried.always_fails() => {
            Some("was buried, though it succeeds in the end".to_owned())
        }
        Status::Dead if ended.attempt != max_attempts => {
            Some(format!("was buried after {} attempts of {max_attempts}", ended.attempt))
        }
        Status::Dead => match job.letters.as_slice() {
            [letter] if letter.attempts == max_attempts => match letter.reason.as_str() {
                "attempts_exhausted" | "worker_lost" => None,
                reason => Some(format!("was buried for the reason {reason}")),
            },
            [letter] => Some(format!("has a dead letter of {} attempts", letter.attempts)),
            [] => Some("was buried without a dead letter".to_owned()),
            [_, _, ..] => Some("has more than one dead letter".to_owned()),
        },
        Status::Cancelled if job.cancelled.is_some() => None,
        Status::Cancelled | Status::Expired => Some(format!("is {}", ended.status)),
    }
}
