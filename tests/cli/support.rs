//! Running the program and hearing what it says.

use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tidemill::embedded::Broker;

/// How long anything may take that should happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The stream of the default queue's jobs.
pub(crate) const JOBS_STREAM: &str = "TIDEMILL_JOBS_default";

/// A broker to run the program against.
pub(crate) struct Mill {
    pub(crate) broker: Broker,
}

/// What a program said, and how it ended.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Mill {
    pub(crate) async fn start() -> Self {
        Self { broker: Broker::start().await.expect("a broker") }
    }

    /// The program with these arguments, at this broker.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = tidemill(arguments);
        command.env("NATS_URL", self.broker.url());
        command
    }

    /// Runs to the end, with nothing to read.
    pub(crate) fn run(&self, arguments: &[&str]) -> Said {
        said(self.command(arguments), "")
    }

    /// Runs to the end, with this input.
    pub(crate) fn run_with(&self, arguments: &[&str], input: &str) -> Said {
        said(self.command(arguments), input)
    }

    /// Runs to the end, which must be a good one; what it printed.
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        let said = self.run(arguments);
        assert_eq!(said.code, 0, "{arguments:?}: {said:?}");
        said.out
    }

    /// The same with `--json`: its documents.
    pub(crate) fn json(&self, arguments: &[&str]) -> Vec<Value> {
        let arguments = [arguments, &["--json"]].concat();
        documents(&self.ok(&arguments))
    }

    /// Starts a worker, and waits until it works.
    pub(crate) fn work(&self, arguments: &[&str]) -> Running {
        let running = Running::start(self.command(&[&["work"], arguments].concat()));
        running.hears("Ctrl-C drains");
        running
    }
}

/// The program without anybody's settings.
pub(crate) fn tidemill(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidemill"));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("NATS_") || name == "RUST_LOG" || name == "NO_COLOR" {
            command.env_remove(&*name);
        }
    }
    command.env("XDG_CONFIG_HOME", "/nonexistent").args(arguments);
    command
}

pub(crate) fn said(mut command: Command, input: &str) -> Said {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("starts");
    // A program that does not read its input may have ended before.
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    let output = child.wait_with_output().expect("ends");
    Said {
        code: output.status.code().expect("no signal ended it"),
        out: String::from_utf8(output.stdout).expect("UTF-8"),
        err: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}

/// Every line of a program's output as a document; nothing else may be there.
pub(crate) fn documents(out: &str) -> Vec<Value> {
    out.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

/// A program at work. Killed with the test if it has not ended before.
pub(crate) struct Running {
    child: Child,
    heard: Arc<Mutex<String>>,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("starts");
        let heard: Arc<Mutex<String>> = Arc::default();
        listen(child.stdout.take().expect("piped"), heard.clone());
        listen(child.stderr.take().expect("piped"), heard.clone());
        Self { child, heard }
    }

    /// All that it said so far.
    pub(crate) fn heard(&self) -> String {
        self.heard.lock().expect("not poisoned").clone()
    }

    /// Waits until it has said this.
    pub(crate) fn hears(&self, text: &str) -> String {
        eventually(&format!("{text:?} in {:?}", self.heard()), || {
            Some(self.heard()).filter(|heard| heard.contains(text))
        })
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("an id");
        kill_process(id, signal).expect("it runs");
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("waits").is_some()
    }

    /// Waits until it has ended.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let heard = self.heard.clone();
        let child = &mut self.child;
        eventually(&format!("its end, after {:?}", heard.lock().expect("not poisoned")), || {
            child.try_wait().expect("waits")
        })
    }

    /// Lets it drain.
    pub(crate) fn terminate(mut self) {
        self.signal(Signal::TERM);
        let status = self.ended();
        assert!(status.success(), "{status}: {}", self.heard());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn listen(mut stream: impl Read + Send + 'static, heard: Arc<Mutex<String>>) {
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            heard
                .lock()
                .expect("not poisoned")
                .push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    });
}

/// Asks until the answer is `Some`, or fails the test with what was waited for.
pub(crate) fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "it never came: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// How many messages a stream holds, if it is there.
pub(crate) async fn messages(mill: &Mill, stream: &str) -> u64 {
    let nats = async_nats::connect(mill.broker.url()).await.expect("connects");
    let answer = nats.request(format!("$JS.API.STREAM.INFO.{stream}"), "".into()).await;
    let info: Value = serde_json::from_slice(&answer.expect("an answer").payload).expect("JSON");
    info["state"]["messages"].as_u64().unwrap_or_default()
}
