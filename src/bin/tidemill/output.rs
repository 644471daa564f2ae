//! Data goes to standard output, everything else to standard error.

use std::io::{self, IsTerminal, Write};

use anstyle::{AnsiColor, Style};
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::Value;
use tidemill::JobHandle;
use tracing_subscriber::EnvFilter;

/// Prints a line of data.
///
/// # Errors
/// Where the reader has gone; the program then ends quietly.
pub(crate) fn line(text: &str) -> io::Result<()> {
    let mut out = anstream::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

/// Prints a document as one line of JSON.
pub(crate) fn json(document: &impl Serialize) -> anyhow::Result<()> {
    Ok(line(&serde_json::to_string(document)?)?)
}

/// Prints a document as JSON for people.
fn pretty(document: &impl Serialize) -> anyhow::Result<()> {
    Ok(line(&plain(&serde_json::to_string_pretty(document)?))?)
}

/// Tells a person something that is no data.
pub(crate) fn to_stderr(text: &str) {
    // With standard error gone there is nobody left to tell.
    let _ = writeln!(anstream::stderr().lock(), "{text}");
}

pub(crate) fn error(text: &str) {
    let style = Style::new().bold().fg_color(Some(AnsiColor::Red.into()));
    to_stderr(&format!("{style}error{style:#}: {text}"));
}

/// Whether somebody looks at standard error, who likes progress.
pub(crate) fn is_watched() -> bool {
    io::stderr().is_terminal()
}

pub(crate) fn bold(text: &str) -> String {
    let style = Style::new().bold();
    format!("{style}{text}{style:#}")
}

pub(crate) fn dim(text: &str) -> String {
    let style = Style::new().dimmed();
    format!("{style}{text}{style:#}")
}

/// Text as anybody may have written it, without what would steer a terminal.
pub(crate) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' | '\t' => plain.push(character),
            _ if character.is_control() => plain.extend(character.escape_default()),
            _ => plain.push(character),
        }
    }
    plain
}

/// Prints a name and its value, one of several under each other.
pub(crate) fn field(name: &str, value: &str) -> io::Result<()> {
    line(&format!("{}  {}", bold(&format!("{name:>9}")), plain(value)))
}

/// Prints a payload for people, under its title.
pub(crate) fn shown_payload(bytes: &[u8]) -> anyhow::Result<()> {
    line(&bold("  payload"))?;
    match payload(bytes) {
        Value::String(text) => Ok(line(&plain(&text))?),
        document => pretty(&document),
    }
}

/// Prints a payload for people, or that it is sealed, and why it is not opened.
pub(crate) fn shown_or_sealed(
    sealed_with: Option<String>,
    payload: tidemill::Result<Bytes>,
) -> anyhow::Result<()> {
    if let Some(key) = sealed_with {
        field("sealed", &format!("with key {key}"))?;
    }
    match payload {
        Ok(payload) => shown_payload(&payload),
        Err(problem) => Ok(line(&dim(&format!("           {problem}; give --seal-keys")))?),
    }
}

/// What stands for something that is sealed.
pub(crate) fn sealed(key: &str) -> String {
    format!("sealed with key {key}")
}

/// A table in the manner of the nats command line.
pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_FULL_CONDENSED.with_rounded_corners())
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header.iter().copied());
    table
}

/// Tells of a job that was enqueued.
pub(crate) fn enqueued(as_json: bool, handle: &JobHandle) -> anyhow::Result<()> {
    if as_json {
        return json(&serde_json::json!({
            "id": handle.id(), "run": handle.run(), "queue": handle.queue(),
            "kind": handle.kind(), "seq": handle.sequence(), "duplicate": handle.is_duplicate(),
        }));
    }
    if handle.is_duplicate() {
        to_stderr("its key is taken: this job was there already");
    }
    Ok(line(handle.id().as_str())?)
}

/// A moment for programs, as records have it.
pub(crate) fn moment(time: &DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// A moment for people.
pub(crate) fn clock(time: &DateTime<Utc>) -> String {
    time.format("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// A payload as JSON, or as text where it is none.
pub(crate) fn payload(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(bytes).into_owned()))
}

/// Whether an error only says that nobody reads our output any more, as behind `| head`.
pub(crate) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

/// Logs to standard error what is of this level, unless RUST_LOG says otherwise.
pub(crate) fn log_to_stderr(level: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(
            is_watched() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        )
        .with_target(false)
        .init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_steer_a_terminal_is_shown_instead() {
        let hostile = "ä\u{1b}[2J\r\u{9b}31m\u{7}\tb\n";
        assert_eq!(plain(hostile), "ä\\u{1b}[2J\\r\\u{9b}31m\\u{7}\tb\n");
    }
}
