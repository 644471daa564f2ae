//! Jobs that all fail once: how soon all of them are done.

use std::time::Duration;

use tidemill::{Backoff, Handler, HandlerResult, JobContext, JobError, Priority, RetryPolicy};

use super::Bench;
use super::figures::Figures;
use super::load::{Count, KIND};

/// How long a job backs off.
const BACK_OFF: Duration = Duration::from_millis(100);

pub(super) async fn measure(bench: &Bench) -> anyhow::Result<Vec<Figures>> {
    let jobs = bench.args.jobs;
    bench.fill(jobs, Priority::Normal).await?;
    let count = Count::until(jobs);
    let done = count.clone();
    let handler = Handler::raw(KIND, move |_, context: JobContext| {
        let first = context.attempt() == 1;
        if !first {
            done.one();
        }
        async move {
            match first {
                true => HandlerResult::Err(JobError::failed("the first attempt")),
                false => Ok(None),
            }
        }
    });
    let policy = RetryPolicy::new(1, Backoff::fixed(BACK_OFF));
    let measuring = bench.meter.start();
    let running = bench.worker([handler.retry(policy)]).await?;
    count.reached(&bench.bar).await;
    running.drain().await;
    Ok(vec![measuring.end("retry-storm", "two attempts each", jobs)])
}
