//! Runs other programs to their end, which is bounded, and tells what went wrong.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use crate::error::{Error, ErrorKind, Result};

/// What the program wrote to stdout; if it fails, the error holds what it wrote to stderr.
pub(super) async fn run(command: &mut Command, deadline: Duration) -> Result<String> {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(deadline, command.output())
        .await
        .map_err(|_| failed(command, &format!("gave no answer in {} s", deadline.as_secs())))?
        .map_err(|e| failed(command, "cannot be run").because(e))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(failed(command, &format!("failed with {}: {}", output.status, said.trim())))
}

/// Names the program with its first argument, which tells what was asked of it.
fn failed(command: &Command, why: &str) -> Error {
    let command = command.as_std();
    let asked = command.get_args().next().unwrap_or_default();
    let message = format!("{} {} {why}", command.get_program().display(), asked.display());
    Error::new(ErrorKind::Local, message)
}
