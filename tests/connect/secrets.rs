//! No secret is shown: not by `Debug`, not by an error and its causes, not by the command.

use std::io::Read;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nkeys::KeyPair;
use rustix::process::{Pid, Signal, kill_process};
use tidemill::embedded::Broker;
use tidemill::{Client, ConnectOptions, JobHandle, NewJob};

use crate::commands::tidemill;
use crate::contexts::Contexts;
use crate::jwts::Account;
use crate::support::{connects, refused, server, to, told, url};

const SECRET: &str = "hush4711";
const PATIENCE: Duration = Duration::from_secs(20);

#[track_caller]
fn hides(secret: &str, shown: &str) {
    assert!(!shown.contains(secret), "it shows {secret}: {shown}");
}

/// Neither the options nor the error of a refused connect show it.
async fn hidden(secret: &str, options: ConnectOptions) {
    hides(secret, &format!("{options:?}"));
    let error = refused(options).await;
    hides(secret, &format!("{error:?} {error} {}", told(&error)));
}

#[tokio::test]
async fn what_a_server_refuses_is_not_shown() {
    let broker = server(r#"authorization { users: [{ user: "me", password: "other" }] }"#).await;
    let to_it = || to(broker.url());
    hidden(SECRET, to_it().user_password("me", SECRET)).await;
    hidden(SECRET, to(&url(&broker, "nats", "me:hush4711@"))).await;
    hidden(SECRET, to(&url(&broker, "nats", "hush4711@"))).await;
    hidden(SECRET, to_it().token(SECRET)).await;
    let seed = KeyPair::new_user().seed().expect("a seed");
    hidden(&seed, to_it().nkey(&seed)).await;
    hidden(&seed, to_it().jwt("none", &seed)).await;
    hidden(SECRET, to_it().jwt(SECRET, &seed)).await;
    // Mistyped, and so no seed.
    hidden(&seed[1..], to_it().nkey(&seed[1..])).await;
    hidden(&seed.to_lowercase(), to_it().jwt("none", seed.to_lowercase())).await;
}

#[tokio::test]
async fn what_a_credentials_file_holds_is_not_shown() {
    let (broker, _) = Account::start().await;
    let (_other, stranger) = Account::start().await;
    let user = stranger.user();
    let folder = tempfile::tempdir().expect("a folder");
    let file = user.write(folder.path());
    hidden(&user.seed, to(broker.url()).creds_file(&file)).await;
    hidden(&user.jwt, to(broker.url()).creds_file(&file)).await;
    let broken = std::fs::read_to_string(&file).expect("reads").replace(&user.seed, "SUHUSH4711");
    std::fs::write(&file, broken).expect("written");
    hidden("HUSH4711", to(broker.url()).creds_file(&file)).await;
}

#[test]
fn what_cannot_be_parsed_is_not_shown() {
    for url in [
        "nats://me:hush4711@a:port",
        "http://me:hush4711@a",
        "me:hush4711/x@a",
        "nats://me:hush4711,x@a",
        "nats://me:x@a,nats://me:hush4711@b",
    ] {
        let error = ConnectOptions::new(url).expect_err(url);
        hides(SECRET, &format!("{error:?} {}", told(&error)));
    }
    let contexts = Contexts::new();
    for text in [
        r#"{ "password": "hush4711", "user": 7 }"#,
        r#"{ "token": ["hush4711"] }"#,
        r#"{ "tls_first": "hush4711" }"#,
        r#"{ "password": "hush4711" "#,
        r#"{ "url": "http://me:hush4711@a" }"#,
        r#""hush4711""#,
    ] {
        let file = contexts.add_text("bad", text);
        let error = ConnectOptions::from_context_file(file).expect_err(text);
        hides(SECRET, &format!("{error:?} {}", told(&error)));
    }
}

#[tokio::test]
async fn the_command_shows_none_even_when_it_says_everything() {
    let broker = server(r#"authorization { users: [{ user: "me", password: "other" }] }"#).await;
    let contexts = Contexts::new();
    let in_url = url(&broker, "nats", "me:hush4711@");
    for (arguments, environment) in [
        (vec!["--server", &in_url], vec![]),
        (vec![], vec![("NATS_URL", in_url.as_str())]),
        (vec!["--server", broker.url(), "--user", "me", "--password", SECRET], vec![]),
        (vec!["--server", broker.url(), "--token", SECRET], vec![]),
        (vec!["--server", broker.url()], vec![("NATS_NKEY", "SUHUSH4711hush4711")]),
        (vec!["--help"], vec![("NATS_PASSWORD", SECRET), ("NATS_URL", in_url.as_str())]),
    ] {
        let arguments = [&["-vv", "setup"], &arguments[..]].concat();
        let output = tidemill(&contexts, &arguments, &environment).output().expect("runs");
        let shown = [output.stdout, output.stderr].concat();
        assert!(!shown.is_empty());
        hides(SECRET, &String::from_utf8_lossy(&shown));
    }
}

/// Runs a worker that logs everything until `is_done`, drains it, and gives what it said.
async fn said_by_worker(
    arguments: &[&str],
    environment: &[(&str, &str)],
    is_done: impl AsyncFn() -> bool,
) -> String {
    let contexts = Contexts::new();
    let arguments = [&["work"], arguments].concat();
    let environment = [environment, &[("RUST_LOG", "trace"), ("PATH", "/usr/bin:/bin")]].concat();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tidemill"));
    command.env_clear().env("HOME", contexts.home()).env("XDG_CONFIG_HOME", contexts.home());
    command.envs(environment).args(arguments).stdin(Stdio::null());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    let (mut out, mut err) = (child.stdout.take().expect("piped"), child.stderr.take());
    let readers = [
        std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = out.read_to_end(&mut text);
            text
        }),
        std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = err.take().expect("piped").read_to_end(&mut text);
            text
        }),
    ];
    let deadline = Instant::now() + PATIENCE;
    while !is_done().await && child.try_wait().expect("waits").is_none() {
        assert!(Instant::now() < deadline, "the worker neither did its part nor ended");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let id = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("an id");
    // It may have ended by itself.
    let _ = kill_process(id, Signal::TERM);
    child.wait().expect("ends");
    let said: Vec<u8> = readers.into_iter().flat_map(|one| one.join().expect("read")).collect();
    String::from_utf8_lossy(&said).into_owned()
}

