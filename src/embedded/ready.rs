//! Waits until a server that was started answers, and asks what it says about itself.
//!
//! Its ports are read from the file it writes, never from its log, and JetStream counts as there
//! when it answers a client: it recovers its streams after the log's first lines.

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

/// Who asks.
#[derive(Clone, Debug)]
pub(super) struct Login {
    pub(super) user: String,
    pub(super) password: String,
}

/// When a server is ready, and how long it may take.
#[derive(Clone, Debug)]
pub(super) struct Readiness {
    pub(super) goal: Goal,
    pub(super) login: Option<Login>,
    pub(super) within: Duration,
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
        let conn = connect(url, self.login.as_ref()).await?;
        match self.goal {
            Goal::Connect => Ok(()),
            Goal::JetStream => ask(&conn, "INFO", None).await,
        }
    }
}

/// A plain client, for questions of ours, of any of the servers in `url`.
pub(super) async fn connect(url: &str, login: Option<&Login>) -> Result<Connection> {
    let mut options =
        ConnectOptions::new(url)?.connect_timeout(ASK_DEADLINE).request_timeout(ASK_DEADLINE);
    if let Some(Login { user, password }) = login {
        options = options.user_password(user, password);
    }
    Connection::open(&options).await.map_err(|error| match login {
        None if error.is_permission() => Error::new(
            ErrorKind::Permission,
            "the configuration asks for a login: give one with BrokerBuilder::user",
        )
        .because(error),
        None | Some(_) => error,
    })
}
