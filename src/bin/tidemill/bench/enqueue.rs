//! How fast jobs are stored.

use futures_util::{StreamExt, TryStreamExt, stream};
use tidemill::Priority;

use super::Bench;
use super::figures::{Durations, Figures};

/// Enqueues in flight at once.
const IN_FLIGHT: usize = 500;

pub(super) async fn measure(bench: &Bench) -> anyhow::Result<Vec<Figures>> {
    Ok(vec![awaited(bench).await?, pipelined(bench).await?, bulk(bench).await?])
}

/// Each after the one before was stored.
async fn awaited(bench: &Bench) -> anyhow::Result<Figures> {
    let jobs = bench.args.jobs / 10;
    let payload = bench.payload();
    let mut durations = Durations::new()?;
    let measuring = bench.meter.start();
    for _ in 0..jobs {
        let asked = std::time::Instant::now();
        bench.client.enqueue(bench.job(payload.clone())).await?;
        durations.add(asked.elapsed());
    }
    Ok(measuring.end("enqueue", "one by one", jobs).latency(durations.percentiles()))
}

/// Each by itself, many in flight.
async fn pipelined(bench: &Bench) -> anyhow::Result<Figures> {
    let jobs = bench.args.jobs;
    let payload = bench.payload();
    let measuring = bench.meter.start();
    stream::iter(0..jobs)
        .map(|_| bench.client.enqueue(bench.job(payload.clone())).into_future())
        .buffered(IN_FLIGHT)
        .try_for_each(|_| async { Ok(()) })
        .await?;
    Ok(measuring.end("enqueue", "pipelined", jobs))
}

/// All by one call.
async fn bulk(bench: &Bench) -> anyhow::Result<Figures> {
    let jobs = bench.args.jobs;
    let measuring = bench.meter.start();
    bench.fill(jobs, Priority::Low).await?;
    Ok(measuring.end("enqueue", "bulk", jobs))
}
