//! Exit codes, and how an error is told.

use std::process::ExitCode;

use serde_json::json;

use crate::output;

/// How the program ends; see `tidemill --help`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    Ok = 0,
    Error = 1,
    Usage = 2,
    NotFound = 3,
    Permission = 4,
    JobFailed = 5,
    Unreachable = 6,
    WaitedTooLong = 124,
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A mistake in what was typed, found after parsing.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UsageError(pub(crate) String);

/// What was asked for is not there.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct NotFound(pub(crate) String);

/// Tells an error of a verb on standard error and gives its exit code.
pub(crate) fn report(error: &anyhow::Error, verb: &str, as_json: bool) -> Exit {
    if output::is_closed_pipe(error) {
        return Exit::Ok;
    }
    let (exit, code) = classify(error);
    if as_json {
        let causes: Vec<String> = error.chain().skip(1).map(ToString::to_string).collect();
        let told = json!({ "error": {
            "code": code, "message": error.to_string(), "causes": causes, "verb": verb,
        }});
        output::to_stderr(&told.to_string());
    } else {
        let mut line = in_one_line(error.chain().map(ToString::to_string));
        if line.contains("no permission to ") {
            line.push_str(&format!(" (needed for `tidemill {verb}`)"));
        }
        output::error(&line);
    }
    exit
}

/// An error and its causes in one line. Some errors say their cause themselves: not twice.
fn in_one_line(messages: impl Iterator<Item = String>) -> String {
    messages.fold(String::new(), |line, message| match line.as_str() {
        "" => message,
        said if said.ends_with(&message) => line,
        said => format!("{said}: {message}"),
    })
}

fn classify(error: &anyhow::Error) -> (Exit, &'static str) {
    if error.downcast_ref::<UsageError>().is_some() {
        return (Exit::Usage, "usage");
    }
    if error.downcast_ref::<NotFound>().is_some() {
        return (Exit::NotFound, "not_found");
    }
    let Some(error) = error.downcast_ref::<tidemill::Error>() else {
        return (Exit::Error, "error");
    };
    if error.is_invalid() {
        (Exit::Usage, "invalid")
    } else if error.is_not_found() {
        (Exit::NotFound, "not_found")
    } else if error.is_permission() {
        (Exit::Permission, "permission")
    } else if error.is_unavailable() {
        (Exit::Unreachable, "unavailable")
    } else if error.is_unsupported() {
        (Exit::Unreachable, "unsupported")
    } else if error.is_timeout() {
        (Exit::WaitedTooLong, "timeout")
    } else if error.is_full() {
        (Exit::Error, "full")
    } else if error.is_too_large() {
        (Exit::Error, "too_large")
    } else if error.is_duplicate() {
        (Exit::Error, "duplicate")
    } else if error.is_unknown() {
        (Exit::Error, "unknown_outcome")
    } else {
        (Exit::Error, "error")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_once() {
        let line = |messages: &[&str]| in_one_line(messages.iter().map(ToString::to_string));
        assert_eq!(line(&["cannot", "I/O: refused", "refused"]), "cannot: I/O: refused");
        assert_eq!(line(&["cannot", "refused"]), "cannot: refused");
        assert_eq!(line(&["cannot"]), "cannot");
    }
}
