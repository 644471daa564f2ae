//! Contexts of the nats command line.

use serde_json::json;
use tidemill::ConnectOptions;
use tidemill::embedded::Broker;

use crate::support::{Files, refused, works};

/// A server with a login, and a folder with contexts for it.
async fn server_and_contexts() -> (Broker, Files) {
    let config = "authorization { user: ann, password: secret }";
    let builder = Broker::builder().config(config);
    let builder = builder.connect_with(|options| options.user_password("ann", "secret"));
    let broker = builder.start().await.expect("a broker");
    let files = Files::new();
    let context = |user: &str, password: &str| {
        let all = json!({
            "description": "as `nats context save` writes it", "url": broker.url(), "token": "",
            "user": user, "password": password, "creds": "", "nkey": "", "cert": "", "key": "",
            "ca": "", "nsc": "", "jetstream_domain": "", "jetstream_api_prefix": "",
            "jetstream_event_prefix": "", "inbox_prefix": "", "user_jwt": "",
            "color_scheme": "", "tls_first": false,
        });
        all.to_string()
    };
    files.write("context/good.json", &context("ann", "secret"));
    files.write("context/bad.json", &context("ann", "guessed"));
    files.write("context.txt", "good");
    (broker, files)
}

#[tokio::test]
async fn a_context_by_name_by_file_or_as_selected() {
    let (_broker, files) = server_and_contexts().await;
    let context = |name| ConnectOptions::from_context(files.folder(), name).expect("reads");
    works(context(Some("good")).expect("named")).await;
    works(context(None).expect("selected")).await;
    let file = files.folder().join("context/good.json");
    works(ConnectOptions::from_context_file(file).expect("reads")).await;

    let (error, text) = refused(context(Some("bad")).expect("named")).await;
    assert!(error.is_permission() && !text.contains("guessed"), "{text}");
}

#[test]
fn a_context_that_is_not_there_or_garbled_is_named() {
    let files = Files::new();
    files.write("context/one.json", "{}");
    files.write("context/two.json", r#"{"url": ["#);
    let context = |name| ConnectOptions::from_context(files.folder(), Some(name));
    let missing = context("three").expect_err("not there");
    assert_eq!(missing.to_string(), "there is no NATS context 'three'; known are: one, two");
    let garbled = context("two").expect_err("not JSON").to_string();
    assert!(garbled.contains("two.json is not a NATS context"), "{garbled}");
}
