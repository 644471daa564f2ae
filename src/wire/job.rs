//! The protocol's job headers: parsed once, strictly. What does not parse is never ignored.

use std::ops::{Deref, DerefMut};
use std::str::FromStr;
use std::time::Duration;

use super::headers::{Headers, name};
use super::seal::SealHeader;
use super::signature::SignatureHeader;
use super::time::{self, Time};
use crate::retry::{Backoff, MAX_DELAY};
use crate::token::{RunId, is_token};

/// The most tags that a job can have.
const MAX_TAGS: usize = 32;

/// What a job's headers say. Every field is optional on the wire.
#[derive(Debug)]
#[cfg_attr(
    not(test),
    expect(dead_code, reason = "tags and schema are checked here; who enqueues acts on them")
)]
pub(crate) struct JobHeaders {
    pub(crate) run: Option<RunId>,
    pub(crate) attempts_used: Option<u32>,
    pub(crate) run_after: Option<RunAfter>,
    pub(crate) expires_at: Option<Time>,
    pub(crate) max_retries: Option<u32>,
    pub(crate) backoff: Option<Backoff>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) unique: Option<Unique>,
    pub(crate) created_at: Option<Time>,
    pub(crate) tags: Vec<String>,
    pub(crate) schema: Option<u32>,
    /// The sequence of the due message that it was put back on its lane from.
    pub(crate) promoted: Option<u64>,
    /// Boxed, since few jobs have one.
    pub(crate) seal: Option<Box<SealHeader>>,
    pub(crate) signature: Option<Box<SignatureHeader>>,
}

/// The same, for what is moved from hand to hand: most jobs have no headers.
#[derive(Debug, Default)]
pub(crate) struct JobOptions(Option<Box<JobHeaders>>);

/// When a job may run: at a time, or some time after it was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RunAfter {
    At(Time),
    AfterStore(Duration),
}

impl RunAfter {
    /// The moment meant, for a job that was stored at `stored`.
    pub(crate) fn due(self, stored: Time) -> Time {
        match self {
            Self::At(time) => time,
            Self::AfterStore(delay) => time::after(stored, delay),
        }
    }
}

/// How long a key keeps others out: while the job is not finished, or a period beyond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unique {
    WhileUnfinished,
    For(Duration),
}

/// A header of ours that cannot be taken at its word.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("header {name} {problem}")]
pub(crate) struct HeaderError {
    name: &'static str,
    problem: String,
}

impl Default for JobHeaders {
    fn default() -> Self {
        Self::NONE
    }
}

impl From<JobHeaders> for JobOptions {
    fn from(headers: JobHeaders) -> Self {
        Self(Some(Box::new(headers)))
    }
}

impl Deref for JobOptions {
    type Target = JobHeaders;

    fn deref(&self) -> &JobHeaders {
        static NONE: JobHeaders = JobHeaders::NONE;
        self.0.as_deref().unwrap_or(&NONE)
    }
}

impl DerefMut for JobOptions {
    fn deref_mut(&mut self) -> &mut JobHeaders {
        self.0.get_or_insert_default()
    }
}

impl JobOptions {
    /// Reads the headers of a job of protocol version 1.
    pub(crate) fn parse(headers: &Headers) -> Result<Self, HeaderError> {
        match headers.is_empty() {
            true => Ok(Self(None)),
            false => JobHeaders::parse(headers).map(Self::from),
        }
    }
}

impl JobHeaders {
    const NONE: Self = Self {
        run: None,
        attempts_used: None,
        run_after: None,
        expires_at: None,
        max_retries: None,
        backoff: None,
        timeout: None,
        unique: None,
        created_at: None,
        tags: Vec::new(),
        schema: None,
        promoted: None,
        seal: None,
        signature: None,
    };

    /// The protocol version that a job needs; it is looked at before anything else is parsed.
    pub(crate) fn protocol(headers: &Headers) -> Result<u32, HeaderError> {
        let version = one(headers, name::PROTOCOL, "a whole number", number)?;
        Ok(version.unwrap_or(super::PROTOCOL_VERSION))
    }

    /// Reads the headers of a job of protocol version 1.
    pub(crate) fn parse(headers: &Headers) -> Result<Self, HeaderError> {
        if headers.get(name::BLOCK).is_some() {
            let problem = "stands for headers that cannot be read".to_owned();
            return Err(HeaderError { name: name::BLOCK, problem });
        }
        Ok(Self {
            run: one(headers, name::RUN, "a token", run)?,
            attempts_used: one(headers, name::ATTEMPTS_USED, "a whole number", number)?,
            run_after: one(headers, name::RUN_AFTER, "an RFC 3339 time or +<ms>", run_after)?,
            expires_at: one(headers, name::EXPIRES_AT, "an RFC 3339 time", time::parse)?,
            max_retries: one(headers, name::MAX_RETRIES, "a whole number", number)?,
            backoff: one(
                headers,
                name::BACKOFF,
                "exp:<base ms>:<factor>:<cap ms>, linear:<ms> or fixed:<ms>",
                |text| text.parse().ok(),
            )?,
            timeout: one(headers, name::TIMEOUT, "a number of milliseconds above 0", positive)?,
            unique: one(headers, name::UNIQUE, "1 or a period in milliseconds", unique)?,
            created_at: one(headers, name::CREATED_AT, "an RFC 3339 time", time::parse)?,
            tags: one(headers, name::TAGS, "at most 32 tokens with commas between", tags)?
                .unwrap_or_default(),
            schema: one(headers, name::SCHEMA, "a whole number", number)?,
            promoted: one(headers, name::PROMOTED, "a sequence", number)?,
            seal: one(headers, name::SEAL, "v1;<key id>", |text| {
                SealHeader::parse(text).map(Box::new)
            })?,
            signature: one(headers, name::SIGNATURE, "v1;<public nkey>;<signature>", |text| {
                SignatureHeader::parse(text).map(Box::new)
            })?,
        })
    }
}

