//! The processes of a run: producers and workers, this program once more.
//!
//! Each has a process group of its own, so that Ctrl-C reaches this program alone; and each ends with
//! its input, so that none is left when this program is killed.

use std::fs::File;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::{Instant, sleep, timeout};

/// What a process says when it works.
const READY: &str = "ready";

/// How long a process may take to start while its broker is being broken.
const START: Duration = Duration::from_secs(90);
const START_AGAIN: Duration = Duration::from_millis(300);

/// How long a process may take to end that is told to.
const END: Duration = Duration::from_secs(40);

/// How processes are started.
#[derive(Clone, Debug)]
pub(super) struct Program {
    pub(super) url: String,
    pub(super) namespace: String,
    pub(super) history: PathBuf,
    /// What sealed payloads are opened with.
    pub(super) seal_keys: PathBuf,
}

/// A process that has said that it works.
pub(super) struct Role {
    name: String,
    child: Child,
    /// Kept open: a process that cannot speak ends.
    _said: BufReader<ChildStdout>,
}

impl Program {
    /// Starts a role, again and again where the broker is not there to connect to.
    pub(super) async fn start(
        &self,
        role: &str,
        name: &str,
        more: &[String],
    ) -> anyhow::Result<Role> {
        let deadline = Instant::now() + START;
        loop {
            match self.try_start(role, name, more).await? {
                Ok(role) => return Ok(role),
                Err(ended) if Instant::now() > deadline => bail!(
                    "{role} {name} does not start: it ended with {ended}; see {}",
                    self.log(name).display()
                ),
                Err(_) => sleep(START_AGAIN).await,
            }
        }
    }

    async fn try_start(
        &self,
        role: &str,
        name: &str,
        more: &[String],
    ) -> anyhow::Result<Result<Role, ExitStatus>> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut command = Command::new(program);
        for (variable, _) in std::env::vars_os() {
            // The broker is ours, whatever else is set for others.
            if variable.to_string_lossy().starts_with("NATS_") {
                command.env_remove(variable);
            }
        }
        let log = File::options().create(true).append(true).open(self.log(name));
        let mut child = command
            .args(["--server", &self.url, "--namespace", &self.namespace])
            .args(["--connection-name", &format!("chaos {name}")])
            .args(["chaos", role, "--name", name, "--until-stdin-ends", "--history"])
            .arg(&self.history)
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log.with_context(|| format!("cannot open the log of {name}"))?)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {role} {name}"))?;
        let mut said = BufReader::new(child.stdout.take().context("its output is ours")?);
        let mut line = String::new();
        let _ = timeout(START, said.read_line(&mut line)).await; // what it did not say, it did not
        if line.trim() == READY {
            return Ok(Ok(Role { name: name.to_owned(), child, _said: said }));
        }
        child.kill().await?;
        Ok(Err(child.wait().await?))
    }

    /// What is to be given to a process that seals and opens payloads.
    pub(super) fn sealing(&self) -> [String; 2] {
        ["--seal-keys".to_owned(), self.seal_keys.to_string_lossy().into_owned()]
    }

    fn log(&self, name: &str) -> PathBuf {
        self.history.join(format!("{name}.log"))
    }
}

impl Role {
    pub(super) async fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill().await.with_context(|| format!("cannot kill {}", self.name))
    }

    pub(super) fn freeze(&self) -> anyhow::Result<()> {
        self.signal(Signal::STOP)
    }

    pub(super) fn thaw(&self) -> anyhow::Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let id = self.child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        let id = id.with_context(|| format!("{} has ended by itself", self.name))?;
        kill_process(id, signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// How it ended, if it has.
    fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits for its end, and kills it when that does not come. What is wrong with how it ended.
    pub(super) async fn end(mut self, patience: Duration) -> Option<String> {
        match timeout(patience, self.child.wait()).await {
            Ok(Ok(status)) if status.success() => None,
            Ok(Ok(status)) => Some(format!("{} ended with {status}", self.name)),
            Ok(Err(error)) => Some(format!("{} cannot be waited for: {error}", self.name)),
            Err(_) => {
                let _ = self.child.kill().await;
                Some(format!("{} did not end within {} s", self.name, patience.as_secs()))
            }
        }
    }

    /// Lets it know that it is to end.
    pub(super) fn tell_to_end(&mut self) {
        drop(self.child.stdin.take());
    }
}

