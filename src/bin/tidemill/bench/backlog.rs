//! Whether a long queue is slower than a short one.

use tidemill::Priority;

use super::Bench;
use super::figures::Figures;
use super::load::Count;

pub(super) async fn measure(bench: &Bench) -> anyhow::Result<Vec<Figures>> {
    let mut all: Vec<Figures> = Vec::new();
    for waiting in &bench.args.waiting {
        bench.anew().await?;
        let figures = drain_of(bench, *waiting).await?;
        let first = all.first().map(|first| first.jobs_per_second);
        let ratio = first.map(|first| figures.jobs_per_second / first);
        all.push(match ratio {
            Some(ratio) => figures.ratio(ratio, "the shortest"),
            None => figures,
        });
    }
    Ok(all)
}

/// Drains some jobs while at least so many wait behind them.
async fn drain_of(bench: &Bench, waiting: u64) -> anyhow::Result<Figures> {
    let jobs = bench.args.jobs;
    bench.fill(waiting + jobs, Priority::Normal).await?;
    let count = Count::until(jobs);
    let measuring = bench.meter.start();
    let running = bench.no_op_worker(&count).await?;
    count.reached(&bench.bar).await;
    let figures = measuring.end("backlog", format!("{waiting} waiting"), jobs);
    running.drain().await;
    Ok(figures)
}
