//! `tidemill queue`: queues as a whole.

use std::time::Duration;

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use comfy_table::CellAlignment;
use serde_json::{Value, json};
use tidemill::{Client, LaneInfo, Priority, Queue, QueueInfo};
use tokio::time::timeout;

use crate::cli::{Global, duration, moment};
use crate::exit::Exit;
use crate::{ask, output};

/// Look at queues; pause, empty, remove them.
#[derive(Debug, Args)]
pub(crate) struct QueueArgs {
    #[command(subcommand)]
    command: QueueCommand,
}

#[derive(Debug, Subcommand)]
enum QueueCommand {
    /// List queues with their figures
    Ls,
    /// Show one queue, lane by lane
    Info(NameArgs),
    /// Stop handing out its jobs, to all workers
    Pause(PauseArgs),
    /// Hand out its jobs again
    Resume(LaneArgs),
    /// Delete its unfinished jobs, timers included; nothing is recorded of them
    Purge(PurgeArgs),
    /// Wait until it has no unfinished jobs: none that waits, runs, backs off or is not yet due
    WaitEmpty(WaitArgs),
    /// Delete it with all that it holds
    Rm(RemoveArgs),
}

#[derive(Debug, Args)]
struct NameArgs {
    /// The queue
    #[arg(default_value = "default")]
    queue: Queue,
}

