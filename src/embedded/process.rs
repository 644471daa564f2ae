//! One run of nats-server: started, signalled, ended, and never left behind by accident.
//!
//! It has a process group of its own: Ctrl-C in a terminal reaches the whole foreground group, and
//! a worker that drains still needs its broker.

use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::folder::{Folder, cannot, log_tail};
use crate::error::{Error, ErrorKind, Result};

/// How long a server may take to end by itself before it is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// How long a server may take to leave in its own time before it is killed.
const LEAVE_DEADLINE: Duration = Duration::from_secs(60);

/// How long a drop waits for a killed server, so that its folder can be removed.
const REAP_PACE: Duration = Duration::from_millis(2);
const REAP_TRIES: u32 = 50;

/// How many lines of the log an error shows.
const SHOWN_LINES: usize = 15;

#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    pid: u32,
    log_start: u64,
    farewell: Farewell,
}

/// How a server is ended that nobody waits for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Farewell {
    /// At once: its folder goes as well.
    Kill,
    /// In its own time: it may still have to write.
    Terminate,
}

impl Process {
    pub(super) fn spawn(server: &Path, folder: &Folder) -> Result<Self> {
        folder.clear_ports()?;
        let (log, log_start) = folder.open_log()?;
        let stdout = log.try_clone().map_err(|e| cannot("share the log of", server).because(e))?;
        let child = Command::new(server)
            .arg("-c")
            .arg(folder.config_file())
            .stdin(folder.share_lock()?)
            .stdout(stdout)
            .stderr(log)
            .process_group(0)
            .spawn()
            .map_err(|e| cannot("start", server).because(e))?;
        let pid = child.id().ok_or_else(|| cannot("start", server))?;
        let farewell = if folder.is_temporary() { Farewell::Kill } else { Farewell::Terminate };
        Ok(Self { child, pid, log_start, farewell })
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// The last lines that this run has logged.
    pub(super) fn last_words(&self, folder: &Folder) -> String {
        log_tail(folder.path(), SHOWN_LINES, self.log_start)
    }

    /// Waits for the end, however it comes.
    pub(super) async fn ended(&mut self) -> Result<ExitStatus> {
        self.child.wait().await.map_err(|e| self.cannot("wait for").because(e))
    }

    /// Sends a signal; to a server that has ended it is an error.
    pub(super) fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(self.id()?, signal).map_err(|e| self.cannot("signal").because(e))
    }

    /// Stops the server where it is, and waits until its last thread has stopped: they do not all
    /// hear the signal at once.
    pub(super) async fn freeze(&self) -> Result<()> {
        self.signal(Signal::STOP)?;
        let id = WaitId::Pid(self.id()?);
        let seen = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        tokio::task::spawn_blocking(move || waitid(id, seen))
            .await
            .map_err(|e| self.cannot("wait for").because(e))?
            .map_err(|e| self.cannot("wait for").because(e))
            .map(drop)
    }

    fn id(&self) -> Result<Pid> {
        let pid = self.child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        pid.ok_or_else(|| self.cannot("signal").because("it has ended"))
    }

    /// Kills it, and waits until it is gone.
    pub(super) async fn kill(mut self) -> Result<()> {
        if self.is_over() {
            return Ok(());
        }
        self.signal(Signal::KILL)?;
        self.ended().await.map(drop)
    }

    /// Asks it to end, and kills it when it does not. One that is frozen is thawed to hear.
    pub(super) async fn stop(mut self) -> Result<()> {
        if self.is_over() {
            return Ok(());
        }
        self.signal(Signal::TERM)?;
        self.signal(Signal::CONT)?;
        match timeout(STOP_DEADLINE, self.ended()).await {
            Ok(status) => status.map(drop),
            Err(_) => self.kill().await,
        }
    }

    /// Asks it to leave in its own time, and kills it when it does not.
    pub(super) async fn lame_duck(mut self) -> Result<()> {
        self.signal(Signal::USR2)?;
        match timeout(LEAVE_DEADLINE, self.ended()).await {
            Ok(status) => status.map(drop),
            Err(_) => self.kill().await,
        }
    }

    /// Whether its end has been waited for, so that its pid may be another's.
    fn is_over(&self) -> bool {
        self.child.id().is_none()
    }

    fn cannot(&self, what: &str) -> Error {
        Error::new(ErrorKind::Local, format!("cannot {what} nats-server with pid {}", self.pid))
    }

    /// Bounded by `REAP_PACE * REAP_TRIES`.
    fn reap(&mut self) {
        for _ in 0..REAP_TRIES {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(REAP_PACE),
                Ok(Some(_)) | Err(_) => return,
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_over() {
            return;
        }
        // Nothing is left to do for a server that cannot be signalled: it is gone.
        match self.farewell {
            Farewell::Kill => {
                let _ = self.signal(Signal::KILL);
                self.reap();
            }
            Farewell::Terminate => {
                let _ = self.signal(Signal::TERM);
                let _ = self.signal(Signal::CONT);
            }
        }
    }
}
