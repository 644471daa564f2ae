//! Who we are: each way to log in, and what is said when it fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use nkeys::KeyPair;
use tidemill::embedded::Broker;
use tidemill::{Client, ConnectOptions, JobContext, JobError, Queue, QueueConfig, Status, Worker};
use tokio::sync::Notify;

use crate::jwts::Account;
use crate::support::{Ping, connects, eventually, refused, says, server, to, url};

const PASSWORD: &str = r#"authorization { users: [{ user: "me", password: "p@ss/w:rd,#1" }] }"#;

async fn with_password() -> Broker {
    server(PASSWORD).await
}

#[tokio::test]
async fn a_user_logs_in_with_a_password() {
    let broker = with_password().await;
    connects(to(broker.url()).user_password("me", "p@ss/w:rd,#1")).await;
    connects(to(&url(&broker, "nats", "me:p%40ss%2Fw%3Ard%2C%231@"))).await;
}

#[tokio::test]
async fn a_wrong_password_is_told_with_the_user() {
    let broker = with_password().await;
    for options in
        [to(broker.url()).user_password("me", "wrong"), to(&url(&broker, "nats", "me:wrong@"))]
    {
        let error = refused(options).await;
        assert!(error.is_permission(), "{error:?}");
        says(&error, &[broker.url(), "refuses user 'me' with this password"]);
    }
}

#[tokio::test]
async fn missing_credentials_are_told_with_what_there_is_to_give() {
    let broker = with_password().await;
    let error = refused(to(broker.url())).await;
    assert!(error.is_permission(), "{error:?}");
    says(&error, &["wants credentials, and none are given", "give a user and password"]);
}

#[tokio::test]
async fn a_token_logs_in() {
    let broker = server(r#"authorization { token: "t0ken" }"#).await;
    connects(to(broker.url()).token("t0ken")).await;
    connects(to(&url(&broker, "nats", "t0ken@"))).await;
    let error = refused(to(broker.url()).token("other")).await;
    assert!(error.is_permission(), "{error:?}");
    says(&error, &["refuses this token"]);
}

#[tokio::test]
async fn an_nkey_logs_in_as_a_seed_and_from_a_file() {
    let key = KeyPair::new_user();
    let seed = key.seed().expect("a seed");
    let broker =
        server(&format!("authorization {{ users: [{{ nkey: {} }}] }}", key.public_key())).await;
    connects(to(broker.url()).nkey(&seed)).await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("user.nk");
    std::fs::write(&file, format!("{seed}\n")).expect("written");
    connects(to(broker.url()).nkey(file.to_string_lossy())).await;

    let other = KeyPair::new_user();
    let error = refused(to(broker.url()).nkey(other.seed().expect("a seed"))).await;
    assert!(error.is_permission(), "{error:?}");
    says(&error, &["refuses the nkey", &other.public_key()]);
}

#[tokio::test]
async fn a_credentials_file_logs_in_and_so_do_its_parts() {
    let (broker, account) = Account::start().await;
    let user = account.user();
    let folder = tempfile::tempdir().expect("a folder");
    connects(to(broker.url()).creds_file(user.write(folder.path()))).await;
    connects(to(broker.url()).jwt(&user.jwt, &user.seed)).await;
    let seed = folder.path().join("user.nk");
    std::fs::write(&seed, &user.seed).expect("written");
    connects(to(broker.url()).jwt(&user.jwt, seed.to_string_lossy())).await;
}

#[tokio::test]
async fn a_jwt_that_is_not_for_this_server_is_told_with_its_file() {
    let (broker, account) = Account::start().await;
    let (_other, stranger) = Account::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = stranger.user().write(folder.path());
    let error = refused(to(broker.url()).creds_file(&file)).await;
    assert!(error.is_permission(), "{error:?}");
    says(&error, &["refuses the credentials in", &file.to_string_lossy()]);
    let error = refused(to(broker.url()).jwt(account.user().jwt, stranger.user().seed)).await;
    assert!(error.is_permission(), "{error:?}");
    says(&error, &["refuses this user JWT"]);
}

#[tokio::test]
async fn an_expired_jwt_is_told_with_its_end() {
    let (broker, account) = Account::start().await;
    let user = account.user_until(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000));
    let folder = tempfile::tempdir().expect("a folder");
    let file = user.write(folder.path());
    let all: [ConnectOptions; 2] =
        [to(broker.url()).creds_file(&file), to(broker.url()).jwt(&user.jwt, &user.seed)];
    for options in all {
        let error = refused(options).await;
        assert!(error.is_permission(), "{error:?}");
        says(&error, &["the user JWT expired at 2023-11-14T22:13:20Z", "get a new one"]);
    }
}

