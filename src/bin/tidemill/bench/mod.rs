//! `tidemill bench`: how fast a broker, this program and this machine are together.

mod backlog;
mod child;
mod drain;
mod enqueue;
mod figures;
mod latency;
mod load;
mod meter;
mod priority;
mod retry_storm;
mod scale;
mod steady;
mod timers;

use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use tidemill::embedded::Broker;
use tidemill::{Client, ConnectOptions, Queue, QueueConfig};
use tokio_util::task::AbortOnDropHandle;

use self::figures::Figures;
use self::load::Left;
use self::meter::Meter;
use crate::cli::{Global, count};
use crate::exit::{Exit, UsageError};
use crate::output;
use crate::signals::StopSignals;

const AFTER_HELP: &str = "\
Without scenarios it runs drain, enqueue and latency. Unless --connected is given it starts a private
broker in a temporary folder, with the defaults of nats-server. On a broker of yours it makes the queue
that --queue names, and removes it in the end.

Rates are of all jobs from the first to the last; CPU and memory are those of this program (in scale, of
all workers) and of the broker where it is private. Memory is the most that was seen. In steady,
latencies are counted from when a job should have been enqueued, so that what a slow moment held up is
counted as slow too.";

/// What a job takes on the broker's disk beside its payload, at most.
const OVERHEAD_BYTES: u64 = 512;

/// Measure how fast jobs go through.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct BenchArgs {
    /// What to measure
    #[arg(value_enum)]
    scenarios: Vec<Scenario>,
    /// How many jobs
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(100..=100_000_000))]
    jobs: u64,
    /// Bytes of a payload
    #[arg(long, default_value_t = 256, value_name = "BYTES")]
    payload: usize,
    /// How many jobs a worker runs at once
    #[arg(short, long, default_value_t = 50)]
    concurrency: usize,
    /// Threads that drive clients and workers, as of `work`; a program of your own has what its runtime has
    #[arg(long, default_value_t = NonZeroUsize::MIN, value_name = "COUNT", value_parser = count)]
    pub(crate) threads: NonZeroUsize,
    /// drain, backlog: keep no completions of jobs that are done
    #[arg(long)]
    no_completions: bool,
    /// steady: how many jobs come in a second
    #[arg(long, default_value_t = 10_000, value_name = "PER_SECOND", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    rate: u64,
    /// backlog: how many jobs wait behind those that are measured
    #[arg(long, value_delimiter = ',', default_values_t = [10_000, 1_000_000, 10_000_000])]
    waiting: Vec<u64>,
    /// scale: how many worker processes
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4, 8])]
    processes: Vec<u64>,
    /// Copies of each stream: 1, 3 or 5
    #[arg(long, default_value_t = 1)]
    replicas: u8,
    /// Let the private broker write every message through to the disk before it confirms it
    #[arg(long, conflicts_with = "connected")]
    sync_always: bool,
    /// Measure the broker that the connection flags name, in place of a private one
    #[arg(long)]
    connected: bool,
    /// The queue to make, fill and remove
    #[arg(long, default_value = "bench")]
    queue: Queue,
    /// Use this nats-server for the private broker
    #[arg(long, value_name = "PATH", conflicts_with = "connected")]
    nats_server: Option<PathBuf>,
    /// Tell what this process uses as the broker's
    #[arg(long, value_name = "PID", requires = "connected")]
    broker_pid: Option<u32>,
    /// Be one of the worker processes of scale
    #[arg(long, hide = true)]
    as_worker: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// No-op jobs that wait in the queue before the worker starts
    Drain,
    /// One awaited after the other, many in flight, and many by one call
    Enqueue,
    /// From enqueue to handler start and to completion, with an idle worker
    Latency,
    /// Jobs come in at a rate and are worked: latencies, and whether memory grows
    Steady,
    /// From enqueue to handler start of critical jobs, idle and under a flood of low ones
    Priority,
    /// Jobs that all fail once
    RetryStorm,
    /// The rate of draining with few, many and very many jobs behind
    Backlog,
    /// What more worker processes bring, with jobs of 5 ms
    Scale,
    /// Timers that are due at once: how late their jobs start
    Timers,
}

impl Scenario {
    async fn measure(self, bench: &Bench) -> anyhow::Result<Vec<Figures>> {
        match self {
            Self::Drain => drain::measure(bench).await,
            Self::Enqueue => enqueue::measure(bench).await,
            Self::Latency => latency::measure(bench).await,
            Self::Steady => steady::measure(bench).await,
            Self::Priority => priority::measure(bench).await,
            Self::RetryStorm => retry_storm::measure(bench).await,
            Self::Backlog => backlog::measure(bench).await,
            Self::Scale => scale::measure(bench).await,
            Self::Timers => timers::measure(bench).await,
        }
    }
}