/// The workers. One that is killed is followed by another of its own name.
pub(super) struct Crew {
    program: Program,
    concurrency: usize,
    places: Vec<Place>,
    /// What went wrong without a fault.
    wrong: Vec<String>,
}

#[derive(Default)]
struct Place {
    generation: u32,
    role: Option<Role>,
}

impl Crew {
    pub(super) async fn start(
        program: Program,
        workers: usize,
        concurrency: usize,
    ) -> anyhow::Result<Self> {
        let places = (0..workers).map(|_| Place::default()).collect();
        let mut crew = Self { program, concurrency, places, wrong: Vec::new() };
        for index in 0..workers {
            crew.start_one(index).await?;
        }
        Ok(crew)
    }

    pub(super) fn name(&self, index: usize) -> String {
        let Place { generation, .. } = self.places[index];
        format!("w{}-{generation}", index + 1)
    }

    pub(super) fn pick(&self, chance: usize) -> usize {
        chance % self.places.len()
    }

    /// The processes that run, by name and id.
    pub(super) fn running(&self) -> Vec<(String, u32)> {
        let roles = self.places.iter().filter_map(|place| place.role.as_ref());
        roles.filter_map(|role| Some((role.name.clone(), role.child.id()?))).collect()
    }

    /// Every other worker puts what is not due soon on a timer, and the rest leave it on its lane: whatever
    /// waits is met in both places.
    pub(super) async fn start_one(&mut self, index: usize) -> anyhow::Result<()> {
        self.places[index].generation += 1;
        let name = self.name(index);
        let park_over = if index.is_multiple_of(2) { "60s" } else { "2s" };
        let more = ["--concurrency", &self.concurrency.to_string(), "--park-over", park_over];
        let more = [&more.map(str::to_owned)[..], &self.program.sealing()].concat();
        self.places[index].role = Some(self.program.start("worker", &name, &more).await?);
        Ok(())
    }

    pub(super) async fn kill(&mut self, index: usize) -> anyhow::Result<()> {
        self.look();
        match self.places[index].role.take() {
            Some(role) => role.kill().await,
            None => Ok(()),
        }
    }

    pub(super) fn freeze(&mut self, index: usize) -> anyhow::Result<()> {
        self.look();
        self.places[index].role.as_ref().map_or(Ok(()), Role::freeze)
    }

    pub(super) fn thaw(&self, index: usize) -> anyhow::Result<()> {
        self.places[index].role.as_ref().map_or(Ok(()), Role::thaw)
    }

    /// Notes who has ended that nobody ended.
    fn look(&mut self) {
        for place in &mut self.places {
            if let Some(status) = place.role.as_mut().and_then(Role::ended) {
                let name = place.role.take().map(|role| role.name).unwrap_or_default();
                self.wrong.push(format!("worker {name} ended by itself with {status}"));
            }
        }
    }

    /// Lets all go on, and starts those that are missing.
    pub(super) async fn heal(&mut self) -> anyhow::Result<()> {
        self.look();
        for index in 0..self.places.len() {
            match &self.places[index].role {
                Some(role) => role.thaw()?,
                None => self.start_one(index).await?,
            }
        }
        Ok(())
    }

    /// Lets all drain; what went wrong with any of them since they began.
    pub(super) async fn stop(mut self) -> Vec<String> {
        self.look();
        let mut wrong = self.wrong;
        let mut roles: Vec<Role> = self.places.into_iter().filter_map(|place| place.role).collect();
        for role in &mut roles {
            role.tell_to_end();
        }
        for role in roles {
            wrong.extend(role.end(END).await.map(|why| format!("worker {why}")));
        }
        wrong
    }
}
