//! Files that cannot be read or used are named before anything is connected.

use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tidemill::ConnectOptions;

use crate::certs::Authority;
use crate::support::{refused, says, to};

/// Nobody listens there, which is not what these are told.
fn options() -> ConnectOptions {
    to("nats://127.0.0.1:1")
}

/// A folder with a file of this text.
fn file(text: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("the.file");
    std::fs::write(&path, text).expect("written");
    (folder, path)
}

async fn is_told(options: ConnectOptions, file: &Path, words: &[&str]) {
    let error = refused(options).await;
    assert!(error.is_invalid(), "{error:?}");
    says(&error, &[&file.to_string_lossy()]);
    says(&error, words);
}

#[tokio::test]
async fn a_file_that_is_not_there_is_named() {
    let authority = Authority::new();
    let pair = authority.pair("localhost");
    let gone = Path::new("/no/such.file");
    is_told(options().creds_file(gone), gone, &["cannot read the credentials file"]).await;
    is_told(options().nkey("/no/such.file"), gone, &["cannot read the nkey file"]).await;
    is_told(options().root_ca(gone), gone, &["cannot read", "certificate"]).await;
    is_told(options().client_cert(gone, &pair.key), gone, &["cannot read", "certificate"]).await;
    is_told(options().client_cert(&pair.cert, gone), gone, &["cannot read", "private key"]).await;
}

#[tokio::test]
async fn a_file_of_something_else_is_named_with_what_it_should_hold() {
    let authority = Authority::new();
    let pair = authority.pair("localhost");
    let (_folder, text) = file("nothing of the kind\n");
    is_told(options().creds_file(&text), &text, &["user JWT and its seed"]).await;
    is_told(options().nkey(text.to_string_lossy()), &text, &["user's seed (SU…)"]).await;
    is_told(options().root_ca(&text), &text, &["no certificate in PEM"]).await;
    is_told(options().client_cert(&text, &pair.key), &text, &["no certificate in PEM"]).await;
    is_told(options().client_cert(&pair.cert, &text), &text, &["no private key in PEM"]).await;
    is_told(options().client_cert(&pair.cert, &pair.cert), &pair.cert, &["no private key"]).await;
}

#[tokio::test]
async fn a_certificate_and_a_key_of_another_are_told() {
    let authority = Authority::new();
    let (one, other) = (authority.pair("one"), authority.pair("other"));
    let error = refused(options().client_cert(&one.cert, &other.key)).await;
    assert!(error.is_invalid(), "{error:?}");
    let names = [one.cert.to_string_lossy(), other.key.to_string_lossy()];
    says(&error, &[&names[0], &names[1], "do not go together"]);
}
