//! `tidemill job`: where a job stands, which there are, and an end to those that are not wanted.

mod cancel;
mod change;
mod watch;

use std::pin::pin;

use clap::{Args, Subcommand};
use comfy_table::Table;
use futures_util::TryStreamExt;
use serde_json::{Value, json};
use tidemill::{
    Client, Completion, JobFilter, JobId, JobInfo, JobState, Kind, Priority, Queue, Status,
};

use crate::cli::Global;
use crate::exit::Exit;
use crate::{dead, output};

/// Look at jobs, and cancel them.
#[derive(Debug, Args)]
pub(crate) struct JobArgs {
    #[command(subcommand)]
    command: JobCommand,
}

#[derive(Debug, Subcommand)]
enum JobCommand {
    /// Show where a job stands: each of its runs that is unfinished or on record
    Get(GetArgs),
    /// List unfinished jobs, or those that ended in one way
    Ls(LsArgs),
    /// Cancel jobs: those that wait are gone, those that run are told to stop
    Cancel(cancel::CancelArgs),
    /// Run a job now that is scheduled or backs off
    Run(change::MoveArgs),
    /// Run a job at another time
    Reschedule(change::RescheduleArgs),
    /// Give a job another priority
    Priority(change::PriorityArgs),
    /// Follow a job until it ends: its progress, its log, its end
    Watch(GetArgs),
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

#[derive(Debug, Args)]
struct FilterArgs {
    /// The queue
    #[arg(long, default_value = "default")]
    queue: Queue,
    /// Only this kind
    #[arg(long)]
    kind: Option<Kind>,
    /// Only this lane: critical, high, normal or low
    #[arg(short, long)]
    priority: Option<Priority>,
    /// Only with this tag
    #[arg(long)]
    tag: Option<String>,
}

#[derive(Debug, Args)]
struct LsArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Only in this state; failed is backing_off after a failed attempt, and those that are done, dead,
    /// cancelled or expired are shown as long as their completions are kept
    #[arg(long, value_parser = ALL_STATES)]
    state: Option<String>,
    /// Show at most that many
    #[arg(short = 'n', long, default_value_t = 50, value_parser = at_least_one)]
    limit: usize,
    /// Go on behind the last one of an earlier list, by its cursor
    #[arg(long, value_name = "CURSOR")]
    after: Option<String>,
}

const UNFINISHED: [&str; 5] = ["scheduled", "waiting", "running", "backing_off", "failed"];
const ALL_STATES: [&str; 9] = [
    "scheduled",
    "waiting",
    "running",
    "backing_off",
    "failed",
    "done",
    "dead",
    "cancelled",
    "expired",
];

impl FilterArgs {
    fn filter(&self, state: Option<&String>) -> JobFilter {
        let mut filter = JobFilter::queue(self.queue.clone());
        filter.priority = self.priority;
        filter.kind.clone_from(&self.kind);
        filter.tag.clone_from(&self.tag);
        filter.state = state.cloned();
        filter
    }
}

pub(crate) async fn run(global: &Global, args: JobArgs) -> anyhow::Result<Exit> {
    let client = global.client().await?;
    match args.command {
        JobCommand::Get(args) => get(global, &client, &args).await,
        JobCommand::Ls(args) => list(global, &client, &args).await,
        JobCommand::Cancel(args) => cancel::run(global, &client, &args).await,
        JobCommand::Run(args) => change::run_now(global, &client, &args).await,
        JobCommand::Reschedule(args) => change::reschedule(global, &client, &args).await,
        JobCommand::Priority(args) => change::set_priority(global, &client, &args).await,
        JobCommand::Watch(args) => watch::run(global, &client, &args).await,
    }
}

async fn get(global: &Global, client: &Client, args: &GetArgs) -> anyhow::Result<Exit> {
    for job in client.job(&args.queue, args.kind.as_ref(), &args.id).await? {
        if global.json {
            output::json(&whole(client, &job))?;
        } else {
            show(client, &job)?;
        }
    }
    Ok(Exit::Ok)
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("use a whole number of at least 1".to_owned()),
        Ok(number) => Ok(number),
    }
}

fn whole(client: &Client, job: &JobInfo) -> Value {
    let mut shown = summary(job);
    shown["attempts"] = json!(job.attempts);
    if matches!(job.state, JobState::Ended(_)) {
        // What it was is gone, but for its end.
        return shown;
    }
    let headers: Vec<(&str, &str)> = job.headers.iter().collect();
    shown["headers"] = json!(headers);
    shown["payload"] = match job.open(client) {
        Ok(payload) => output::payload(&payload),
        Err(_) => Value::Null,
    };
    shown
}

