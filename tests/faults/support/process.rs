//! Real processes: started, heard, stopped where they are, killed.

use std::process::{ExitStatus, Stdio};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::timeout;

use super::PATIENCE;

/// A process of our own; killed when it is dropped.
pub(crate) struct Process {
    child: Child,
    heard: watch::Receiver<String>,
}

/// The program, at this broker, without anybody's settings.
pub(crate) fn program(url: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidemill"));
    at_broker(&mut command, url);
    command.args(arguments);
    command
}

/// Clears away what a server leaves that is stopped between an ack and the deletion after it: messages of
/// jobs that have ended, which no consumer hands out.
pub(crate) async fn clear_away(url: &str) {
    let revive = ["doctor", super::load::QUEUE, "--revive"];
    let revived = program(url, &revive).kill_on_drop(true).output().await.expect("runs");
    let said = String::from_utf8_lossy(&revived.stderr);
    assert!(revived.status.success(), "{said}{}", String::from_utf8_lossy(&revived.stdout));
}

/// Has whatever `command` starts use this broker, and nobody's settings.
pub(crate) fn at_broker(command: &mut Command, url: &str) {
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("NATS_") || name == "RUST_LOG" {
            command.env_remove(&*name);
        }
    }
    command.env("XDG_CONFIG_HOME", "/nonexistent").env("NATS_URL", url);
}

/// Sends a signal to a process that runs.
pub(crate) fn signal(pid: u32, signal: Signal) {
    kill_process(as_pid(pid), signal).expect("it runs");
}

fn as_pid(pid: u32) -> Pid {
    i32::try_from(pid).ok().and_then(Pid::from_raw).expect("an id")
}

impl Process {
    pub(crate) fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.kill_on_drop(true).spawn().expect("starts");
        let (sender, heard) = watch::channel(String::new());
        listen(child.stdout.take().expect("piped"), sender.clone());
        listen(child.stderr.take().expect("piped"), sender);
        Self { child, heard }
    }

    /// A worker of `tidemill work` with these commands as handlers, once it works.
    pub(crate) async fn worker(url: &str, arguments: &[&str]) -> Self {
        let worker = Self::start(program(url, &[&["work"], arguments].concat()));
        worker.says("Ctrl-C drains").await;
        worker
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// All that it has said so far.
    pub(crate) fn heard(&self) -> String {
        self.heard.borrow().clone()
    }

    /// Waits until it has said this.
    pub(crate) async fn says(&self, text: &str) {
        let mut heard = self.heard.clone();
        let said = timeout(PATIENCE, heard.wait_for(|heard| heard.contains(text))).await;
        assert!(said.is_ok_and(|said| said.is_ok()), "no {text:?} in {:?}", self.heard());
    }

    pub(crate) async fn kill(mut self) {
        self.child.kill().await.expect("kills");
    }

    /// Stops it where it is, and waits until all of it has stopped.
    pub(crate) async fn freeze(&self) {
        let pid = self.pid();
        signal(pid, Signal::STOP);
        let seen = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        let stopped = tokio::task::spawn_blocking(move || waitid(WaitId::Pid(as_pid(pid)), seen));
        stopped.await.expect("no panic").expect("it stops");
    }

    pub(crate) fn thaw(&self) {
        signal(self.pid(), Signal::CONT);
    }

    /// Waits until it is gone, however long that takes.
    pub(crate) async fn gone(mut self) {
        self.child.wait().await.expect("waits");
    }

    /// Waits for its end.
    pub(crate) async fn ended(mut self) -> ExitStatus {
        let ended = timeout(PATIENCE, self.child.wait()).await;
        ended.unwrap_or_else(|_| panic!("it goes on: {}", self.heard())).expect("waits")
    }

    /// Lets it drain, which has to end well.
    pub(crate) async fn terminate(self) {
        signal(self.pid(), Signal::TERM);
        let heard = self.heard.clone();
        let status = self.ended().await;
        assert!(status.success(), "{status}: {}", *heard.borrow());
    }
}

fn listen(stream: impl AsyncRead + Send + Unpin + 'static, heard: watch::Sender<String>) {
    tokio::spawn(async move {
        let mut lines = BufReader::new(stream).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            heard.send_modify(|heard| {
                heard.push_str(&line);
                heard.push('\n');
            });
        }
    });
}
