//! `tidemill dead`: dead letters, listed, shown, retried, discarded.

use std::pin::pin;

use clap::{Args, Subcommand};
use futures_util::{StreamExt, TryStreamExt};
use serde_json::{Value, json};
use tidemill::{AttemptRecord, Client, DeadFilter, DeadLetter, JobId, Kind, Queue, Unvouched};

use crate::cli::Global;
use crate::exit::{Exit, UsageError};
use crate::{ask, output};

/// Look at dead letters: jobs that will not be tried again.
#[derive(Debug, Args)]
pub(crate) struct DeadArgs {
    #[command(subcommand)]
    command: DeadCommand,
}

#[derive(Debug, Subcommand)]
enum DeadCommand {
    /// List dead letters, the oldest first
    Ls(LsArgs),
    /// Show one: payload, headers, all attempts with errors
    Show(ShowArgs),
    /// Put jobs back into their lanes, with all attempts, their history kept
    Retry(ManyArgs),
    /// Delete dead letters for good
    Discard(ManyArgs),
}

#[derive(Debug, Args)]
struct FilterArgs {
    /// The queue
    #[arg(long, default_value = "default")]
    queue: Queue,
    /// Only this kind
    #[arg(long)]
    kind: Option<Kind>,
    /// Only those buried for this reason, such as attempts_exhausted
    #[arg(long)]
    reason: Option<String>,
}

#[derive(Debug, Args)]
struct LsArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Show at most that many
    #[arg(short = 'n', long, default_value_t = 50)]
    limit: usize,
}

#[derive(Debug, Args)]
struct ShowArgs {
    /// The job's id
    id: JobId,
    /// The queue
    #[arg(long, default_value = "default")]
    queue: Queue,
}

#[derive(Debug, Args)]
struct ManyArgs {
    /// Jobs' ids; without any, --all is needed
    ids: Vec<JobId>,
    #[command(flatten)]
    filter: FilterArgs,
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

impl FilterArgs {
    fn filter(&self) -> DeadFilter {
        let mut filter = DeadFilter::queue(self.queue.clone());
        filter.kind.clone_from(&self.kind);
        filter.reason.clone_from(&self.reason);
        filter
    }
}

pub(crate) async fn run(global: &Global, args: DeadArgs) -> anyhow::Result<Exit> {
    let client = global.client().await?;
    match args.command {
        DeadCommand::Ls(args) => list(global, &client, &args).await,
        DeadCommand::Show(args) => show(global, &client, &args).await,
        DeadCommand::Retry(args) => many(global, &client, &args, Verb::Retry).await,
        DeadCommand::Discard(args) => many(global, &client, &args, Verb::Discard).await,
    }
}

async fn list(global: &Global, client: &Client, args: &LsArgs) -> anyhow::Result<Exit> {
    let letters = client.dead_letters(args.filter.filter()).take(args.limit.saturating_add(1));
    let mut letters: Vec<DeadLetter> = letters.try_collect().await?;
    let is_cut = letters.len() > args.limit;
    letters.truncate(args.limit);
    if global.json {
        for letter in &letters {
            output::json(&summary(letter))?;
        }
        return Ok(Exit::Ok);
    }
    if letters.is_empty() {
        output::to_stderr("no dead letters");
        return Ok(Exit::Ok);
    }
    let mut table =
        output::table(&["id", "kind", "priority", "buried", "attempts", "reason", "error"]);
    for letter in &letters {
        let error = letter.info.errors.last().map(|error| error.message.as_str());
        table.add_row([
            letter.id.to_string(),
            letter.kind.to_string(),
            letter.info.priority.to_string(),
            letter.info.at.with_timezone(&chrono::Utc).format("%Y-%m-%d %H:%M:%SZ").to_string(),
            letter.info.attempts.to_string(),
            letter.info.reason.clone(),
            error.and_then(|error| error.lines().next()).unwrap_or_default().to_owned(),
        ]);
    }
    output::line(&table.to_string())?;
    if is_cut {
        output::to_stderr(&format!("only the first {} are shown; more with --limit", args.limit));
    }
    Ok(Exit::Ok)
}

fn summary(letter: &DeadLetter) -> Value {
    let mut shown = json!({
        "id": letter.id, "run": letter.run, "seq": letter.sequence, "queue": letter.queue,
        "kind": letter.kind, "info": letter.info,
    });
    if let Some(key) = letter.sealed_with() {
        shown["sealed_with"] = json!(key);
    }
    shown
}

async fn show(global: &Global, client: &Client, args: &ShowArgs) -> anyhow::Result<Exit> {
    let letter = client.dead_letter(&args.queue, &args.id).await?;
    let attempts = client.attempts_of(&letter).await?;
    if global.json {
        let headers: Vec<(&str, &str)> = letter.headers.iter().collect();
        let mut shown = summary(&letter);
        shown["headers"] = json!(headers);
        shown["payload"] = match letter.open(client) {
            Ok(payload) => output::payload(&payload),
            Err(_) => Value::Null,
        };
        shown["attempts"] = json!(attempts);
        output::json(&shown)?;
        return Ok(Exit::Ok);
    }
    output::field("id", letter.id.as_str())?;
    output::field("run", letter.run.as_str())?;
    output::field("kind", letter.kind.as_str())?;
    output::field("queue", &format!("{} ({})", letter.queue, letter.info.priority))?;
    output::field("enqueued", &output::moment(&letter.info.enqueued_at))?;
    output::field("buried", &output::moment(&letter.info.at))?;
    output::field("reason", &letter.info.reason)?;
    if let Some(claimed) = &letter.info.unvouched {
        let Unvouched { id, run, .. } = claimed;
        output::field("claims", &format!("to be run {run} of job {id}, for which nobody vouches"))?;
    }
    for (name, value) in letter.headers.iter() {
        output::field("header", &format!("{name}: {value}"))?;
    }
    for attempt in &attempts {
        output::field("attempt", &describe(attempt))?;
    }
    if attempts.is_empty() {
        for error in &letter.info.errors {
            output::field("error", &error.message)?;
        }
    }
    output::shown_or_sealed(letter.sealed_with(), letter.open(client))?;
    Ok(Exit::Ok)
}

pub(crate) fn describe(attempt: &AttemptRecord) -> String {
    let error = attempt.error.as_ref().map_or(String::new(), |error| {
        let backtrace = error.backtrace.as_deref().unwrap_or_default();
        let backtrace: String =
            backtrace.lines().map(|line| format!("\n           {line}")).collect();
        format!(": {}{}", error.message, output::dim(&backtrace))
    });
    let AttemptRecord { attempt: number, event, at, retry_at, worker, .. } = attempt;
    let at = output::moment(at);
    let again = retry_at.map_or(String::new(), |at| format!(", again at {}", output::clock(&at)));
    format!("{number} {} at {at} by {worker}{again}{error}", event.as_str())
}

#[derive(Clone, Copy)]
enum Verb {
    Retry,
    Discard,
}

impl Verb {
    const fn infinitive(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Discard => "discard",
        }
    }

