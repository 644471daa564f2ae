//! `tidemill work`: a worker whose handlers are commands and web hooks.

use std::num::NonZeroUsize;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tidemill::{
    Backoff, Client, DEFAULT_CONCURRENCY, Handler, MAX_WEIGHT, Order, Priority, Queue, Reprovision,
    RetryPolicy, Running, Weights, Worker, WorkerBuilder,
};

use crate::agent::{Agent, AgentArgs};
use crate::cli::{Global, count, duration};
use crate::exec::{self, Assignment};
use crate::exit::{Exit, UsageError};
use crate::login::Given;
use crate::ready::ReadyArgs;
use crate::signals::StopSignals;
use crate::{http, keys, output};

const AFTER_HELP: &str = "\
A command gets the payload on standard input and TIDEMILL_ID, TIDEMILL_RUN, TIDEMILL_KIND,
TIDEMILL_QUEUE, TIDEMILL_PRIORITY, TIDEMILL_ATTEMPT and TIDEMILL_MAX_ATTEMPTS in its environment.
Exit code 0 is done, with standard output as the result; 65 buries the job; anything else is tried
again, with standard error as the error.

A web hook gets the payload by POST. 2xx is done, with the body as the result; 429 and 503 with
Retry-After come back later; other 4xx bury the job; anything else is tried again.

What keeps the worker from working goes to standard error when it begins and when it is over. It goes
on by itself. --ready-file and systemd (Type=notify, WatchdogSec) tell others.

Interrupted once, the worker drains: it fetches no more, lets jobs end, gives the rest back.
Interrupted twice, it stops at once.";

/// Work queues with commands or web hooks as handlers.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct WorkArgs {
    /// A queue to work, with a weight if there are several; default: default
    #[arg(long = "queue", value_name = "NAME[:WEIGHT]")]
    queues: Vec<WeightedQueue>,
    /// Run this command for jobs of this kind
    #[arg(long, value_name = "KIND=COMMAND")]
    exec: Vec<Assignment>,
    /// Post jobs of this kind to this URL
    #[arg(long, value_name = "KIND=URL")]
    http: Vec<Assignment>,
    /// Take only jobs that one of these public nkeys has signed, and bury others: U…, or a file with one
    /// a line
    #[arg(long, value_name = "KEY|FILE", num_args = 1..)]
    require_signed: Vec<Given>,
    /// Threads that drive the worker. Commands and web hooks do their work elsewhere: one drives thousands
    /// a second, and takes a fifth less of the processor than two; checking signatures takes more
    /// [default: 1, or one for each processor with --require-signed]
    #[arg(long, value_name = "COUNT", value_parser = count)]
    threads: Option<NonZeroUsize>,
    #[command(flatten)]
    limits: LimitArgs,
    /// Make streams and consumers again that vanish while the worker works: consumers, which hold no
    /// jobs, or everything; without it, the worker waits until somebody does
    #[arg(
        long,
        value_name = "WHAT",
        value_enum,
        num_args = 0..=1,
        require_equals = true,
        default_value_t = Again::Never,
        default_missing_value = "everything"
    )]
    reprovision: Again,
    #[command(flatten)]
    ready: ReadyArgs,
    #[command(flatten)]
    agent: AgentArgs,
}

impl WorkArgs {
    /// How many threads are to drive the worker; `None` for one for each processor.
    pub(crate) fn threads(&self) -> Option<NonZeroUsize> {
        self.threads.or(self.require_signed.is_empty().then_some(NonZeroUsize::MIN))
    }
}

/// What is made again of what has vanished.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Again {
    Never,
    Consumers,
    Everything,
}

impl From<Again> for Reprovision {
    fn from(again: Again) -> Self {
        match again {
            Again::Never => Self::Never,
            Again::Consumers => Self::Consumers,
            Again::Everything => Self::Everything,
        }
    }
}

/// How a worker goes about its work.
#[derive(Debug, Args)]
pub(crate) struct LimitArgs {
    /// How many jobs run at once
    #[arg(short, long, default_value_t = DEFAULT_CONCURRENCY)]
    concurrency: usize,
    /// Serve a lower priority only when no higher one has a job
    #[arg(long, conflicts_with = "weights")]
    strict: bool,
    /// Shares of critical, high, normal and low
    #[arg(long, value_name = "C:H:N:L", default_value = "8:4:2:1", value_parser = weights)]
    weights: Weights,
    /// How long one attempt may take, where the job does not say
    #[arg(long = "job-timeout", value_name = "TIME", value_parser = duration, default_value = "10m")]
    job_timeout: Duration,
    /// Retries after the first attempt, where the job does not say
    #[arg(long, default_value_t = tidemill::DEFAULT_MAX_RETRIES)]
    max_retries: u32,
    /// Delays between attempts, where the job does not say: exp:BASE_MS:FACTOR:CAP_MS, linear:MS or
    /// fixed:MS
    #[arg(long, default_value = "exp:2000:2:3600000")]
    backoff: Backoff,
    /// Keep no completions of jobs that are done: faster, but nobody can wait for one of these, and
    /// where an ack is lost it runs again
    #[arg(long)]
    no_completions: bool,
    /// How long running jobs may go on when the worker drains
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "25s")]
    grace: Duration,
    /// The worker's name in records and in the registry; default: host and process
    #[arg(long)]
    name: Option<String>,
}

#[derive(Clone, Debug)]
struct WeightedQueue(Queue, u32);

