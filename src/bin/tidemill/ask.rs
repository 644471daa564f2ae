//! Asking a person before much is done at once.

use std::io::IsTerminal;

use crate::exit::UsageError;

/// That there is somebody to ask. Without a terminal there is nobody, and that is an error.
pub(crate) fn somebody(verb: &str, what: &str) -> Result<(), UsageError> {
    if std::io::stdin().is_terminal() {
        return Ok(());
    }
    Err(UsageError(format!("to {verb} {what} without being asked, say --yes")))
}

/// Asks whether to do it.
pub(crate) fn confirmed(verb: &str, count: usize, what: &str) -> anyhow::Result<bool> {
    somebody(verb, &format!("{count} {what}"))?;
    eprint!("{verb} {count} {what}? [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
