//! Commands as handlers: the payload on standard input, the result on standard output.
//!
//! Exit code 0 is done, with standard output as the result; 65 (data error, of sysexits.h) buries;
//! anything else is a failed attempt with standard error as its error.

use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use serde_json::value::RawValue;
use tidemill::{Handler, HandlerResult, JobContext, JobError, Kind};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

/// What is kept of a command's output, in bytes; the rest is read and dropped.
const MAX_RESULT_BYTES: usize = 4 * 1024 * 1024;
const MAX_ERROR_BYTES: usize = 16 * 1024;

/// How long what a stopped command has started may outlive it, and how often that is looked at: nobody
/// tells of the end of what is not our child.
const LAST_WORDS: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The exit code that says that trying again is pointless.
const DATA_ERROR: i32 = 65;

/// `KIND=COMMAND` as given to `--exec`, or `KIND=URL` as given to `--http`.
#[derive(Clone, Debug)]
pub(crate) struct Assignment {
    pub(crate) kind: Kind,
    pub(crate) target: String,
}

impl FromStr for Assignment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, target) =
            text.split_once('=').ok_or_else(|| format!("{text:?} has no =: use KIND=TARGET"))?;
        if target.trim().is_empty() {
            return Err(format!("nothing is given for kind {kind:?}"));
        }
        let kind = Kind::new(kind).map_err(|error| error.to_string())?;
        Ok(Self { kind, target: target.to_owned() })
    }
}

/// A handler that runs a command through the shell.
pub(crate) fn handler(assignment: &Assignment) -> Handler {
    let command = assignment.target.clone();
    Handler::raw(&assignment.kind, move |payload, context| {
        let command = command.clone();
        async move { run(&command, payload, &context).await }
    })
}

async fn run(command: &str, payload: Bytes, context: &JobContext) -> HandlerResult {
    let child = Command::new("sh")
        .arg("-c")
        .arg(command)
        .env("TIDEMILL_ID", context.id().as_str())
        .env("TIDEMILL_RUN", context.run().as_str())
        .env("TIDEMILL_KIND", context.kind().as_str())
        .env("TIDEMILL_QUEUE", context.queue().as_str())
        .env("TIDEMILL_PRIORITY", context.priority().as_str())
        .env("TIDEMILL_ATTEMPT", context.attempt().to_string())
        .env("TIDEMILL_MAX_ATTEMPTS", context.max_attempts().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Its own group, so that all it starts can be ended, and a terminal's Ctrl-C is not for it.
        .process_group(0)
        .spawn()
        .map_err(|error| JobError::failed(format!("cannot start {command:?}: {error}")))?;
    let mut group = Group::new(child);
    let leader = group.id;
    let (finished, end) = {
        let mut finish = pin!(group.finish(payload));
        tokio::select! {
            finished = &mut finish => (finished, End::OfItself),
            () = context.cancellation().cancelled() => {
                signal(leader, Signal::TERM);
                // It may still end well, and is heard until it does; whoever cancelled us drops us
                // if that takes too long.
                (finish.await, End::Told)
            }
        }
    };
    match end {
        // What it left behind on purpose, such as a daemon, is let be.
        End::OfItself => group.is_over = true,
        // Told to stop, the first of the group may be gone and others deaf to it.
        End::Told => group.dispersed().await,
    }
    match finished {
        Ok(finished) => outcome(command, &finished),
        Err(error) => Err(JobError::failed(format!("cannot run {command:?}: {error}"))),
    }
}

/// What brought a command to its end.
enum End {
    OfItself,
    Told,
}

/// A command and all that it started. What is left of them is killed when this is dropped.
struct Group {
    child: Child,
    id: Option<Pid>,
    is_over: bool,
}

struct Finished {
    status: ExitStatus,
    output: Vec<u8>,
    error: Vec<u8>,
}

impl Group {
    fn new(child: Child) -> Self {
        let id = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        Self { child, id, is_over: false }
    }

    /// Waits a moment for the rest of the group to heed the signal that ended its first.
    async fn dispersed(&self) {
        let Some(id) = self.id else { return };
        let deadline = Instant::now() + LAST_WORDS;
        while test_kill_process_group(id).is_ok() && Instant::now() < deadline {
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Gives the command its payload and waits for its end.
    async fn finish(&mut self, payload: Bytes) -> std::io::Result<Finished> {
        let stdin = self.child.stdin.take();
        let feed = async {
            if let Some(mut stdin) = stdin {
                // A command may end without having read all of it.
                let _ = stdin.write_all(&payload).await;
            }
        };
        let output = read_some(self.child.stdout.take(), MAX_RESULT_BYTES);
        let error = read_some(self.child.stderr.take(), MAX_ERROR_BYTES);
        let ((), output, error) = tokio::join!(feed, output, error);
        Ok(Finished { status: self.child.wait().await?, output, error })
    }
}

/// Signals a group. One that is gone needs no signal.
fn signal(group: Option<Pid>, signal: Signal) {
    if let Some(group) = group {
        let _ = kill_process_group(group, signal);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.is_over {
            signal(self.id, Signal::KILL);
        }
    }
}

/// Reads to the end and keeps the first `limit` bytes.
async fn read_some(stream: Option<impl AsyncRead + Unpin>, limit: usize) -> Vec<u8> {
    let mut kept = Vec::new();
    let Some(mut stream) = stream else { return kept };
    let mut buffer = [0; 8192];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        let room = limit.saturating_sub(kept.len()).min(count);
        kept.extend_from_slice(&buffer[..room]);
    }
    kept
}

fn outcome(command: &str, finished: &Finished) -> HandlerResult {
    let Finished { status, output, error } = finished;
    if status.success() {
        return Ok(to_result(output));
    }
    let said = String::from_utf8_lossy(error);
    let message = match said.trim() {
        "" => format!("{command:?} ended with {status}"),
        said => format!("{said} ({status})"),
    };
    if status.code() == Some(DATA_ERROR) {
        return Err(JobError::discard(message));
    }
    Err(JobError::failed(message))
}

/// What a handler in another language gave back: JSON as it is, other text as a JSON string,
/// nothing as no result.
pub(crate) fn to_result(output: &[u8]) -> Option<Box<RawValue>> {
    let text = String::from_utf8_lossy(output);
    let text = text.trim();
    if text.is_empty() {
        return None;
    }
    RawValue::from_string(text.to_owned()).or_else(|_| serde_json::value::to_raw_value(text)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_json_or_text() {
        let result = |output: &str| to_result(output.as_bytes()).map(|raw| raw.get().to_owned());
        assert_eq!(result(""), None);
        assert_eq!(result("{\"a\": 1}\n").as_deref(), Some("{\"a\": 1}"));
        assert_eq!(result("hello\nthere\n").as_deref(), Some("\"hello\\nthere\""));
        assert_eq!(result("42").as_deref(), Some("42"));
    }

    #[test]
    fn assignments_are_checked() {
        let good: Assignment = "resize=convert - -resize 50% -".parse().expect("valid");
        assert_eq!(
            (good.kind.as_str(), good.target.as_str()),
            ("resize", "convert - -resize 50% -")
        );
        for bad in ["resize", "resize=", "a b=c", "=c"] {
            assert!(bad.parse::<Assignment>().is_err(), "{bad:?}");
        }
    }
}
