//! How soon a job starts, and how soon its end is known, where nothing else is to do.

use std::time::{Duration, Instant};

use tidemill::{Handler, HandlerResult, JobHandle};
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::Bench;
use super::figures::{Durations, Figures};
use super::load::KIND;

/// The most jobs that are measured: one at a time, they take their time.
const MOST: u64 = 2_000;

/// How long the worker is idle before each.
const IDLE: Duration = Duration::from_millis(1);

pub(super) async fn measure(bench: &Bench) -> anyhow::Result<Vec<Figures>> {
    let jobs = bench.args.jobs.min(MOST);
    let (started, mut starts) = mpsc::unbounded_channel();
    let handler = Handler::raw(KIND, move |_, _| {
        // Nobody receives when the measurement is over.
        let _ = started.send(Instant::now());
        async { HandlerResult::Ok(None) }
    });
    let running = bench.worker([handler]).await?;
    bench.bar.set_length(2 * jobs);
    let mut durations = Durations::new()?;
    let measuring = bench.meter.start();
    for _ in 0..jobs {
        let (asked, job) = enqueue(bench).await?;
        if let Some(start) = starts.recv().await {
            durations.add(start.saturating_duration_since(asked));
        }
        // Only now, so that asking for it is not in the way of the start.
        job.completion().await?;
    }
    let to_start = measuring.end("latency", "to start", jobs).latency(durations.percentiles());
    let mut durations = Durations::new()?;
    let measuring = bench.meter.start();
    for _ in 0..jobs {
        let (asked, job) = enqueue(bench).await?;
        job.completion().await?;
        durations.add(asked.elapsed());
    }
    let to_completion =
        measuring.end("latency", "to completion", jobs).latency(durations.percentiles());
    running.drain().await;
    Ok(vec![to_start, to_completion])
}

/// Enqueues a job when nothing else is to do, and tells when that began.
async fn enqueue(bench: &Bench) -> anyhow::Result<(Instant, JobHandle)> {
    sleep(IDLE).await;
    let job = bench.job(bench.payload());
    let asked = Instant::now();
    let job = bench.client.enqueue(job).await?;
    bench.bar.inc(1);
    Ok((asked, job))
}
