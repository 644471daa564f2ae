//! `tidemill job cancel`.

use std::pin::pin;

use clap::Args;
use futures_util::{StreamExt, TryStreamExt};
use serde_json::json;
use tidemill::{Cancellation, Client, JobId, JobInfo, JobState};

use super::FilterArgs;
use crate::cli::Global;
use crate::exit::{Exit, UsageError};
use crate::{ask, output};

#[derive(Debug, Args)]
pub(crate) struct CancelArgs {
    /// Jobs' ids; without any, --all is needed
    ids: Vec<JobId>,
    #[command(flatten)]
    filter: FilterArgs,
    /// Why; it is kept in the completion
    #[arg(long, default_value = "cancelled by a person")]
    reason: String,
    /// All that the filters leave
    #[arg(long, conflicts_with = "ids")]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Only tell what would be done
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(
    global: &Global,
    client: &Client,
    args: &CancelArgs,
) -> anyhow::Result<Exit> {
    if args.ids.is_empty() && !args.all {
        return Err(UsageError("name the jobs to cancel, or say --all".into()).into());
    }
    let FilterArgs { queue, kind, .. } = &args.filter;
    for id in &args.ids {
        if args.dry_run {
            for job in client.job(queue, kind.as_ref(), id).await? {
                would(global, &job)?;
            }
            continue;
        }
        for done in client.cancel(queue, kind.as_ref(), id, &args.reason).await? {
            tell(global, &done)?;
        }
    }
    if !args.all {
        return Ok(Exit::Ok);
    }
    if args.dry_run {
        let mut jobs = pin!(client.jobs(args.filter.filter()));
        while let Some(job) = jobs.try_next().await? {
            would(global, &job)?;
        }
        return Ok(Exit::Ok);
    }
    if !args.yes {
        // Counting a million takes a while.
        ask::somebody("cancel", "jobs")?;
        let count = client.jobs(args.filter.filter()).count().await;
        if !ask::confirmed("cancel", count, "jobs")? {
            output::to_stderr("nothing was done");
            return Ok(Exit::Interrupted);
        }
    }
    let mut cancelled = pin!(client.cancel_all(args.filter.filter(), &args.reason));
    while let Some(done) = cancelled.try_next().await? {
        tell(global, &done)?;
    }
    client.flush().await?;
    Ok(Exit::Ok)
}

fn would(global: &Global, job: &JobInfo) -> anyhow::Result<()> {
    let word = job.state.as_str();
    let is_over = matches!(job.state, JobState::Ended(_));
    if global.json {
        return output::json(&json!({
            "id": job.id, "run": job.run, "state": word, "dry_run": true,
            "would_cancel": !is_over,
        }));
    }
    if !is_over {
        output::line(&format!("would be cancelled {} {} ({word})", job.id, job.kind))?;
    }
    Ok(())
}

fn tell(global: &Global, done: &Cancellation) -> anyhow::Result<()> {
    if global.json {
        return output::json(&json!({
            "id": done.id, "run": done.run, "kind": done.kind, "status": done.status,
        }));
    }
    Ok(output::line(&format!("{} {} {}", done.status, done.id, done.kind))?)
}
