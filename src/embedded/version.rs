//! Versions of nats-server, read from what a person or the binary itself writes.
//!
//! Only numbers are compared: a release candidate counts as its release.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use tokio::process::Command;

use super::command::run;
use crate::error::{Error, ErrorKind, Result};

/// How long a binary may take to tell its version.
const ASK_DEADLINE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(u16, u16, u16);

impl Version {
    pub(super) const fn new(major: u16, minor: u16, patch: u16) -> Self {
        Self(major, minor, patch)
    }

    /// Asks the binary at `path` by `nats-server -v`.
    pub(super) async fn of(path: &Path) -> Result<Self> {
        let banner = run(Command::new(path).arg("-v"), ASK_DEADLINE).await?;
        parse_banner(&banner).ok_or_else(|| {
            let message = format!("{} -v answered {:?}", path.display(), banner.trim());
            Error::new(ErrorKind::Local, message)
        })
    }
}

/// Reads `nats-server: v2.15.1`.
fn parse_banner(banner: &str) -> Option<Version> {
    let (name, version) = banner.trim().split_once(": ")?;
    if name != "nats-server" {
        return None;
    }
    version.parse().ok()
}

impl FromStr for Version {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong =
            || Error::invalid(format!("nats-server version {text:?} is not of the form 2.15.1"));
        let release = text.strip_prefix('v').unwrap_or(text);
        let release = release.split(['-', '+']).next().unwrap_or(release);
        let mut numbers = release.split('.').map(|part| part.parse::<u16>().map_err(|_| wrong()));
        let mut next = || numbers.next().unwrap_or_else(|| Err(wrong()));
        let version = Self(next()?, next()?, next()?);
        if numbers.next().is_some() { Err(wrong()) } else { Ok(version) }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_servers_print() {
        let cases = [
            ("nats-server: v2.15.1\n", Some(Version(2, 15, 1))),
            ("nats-server: v2.12.0-RC.3", Some(Version(2, 12, 0))),
            ("nats-server: 2.9.10", Some(Version(2, 9, 10))),
            ("nats-streaming-server: v0.25.6", None),
            ("nats-server: v2.15", None),
            ("nats-server: v2.15.1.4", None),
            ("", None),
        ];
        for (banner, version) in cases {
            assert_eq!(parse_banner(banner), version, "{banner:?}");
        }
    }

    #[test]
    fn compares_by_number() {
        assert!(Version(2, 9, 10) < Version(2, 12, 0));
        assert_eq!(Version(2, 12, 8).to_string(), "2.12.8");
    }
}
