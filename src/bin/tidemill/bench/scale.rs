//! What more worker processes bring.

use std::time::{Duration, Instant};

use tidemill::Priority;
use tokio::time::sleep;

use super::Bench;
use super::child::Workers;
use super::figures::Figures;

/// How long a job takes.
pub(super) const JOB_TAKES: Duration = Duration::from_millis(5);

/// How long the workers get up to their speed, and how long they are measured.
const WARM_UP: Duration = Duration::from_secs(1);
const MEASURED: Duration = Duration::from_secs(4);

pub(super) async fn measure(bench: &Bench) -> anyhow::Result<Vec<Figures>> {
    let mut all: Vec<(u64, Figures)> = Vec::new();
    for processes in bench.args.processes.clone() {
        bench.anew().await?;
        let figures = measure_with(bench, processes).await?;
        let ideal = all
            .first()
            .map(|(first, figures)| figures.jobs_per_second / *first as f64 * processes as f64);
        let figures = match ideal {
            Some(ideal) => {
                let ratio = figures.jobs_per_second / ideal;
                figures.ratio(ratio, "ideal")
            }
            None => figures,
        };
        all.push((processes, figures));
    }
    Ok(all.into_iter().map(|(_, figures)| figures).collect())
}

async fn measure_with(bench: &Bench, processes: u64) -> anyhow::Result<Figures> {
    // More than can be done meanwhile.
    let per_second = bench.args.concurrency as f64 / JOB_TAKES.as_secs_f64();
    let seconds = (2 * WARM_UP + MEASURED).as_secs_f64();
    bench.fill((per_second * seconds) as u64 * processes, Priority::Normal).await?;
    let workers = Workers::start(bench, processes).await?;
    sleep(WARM_UP).await;
    let before = bench.client.unfinished(&bench.queue).await?;
    let measuring = bench.meter.and(workers.pids()).start();
    let end = Instant::now() + MEASURED;
    bench.bar.set_length(before);
    let mut left = before;
    while Instant::now() < end && left > 0 {
        sleep(Duration::from_millis(100)).await;
        left = bench.client.unfinished(&bench.queue).await?;
        bench.bar.set_position(before - left);
    }
    let figures = measuring.end("scale", format!("{processes} processes"), before - left);
    workers.stop().await?;
    Ok(figures)
}
