//! How soon a job starts, and how soon its end is known, where nothing else is to do.

use std::time::{Duration, Instant};

use tidemill::{Handler, HandlerResult};
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::Bench;
use super::figures::{Durations, Figures};
use super::load::KIND;

/// The most jobs that are measured: one at a time, they take their time.
const MOST: u64 = 2_000;

/// How long the worker is idle before each.
const IDLE: Duration = Duration::from_millis(1);

pub(super) async fn measure(bench: &Bench<'_>) -> anyhow::Result<Vec<Figures>> {
    let jobs = bench.args.jobs.min(MOST);
    let (started, mut starts) = mpsc::unbounded_channel();
    let handler = Handler::raw(KIND, move |_, _| {
        // Nobody receives when the measurement is over.
        let _ = started.send(Instant::now());
        async { HandlerResult::Ok(None) }
    });
    let running = bench.worker([handler]).await?;
    let payload = bench.payload();
    let (mut to_start, mut to_completion) = (Durations::new()?, Durations::new()?);
    let (first, second) = (bench.meter.start(), bench.meter.start());
    bench.bar.set_length(jobs);
    for _ in 0..jobs {
        sleep(IDLE).await;
        let asked = Instant::now();
        let job = bench.client.enqueue(bench.job(payload.clone())).await?;
        job.completion().await?;
        to_completion.add(asked.elapsed());
        if let Some(start) = starts.recv().await {
            to_start.add(start.saturating_duration_since(asked));
        }
        bench.bar.inc(1);
    }
    let figures = vec![
        first.end("latency", "to start", jobs).latency(to_start.percentiles()),
        second.end("latency", "to completion", jobs).latency(to_completion.percentiles()),
    ];
    running.drain().await;
    Ok(figures)
}
