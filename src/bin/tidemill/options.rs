//! What can be said of a job on the command line, whoever enqueues it when.

use std::io::Read;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use tidemill::{NewJob, Priority};

use crate::cli::duration;
use crate::exit::UsageError;

#[derive(Debug, Args)]
pub(crate) struct JobOptions {
    /// critical, high, normal or low
    #[arg(short, long, default_value_t = Priority::Normal)]
    priority: Priority,
    /// Retries after the first attempt, in place of the worker's policy
    #[arg(long, allow_hyphen_values = true)]
    max_retries: Option<u32>,
    /// How long one attempt may take, in place of the worker's limit
    #[arg(long, value_parser = duration)]
    timeout: Option<Duration>,
    /// A header of your own; may be given several times
    #[arg(short = 'H', long = "header", value_name = "NAME:VALUE")]
    headers: Vec<String>,
    /// A tag; may be given several times
    #[arg(long = "tag")]
    tags: Vec<String>,
}

impl JobOptions {
    /// A job with these options.
    pub(crate) fn job(&self, queue: &str, kind: &str, payload: Vec<u8>) -> anyhow::Result<NewJob> {
        let mut job = NewJob::raw(kind, payload).queue(queue).priority(self.priority);
        if let Some(retries) = self.max_retries {
            job = job.max_retries(retries);
        }
        if let Some(timeout) = self.timeout {
            job = job.timeout(timeout);
        }
        for tag in &self.tags {
            job = job.tag(tag);
        }
        for header in &self.headers {
            let (name, value) = header.split_once(':').ok_or_else(|| {
                UsageError(format!("header {header:?} has no colon: use NAME:VALUE"))
            })?;
            job = job.header(name.trim(), value.trim());
        }
        Ok(job)
    }

    /// Refuses what is not JSON, unless a header says that it is something else.
    pub(crate) fn check_json(&self, payload: &[u8], what: &str) -> Result<(), UsageError> {
        let says_type = |header: &String| header.to_ascii_lowercase().starts_with("content-type:");
        if self.headers.iter().any(says_type) {
            return Ok(());
        }
        serde_json::from_slice::<serde::de::IgnoredAny>(payload).map(drop).map_err(|error| {
            UsageError(format!(
                "{what} is not JSON: {error} (for another format say so: -H Content-Type:...)"
            ))
        })
    }
}

/// Reads a payload: the text itself, `@FILE`, or `-` for standard input.
pub(crate) fn read_payload(source: &str) -> anyhow::Result<Vec<u8>> {
    if source == "-" {
        let mut bytes = Vec::new();
        std::io::stdin().lock().read_to_end(&mut bytes).context("cannot read standard input")?;
        return Ok(bytes);
    }
    match source.strip_prefix('@') {
        Some(path) => std::fs::read(path).with_context(|| format!("cannot read {path}")),
        None => Ok(source.as_bytes().to_vec()),
    }
}
