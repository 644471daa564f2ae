//! The arguments: what all commands share, and the list of commands.

use std::num::NonZeroUsize;
use std::time::Duration;

use chrono::{DateTime, Utc};
use clap::{ArgMatches, Args, Parser, Subcommand};
use tidemill::{Client, Namespace};

use crate::connect::ConnectArgs;
use crate::keys::{self, KeyArgs};
use crate::{
    bench, chaos, cron, dead, demo, dev, doctor, enqueue, import, job, nkeys, queue, results,
    setup, work,
};

const AFTER_HELP: &str = "\
Exit codes:
    0  ok
    1  error
    2  wrong usage
    3  not found
    4  no permission
    5  the job that was waited for did not end well
    6  the broker cannot be reached, or will not do
  124  waited too long
  130  interrupted

Any NATS client can enqueue:
  nats pub tidemill.jobs.default.high.send_email '{\"to\":\"a@example.com\"}'";

/// Background jobs on the NATS JetStream you already run.
#[derive(Debug, Parser)]
#[command(name = "tidemill", version, about, after_help = AFTER_HELP, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Cli {
    /// What is logged.
    pub(crate) fn log_level(&self) -> &'static str {
        match (self.global.quiet, self.global.verbose, &self.command) {
            // That its broker is gone is what is asked for.
            (_, 0, Command::Chaos(args)) if args.breaks_its_own() => "off",
            (true, _, _) => "error",
            // What is the matter with a worker is told when it begins, and when it is over.
            (false, 0, _) => "warn,tidemill=warn,tidemill::health=info",
            (false, 1, _) => "warn,tidemill=info",
            (false, _, _) => "info,tidemill=debug",
        }
    }
}

/// What all commands share.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "General")]
pub(crate) struct Global {
    /// Print JSON: one document, or one per line where output streams
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Log more; twice for everything. RUST_LOG goes before it
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Log errors only, and show no progress
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// What all subjects and streams begin with
    #[arg(long, global = true, env = "TIDEMILL_NAMESPACE", default_value = "tidemill")]
    pub(crate) namespace: Namespace,
    #[command(flatten)]
    pub(crate) connect: ConnectArgs,
    #[command(flatten)]
    pub(crate) keys: KeyArgs,
}

impl Global {
    /// A client by the connection flags.
    pub(crate) async fn client(&self) -> anyhow::Result<Client> {
        let keys = self.keys.read()?;
        let client = Client::connect(self.connect.options()?).await?;
        Ok(keys.give(client.with_namespace(self.namespace.clone())))
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// See it run: a private broker, thousands of jobs, live progress, a summary
    Demo(demo::DemoArgs),
    /// A private broker and a worker to develop against
    Dev(dev::DevArgs),
    /// Make queues' streams and consumers, or say how they differ
    Setup(setup::SetupArgs),
    /// Put jobs into a queue
    Enqueue(enqueue::EnqueueArgs),
    /// Put in jobs from a file, each line one; broken off, the same command goes on
    Import(import::ImportArgs),
    /// Work queues with commands or web hooks as handlers
    Work(work::WorkArgs),
    /// Look at jobs, and cancel them
    Job(job::JobArgs),
    /// Jobs that the broker enqueues by itself, again and again
    Cron(cron::CronArgs),
    /// Look at queues; pause, empty, remove them
    Queue(queue::QueueArgs),
    /// Look at completions
    Results(results::ResultsArgs),
    /// Look at dead letters, retry or discard them
    Dead(dead::DeadArgs),
    /// Find what is not as it should be, and what to do about it; bring stuck jobs back
    Doctor(doctor::DoctorArgs),
    /// Make a key for each user of a server's configuration
    Nkeys(nkeys::NkeysArgs),
    /// Make keys by which payloads are sealed
    Seal(keys::SealArgs),
    /// Make keys by which jobs are signed
    Sign(keys::SignArgs),
    /// Measure how fast jobs go through
    Bench(bench::BenchArgs),
    /// Break brokers and workers on purpose, and check that every promise holds
    Chaos(chaos::ChaosArgs),
}

impl Command {
    /// How many threads its tasks run on; `None` for one for each processor. They wait for the broker most
    /// of the time, and what one thread has made is cheapest to that same thread.
    pub(crate) fn threads(&self) -> Option<NonZeroUsize> {
        match self {
            Self::Work(args) => args.threads(),
            Self::Bench(args) => Some(args.threads),
            _ => Some(NonZeroUsize::MIN),
        }
    }
}

/// The verb that was called, such as `queue pause`.
pub(crate) fn verb(matches: &ArgMatches) -> String {
    let mut words = Vec::new();
    let mut next = matches.subcommand();
    while let Some((word, matches)) = next {
        words.push(word);
        next = matches.subcommand();
    }
    words.join(" ")
}

/// Reads a duration such as `1h30m`, `500ms`, or a number of seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string());
    }
    humantime::parse_duration(text).map_err(|error| error.to_string())
}

/// Reads how many of something there are to be.
pub(crate) fn count(text: &str) -> Result<NonZeroUsize, String> {
    text.parse().map_err(|_| "use a whole number from 1".to_owned())
}

/// Reads a moment such as `2026-12-01T09:00:00+01:00`.
pub(crate) fn moment(text: &str) -> Result<DateTime<Utc>, String> {
    DateTime::parse_from_rfc3339(text).map(|moment| moment.to_utc()).map_err(|error| {
        format!("{error}: use a time with its zone, such as 2026-12-01T09:00:00+01:00")
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_as_people_write_them() {
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("1.5"), Ok(Duration::from_millis(1500)));
        assert!(duration("-1").is_err() && duration("soon").is_err());
    }

    #[test]
    fn counts_are_whole_and_start_at_one() {
        assert_eq!(count("2").map(NonZeroUsize::get), Ok(2));
        for text in ["0", "-1", "1.5", "two", ""] {
            assert_eq!(count(text), Err("use a whole number from 1".to_owned()), "{text}");
        }
    }

    #[test]
    fn moments_have_a_zone() {
        let nine = moment("2026-12-01T09:00:00+01:00").expect("valid");
        assert_eq!(nine, moment("2026-12-01T08:00:00Z").expect("valid"));
        assert!(moment("2026-12-01T09:00:00").expect_err("no zone").contains("with its zone"));
    }
}
