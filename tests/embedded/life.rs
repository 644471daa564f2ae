//! A broker's life: start, stop, death, revival.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::{Signal, getpgid, kill_process};
use tidemill::embedded::Broker;
use tokio::time::timeout;

use crate::{ask, connect, eventually_true, is_gone, pid, store_message, stored_messages};

#[tokio::test]
async fn a_stopped_broker_is_gone_with_its_folder() -> Result<()> {
    let broker = Broker::start().await?;
    let (id, folder) = (broker.pid().context("it runs")?, broker.data_dir().to_owned());
    assert!(broker.monitor_url().starts_with("http://127.0.0.1:"));
    assert!(broker.log_tail(50).contains("Server is ready"));
    assert!(!is_gone(id)? && folder.exists());
    broker.stop().await?;
    assert!(is_gone(id)? && !folder.exists());
    Ok(())
}

#[tokio::test]
async fn a_dropped_broker_is_gone_with_its_folder() -> Result<()> {
    let broker = Broker::start().await?;
    let (id, folder) = (broker.pid().context("it runs")?, broker.data_dir().to_owned());
    drop(broker);
    eventually_true("process and folder are gone", || {
        is_gone(id).is_ok_and(|gone| gone) && !folder.exists()
    })
    .await
}

#[tokio::test]
async fn data_outlives_a_kill() -> Result<()> {
    let broker = Broker::start().await?;
    store_message(broker.url()).await?;
    broker.kill().await?;
    assert_eq!(broker.pid(), None);
    broker.restart().await?;
    assert_eq!(stored_messages(broker.url()).await?, 1);
    assert_eq!(broker.restarts(), 0, "only supervision counts");
    Ok(())
}

#[tokio::test]
async fn a_broker_that_is_told_to_end_stays_down_until_it_is_started_again() -> Result<()> {
    let broker = Broker::start().await?;
    store_message(broker.url()).await?;
    broker.terminate().await?;
    assert_eq!(broker.pid(), None);
    broker.restart().await?;
    assert_eq!(stored_messages(broker.url()).await?, 1);
    Ok(())
}

#[tokio::test]
async fn data_outlives_a_broker() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let builder = Broker::builder().data_dir(folder.path().join("new"));
    let broker = builder.clone().start().await?;
    store_message(broker.url()).await?;
    broker.stop().await?;
    let broker = builder.start().await?;
    assert_eq!(stored_messages(broker.url()).await?, 1);
    broker.stop().await?;
    Ok(())
}

#[tokio::test]
async fn a_folder_has_one_broker() -> Result<()> {
    let first = Broker::start().await?;
    let second = Broker::builder().data_dir(first.data_dir()).start().await;
    let refusal = second.expect_err("in use").to_string();
    assert!(refusal.contains(&*first.data_dir().to_string_lossy()), "{refusal}");
    assert!(refusal.contains(&format!("kill {}", first.pid().context("it runs")?)), "{refusal}");
    Ok(())
}

#[tokio::test]
async fn a_preferred_port_is_had_if_free() -> Result<()> {
    let holder = TcpListener::bind("127.0.0.1:0")?;
    let port = holder.local_addr()?.port();
    let builder = Broker::builder().port(port);
    let elsewhere = builder.clone().start().await?;
    assert_ne!(elsewhere.url(), format!("nats://127.0.0.1:{port}"));
    drop(holder);
    let there = builder.start().await?;
    assert_eq!(there.url(), format!("nats://127.0.0.1:{port}"));
    Ok(())
}

#[tokio::test]
async fn a_frozen_broker_answers_when_thawed() -> Result<()> {
    let broker = Broker::start().await?;
    let client = connect(broker.url()).await?;
    broker.freeze().await?;
    let info = ask(&client, "$JS.API.INFO", "");
    tokio::pin!(info);
    assert!(timeout(Duration::from_millis(100), &mut info).await.is_err(), "answered while frozen");
    broker.thaw().await?;
    info.await?;
    broker.freeze().await?;
    broker.stop().await?;
    Ok(())
}

#[tokio::test]
async fn a_supervised_broker_comes_back() -> Result<()> {
    let broker = Broker::builder().supervised().start().await?;
    store_message(broker.url()).await?;
    let first = broker.pid().context("it runs")?;
    kill_process(pid(first)?, Signal::KILL)?;
    eventually_true("it was started again", || broker.restarts() == 1).await?;
    assert_eq!(stored_messages(broker.url()).await?, 1);
    assert_ne!(broker.pid(), Some(first));

    broker.kill().await?;
    broker.down().await;
    assert_eq!(broker.pid(), None, "killed by call, it stays down");
    Ok(())
}

