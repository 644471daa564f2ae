//! A private nats-server for trying tidemill out and for tests: found or installed, started,
//! watched and ended. For real work, run NATS as its makers advise.
//!
//! ```no_run
//! # async fn example() -> tidemill::Result<()> {
//! use tidemill::embedded::Broker;
//! use tidemill::{Client, ConnectOptions};
//!
//! let broker = Broker::start().await?; // a temporary folder, a free port
//! let client = Client::connect(ConnectOptions::new(broker.url())?).await?;
//! // …
//! broker.stop().await;
//! # Ok(())
//! # }
//! ```

mod builder;
mod cluster;
mod config;
mod find;
mod install;
mod process;
mod supervise;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

pub use builder::BrokerBuilder;
pub use cluster::Cluster;
pub use install::SERVER_VERSION;

use self::config::Settings;
use self::process::{Process, did_not_start, log_tail};
use crate::error::{Error, ErrorKind, Result};

/// How long JetStream may take to answer once the server listens.
const READY_PATIENCE: Duration = Duration::from_secs(30);

const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A nats-server of our own. It ends when this is dropped.
#[derive(Debug)]
pub struct Broker {
    core: Arc<Core>,
    supervision: Option<CancellationToken>,
    /// Removed when the broker is dropped.
    _temporary: Option<TempDir>,
}

/// What the broker and its supervisor share.
#[derive(Debug)]
struct Core {
    server: PathBuf,
    folder: PathBuf,
    settings: Settings,
    credentials: Option<(String, String)>,
    url: String,
    monitor: std::sync::Mutex<Option<String>>,
    process: Mutex<Option<Process>>,
    pid: AtomicU32,
    restarts: AtomicU32,
}

impl Broker {
    /// Starts a server in a temporary folder, on a free port.
    ///
    /// # Errors
    /// Where no nats-server is found nor can be installed, or it does not start.
    pub async fn start() -> Result<Self> {
        Self::builder().start().await
    }

    /// A server to be configured.
    pub fn builder() -> BrokerBuilder {
        BrokerBuilder::new()
    }

    /// Where clients connect.
    pub fn url(&self) -> &str {
        &self.core.url
    }

    /// Where its monitoring pages are.
    pub fn monitor_url(&self) -> Option<String> {
        self.core.monitor.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// The server's process.
    pub fn pid(&self) -> u32 {
        self.core.pid.load(Ordering::Relaxed)
    }

    /// The folder with its data, configuration and log.
    pub fn data_dir(&self) -> &Path {
        &self.core.folder
    }

    /// How often it was started again after it died.
    pub fn restarts(&self) -> u32 {
        self.core.restarts.load(Ordering::Relaxed)
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        log_tail(&self.core.folder)
    }

    /// Kills the server at once, as a crash would.
    pub async fn kill(&self) {
        if let Some(mut process) = self.core.process.lock().await.take() {
            process.kill().await;
        }
    }

    /// Starts the server again after [`Broker::kill`] or [`Broker::shutdown`], on the same port and
    /// folder, and waits until it is ready.
    ///
    /// # Errors
    /// Where it does not start.
    pub async fn restart(&self) -> Result<()> {
        let mut process = self.core.process.lock().await;
        if let Some(mut old) = process.take() {
            old.stop().await;
        }
        *process = Some(self.core.launch().await?);
        Ok(())
    }

    /// Ends the server, keeping the folder for [`Broker::restart`].
    pub async fn shutdown(&self) {
        if let Some(mut process) = self.core.process.lock().await.take() {
            process.stop().await;
        }
    }

    /// Halts the server where it stands, until [`Broker::thaw`].
    pub async fn freeze(&self) {
        self.signal(Signal::STOP).await;
    }

    /// Lets a halted server go on.
    pub async fn thaw(&self) {
        self.signal(Signal::CONT).await;
    }

    async fn signal(&self, signal: Signal) {
        if let Some(process) = &*self.core.process.lock().await {
            process.signal(signal);
        }
    }

    /// Ends the server: SIGTERM, and after ten seconds SIGKILL.
    pub async fn stop(self) {
        if let Some(supervision) = &self.supervision {
            supervision.cancel();
        }
        self.shutdown().await;
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(supervision) = &self.supervision {
            supervision.cancel();
        }
        // The process itself is killed as its handle goes, but a folder that stays deserves an
        // orderly end.
        if self._temporary.is_none()
            && let Ok(process) = self.core.process.try_lock()
            && let Some(process) = &*process
        {
            process.signal(Signal::TERM);
        }
    }
}

impl Core {
    /// Starts a process on the port that is ours by now, and waits until it is ready.
    async fn launch(&self) -> Result<Process> {
        let process = Process::start(&self.server, &self.folder, &self.settings).await?;
        self.pid.store(process.pid(), Ordering::Relaxed);
        let monitor = process.ports.monitor.clone();
        *self.monitor.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = monitor;
        wait_until_ready(&self.url, self.credentials.as_ref(), self.settings.jetstream)
            .await
            .map_err(|error| did_not_start(&self.folder, &error.to_string()))?;
        Ok(process)
    }
}

/// Waits until a client can connect and, if wanted, JetStream answers.
async fn wait_until_ready(
    url: &str,
    credentials: Option<&(String, String)>,
    jetstream: bool,
) -> Result<()> {
    let deadline = Instant::now() + READY_PATIENCE;
    loop {
        match crate::broker::probe(url, credentials, jetstream).await {
            Ok(()) => return Ok(()),
            // It answers, and wants to know who we are: it is ready as far as we can see.
            Err(error) if error.is_permission() && credentials.is_none() => return Ok(()),
            Err(error) if Instant::now() >= deadline => {
                return Err(Error::new(ErrorKind::Local, format!("it is not ready: {error}")));
            }
            Err(_) => sleep(LOOK_EVERY).await,
        }
    }
}