#[tokio::test]
async fn a_worker_that_logs_everything_shows_none() {
    let broker = server(r#"authorization { users: [{ user: "me", password: "hush4711" }] }"#).await;
    let client = connects(to(broker.url()).user_password("me", SECRET)).await;
    let job: JobHandle = client.enqueue(NewJob::raw("greet", "{}")).await.expect("stored");
    let has_ended = async || job.completion_within(Duration::from_millis(10)).await.is_ok();
    let in_url = url(&broker, "nats", "me:hush4711@");
    let said = said_by_worker(&["--exec", "greet=cat"], &[("NATS_URL", &in_url)], has_ended).await;
    assert!(said.contains("TRACE") && said.contains(job.id().as_str()), "it logs: {said}");
    hides(SECRET, &said);

    let key = KeyPair::new_user();
    let seed = key.seed().expect("a seed");
    let nkey = format!("authorization {{ users: [{{ nkey: {} }}] }}", key.public_key());
    broker.reload(nkey).await.expect("reloaded");
    let client = connects(to(broker.url()).nkey(&seed)).await;
    let job = client.enqueue(NewJob::raw("greet", "{}")).await.expect("stored");
    let has_ended = async || job.completion_within(Duration::from_millis(10)).await.is_ok();
    let environment = [("NATS_URL", broker.url()), ("NATS_NKEY", &*seed)];
    let said = said_by_worker(&["--exec", "greet=cat"], &environment, has_ended).await;
    assert!(said.contains("TRACE"), "it logs: {said}");
    hides(&seed, &said);
}

#[tokio::test]
async fn stores_and_publishers_show_none() {
    let broker = Broker::start().await.expect("a broker");
    let store = "postgres://me:hush4711@127.0.0.1:1/agent";
    let publisher = "redis://me:hush4711@127.0.0.1:1/0#events";
    let environment = [("NATS_URL", broker.url())];
    let never = async || false;
    for arguments in [["--run-store", store], ["--event-publisher", publisher]] {
        let said = said_by_worker(&arguments, &environment, never).await;
        assert!(said.contains("error"), "nobody listens there: {said}");
        hides(SECRET, &said);
    }
}

#[tokio::test]
async fn an_embedded_broker_shows_nothing_of_its_configuration() {
    let login = r#"authorization { users: [{ user: "me", password: "hush4711" }] }"#;
    let with = |options: ConnectOptions| options.user_password("me", SECRET);
    let builder = Broker::builder().config(login).connect_with(with);
    hides(SECRET, &format!("{builder:?}"));
    let broker = builder.start().await.expect("a broker");
    hides(SECRET, &format!("{broker:?} {}", broker.log_tail(100)));
    let client = Client::connect(with(to(broker.url()))).await.expect("connects");
    hides(SECRET, &format!("{client:?}"));

    let broken =
        Broker::builder().config(r#"authorization { users: [{ user: "me", password: "hush4711" }"#);
    let error = broken.start().await.expect_err("not closed");
    hides(SECRET, &format!("{error:?} {}", told(&error)));
    let error = broker.reload(r#"authorization { password: "hush4711", nonsense: true }"#).await;
    let error = error.expect_err("no such field");
    hides(SECRET, &format!("{error:?} {}", told(&error)));
}
