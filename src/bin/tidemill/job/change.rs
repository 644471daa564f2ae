//! `tidemill job run`, `reschedule` and `priority`: jobs that have not begun, moved.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use clap::Args;
use serde_json::json;
use tidemill::{Client, JobInfo, JobState, Priority};

use super::GetArgs;
use crate::cli::{Global, duration, moment};
use crate::exit::{Exit, NotFound, UsageError};
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct MoveArgs {
    #[command(flatten)]
    job: GetArgs,
    /// Only tell what would be done
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RescheduleArgs {
    #[command(flatten)]
    job: MoveArgs,
    /// That much later from now; this or --at is needed
    #[arg(long = "in", value_name = "TIME", value_parser = duration, required_unless_present = "at", allow_hyphen_values = true)]
    delay: Option<Duration>,
    /// At this time: 2026-12-01T09:00:00+01:00
    #[arg(long, value_name = "RFC3339", value_parser = moment, conflicts_with = "delay")]
    at: Option<DateTime<Utc>>,
}

#[derive(Debug, Args)]
pub(crate) struct PriorityArgs {
    #[command(flatten)]
    job: MoveArgs,
    /// critical, high, normal or low
    #[arg(value_name = "PRIORITY")]
    to: Priority,
}

pub(super) async fn run_now(
    global: &Global,
    client: &Client,
    args: &MoveArgs,
) -> anyhow::Result<Exit> {
    change(global, client, args, Change::Now).await
}

pub(super) async fn reschedule(
    global: &Global,
    client: &Client,
    args: &RescheduleArgs,
) -> anyhow::Result<Exit> {
    let now = client.now(&args.job.job.queue).await;
    let time = match args.delay {
        Some(delay) => now + TimeDelta::from_std(delay)?,
        None => args.at.unwrap_or(now),
    };
    change(global, client, &args.job, Change::At(time)).await
}

pub(super) async fn set_priority(
    global: &Global,
    client: &Client,
    args: &PriorityArgs,
) -> anyhow::Result<Exit> {
    change(global, client, &args.job, Change::Priority(args.to)).await
}

/// What is to be other than it is.
#[derive(Clone, Copy)]
enum Change {
    Now,
    At(DateTime<Utc>),
    Priority(Priority),
}

async fn change(
    global: &Global,
    client: &Client,
    args: &MoveArgs,
    change: Change,
) -> anyhow::Result<Exit> {
    let GetArgs { id, queue, kind } = &args.job;
    let kind = kind.as_ref();
    let moved = match change {
        _ if args.dry_run => movable(client, &args.job, change).await?,
        Change::Now => client.run_now(queue, kind, id).await?,
        Change::At(time) => client.reschedule(queue, kind, id, time).await?,
        Change::Priority(priority) => client.set_priority(queue, kind, id, priority).await?,
    };
    if global.json {
        let told = json!({ "id": id, "queue": queue, "moved": moved, "dry_run": args.dry_run });
        output::json(&told)?;
        return Ok(Exit::Ok);
    }
    let to = match change {
        Change::Now => "to run now".to_owned(),
        Change::At(time) => format!("to run at {}", output::clock(&time)),
        Change::Priority(priority) => format!("to priority {priority}"),
    };
    let would = if args.dry_run { "would be " } else { "" };
    output::line(&format!("{would}moved {id} {to}"))?;
    Ok(Exit::Ok)
}

/// How many runs would be moved.
async fn movable(client: &Client, args: &GetArgs, change: Change) -> anyhow::Result<usize> {
    let (mut count, mut ended) = (0, None);
    let now = client.now(&args.queue).await;
    for job in client.job(&args.queue, args.kind.as_ref(), &args.id).await? {
        match &job.state {
            JobState::Running(running) => {
                let worker = &running.worker;
                let message = format!("job {} is running on {worker}: it cannot be moved", job.id);
                return Err(UsageError(message).into());
            }
            JobState::Ended(completion) => ended = Some(completion.status),
            _ if is_held_back(&job, change, now) => {
                let message = format!(
                    "job {} is unique and has been tried: it stays on its lane until its next attempt",
                    job.id
                );
                return Err(UsageError(message).into());
            }
            _ => count += 1,
        }
    }
    match ended.filter(|_| count == 0) {
        Some(status) => {
            let GetArgs { id, queue, .. } = args;
            Err(NotFound(format!("queue {queue} has no unfinished job {id}: it ended as {status}"))
                .into())
        }
        None => Ok(count),
    }
}

/// Whether a change would leave a job later that has to stay where its key is held.
fn is_held_back(job: &JobInfo, change: Change, now: DateTime<Utc>) -> bool {
    let is_later = match (change, &job.state) {
        (Change::Now, _) => false,
        (Change::At(time), _) => time > now,
        (Change::Priority(priority), JobState::BackingOff(_)) => priority != job.priority,
        (Change::Priority(_), _) => false,
    };
    let is_unique = job.headers.get("Tidemill-Unique").is_some();
    let used = job.headers.get("Tidemill-Attempts-Used").and_then(|used| used.parse().ok());
    let has_been_tried = job.attempts.last().is_some_and(|last| last.used() > 0)
        || used.is_some_and(|used: u32| used > 0);
    is_later && is_unique && has_been_tried
}
