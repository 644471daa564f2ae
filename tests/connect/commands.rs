//! The command: its flags, the environment names of the `nats` command line, and which go first.

use assert_cmd::Command;
use nkeys::KeyPair;
use serde_json::json;
use tidemill::embedded::Broker;

use crate::certs::Authority;
use crate::contexts::Contexts;
use crate::jwts::Account;
use crate::support::server;

/// `tidemill` in an environment with nothing but this.
pub(crate) fn tidemill(
    contexts: &Contexts,
    arguments: &[&str],
    environment: &[(&str, &str)],
) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidemill"));
    command
        .env_clear()
        .env("HOME", contexts.home())
        .env("XDG_CONFIG_HOME", contexts.home())
        .envs(environment.iter().copied())
        .args(arguments);
    command
}

/// That a command reaches its server.
#[track_caller]
fn reaches(contexts: &Contexts, arguments: &[&str], environment: &[(&str, &str)]) {
    let arguments = [&["setup"], arguments].concat();
    tidemill(contexts, &arguments, environment).assert().success();
}

/// That a command ends with this code and says this.
#[track_caller]
fn fails(
    contexts: &Contexts,
    arguments: &[&str],
    environment: &[(&str, &str)],
    (code, words): (i32, &str),
) {
    let arguments = [&["setup"], arguments].concat();
    let assert = tidemill(contexts, &arguments, environment).assert().code(code);
    let told = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    assert!(told.contains(words), "it does not say {words:?}: {told}");
}

const NOBODY: &str = "nats://127.0.0.1:1";
const LOGIN: &str = r#"authorization { users: [{ user: "me", password: "secret" }] }"#;

async fn with_password() -> Broker {
    server(LOGIN).await
}

