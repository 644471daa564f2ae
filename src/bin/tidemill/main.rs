//! The `tidemill` command line: jobs on NATS without a line of Rust.

mod agent;
mod ask;
mod bench;
mod chaos;
mod cli;
mod connect;
mod cron;
mod dead;
mod demo;
mod dev;
mod doctor;
mod enqueue;
mod exec;
mod exit;
mod http;
mod import;
mod job;
mod keys;
mod login;
mod nkeys;
mod options;
mod output;
mod queue;
mod ready;
mod results;
mod setup;
mod signals;
mod work;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches};

use crate::cli::{Cli, Command};
use crate::exit::Exit;

/// Jobs are many small things that one thread makes and another drops, which it takes a fifth off.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let parsed = Cli::command().try_get_matches().and_then(|matches| {
        let cli = Cli::from_arg_matches(&matches)?;
        Ok((cli, cli::verb(&matches)))
    });
    let (cli, verb) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => {
            // A reader that has gone, as in `--help | head`, is no mistake.
            let _ = error.print();
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit::Ok.into(),
                _ => Exit::Usage.into(),
            };
        }
    };
    output::log_to_stderr(cli.log_level());
    let json = cli.global.json;
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = cli.command.threads() {
        builder.worker_threads(threads.get());
    }
    let runtime = match builder.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return exit::report(&error.into(), &verb, json).into(),
    };
    let ended = runtime.block_on(run(cli));
    // Blocking work that was given up must not hold the program.
    runtime.shutdown_background();
    match ended {
        Ok(exit) => exit.into(),
        Err(error) => exit::report(&error, &verb, json).into(),
    }
}

async fn run(cli: Cli) -> anyhow::Result<Exit> {
    let Cli { global, command } = cli;
    match command {
        Command::Bench(args) => bench::run(&global, args).await,
        Command::Chaos(args) => chaos::run(&global, args).await,
        Command::Demo(args) => demo::run(&global, args).await,
        Command::Dev(args) => dev::run(&global, args).await,
        Command::Setup(args) => setup::run(&global, args).await,
        Command::Enqueue(args) => enqueue::run(&global, args).await,
        Command::Import(args) => import::run(&global, args).await,
        Command::Work(args) => work::run(&global, args).await,
        Command::Job(args) => job::run(&global, args).await,
        Command::Cron(args) => cron::run(&global, args).await,
        Command::Queue(args) => queue::run(&global, args).await,
        Command::Results(args) => results::run(&global, args).await,
        Command::Dead(args) => dead::run(&global, args).await,
        Command::Nkeys(args) => nkeys::run(&global, &args),
        Command::Seal(args) => keys::seal(&global, args),
        Command::Sign(args) => keys::sign(&global, args),
        Command::Doctor(args) => doctor::run(&global, args).await,
    }
}
