//! Streams, consumers and rights that are taken away or changed under a worker that runs.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tidemill::{Client, ConnectOptions, JobHandle, Queue, Status};

use crate::support::load::{Load, Runs, is_empty, work, work_for};
use crate::support::site::Login;
use crate::support::{
    ACK_WAIT, GAP, NOTHING, R1, RECOVERY, Seen, Setup, Site, Sync, api, change, completion,
    eventually, numbered, short_leases, short_mill, stream_messages, worker_without,
};

const JOBS: &str = "TIDEMILL_JOBS_default";

/// 27. A lane's consumer is deleted while the worker works, and made again: nothing is lost, nothing ends
/// twice, and the worker goes on by itself within 15 s.
#[tokio::test]
async fn a_consumer_that_is_deleted_and_made_again_loses_nothing() {
    a_consumer_is_deleted(&Site::start(R1).await).await;
}

async fn a_consumer_is_deleted(site: &Site) {
    let nats = site.nats().await;
    let runs = Seen::default();
    let running = work_for(&site.hands, &runs, Duration::from_millis(30)).await;
    let load = Load::start(&site.client, 500, Duration::from_millis(8));
    for round in 1..=2 {
        runs.wait_for(round * 100).await;
        api(&nats, &format!("CONSUMER.DELETE.{JOBS}.normal"), Value::Null).await;
        let seen = runs.len();
        site.hands.ensure_queue(&Queue::default()).await.expect("made again");
        let made = Instant::now();
        runs.wait_for(seen + 50).await;
        assert!(made.elapsed() < GAP, "it stood still for {:?}", made.elapsed());
    }
    let said = load.end().await;
    assert_eq!(said.ok.len(), 500);
    let became = said.is_all_done(&site.client, &nats, &runs, RECOVERY).await;
    assert!(became.extra_runs <= 2 * 16, "{became:?}");
    running.drain().await;
    site.copies_agree().await;
}

/// 28. The jobs stream is deleted with what was in it, and made anew by the next enqueue: the worker
/// works that within 15 s, and no word about an old job takes a new one away.
#[tokio::test]
async fn a_jobs_stream_that_is_deleted_is_worked_again_when_it_is_there() {
    a_stream_is_deleted(&Site::start(R1).await).await;
}

/// In a row: a lane's consumer is deleted, and the jobs stream.
pub(crate) async fn consumer_and_stream_are_deleted(setup: Setup) {
    let site = Site::start(setup).await;
    a_consumer_is_deleted(&site).await;
    site.anew("the stream is deleted").await;
    a_stream_is_deleted(&site).await;
}

async fn a_stream_is_deleted(site: &Site) {
    let nats = site.nats().await;
    let runs = Seen::default();
    let running = work_for(&site.hands, &runs, Duration::from_millis(500)).await;
    // These run while their stream goes.
    Load::start(&site.client, 16, Duration::from_millis(1)).end().await;
    runs.wait_for(16).await;
    api(&nats, &format!("STREAM.DELETE.{JOBS}"), Value::Null).await;
    let made = Instant::now();
    let said = Load::from(&site.client, 1000, 40, Duration::from_millis(2)).end().await;
    assert_eq!(said.ok.len(), 40, "made anew and stored: {said:?}");
    for (n, job) in &said.ok {
        let done = job.completion_within(GAP).await.expect("in time");
        assert_eq!(done.status, Status::Done, "{n}");
    }
    assert!(made.elapsed() < GAP + Duration::from_secs(5), "{:?}", made.elapsed());
    is_empty(&nats).await;
    running.drain().await;
    site.copies_agree().await;
}

/// 29. A consumer's `ack_wait` is lowered under a worker that holds a job by the old one, beside another
/// worker: the job may run twice, it ends once, and both go on.
#[tokio::test]
async fn a_lease_that_is_shortened_under_way_ends_no_job_twice() {
    let mut config = tidemill::QueueConfig::default();
    config.ack_wait = Duration::from_secs(12);
    let mill = crate::support::Mill::with(config).await;
    let nats = mill.nats().await;
    let runs = Seen::default();
    let takes = Duration::from_secs(3);
    let one = work_for(&mill.client, &runs, takes).await;
    let other = work_for(&mill.client, &runs, takes).await;
    let said = Load::from(&mill.client, 1, 4, Duration::from_millis(1)).end().await;
    runs.wait_for(4).await;
    let ack_wait = json!({ "ack_wait": Duration::from_secs(1).as_nanos() as u64 });
    change(&nats, &format!("{JOBS}/normal"), ack_wait).await;
    said.is_all_done(&mill.client, &nats, &runs, Duration::from_secs(20)).await;
    one.drain().await;
    other.drain().await;
}