#[tokio::test]
async fn a_password_and_a_token_come_from_flags_or_the_environment() {
    let none = Contexts::new();
    let broker = with_password().await;
    let url = broker.url();
    reaches(&none, &["-s", url, "--user", "me", "--password", "secret"], &[]);
    let environment = [("NATS_URL", url), ("NATS_USER", "me"), ("NATS_PASSWORD", "secret")];
    reaches(&none, &[], &environment);
    fails(&none, &[], &environment[..1], (4, "wants credentials"));
    fails(&none, &["--password", "wrong"], &environment, (4, "refuses user 'me'"));

    let broker = server(r#"authorization { token: "t0ken" }"#).await;
    let url = broker.url();
    reaches(&none, &["--server", url, "--token", "t0ken"], &[]);
    reaches(&none, &["--server", url, "--user", "t0ken"], &[]);
    reaches(&none, &[], &[("NATS_URL", url), ("NATS_TOKEN", "t0ken")]);
}

#[tokio::test]
async fn an_nkey_comes_from_a_flag_or_the_environment() {
    let none = Contexts::new();
    let key = KeyPair::new_user();
    let seed = key.seed().expect("a seed");
    let file = none.home().join("user.nk");
    std::fs::write(&file, &seed).expect("written");
    let file = file.to_string_lossy();
    let config = format!("authorization {{ users: [{{ nkey: {} }}] }}", key.public_key());
    let broker = server(&config).await;
    reaches(&none, &["--server", broker.url(), "--nkey", &file], &[]);
    for nkey in [&seed, &*file] {
        reaches(&none, &[], &[("NATS_URL", broker.url()), ("NATS_NKEY", nkey)]);
    }
}

#[tokio::test]
async fn credentials_and_jwts_come_from_flags_or_the_environment() {
    let none = Contexts::new();
    let (broker, account) = Account::start().await;
    let url = ("NATS_URL", broker.url());
    let user = account.user();
    let creds = user.write(none.home());
    let creds = creds.to_string_lossy();
    reaches(&none, &["--creds", &creds], &[url]);
    reaches(&none, &[], &[url, ("NATS_CREDS", &creds)]);
    reaches(&none, &[], &[url, ("NATS_JWT", &user.jwt), ("NATS_SEED", &user.seed)]);
    let half = [url, ("NATS_JWT", user.jwt.as_str())];
    fails(&none, &[], &half, (2, "--jwt (NATS_JWT) needs --seed (NATS_SEED)"));
    let missing = [url, ("NATS_CREDS", "/no/such.creds")];
    fails(&none, &[], &missing, (2, "cannot read the credentials file /no/such.creds"));
}

#[tokio::test]
async fn certificates_come_from_flags_or_the_environment() {
    let none = Contexts::new();
    let authority = Authority::new();
    let broker = server(&authority.config("verify: true")).await;
    let pair = authority.pair("client");
    let (cert, key) = (pair.cert.to_string_lossy(), pair.key.to_string_lossy());
    let (ca, url) = (authority.ca(), broker.url());
    let ca = ca.to_string_lossy();
    let flags = ["--server", url, "--tlscert", &cert, "--tlskey", &key, "--tlsca", &ca];
    reaches(&none, &flags, &[]);
    let environment =
        [("NATS_URL", url), ("NATS_CA", &*ca), ("NATS_CERT", &*cert), ("NATS_KEY", &*key)];
    reaches(&none, &[], &environment);
    fails(&none, &[], &environment[..1], (6, "give its CA"));
    fails(&none, &[], &environment[..2], (4, "wants a client certificate"));
    fails(&none, &[], &environment[..3], (2, "--tlscert (NATS_CERT) needs --tlskey (NATS_KEY)"));

    broker.reload(authority.config("handshake_first: true")).await.expect("reloaded");
    reaches(&none, &["--tlsfirst"], &environment);
}

#[tokio::test]
async fn flags_go_before_the_environment_and_that_before_a_context() {
    let broker = with_password().await;
    let url = broker.url();
    let contexts = Contexts::new();
    contexts.add("good", &json!({ "url": url, "user": "me", "password": "secret" }));
    contexts.add("nobody", &json!({ "url": NOBODY, "user": "me", "password": "secret" }));
    contexts.add("stranger", &json!({ "url": url, "user": "you", "password": "none" }));
    let me = [("NATS_USER", "me"), ("NATS_PASSWORD", "secret")];
    let reaches = |arguments: &[&str], environment: &[(&str, &str)]| {
        reaches(&contexts, arguments, environment);
    };
    let fails = |arguments: &[&str], environment: &[(&str, &str)], told: (i32, &str)| {
        fails(&contexts, arguments, environment, told);
    };

    // A context alone, and below what goes before it.
    reaches(&["--context", "good"], &[]);
    reaches(&[], &[("NATS_CONTEXT", "good")]);
    reaches(&["--context", "good"], &[("NATS_CONTEXT", "nobody")]);
    reaches(&["--context", "nobody", "--server", url], &[]);
    reaches(&["--context", "nobody"], &[("NATS_URL", url)]);
    reaches(&["--context", "stranger"], &me);
    reaches(&["--context", "stranger", "--user", "me", "--password", "secret"], &[]);
    fails(&["--context", "good", "--user", "me", "--password", "no"], &me, (4, "user 'me'"));
    fails(&["--context", "good"], &[("NATS_URL", NOBODY)], (6, "nobody listens"));

    // A flag, whatever the way to log in, below and above a variable.
    reaches(&["--server", url], &[("NATS_URL", NOBODY), me[0], me[1]]);
    fails(&["--server", url, "--token", "t"], &me, (4, "refuses this token"));
    fails(&["--server", url, "--user", "you", "--password", "no"], &me, (4, "user 'you'"));
    let typed = url.replace("nats://", "nats://you:no@");
    fails(&["--server", &typed], &me, (4, "user 'you'"));
}

#[tokio::test]
async fn the_selected_context_is_used_unless_a_server_is_named() {
    let broker = with_password().await;
    let contexts = Contexts::new();
    let file = contexts.add(
        "good",
        &json!({
            "url": broker.url(), "user": "me", "password": "secret",
        }),
    );
    contexts.select("good");
    reaches(&contexts, &[], &[]);
    fails(&contexts, &["--server", broker.url()], &[], (4, "wants credentials"));
    fails(&contexts, &[], &[("NATS_URL", broker.url())], (4, "wants credentials"));
    fails(&contexts, &["--no-context"], &[("NATS_CONTEXT", "good")], (6, "127.0.0.1:4222"));
    let other = Contexts::new();
    reaches(&other, &["--context", &file.to_string_lossy()], &[]);

    // Without XDG_CONFIG_HOME it is in ~/.config.
    std::fs::create_dir(other.home().join(".config")).expect("a folder");
    std::fs::rename(contexts.folder(), other.home().join(".config/nats")).expect("moved");
    let mut command = tidemill(&other, &["setup"], &[]);
    command.env_remove("XDG_CONFIG_HOME").assert().success();
}

#[tokio::test]
async fn an_unknown_context_is_told_with_the_known_ones_and_harms_no_other() {
    let broker = Broker::start().await.expect("a broker");
    let contexts = Contexts::new();
    contexts.add("prod", &json!({}));
    fails(&contexts, &["--context", "prdo"], &[], (3, "no NATS context 'prdo'"));
    fails(&contexts, &[], &[("NATS_CONTEXT", "prdo")], (3, "known there: prod"));
    contexts.select("gone");
    fails(&contexts, &[], &[], (3, "no NATS context 'gone'"));
    reaches(&contexts, &["--server", broker.url()], &[]);
    fails(&contexts, &["--context", "/no/such.json"], &[], (2, "cannot read the NATS context"));
}

#[tokio::test]
async fn empty_variables_are_none() {
    let broker = Broker::start().await.expect("a broker");
    let names = "NATS_USER NATS_PASSWORD NATS_TOKEN NATS_CREDS NATS_NKEY NATS_JWT NATS_SEED \
                 NATS_CERT NATS_KEY NATS_CA NATS_CONTEXT NATS_TIMEOUT NATS_JS_DOMAIN \
                 NATS_JS_API_PREFIX NATS_INBOX_PREFIX";
    let mut environment: Vec<_> = names.split_whitespace().map(|name| (name, "")).collect();
    environment.push(("NATS_URL", broker.url()));
    reaches(&Contexts::new(), &[], &environment);
}
