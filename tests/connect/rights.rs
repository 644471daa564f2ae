//! What a user may not do is told by its right, at once, and not by a timeout.

use std::time::{Duration, Instant};

use tidemill::embedded::Broker;
use tidemill::{Client, ConnectOptions, JobId, NewJob, Queue};

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
      { user: producer, password: producer,
        permissions { publish: ["tidemill.jobs.default.>"], subscribe: ["_INBOX.>"] } }
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

#[tokio::test]
async fn who_may_only_publish_enqueues_and_is_refused_the_rest_by_name() {
    let broker = broker().await;
    let producer = user(&broker, "producer").await;
    let unique = || NewJob::new(&Ping).unique("one");
    let job = producer.enqueue(Ping).await.expect("stored");
    producer.enqueue(NewJob::new(&Ping).id("chosen")).await.expect("stored");
    let first = producer.enqueue(unique()).await.expect("stored");
    assert!(!first.is_duplicate());
    let begun = Instant::now();
    let taken = producer.enqueue(unique()).await.expect_err("it cannot be told whose it is");
    assert!(taken.is_duplicate(), "{taken:?}");
    says(&taken, &["is in queue default already", "may not see"]);
    let replaced = producer.enqueue_replacing(unique()).await.expect_err("may not look");
    says(&replaced, &["no permission to publish to $JS.API.DIRECT.GET.TIDEMILL_JOBS_default"]);
    let awaited = job.completion().await.expect_err("may not look");
    let elsewhere = producer.enqueue(NewJob::new(&Ping).queue("new")).await.expect_err("no right");
    says(&elsewhere, &["no permission to publish to "]);
    for error in [replaced, awaited, elsewhere] {
        assert!(error.is_permission(), "{error:?}");
    }
    assert!(begun.elapsed() < AT_ONCE, "it took {:?}", begun.elapsed());
}
