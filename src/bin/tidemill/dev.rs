//! `tidemill dev`: everything that development needs, in one terminal.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::Value;
use tidemill::embedded::Broker;
use tidemill::{Client, ConnectOptions, Handler, JobError, Worker};

use crate::cli::Global;
use crate::exec::{Assignment, to_result};
use crate::exit::Exit;
use crate::output;
use crate::signals::StopSignals;
use crate::work::{LimitArgs, default_queue, handlers, until_told};

/// A private broker and a worker to develop against, until interrupted.
///
/// The worker knows the kinds echo (gives its payload back), sleep ({"ms": 500}) and fail, and what
/// --exec and --http name.
#[derive(Debug, Args)]
pub(crate) struct DevArgs {
    /// Use this nats-server
    #[arg(long, value_name = "PATH")]
    nats_server: Option<PathBuf>,
    /// The port to listen on, or the next one that is free
    #[arg(long, default_value_t = 4222)]
    port: u16,
    /// Keep jobs in this folder; default: a temporary one
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// Run this command for jobs of this kind
    #[arg(long, value_name = "KIND=COMMAND")]
    exec: Vec<Assignment>,
    /// Post jobs of this kind to this URL
    #[arg(long, value_name = "KIND=URL")]
    http: Vec<Assignment>,
    #[command(flatten)]
    limits: LimitArgs,
}

pub(crate) async fn run(global: &Global, args: DevArgs) -> anyhow::Result<Exit> {
    let keys = global.keys.read()?;
    let mut signals = StopSignals::new()?;
    let mut broker = Broker::builder().port(args.port).supervised().notice(output::to_stderr);
    if let Some(server) = &args.nats_server {
        broker = broker.nats_server(server);
    }
    if let Some(folder) = &args.data {
        broker = broker.data_dir(folder);
    }
    let broker = broker.start().await?;
    let client = Client::connect(ConnectOptions::new(broker.url())?.name("tidemill dev")).await?;
    let client = keys.give(client.with_namespace(global.namespace.clone()));
    let queue = default_queue(&client).await?;
    let mut worker = args.limits.apply(Worker::builder(&client)).queue(queue.as_str());
    for handler in built_in().into_iter().chain(handlers(&args.exec, &args.http)?) {
        worker = worker.handler(args.limits.limit(handler));
    }
    let running = worker.build()?.start().await?;
    welcome(global, &broker)?;
    let ended = until_told(running, &mut signals).await;
    client.close().await?;
    broker.stop().await?;
    ended
}

/// Handlers to try things with.
fn built_in() -> Vec<Handler> {
    let echo = Handler::raw("echo", |payload, _| async move { Ok(to_result(&payload)) });
    let sleep = Handler::raw("sleep", |payload, context| async move {
        let document: Value = serde_json::from_slice(&payload)?;
        let Some(millis) = document["ms"].as_u64() else {
            return Err(JobError::discard("say how long: {\"ms\": 500}"));
        };
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(millis)) => Ok(None),
            () = context.cancellation().cancelled() => Err(JobError::failed("told to stop")),
        }
    });
    let fail = Handler::raw("fail", |payload, _| async move {
        Err(JobError::failed(format!("asked to fail: {}", String::from_utf8_lossy(&payload))))
    });
    vec![echo, sleep, fail]
}

fn welcome(global: &Global, broker: &Broker) -> anyhow::Result<()> {
    let url = broker.url();
    if global.json {
        return output::json(&serde_json::json!({
            "url": url, "monitor": broker.monitor_url(), "data": broker.data_dir(),
            "nats_server_pid": broker.pid(),
        }));
    }
    let ns = &global.namespace;
    output::line(&format!(
        "{} at {url}, data in {}\n\n\
         In another terminal:\n  \
         export NATS_URL={url}\n  \
         tidemill enqueue default echo '{{\"hello\":\"tide\"}}' --wait\n  \
         tidemill enqueue default sleep '{{\"ms\":500}}' --count 100 --priority low\n  \
         tidemill enqueue default fail --max-retries 0; tidemill dead ls\n  \
         tidemill results watch --since 1h\n  \
         nats pub {ns}.jobs.default.high.echo '{{\"from\":\"any NATS client\"}}'\n\n\
         Ctrl-C drains and ends.",
        output::bold("tidemill dev"),
        broker.data_dir().display()
    ))?;
    Ok(())
}