/// 29. A consumer loses the limits that tidemill gives it (one unsettled job at a time): everything is
/// slow and nothing is lost.
#[tokio::test]
async fn a_lane_that_hands_out_one_at_a_time_is_only_slow() {
    let mill = short_mill(Sync::Lazy).await;
    let nats = mill.nats().await;
    change(&nats, &format!("{JOBS}/normal"), json!({ "max_ack_pending": 1 })).await;
    let runs = Seen::default();
    let running = work(&mill.client, &runs).await;
    let said = Load::from(&mill.client, 1, 30, Duration::from_millis(1)).end().await;
    let became = said.is_all_done(&mill.client, &nats, &runs, RECOVERY).await;
    assert_eq!(became.extra_runs, 0);
    running.drain().await;
}

/// 34. More workers wait than the lane lets wait: those that are turned away do not ask again at once,
/// nothing is lost, and they take the place of those that leave.
#[tokio::test]
async fn workers_beyond_what_a_lane_lets_wait_are_not_starved() {
    const WORKERS: usize = 6;
    let mill = short_mill(Sync::Lazy).await;
    let nats = mill.nats().await;
    let info = api(&nats, &format!("CONSUMER.INFO.{JOBS}.normal"), Value::Null).await;
    let mut config = info["config"].clone();
    config["max_waiting"] = json!(2);
    api(&nats, &format!("CONSUMER.DELETE.{JOBS}.normal"), Value::Null).await;
    let body = json!({ "stream_name": JOBS, "config": config });
    let verb = format!("CONSUMER.CREATE.{JOBS}.normal.tidemill.jobs.default.normal.>");
    let made = api(&nats, &verb, body).await;
    assert_eq!(made["config"]["max_waiting"], 2, "{made}");
    let asked = format!("$JS.API.CONSUMER.MSG.NEXT.{JOBS}.normal");
    let mut asks = nats.subscribe(asked).await.expect("subscribes");
    let mut all = Vec::new();
    for _ in 0..WORKERS {
        let runs = Seen::default();
        let client = crate::support::connect(mill.broker.url()).await;
        all.push((work_for(&client, &runs, Duration::from_millis(100)).await, runs));
    }
    // A while of waiting, in which a pull of each stays open for five seconds, or is refused.
    let idle = Instant::now();
    let mut count = 0;
    while let Ok(Some(_)) = tokio::time::timeout_at(
        (idle + Duration::from_secs(5)).into(),
        futures_util::StreamExt::next(&mut asks),
    )
    .await
    {
        count += 1;
    }
    assert!(count < 40 * WORKERS, "{count} pulls in five seconds of nothing to do");
    let said = Load::start(&mill.client, 400, Duration::from_millis(2)).end().await;
    for (n, job) in &said.ok {
        assert_eq!(completion(job).await.status, Status::Done, "{n}");
    }
    is_empty(&nats).await;
    let (last, runs) = all.pop().expect("six");
    for (running, _) in all {
        running.drain().await;
    }
    let before = runs.len();
    let job = mill.client.enqueue(numbered(1)).await.expect("stored");
    let done = job.completion_within(GAP).await.expect("the last one is there for it");
    assert_eq!((done.status, runs.len()), (Status::Done, before + 1));
    last.drain().await;
}

/// Servers with a worker that has all rights but some, which change.
struct Guarded {
    /// Whose own user may do everything.
    site: Site,
    nats: async_nats::Client,
    runs: Runs,
    running: tidemill::Running,
}

impl Guarded {
    async fn start(setup: Setup) -> Self {
        let (builder, config) = (setup.builder(), short_leases(setup.replicas()));
        let builder = builder.config(worker_without(NOTHING, NOTHING));
        let site = Site::of(setup, builder, Login::User("admin"), config.clone()).await;
        let options = ConnectOptions::new(site.url()).expect("a URL");
        let options = Login::User("worker").of(options).request_timeout(Duration::from_secs(1));
        let worker = Client::connect(options).await.expect("connects").with_queue_config(config);
        let runs = Seen::default();
        let running = work(&worker, &runs).await;
        let nats = site.nats().await;
        let guarded = Self { site, nats, runs, running };
        guarded.works(1).await;
        guarded
    }

    /// Looks that another job is done as ever.
    async fn works(&self, n: u64) {
        let done = self.enqueue(n).await.completion_within(GAP).await.expect("in time");
        assert_eq!((done.status, done.attempt), (Status::Done, 1));
    }

    async fn may_not(&self, publish: &str, subscribe: &str) {
        self.site.reload(&worker_without(publish, subscribe)).await;
    }

