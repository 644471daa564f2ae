//! The program as a worker of an agent runtime's jobs.

use std::process::{Child, Command, Stdio};

use redis::AsyncCommands;
use rustix::process::{Pid, Signal, kill_process};
use tidemill::agent::{
    JetStreamRunStore, JobConditions, JobPool, JobPriority, JobType, PersistEvent,
    PostgresRunStore, PublishExternalEvent, RunId, RunStore,
};
use tidemill::embedded::Broker;

use crate::servers;
use crate::support::{broker, connect, eventually, said};

/// The program, working; killed with the test.
struct Working(Child);

impl Working {
    fn start(broker: &Broker, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidemill"));
        command.arg("work").args(arguments).env("NATS_URL", broker.url());
        command.envs(environment.iter().copied()).stdin(Stdio::null());
        Self(command.spawn().expect("starts"))
    }

    /// Tells it to stop, and waits until it has.
    fn stop(mut self) {
        let process = Pid::from_child(&self.0);
        kill_process(process, Signal::TERM).expect("it runs");
        assert!(self.0.wait().expect("ends").success());
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn runs_go_to_postgres_and_events_to_redis_over_tls() {
    let broker = broker().await;
    let client = connect(&broker).await;
    let (postgres, (redis_server, cert)) = (servers::postgres(), servers::redis_with_tls());
    let open = || async { PostgresRunStore::connect(&postgres.url).await.ok() };
    let store = eventually("a store", open).await;
    let publisher = format!("{}/0#events", redis_server.url);
    let cert = cert.to_string_lossy();
    let working = Working::start(
        &broker,
        &["--event-publisher", &publisher, "--event-limit", "1000"],
        &[("SSL_CERT_FILE", &cert), ("TIDEMILL_RUN_STORE", &postgres.url)],
    );
    let run_id = RunId::new();
    let event = said(run_id, "hello");
    let persist = client.enqueue(PersistEvent::new(run_id, event.clone())).await;
    let publish = client.enqueue(PublishExternalEvent::new(event.clone())).await;
    for job in [persist, publish] {
        let end = job.expect("stored").completion().await.expect("ends");
        assert_eq!(end.status, tidemill::Status::Done, "{end:?}");
    }
    let log = store.events(run_id).await.expect("reads");
    assert_eq!(log.iter().map(|entry| &entry.event).collect::<Vec<_>>(), [&event]);
    working.stop();
    // The server takes the same connection from us, who trust its certificate for once.
    let insecure = format!("{}/#insecure", redis_server.url);
    let redis = redis::Client::open(insecure.as_str()).expect("a URL");
    let mut connection = redis.get_multiplexed_async_connection().await.expect("connects");
    assert_eq!(connection.xlen::<_, usize>("events").await.expect("a length"), 1);
}

#[tokio::test]
async fn a_pool_sees_what_the_program_does() {
    let broker = broker().await;
    let client = connect(&broker).await;
    let store = std::sync::Arc::new(JetStreamRunStore::open(&client).await.expect("a store"));
    let pool = JobPool::builder(&client, store.clone()).open().await.expect("opens");
    let mut completed = pool.subscribe_completed();
    let working =
        Working::start(&broker, &["--run-store", "jetstream", "--event-publisher", "none"], &[]);
    let run_id = RunId::new();
    for n in 0..3 {
        let event = said(run_id, &n.to_string());
        for job in [
            JobType::PersistEvent { run_id, event: event.clone() },
            JobType::PublishExternalEvent { event: event.clone() },
            JobType::TestJob { message: n.to_string() },
        ] {
            let scheduled =
                pool.schedule(JobPriority::High, job.clone(), JobConditions::default()).await;
            assert_eq!(completed.recv().await.expect("told"), (scheduled, Ok(job)));
        }
    }
    assert_eq!(store.events(run_id).await.expect("reads").len(), 3);
    working.stop();
}

#[tokio::test]
async fn what_cannot_be_opened_is_told_without_its_password() {
    let broker = broker().await;
    for (arguments, code, reason) in [
        (["--run-store", "postgres://me:hush@127.0.0.1:1/runs"], 1, "cannot open the run store"),
        (["--event-publisher", "redis://me:hush@127.0.0.1:1#events"], 1, "cannot open the event"),
        (["--run-store", "mysql://me:hush@127.0.0.1/runs"], 2, "use jetstream or postgres://"),
        (["--event-publisher", "nats:a..b"], 2, "no subject to publish to"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidemill"));
        command.arg("work").args(arguments).env("NATS_URL", broker.url());
        let output = command.output().expect("runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(reason), "{said}");
        assert!(!said.contains("hush"), "{said}");
    }
}