fn summary(job: &JobInfo) -> Value {
    let mut shown = json!({
        "id": job.id, "run": job.run, "queue": job.queue, "kind": job.kind,
        "priority": job.priority, "state": job.state.as_str(),
        "enqueued_at": output::moment(&job.enqueued_at),
    });
    if let Some(cursor) = &job.cursor {
        shown["cursor"] = json!(cursor);
    }
    if !matches!(job.state, JobState::Ended(_)) {
        shown["tags"] = json!(job.tags);
    }
    if let Some(key) = job.sealed_with() {
        shown["sealed_with"] = json!(key);
    }
    if let Some(problem) = &job.problem {
        shown["problem"] = json!(problem);
    }
    match &job.state {
        JobState::Scheduled(at) | JobState::BackingOff(at) => {
            shown["until"] = json!(output::moment(at));
        }
        JobState::Running(running) => shown["running"] = json!(running),
        JobState::Ended(completion) => shown["completion"] = json!(completion),
        _ => {}
    }
    shown
}

fn show(client: &Client, job: &JobInfo) -> anyhow::Result<()> {
    output::field("id", job.id.as_str())?;
    output::field("run", job.run.as_str())?;
    output::field("kind", job.kind.as_str())?;
    output::field("queue", &format!("{} ({})", job.queue, job.priority))?;
    output::field("state", &describe(&job.state))?;
    output::field("enqueued", &output::moment(&job.enqueued_at))?;
    if let Some(problem) = &job.problem {
        output::field("unreadable", problem)?;
    }
    for (name, value) in job.headers.iter() {
        output::field("header", &format!("{name}: {value}"))?;
    }
    for attempt in &job.attempts {
        output::field("attempt", &dead::describe(attempt))?;
    }
    match &job.state {
        JobState::Ended(completion) => show_end(completion),
        _ if job.payload.is_empty() => Ok(()),
        _ => output::shown_or_sealed(job.sealed_with(), job.open(client)),
    }
}

/// How a run has ended.
fn show_end(completion: &Completion) -> anyhow::Result<()> {
    let Completion { attempt, worker, started_at, finished_at, .. } = completion;
    output::field("ended", &output::moment(finished_at))?;
    if let Some(started_at) = started_at {
        let took = (*finished_at - *started_at).num_milliseconds();
        output::field("took", &format!("{took} ms, attempt {attempt}, by {worker}"))?;
    }
    if let Some(error) = &completion.error {
        output::field("error", &format!("{}: {}", error.kind, error.message))?;
    }
    if let Some(result) = &completion.result {
        output::field("result", result.get())?;
    } else if let Some(key) = completion.sealed_with() {
        output::field("result", &output::sealed(key))?;
    }
    if completion.status == Status::Dead {
        let hint = format!("tidemill dead show {} has its payload", completion.id);
        output::line(&output::dim(&format!("           {hint}")))?;
    }
    Ok(())
}

/// A state with what belongs to it.
fn describe(state: &JobState) -> String {
    let word = state.as_str();
    match state {
        JobState::Scheduled(at) | JobState::BackingOff(at) => {
            format!("{word} until {}", output::clock(at))
        }
        JobState::Running(running) => format!(
            "{word} since {}, attempt {}, by {}",
            running.started_at.format("%H:%M:%SZ"),
            running.attempt,
            running.worker
        ),
        JobState::Ended(completion) => match &completion.reason {
            Some(reason) => format!("{word}, {reason}"),
            None => word.to_owned(),
        },
        _ => word.to_owned(),
    }
}

/// Rows that are laid out together. Columns are as wide as their widest cells, so that all of a table is
/// held until it is shown: a long list is a row of tables.
const ROWS: usize = 1000;

fn table() -> Table {
    output::table(&["id", "kind", "priority", "enqueued", "state"])
}

async fn list(global: &Global, client: &Client, args: &LsArgs) -> anyhow::Result<Exit> {
    let mut filter = args.filter.filter(args.state.as_ref());
    filter.after.clone_from(&args.after);
    let mut jobs = pin!(client.jobs(filter));
    let mut last = None;
    let mut table = table();
    let mut shown = 0;
    let mut is_cut = false;
    while let Some(job) = jobs.try_next().await? {
        if shown == args.limit {
            is_cut = true;
            break;
        }
        shown += 1;
        last.clone_from(&job.cursor);
        if global.json {
            output::json(&summary(&job))?;
            continue;
        }
        table.add_row([
            job.id.to_string(),
            job.kind.to_string(),
            job.priority.to_string(),
            output::clock(&job.enqueued_at),
            match (&job.problem, job.sealed_with()) {
                (Some(problem), _) => {
                    let problem = output::plain(problem);
                    format!("{}, unreadable: {problem}", describe(&job.state))
                }
                (None, Some(key)) => {
                    format!("{}, {}", describe(&job.state), output::sealed(&key))
                }
                (None, None) => describe(&job.state),
            },
        ]);
        if shown % ROWS == 0 {
            output::line(&std::mem::replace(&mut table, self::table()).to_string())?;
        }
    }
    if !global.json && shown == 0 {
        let state = args.state.as_deref().unwrap_or("unfinished");
        output::to_stderr(&format!("no {state} jobs"));
    } else if !global.json && shown % ROWS > 0 {
        output::line(&table.to_string())?;
    }
    if is_cut {
        let cursor = last.unwrap_or_default();
        output::to_stderr(&format!(
            "only the first {shown} are shown: go on with --after {cursor}, or show more with --limit"
        ));
    }
    Ok(Exit::Ok)
}
