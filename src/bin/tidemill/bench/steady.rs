//! Both at once: jobs come in at a rate and are worked.
//!
//! The rate is kept whatever happens to the jobs before (open loop), and every latency is counted from
//! when its job should have been enqueued.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::value::to_raw_value;
use tidemill::{Handler, HandlerResult, JobError, RecordFilter};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;

use super::Bench;
use super::figures::{Durations, Figures};
use super::load::{Count, KIND, Stamps};

/// Jobs are enqueued this often, those together that are due.
const TICK: Duration = Duration::from_millis(1);

/// Enqueues under way at once; beyond, the producer waits, and what waits counts as late.
const UNDER_WAY: usize = 64;

pub(super) async fn measure(bench: &Bench) -> anyhow::Result<Vec<Figures>> {
    let (jobs, rate) = (bench.args.jobs, bench.args.rate);
    let (count, ended) = (Count::until(jobs), Count::until(jobs));
    let stamps = Stamps::from_now();
    let to_start = Arc::new(Mutex::new(Durations::new()?));
    let running = bench.worker([noting(stamps, count.clone(), to_start.clone())]).await?;
    let to_completion = Arc::new(Mutex::new(Durations::new()?));
    let completions = bench.client.completions(RecordFilter::queue(bench.queue.clone())).await?;
    let (ends, done) = (to_completion.clone(), ended.clone());
    let _watching = AbortOnDropHandle::new(tokio::spawn(async move {
        tokio::pin!(completions);
        while let Some(Ok(completion)) = completions.next().await {
            let stamp = completion.result.as_ref().map(|result| result.get().trim_matches('"'));
            if let Some(late) = stamp.and_then(|stamp| stamps.since(stamp.as_bytes())) {
                ends.lock().unwrap_or_else(PoisonError::into_inner).add(late);
            }
            done.one();
        }
    }));
    let (first, second) = (bench.meter.start(), bench.meter.start());
    let producing = produce(bench, stamps, jobs, rate);
    let (produced, (), ()) =
        tokio::join!(producing, count.reached(&bench.bar), ended.reached(&bench.bar));
    produced?;
    let of = |what: &str| format!("{what} at {rate} jobs/s");
    let lock = |durations: &Arc<Mutex<Durations>>| {
        durations.lock().unwrap_or_else(PoisonError::into_inner).percentiles()
    };
    let figures = vec![
        first.end("steady", of("to start"), jobs).latency(lock(&to_start)),
        second.end("steady", of("to completion"), jobs).latency(lock(&to_completion)),
    ];
    running.drain().await;
    Ok(figures)
}

/// Notes how late each job starts, and hands its stamp on in the completion.
fn noting(stamps: Stamps, count: Arc<Count>, to_start: Arc<Mutex<Durations>>) -> Handler {
    Handler::raw(KIND, move |payload: Bytes, _| {
        let late = stamps.since(&payload);
        if let Some(late) = late {
            to_start.lock().unwrap_or_else(PoisonError::into_inner).add(late);
        }
        count.one();
        async move {
            let stamp = payload.get(..Stamps::DIGITS).unwrap_or_default();
            let stamp = to_raw_value(&String::from_utf8_lossy(stamp)).map_err(JobError::failed)?;
            HandlerResult::Ok(Some(stamp))
        }
    })
}

async fn produce(bench: &Bench, stamps: Stamps, jobs: u64, rate: u64) -> anyhow::Result<()> {
    let began = std::time::Instant::now();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut under_way = JoinSet::new();
    let mut sent = 0;
    while sent < jobs {
        ticks.tick().await;
        let due = (began.elapsed().as_secs_f64() * rate as f64) as u64;
        let due = due.min(jobs);
        if due == sent {
            continue;
        }
        let together: Vec<_> = (sent..due)
            .map(|n| {
                let moment = began + Duration::from_secs_f64(n as f64 / rate as f64);
                bench.job(stamps.payload(moment, bench.args.payload))
            })
            .collect();
        sent = due;
        while under_way.len() >= UNDER_WAY {
            let stored: anyhow::Result<()> = under_way.join_next().await.context("one ends")??;
            stored?;
        }
        let client = bench.client.clone();
        under_way.spawn(async move {
            for stored in client.enqueue_many(together).await {
                stored?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(stored) = under_way.join_next().await {
        stored??;
    }
    Ok(())
}
