//! The one owner of a server's process: it obeys the broker's calls and revives what died.
//!
//! Calls and supervision go through one loop, so that they cannot race: whoever kills a server
//! through its broker finds it dead, and not started again meanwhile.

use rustix::process::Signal;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tracing::{error, info, warn};

use super::budget::Budget;
use super::config::Config;
use super::find::Server;
use super::folder::Folder;
use super::port;
use super::process::Process;
use super::ready::Readiness;
use super::reload;
use crate::error::{Error, ErrorKind, Result};

/// How often a server is tried on another port when somebody was faster to take its own.
const PORT_TRIES: u32 = 5;

/// What to run, and how.
pub(super) struct Plan {
    pub(super) server: Server,
    pub(super) config: Config,
    pub(super) readiness: Readiness,
    pub(super) supervision: Supervision,
}

/// Whether a server that dies by itself is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Supervision {
    Off,
    On,
}

/// How the server is, for everyone who watches.
#[derive(Clone, Debug, Default)]
pub(super) struct Status {
    pub(super) phase: Phase,
    pub(super) monitor_url: String,
    /// By supervision, not by call.
    pub(super) restarts: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Phase {
    Up {
        pid: u32,
    },
    BackingOff,
    #[default]
    Down,
}

#[derive(Debug)]
pub(super) enum Command {
    Kill,
    Freeze,
    Thaw,
    LameDuck,
    Wipe,
    Restart,
    Reload { config: String },
    Stop,
}

/// A command, and where its result goes.
pub(super) type Request = (Command, oneshot::Sender<Result<()>>);

/// The process is declared before its folder: it is ended before its files are removed.
pub(super) struct Keeper {
    state: State,
    folder: Folder,
    plan: Plan,
    budget: Budget,
    status: watch::Sender<Status>,
}

enum State {
    Up(Process),
    BackOff(Instant),
    Down,
}

enum Event {
    Ended(String),
    RestartDue,
}

impl Keeper {
    /// Starts the server on `preferred`, or on another port if that is taken.
    pub(super) async fn start(
        plan: Plan,
        folder: Folder,
        mut preferred: Option<u16>,
    ) -> Result<Self> {
        let status = watch::Sender::default();
        let mut keeper =
            Self { state: State::Down, folder, plan, budget: Budget::default(), status };
        let mut tries = PORT_TRIES;
        loop {
            tries -= 1;
            keeper.plan.config.port = port::pick(preferred.take())?;
            match keeper.launch().await {
                Err(_) if tries > 0 && !port::is_free(keeper.plan.config.port) => {}
                launched => return launched.map(|()| keeper),
            }
        }
    }

