//! `tidemill enqueue`: one job, the same job many times, or a job for each line.

use std::io::BufRead;
use std::time::Duration;

use anyhow::Context;
use chrono::{DateTime, Utc};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tidemill::{Client, Completion, JobHandle, NewJob, Status};

use crate::cli::{Global, duration, moment};
use crate::exit::{Exit, UsageError};
use crate::options::{self, JobOptions};
use crate::{output, results};

/// Jobs that are put in at once.
const CHUNK: usize = 1000;

const AFTER_HELP: &str = "\
Examples:
  tidemill enqueue default send_email '{\"to\":\"a@example.com\"}' --priority high --wait
  tidemill enqueue default remind '{\"whom\":\"b@example.com\"}' --in 90m
  tidemill enqueue images resize @job.json --count 100
  generate | tidemill enqueue default import - --lines";

/// Put jobs into a queue.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct EnqueueArgs {
    /// The queue; made if it is missing
    queue: String,
    /// The kind of job
    kind: String,
    /// The payload: JSON, @FILE, or - for standard input
    #[arg(default_value = "{}")]
    payload: String,
    #[command(flatten)]
    options: JobOptions,
    /// An id of your own
    #[arg(long, conflicts_with_all = ["count", "lines"])]
    id: Option<String>,
    /// Only one job of this key may be unfinished; with another there, that one is told
    #[arg(long, value_name = "KEY", conflicts_with_all = ["id", "lines", "count"])]
    unique: Option<String>,
    /// The key stays taken that long after its job is done
    #[arg(long, value_name = "TIME", value_parser = duration, requires = "unique")]
    unique_for: Option<Duration>,
    /// Put it in place of one of its key that has not begun
    #[arg(long, requires = "unique", conflicts_with = "count")]
    replace: bool,
    /// Run it that much later
    #[arg(long = "in", value_name = "TIME", value_parser = duration, conflicts_with = "at", allow_hyphen_values = true)]
    delay: Option<Duration>,
    /// Run it at this time: 2026-12-01T09:00:00+01:00
    #[arg(long, value_name = "RFC3339", value_parser = moment)]
    at: Option<DateTime<Utc>>,
    /// Do not run it at all if it has not started by this time
    #[arg(long, value_name = "RFC3339", value_parser = moment)]
    expires_at: Option<DateTime<Utc>>,
    /// Enqueue the same payload that many times
    #[arg(long, default_value_t = 1)]
    count: u64,
    /// Take each line of the input as the payload of a job of its own (NDJSON)
    #[arg(long, conflicts_with = "count")]
    lines: bool,
    /// All lines or none, in one batch of at most 1000
    #[arg(long, requires = "lines")]
    atomic: bool,
    /// Wait until the job has ended, at most that long if a time is given
    #[arg(long, value_name = "TIME", num_args = 0..=1, value_parser = duration, conflicts_with_all = ["count", "lines"])]
    #[expect(clippy::option_option, reason = "absent, without a time, with one")]
    wait: Option<Option<Duration>>,
    /// Only check it and tell what would be done, without a broker
    #[arg(long)]
    dry_run: bool,
}

pub(crate) async fn run(global: &Global, args: EnqueueArgs) -> anyhow::Result<Exit> {
    if args.lines {
        let jobs = args.lines()?;
        if args.dry_run {
            return would(global, &args, jobs);
        }
        let client = global.client().await?;
        return match args.atomic {
            true => all_or_none(global, &client, jobs).await,
            false => bulk(global, &client, jobs, None).await,
        };
    }
    let payload = options::read_payload(&args.payload)?;
    args.options.check_json(&payload, "the payload")?;
    let mut jobs = (0..args.count).map(|_| args.job(payload.clone()));
    if args.dry_run {
        return would(global, &args, jobs);
    }
    let client = global.client().await?;
    if args.count != 1 {
        return bulk(global, &client, jobs, Some(args.count)).await;
    }
    let Some(job) = jobs.next().transpose()? else { return Ok(Exit::Ok) };
    let handle = match args.replace {
        true => client.enqueue_replacing(job).await?,
        false => client.enqueue(job).await?,
    };
    match args.wait {
        None => {
            output::enqueued(global.json, &handle)?;
            Ok(Exit::Ok)
        }
        Some(patience) => wait(global, &handle, patience).await,
    }
}

impl EnqueueArgs {
    fn job(&self, payload: Vec<u8>) -> anyhow::Result<NewJob> {
        let mut job = self.options.job(&self.queue, &self.kind, payload)?;
        if let Some(id) = &self.id {
            job = job.id(id);
        }
        match (&self.unique, self.unique_for) {
            (Some(key), Some(period)) => job = job.unique_for(key, period),
            (Some(key), None) => job = job.unique(key),
            (None, _) => {}
        }
        if let Some(delay) = self.delay {
            job = job.delay(delay);
        }
        if let Some(time) = self.at {
            job = job.run_at(time);
        }
        if let Some(time) = self.expires_at {
            job = job.expires_at(time);
        }
        Ok(job)
    }

