//! No secret is shown: not by `Debug`, not by an error and its causes, not by the command.

use nkeys::KeyPair;
use tidemill::ConnectOptions;

use crate::commands::tidemill;
use crate::contexts::Contexts;
use crate::jwts::Account;
use crate::support::{refused, server, to, told, url};

const SECRET: &str = "hush4711";

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
