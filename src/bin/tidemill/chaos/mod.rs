//! `tidemill chaos`: faults on purpose, and whether every promise holds in spite of them.
//!
//! Producers and workers are processes that write down what they attempted and saw; a nemesis breaks
//! the broker and them by a plan; in the end a checker goes through what all of them have written and
//! what the broker has on record.

mod check;
mod clockwork;
mod collect;
mod crew;
mod event;
mod figures;
mod footprint;
mod history;
mod leaders;
mod mill;
mod nemesis;
mod piece;
mod plan;
mod producer;
mod report;
mod run;
mod run_args;
mod stage;
mod worker;

use std::num::ParseIntError;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use tidemill::Queue;
use tokio::io::AsyncReadExt as _;

use self::history::{Event, Journal};
use self::report::Report;
use self::run_args::RunArgs;
use crate::cli::Global;
use crate::connect::said;
use crate::exit::{Exit, UsageError};
use crate::login::{Given, SEED_VARIABLE};
use crate::signals::StopSignals;

/// The queue that is worked unless another is named.
const DEFAULT_QUEUE: &str = "chaos";

const AFTER_HELP: &str = "\
The private broker and all processes are of the run alone, and end with it. What is broken when follows
from the seed: a run that violates something prints the command that does the same again.

The verbs are for runs of your own, on any broker: start producers and workers with one folder for their
history, break what you like and note it there, and check in the end.";

/// Break a private broker and its workers on purpose, and check that every promise holds.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, after_help = AFTER_HELP)]
pub(crate) struct ChaosArgs {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// What is done without a verb
    Run(RunArgs),
    /// Work a queue and note every start and end
    Worker(worker::WorkerArgs),
    /// Enqueue jobs at a rate and note what became of every enqueue
    Producer(producer::ProducerArgs),
    /// Wait until the queue is empty and check the history
    Check(collect::CheckArgs),
    /// Note in a history that something is broken, or whole again
    Note(NoteArgs),
}

/// What producers and workers share.
#[derive(Debug, Args)]
pub(crate) struct RoleArgs {
    /// The folder in which to write down what is attempted and seen
    #[arg(long, value_name = "DIR")]
    history: PathBuf,
    /// What to be called there; no two that run at once have the same
    #[arg(long)]
    name: String,
    /// The queue
    #[arg(long, default_value = DEFAULT_QUEUE)]
    queue: Queue,
    /// End when standard input ends too
    #[arg(long)]
    until_stdin_ends: bool,
}

/// Note in a history that something is broken, or whole again.
#[derive(Debug, Args)]
pub(crate) struct NoteArgs {
    /// The folder of the history
    #[arg(long, value_name = "DIR")]
    history: PathBuf,
    /// The file to write to
    #[arg(long, default_value = "nemesis")]
    name: String,
    /// What is broken from now on; what begins with "worker" leaves the broker whole
    #[arg(long, value_name = "WHAT", conflicts_with = "healed")]
    fault: Option<String>,
    /// What is whole again; without it and without --fault, everything is
    #[arg(long, value_name = "WHAT")]
    healed: Option<String>,
}

impl ChaosArgs {
    /// Whether it is a run of its own, and no part of one.
    pub(crate) fn breaks_its_own(&self) -> bool {
        match self.verb {
            None | Some(Verb::Run(_)) => true,
            Some(Verb::Worker(_) | Verb::Producer(_) | Verb::Check(_) | Verb::Note(_)) => false,
        }
    }
}

pub(crate) async fn run(global: &Global, args: ChaosArgs) -> anyhow::Result<Exit> {
    let connect = global.connect.clone().with_seed_of_environment();
    let global = &Global { connect, ..global.clone() };
    match args.verb.unwrap_or(Verb::Run(args.run)) {
        Verb::Run(args) => run::run(global, args).await,
        Verb::Worker(args) => worker::run(global, args).await,
        Verb::Producer(args) => producer::run(global, args).await,
        Verb::Check(args) => collect::run(global, args).await,
        Verb::Note(args) => note(args),
    }
}

fn note(args: NoteArgs) -> anyhow::Result<Exit> {
    let event = match (args.fault, args.healed) {
        (Some(what), _) => Event::Fault { what },
        (None, Some(what)) => Event::Healed { what },
        (None, None) => Event::AllHealed,
    };
    Journal::open(&args.history, &args.name)?.note(event)?;
    Ok(Exit::Ok)
}

/// Reads what was given as `--seed`, which elsewhere is the seed of a user JWT: where nothing was
/// typed, it is what the environment has for that.
fn number_of(seed: Option<&Given>) -> Result<Option<u64>, UsageError> {
    let Some(text) = said(seed).map(Given::reveal) else { return Ok(None) };
    if std::env::var(SEED_VARIABLE).is_ok_and(|inherited| inherited == text) {
        return Ok(None);
    }
    let problem =
        |error: ParseIntError| UsageError(format!("--seed is a whole number here: {error}"));
    text.parse().map(Some).map_err(problem)
}

/// Waits until a role is told to end.
async fn told_to_end(role: &RoleArgs, signals: &mut StopSignals) {
    let input_ended = async {
        if role.until_stdin_ends {
            // One that cannot be read has ended as well.
            let _ = tokio::io::stdin().read_to_end(&mut Vec::new()).await;
        } else {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = signals.told() => {}
        () = input_ended => {}
    }
}

fn exit_of(report: &Report) -> Exit {
    match report.holds {
        true => Exit::Ok,
        false => Exit::Error,
    }
}
