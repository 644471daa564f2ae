//! `tidemill results`: completions, as they come or looked up.

use std::pin::pin;
use std::time::Duration;

use clap::{Args, Subcommand};
use futures_util::TryStreamExt;
use tidemill::{Client, Completion, JobId, Kind, Queue, RecordFilter, Since, Status};

use crate::cli::{Global, duration};
use crate::exit::Exit;
use crate::output;
use crate::signals::StopSignals;

/// Look at completions.
#[derive(Debug, Args)]
pub(crate) struct ResultsArgs {
    #[command(subcommand)]
    command: ResultsCommand,
}

#[derive(Debug, Subcommand)]
enum ResultsCommand {
    /// Show completions as they come, until interrupted
    Watch(WatchArgs),
    /// Show how a job ended, for each of its runs that is still kept
    Get(GetArgs),
}

#[derive(Debug, Args)]
struct WatchArgs {
    /// The queue
    #[arg(long, default_value = "default")]
    queue: Queue,
    /// Only this kind
    #[arg(long)]
    kind: Option<Kind>,
    /// Only this job
    #[arg(long)]
    id: Option<JobId>,
    /// Only runs that ended so: done, dead, cancelled or expired
    #[arg(long)]
    status: Option<Status>,
    /// Begin with what ended that long ago, as far as it is kept
    #[arg(long, value_name = "TIME", value_parser = duration)]
    since: Option<Duration>,
    /// Stop after that many
    #[arg(short = 'n', long)]
    limit: Option<u64>,
}

#[derive(Debug, Args)]
struct GetArgs {
    /// The job's id
    id: JobId,
    /// The queue
    #[arg(long, default_value = "default")]
    queue: Queue,
    /// The job's kind, where several kinds use the same ids
    #[arg(long)]
    kind: Option<Kind>,
}

pub(crate) async fn run(global: &Global, args: ResultsArgs) -> anyhow::Result<Exit> {
    let client = global.client().await?;
    match args.command {
        ResultsCommand::Watch(args) => watch(global, &client, args).await,
        ResultsCommand::Get(args) => get(global, &client, &args).await,
    }
}

async fn watch(global: &Global, client: &Client, args: WatchArgs) -> anyhow::Result<Exit> {
    let since = match args.since {
        None => Since::Now,
        Some(ago) => Since::Time(client.now(&args.queue).await - chrono::TimeDelta::from_std(ago)?),
    };
    let mut filter = RecordFilter::queue(args.queue).since(since);
    filter.kind = args.kind;
    filter.id = args.id;
    let mut signals = StopSignals::new()?;
    let mut completions = pin!(client.completions(filter).await?);
    let mut left = args.limit.unwrap_or(u64::MAX);
    while left > 0 {
        let next = tokio::select! {
            next = completions.try_next() => next?,
            () = signals.told() => return Ok(Exit::Ok),
        };
        let Some(completion) = next else { break };
        if args.status.is_none_or(|status| status == completion.status) {
            tell(global, &completion)?;
            left -= 1;
        }
    }
    Ok(Exit::Ok)
}

async fn get(global: &Global, client: &Client, args: &GetArgs) -> anyhow::Result<Exit> {
    let found = client.completions_of(&args.queue, args.kind.as_ref(), &args.id).await?;
    for completion in &found {
        tell(global, completion)?;
    }
    if found.is_empty() {
        output::error(&format!(
            "queue {} has no completion of job {}: it has not ended, or is kept no longer",
            args.queue, args.id
        ));
        return Ok(Exit::NotFound);
    }
    Ok(Exit::Ok)
}

/// Prints a completion.
pub(crate) fn tell(global: &Global, completion: &Completion) -> anyhow::Result<()> {
    if global.json {
        return output::json(completion);
    }
    let Completion { status, id, kind, priority, attempt, .. } = completion;
    let took = completion.started_at.map_or(String::new(), |start| {
        format!(" in {} ms", (completion.finished_at - start).num_milliseconds())
    });
    let tries = if *attempt > 1 { format!(", attempt {attempt}") } else { String::new() };
    let mut line = format!("{status:<9} {id} {kind} {priority}{took}{tries}");
    if let Some(reason) = &completion.reason {
        line.push_str(&format!(", {reason}"));
    }
    if let Some(error) = &completion.error {
        line.push_str(&format!(": {}", error.message.lines().next().unwrap_or_default()));
    }
    if let Some(result) = &completion.result {
        line.push_str(&format!(" -> {}", result.get()));
    } else if let Some(key) = completion.sealed_with() {
        line.push_str(&format!(" -> {}", output::sealed(key)));
    }
    Ok(output::line(&line)?)
}
