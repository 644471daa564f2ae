//! What a user may not do is told by its right, at once, and not by a timeout.

use std::time::{Duration, Instant};

use tidemill::embedded::Broker;
use tidemill::{Client, ConnectOptions, JobId, Queue};

use crate::support::{Ping, says, to};

/// A user who gets no answers, one who gets them on an inbox of their own, one who may not ask.
const RIGHTS: &str = r#"
accounts {
  JOBS {
    jetstream: enabled
    users: [
      { user: admin, password: admin }
      { user: deaf, password: deaf, permissions { publish: ">", subscribe: ["nothing.>"] } }
      { user: mine, password: mine, permissions { publish: ">", subscribe: ["_INBOX_mine.>"] } }
      { user: mute, password: mute, permissions { publish: ["nothing.>"], subscribe: ">" } }
    ]
  }
}
"#;

/// Less than a request may take.
const AT_ONCE: Duration = Duration::from_secs(2);

async fn broker() -> Broker {
    let as_admin = |options: ConnectOptions| options.user_password("admin", "admin");
    let builder = Broker::builder().config(RIGHTS).connect_with(as_admin);
    let broker = builder.start().await.expect("a broker");
    let admin = user(&broker, "admin").await;
    admin.ensure_queue(&Queue::default()).await.expect("made");
    broker
}

async fn user(broker: &Broker, name: &str) -> Client {
    let options = to(broker.url()).user_password(name, name);
    Client::connect(options).await.expect("connects")
}

#[tokio::test]
async fn an_inbox_that_is_refused_ends_every_request_at_once() {
    let broker = broker().await;
    let deaf = user(&broker, "deaf").await;
    let queue = Queue::default();
    let id = JobId::new("x").expect("valid");
    let begun = Instant::now();
    let first = deaf.enqueue(Ping).await.expect_err("no answers");
    let second = deaf.enqueue(Ping).await.expect_err("no answers");
    let setup = deaf.ensure_queue(&queue).await.expect_err("no answers");
    // The answers to this one have an inbox of their own.
    let many = user(&broker, "deaf").await;
    let many = many.completions_of(&queue, None, &id).await.expect_err("no answers");
    for error in [first, second, setup, many] {
        assert!(error.is_permission(), "{error:?}");
        says(&error, &["no permission to subscribe to _INBOX.", "inbox prefix"]);
    }
    assert!(begun.elapsed() < AT_ONCE, "it took {:?}", begun.elapsed());
}

#[tokio::test]
async fn an_inbox_prefix_is_used() {
    let broker = broker().await;
    let options = || to(broker.url()).user_password("mine", "mine");
    let client = Client::connect(options().inbox_prefix("_INBOX_mine")).await.expect("connects");
    client.enqueue(Ping).await.expect("stored, and told so");
    let client = Client::connect(options()).await.expect("connects");
    let error = client.enqueue(Ping).await.expect_err("not that inbox");
    assert!(error.is_permission(), "{error:?}");
}

#[tokio::test]
async fn a_subject_that_is_refused_is_named() {
    let broker = broker().await;
    let mute = user(&broker, "mute").await;
    let queue = Queue::default();
    let id = JobId::new("x").expect("valid");
    let begun = Instant::now();
    let enqueue = mute.enqueue(Ping).await.expect_err("may not");
    says(&enqueue, &["no permission to publish to tidemill.jobs.default."]);
    let setup = mute.ensure_queue(&queue).await.expect_err("may not");
    says(&setup, &["no permission to publish to $JS.API."]);
    let many = mute.completions_of(&queue, None, &id).await.expect_err("may not");
    says(&many, &["no permission to publish to $JS.API.DIRECT.GET."]);
    for error in [enqueue, setup, many] {
        assert!(error.is_permission(), "{error:?}");
    }
    assert!(begun.elapsed() < AT_ONCE, "it took {:?}", begun.elapsed());
}
