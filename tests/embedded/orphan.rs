//! A server that outlives the process that started it.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result};
use rustix::process::{Signal, kill_process};
use tidemill::embedded::Broker;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::{eventually, pid, store_message, stored_messages};

/// Set for this test program when it is run again as the process that is killed.
const FOLDER: &str = "TIDEMILL_TEST_ORPHAN_FOLDER";

#[tokio::test]
async fn an_orphan_keeps_its_folder() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (mut parent, orphan) = start_in_another_process(folder.path()).await?;
    parent.kill().await?;

    let builder = Broker::builder().data_dir(folder.path());
    let refusal = builder.clone().start().await.expect_err("in use").to_string();
    assert!(refusal.contains(&format!("kill {orphan}")), "{refusal}");

    kill_process(pid(orphan)?, Signal::TERM)?;
    let broker = eventually(async || Ok(builder.clone().start().await?)).await?;
    assert_eq!(stored_messages(broker.url()).await?, 1);
    broker.stop().await?;
    Ok(())
}

/// Gives the process, and its server's pid.
async fn start_in_another_process(folder: &Path) -> Result<(Child, u32)> {
    let mut process = Command::new(std::env::current_exe()?)
        .args(["orphan::a_parent_to_be_killed", "--exact", "--nocapture"])
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(process.stdout.take().context("piped")?).lines();
    while let Some(line) = lines.next_line().await? {
        if let Some((_, id)) = line.split_once("server pid ") {
            return Ok((process, id.parse()?));
        }
    }
    anyhow::bail!("the other process ended early")
}

/// The other process: it does nothing in a plain test run.
#[tokio::test]
async fn a_parent_to_be_killed() -> Result<()> {
    let Some(folder) = std::env::var_os(FOLDER) else { return Ok(()) };
    let broker = Broker::builder().data_dir(folder).start().await?;
    store_message(broker.url()).await?;
    println!("server pid {}", broker.pid().context("it runs")?);
    std::future::pending().await
}
