//! Names, passwords, tokens and nkeys.

use std::time::{Duration, Instant};

use nkeys::KeyPair;
use tidemill::embedded::Broker;

use crate::support::{Files, refused, to, works};

/// A server that wants what `authorization` says, and is itself asked as `ann`.
async fn server(authorization: &str) -> Broker {
    let config = format!("authorization {{ {authorization} }}");
    let builder = Broker::builder().config(config);
    let builder = builder.connect_with(|options| options.user_password("ann", "p@ss:w/rd"));
    builder.start().await.expect("a broker")
}

const ANN: &str = r#"users: [{ user: ann, password: "p@ss:w/rd" }]"#;

fn with_login(broker: &Broker, login: &str) -> String {
    broker.url().replace("nats://", &format!("nats://{login}@"))
}

#[tokio::test]
async fn a_name_and_a_password_by_option_or_in_the_url() {
    let broker = server(ANN).await;
    works(to(broker.url()).user_password("ann", "p@ss:w/rd")).await;
    works(to(&with_login(&broker, "ann:p%40ss%3Aw%2Frd"))).await;
}

#[tokio::test]
async fn wrong_and_missing_credentials_are_refused_without_being_shown() {
    let broker = server(ANN).await;
    for options in [
        to(broker.url()),
        to(broker.url()).user_password("ann", "hunter2"),
        to(&with_login(&broker, "ann:hunter2")),
        to(broker.url()).token("hunter2"),
    ] {
        assert!(!format!("{options:?}").contains("hunter2"));
        let (error, text) = refused(options).await;
        assert!(error.is_permission(), "{text}");
        assert!(text.contains("refuses these credentials, or wants some"), "{text}");
        assert!(text.contains("127.0.0.1") && !text.contains("hunter2"), "{text}");
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    }
}

#[tokio::test]
async fn a_token_by_option_or_in_the_url() {
    let config = "authorization { token: s3cret }";
    let builder = Broker::builder().config(config).connect_with(|options| options.token("s3cret"));
    let broker = builder.start().await.expect("a broker");
    works(to(broker.url()).token("s3cret")).await;
    works(to(&with_login(&broker, "s3cret"))).await;
}

#[tokio::test]
async fn an_nkey_by_its_seed_or_a_file() {
    let files = Files::new();
    let key = KeyPair::new_user();
    let seed = key.seed().expect("a seed");
    let ann = r#"{ user: ann, password: "p@ss:w/rd" }"#;
    let users = format!("users: [{ann}, {{ nkey: {} }}]", key.public_key());
    let broker = server(&users).await;
    works(to(broker.url()).nkey(&seed)).await;
    let file = files.write("user.nk", &format!("{seed}\n"));
    works(to(broker.url()).nkey(file.to_string_lossy())).await;

    let stranger = KeyPair::new_user().seed().expect("a seed");
    let (error, text) = refused(to(broker.url()).nkey(&stranger)).await;
    assert!(error.is_permission() && !text.contains(&stranger), "{text}");
    let empty = files.write("empty.nk", "");
    let (error, text) = refused(to(broker.url()).nkey(empty.to_string_lossy())).await;
    assert!(error.is_invalid() && text.contains("empty.nk holds no user nkey seed"), "{text}");
}

#[tokio::test]
async fn of_several_servers_one_that_is_there_will_do() {
    let gone = Broker::builder().without_jetstream().start().await.expect("a broker");
    let gone_url = gone.url().to_owned();
    gone.stop().await.expect("stops");
    let broker = Broker::start().await.expect("a broker");
    works(to(&format!("{gone_url},{}", broker.url()))).await;
    works(to(&format!("{},{gone_url}", broker.url()))).await;

    let (error, text) = refused(to(&gone_url)).await;
    assert!(error.is_unavailable(), "{text}");
    assert!(text.contains("no NATS server answers there"), "{text}");
}

#[tokio::test]
async fn a_host_that_does_not_exist_is_named() {
    // The name is reserved for this (RFC 6761).
    let options = to("nats://nats.invalid").connect_timeout(Duration::from_secs(3));
    let (error, text) = refused(options).await;
    assert!(error.is_unavailable(), "{text}");
    assert!(text.contains("nats://nats.invalid:4222"), "{text}");
}

/// A worker that may not subscribe to where its answers come.
const DEAF: &str = r#"users: [
  { user: ann, password: "p@ss:w/rd" }
  { user: deaf, password: deaf, permissions { publish: ">", subscribe: ["only.this"] } }
]"#;

#[tokio::test]
async fn a_refused_inbox_is_told_at_once_with_what_to_do() {
    let broker = server(DEAF).await;
    let client = tidemill::Client::connect(to(broker.url()).user_password("deaf", "deaf")).await;
    let client = client.expect("connecting needs no inbox");
    let asked = Instant::now();
    let error = client.enqueue(tidemill::NewJob::raw("any", "{}")).await.expect_err("no answer");
    assert!(error.is_permission(), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("no permission to subscribe to _INBOX."), "{text}");
    assert!(text.contains("inbox prefix"), "{text}");
    assert!(asked.elapsed() < Duration::from_secs(3), "not by a timeout");
}