    const fn past(self) -> &'static str {
        match self {
            Self::Retry => "retried",
            Self::Discard => "discarded",
        }
    }
}

async fn many(
    global: &Global,
    client: &Client,
    args: &ManyArgs,
    verb: Verb,
) -> anyhow::Result<Exit> {
    if args.ids.is_empty() && !args.all {
        let message = format!("name the jobs to {}, or say --all", verb.infinitive());
        return Err(UsageError(message).into());
    }
    if !args.ids.is_empty() {
        for id in &args.ids {
            let letter = client.dead_letter(&args.filter.queue, id).await?;
            one(global, client, &letter, verb, args.dry_run).await?;
        }
        return Ok(Exit::Ok);
    }
    let count = client.dead_letters(args.filter.filter()).count().await;
    if !args.dry_run && !args.yes && !ask::confirmed(verb.infinitive(), count, "dead letters")? {
        output::to_stderr("nothing was done");
        return Ok(Exit::Interrupted);
    }
    let mut letters = pin!(client.dead_letters(args.filter.filter()).take(count));
    while let Some(letter) = letters.try_next().await? {
        one(global, client, &letter, verb, args.dry_run).await?;
    }
    Ok(Exit::Ok)
}

async fn one(
    global: &Global,
    client: &Client,
    letter: &DeadLetter,
    verb: Verb,
    dry_run: bool,
) -> anyhow::Result<()> {
    let mut run = None;
    match verb {
        _ if dry_run => {}
        Verb::Retry => run = Some(client.retry_dead(letter).await?.run().clone()),
        Verb::Discard => drop(client.discard_dead(letter).await?),
    }
    if global.json {
        return output::json(&json!({
            "id": letter.id, "done": verb.past(), "dry_run": dry_run, "run": run,
        }));
    }
    let would = if dry_run { "would be " } else { "" };
    Ok(output::line(&format!("{would}{} {} {}", verb.past(), letter.id, letter.kind))?)
}
