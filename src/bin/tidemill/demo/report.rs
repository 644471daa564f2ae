//! The demo's summary.

use std::time::Duration;

use anyhow::Context;
use comfy_table::CellAlignment;
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use tidemill::{Priority, Weights};

use super::account::{Account, Start, Verdict};
use crate::cli::Global;
use crate::output;
use crate::work::share;

/// Starts that are left out at the beginning, where lanes are still filling.
const WARM_UP: usize = 200;

/// How one priority fared.
struct Lane {
    priority: Priority,
    jobs: usize,
    waited: Histogram<u64>,
    /// Its share of the starts while all lanes had jobs, from 0 to 1.
    share: f64,
    fair_share: f64,
}

pub(super) fn tell(
    global: &Global,
    account: &Account,
    verdict: &Verdict,
    jobs: u64,
    elapsed: Duration,
) -> anyhow::Result<()> {
    let lanes = lanes(&account.starts())?;
    let tally = account.tally();
    let rate = tally.ended() as f64 / elapsed.as_secs_f64();
    if global.json {
        let lanes: Vec<Value> = lanes.iter().map(lane_json).collect();
        return output::json(&json!({
            "jobs": jobs, "done": tally.done, "retried": tally.retried, "buried": tally.buried,
            "jobs_per_second": rate, "seconds": elapsed.as_secs_f64(), "lanes": lanes,
            "sound": verdict.is_sound(), "missing": verdict.missing, "doubled": verdict.doubled,
            "astray": verdict.astray, "dead_letters": verdict.letters,
        }));
    }
    let mut table =
        output::table(&["priority", "jobs", "wait p50", "p95", "longest", "share", "weight"]);
    for lane in &lanes {
        let wait = |millis: u64| format!("{millis} ms");
        table.add_row([
            lane.priority.to_string(),
            lane.jobs.to_string(),
            wait(lane.waited.value_at_quantile(0.5)),
            wait(lane.waited.value_at_quantile(0.95)),
            wait(lane.waited.max()),
            format!("{:.1} %", lane.share * 100.0),
            format!("{:.1} %", lane.fair_share * 100.0),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    output::line(&format!(
        "\n{}  {} done, {} retried, {} buried, in {:.1} s: {rate:.0} jobs/s\n{table}\n\
         The share is counted while all four lanes had jobs.",
        output::bold("summary"),
        tally.done,
        tally.retried,
        tally.buried,
        elapsed.as_secs_f64()
    ))?;
    if verdict.is_sound() {
        output::line(&format!(
            "Every one of {jobs} jobs is accounted for: one completion each, {} dead letters.",
            verdict.letters
        ))?;
    } else {
        output::error(&format!("the books do not balance: {verdict:?}"));
    }
    Ok(())
}

fn lane_json(lane: &Lane) -> Value {
    json!({
        "priority": lane.priority, "jobs": lane.jobs,
        "wait_ms": {
            "p50": lane.waited.value_at_quantile(0.5), "p95": lane.waited.value_at_quantile(0.95),
            "max": lane.waited.max(),
        },
        "share": lane.share, "weight": lane.fair_share,
    })
}

fn lanes(starts: &[Start]) -> anyhow::Result<Vec<Lane>> {
    let contested = contested(starts);
    let weights = Weights::default();
    Priority::ALL
        .into_iter()
        .map(|priority| {
            let of_lane = |start: &&Start| start.priority == priority;
            let mut waited =
                Histogram::new(3).context("a histogram with three digits cannot be made")?;
            for start in starts.iter().filter(of_lane) {
                waited.record(start.waited_ms)?;
            }
            let served = contested.iter().filter(of_lane).count();
            Ok(Lane {
                priority,
                jobs: starts.iter().filter(of_lane).count(),
                waited,
                share: served as f64 / contested.len().max(1) as f64,
                fair_share: share(&weights, priority),
            })
        })
        .collect()
}

/// The starts between the warm-up and the moment when the first lane ran out of new jobs.
fn contested(starts: &[Start]) -> &[Start] {
    let last_start = |priority| starts.iter().rposition(|start| start.priority == priority);
    let end = Priority::ALL.into_iter().filter_map(last_start).min().map_or(0, |last| last + 1);
    starts.get(WARM_UP.min(end)..end).unwrap_or_default()
}
