//! Servers in operator mode: users show a JWT that their account has signed.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use serde_json::{Value, json};
use tidemill::embedded::Broker;

use crate::support::{Files, refused, to, works};

/// A signed claim about the owner of a key, as `nsc` makes them.
fn jwt(signer: &KeyPair, subject: &KeyPair, expires_in: Option<i64>, nats: Value) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let now = i64::try_from(now).expect("fits");
    let mut claims = json!({
        "jti": subject.public_key(), "iat": now, "iss": signer.public_key(),
        "sub": subject.public_key(), "name": "test", "nats": nats,
    });
    if let Some(seconds) = expires_in {
        claims["exp"] = json!(now + seconds);
    }
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let header = json!({ "typ": "JWT", "alg": "ed25519-nkey" });
    let signed = format!("{}.{}", part(&header), part(&claims));
    let signature = signer.sign(signed.as_bytes()).expect("signs");
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// An account with JetStream, and a server that knows it.
struct Operated {
    broker: Broker,
    account: KeyPair,
    files: Files,
}

impl Operated {
    async fn start() -> Self {
        let files = Files::new();
        let (operator, system) = (KeyPair::new_operator(), KeyPair::new_account());
        let account = KeyPair::new_account();
        let unlimited = json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1,
            "wildcards": true, "conn": -1, "leaf": -1,
        });
        let mut with_jetstream = unlimited.clone();
        for limit in ["mem_storage", "disk_storage", "streams", "consumer"] {
            with_jetstream[limit] = json!(-1);
        }
        let of_operator =
            jwt(&operator, &operator, None, json!({ "type": "operator", "version": 2 }));
        let of_account = |account: &KeyPair, limits: &Value| {
            let nats = json!({ "type": "account", "version": 2, "limits": limits });
            jwt(&operator, account, None, nats)
        };
        let config = format!(
            "operator: \"{of_operator}\"\nresolver: MEMORY\nsystem_account: {sys}\n\
             resolver_preload {{\n  {sys}: \"{}\"\n  {acc}: \"{}\"\n}}\n",
            of_account(&system, &unlimited),
            of_account(&account, &with_jetstream),
            sys = system.public_key(),
            acc = account.public_key(),
        );
        let creds = creds(&files, "starter.creds", &account, None);
        let builder = Broker::builder().config(config);
        let builder = builder.connect_with(move |options| options.creds_file(&creds));
        let broker = builder.start().await.expect("a broker");
        Self { broker, account, files }
    }
}

/// A credentials file of a new user of the account.
fn creds(
    files: &Files,
    name: &str,
    account: &KeyPair,
    expires_in: Option<i64>,
) -> std::path::PathBuf {
    let (jwt, seed) = user(account, expires_in);
    files.write(
        name,
        &format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             ************************* IMPORTANT *************************\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        ),
    )
}

/// A new user's JWT and seed.
fn user(account: &KeyPair, expires_in: Option<i64>) -> (String, String) {
    let user = KeyPair::new_user();
    let nats = json!({
        "type": "user", "version": 2, "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1,
    });
    (jwt(account, &user, expires_in, nats), user.seed().expect("a seed"))
}

#[tokio::test]
async fn a_jwt_from_a_credentials_file_or_by_itself() {
    let Operated { broker, account, files } = Operated::start().await;
    works(to(broker.url()).creds_file(creds(&files, "user.creds", &account, None))).await;
    let (jwt, seed) = user(&account, None);
    works(to(broker.url()).jwt(&jwt, &seed)).await;
    let nkey = files.write("user.nk", &seed);
    works(to(broker.url()).jwt(jwt, nkey.to_string_lossy())).await;
}

#[tokio::test]
async fn what_is_wrong_with_credentials_is_said() {
    let Operated { broker, account, files } = Operated::start().await;
    let expired = creds(&files, "expired.creds", &account, Some(-60));
    let (error, text) = refused(to(broker.url()).creds_file(expired)).await;
    assert!(error.is_permission(), "{text}");
    let stranger = creds(&files, "stranger.creds", &KeyPair::new_account(), None);
    let (error, text) = refused(to(broker.url()).creds_file(stranger)).await;
    assert!(error.is_permission(), "{text}");

    let missing = files.folder().join("missing.creds");
    let (_, text) = refused(to(broker.url()).creds_file(missing)).await;
    assert!(text.contains("cannot read the credentials file"), "{text}");
    assert!(text.contains("missing.creds"), "{text}");
    let garbled = files.write("garbled.creds", "not a JWT");
    let (error, text) = refused(to(broker.url()).creds_file(garbled)).await;
    assert!(error.is_invalid(), "{text}");
    assert!(text.contains("garbled.creds must hold a user JWT and its nkey seed"), "{text}");
}
