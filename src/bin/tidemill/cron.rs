//! `tidemill cron`: jobs that the broker enqueues by itself, again and again.

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tidemill::{Client, CronChange, CronEntry, CronJob, CronName, Queue, Schedule};

use crate::cli::Global;
use crate::exit::{Exit, NotFound, UsageError};
use crate::options::{self, JobOptions};
use crate::output;

const ADD_HELP: &str = "\
Schedules:
  \"0 9 * * mon-fri\"   minute, hour, day of month, month, day of week
  \"30 0 9 * * *\"      the same with seconds first
  @hourly @daily @midnight @weekly @monthly @yearly
  \"@every 90s\"        at intervals: s, m, h, d

Examples:
  tidemill cron add report default send_report --schedule '0 9 * * mon-fri' --tz Europe/Berlin
  tidemill cron add poll default poll_feed '{\"feed\":7}' --schedule '@every 30s' --skip-overlap";

/// Jobs that the broker enqueues by itself, again and again.
#[derive(Debug, Args)]
pub(crate) struct CronArgs {
    #[command(subcommand)]
    command: CronCommand,
}

#[derive(Debug, Subcommand)]
enum CronCommand {
    /// Add an entry, or put it in place of the one of its name
    #[command(after_help = ADD_HELP)]
    Add(AddArgs),
    /// List entries with their last and next runs
    Ls(LsArgs),
    /// Remove an entry; jobs that it has put out stay
    Rm(NameArgs),
    /// Stop an entry from firing until it is resumed
    Pause(NameArgs),
    /// Let a paused entry fire again; what was missed is not made up
    Resume(NameArgs),
    /// Enqueue an entry's job now, once, also while it is paused
    Run(NameArgs),
    /// Tell when a schedule would run, without a broker
    Next(NextArgs),
}

#[derive(Debug, Args)]
struct ScheduleArgs {
    /// The time zone of the pattern, such as Europe/Berlin; default UTC
    #[arg(long, value_name = "ZONE")]
    tz: Option<String>,
}

