//! Worker processes: this program once more, which works the queue until its input ends.

use std::process::Stdio;

use anyhow::{Context as _, ensure};
use tidemill::Client;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};

use super::load::{sleeping, start_worker};
use super::scale::JOB_TAKES;
use super::{Bench, BenchArgs};
use crate::output;

/// What a worker says when it works.
const READY: &str = "ready";

/// Worker processes at work.
pub(super) struct Workers(Vec<Child>);

impl Workers {
    pub(super) async fn start(bench: &Bench, processes: u64) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut workers = Vec::new();
        for _ in 0..processes {
            let mut worker = Command::new(&program);
            match &bench.url {
                // A broker of ours, whatever else was given.
                Some(url) => worker
                    .args(["--server", url, "--namespace", bench.client.namespace().as_str()])
                    .args(["bench", "--connected", "--queue", bench.queue.as_str()])
                    .args(["--concurrency", &bench.args.concurrency.to_string()])
                    .args(["--threads", &bench.args.threads.to_string()]),
                None => worker.args(std::env::args_os().skip(1)),
            };
            let worker = worker.arg("--as-worker").stdin(Stdio::piped()).stdout(Stdio::piped());
            workers.push(worker.kill_on_drop(true).spawn().context("cannot start a worker")?);
        }
        for worker in &mut workers {
            let said = worker.stdout.take().context("its output is ours")?;
            let mut line = String::new();
            BufReader::new(said).read_line(&mut line).await?;
            ensure!(line.trim() == READY, "a worker did not start");
        }
        Ok(Self(workers))
    }

    pub(super) fn pids(&self) -> Vec<u32> {
        self.0.iter().filter_map(Child::id).collect()
    }

    /// Lets all drain.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        for worker in &mut self.0 {
            drop(worker.stdin.take());
        }
        for worker in &mut self.0 {
            ensure!(worker.wait().await?.success(), "a worker did not drain");
        }
        Ok(())
    }
}

/// What a worker process does.
pub(super) async fn work(client: &Client, args: &BenchArgs) -> anyhow::Result<()> {
    let handlers = [sleeping(JOB_TAKES)];
    let running = start_worker(client, &args.queue, args.concurrency, handlers).await?;
    output::line(READY)?;
    tokio::io::stdin().read_to_end(&mut Vec::new()).await?;
    running.drain().await;
    Ok(())
}
