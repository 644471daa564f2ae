//! `tidemill demo`: the whole life of thousands of jobs on a real nats-server, in seconds.

mod account;
mod report;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use tidemill::embedded::Broker;
use tidemill::{
    Backoff, Client, ConnectOptions, Handler, Job, JobContext, JobError, NewJob, Priority, Queue,
    RetryPolicy, Running, Worker,
};

use self::account::{Account, Expected};
use crate::cli::Global;
use crate::exit::Exit;
use crate::output;
use crate::signals::StopSignals;

/// Jobs that run at once.
const CONCURRENCY: usize = 32;

/// How long all jobs may take before something must be wrong.
const PATIENCE: Duration = Duration::from_secs(300);

/// How often progress is told where nobody watches a terminal.
const TELL_EVERY: Duration = Duration::from_secs(1);
const DRAW_EVERY: Duration = Duration::from_millis(100);

/// See it run: a private broker, jobs of all priorities (some slow, some that fail and are retried,
/// some that always fail and are buried), live progress, and a summary in which every job is
/// accounted for.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// How many jobs
    #[arg(long, default_value_t = 6000, value_parser = clap::value_parser!(u64).range(40..=1_000_000))]
    jobs: u64,
    /// Use this nats-server
    #[arg(long, value_name = "PATH")]
    nats_server: Option<PathBuf>,
}

/// One job of the demo.
#[derive(Debug, Serialize, Deserialize)]
struct Piece {
    n: u64,
    how: Manner,
}

impl Job for Piece {
    const KIND: &'static str = "demo";
    const QUEUE: &'static str = "demo";
}

/// How a job of the demo goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Manner {
    Quick,
    Slow,
    /// Fails the first time.
    Flaky,
    /// Fails each time.
    Doomed,
}

impl Manner {
    /// Of 40 jobs, 4 are slow, 3 are flaky and 1 is doomed.
    fn of(n: u64) -> Self {
        match (n / 4) % 40 {
            5 | 15 | 25 | 35 => Self::Slow,
            8 | 18 | 28 => Self::Flaky,
            31 => Self::Doomed,
            _ => Self::Quick,
        }
    }

    fn takes(self) -> Duration {
        match self {
            Self::Slow => Duration::from_millis(60),
            Self::Quick | Self::Flaky | Self::Doomed => Duration::from_millis(6),
        }
    }

    fn expected(self) -> Expected {
        match self {
            Self::Doomed => Expected::Buried,
            Self::Quick | Self::Slow | Self::Flaky => Expected::Done,
        }
    }
}

pub(crate) async fn run(global: &Global, args: DemoArgs) -> anyhow::Result<Exit> {
    let mut signals = StopSignals::new()?;
    let mut broker = Broker::builder().notice(output::to_stderr);
    if let Some(server) = &args.nats_server {
        broker = broker.nats_server(server);
    }
    let broker = broker.start().await?;
    let client = Client::connect(ConnectOptions::new(broker.url())?.name("tidemill demo")).await?;
    let ended = show(global, &client, broker.url(), args.jobs, &mut signals).await;
    client.close().await?;
    broker.stop().await?;
    ended
}

async fn show(
    global: &Global,
    client: &Client,
    url: &str,
    jobs: u64,
    signals: &mut StopSignals,
) -> anyhow::Result<Exit> {
    let (major, minor, patch) = client.server_version();
    let say = |text: &str| {
        if !global.quiet {
            output::to_stderr(text);
        }
    };
    say(&format!("nats-server {major}.{minor}.{patch} of our own runs at {url}"));
    let account = Arc::new(Account::default());
    let started = Instant::now();
    tokio::select! {
        enqueued = enqueue(client, &account, jobs) => enqueued?,
        () = signals.told() => return Ok(Exit::Interrupted),
    }
    let seconds = started.elapsed().as_secs_f64();
    say(&format!("{jobs} jobs of four priorities are in the queue, after {seconds:.2} s"));
    let queue = Queue::new(Piece::QUEUE)?;
    let following = account::follow(client, &queue, &account);
    say(&format!("a worker with {CONCURRENCY} slots takes them weighted-first, 8:4:2:1"));
    let worked = Instant::now();
    let running = work(client, &account).await?;
    let shown = tokio::select! {
        () = watch(global, &account, jobs) => Ok(None),
        failed = following => failed.map(|()| None),
        () = signals.told() => Ok(Some(Exit::Interrupted)),
    };
    let elapsed = worked.elapsed();
    running.drain().await;
    if let Some(exit) = shown? {
        return Ok(exit);
    }
    let verdict = account.check(client, &queue).await?;
    report::tell(global, &account, &verdict, jobs, elapsed)?;
    Ok(if verdict.is_sound() { Exit::Ok } else { Exit::Error })
}

async fn enqueue(client: &Client, account: &Account, jobs: u64) -> anyhow::Result<()> {
    const CHUNK: u64 = 1000;
    for first in (0..jobs).step_by(usize::try_from(CHUNK)?) {
        let numbers = first..(first + CHUNK).min(jobs);
        let priority = |n: u64| Priority::ALL[usize::try_from(n % 4).unwrap_or_default()];
        let chunk = numbers
            .clone()
            .map(|n| NewJob::new(&Piece { n, how: Manner::of(n) }).priority(priority(n)));
        for (n, stored) in numbers.zip(client.enqueue_many(chunk).await) {
            account.expect(stored?.id().clone(), Manner::of(n).expected());
        }
    }
    Ok(())
}

async fn work(client: &Client, account: &Arc<Account>) -> anyhow::Result<Running> {
    let account = account.clone();
    let handler = move |piece: Piece, context: JobContext| {
        account.started(&context);
        async move {
            tokio::time::sleep(piece.how.takes()).await;
            match piece.how {
                Manner::Doomed => Err(JobError::failed("doomed to fail")),
                Manner::Flaky if context.attempt() == 1 => Err(JobError::failed("not in the mood")),
                Manner::Quick | Manner::Slow | Manner::Flaky => Ok(piece.n),
            }
        }
    };
    let policy = RetryPolicy::new(2, Backoff::fixed(Duration::from_millis(400)));
    let worker = Worker::builder(client)
        .queue(Piece::QUEUE)
        .concurrency(CONCURRENCY)
        .handler(Handler::new(handler).retry(policy));
    Ok(worker.build()?.start().await?)
}

/// Shows how far the jobs are until all have ended.
async fn watch(global: &Global, account: &Account, jobs: u64) {
    let is_watched = output::is_watched() && !global.quiet;
    let bar = if is_watched { ProgressBar::new(jobs) } else { ProgressBar::hidden() };
    let template = "{wide_bar:.cyan/dim} {pos}/{len}  {msg}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    let deadline = Instant::now() + PATIENCE;
    let mut told = Instant::now();
    loop {
        let tally = account.tally();
        bar.set_position(tally.ended());
        bar.set_message(tally.to_string());
        if tally.ended() >= jobs || Instant::now() >= deadline {
            bar.finish();
            return;
        }
        if !is_watched && !global.quiet && told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            output::to_stderr(&format!("{}/{jobs} ended: {tally}", tally.ended()));
        }
        tokio::time::sleep(DRAW_EVERY).await;
    }
}
