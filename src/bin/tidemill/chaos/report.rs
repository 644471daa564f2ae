//! What a checked history comes to: for programs as JSON, for people as a table.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};

use serde::Serialize;
use tidemill::Priority;

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

/// Jobs of which one of a key is unfinished at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Unique {
    pub(super) runs: u64,
    pub(super) refused: u64,
    /// Runs that were unfinished beside another of their key.
    pub(super) overlapping: u64,
    /// Refused with no other of their key there.
    pub(super) wrongly_refused: u64,
}

/// Jobs that the broker enqueued by cron entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Cron {
    pub(super) firings: u64,
    pub(super) endless: u64,
    /// Entries that fired too often, or too rarely.
    pub(super) wrong_counts: u64,
}

/// Jobs that their producer cancelled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Cancelled {
    pub(super) asked: u64,
    /// That are cancelled, as the producer was told; others had ended, or it is not known.
    pub(super) confirmed: u64,
    pub(super) ended_otherwise: u64,
    /// That started long after.
    pub(super) started: u64,
}

/// Jobs that their producer put on another lane, or let run now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Moved {
    pub(super) asked: u64,
    pub(super) confirmed: u64,
    /// That started on another lane than they were moved to.
    pub(super) elsewhere: u64,
}

/// A confirmed job without an end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct LostJob {
    pub(super) id: String,
    pub(super) run: String,
    pub(super) last_seen: LastSeen,
    /// When that was, in milliseconds since the history began.
    pub(super) at_ms: u64,
    /// What was broken then, or next.
    pub(super) faults: Vec<String>,
}

/// Where a job was last seen. No process writes down that a job was delivered to it before it starts, so
/// such a job counts as enqueued, or as waiting as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum LastSeen {
    Enqueued,
    Running,
    BackingOff,
    OnATimer,
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

impl Display for LostJob {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { id, run, last_seen, at_ms, faults } = self;
        let seconds = *at_ms as f64 / 1000.0;
        let faults = if faults.is_empty() { "nothing".to_owned() } else { faults.join(", ") };
        write!(f, "{id} (run {run}) was last seen {last_seen} at {seconds:.1} s; broken: {faults}")
    }
}

impl Display for LastSeen {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Enqueued => "enqueued",
            Self::Running => "running",
            Self::BackingOff => "backing off",
            Self::OnATimer => "on a timer",
        })
    }
}

fn listed<K: Display, V: Display>(counts: &BTreeMap<K, V>) -> String {
    if counts.is_empty() {
        return "none".to_owned();
    }
    counts.iter().map(|(of, count)| format!("{of}: {count}")).collect::<Vec<_>>().join(", ")
}
