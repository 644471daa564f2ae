//! Asking a person before much is done at once.

use std::io::IsTerminal;

use crate::exit::UsageError;

/// Asks whether to do it. Without a terminal there is nobody to ask, and that is an error.
pub(crate) fn confirmed(verb: &str, count: usize, what: &str) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        let message = format!("to {verb} {count} {what} without being asked, say --yes");
        return Err(UsageError(message).into());
    }
    eprint!("{verb} {count} {what}? [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
