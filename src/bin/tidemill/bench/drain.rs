//! How fast a worker gets through what waits.

use anyhow::ensure;
use tidemill::Priority;

use super::Bench;
use super::figures::Figures;
use super::load::Count;

pub(super) async fn measure(bench: &Bench) -> anyhow::Result<Vec<Figures>> {
    let jobs = bench.args.jobs;
    bench.fill(jobs, Priority::Normal).await?;
    let count = Count::until(jobs);
    let measuring = bench.meter.start();
    let running = bench.no_op_worker(&count).await?;
    count.reached(&bench.bar).await;
    // Done is what is settled, with the broker's word for it.
    running.drain().await;
    let figures = measuring.end("drain", "", jobs);
    let left = bench.client.queue_info(&bench.queue).await?;
    ensure!(left.jobs == 0, "{} jobs are left: nothing was measured", left.jobs);
    Ok(vec![figures])
}
