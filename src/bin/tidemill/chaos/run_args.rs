//! What a run of `tidemill chaos` can be told.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum as _};

use super::piece::Load;
use super::plan::{Fault, Wish};
use crate::cli::duration;
use crate::exit::UsageError;
use crate::login::Given;

/// What is broken, and how long.
#[derive(Clone, Debug, Args)]
pub(crate) struct RunArgs {
    /// How many minutes to break things; parts of one are fine
    #[arg(long, default_value_t = 1.0)]
    pub(super) minutes: f64,
    /// What plan and jobs follow from; default: any, and it is printed
    #[arg(long, value_name = "NUMBER")]
    pub(super) seed: Option<Given>,
    /// Servers of the private broker: 1 or 3
    #[arg(long, default_value_t = 1, value_parser = one_or_three)]
    pub(super) nodes: u8,
    /// Copies of each stream: 1 or 3; default: as many as servers
    #[arg(long, value_parser = one_or_three)]
    pub(super) replicas: Option<u8>,
    /// Let the broker write every message through to the disk before it confirms it
    #[arg(long)]
    pub(super) sync_always: bool,
    /// Worker processes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=32))]
    pub(super) workers: u16,
    /// Jobs that a worker runs at once
    #[arg(short, long, default_value_t = 20)]
    pub(super) concurrency: usize,
    /// Jobs in a second; default: 200 on one server, 320 on three
    #[arg(long, value_parser = clap::value_parser!(u64).range(2..=20_000))]
    pub(super) rate: Option<u64>,
    /// What the jobs are
    #[arg(long, value_enum, default_value_t = Load::Soak)]
    pub(super) load: Load,
    /// How long a worker may be silent about a job before another gets it
    #[arg(long, value_parser = duration, default_value = "5s")]
    pub(super) ack_wait: Duration,
    /// Do only this; may be given several times
    #[arg(long, value_enum, value_name = "FAULT")]
    pub(super) only: Vec<Fault>,
    /// How many seconds the queue may take to be empty after the last fault
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(super) within: u64,
    /// Where to keep the history; default: a new folder, kept where something is violated
    #[arg(long, value_name = "DIR")]
    pub(super) history: Option<PathBuf>,
    /// Use this nats-server
    #[arg(long, value_name = "PATH")]
    pub(super) nats_server: Option<PathBuf>,
}

fn one_or_three(text: &str) -> Result<u8, String> {
    match text {
        "1" => Ok(1),
        "3" => Ok(3),
        _ => Err("use 1 or 3".to_owned()),
    }
}

impl RunArgs {
    pub(super) fn replicas(&self) -> u8 {
        self.replicas.unwrap_or(self.nodes)
    }

    /// On three servers so many that those that lead lanes compact their logs while a server is away.
    pub(super) fn rate(&self) -> u64 {
        self.rate.unwrap_or(if self.nodes == 1 { 200 } else { 320 })
    }

    pub(super) fn load(&self) -> String {
        self.load.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    pub(super) fn wish(&self, seed: u64) -> Wish {
        Wish {
            seed,
            duration_ms: (self.minutes * 60_000.0) as u64,
            nodes: usize::from(self.nodes),
            replicas: self.replicas(),
            workers: usize::from(self.workers),
            ack_wait_ms: u64::try_from(self.ack_wait.as_millis()).unwrap_or(u64::MAX),
            only: self.only.clone(),
        }
    }

    pub(super) fn check(&self, wish: &Wish) -> Result<(), UsageError> {
        let problem = if !(0.02..=10_000.0).contains(&self.minutes) {
            format!("minutes is {}: use 0.02 to 10000", self.minutes)
        } else if self.replicas() > self.nodes {
            format!("{} replicas need as many servers: use --nodes 3", self.replicas())
        } else if let Some(fault) = self.only.iter().find(|fault| !fault.fits(wish)) {
            format!("{} cannot be done to {} servers", fault.name(), self.nodes)
        } else {
            return Ok(());
        };
        Err(UsageError(problem))
    }

    /// The command that does the same again.
    pub(super) fn again(&self, seed: u64) -> String {
        let mut command = format!(
            "tidemill chaos --seed {seed} --minutes {} --nodes {} --replicas {} --workers {} \
             --concurrency {} --rate {} --load {} --ack-wait {}ms",
            self.minutes,
            self.nodes,
            self.replicas(),
            self.workers,
            self.concurrency,
            self.rate(),
            self.load(),
            self.ack_wait.as_millis(),
        );
        if self.sync_always {
            command.push_str(" --sync-always");
        }
        for fault in &self.only {
            command.push_str(&format!(" --only {}", fault.name()));
        }
        command
    }
}
