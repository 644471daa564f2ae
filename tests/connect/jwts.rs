//! A server in operator mode: who may connect is in JWTs that an account signs.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use serde_json::{Value, json};
use tidemill::ConnectOptions;
use tidemill::embedded::Broker;

/// The one account of an operator, with JetStream.
pub(crate) struct Account(KeyPair);

/// A user JWT and the seed that belongs to it.
pub(crate) struct User {
    pub(crate) jwt: String,
    pub(crate) seed: String,
}

impl Account {
    /// A server with a fresh account.
    pub(crate) async fn start() -> (Broker, Self) {
        let operator = KeyPair::new_operator();
        let (account, system) = (KeyPair::new_account(), KeyPair::new_account());
        let operator_claims = json!({ "type": "operator", "version": 2 });
        let preload = [(&account, -1), (&system, 0)].map(|(key, disk)| {
            let jwt = sign(&operator, key, None, account_claims(disk));
            format!("{}: {jwt}", key.public_key())
        });
        let config = format!(
            "operator: {}\nresolver: MEMORY\nresolver_preload {{ {} }}\nsystem_account: {}\n",
            sign(&operator, &operator, None, operator_claims),
            preload.join("\n"),
            system.public_key(),
        );
        let account = Self(account);
        let User { jwt, seed } = account.user();
        let as_user = move |options: ConnectOptions| options.jwt(&jwt, &seed);
        let builder = Broker::builder().config(config).connect_with(as_user);
        (builder.start().await.expect("a broker"), account)
    }

    pub(crate) fn user(&self) -> User {
        self.issue(None)
    }

    /// A user whose JWT is good until then.
    pub(crate) fn user_until(&self, end: SystemTime) -> User {
        self.issue(Some(end))
    }

    fn issue(&self, end: Option<SystemTime>) -> User {
        let key = KeyPair::new_user();
        let jwt = sign(&self.0, &key, end, user_claims());
        User { jwt, seed: key.seed().expect("a seed") }
    }
}

impl User {
    /// Writes a credentials file as `nsc` does.
    pub(crate) fn write(&self, folder: &Path) -> PathBuf {
        let Self { jwt, seed } = self;
        let text = format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             ************************* IMPORTANT *************************\n\
             NKEY Seed printed below can be used to sign and prove identity.\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        let path = folder.join("user.creds");
        std::fs::write(&path, text).expect("written");
        path
    }
}

fn sign(issuer: &KeyPair, subject: &KeyPair, end: Option<SystemTime>, nats: Value) -> String {
    let seconds = |time: SystemTime| {
        time.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs()
    };
    let mut claims = json!({
        "jti": subject.public_key(),
        "iat": seconds(SystemTime::now() - Duration::from_secs(3600)),
        "iss": issuer.public_key(),
        "sub": subject.public_key(),
        "name": "test",
        "nats": nats,
    });
    if let Some(end) = end {
        claims["exp"] = json!(seconds(end));
    }
    let header = json!({ "typ": "JWT", "alg": "ed25519-nkey" });
    let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
    let signed = format!("{}.{}", encode(&header), encode(&claims));
    let signature = issuer.sign(signed.as_bytes()).expect("signed");
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// With JetStream if it has some bytes of disk, or any number (-1).
fn account_claims(disk: i64) -> Value {
    json!({
        "type": "account", "version": 2,
        "limits": {
            "subs": -1, "data": -1, "payload": -1, "conn": -1, "leaf": -1,
            "imports": -1, "exports": -1, "wildcards": true,
            "mem_storage": 0, "disk_storage": disk, "streams": -1, "consumer": -1,
        },
    })
}

fn user_claims() -> Value {
    json!({
        "type": "user", "version": 2, "pub": {}, "sub": {},
        "subs": -1, "data": -1, "payload": -1,
    })
}