    pub(super) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.plan.config.port)
    }

    pub(super) fn folder(&self) -> &Folder {
        &self.folder
    }

    pub(super) fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Runs until the broker is dropped.
    pub(super) async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        loop {
            tokio::select! {
                request = requests.recv() => match request {
                    Some(request) => self.serve(request).await,
                    None => return,
                },
                event = self.state.event() => self.react(event).await,
            }
        }
    }

    async fn serve(&mut self, (command, reply): Request) {
        let result = self.obey(command).await;
        let _ = reply.send(result); // whoever asked may have left
    }

    async fn obey(&mut self, command: Command) -> Result<()> {
        match command {
            Command::Kill => self.kill().await,
            Command::Wipe => {
                self.kill().await?;
                self.folder.clear_store()
            }
            Command::LameDuck => {
                self.running()?;
                match self.leave() {
                    State::Up(process) => process.lame_duck().await,
                    State::BackOff(_) | State::Down => Ok(()),
                }
            }
            Command::Stop => self.stop().await,
            Command::Restart => {
                self.stop().await?;
                self.budget = Budget::default();
                self.launch().await
            }
            Command::Freeze => self.running()?.freeze().await,
            Command::Thaw => self.running()?.signal(Signal::CONT),
            Command::Reload { config } => self.reload(config).await,
        }
    }

    async fn kill(&mut self) -> Result<()> {
        match self.leave() {
            State::Up(process) => process.kill().await,
            State::BackOff(_) | State::Down => Ok(()),
        }
    }

    async fn stop(&mut self) -> Result<()> {
        match self.leave() {
            State::Up(process) => process.stop().await,
            State::BackOff(_) | State::Down => Ok(()),
        }
    }

    async fn reload(&mut self, config: String) -> Result<()> {
        self.running()?;
        let before = std::mem::replace(&mut self.plan.config.extra, config);
        let reloaded = self.load().await;
        if reloaded.is_err() {
            self.plan.config.extra = before;
            self.write_config()?;
        }
        reloaded
    }

    async fn load(&self) -> Result<()> {
        self.write_config()?;
        let process = self.running()?;
        let monitor_url = self.status.borrow().monitor_url.clone();
        let refused =
            |why: &str| Error::invalid(format!("nats-server refuses its new configuration{why}"));
        reload::check(&self.plan.server.path, &self.folder.config_file())
            .await
            .map_err(|e| refused("").because(e))?;
        reload::signal(process, &monitor_url).await.map_err(|e| {
            refused(&format!("; its last lines:\n{}", process.last_words(&self.folder))).because(e)
        })
    }

    fn write_config(&self) -> Result<()> {
        self.folder.write_config(&self.plan.config.text(&self.folder)?)
    }

    /// Starts the server and waits until it is ready.
    async fn launch(&mut self) -> Result<()> {
        self.write_config()?;
        let mut process = Process::spawn(&self.plan.server.path, &self.folder)?;
        let ready = self.plan.readiness.wait(&mut process, &self.folder, &self.url()).await;
        let ports = match ready {
            Ok(ports) => ports,
            Err(failed) => {
                process.stop().await?; // two at once would ruin the store
                return Err(failed);
            }
        };
        self.status.send_modify(|status| status.monitor_url = ports.monitor_url().to_owned());
        self.enter(State::Up(process));
        Ok(())
    }

    async fn react(&mut self, event: Event) {
        match event {
            Event::Ended(how) => {
                let url = self.url();
                warn!(url, "nats-server ended by itself: {how}");
                self.recover();
            }
            Event::RestartDue => match self.launch().await {
                Ok(()) => {
                    self.status.send_modify(|status| status.restarts += 1);
                    info!(url = self.url(), "nats-server is started again");
                }
                Err(e) => {
                    warn!(url = self.url(), "nats-server could not be started again: {e}");
                    self.recover();
                }
            },
        }
    }

    /// Decides what follows a death.
    fn recover(&mut self) {
        let next = match self.plan.supervision {
            Supervision::Off => State::Down,
            Supervision::On => match self.budget.spend(Instant::now()) {
                Some(at) => State::BackOff(at),
                None => {
                    error!(url = self.url(), "nats-server died too often: it stays down");
                    State::Down
                }
            },
        };
        self.enter(next);
    }

    fn running(&self) -> Result<&Process> {
        match &self.state {
            State::Up(process) => Ok(process),
            State::BackOff(_) | State::Down => {
                Err(Error::new(ErrorKind::Unavailable, "nats-server does not run: restart it"))
            }
        }
    }

    fn leave(&mut self) -> State {
        self.enter(State::Down)
    }

    /// Goes to `state`, lets everyone know, and gives the state before.
    fn enter(&mut self, state: State) -> State {
        let phase = state.phase();
        let before = std::mem::replace(&mut self.state, state);
        self.status.send_modify(|status| status.phase = phase);
        before
    }
}

impl State {
    fn phase(&self) -> Phase {
        match self {
            Self::Up(process) => Phase::Up { pid: process.pid() },
            Self::BackOff(_) => Phase::BackingOff,
            Self::Down => Phase::Down,
        }
    }

    /// The next thing that happens without a call.
    async fn event(&mut self) -> Event {
        match self {
            Self::Up(process) => Event::Ended(match process.ended().await {
                Ok(status) => status.to_string(),
                Err(e) => e.to_string(),
            }),
            Self::BackOff(until) => {
                sleep_until(*until).await;
                Event::RestartDue
            }
            Self::Down => std::future::pending().await,
        }
    }
}
