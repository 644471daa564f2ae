//! What a broker can refuse, and how that is told: too old, no JetStream, no permission.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tidemill::embedded::Broker;
use tidemill::{Client, ConnectOptions, JobContext, JobError, Queue, Status, Worker};

use crate::support::{
    NOTHING, Numbered, Seen, completion, connect, eventually, lane_counts, numbered,
    stream_messages, worker_without,
};

#[tokio::test]
async fn a_server_that_is_too_old_is_named_with_what_is_needed() {
    let broker = Broker::builder().version("2.11.11").start().await.expect("a broker");
    let options = ConnectOptions::new(broker.url()).expect("a URL");
    let error = Client::connect(options).await.expect_err("too old");
    assert!(error.is_unsupported(), "{error:?}");
    assert_eq!(error.to_string(), "nats-server is 2.11.11: tidemill needs 2.12 or newer");
}

#[tokio::test]
async fn older_servers_that_will_do_work_jobs() {
    join_all(["2.12.8", "2.14.6"].map(|version| async move {
        let broker = Broker::builder().version(version).start().await.expect("a broker");
        let client = connect(broker.url()).await;
        let handler = |job: Numbered, context: JobContext| async move {
            if context.attempt() == 1 {
                return Err(JobError::failed("once").retry_after(Duration::from_millis(50)));
            }
            Ok(job.n)
        };
        let worker = Worker::builder(&client).handle(handler).build().expect("valid");
        let running = worker.start().await.expect("starts");
        let job = client.enqueue(numbered(7)).await.expect("stored");
        let done = completion(&job).await;
        assert_eq!((done.status, done.attempt), (Status::Done, 2), "{version}");
        let many = client.enqueue_many((0..600).map(numbered)).await;
        for job in many {
            assert_eq!(completion(&job.expect("stored")).await.status, Status::Done, "{version}");
        }
        running.drain().await;
        let again = client.ensure_queue(&Queue::default()).await.expect("fine");
        assert!(again.drift.is_empty(), "{version}: {:?}", again.drift);
    }))
    .await;
}

#[tokio::test]
async fn a_server_without_jetstream_says_so() {
    let broker = Broker::builder().without_jetstream().start().await.expect("a broker");
    let client = connect(broker.url()).await;
    let error = client.enqueue(numbered(1)).await.expect_err("nowhere to store it");
    assert!(error.is_unsupported(), "{error:?}");
    assert!(error.to_string().contains("JetStream is off"), "{error}");
}

/// A producer that may publish to one queue and see its answers, and nothing else.
const PRODUCER: &str = r#"
accounts {
  JOBS {
    jetstream: enabled
    users: [
      { user: admin, password: admin }
      { user: producer, password: producer, permissions {
          publish: ["tidemill.jobs.default.>"], subscribe: ["_INBOX.>"] } }
    ]
  }
}
"#;

/// A queue whose worker lacks rights.
struct Guarded {
    broker: Broker,
    admin: Client,
    worker: Client,
    /// The administrator's client of the bare protocol.
    nats: async_nats::Client,
}

impl Guarded {
    async fn start(lacks: &str) -> Self {
        let broker = Broker::builder()
            .config(worker_without(lacks, NOTHING))
            .connect_with(|options| options.user_password("admin", "admin"))
            .start()
            .await
            .expect("a broker");
        let admin = user(&broker, "admin").await;
        admin.ensure_queue(&Queue::default()).await.expect("made");
        let worker = user(&broker, "worker").await;
        let login = ("admin".to_owned(), "admin".to_owned());
        let nats = async_nats::ConnectOptions::with_user_and_password(login.0, login.1)
            .connect(broker.url())
            .await
            .expect("connects");
        Self { broker, admin, worker, nats }
    }
}

async fn user(broker: &Broker, name: &str) -> Client {
    let options = ConnectOptions::new(broker.url()).expect("a URL").user_password(name, name);
    Client::connect(options).await.expect("connects")
}

#[tokio::test]
async fn rights_to_publish_are_enough_to_enqueue_and_what_lacks_is_named_at_once() {
    let broker = Broker::builder()
        .config(PRODUCER)
        .connect_with(|o| o.user_password("admin", "admin"))
        .start()
        .await;
    let broker = broker.expect("a broker");
    let admin = user(&broker, "admin").await;
    admin.ensure_queue(&Queue::default()).await.expect("made");
    let producer = user(&broker, "producer").await;
    let asked = Instant::now();
    let job = producer.enqueue(numbered(1)).await.expect("stored with rights to publish alone");
    let another = Queue::new("another").expect("valid");
    let error = producer.enqueue(numbered(1)).queue("another").await.expect_err("not allowed");
    assert!(error.is_permission(), "{error:?}");
    assert!(error.to_string().contains("tidemill.jobs.another."), "{error}");
    let error = producer.ensure_queue(&another).await.expect_err("not allowed");
    assert!(error.is_permission() && error.to_string().contains("$JS.API."), "{error}");
    let error = job.completion().await.expect_err("not allowed");
    assert!(error.is_permission(), "{error:?}");
    assert!(asked.elapsed() < Duration::from_secs(4), "told at once, not by a timeout");
}

#[tokio::test]
async fn what_cannot_be_recorded_is_not_acked_and_not_run_again() {
    let Guarded { broker, admin, worker: client, nats } =
        Guarded::start("tidemill.results.>").await;
    let seen = Seen::default();
    let note = seen.clone();
    let handler = move |job: Numbered, _: JobContext| {
        note.push(job.n);
        async move { Ok::<_, JobError>(job.n) }
    };
    let worker = Worker::builder(&client).handle(handler).build().expect("valid");
    let running = worker.start().await.expect("starts");
    let job = admin.enqueue(numbered(7)).await.expect("stored");
    seen.wait_for(1).await;
    let early = job.completion_within(Duration::from_secs(1)).await;
    assert!(early.expect_err("it cannot be recorded").is_timeout());
    assert_eq!(stream_messages(&nats, "TIDEMILL_JOBS_default").await, 1, "it is still there");
    // Given the right, the worker that has kept the job records its outcome.
    broker.reload(worker_without(NOTHING, NOTHING)).await.expect("in force");
    let done = completion(&job).await;
    assert_eq!((done.status, done.attempt), (Status::Done, 1));
    assert_eq!(seen.all(), [7], "run once");
    running.drain().await;
}

#[tokio::test]
async fn an_attempt_that_cannot_be_written_down_is_not_begun() {
    let Guarded { broker: _broker, worker: client, nats, .. } =
        Guarded::start("tidemill.attempts.>").await;
    let seen = Seen::default();
    let note = seen.clone();
    let handler = move |job: Numbered, _: JobContext| {
        note.push(job.n);
        async { Ok::<_, JobError>(()) }
    };
    let worker = Worker::builder(&client).handle(handler).build().expect("valid");
    let running = worker.start().await.expect("starts");
    // The first may have been begun before, as it says of itself; the second cannot.
    let subject = "tidemill.jobs.default.normal.numbered";
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Tidemill-Attempts-Used", "0");
    nats.request_with_headers(subject, headers, r#"{"n":1}"#.into()).await.expect("stored");
    nats.request(subject, r#"{"n":2}"#.into()).await.expect("stored");
    seen.wait_for(1).await;
    eventually("the first is given back", || async {
        (lane_counts(&nats, "default", "normal").await == (0, 1)).then_some(())
    })
    .await;
    assert_eq!(seen.all(), [2]);
    running.drain().await;
    assert_eq!(stream_messages(&nats, "TIDEMILL_JOBS_default").await, 1, "nothing is lost");
}
