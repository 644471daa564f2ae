//! `tidemill setup`: make queues, or say how they differ.

use std::time::Duration;

use clap::Args;
use serde_json::json;
use tidemill::{Drift, Queue, QueueConfig, Storage};

use crate::cli::{Global, duration};
use crate::exit::Exit;
use crate::output;

/// Make queues' streams and consumers where they are missing, and tell where they differ from what
/// is asked for here. What is there is not changed, unless --apply says so.
#[derive(Debug, Args)]
pub(crate) struct SetupArgs {
    /// Queues to set up
    #[arg(default_value = "default")]
    queues: Vec<Queue>,
    /// Copies of each stream in a cluster: 1, 3 or 5
    #[arg(long, default_value_t = 1)]
    replicas: u8,
    /// Keep the queue in memory instead of on disk
    #[arg(long)]
    memory: bool,
    /// How long a worker may be silent about a job before another gets it
    #[arg(long, value_parser = duration, default_value = "30s")]
    ack_wait: Duration,
    /// Unfinished jobs that the queue holds; more are refused
    #[arg(long)]
    max_jobs: Option<u64>,
    /// Bytes of unfinished jobs that the queue holds; more are refused
    #[arg(long, value_name = "BYTES")]
    max_bytes: Option<u64>,
    /// How long completions are kept
    #[arg(long, value_parser = duration, default_value = "7d")]
    results_age: Duration,
    /// Completions that are kept
    #[arg(long)]
    max_results: Option<u64>,
    /// Bytes of completions that are kept
    #[arg(long, value_name = "BYTES")]
    max_results_bytes: Option<u64>,
    /// How long dead letters are kept
    #[arg(long, value_parser = duration, default_value = "90d")]
    dead_age: Duration,
    /// Dead letters that are kept; without room for more, jobs wait to be buried
    #[arg(long)]
    max_dead: Option<u64>,
    /// Bytes of dead letters that are kept
    #[arg(long, value_name = "BYTES")]
    max_dead_bytes: Option<u64>,
    /// Make the consumers that are there what tidemill relies on, with jobs under way; streams, limits
    /// and ages stay
    #[arg(long, conflicts_with = "dry_run")]
    apply: bool,
    /// Only tell what would be made
    #[arg(long)]
    dry_run: bool,
}

impl SetupArgs {
    fn config(&self) -> QueueConfig {
        let mut config = QueueConfig::default();
        config.replicas = self.replicas;
        config.storage = if self.memory { Storage::Memory } else { Storage::File };
        config.ack_wait = self.ack_wait;
        config.results_age = self.results_age;
        config.dead_age = self.dead_age;
        config.max_jobs = self.max_jobs.unwrap_or(config.max_jobs);
        config.max_jobs_bytes = self.max_bytes.unwrap_or(config.max_jobs_bytes);
        config.max_results = self.max_results.unwrap_or(config.max_results);
        config.max_results_bytes = self.max_results_bytes.unwrap_or(config.max_results_bytes);
        config.max_dead = self.max_dead.unwrap_or(config.max_dead);
        config.max_dead_bytes = self.max_dead_bytes.unwrap_or(config.max_dead_bytes);
        config
    }
}

pub(crate) async fn run(global: &Global, args: SetupArgs) -> anyhow::Result<Exit> {
    let client = global.client().await?.with_queue_config(args.config());
    for queue in &args.queues {
        let mut report = match args.dry_run {
            true => client.plan_queue(queue).await?,
            false => client.ensure_queue(queue).await?,
        };
        let mut mended = Vec::new();
        if args.apply {
            mended = client.mend_queue(queue).await?;
            report.drift = client.plan_queue(queue).await?.drift;
        }
        let drift: Vec<String> = report.drift.iter().map(ToString::to_string).collect();
        if global.json {
            output::json(&json!({
                "queue": queue, "created": report.created, "mended": mended, "drift": drift,
                "dry_run": args.dry_run,
            }))?;
            continue;
        }
        for made in &report.created {
            let done = if args.dry_run { "would be made:" } else { "made" };
            output::line(&format!("{done} {made}"))?;
        }
        for place in &mended {
            output::line(&format!("mended {place}"))?;
        }
        for drift in &drift {
            output::line(&format!("differs, left as it is: {drift}"))?;
        }
        let is_relied_on = |drift: &Drift| drift.place.contains('/') && !drift.is_choice();
        if report.drift.iter().any(is_relied_on) {
            let apply = format!("tidemill setup {queue} --apply");
            output::line(&format!("`{apply}` makes the consumers what tidemill relies on"))?;
        }
        if report.created.is_empty() && mended.is_empty() && drift.is_empty() {
            output::line(&format!("queue {queue} is there, as asked for"))?;
        }
    }
    Ok(Exit::Ok)
}
