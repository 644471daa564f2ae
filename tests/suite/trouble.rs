//! What keeps a worker from working is told, typed, and over by itself when its cause is: with every
//! job worked once, and without a storm of requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use tidemill::embedded::Broker;
use tidemill::{
    Backoff, Client, ConnectOptions, Effect, Handler, Health, JobContext, JobError, JobHandle,
    Queue, QueueConfig, Reprovision, RetryPolicy, Running, Status, TroubleKind, Worker,
};
use tokio::sync::Notify;

use crate::support::{Mill, Numbered, Seen, completion, eventually, numbered};

/// How soon a trouble is told, and how soon after its cause the worker works again.
const SOON: Duration = Duration::from_secs(15);

const RESULTS: &str = "tidemill.results.>";
const ACKS: &str = "$JS.ACK.>";
const PULLS: &str = "$JS.API.CONSUMER.MSG.NEXT.>";

/// Waits until the worker is as wanted, which has to be soon.
async fn is_soon(running: &Running, what: &str, wanted: impl Fn(&Health) -> bool) -> Health {
    let mut watch = running.watch_health();
    let mut health = watch.now();
    let deadline = tokio::time::Instant::now() + SOON;
    while !wanted(&health) {
        let changed = tokio::time::timeout_at(deadline, watch.changed()).await;
        health = match changed {
            Ok(health) => health.expect("the worker is there"),
            Err(_) => panic!("it is not soon so that {what}: {health:?}"),
        };
    }
    health
}

async fn has(running: &Running, kind: TroubleKind, place: &str) -> Health {
    let is_it = |health: &Health| {
        let is_it = |at: Option<&str>| at.unwrap_or_default() == place;
        health.troubles.iter().any(|one| one.kind == kind && is_it(one.place.as_deref()))
    };
    is_soon(running, &format!("there is {kind} at {place}"), is_it).await
}

async fn is_well(running: &Running) {
    is_soon(running, "all is well", |health| health.troubles.is_empty()).await;
    assert!(running.is_ready());
}

fn counting(seen: &Seen<u64>) -> Handler {
    let seen = seen.clone();
    Handler::new(move |job: Numbered, _: JobContext| {
        seen.push(job.n);
        async { Ok::<_, JobError>(()) }
    })
}

async fn enqueued(client: &Client, numbers: std::ops::Range<u64>) -> Vec<JobHandle> {
    let mut jobs = Vec::new();
    for n in numbers {
        jobs.push(client.enqueue(numbered(n)).await.expect("stored"));
    }
    jobs
}

/// That all ended well, and none ran twice.
async fn each_once(jobs: &[JobHandle], seen: &Seen<u64>) {
    for job in jobs {
        assert_eq!(completion(job).await.status, Status::Done);
    }
    let mut all = seen.all();
    all.sort_unstable();
    all.dedup();
    assert_eq!((all.len(), seen.len()), (jobs.len(), jobs.len()), "{:?}", seen.all());
}