/// The value of a header that may be given once, read by `read`.
fn one<T>(
    headers: &Headers,
    name: &'static str,
    expected: &str,
    read: impl FnOnce(&str) -> Option<T>,
) -> Result<Option<T>, HeaderError> {
    let mut values = headers.get_all(name);
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(HeaderError { name, problem: "is given twice".into() });
    }
    match read(value.trim()) {
        Some(read) => Ok(Some(read)),
        None => Err(HeaderError { name, problem: format!("is {value:?}, not {expected}") }),
    }
}

/// A run; the underscore is taken, because it stands for "the run is the id" in subjects.
fn run(text: &str) -> Option<RunId> {
    RunId::new(text).ok().filter(|run| run != "_")
}

fn number<T: FromStr>(text: &str) -> Option<T> {
    // `parse` would take a sign, which no other client is likely to mean.
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

fn millis(text: &str) -> Option<Duration> {
    number(text).map(Duration::from_millis).filter(|duration| *duration <= MAX_DELAY)
}

fn positive(text: &str) -> Option<Duration> {
    millis(text).filter(|duration| !duration.is_zero())
}

fn run_after(text: &str) -> Option<RunAfter> {
    match text.strip_prefix('+') {
        Some(delay) => millis(delay).map(RunAfter::AfterStore),
        None => time::parse(text).map(RunAfter::At),
    }
}

fn unique(text: &str) -> Option<Unique> {
    match text {
        "1" => Some(Unique::WhileUnfinished),
        period => positive(period).map(Unique::For),
    }
}

fn tags(text: &str) -> Option<Vec<String>> {
    let tags: Vec<String> = text.split(',').map(|tag| tag.trim().to_owned()).collect();
    (tags.len() <= MAX_TAGS && tags.iter().all(|tag| is_token(tag))).then_some(tags)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<JobHeaders, HeaderError> {
        JobHeaders::parse(&pairs.iter().copied().collect())
    }

    #[test]
    fn nothing_is_needed() {
        let headers = parse(&[("X-Other", "kept")]).expect("valid");
        assert!(headers.run.is_none() && headers.max_retries.is_none() && headers.tags.is_empty());
    }

    #[test]
    fn everything_can_be_said() {
        let headers = parse(&[
            ("Tidemill-Run", "0190"),
            ("Tidemill-Attempts-Used", "2"),
            ("Tidemill-Run-After", "+1500"),
            ("Tidemill-Expires-At", "2026-12-01T09:00:00+01:00"),
            ("Tidemill-Max-Retries", "7"),
            ("Tidemill-Backoff", "fixed:500"),
            ("Tidemill-Timeout", "250"),
            ("Tidemill-Unique", "60000"),
            ("Tidemill-Created-At", "2026-12-01T08:00:00.123Z"),
            ("Tidemill-Tags", "a, b"),
            ("Tidemill-Schema", "3"),
            ("Tidemill-Promoted", "1764576000000000"),
        ])
        .expect("valid");
        assert_eq!(headers.run.as_ref().map(RunId::as_str), Some("0190"));
        assert_eq!(headers.attempts_used, Some(2));
        assert_eq!(headers.run_after, Some(RunAfter::AfterStore(Duration::from_millis(1500))));
        assert_eq!(headers.expires_at, time::parse("2026-12-01T08:00:00Z"));
        assert_eq!(headers.timeout, Some(Duration::from_millis(250)));
        assert_eq!(headers.unique, Some(Unique::For(Duration::from_secs(60))));
        assert_eq!(headers.tags, ["a", "b"]);
        assert_eq!(headers.schema, Some(3));
        assert_eq!(headers.promoted, Some(1_764_576_000_000_000));
    }

    #[test]
    fn what_does_not_parse_is_named() {
        let table = [
            ("Tidemill-Max-Retries", "many"),
            ("Tidemill-Max-Retries", "+3"),
            ("Tidemill-Max-Retries", "-1"),
            ("Tidemill-Timeout", "0"),
            ("Tidemill-Run-After", "tomorrow"),
            ("Tidemill-Backoff", "exp"),
            ("Tidemill-Run", "a.b"),
            ("Tidemill-Run", "_"),
            ("Tidemill-Tags", "a,,b"),
            ("Tidemill-Unique", "yes"),
            ("Tidemill-Promoted", "soon"),
            ("Tidemill-Seal", "k1"),
            ("Tidemill-Signature", "v1;me;no"),
            ("Tidemill-Created-At", "2026-13-01T00:00:00Z"),
        ];
        for (name, value) in table {
            let error = parse(&[(name, value)]).expect_err(value);
            assert_eq!(error.name, name);
            assert!(error.to_string().contains(value), "{error}");
        }
        let unread = parse(&[("Tidemill-Header-Block", "TkFUUy8x")]).expect_err("not known");
        assert!(unread.to_string().contains("cannot be read"), "{unread}");
        let twice = parse(&[("Tidemill-Run", "a"), ("tidemill-run", "a")]).expect_err("twice");
        assert_eq!(twice.to_string(), "header Tidemill-Run is given twice");
    }

    #[test]
    fn due_counts_from_the_store_time_or_is_absolute() {
        let stored = time::parse("2026-12-01T08:00:00Z").expect("valid");
        let second = Duration::from_secs(1);
        assert_eq!(RunAfter::AfterStore(second).due(stored), time::after(stored, second));
        assert_eq!(RunAfter::At(stored).due(time::after(stored, second)), stored);
    }
}
