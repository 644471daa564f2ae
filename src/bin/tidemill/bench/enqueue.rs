//! How fast jobs are stored.

use super::Bench;
use super::figures::{Durations, Figures};

pub(super) async fn measure(bench: &Bench<'_>) -> anyhow::Result<Vec<Figures>> {
    Ok(vec![awaited(bench).await?, pipelined(bench).await?])
}

/// Each after the one before was stored.
async fn awaited(bench: &Bench<'_>) -> anyhow::Result<Figures> {
    let jobs = bench.args.jobs / 10;
    let payload = bench.payload();
    let mut durations = Durations::new()?;
    let measuring = bench.meter.start();
    for _ in 0..jobs {
        let asked = std::time::Instant::now();
        bench.client.enqueue(bench.job(payload.clone())).await?;
        durations.add(asked.elapsed());
    }
    Ok(measuring.end("enqueue", "one by one", jobs).latency(&durations))
}

async fn pipelined(bench: &Bench<'_>) -> anyhow::Result<Figures> {
    let jobs = bench.args.jobs;
    let measuring = bench.meter.start();
    bench.fill(jobs, tidemill::Priority::Low).await?;
    Ok(measuring.end("enqueue", "pipelined", jobs))
}
