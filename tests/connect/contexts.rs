//! The contexts of the `nats` command line: by name, by file, the selected one.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;
use tidemill::ConnectOptions;

use crate::certs::Authority;
use crate::jwts::Account;
use crate::support::{connects, says, server, told};

/// A folder as `nats` keeps it.
pub(crate) struct Contexts(TempDir);

impl Contexts {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir_all(folder.path().join("nats/context")).expect("a folder");
        Self(folder)
    }

    /// What `XDG_CONFIG_HOME` is.
    pub(crate) fn home(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn folder(&self) -> PathBuf {
        self.0.path().join("nats")
    }

    pub(crate) fn add(&self, name: &str, context: &Value) -> PathBuf {
        self.add_text(name, &context.to_string())
    }

    pub(crate) fn add_text(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder().join(format!("context/{name}.json"));
        std::fs::write(&path, text).expect("written");
        path
    }

    pub(crate) fn select(&self, name: &str) {
        std::fs::write(self.folder().join("context.txt"), format!("{name}\n")).expect("written");
    }
}

#[tokio::test]
async fn a_context_is_found_by_name_by_file_and_as_the_selected_one() {
    let (broker, account) = Account::start().await;
    let contexts = Contexts::new();
    let creds = account.user().write(contexts.home());
    let file = contexts.add("prod", &json!({ "url": broker.url(), "creds": creds }));
    contexts.add("other", &json!({ "url": "nats://127.0.0.1:1" }));
    contexts.select("prod");

    let folder = contexts.folder();
    let named = ConnectOptions::from_context(&folder, Some("prod")).expect("reads").expect("known");
    let selected = ConnectOptions::from_context(&folder, None).expect("reads").expect("selected");
    let by_file = ConnectOptions::from_context_file(file).expect("reads");
    for options in [named, selected, by_file] {
        assert!(format!("{options:?}").contains("user.creds"), "{options:?}");
        connects(options).await;
    }
}

#[tokio::test]
async fn a_context_carries_a_password_and_certificates() {
    let authority = Authority::new();
    let login = r#"authorization { users: [{ user: "me", password: "secret" }] }"#;
    let config = format!("{login}\n{}", authority.config("verify: true, handshake_first: true"));
    let broker = server(&config).await;
    let pair = authority.pair("client");
    let contexts = Contexts::new();
    let file = contexts.add(
        "mtls",
        &json!({
            "description": "as `nats context add` writes them", "url": broker.url(),
            "user": "me", "password": "secret", "token": "", "creds": "", "nkey": "", "nsc": "",
            "cert": pair.cert, "key": pair.key, "ca": authority.ca(), "tls_first": true,
            "jetstream_domain": "", "inbox_prefix": "", "color_scheme": "",
        }),
    );
    connects(ConnectOptions::from_context_file(file).expect("reads")).await;
}

#[test]
fn an_unknown_context_is_told_with_the_known_ones() {
    let contexts = Contexts::new();
    let unknown =
        |name| ConnectOptions::from_context(&contexts.folder(), name).expect_err("no such");
    let error = unknown(Some("prod"));
    assert!(error.is_not_found(), "{error:?}");
    says(&error, &["no NATS context 'prod'", "known there: none"]);

    contexts.add("staging", &json!({}));
    contexts.add("dev", &json!({}));
    contexts.select("gone");
    says(&unknown(Some("prod")), &["no NATS context 'prod'", "known there: dev, staging"]);
    says(&unknown(None), &["no NATS context 'gone'", "known there: dev, staging"]);
}

#[test]
fn a_malformed_context_is_told_with_its_file_and_place() {
    let contexts = Contexts::new();
    let cases = [
        ("{\n  \"url\": ", "is not JSON at line 2"),
        (r#"{ "url": 4222 }"#, "the key 'url'"),
        (r#"{ "url": "http://a" }"#, "'http://a' is not the URL of a NATS server"),
        (r#"{ "cert": "/c" }"#, "'cert' needs 'key'"),
        (r#"{ "nsc": "nsc://o/a/u" }"#, "nsc generate creds"),
    ];
    for (text, expected) in cases {
        let file = contexts.add_text("bad", text);
        let error = ConnectOptions::from_context_file(&file).expect_err("malformed");
        assert!(error.is_invalid(), "{error:?}");
        says(&error, &[&file.to_string_lossy()]);
        assert!(told(&error).contains(expected), "{}", told(&error));
    }
    let gone = ConnectOptions::from_context_file("/no/such.json").expect_err("not there");
    assert!(gone.is_invalid(), "{gone:?}");
    says(&gone, &["cannot read the NATS context /no/such.json"]);
}
