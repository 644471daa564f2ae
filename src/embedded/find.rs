//! Finding a nats-server that is there already.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use crate::error::{Error, ErrorKind, Result};

/// The environment variable that names a nats-server to use.
pub(super) const SERVER_VARIABLE: &str = "TIDEMILL_NATS_SERVER";

/// The oldest server that will do.
const OLDEST: Version = Version(2, 12, 0);

/// How long `nats-server -v` may take.
const VERSION_PATIENCE: Duration = Duration::from_secs(10);

pub(super) const EXECUTABLE: &str = if cfg!(windows) { "nats-server.exe" } else { "nats-server" };

/// A server's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(pub(super) u32, pub(super) u32, pub(super) u32);

impl Version {
    /// Reads the output of `nats-server -v`: `nats-server: v2.15.1`.
    fn parse(output: &str) -> Option<Self> {
        let version = output.trim().rsplit('v').next()?;
        let mut parts = version.split(['.', '-', '+']).map(|part| part.parse().ok());
        Some(Self(parts.next()??, parts.next()??, parts.next()??))
    }
}

/// What was looked at in vain, for the error in the end.
#[derive(Debug, Default)]
pub(super) struct Searched(pub(super) Vec<String>);

/// Looks in the places that a person chose, then on `PATH`. A server that was named and will not do
/// is an error; one that only lies on `PATH` is passed over.
pub(super) async fn find(
    named: Option<&Path>,
    in_environment: Option<&OsStr>,
    search_path: Option<&OsStr>,
    searched: &mut Searched,
) -> Result<Option<PathBuf>> {
    let named = named
        .map(|path| (path.to_path_buf(), "the path given"))
        .or_else(|| in_environment.map(|path| (PathBuf::from(path), SERVER_VARIABLE)));
    if let Some((path, source)) = named {
        return match check(&path).await {
            Ok(()) => Ok(Some(path)),
            Err(problem) => Err(Error::new(
                ErrorKind::Local,
                format!("{source} names {}, which will not do: {problem}", path.display()),
            )),
        };
    }
    for folder in std::env::split_paths(search_path.unwrap_or_default()) {
        let path = folder.join(EXECUTABLE);
        if !path.is_file() {
            continue;
        }
        match check(&path).await {
            Ok(()) => return Ok(Some(path)),
            Err(problem) => searched.0.push(format!("{}: {problem}", path.display())),
        }
    }
    Ok(None)
}

/// Whether a file is a nats-server that is new enough; else what is wrong with it.
pub(super) async fn check(path: &Path) -> Result<(), String> {
    let version = version_of(path).await?;
    if version < OLDEST {
        let Version(major, minor, patch) = version;
        return Err(format!(
            "it is version {major}.{minor}.{patch}, and 2.12 is the oldest that will do"
        ));
    }
    Ok(())
}

pub(super) async fn version_of(path: &Path) -> Result<Version, String> {
    let run = Command::new(path).arg("-v").stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(VERSION_PATIENCE, run)
        .await
        .map_err(|_| "it does not tell its version".to_owned())?
        .map_err(|error| format!("it does not run: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Version::parse(&text).ok_or_else(|| format!("it is no nats-server: it says {:?}", text.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(Version::parse("nats-server: v2.15.1\n"), Some(Version(2, 15, 1)));
        assert_eq!(Version::parse("nats-server: v2.12.0-RC.3"), Some(Version(2, 12, 0)));
        assert_eq!(Version::parse("Python 3.11"), None);
        assert!(Version(2, 9, 10) < OLDEST && Version(2, 12, 8) > OLDEST);
    }
}
