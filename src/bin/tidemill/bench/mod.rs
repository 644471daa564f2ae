//! `tidemill bench`: how fast a broker, this program and this machine are together.

mod drain;
mod enqueue;
mod figures;
mod latency;
mod load;

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, ValueEnum};
use tidemill::embedded::Broker;
use tidemill::{Client, ConnectOptions, DEFAULT_CONCURRENCY, Queue};

use self::figures::Meter;
use crate::cli::Global;
use crate::exit::{Exit, UsageError};
use crate::output;
use crate::signals::StopSignals;

const AFTER_HELP: &str = "\
Without scenarios it runs drain, enqueue and latency. Unless --connected is given it starts a private
broker in a temporary folder, with the defaults of nats-server. On a broker of yours it makes the queue
that --queue names, and removes it in the end.

Latencies are counted from when a job should have been enqueued, so that what a slow moment held up is
counted as slow too.";

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
    /// How many jobs run at once
    #[arg(short, long, default_value_t = DEFAULT_CONCURRENCY)]
    concurrency: usize,
    /// Measure the broker that the connection flags name, in place of a private one
    #[arg(long)]
    connected: bool,
    /// The queue to make, fill and remove
    #[arg(long, default_value = "bench")]
    queue: Queue,
    /// Use this nats-server for the private broker
    #[arg(long, value_name = "PATH", conflicts_with = "connected")]
    nats_server: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// No-op jobs that wait in the queue before the worker starts
    Drain,
    /// One awaited after the other, and many in flight
    Enqueue,
    /// From enqueue to handler start and to completion, with an idle worker
    Latency,
}

/// Where and what to measure.
struct Bench<'a> {
    args: &'a BenchArgs,
    client: Client,
    queue: Queue,
    meter: Meter,
}

pub(crate) async fn run(global: &Global, args: BenchArgs) -> anyhow::Result<Exit> {
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
    if client.queues().await?.contains(&args.queue) {
        let queue = &args.queue;
        return Err(UsageError(format!(
            "queue {queue} is there already: name another by --queue, or remove it by tidemill \
             queue rm {queue}"
        ))
        .into());
    }
    let meter = Meter::new(broker.as_ref().and_then(Broker::pid));
    let bench = Bench { args: &args, client: client.clone(), queue: args.queue.clone(), meter };
    let measured = tokio::select! {
        measured = bench.measure(global) => measured.map(|()| Exit::Ok),
        () = signals.told() => Ok(Exit::Interrupted),
    };
    if client.queues().await?.contains(&args.queue) {
        client.remove_queue(&args.queue).await?;
    }
    client.close().await?;
    if let Some(broker) = broker {
        broker.stop().await?;
    }
    measured
}

async fn private_broker(args: &BenchArgs) -> anyhow::Result<Broker> {
    let mut broker = Broker::builder().notice(output::to_stderr);
    if let Some(server) = &args.nats_server {
        broker = broker.nats_server(server);
    }
    broker.start().await.context("cannot start a private broker")
}

impl Bench<'_> {
    async fn measure(&self, global: &Global) -> anyhow::Result<()> {
        let scenarios = match self.args.scenarios.as_slice() {
            [] => &[Scenario::Drain, Scenario::Enqueue, Scenario::Latency],
            scenarios => scenarios,
        };
        let mut all = Vec::new();
        for scenario in scenarios {
            self.anew().await?;
            let measured = match scenario {
                Scenario::Drain => drain::measure(self).await,
                Scenario::Enqueue => enqueue::measure(self).await,
                Scenario::Latency => latency::measure(self).await,
            };
            for figures in measured? {
                if global.json {
                    output::json(&figures)?;
                }
                all.push(figures);
            }
        }
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