impl FromStr for WeightedQueue {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, weight) = match text.split_once(':') {
            None => (text, 1),
            Some((name, weight)) => match weight.parse() {
                Ok(weight @ 1..=MAX_WEIGHT) => (name, weight),
                Ok(_) | Err(_) => {
                    return Err(format!("weight {weight:?} is not in 1 to {MAX_WEIGHT}"));
                }
            },
        };
        Queue::new(name).map(|queue| Self(queue, weight)).map_err(|error| error.to_string())
    }
}

fn weights(text: &str) -> Result<Weights, String> {
    let parts: Vec<u32> = text
        .split(':')
        .map(str::parse)
        .collect::<Result<_, _>>()
        .map_err(|_| "use four whole numbers such as 8:4:2:1".to_owned())?;
    let parts = parts.try_into().map_err(|_| "use four numbers such as 8:4:2:1".to_owned())?;
    Weights::new(parts).map_err(|error| error.to_string())
}

impl LimitArgs {
    pub(crate) fn apply(&self, worker: WorkerBuilder) -> WorkerBuilder {
        worker
            .name(self.name.clone().unwrap_or_else(host_and_process))
            .concurrency(self.concurrency)
            .weights(self.weights)
            .order(if self.strict { Order::Strict } else { Order::Weighted })
            .grace(self.grace)
    }

    pub(crate) fn limit(&self, handler: Handler) -> Handler {
        let policy = RetryPolicy::new(self.max_retries, self.backoff.clone());
        let handler = handler.timeout(self.job_timeout).retry(policy);
        match self.no_completions {
            true => handler.without_completions(),
            false => handler,
        }
    }
}

/// Handlers for what `--exec` and `--http` name.
pub(crate) fn handlers(exec: &[Assignment], http: &[Assignment]) -> anyhow::Result<Vec<Handler>> {
    let mut handlers: Vec<Handler> = exec.iter().map(exec::handler).collect();
    if !http.is_empty() {
        let client = http::client()?;
        for hook in http {
            handlers.push(http::handler(&client, hook)?);
        }
    }
    Ok(handlers)
}

pub(crate) async fn run(global: &Global, args: WorkArgs) -> anyhow::Result<Exit> {
    let handlers = handlers(&args.exec, &args.http)?;
    let agent = args.agent.read()?;
    if handlers.is_empty() && agent.is_none() {
        let message = "there is nothing to run: name handlers with --exec KIND=COMMAND or --http \
                       KIND=URL, or an agent runtime's --run-store or --event-publisher";
        return Err(UsageError(message.into()).into());
    }
    let trusted = match &args.require_signed[..] {
        [] => None,
        given => Some(keys::trusted(given)?),
    };
    let mut signals = StopSignals::new()?;
    let client = global.client().await?;
    let mut worker = args.limits.apply(Worker::builder(&client));
    worker = worker.reprovision(args.reprovision.into());
    for WeightedQueue(queue, weight) in &args.queues {
        worker = worker.weighted_queue(queue.as_str(), *weight);
    }
    if let Some(trusted) = trusted {
        for queue in queue_names(&args) {
            worker = worker.require_signature(queue, trusted.clone());
        }
    }
    for handler in handlers {
        worker = worker.handler(args.limits.limit(handler));
    }
    if let Some(agent) = &agent {
        worker = agent.apply(&client, worker).await?;
    }
    args.ready.begin()?;
    let running = worker.build()?.start().await?;
    let telling = args.ready.follow(&running);
    announce(global, &running, &args, agent.as_ref());
    let ended = until_told(running, &mut signals).await;
    telling.abort();
    ended
}

/// The queues that are worked.
fn queue_names(args: &WorkArgs) -> Vec<&str> {
    match &args.queues[..] {
        [] => vec!["default"],
        queues => queues.iter().map(|queue| queue.0.as_str()).collect(),
    }
}

fn announce(global: &Global, running: &Running, args: &WorkArgs, agent: Option<&Agent>) {
    if global.quiet {
        return;
    }
    let named = args.exec.iter().chain(&args.http).map(|handler| handler.kind.as_str());
    let kinds: Vec<&str> = named.chain(agent.into_iter().flat_map(|_| Agent::KINDS)).collect();
    let queues = queue_names(args);
    output::to_stderr(&format!(
        "{} works {} of queue {}; Ctrl-C drains",
        running.name(),
        kinds.join(", "),
        queues.join(", ")
    ));
}

/// Works until told to stop, then drains. A connection that has ended for good ends the program.
pub(crate) async fn until_told(
    running: Running,
    signals: &mut StopSignals,
) -> anyhow::Result<Exit> {
    tokio::select! {
        () = signals.told() => {}
        () = running.closed() => {
            output::error(
                "the connection to NATS has ended for good; what was running comes back to the queue",
            );
            return Ok(Exit::Unreachable);
        }
    }
    output::to_stderr("draining: running jobs may end; once more stops at once");
    match signals.unless_told_again(running.drain()).await {
        Ok(drained) => {
            let given_back = drained.handed_back;
            output::to_stderr(&format!("drained; {given_back} buffered jobs went back"));
            Ok(Exit::Ok)
        }
        Err(exit) => Ok(exit),
    }
}

fn host_and_process() -> String {
    let host = rustix::system::uname();
    let host = host.nodename().to_string_lossy();
    format!("{host}-{}", std::process::id())
}

/// The default queue of a client, for commands that work it.
pub(crate) async fn default_queue(client: &Client) -> anyhow::Result<Queue> {
    let queue = Queue::default();
    client.ensure_queue(&queue).await?;
    Ok(queue)
}

/// Shares as text, for people.
pub(crate) fn share(weights: &Weights, priority: Priority) -> f64 {
    let total: u32 = Priority::ALL.iter().map(|priority| weights.of(*priority)).sum();
    f64::from(weights.of(priority)) / f64::from(total)
}
