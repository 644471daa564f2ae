//! What a checked history comes to: for programs as JSON, for people as a table.

use std::collections::BTreeMap;
use std::fmt::Display;

use serde::Serialize;
use tidemill::Priority;

use super::figures::{Cancelled, Cron, LostJob, Moved, Unique};
use super::history::Streams;
use crate::cli::Global;
use crate::output;

/// How many lost jobs are told one by one.
const LOST_NAMED: usize = 20;

/// A checked history.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    /// What plan and jobs follow from.
    pub(super) seed: Option<u64>,
    /// How often each fault was done.
    pub(super) faults: BTreeMap<String, u64>,
    pub(super) enqueued: Enqueued,
    pub(super) lost: Lost,
    /// The same, each with where it was last seen; not all where there are very many.
    pub(super) lost_jobs: Vec<LostJob>,
    /// Jobs that were run or recorded though nobody enqueued them, or not like that.
    pub(super) phantoms: u64,
    /// Completions beyond the first of a job.
    pub(super) second_completions: u64,
    /// How many jobs had so many handler calls.
    pub(super) runs_per_job: BTreeMap<u64, u64>,
    /// Handler calls beyond those that the jobs need by themselves.
    pub(super) extra_runs: u64,
    /// Jobs with an attempt number that was skipped or given twice.
    pub(super) wrong_attempts: u64,
    /// Jobs that ended otherwise than their handler makes them end.
    pub(super) wrong_ends: u64,
    pub(super) early_retries: u64,
    pub(super) late_retries: u64,
    pub(super) unique: Unique,
    pub(super) cron: Cron,
    pub(super) cancelled: Cancelled,
    pub(super) moved: Moved,
    /// Handler calls by lane.
    pub(super) lane_starts: BTreeMap<Priority, u64>,
    /// First attempts by lane in a while in which all lanes were full and nothing was broken; empty where
    /// there was no such while.
    pub(super) shares: BTreeMap<Priority, u64>,
    /// From the last heal, or the last enqueue after it, to the empty queue.
    pub(super) recovered_ms: Option<u64>,
    pub(super) streams: Streams,
    pub(super) holds: bool,
    pub(super) violations: Vec<String>,
}

/// What producers were told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Enqueued {
    pub(super) ok: u64,
    pub(super) unknown: u64,
    pub(super) refused: u64,
    pub(super) duplicate: u64,
}

/// Confirmed jobs without an end, by their place in the order of enqueuing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Lost {
    pub(super) prefix: u64,
    pub(super) middle: u64,
    pub(super) suffix: u64,
}

/// Prints a report; `again` is the command that repeats the run.
pub(super) fn tell(global: &Global, report: &Report, again: Option<&str>) -> anyhow::Result<()> {
    if global.json {
        return output::json(report);
    }
    output::line(&report.table())?;
    if report.holds {
        return Ok(output::line(&format!("{}: every invariant holds", output::bold("holds")))?);
    }
    output::error(&format!("{} of the invariants do not hold", report.violations.len()));
    for violation in &report.violations {
        output::line(&format!("  - {violation}"))?;
    }
    for lost in report.lost_jobs.iter().take(LOST_NAMED) {
        output::line(&format!("    {lost}"))?;
    }
    if let Some(again) = again {
        output::line(&format!("\nthe same plan and jobs again:\n  {again}"))?;
    }
    Ok(())
}

impl Report {
    /// Adds what went wrong with processes that nobody broke.
    pub(super) fn violated_by_processes(&mut self, wrong: Vec<String>) {
        self.violations.extend(wrong);
        self.holds = self.violations.is_empty();
    }

    fn table(&self) -> String {
        let Enqueued { ok, unknown, refused, duplicate } = self.enqueued;
        let Lost { prefix, middle, suffix } = self.lost;
        let Streams { jobs, waiting, unsettled, timers, results, dead } = self.streams;
        let mut table = output::table(&["what", "seen", "must be"]);
        let mut row = |what: &str, seen: String, must: &str| {
            table.add_row([what, &seen, must]);
        };
        row("seed", self.seed.map_or_else(|| "-".to_owned(), |seed| seed.to_string()), "");
        row("faults", listed(&self.faults).replace(", ", "\n"), "");
        row(
            "enqueued",
            format!("{ok} ok, {unknown} unknown, {refused} refused, {duplicate} duplicate"),
            "duplicates only of unique ones",
        );
        row("lost", format!("{prefix} first, {middle} between, {suffix} last"), "0");
        row("phantoms", self.phantoms.to_string(), "0");
        row("second completions", self.second_completions.to_string(), "0");
        row("wrong ends", self.wrong_ends.to_string(), "0");
        let times = |(calls, jobs)| format!("{calls}: {jobs} jobs");
        row(
            "handler calls per job",
            self.runs_per_job.iter().map(times).collect::<Vec<_>>().join(", "),
            "",
        );
        row("calls beyond need", self.extra_runs.to_string(), "each by a fault");
        row("wrong attempt numbers", self.wrong_attempts.to_string(), "0");
        row("early", self.early_retries.to_string(), "0");
        row("late", self.late_retries.to_string(), "0");
        let Unique { runs, refused, overlapping, wrongly_refused } = self.unique;
        row("unique", format!("{runs} runs, {refused} refused beside them"), "");
        row("unfinished beside their like", overlapping.to_string(), "0");
        row("refused with none there", wrongly_refused.to_string(), "0");
        let Cron { firings, endless, wrong_counts } = self.cron;
        row("fired by cron entries", firings.to_string(), "");
        row("fired without an end", endless.to_string(), "0");
        row("entries fired too often or rarely", wrong_counts.to_string(), "0");
        let Cancelled { asked, confirmed, ended_otherwise, started } = self.cancelled;
        row("cancelled", format!("{confirmed} of {asked} that were to be"), "");
        row("ended otherwise than told", ended_otherwise.to_string(), "0");
        row("started though cancelled", started.to_string(), "0");
        let Moved { asked, confirmed, elsewhere } = self.moved;
        row("moved", format!("{confirmed} of {asked} that were to be"), "");
        row("started on another lane", elsewhere.to_string(), "0");
        row("handler calls by lane", listed(&self.lane_starts), "");
        row("starts while all lanes were full", listed(&self.shares), "about 8:4:2:1");
        row(
            "recovered",
            self.recovered_ms.map_or_else(
                || "-".to_owned(),
                |millis| format!("in {}.{} s", millis / 1000, millis % 1000 / 100),
            ),
            "",
        );
        row(
            "left in the queue",
            format!("{jobs} jobs ({waiting} waiting, {unsettled} unsettled), {timers} timers"),
            "0",
        );
        row("on record", format!("{results} completions, {dead} dead letters"), "");
        table.to_string()
    }
}

fn listed<K: Display, V: Display>(counts: &BTreeMap<K, V>) -> String {
    if counts.is_empty() {
        return "none".to_owned();
    }
    counts.iter().map(|(of, count)| format!("{of}: {count}")).collect::<Vec<_>>().join(", ")
}
