//! How soon a critical job starts where a flood of low ones keeps every slot busy.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tidemill::{Handler, HandlerResult, JobError, NewJob, Priority};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{MissedTickBehavior, interval};

use super::Bench;
use super::figures::{Durations, Figures};
use super::load::KIND;

const CRITICAL: &str = "critical";

/// Critical jobs that are measured, and how often one comes.
const SAMPLES: u64 = 500;
const EVERY: Duration = Duration::from_millis(20);

/// How often a slot comes free of a low job, while all are busy.
const FREE_EVERY: Duration = Duration::from_micros(500);

pub(super) async fn measure(bench: &Bench) -> anyhow::Result<Vec<Figures>> {
    let samples = SAMPLES.min(bench.args.jobs);
    let idle = pick_ups(bench, "critical, idle", samples).await?;
    // More than can be worked meanwhile.
    let takes = EVERY * u32::try_from(samples)? * 3 / 2;
    bench.fill(takes.div_duration_f64(FREE_EVERY) as u64, Priority::Low).await?;
    let flooded = pick_ups(bench, "critical, under a flood of low", samples).await?;
    let ratio = flooded.1.p99_us as f64 / idle.1.p99_us as f64;
    Ok(vec![idle.0, flooded.0.ratio(ratio, "the p99 when idle")])
}

async fn pick_ups(
    bench: &Bench,
    of: &'static str,
    samples: u64,
) -> anyhow::Result<(Figures, super::figures::Latency)> {
    let (started, mut starts) = mpsc::unbounded_channel();
    let critical = Handler::raw(CRITICAL, move |_, _| {
        // Nobody receives when the measurement is over.
        let _ = started.send(Instant::now());
        async { HandlerResult::Ok(None) }
    });
    let turns = OnceLock::new();
    let low = Handler::raw(KIND, move |_, _| {
        let turns = turns.get_or_init(end_in_turn).clone();
        async move {
            turns.acquire().await.map_err(JobError::failed)?.forget();
            HandlerResult::Ok(None)
        }
    });
    let running = bench.worker([critical, low]).await?;
    let payload = bench.payload();
    let mut durations = Durations::new()?;
    bench.bar.set_length(samples);
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The worker gets up to its speed first.
    for _ in 0..10 {
        ticks.tick().await;
    }
    let measuring = bench.meter.start();
    for _ in 0..samples {
        ticks.tick().await;
        let asked = Instant::now();
        let job = NewJob::raw(CRITICAL, payload.clone()).queue(&bench.queue);
        bench.client.enqueue(job.priority(Priority::Critical)).await?;
        if let Some(start) = starts.recv().await {
            durations.add(start.saturating_duration_since(asked));
        }
        bench.bar.inc(1);
    }
    let latency = durations.percentiles();
    let figures = measuring.end("priority", of, samples).latency(latency);
    running.drain().await;
    Ok((figures, latency))
}

/// Lets one low job end at a time, while there are any. The runtime's own timers go off together, once a
/// millisecond: by these, slots would come free in bursts.
fn end_in_turn() -> Arc<Semaphore> {
    let turns = Arc::new(Semaphore::new(0));
    let weak = Arc::downgrade(&turns);
    std::thread::spawn(move || {
        let mut next = Instant::now();
        while let Some(turns) = weak.upgrade() {
            turns.add_permits(1);
            drop(turns);
            next += FREE_EVERY;
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    });
    turns
}