#[derive(Debug, Args)]
struct AddArgs {
    /// What its queue is to know it by
    name: String,
    /// The queue; made if it is missing
    queue: String,
    /// The kind of its jobs
    kind: String,
    /// Their payload: JSON, @FILE, or - for standard input
    #[arg(default_value = "{}")]
    payload: String,
    /// When it fires: see below
    #[arg(long)]
    schedule: String,
    #[command(flatten)]
    zone: ScheduleArgs,
    /// Leave a firing out while the job of an earlier one is unfinished
    #[arg(long)]
    skip_overlap: bool,
    #[command(flatten)]
    options: JobOptions,
    /// Only tell what would be done
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
struct LsArgs {
    /// Only this queue
    #[arg(long)]
    queue: Option<Queue>,
    /// How many of the next runs to show
    #[arg(long, value_name = "COUNT", default_value_t = 5)]
    upcoming: usize,
}

#[derive(Debug, Args)]
struct NameArgs {
    /// The entry
    name: CronName,
    /// Its queue, where several queues have an entry of this name
    #[arg(long)]
    queue: Option<Queue>,
    /// Only tell what would be done
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
struct NextArgs {
    /// The schedule: see `tidemill cron add --help`
    schedule: String,
    #[command(flatten)]
    zone: ScheduleArgs,
    /// How many runs
    #[arg(short = 'n', long, default_value_t = 5)]
    count: usize,
}

impl ScheduleArgs {
    fn schedule(&self, text: &str) -> anyhow::Result<Schedule> {
        let schedule: Schedule = text.parse()?;
        Ok(match &self.tz {
            Some(zone) => schedule.in_zone(zone)?,
            None => schedule,
        })
    }
}

pub(crate) async fn run(global: &Global, args: CronArgs) -> anyhow::Result<Exit> {
    match args.command {
        CronCommand::Add(args) => add(global, &args).await,
        CronCommand::Ls(args) => list(global, &global.client().await?, &args).await,
        CronCommand::Rm(args) => change(global, &args, Verb::Remove).await,
        CronCommand::Pause(args) => change(global, &args, Verb::Pause).await,
        CronCommand::Resume(args) => change(global, &args, Verb::Resume).await,
        CronCommand::Run(args) => run_now(global, &args).await,
        CronCommand::Next(args) => next(global, &args),
    }
}

async fn add(global: &Global, args: &AddArgs) -> anyhow::Result<Exit> {
    let schedule = args.zone.schedule(&args.schedule)?;
    let payload = options::read_payload(&args.payload)?;
    args.options.check_json(&payload, "the payload")?;
    let job = args.options.job(&args.queue, &args.kind, payload)?;
    let mut entry = CronJob::new(&args.name, schedule.clone(), job);
    if args.skip_overlap {
        entry = entry.skip_overlap();
    }
    let client = global.client().await?;
    let change = match args.dry_run {
        true => client.cron().plan(entry).await?,
        false => client.cron().add(entry).await?,
    };
    let word = match change {
        CronChange::Added => "added",
        CronChange::Updated => "updated",
        _ => "unchanged",
    };
    // A paused entry stays paused.
    let is_paused = match change {
        CronChange::Added => false,
        _ => {
            let (queue, name) = (Queue::new(&args.queue)?, CronName::new(&args.name)?);
            client.cron().get(&queue, &name).await?.paused_at.is_some()
        }
    };
    let next = schedule.upcoming(Utc::now()).next().filter(|_| !is_paused);
    if global.json {
        output::json(&json!({
            "name": args.name, "queue": args.queue, "change": word, "dry_run": args.dry_run,
            "paused": is_paused, "next": next.map(|next| output::moment(&next)),
        }))?;
        return Ok(Exit::Ok);
    }
    let would = if args.dry_run { "would be " } else { "" };
    let next = match next {
        Some(next) => format!(", next at {}", moment(next, schedule.zone())),
        None if is_paused => format!(", still paused: tidemill cron resume {}", args.name),
        None => String::new(),
    };
    output::line(&format!("{would}{word}: {} in queue {}{next}", args.name, args.queue))?;
    Ok(Exit::Ok)
}

/// A moment as clocks of a time zone show it.
fn moment(time: DateTime<Utc>, zone: Option<&str>) -> String {
    let zone: Tz = zone.and_then(|zone| zone.parse().ok()).unwrap_or(Tz::UTC);
    time.with_timezone(&zone).format("%a %Y-%m-%d %H:%M:%S %Z").to_string()
}

/// All entries, or those of one queue.
async fn entries(client: &Client, queue: Option<&Queue>) -> anyhow::Result<Vec<CronEntry>> {
    Ok(match queue {
        Some(queue) => client.cron().list(queue).await?,
        None => client.cron().list_all().await?,
    })
}

async fn list(global: &Global, client: &Client, args: &LsArgs) -> anyhow::Result<Exit> {
    let entries = entries(client, args.queue.as_ref()).await?;
    let mut table = output::table(&["name", "queue", "kind", "schedule", "last run", "next runs"]);
    for entry in &entries {
        let ended = last_ended(client, entry).await?;
        if global.json {
            output::json(&described(client, entry, ended.as_deref(), args.upcoming))?;
            continue;
        }
        let zone = entry.zone.as_deref();
        let last = entry.last.as_ref().map_or_else(String::new, |last| {
            format!("{}\n{}", moment(last.at, zone), ended.unwrap_or_default())
        });
        let upcoming: Vec<String> =
            entry.upcoming(args.upcoming).into_iter().map(|at| moment(at, zone)).collect();
        let next = match entry.paused_at {
            Some(since) => format!("paused since\n{}", moment(since, zone)),
            None => upcoming.join("\n"),
        };
        let mut schedule = entry.schedule.clone();
        if let Some(zone) = zone {
            schedule.push_str(&format!("\n{zone}"));
        }
        if entry.skips_overlap {
            schedule.push_str("\nskips overlap");
        }
        let (name, queue, kind) =
            (entry.name.to_string(), entry.queue.to_string(), entry.kind.to_string());
        table.add_row([name, queue, kind, schedule, last, next]);
    }
    if global.json {
        return Ok(Exit::Ok);
    }
    if entries.is_empty() {
        output::to_stderr("no cron entries; `tidemill cron add` makes one");
    } else {
        output::line(&table.to_string())?;
    }
    Ok(Exit::Ok)
}

/// What became of the last firing's job, in a word.
async fn last_ended(client: &Client, entry: &CronEntry) -> anyhow::Result<Option<String>> {
    let Some(last) = &entry.last else { return Ok(None) };
    if last.skipped {
        return Ok(Some("skipped".to_owned()));
    }
    let ends = client.completions_of(&entry.queue, Some(&entry.kind), &last.id).await?;
    let end = ends.into_iter().find(|end| end.run == last.run);
    Ok(Some(end.map_or("unfinished".to_owned(), |end| end.status.to_string())))
}

fn described(client: &Client, entry: &CronEntry, ended: Option<&str>, upcoming: usize) -> Value {
    let upcoming: Vec<String> = entry.upcoming(upcoming).iter().map(output::moment).collect();
    let last = entry.last.as_ref().map(|last| {
        json!({
            "at": output::moment(&last.at), "id": last.id, "run": last.run, "skipped": last.skipped,
            "status": ended,
        })
    });
    let headers: Vec<(&str, &str)> = entry.headers.iter().collect();
    let payload = match entry.open(client) {
        Ok(payload) => output::payload(&payload),
        Err(_) => Value::Null,
    };
    json!({
        "name": entry.name, "queue": entry.queue, "kind": entry.kind, "priority": entry.priority,
        "schedule": entry.schedule, "zone": entry.zone, "skip_overlap": entry.skips_overlap,
        "set": entry.set, "paused_at": entry.paused_at.map(|since| output::moment(&since)),
        "last": last, "next": upcoming.first(), "upcoming": upcoming,
        "headers": headers, "payload": payload, "sealed_with": entry.sealed_with(),
    })
}

/// The queue that has an entry of this name.
async fn queue_of(client: &Client, args: &NameArgs) -> anyhow::Result<Queue> {
    if let Some(queue) = &args.queue {
        client.cron().get(queue, &args.name).await?;
        return Ok(queue.clone());
    }
    let mut having = entries(client, None).await?;
    having.retain(|entry| entry.name == args.name);
    match &having[..] {
        [one] => Ok(one.queue.clone()),
        [] => Err(NotFound(format!("no queue has a cron entry {}", args.name)).into()),
        several => {
            let queues: Vec<&str> = several.iter().map(|entry| entry.queue.as_str()).collect();
            let message = format!(
                "queues {} have an entry {}: say which with --queue",
                queues.join(", "),
                args.name
            );
            Err(UsageError(message).into())
        }
    }
}

#[derive(Clone, Copy)]
enum Verb {
    Remove,
    Pause,
    Resume,
}

async fn change(global: &Global, args: &NameArgs, verb: Verb) -> anyhow::Result<Exit> {
    let client = global.client().await?;
    let (cron, name, queue) = (client.cron(), &args.name, queue_of(&client, args).await?);
    let (done, is_changed) = match verb {
        Verb::Remove if args.dry_run => ("removed", true),
        Verb::Remove => ("removed", cron.remove(&queue, name).await?),
        Verb::Pause if args.dry_run => {
            ("paused", cron.get(&queue, name).await?.paused_at.is_none())
        }
        Verb::Pause => ("paused", cron.pause(&queue, name).await?),
        Verb::Resume if args.dry_run => {
            ("resumed", cron.get(&queue, name).await?.paused_at.is_some())
        }
        Verb::Resume => ("resumed", cron.resume(&queue, name).await?),
    };
    if global.json {
        output::json(&json!({
            "name": name, "queue": queue, "done": done, "changed": is_changed,
            "dry_run": args.dry_run,
        }))?;
        return Ok(Exit::Ok);
    }
    match (is_changed, args.dry_run) {
        (true, true) => output::line(&format!("would be {done}: {name} in queue {queue}"))?,
        (true, false) => output::line(&format!("{done}: {name} in queue {queue}"))?,
        (false, _) => output::line(&format!("nothing to do: {name} in queue {queue}"))?,
    }
    Ok(Exit::Ok)
}

async fn run_now(global: &Global, args: &NameArgs) -> anyhow::Result<Exit> {
    let client = global.client().await?;
    let queue = queue_of(&client, args).await?;
    if args.dry_run {
        let entry = client.cron().get(&queue, &args.name).await?;
        if global.json {
            let (kind, priority) = (entry.kind, entry.priority);
            output::json(&json!({
                "name": args.name, "queue": queue, "kind": kind, "priority": priority,
                "dry_run": true,
            }))?;
        } else {
            let (kind, lane) = (entry.kind, entry.priority);
            output::line(&format!("would be enqueued: {kind} on lane {lane} of queue {queue}"))?;
        }
        return Ok(Exit::Ok);
    }
    let handle = client.cron().run(&queue, &args.name).await?;
    output::enqueued(global.json, &handle)?;
    Ok(Exit::Ok)
}

fn next(global: &Global, args: &NextArgs) -> anyhow::Result<Exit> {
    let schedule = args.zone.schedule(&args.schedule)?;
    for at in schedule.upcoming(Utc::now()).take(args.count) {
        if global.json {
            output::json(&json!({ "at": output::moment(&at) }))?;
        } else {
            output::line(&moment(at, schedule.zone()))?;
        }
    }
    Ok(Exit::Ok)
}