#[derive(Debug, Args)]
struct LaneArgs {
    #[command(flatten)]
    name: NameArgs,
    /// Only this lane: critical, high, normal or low
    #[arg(short, long)]
    priority: Option<Priority>,
    /// Only tell what would be done
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
struct PauseArgs {
    #[command(flatten)]
    lane: LaneArgs,
    /// Until this time: 2026-12-01T09:00:00+01:00; default: until it is resumed
    #[arg(long, value_name = "RFC3339", value_parser = moment)]
    until: Option<DateTime<Utc>>,
    /// For that long
    #[arg(long = "for", value_name = "TIME", value_parser = duration, conflicts_with = "until")]
    period: Option<Duration>,
}

#[derive(Debug, Args)]
struct PurgeArgs {
    #[command(flatten)]
    lane: LaneArgs,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

#[derive(Debug, Args)]
struct WaitArgs {
    #[command(flatten)]
    name: NameArgs,
    /// Wait at most that long
    #[arg(long, value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,
}

#[derive(Debug, Args)]
struct RemoveArgs {
    /// The queue
    queue: Queue,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Only tell what would be done
    #[arg(long)]
    dry_run: bool,
}

pub(crate) async fn run(global: &Global, args: QueueArgs) -> anyhow::Result<Exit> {
    let client = global.client().await?;
    match args.command {
        QueueCommand::Ls => list(global, &client).await,
        QueueCommand::Info(args) => info(global, &client, &args.queue).await,
        QueueCommand::Pause(args) => pause(global, &client, &args).await,
        QueueCommand::Resume(args) => resume(global, &client, &args).await,
        QueueCommand::Purge(args) => purge(global, &client, &args).await,
        QueueCommand::WaitEmpty(args) => wait_empty(global, &client, &args).await,
        QueueCommand::Rm(args) => remove(global, &client, &args).await,
    }
}

async fn list(global: &Global, client: &Client) -> anyhow::Result<Exit> {
    let mut table =
        output::table(&["queue", "unfinished", "timers", "cron", "dead", "results", "paused"]);
    for name in client.queues().await? {
        let info = client.queue_info(&name).await?;
        if global.json {
            output::json(&figures(&info, client.now(&name).await))?;
            continue;
        }
        let paused: Vec<&str> =
            info.lanes.iter().filter(|lane| lane.paused_until.is_some()).map(name_of).collect();
        table.add_row([
            name.to_string(),
            info.jobs.to_string(),
            info.timers.to_string(),
            info.cron.to_string(),
            info.dead.to_string(),
            info.results.to_string(),
            paused.join(", "),
        ]);
    }
    if global.json {
        return Ok(Exit::Ok);
    }
    if table.is_empty() {
        output::to_stderr("no queues; `tidemill setup` makes one");
        return Ok(Exit::Ok);
    }
    for column in table.column_iter_mut().skip(1).take(5) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    output::line(&table.to_string())?;
    Ok(Exit::Ok)
}

fn name_of(lane: &LaneInfo) -> &'static str {
    lane.priority.as_str()
}

fn figures(info: &QueueInfo, now: DateTime<Utc>) -> Value {
    let lanes: Vec<Value> = info
        .lanes
        .iter()
        .map(|lane| {
            json!({
                "priority": lane.priority, "waiting": lane.waiting, "unsettled": lane.unsettled,
                "paused": lane.paused_until.is_some(),
                "paused_until": lane
                    .paused_until
                    .filter(|_| !lane.is_paused_for_good(now))
                    .map(|until| output::moment(&until)),
            })
        })
        .collect();
    json!({
        "queue": info.name, "jobs": info.jobs, "bytes": info.bytes, "timers": info.timers, "cron": info.cron,
        "results": info.results, "dead": info.dead, "lanes": lanes,
    })
}

async fn info(global: &Global, client: &Client, queue: &Queue) -> anyhow::Result<Exit> {
    let info = client.queue_info(queue).await?;
    let now = client.now(queue).await;
    if global.json {
        output::json(&figures(&info, now))?;
        return Ok(Exit::Ok);
    }
    let mut table = output::table(&["lane", "waiting", "running or backing off", "paused"]);
    for lane in &info.lanes {
        let paused = match lane.paused_until {
            None => String::new(),
            Some(_) if lane.is_paused_for_good(now) => "until resumed".to_owned(),
            Some(until) => format!("until {}", output::clock(&until)),
        };
        table.add_row([
            lane.priority.to_string(),
            lane.waiting.to_string(),
            lane.unsettled.to_string(),
            paused,
        ]);
    }
    for column in table.column_iter_mut().skip(1).take(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    output::line(&format!(
        "{}  {} unfinished jobs ({} bytes), {} timers, {} cron entries, {} dead letters, {} results\n{table}",
        output::bold(info.name.as_str()),
        info.jobs,
        info.bytes,
        info.timers,
        info.cron,
        info.dead,
        info.results
    ))?;
    Ok(Exit::Ok)
}

/// Says what was done, or would be.
fn tell(global: &Global, args: &LaneArgs, done: &str) -> anyhow::Result<Exit> {
    let (queue, lane) = (&args.name.queue, args.priority);
    if global.json {
        output::json(&json!({
            "queue": queue, "priority": lane, "done": done, "dry_run": args.dry_run,
        }))?;
        return Ok(Exit::Ok);
    }
    let would = if args.dry_run { "would be " } else { "" };
    match lane {
        Some(lane) => output::line(&format!("{would}{done}: lane {lane} of queue {queue}"))?,
        None => output::line(&format!("{would}{done}: queue {queue}"))?,
    }
    Ok(Exit::Ok)
}

async fn pause(global: &Global, client: &Client, args: &PauseArgs) -> anyhow::Result<Exit> {
    let lane = &args.lane;
    let until = match args.period {
        Some(period) => {
            let now = client.now(&lane.name.queue).await;
            Some(now + chrono::TimeDelta::from_std(period)?)
        }
        None => args.until,
    };
    if lane.dry_run {
        client.plan_pause(&lane.name.queue, until).await?;
    } else {
        client.pause(&lane.name.queue, lane.priority, until).await?;
    }
    tell(global, lane, "paused")
}

async fn resume(global: &Global, client: &Client, args: &LaneArgs) -> anyhow::Result<Exit> {
    if args.dry_run {
        client.queue_info(&args.name.queue).await?;
    } else {
        client.resume(&args.name.queue, args.priority).await?;
    }
    tell(global, args, "resumed")
}

async fn purge(global: &Global, client: &Client, args: &PurgeArgs) -> anyhow::Result<Exit> {
    let LaneArgs { name, priority, dry_run } = &args.lane;
    let info = client.queue_info(&name.queue).await?;
    let of_lane = |lane: &&LaneInfo| priority.is_none_or(|priority| priority == lane.priority);
    let lanes: u64 =
        info.lanes.iter().filter(of_lane).map(|lane| lane.waiting + lane.unsettled).sum();
    let timers = client.timers(&name.queue, *priority).await?;
    let what = match priority {
        Some(lane) => format!("unfinished jobs of lane {lane} (and {timers} timers)"),
        None => format!("unfinished jobs (and {timers} timers)"),
    };
    if *dry_run && global.json {
        output::json(&json!({
            "queue": name.queue, "priority": priority, "jobs": lanes, "dry_run": true,
            "timers": timers,
        }))?;
        return Ok(Exit::Ok);
    }
    if *dry_run {
        output::line(&format!("would be deleted: {lanes} {what} of queue {}", name.queue))?;
        return Ok(Exit::Ok);
    }
    let count = usize::try_from(lanes).unwrap_or(usize::MAX);
    if !args.yes && !ask::confirmed("delete", count, &what)? {
        output::to_stderr("nothing was done");
        return Ok(Exit::Interrupted);
    }
    let purged = client.purge(&name.queue, *priority).await?;
    if global.json {
        output::json(&json!({ "queue": name.queue, "priority": priority, "purged": purged }))?;
    } else {
        output::line(&format!("deleted {purged} jobs of queue {}", name.queue))?;
    }
    Ok(Exit::Ok)
}

async fn wait_empty(global: &Global, client: &Client, args: &WaitArgs) -> anyhow::Result<Exit> {
    let queue = &args.name.queue;
    let emptied = match args.timeout {
        None => Ok(client.wait_empty(queue).await),
        Some(patience) => timeout(patience, client.wait_empty(queue)).await,
    };
    let left = match emptied {
        Ok(emptied) => {
            emptied?;
            0
        }
        Err(_) => client.unfinished(queue).await?,
    };
    if global.json {
        output::json(&json!({ "queue": queue, "unfinished": left }))?;
    }
    if left == 0 {
        return Ok(Exit::Ok);
    }
    if !global.json {
        output::error(&format!("queue {queue} still has {left} unfinished jobs"));
    }
    Ok(Exit::WaitedTooLong)
}

async fn remove(global: &Global, client: &Client, args: &RemoveArgs) -> anyhow::Result<Exit> {
    let info = client.queue_info(&args.queue).await?;
    let held = info.jobs + info.timers + info.cron + info.results + info.dead;
    if args.dry_run && global.json {
        output::json(&json!({ "queue": args.queue, "messages": held, "dry_run": true }))?;
        return Ok(Exit::Ok);
    }
    if args.dry_run {
        output::line(&format!("would be deleted: queue {} with {held} messages", args.queue))?;
        return Ok(Exit::Ok);
    }
    let count = usize::try_from(held).unwrap_or(usize::MAX);
    let what = format!("jobs, timers, results and dead letters with queue {}", args.queue);
    if !args.yes && !ask::confirmed("delete", count, &what)? {
        output::to_stderr("nothing was done");
        return Ok(Exit::Interrupted);
    }
    client.remove_queue(&args.queue).await?;
    if global.json {
        output::json(&json!({ "queue": args.queue, "removed": true }))?;
    } else {
        output::line(&format!("deleted queue {}", args.queue))?;
    }
    Ok(Exit::Ok)
}
