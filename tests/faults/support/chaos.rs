//! Producers, workers and the checker of `tidemill chaos`, as processes of their own.

use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

use super::load::QUEUE;
use super::process::{Process, at_broker, program};

/// One run of it: what all its processes attempted and saw goes to one folder.
pub(crate) struct Chaos {
    history: TempDir,
    url: String,
    seed: u64,
}

impl Chaos {
    pub(crate) fn start(url: &str) -> Self {
        let seed = fastrand::u64(..1 << 32);
        eprintln!("seed {seed}");
        let history = TempDir::with_prefix("tidemill-history-").expect("a folder");
        Self { history, url: url.to_owned(), seed }
    }

    /// Chance, as the seed has it.
    pub(crate) fn chance(&self) -> fastrand::Rng {
        fastrand::Rng::with_seed(self.seed)
    }

    fn arguments<'a>(&'a self, role: &'a str) -> [&'a str; 6] {
        let folder = self.history.path().to_str().expect("UTF-8");
        ["chaos", role, "--history", folder, "--queue", QUEUE]
    }

    pub(crate) async fn producer(&self, name: &str, jobs: u64, rate: u32) -> Process {
        let (jobs, rate, seed) = (jobs.to_string(), rate.to_string(), self.seed.to_string());
        let more = ["--name", name, "--jobs", &jobs, "--rate", &rate, "--seed", &seed];
        let command = program(&self.url, &[&self.arguments("producer"), &more[..]].concat());
        let producer = Process::start(command);
        producer.says("ready").await;
        producer
    }

    /// Puts so many jobs on each lane, none of which fails.
    pub(crate) async fn fill(&self, each: u64) {
        let (each, seed) = (each.to_string(), self.seed.to_string());
        let more = ["--name", "filling", "--fill", &each, "--seed", &seed];
        let command = program(&self.url, &[&self.arguments("producer"), &more[..]].concat());
        assert!(Process::start(command).ended().await.success());
    }

    pub(crate) async fn worker(&self, name: &str) -> Process {
        self.worker_by(program(&self.url, &[]), name).await
    }

    /// A worker that is started by a command of its own, at whatever broker that names.
    pub(crate) async fn worker_by(&self, mut command: Command, name: &str) -> Process {
        command.args(self.arguments("worker")).args(["--name", name, "--concurrency", "8"]);
        let worker = Process::start(command);
        worker.says("ready").await;
        worker
    }

    /// What the checker says of it all, which has to be that everything holds, with so many faults to
    /// explain what was run once more.
    pub(crate) async fn holds(&self, faults: u64, within: Duration) -> Value {
        let (faults, within) = (faults.to_string(), within.as_secs().to_string());
        let mut command = program(&self.url, &self.arguments("check"));
        command.args(["--faults", &faults, "--within", &within, "--json"]);
        at_broker(&mut command, &self.url);
        let said = command.kill_on_drop(true).output().await.expect("runs");
        let out = String::from_utf8_lossy(&said.stdout);
        let report: Value = serde_json::from_str(out.trim()).unwrap_or_else(|error| {
            panic!("no report: {error}: {out}{}", String::from_utf8_lossy(&said.stderr))
        });
        assert_eq!(report["holds"], true, "seed {}: {report:#}", self.seed);
        report
    }
}