    async fn enqueue(&self, n: u64) -> JobHandle {
        self.site.client.enqueue(numbered(n)).await.expect("stored")
    }

    fn runs_of(&self, n: u64) -> usize {
        self.runs.all().iter().filter(|(of, ..)| *of == n).count()
    }

    /// Gives the right back, and waits until the job numbered `n` is done, which may take 15 s and a lease,
    /// and the next as well.
    async fn recovers(&self, n: u64, job: &JobHandle) {
        self.may_not(NOTHING, NOTHING).await;
        let done = job.completion_within(GAP + ACK_WAIT).await.expect("in time");
        assert_eq!((done.status, done.attempt), (Status::Done, 1));
        is_empty(&self.nats).await;
        self.works(n + 1).await;
        assert_eq!(self.runs_of(n), 1, "runs of the job");
        let jobs: HashSet<u64> = self.runs.all().iter().map(|(n, ..)| *n).collect();
        let ended = stream_messages(&self.nats, "TIDEMILL_RESULTS_default").await;
        assert_eq!(ended, jobs.len() as u64, "completions of {jobs:?}");
    }

    async fn end(self) {
        self.running.drain().await;
        is_empty(&self.nats).await;
        self.site.copies_agree().await;
    }

    /// It may not pull.
    async fn without_pulls(&self, n: u64) {
        self.may_not("$JS.API.CONSUMER.MSG.NEXT.>", NOTHING).await;
        let job = self.enqueue(n).await;
        let early = job.completion_within(2 * ACK_WAIT + Duration::from_secs(5)).await;
        // A pull that was open when the right went may still bring this one.
        match early {
            Ok(done) => assert_eq!(done.attempt, 1),
            Err(error) => assert!(error.is_timeout(), "{error:?}"),
        }
        self.recovers(n, &job).await;
    }

    /// It may not ack.
    async fn without_acks(&self, n: u64) {
        self.may_not("$JS.ACK.>", NOTHING).await;
        let job = self.enqueue(n).await;
        let done = job.completion_within(GAP).await.expect("it may record");
        assert_eq!(done.attempt, 1);
        assert_eq!(stream_messages(&self.nats, JOBS).await, 1);
        self.recovers(n, &job).await;
    }

    /// It may not hear answers.
    async fn without_answers(&self, n: u64) {
        self.may_not(NOTHING, "_INBOX.>").await;
        let job = self.enqueue(n).await;
        let early = job.completion_within(ACK_WAIT + Duration::from_secs(5)).await;
        assert!(early.expect_err("it hears of nothing").is_timeout());
        self.recovers(n, &job).await;
    }

    /// It may not write completions.
    async fn without_records(&self, n: u64) {
        self.may_not("tidemill.results.>", NOTHING).await;
        let job = self.enqueue(n).await;
        eventually("it has run", || async { (self.runs_of(n) > 0).then_some(()) }).await;
        let early = job.completion_within(2 * ACK_WAIT).await;
        assert!(early.expect_err("its end cannot be recorded").is_timeout());
        self.recovers(n, &job).await;
    }
}

/// In a row: a worker may not ack, and may not write completions.
pub(crate) async fn rights_are_revoked(setup: Setup) {
    let guarded = Guarded::start(setup).await;
    guarded.without_acks(2).await;
    eprintln!("{setup:?}: it may not write completions");
    guarded.without_records(6).await;
    guarded.end().await;
}

/// 30. The right to pull is revoked while a worker waits, and given back: it fetches nothing, runs
/// nothing, and goes on by itself.
#[tokio::test]
async fn a_worker_that_may_not_pull_goes_on_when_it_may() {
    let guarded = Guarded::start(R1).await;
    guarded.without_pulls(2).await;
    guarded.end().await;
}

/// 30. The right to ack is revoked: a job that is done is not run again, and is taken off the queue when
/// the right is back.
#[tokio::test]
async fn a_worker_that_may_not_ack_does_not_run_a_job_again() {
    let guarded = Guarded::start(R1).await;
    guarded.without_acks(2).await;
    guarded.end().await;
}

/// 30. The right to hear answers is revoked, which ends the worker's subscriptions for as long as its
/// connection lives, and given back: it goes on by itself.
#[tokio::test]
async fn a_worker_that_may_not_hear_answers_goes_on_when_it_may() {
    let guarded = Guarded::start(R1).await;
    guarded.without_answers(2).await;
    guarded.end().await;
}

/// 30. The right to write completions is revoked under a stream of jobs, and given back: each is run
/// once.
#[tokio::test]
async fn a_worker_that_may_not_record_runs_nothing_twice() {
    let guarded = Guarded::start(R1).await;
    guarded.without_records(2).await;
    guarded.end().await;
}