    /// A job for each line of the input.
    fn lines(&self) -> anyhow::Result<impl Iterator<Item = anyhow::Result<NewJob>>> {
        let reader: Box<dyn BufRead> = match self.payload.strip_prefix('@') {
            Some(path) => {
                let file =
                    std::fs::File::open(path).with_context(|| format!("cannot read {path}"))?;
                Box::new(std::io::BufReader::new(file))
            }
            None if self.payload == "-" => Box::new(std::io::stdin().lock()),
            None => {
                return Err(UsageError(
                    "--lines reads a file (@FILE) or - for standard input".into(),
                )
                .into());
            }
        };
        Ok(reader
            .split(b'\n')
            .enumerate()
            .filter(|(_, line)| line.as_ref().map_or(true, |line| !line.trim_ascii().is_empty()))
            .map(|(index, line)| {
                let line = line.context("cannot read the input")?;
                self.options.check_json(&line, &format!("line {}", index + 1))?;
                self.job(line)
            }))
    }
}

/// Checks jobs and tells what would be done with them.
fn would(
    global: &Global,
    args: &EnqueueArgs,
    jobs: impl Iterator<Item = anyhow::Result<NewJob>>,
) -> anyhow::Result<Exit> {
    let mut count = 0u64;
    for job in jobs {
        job?.check()?;
        count += 1;
    }
    if global.json {
        output::json(&json!({
            "enqueued": count, "queue": args.queue, "kind": args.kind, "dry_run": true,
        }))?;
    } else {
        let (kind, queue) = (&args.kind, &args.queue);
        output::line(&format!("would be enqueued: {count} jobs of kind {kind} in queue {queue}"))?;
    }
    Ok(Exit::Ok)
}

async fn all_or_none(
    global: &Global,
    client: &Client,
    jobs: impl Iterator<Item = anyhow::Result<NewJob>>,
) -> anyhow::Result<Exit> {
    let jobs: Vec<NewJob> = jobs.collect::<anyhow::Result<_>>()?;
    let stored = client.enqueue_all(jobs).await?.len();
    if global.json {
        output::json(&json!({ "enqueued": stored }))?;
    } else {
        output::line(&format!("enqueued {stored} jobs, all together"))?;
    }
    Ok(Exit::Ok)
}

/// Puts many jobs in, a chunk at a time, and says how many.
async fn bulk(
    global: &Global,
    client: &Client,
    mut jobs: impl Iterator<Item = anyhow::Result<NewJob>>,
    total: Option<u64>,
) -> anyhow::Result<Exit> {
    let bar = progress(global, total);
    let started = std::time::Instant::now();
    let mut stored = 0u64;
    let mut first_error = None;
    while first_error.is_none() {
        let mut chunk = Vec::with_capacity(CHUNK);
        while chunk.len() < CHUNK {
            match jobs.next() {
                Some(Ok(job)) => chunk.push(job),
                Some(Err(error)) => {
                    first_error = Some(error);
                    break;
                }
                None => break,
            }
        }
        if chunk.is_empty() {
            break;
        }
        for outcome in client.enqueue_many(chunk).await {
            match outcome {
                Ok(_) => stored += 1,
                Err(error) => drop(first_error.get_or_insert(error.into())),
            }
        }
        bar.set_position(stored);
    }
    bar.finish_and_clear();
    let seconds = started.elapsed().as_secs_f64();
    if global.json {
        output::json(&json!({ "enqueued": stored, "seconds": seconds }))?;
    } else {
        output::line(&format!("enqueued {stored} jobs in {seconds:.2} s"))?;
    }
    match first_error {
        None => Ok(Exit::Ok),
        Some(error) => Err(error.context(format!("stopped after {stored} jobs were enqueued"))),
    }
}

fn progress(global: &Global, total: Option<u64>) -> ProgressBar {
    if global.quiet || !output::is_watched() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match total {
        Some(total) => {
            (ProgressBar::new(total), "{bar:30} {pos}/{len} jobs, {per_sec}, {eta} left")
        }
        None => (ProgressBar::new_spinner(), "{spinner} {pos} jobs, {per_sec}"),
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

async fn wait(
    global: &Global,
    handle: &JobHandle,
    patience: Option<Duration>,
) -> anyhow::Result<Exit> {
    let completion: Completion = match patience {
        None => handle.completion().await?,
        Some(patience) => handle.completion_within(patience).await?,
    };
    results::tell(global, &completion)?;
    Ok(if completion.status == Status::Done { Exit::Ok } else { Exit::JobFailed })
}
