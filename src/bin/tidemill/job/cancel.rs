//! `tidemill job cancel`.

use std::pin::pin;

use clap::Args;
use futures_util::{StreamExt, TryStreamExt};
use serde_json::json;
use tidemill::{Cancellation, Client, JobFilter, JobId, JobInfo, JobState};

use super::{FilterArgs, UNFINISHED};
use crate::cli::Global;
use crate::exit::{Exit, UsageError};
use crate::{ask, output};

const AFTER_HELP: &str = "\
Examples:
  tidemill job cancel order-17 order-18 --reason 'sold out'
  tidemill job cancel --all --kind resize --tag blue    all that the filters leave
  tidemill job cancel --all --state failed --dry-run    only tell which";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct CancelArgs {
    /// Jobs' ids; without any, --all is needed
    ids: Vec<JobId>,
    #[command(flatten)]
    filter: FilterArgs,
    /// Only in this state; failed is backing_off after a failed attempt
    #[arg(long, value_parser = UNFINISHED)]
    state: Option<String>,
    /// Why; it is kept in the completion
    #[arg(long, default_value = "cancelled by a person")]
    reason: String,
    /// All jobs of the queue that the filters leave: --kind, --priority, --tag, --state
    #[arg(long, conflicts_with = "ids")]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Only tell what would be done
    #[arg(long)]
    dry_run: bool,
}

impl CancelArgs {
    fn filter(&self) -> JobFilter {
        self.filter.filter(self.state.as_ref())
    }
}

pub(super) async fn run(
    global: &Global,
    client: &Client,
    args: &CancelArgs,
) -> anyhow::Result<Exit> {
    if args.ids.is_empty() && !args.all {
        return Err(UsageError("name the jobs to cancel, or say --all".into()).into());
    }
    if !args.ids.is_empty() {
        return by_id(global, client, args).await;
    }
    if args.dry_run {
        let mut jobs = pin!(client.jobs(args.filter()));
        while let Some(job) = jobs.try_next().await? {
            would(global, &job)?;
        }
        return Ok(Exit::Ok);
    }
    if !args.yes {
        // Counting a million takes a while.
        ask::somebody("cancel", "jobs")?;
        let count = client.jobs(args.filter()).count().await;
        if count == 0 {
            return nothing(global);
        }
        if !ask::confirmed("cancel", count, "jobs")? {
            output::to_stderr("nothing was done");
            return Ok(Exit::Interrupted);
        }
    }
    let mut cancelled = pin!(client.cancel_all(args.filter(), &args.reason));
    let mut is_any = false;
    while let Some(done) = cancelled.try_next().await? {
        is_any = true;
        tell(global, &done)?;
    }
    client.flush().await?;
    if is_any { Ok(Exit::Ok) } else { nothing(global) }
}

fn nothing(global: &Global) -> anyhow::Result<Exit> {
    if !global.json {
        output::to_stderr("no such jobs; nothing was done");
    }
    Ok(Exit::Ok)
}

/// Cancels the jobs that are named, all of those that there are.
async fn by_id(global: &Global, client: &Client, args: &CancelArgs) -> anyhow::Result<Exit> {
    let FilterArgs { queue, kind, priority, tag } = &args.filter;
    if priority.is_some() || tag.is_some() || args.state.is_some() {
        let message = "--priority, --tag and --state go with --all: ids say by themselves which \
                       jobs are meant";
        return Err(UsageError(message.into()).into());
    }
    let mut missing = None;
    for id in &args.ids {
        let looked_for = match args.dry_run {
            true => client.job(queue, kind.as_ref(), id).await.map(|jobs| would_all(global, &jobs)),
            false => {
                let cancelled = client.cancel(queue, kind.as_ref(), id, &args.reason).await;
                cancelled.map(|all| all.iter().try_for_each(|done| tell(global, done)))
            }
        };
        match looked_for {
            Ok(told) => told?,
            // The others are to be cancelled all the same.
            Err(error) if error.is_not_found() => {
                if let Some(earlier) = missing.replace(error) {
                    output::error(&format!("{earlier}"));
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    missing.map_or(Ok(Exit::Ok), |error| Err(error.into()))
}

/// Tells what would become of a job's runs, or how the last one has ended.
fn would_all(global: &Global, jobs: &[JobInfo]) -> anyhow::Result<()> {
    let is_over = |job: &&JobInfo| matches!(job.state, JobState::Ended(_));
    match jobs.last().filter(|_| jobs.iter().all(|job| is_over(&job))) {
        Some(last) => would(global, last),
        None => jobs.iter().filter(|job| !is_over(job)).try_for_each(|job| would(global, job)),
    }
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
    let JobInfo { id, kind, .. } = job;
    Ok(output::line(&match is_over {
        true => format!("has ended already as {word} {id} {kind}"),
        false => format!("would be cancelled {id} {kind} ({word})"),
    })?)
}

fn tell(global: &Global, done: &Cancellation) -> anyhow::Result<()> {
    if global.json {
        return output::json(&json!({
            "id": done.id, "run": done.run, "kind": done.kind, "status": done.status,
            "had_ended": done.had_ended,
        }));
    }
    if done.had_ended {
        let Cancellation { status, id, kind, .. } = done;
        return Ok(output::line(&format!("has ended already as {status} {id} {kind}"))?);
    }
    Ok(output::line(&format!("{} {} {}", done.status, done.id, done.kind))?)
}