/// Where and what to measure.
struct Bench {
    args: BenchArgs,
    client: Client,
    queue: Queue,
    meter: Meter,
    /// Of a private broker.
    url: Option<String>,
    bar: ProgressBar,
    left: Left,
}

pub(crate) async fn run(global: &Global, args: BenchArgs) -> anyhow::Result<Exit> {
    if args.as_worker {
        child::work(&global.client().await?, &args).await?;
        return Ok(Exit::Ok);
    }
    let mut signals = StopSignals::new()?;
    let broker = match args.connected {
        true => None,
        false => Some(private_broker(&args).await?),
    };
    let client = match &broker {
        None => global.client().await?,
        Some(broker) => {
            let options = ConnectOptions::new(broker.url())?.name("tidemill bench");
            Client::connect(options).await?.with_namespace(global.namespace.clone())
        }
    };
    let client = client.with_queue_config(args.queue_config());
    if client.queues().await?.contains(&args.queue) {
        let queue = &args.queue;
        return Err(UsageError(format!(
            "queue {queue} is there already: name another by --queue, or remove it by tidemill \
             queue rm {queue}"
        ))
        .into());
    }
    let (queue, bar, left) = (args.queue.clone(), progress(global), Left::default());
    let bench = Bench {
        client: client.clone(),
        queue: queue.clone(),
        meter: Meter::new(args.broker_pid.or(broker.as_ref().and_then(Broker::pid))),
        url: broker.as_ref().map(|broker| broker.url().to_owned()),
        bar: bar.clone(),
        left: left.clone(),
        args,
    };
    let global = global.clone();
    // A task, as the work of most programs is: the main thread would have to be woken for each answer.
    let mut measuring =
        AbortOnDropHandle::new(tokio::spawn(async move { bench.measure(&global).await }));
    let measured = tokio::select! {
        measured = &mut measuring => match measured {
            Ok(measured) => measured.map(|()| Exit::Ok),
            Err(panic) => Err(panic.into()),
        },
        () = signals.told() => {
            measuring.abort();
            let _ = measuring.await;
            Ok(Exit::Interrupted)
        }
    };
    bar.finish_and_clear();
    left.drain().await;
    if client.queues().await?.contains(&queue) {
        client.remove_queue(&queue).await?;
    }
    client.close().await?;
    if let Some(broker) = broker {
        broker.stop().await?;
    }
    measured
}

impl BenchArgs {
    /// The defaults, with room for as many jobs as will wait.
    fn queue_config(&self) -> QueueConfig {
        let mut config = QueueConfig::default();
        config.replicas = self.replicas;
        let waiting = match self.scenarios.contains(&Scenario::Backlog) {
            true => self.waiting.iter().max().copied().unwrap_or_default(),
            false => 0,
        };
        let most = self.jobs.saturating_add(waiting);
        let bytes = most.saturating_mul(self.payload as u64 + OVERHEAD_BYTES);
        config.max_jobs = config.max_jobs.max(most);
        config.max_jobs_bytes = config.max_jobs_bytes.max(bytes);
        config
    }
}

async fn private_broker(args: &BenchArgs) -> anyhow::Result<Broker> {
    let mut broker = Broker::builder().notice(output::to_stderr);
    if let Some(server) = &args.nats_server {
        broker = broker.nats_server(server);
    }
    if args.sync_always {
        broker = broker.jetstream_config("sync_interval: always");
    }
    broker.start().await.context("cannot start a private broker")
}

fn progress(global: &Global) -> ProgressBar {
    if global.quiet || global.json || !output::is_watched() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0);
    match ProgressStyle::with_template("{msg:12} {bar:30} {pos}/{len} jobs, {per_sec}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

impl Bench {
    async fn measure(&self, global: &Global) -> anyhow::Result<()> {
        let scenarios = match self.args.scenarios.as_slice() {
            [] => &[Scenario::Drain, Scenario::Enqueue, Scenario::Latency],
            scenarios => scenarios,
        };
        let mut all = Vec::new();
        for scenario in scenarios {
            self.anew().await?;
            let name = scenario.to_possible_value();
            self.bar.set_message(name.map(|name| name.get_name().to_owned()).unwrap_or_default());
            for figures in scenario.measure(self).await? {
                if global.json {
                    output::json(&figures)?;
                }
                all.push(figures);
            }
        }
        self.bar.finish_and_clear();
        match global.json {
            true => Ok(()),
            false => Ok(output::line(&figures::table(&all))?),
        }
    }

    /// Empties the queue, or makes it.
    async fn anew(&self) -> anyhow::Result<()> {
        if self.client.queues().await?.contains(&self.queue) {
            self.client.remove_queue(&self.queue).await?;
        }
        self.client.ensure_queue(&self.queue).await?;
        Ok(())
    }
}
