//! Many timers that are due at once: how late their jobs start.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::ensure;
use chrono::Utc;
use tidemill::{Handler, HandlerResult, Worker};
use tokio::time::sleep;

use super::Bench;
use super::figures::{Durations, Figures};
use super::load::{Count, KIND};

/// Delays beyond this become timers, here.
const PARK_OVER: Duration = Duration::from_secs(1);

/// How soon after their jobs are enqueued timers are due, and how much later for each thousand.
const DUE_AFTER: Duration = Duration::from_secs(5);
const LATER_PER_THOUSAND: Duration = Duration::from_millis(150);

pub(super) async fn measure(bench: &Bench) -> anyhow::Result<Vec<Figures>> {
    let jobs = bench.args.jobs;
    let after = DUE_AFTER + LATER_PER_THOUSAND * u32::try_from(jobs / 1000)?;
    let due = Instant::now() + after;
    let due_at = Utc::now() + after;
    let count = Count::until(jobs);
    let late = Arc::new(Mutex::new(Durations::new()?));
    let early = Arc::new(AtomicU64::new(0));
    let (done, note, too_soon) = (count.clone(), late.clone(), early.clone());
    let handler = Handler::raw(KIND, move |_, _| {
        too_soon.fetch_add(u64::from(Instant::now() < due), Ordering::Relaxed);
        note.lock().unwrap_or_else(PoisonError::into_inner).add(due.elapsed());
        done.one();
        async { HandlerResult::Ok(None) }
    });
    let parking = bench.meter.start();
    let worker = Worker::builder(&bench.client).queue(bench.queue.as_str()).park_over(PARK_OVER);
    let worker = worker.concurrency(bench.args.concurrency).handler(handler);
    let running = bench.left.keep(worker.build()?.start().await?);
    let payload = bench.payload();
    bench.fill_with(jobs, || bench.job(payload.clone()).run_at(due_at)).await?;
    while bench.client.queue_info(&bench.queue).await?.timers < jobs {
        ensure!(Instant::now() < due, "{jobs} timers are not set within {after:?}");
        sleep(Duration::from_millis(20)).await;
    }
    let parked = parking.end("timers", "enqueued and set", jobs);
    sleep(due.saturating_duration_since(Instant::now())).await;
    let measuring = bench.meter.start();
    count.reached(&bench.bar).await;
    let latency = late.lock().unwrap_or_else(PoisonError::into_inner).percentiles();
    let of = format!("due at once, {} early", early.load(Ordering::Relaxed));
    let fired = measuring.end("timers", of, jobs).latency(latency);
    running.drain().await;
    Ok(vec![parked, fired])
}
