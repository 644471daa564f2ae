//! `tidemill job run`, `reschedule` and `priority`: jobs that have not begun, moved.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use clap::Args;
use serde_json::json;
use tidemill::{Client, Move, Priority};

use super::GetArgs;
use crate::cli::{Global, duration, moment};
use crate::exit::Exit;
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
    change(global, client, args, Move::Now).await
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
    change(global, client, &args.job, Move::At(time)).await
}

pub(super) async fn set_priority(
    global: &Global,
    client: &Client,
    args: &PriorityArgs,
) -> anyhow::Result<Exit> {
    change(global, client, &args.job, Move::To(args.to)).await
}

async fn change(
    global: &Global,
    client: &Client,
    args: &MoveArgs,
    by: Move,
) -> anyhow::Result<Exit> {
    let GetArgs { id, queue, kind } = &args.job;
    let kind = kind.as_ref();
    let moved = match by {
        _ if args.dry_run => client.plan_move(queue, kind, id, by).await?,
        Move::Now => client.run_now(queue, kind, id).await?,
        Move::At(time) => client.reschedule(queue, kind, id, time).await?,
        Move::To(priority) => client.set_priority(queue, kind, id, priority).await?,
    };
    if global.json {
        let told = json!({ "id": id, "queue": queue, "moved": moved, "dry_run": args.dry_run });
        output::json(&told)?;
        return Ok(Exit::Ok);
    }
    let to = match by {
        Move::Now => "to run now".to_owned(),
        Move::At(time) => format!("to run at {}", output::clock(&time)),
        Move::To(priority) => format!("to priority {priority}"),
    };
    let would = if args.dry_run { "would be " } else { "" };
    output::line(&format!("{would}moved {id} {to}"))?;
    Ok(Exit::Ok)
}