#[tokio::test]
async fn a_renewed_credentials_file_is_used_when_the_old_one_expires() {
    let (broker, account) = Account::start().await;
    let end = SystemTime::now() + Duration::from_secs(3);
    let folder = tempfile::tempdir().expect("a folder");
    let old = account.user_until(end);
    let file = old.write(folder.path());
    let client = connects(to(broker.url()).creds_file(&file)).await;
    assert_eq!(account.user().write(folder.path()), file);
    let expired = end + Duration::from_secs(1);
    eventually("the end of the first JWT", || async { SystemTime::now() > expired }).await;
    client.enqueue(Ping).await.expect("connected with the new one");
    let error = refused(to(broker.url()).jwt(old.jwt, old.seed)).await;
    assert!(error.is_permission(), "with the old one, it would not be: {error:?}");
}

#[tokio::test]
async fn a_worker_keeps_its_job_when_its_credentials_expire_and_are_renewed() {
    let (broker, account) = Account::start().await;
    let end = SystemTime::now() + Duration::from_secs(3);
    let folder = tempfile::tempdir().expect("a folder");
    let old = account.user_until(end);
    let file = old.write(folder.path());
    // So short that the job would go to another long before it ends, were its lease not kept.
    let mut config = QueueConfig::default();
    config.ack_wait = Duration::from_secs(2);
    let client = Client::connect(to(broker.url()).creds_file(&file)).await.expect("connects");
    let client = client.with_queue_config(config);
    let (runs, may_end) = (Arc::new(AtomicU32::new(0)), Arc::new(Notify::new()));
    let (seen, gate) = (runs.clone(), may_end.clone());
    let handler = move |_: Ping, _: JobContext| {
        let (seen, gate) = (seen.clone(), gate.clone());
        async move {
            seen.fetch_add(1, Ordering::SeqCst);
            gate.notified().await;
            Ok::<_, JobError>(())
        }
    };
    let worker = Worker::builder(&client).handle(handler).build().expect("valid");
    let worker = worker.start().await.expect("starts");
    let job = client.enqueue(Ping).await.expect("stored");
    eventually("the job runs", || async { runs.load(Ordering::SeqCst) == 1 }).await;

    assert_eq!(account.user().write(folder.path()), file);
    let long_after = end + Duration::from_secs(5);
    eventually("the end of the first JWT, and more than twice ack_wait", || async {
        SystemTime::now() > long_after
    })
    .await;
    let error = refused(to(broker.url()).jwt(old.jwt, old.seed)).await;
    assert!(error.is_permission(), "the first JWT is good no more: {error:?}");
    may_end.notify_one();
    let completion = job.completion_within(Duration::from_secs(10)).await.expect("it ends");
    assert_eq!((completion.status, completion.attempt), (Status::Done, 1));
    eventually("it is settled", || async {
        client.queue_info(&Queue::default()).await.is_ok_and(|info| info.jobs == 0)
    })
    .await;
    worker.drain().await;
    assert_eq!(runs.load(Ordering::SeqCst), 1, "it ran once");
    let all = client.completions_of(&Queue::default(), None, job.id()).await.expect("read");
    assert_eq!(all.len(), 1);
}