async fn api(mill: &Mill, call: &str) {
    let nats = mill.nats().await;
    let answer = nats.request(format!("$JS.API.{call}"), "".into()).await.expect("an answer");
    let answer = String::from_utf8_lossy(&answer.payload).into_owned();
    assert!(answer.contains(r#""success":true"#), "{call}: {answer}");
}

/// Counts what is sent to a subject.
async fn counted(nats: &async_nats::Client, subject: &str) -> Arc<AtomicUsize> {
    let mut messages = nats.subscribe(subject.to_owned()).await.expect("subscribes");
    nats.flush().await.expect("flushed");
    let count = Arc::<AtomicUsize>::default();
    let counted = count.clone();
    tokio::spawn(async move {
        while messages.next().await.is_some() {
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    count
}

#[tokio::test]
async fn a_consumer_that_is_gone_is_told_and_worked_again_once_it_is_there() {
    let mill = Mill::start().await;
    let seen = Seen::default();
    let running = mill.worker().handler(counting(&seen)).build().expect("valid");
    let running = running.start().await.expect("starts");
    each_once(&enqueued(&mill.client, 0..3).await, &seen).await;
    assert!(running.is_ready() && running.health().troubles.is_empty());
    let asked = counted(&mill.nats().await, "$JS.API.CONSUMER.>").await;

    api(&mill, "CONSUMER.DELETE.TIDEMILL_JOBS_default.normal").await;
    let health = has(&running, TroubleKind::ConsumerMissing, "TIDEMILL_JOBS_default/normal").await;
    assert!(!health.is_ready() && !running.is_ready());
    let trouble = &health.troubles[0];
    assert_eq!((trouble.effect, health.troubles.len()), (Effect::TakesNoJobs, 1));
    assert!(trouble.to_string().contains("`tidemill setup default`"), "{trouble}");
    let mut jobs = enqueued(&mill.client, 3..6).await;

    // Five seconds of it: pauses that double make no storm, beside a pull of each of three lanes.
    let before = asked.load(Ordering::Relaxed);
    let begun = Instant::now();
    eventually("5 seconds", || async { (begun.elapsed() > SOON / 3).then_some(()) }).await;
    let storm = asked.load(Ordering::Relaxed) - before;
    assert!(storm < 25, "{storm} requests");
    assert_eq!(seen.len(), 3);

    mill.client.ensure_queue(&Queue::default()).await.expect("made again");
    is_well(&running).await;
    jobs.extend(enqueued(&mill.client, 6..8).await);
    for job in &jobs {
        completion(job).await;
    }
    let mut all = seen.all();
    all.sort_unstable();
    assert_eq!(all, (0..8).collect::<Vec<u64>>());
    running.drain().await;
}

#[tokio::test]
async fn a_worker_that_may_makes_the_consumer_again_and_attempts_stay_exact() {
    let mill = Mill::start().await;
    let seen = Seen::default();
    let note = seen.clone();
    let policy = RetryPolicy::new(3, Backoff::fixed(Duration::from_secs(3)));
    let handler = Handler::new(move |job: Numbered, context: JobContext| {
        note.push((job.n, context.attempt()));
        async move {
            match context.attempt() {
                1 => Err(JobError::failed("the first time")),
                _ => Ok(()),
            }
        }
    });
    let worker = mill.worker().handler(handler.retry(policy));
    let worker = worker.reprovision(Reprovision::Consumers).build().expect("valid");
    let running = worker.start().await.expect("starts");
    let jobs = enqueued(&mill.client, 0..3).await;
    seen.wait_for(3).await;
    // All three back off when the consumer goes that knew of it.
    api(&mill, "CONSUMER.DELETE.TIDEMILL_JOBS_default.normal").await;
    for job in &jobs {
        assert_eq!(completion(job).await.attempt, 2);
    }
    let mut all = seen.all();
    all.sort_unstable();
    assert_eq!(all, [(0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2)]);
    is_well(&running).await;
    running.drain().await;
}

#[tokio::test]
async fn a_consumer_that_was_made_anew_unnoticed_leaves_attempts_exact() {
    let mill = Mill::start().await;
    let seen = Seen::default();
    let (note, go) = (seen.clone(), Arc::new(Notify::new()));
    let gone = go.clone();
    let policy = RetryPolicy::new(3, Backoff::fixed(Duration::from_secs(10)));
    let handler = Handler::new(move |job: Numbered, context: JobContext| {
        note.push((job.n, context.attempt()));
        let go = gone.clone();
        async move {
            match (job.n, context.attempt()) {
                (0, 1) => return Err(JobError::failed("the first time")),
                (0, _) => {}
                (_, _) => go.notified().await,
            }
            Ok(())
        }
    });
    let worker = mill.worker().concurrency(1).handler(handler.retry(policy));
    let running = worker.build().expect("valid").start().await.expect("starts");
    let failed = mill.client.enqueue(numbered(0)).await.expect("stored");
    seen.wait_for(1).await;
    let slow = mill.client.enqueue(numbered(1)).await.expect("stored");
    seen.wait_for(2).await;
    // The only slot is taken: once the last pull is over, none is open that would hear of it.
    let nats = mill.nats().await;
    eventually("no pull is open", || async {
        let subject = "$JS.API.CONSUMER.INFO.TIDEMILL_JOBS_default.normal";
        let answer = nats.request(subject, "".into()).await.expect("an answer");
        let info: serde_json::Value = serde_json::from_slice(&answer.payload).expect("JSON");
        (info["num_waiting"] == 0).then_some(())
    })
    .await;
    api(&mill, "CONSUMER.DELETE.TIDEMILL_JOBS_default.normal").await;
    mill.client.ensure_queue(&Queue::default()).await.expect("made again");
    go.notify_one();
    assert_eq!(completion(&slow).await.attempt, 1);
    assert_eq!(completion(&failed).await.attempt, 2);
    assert_eq!(seen.all(), [(0, 1), (1, 1), (0, 2)]);
    running.drain().await;
}

#[tokio::test]
async fn a_stream_that_is_gone_is_told_and_worked_again_once_it_is_there() {
    let mill = Mill::start().await;
    let seen = Seen::default();
    let worker = mill.worker().handler(counting(&seen)).build().expect("valid");
    let running = worker.start().await.expect("starts");
    each_once(&enqueued(&mill.client, 0..3).await, &seen).await;
    api(&mill, "STREAM.DELETE.TIDEMILL_JOBS_default").await;
    let health = has(&running, TroubleKind::StreamMissing, "TIDEMILL_JOBS_default").await;
    let told = health.troubles.iter().filter(|one| one.kind == TroubleKind::StreamMissing).count();
    assert_eq!(told, 1, "four lanes, one trouble: {health:?}");
    mill.client.ensure_queue(&Queue::default()).await.expect("made again");
    is_well(&running).await;
    for job in enqueued(&mill.client, 3..6).await {
        completion(&job).await;
    }
    assert_eq!(seen.len(), 6);
    running.drain().await;
}

#[tokio::test]
async fn what_cannot_be_recorded_waits_and_nothing_more_is_started() {
    let mill = Mill::start().await;
    let seen = Seen::default();
    let worker = mill.worker().concurrency(2).handler(counting(&seen)).build().expect("valid");
    let running = worker.start().await.expect("starts");
    is_well(&running).await;
    api(&mill, "STREAM.DELETE.TIDEMILL_RESULTS_default").await;
    let first = enqueued(&mill.client, 0..1).await;
    has(&running, TroubleKind::StreamMissing, "TIDEMILL_RESULTS_default").await;
    let mut jobs = enqueued(&mill.client, 1..40).await;
    jobs.extend(first);
    let begun = Instant::now();
    eventually("a while", || async { (begun.elapsed() > SOON / 4).then_some(()) }).await;
    assert_eq!(seen.all(), [0], "only the one that found it out was run");
    mill.client.ensure_queue(&Queue::default()).await.expect("made again");
    each_once(&jobs, &seen).await;
    is_well(&running).await;
    running.drain().await;
}

/// A broker that can take rights from the worker's user while it works.
struct Guarded {
    broker: Broker,
    admin: Client,
    worker: Client,
}

fn rights(of_worker: &str) -> String {
    format!(
        r#"accounts {{
             JOBS {{
               jetstream: enabled
               users: [
                 {{ user: admin, password: admin }}
                 {{ user: worker, password: worker, permissions {{ {of_worker} }} }}
               ]
             }}
           }}"#
    )
}

const ALL: &str = r#"publish: ">", subscribe: ">""#;

fn without(subject: &str) -> String {
    format!(r#"publish: {{ allow: ">", deny: ["{subject}"] }}, subscribe: ">""#)
}

impl Guarded {
    async fn start(ack_wait: Duration) -> Self {
        let as_admin = |options: ConnectOptions| options.user_password("admin", "admin");
        let broker = Broker::builder().config(rights(ALL)).connect_with(as_admin);
        let broker = broker.start().await.expect("a broker");
        let mut config = QueueConfig::default();
        config.ack_wait = ack_wait;
        let login = |name: &str| {
            let options = ConnectOptions::new(broker.url()).expect("a URL");
            Client::connect(options.user_password(name, name))
        };
        let admin = login("admin").await.expect("connects").with_queue_config(config);
        admin.ensure_queue(&Queue::default()).await.expect("a queue");
        let worker = login("worker").await.expect("connects");
        Self { broker, admin, worker }
    }

    async fn work(&self, seen: &Seen<u64>) -> Running {
        let worker = Worker::builder(&self.worker).concurrency(2).handler(counting(seen));
        worker.build().expect("valid").start().await.expect("starts")
    }

    async fn grant(&self, rights_of_worker: &str) {
        self.broker.reload(rights(rights_of_worker)).await.expect("a valid configuration");
    }

    /// Takes a right away, and gives it back when that was told, and was no storm.
    async fn takes_and_gives_back(
        &self,
        running: &Running,
        right: &str,
        place: &str,
        seen: &Seen<u64>,
    ) -> Vec<JobHandle> {
        let options =
            async_nats::ConnectOptions::with_user_and_password("admin".into(), "admin".into());
        let nats = options.connect(self.broker.url()).await.expect("connects");
        self.grant(&without(right)).await;
        let jobs = enqueued(&self.admin, 0..30).await;
        let is_denied = |health: &Health| {
            let at = |place_of: Option<&str>| place_of.is_some_and(|at| at.starts_with(place));
            health.troubles.iter().any(|trouble| {
                trouble.kind == TroubleKind::PermissionDenied && at(trouble.place.as_deref())
            })
        };
        is_soon(running, &format!("{place} is refused"), is_denied).await;
        assert!(!running.is_ready());
        let asked = counted(&nats, ">").await;
        let (begun, run) = (Instant::now(), seen.len());
        eventually("5 seconds", || async { (begun.elapsed() > SOON / 3).then_some(()) }).await;
        let storm = asked.load(Ordering::Relaxed);
        assert!(storm < 150, "{storm} messages in 5 seconds");
        assert!(seen.len() <= run + 1, "jobs went on: {:?}", seen.all());
        self.grant(ALL).await;
        jobs
    }
}

#[tokio::test]
async fn without_the_right_to_write_results_no_job_is_taken_until_it_is_there_again() {
    let guarded = Guarded::start(Duration::from_secs(30)).await;
    let seen = Seen::default();
    let running = guarded.work(&seen).await;
    let place = "tidemill.results.default.>";
    let jobs = guarded.takes_and_gives_back(&running, RESULTS, place, &seen).await;
    each_once(&jobs, &seen).await;
    is_well(&running).await;
    running.drain().await;
}

#[tokio::test]
async fn without_the_right_to_ack_no_job_is_taken_until_it_is_there_again() {
    // Short leases: the jobs that were not acked come again, and are only looked up.
    let guarded = Guarded::start(Duration::from_secs(3)).await;
    let seen = Seen::default();
    let running = guarded.work(&seen).await;
    let place = "$JS.ACK.TIDEMILL_JOBS_default.normal.>";
    let jobs = guarded.takes_and_gives_back(&running, ACKS, place, &seen).await;
    each_once(&jobs, &seen).await;
    is_soon(&running, "it is ready", Health::is_ready).await;
    eventually("nothing is left", || async {
        let info = guarded.admin.queue_info(&Queue::default()).await.expect("looks");
        info.is_empty().then_some(())
    })
    .await;
    running.drain().await;
}

#[tokio::test]
async fn without_the_right_to_pull_it_is_told_and_tried_again() {
    let guarded = Guarded::start(Duration::from_secs(30)).await;
    let seen = Seen::default();
    let running = guarded.work(&seen).await;
    let place = "$JS.API.CONSUMER.MSG.NEXT.TIDEMILL_JOBS_default.normal";
    let jobs = guarded.takes_and_gives_back(&running, PULLS, place, &seen).await;
    each_once(&jobs, &seen).await;
    is_well(&running).await;
    running.drain().await;
}

#[tokio::test]
async fn answers_that_are_refused_are_told_and_asked_for_again() {
    let guarded = Guarded::start(Duration::from_secs(30)).await;
    let seen = Seen::default();
    let running = guarded.work(&seen).await;
    is_well(&running).await;
    guarded.grant(r#"publish: ">", subscribe: ["nothing.>"]"#).await;
    let is_deaf = |health: &Health| {
        let is_inbox = |at: Option<&str>| at.is_some_and(|at| at.starts_with("_INBOX."));
        health.troubles.iter().any(|trouble| {
            trouble.kind == TroubleKind::PermissionDenied && is_inbox(trouble.place.as_deref())
        })
    };
    is_soon(&running, "answers are refused", is_deaf).await;
    let jobs = enqueued(&guarded.admin, 0..10).await;
    guarded.grant(ALL).await;
    is_soon(&running, "it is ready", Health::is_ready).await;
    each_once(&jobs, &seen).await;
    is_well(&running).await;
    running.drain().await;
}

#[tokio::test]
async fn a_lost_connection_is_told_and_over_when_the_broker_is_there_again() {
    let mill = Mill::start().await;
    let seen = Seen::default();
    let worker = mill.worker().handler(counting(&seen)).build().expect("valid");
    let running = worker.start().await.expect("starts");
    let mut jobs = enqueued(&mill.client, 0..3).await;
    for job in &jobs {
        completion(job).await;
    }
    mill.broker.kill().await.expect("kills");
    let health = has(&running, TroubleKind::ConnectionLost, "").await;
    assert_eq!(health.troubles.len(), 1, "what follows from it is no other: {health:?}");
    mill.broker.restart().await.expect("starts");
    is_well(&running).await;
    jobs.extend(enqueued(&mill.client, 3..6).await);
    for job in &jobs {
        completion(job).await;
    }
    assert_eq!(seen.len(), 6);
    running.drain().await;
}

#[tokio::test]
async fn a_broker_that_does_not_answer_is_told_and_so_are_leases_that_it_cost() {
    let mill = Mill::with_ack_wait(Duration::from_secs(2)).await;
    let seen = Seen::default();
    let note = seen.clone();
    // Its first attempt is granted again: it leaves no trace.
    let handler = Handler::new(move |job: Numbered, context: JobContext| {
        note.push(job.n);
        let is_first = note.len() == 1;
        async move {
            if is_first {
                context.cancellation().cancelled().await;
            }
            Ok::<_, JobError>(())
        }
    });
    let running = mill.worker().handler(handler).build().expect("valid");
    let running = running.start().await.expect("starts");
    let job = mill.client.enqueue(numbered(1)).await.expect("stored");
    seen.wait_for(1).await;
    mill.broker.freeze().await.expect("freezes");
    let is_silent = |health: &Health| {
        let kinds = [TroubleKind::NotAnswering, TroubleKind::ConnectionLost];
        health.troubles.iter().any(|trouble| kinds.contains(&trouble.kind))
    };
    is_soon(&running, "the broker is silent", is_silent).await;
    let health = is_soon(&running, "a lease is lost", |health| health.lost_leases == 1).await;
    let lost = health.troubles.iter().find(|trouble| trouble.kind == TroubleKind::LeasesLost);
    assert_eq!(lost.expect("told").effect, Effect::WorksOn);
    mill.broker.thaw().await.expect("thaws");
    is_soon(&running, "it is ready", Health::is_ready).await;
    assert_eq!(completion(&job).await.status, Status::Done);
    running.drain().await;
}

#[tokio::test]
async fn letters_without_room_are_told_and_other_jobs_go_on() {
    let mut config = QueueConfig::default();
    config.max_dead = 1;
    let mill = Mill::with(config).await;
    let handler = Handler::new(|job: Numbered, _: JobContext| async move {
        if job.n < 10 { Err(JobError::discard("not this one")) } else { Ok(()) }
    });
    let worker = mill.worker().handler(handler).build().expect("valid");
    let running = worker.start().await.expect("starts");
    let jobs = enqueued(&mill.client, 0..2).await;
    let health = has(&running, TroubleKind::Full, "TIDEMILL_DEAD_default").await;
    assert!(health.is_ready(), "{health:?}");
    let other = mill.client.enqueue(numbered(10)).await.expect("stored");
    assert_eq!(completion(&other).await.status, Status::Done);
    assert_eq!(running.health().troubles.len(), 1, "it is still full");
    let letters = crate::support::dead(&mill).await;
    assert!(mill.client.discard_dead(&letters[0]).await.expect("discards"));
    is_well(&running).await;
    drop(jobs);
    running.drain().await;
}
