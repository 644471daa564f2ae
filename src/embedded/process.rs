//! One nats-server process: started, asked whether it is ready, ended.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use super::config::{Ports, Settings, read_ports, render};
use crate::error::{Error, ErrorKind, Result};

/// How long a server may take until it can be talked to.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// How often to look whether it can.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// How long a server may take to end before it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// The lines of the log that are shown when a server does not start.
const LOG_TAIL_LINES: usize = 20;

/// A server process and its data folder, which it alone uses.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    pid: Pid,
    pub(super) ports: Ports,
}

impl Process {
    /// Starts a server on a data folder and waits until it tells its ports.
    pub(super) async fn start(server: &Path, folder: &Path, settings: &Settings) -> Result<Self> {
        let lock = lock(folder)?;
        let config = folder.join("nats-server.conf");
        write_private(&config, &render(settings, folder))?;
        let mut command = Command::new(server);
        command
            .arg("-c")
            .arg(&config)
            // The lock goes with the server: even if we are killed, it holds as long as the server
            // lives. The server does not read its standard input.
            .stdin(Stdio::from(lock))
            .stdout(Stdio::null())
            .stderr(Stdio::from(log_file(folder)?))
            .kill_on_drop(true);
        // A terminal's Ctrl-C is for the program, which drains its worker first.
        #[cfg(unix)]
        command.process_group(0);
        let child = command
            .spawn()
            .map_err(|error| local(format!("cannot start {}", server.display()), error))?;
        let pid = child
            .id()
            .and_then(|id| Pid::from_raw(i32::try_from(id).ok()?))
            .ok_or_else(|| Error::new(ErrorKind::Local, "the nats-server has no process id"))?;
        let mut process = Self { child, pid, ports: Ports::default() };
        process.ports = process.wait_for_ports(folder).await?;
        Ok(process)
    }

    async fn wait_for_ports(&mut self, folder: &Path) -> Result<Ports> {
        let file = folder.join(format!("nats-server_{}.ports", self.pid()));
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(did_not_start(folder, &format!("it ended with {status}")));
            }
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            if let Some(ports) = read_ports(&text) {
                return Ok(ports);
            }
            if Instant::now() >= deadline {
                return Err(did_not_start(folder, "it does not tell its ports"));
            }
            sleep(LOOK_EVERY).await;
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    pub(super) fn signal(&self, signal: Signal) {
        // A process that is gone cannot be signalled, and need not be.
        let _ = kill_process(self.pid, signal);
    }

    /// How the process ended, if it has.
    pub(super) fn ended(&mut self) -> Option<String> {
        self.child.try_wait().ok().flatten().map(|status| status.to_string())
    }

    /// Ends the server: asks first, then kills.
    pub(super) async fn stop(&mut self) {
        self.signal(Signal::TERM);
        if timeout(STOP_PATIENCE, self.child.wait()).await.is_err() {
            self.kill().await;
        }
    }

    /// Kills the server.
    pub(super) async fn kill(&mut self) {
        if let Err(error) = self.child.kill().await {
            tracing::debug!(%error, "a nats-server was gone before it was killed");
        }
    }
}

/// The last lines of a server's log.
pub(super) fn log_tail(folder: &Path) -> String {
    let text = [folder.join("nats-server.log"), folder.join("nats-server.err")]
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .collect::<String>();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
}

pub(super) fn did_not_start(folder: &Path, problem: &str) -> Error {
    let tail = log_tail(folder);
    let tail = if tail.is_empty() { "(its log is empty)" } else { &tail };
    Error::new(
        ErrorKind::Local,
        format!(
            "nats-server did not start in {}: {problem}; its log ends:\n{tail}",
            folder.display()
        ),
    )
}

/// Locks a data folder, which nats-server itself does not: two servers on one folder corrupt it.
fn lock(folder: &Path) -> Result<File> {
    let path = folder.join(".tidemill.lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .map_err(|error| local(format!("cannot open {}", path.display()), error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(in_use(folder)),
        Err(TryLockError::Error(error)) => {
            Err(local(format!("cannot lock {}", path.display()), error))
        }
    }
}

fn in_use(folder: &Path) -> Error {
    let pid = std::fs::read_to_string(folder.join("nats-server.pid")).unwrap_or_default();
    let pid = pid.trim();
    Error::new(
        ErrorKind::Local,
        format!(
            "the data folder {} is in use by another nats-server{}: end that one, or choose \
             another folder",
            folder.display(),
            if pid.is_empty() { String::new() } else { format!(" (process {pid})") }
        ),
    )
}

/// Writes a file that only its owner may read: it may hold passwords.
pub(super) fn write_private(path: &Path, text: &str) -> Result<()> {
    let mut options = OpenOptions::new();
    options.create(true).write(true).truncate(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    options
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| local(format!("cannot write {}", path.display()), error))
}

fn log_file(folder: &Path) -> Result<File> {
    let path: PathBuf = folder.join("nats-server.err");
    File::create(&path).map_err(|error| local(format!("cannot create {}", path.display()), error))
}

pub(super) fn local(message: String, error: std::io::Error) -> Error {
    Error::new(ErrorKind::Local, message).because(error)
}
