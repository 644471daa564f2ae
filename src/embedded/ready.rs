//! Waits until a server that was started answers, and asks what it says about itself.
//!
//! Its ports are read from the file it writes, never from its log, and JetStream counts as there
//! when it answers a client: it recovers its streams after the log's first lines.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::folder::{Folder, Ports};
use super::in_one_line;
use super::process::Process;
use crate::broker::{ConnectOptions, Connection, ask};
use crate::error::{Error, ErrorKind, Result};

/// How often to look again.
const PACE: Duration = Duration::from_millis(10);

/// How long one question may take.
const ASK_DEADLINE: Duration = Duration::from_secs(2);

/// What a server must do to be ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    /// Take a connection.
    Connect,
    /// Answer for JetStream, which in a cluster takes a leader.
    JetStream,
}

/// Adds to a server's URL what it takes to connect there.
pub(super) type ConnectWith = Arc<dyn Fn(ConnectOptions) -> ConnectOptions + Send + Sync>;

/// When a server is ready, and how long it may take.
#[derive(Clone)]
pub(super) struct Readiness {
    pub(super) goal: Goal,
    pub(super) connect_with: Option<ConnectWith>,
    pub(super) within: Duration,
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Readiness").field("goal", &self.goal).finish_non_exhaustive()
    }
}

impl Readiness {
    /// Waits for the server; one that ends first, or takes too long, is an error with its last
    /// words.
    pub(super) async fn wait(
        &self,
        process: &mut Process,
        folder: &Folder,
        url: &str,
    ) -> Result<Ports> {
        let pid = process.pid();
        let failed = tokio::select! {
            ended = process.ended() => Error::new(
                ErrorKind::Local,
                format!("nats-server ended with {} before it was ready", ended?),
            ),
            ready = self.reach(folder, pid, url) => match ready {
                Ok(ports) => return Ok(ports),
                Err(failed) => failed,
            },
        };
        let last_words = process.last_words(folder);
        let log_file = folder.log_file();
        let why = in_one_line(&failed);
        let message = format!("{why}; its last lines in {}:\n{last_words}", log_file.display());
        Err(Error::new(failed.kind(), message))
    }

    async fn reach(&self, folder: &Folder, pid: u32, url: &str) -> Result<Ports> {
        let deadline = Instant::now() + self.within;
        loop {
            let problem = match folder.ports(pid) {
                Some(ports) => match self.ask(url).await {
                    Ok(()) => return Ok(ports),
                    Err(problem) => problem,
                },
                None => Error::new(ErrorKind::Unavailable, "it has not written its ports"),
            };
            if problem.is_permission() || problem.is_unsupported() {
                return Err(problem);
            }
            if Instant::now() > deadline {
                let message = format!("nats-server was not ready in {} s", self.within.as_secs());
                return Err(Error::new(ErrorKind::Timeout, message).because(problem));
            }
            sleep(PACE).await;
        }
    }

    async fn ask(&self, url: &str) -> Result<()> {
        let conn = self.connect(url).await?;
        match self.goal {
            Goal::Connect => Ok(()),
            Goal::JetStream => ask(&conn, "INFO", None).await,
        }
    }

    /// A client for questions of ours, of any of the servers in `url`.
    pub(super) async fn connect(&self, url: &str) -> Result<Connection> {
        let options =
            ConnectOptions::new(url)?.connect_timeout(ASK_DEADLINE).request_timeout(ASK_DEADLINE);
        match &self.connect_with {
            Some(with) => Connection::open(&with(options)).await,
            None => Connection::open(&options).await.map_err(|error| {
                if !error.is_permission() {
                    return error;
                }
                let message = "the configuration asks for a login: give one with \
                               BrokerBuilder::connect_with";
                Error::new(ErrorKind::Permission, message).because(error)
            }),
        }
    }
}
