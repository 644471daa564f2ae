//! Whether of the runs of a key one at a time was unfinished, and none was refused without one there.

use std::collections::BTreeMap;

use super::super::report::Report;
use super::books::Books;
use super::job::{Job, Outcome};

/// How long a key may stay taken when the handler of its run has returned and nothing is broken: the
/// completion has to be stored, and the ack be handled. Generous, for a machine that is short of processors.
const FREED_WITHIN_US: u64 = 3_000_000;

/// A run of a key, with what is certain of it and what is possible.
struct Run<'a> {
    id: &'a str,
    job: &'a Job,
    /// From when to when it was unfinished for certain. It was there when its producer was told so or its
    /// handler called, and until the handler returned whose word its completion has.
    certain_us: (u64, u64),
    /// From when to when it may have been: it comes at the earliest when its producer sends it, and goes when
    /// its message is acknowledged, which nobody writes down. One without an end may be there for ever.
    possible_us: (u64, u64),
}

pub(super) fn keys(books: &Books, report: &mut Report) {
    let mut keys: BTreeMap<&str, Vec<Run<'_>>> = BTreeMap::new();
    for (id, job) in &books.jobs {
        let Some(key) = job.tried.as_ref().and_then(|tried| tried.key.as_deref()) else { continue };
        let runs = keys.entry(key).or_default();
        runs.extend(run_of(books, id, job));
    }
    let mut overlapping = Vec::new();
    for runs in keys.values_mut() {
        runs.sort_by_key(|run| run.certain_us);
        report.unique.runs += runs.len() as u64;
        overlapping.extend(overlaps(runs));
    }
    report.unique.overlapping = overlapping.len() as u64;
    report.violated_by("unique, and unfinished beside another of its key", &overlapping);
    refusals(books, &keys, report);
}

/// The run of a job, where one was seen.
fn run_of<'a>(books: &Books, id: &'a str, job: &'a Job) -> Option<Run<'a>> {
    let tried = job.tried.as_ref()?;
    let told_us = match &job.outcome {
        Outcome::Ok { at_us, .. } => Some(*at_us),
        // It may be there.
        Outcome::Unknown => None,
        Outcome::Duplicate { .. } | Outcome::Refused => return None,
    };
    let started_us = job.starts.first().map(|start| start.at_us);
    let there_us = told_us.into_iter().chain(started_us).min();
    let ended_us = ended_us(job);
    let last_us = ended_us.or(job.starts.last().map(|start| start.at_us)).or(there_us);
    let certain_us = there_us.zip(last_us).unwrap_or((tried.at_us, tried.at_us));
    let gone_us = match ended_us {
        Some(at_us) if books.faults_around(at_us, at_us + FREED_WITHIN_US).next().is_some() => {
            at_us.max(books.whole_again_us(at_us)) + books.aftermath_us()
        }
        Some(at_us) => at_us + FREED_WITHIN_US,
        None => u64::MAX,
    };
    Some(Run { id, job, certain_us, possible_us: (tried.at_us, gone_us) })
}

/// When the handler first returned that the completion is of. Others of the same attempt are those of workers
/// that were taken for dead.
fn ended_us(job: &Job) -> Option<u64> {
    let ended = job.completions.first()?;
    let ends = job.ends.iter().filter(|end| end.attempt == ended.attempt && end.run == ended.run);
    ends.map(|end| end.at_us).min()
}

/// Those that were there for certain while one before was, in the order of their beginning.
fn overlaps(runs: &[Run<'_>]) -> Vec<String> {
    let mut overlapping = Vec::new();
    let mut until_us = 0;
    for run in runs {
        let (from, until) = run.certain_us;
        if from < until_us {
            overlapping.push(run.id.to_owned());
        }
        until_us = until_us.max(until);
    }
    overlapping
}

/// A duplicate is told only where another run of the key may have been there between question and answer:
/// so a key is free again when its run has ended.
fn refusals(books: &Books, keys: &BTreeMap<&str, Vec<Run<'_>>>, report: &mut Report) {
    let mut without_cause = Vec::new();
    for (id, job) in &books.jobs {
        let Outcome::Duplicate { at_us, of } = &job.outcome else { continue };
        let Some(tried) = &job.tried else { continue };
        let Some(runs) = tried.key.as_deref().and_then(|key| keys.get(key)) else { continue };
        report.unique.refused += 1;
        let is_there = |run: &Run<'_>| {
            let (from, until) = run.possible_us;
            let is_it = of.is_none() || run.job.run().is_none() || of.as_deref() == run.job.run();
            is_it && from <= *at_us && until >= tried.at_us
        };
        if !runs.iter().any(is_there) {
            without_cause.push(id.clone());
        }
    }
    report.unique.wrongly_refused = without_cause.len() as u64;
    report.violated_by("refused as a duplicate, with none of its key there", &without_cause);
}