#[tokio::test]
async fn a_broker_that_dies_too_often_stays_down() -> Result<()> {
    let broker = Broker::builder().supervised().start().await?;
    for deaths in 0..=3 {
        eventually_true("it is up again", || broker.restarts() == deaths).await?;
        kill_process(pid(broker.pid().context("it runs")?)?, Signal::KILL)?;
    }
    broker.down().await;
    assert_eq!(broker.restarts(), 3);
    broker.restart().await?;
    assert!(broker.pid().is_some(), "a call starts it again");
    Ok(())
}

#[tokio::test]
async fn a_broker_that_dies_unsupervised_is_down() -> Result<()> {
    let broker = Broker::start().await?;
    kill_process(pid(broker.pid().context("it runs")?)?, Signal::KILL)?;
    broker.down().await;
    assert_eq!(broker.pid(), None);
    assert!(broker.freeze().await.expect_err("down").is_unavailable());
    Ok(())
}

#[tokio::test]
async fn ctrl_c_does_not_reach_the_server() -> Result<()> {
    let broker = Broker::start().await?;
    let server = pid(broker.pid().context("it runs")?)?;
    assert_eq!(getpgid(Some(server))?, server);
    assert_ne!(getpgid(None)?, server);
    Ok(())
}

#[tokio::test]
async fn only_the_owner_reads_the_configuration() -> Result<()> {
    let broker = Broker::start().await?;
    let config = broker.data_dir().join("nats-server.conf").metadata()?;
    assert_eq!(config.permissions().mode() & 0o777, 0o600);
    Ok(())
}

#[tokio::test]
async fn a_server_that_cannot_start_shows_its_last_words() -> Result<()> {
    let failed = Broker::builder().config("no_such_option: {").start().await;
    let message = failed.expect_err("not a configuration").to_string();
    assert!(message.contains("before it was ready"), "{message}");
    assert!(message.contains("Parse error"), "{message}");
    Ok(())
}

#[tokio::test]
async fn a_broker_can_do_without_jetstream() -> Result<()> {
    let broker = Broker::builder().without_jetstream().start().await?;
    let client = connect(broker.url()).await?;
    assert!(ask(&client, "$JS.API.INFO", "").await.is_err());
    Ok(())
}

#[tokio::test]
async fn a_login_is_asked_for_and_given() -> Result<()> {
    let builder = Broker::builder().config(r#"authorization { user: "ann", password: "p\"w" }"#);
    let refused = builder.clone().start().await.expect_err("no login");
    assert!(refused.is_permission(), "{refused}");
    assert!(refused.to_string().contains("BrokerBuilder::connect_with"), "{refused}");
    builder.connect_with(|o| o.user_password("ann", "p\"w")).start().await?;
    Ok(())
}

#[tokio::test]
async fn an_account_without_jetstream_is_an_error() -> Result<()> {
    let accounts = "accounts { A { users: [{ user: ann, password: pw }] } }";
    let refused = Broker::builder()
        .config(accounts)
        .connect_with(|o| o.user_password("ann", "pw"))
        .start()
        .await;
    let refused = refused.expect_err("no JetStream");
    assert!(refused.is_unsupported(), "{refused}");
    Ok(())
}

#[tokio::test]
async fn a_reload_is_in_force_or_refused() -> Result<()> {
    let broker = Broker::start().await?;
    broker.reload("max_payload: 64KB").await?;
    let client = connect(broker.url()).await?;
    assert_eq!(client.server_info().max_payload, 64 << 10);

    let refused = broker.reload("max_payload: {").await.expect_err("not a configuration");
    assert!(refused.is_invalid(), "{refused}");
    broker.restart().await?;
    let client = connect(broker.url()).await?;
    assert_eq!(client.server_info().max_payload, 64 << 10, "it keeps what it had");
    Ok(())
}

#[tokio::test]
async fn a_lame_duck_leaves_by_itself_and_comes_back() -> Result<()> {
    let soon = "lame_duck_grace_period: \"200ms\"\nlame_duck_duration: \"30s\"";
    let broker = Broker::builder().config(soon).start().await?;
    store_message(broker.url()).await?;
    broker.lame_duck().await?;
    assert_eq!(broker.pid(), None);
    assert!(broker.log_tail(50).contains("lame duck"), "{}", broker.log_tail(50));
    assert!(broker.lame_duck().await.is_err(), "it does not run");
    broker.restart().await?;
    assert_eq!(stored_messages(broker.url()).await?, 1);
    Ok(())
}
