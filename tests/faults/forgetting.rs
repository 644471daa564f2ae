//! Three servers keep in memory what a queue's consumers have handed out. What must not come of that: all of
//! them restart at once, and the consumers know nothing any more; or they are made anew, as in a queue of
//! an earlier version, which kept it on disk.

use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use futures_util::future::{join_all, try_join_all};
use serde_json::{Value, json};
use tidemill::embedded::Cluster;
use tidemill::{
    AttemptEvent, AttemptRecord, Backoff, Client, Handler, JobContext, JobError, JobHandle, NewJob,
    Priority, Queue, RecordFilter, Running, Since, Status, TroubleKind, Worker,
};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::support::process::program;
use crate::support::site::{Login, nats_at};
use crate::support::{
    Numbered, PATIENCE, Seen, Sync, api, completion, connect, eventually, numbered, short_leases,
    until,
};

/// What a handler call was, and when.
type Call = (u64, u32, Instant);

/// Old jobs, of which each fails again and again, until so many entries of the ledger are younger than those
/// of the others that nobody reads the latter when it starts.
const STORM: std::ops::Range<u64> = 0..30;
const STORM_CALLS: usize = 1200;
/// Fail once, and back off.
const FLAKY: std::ops::Range<u64> = 100..110;
/// Run when everything is killed, and leave no trace.
const LONG: std::ops::Range<u64> = 200..208;
/// Enqueued when everything is over.
const NEW: std::ops::Range<u64> = 300..310;

const BACKOFF: Duration = Duration::from_secs(25);

/// What clocks and rounding take off a delay.
const TOLERANCE: Duration = Duration::from_millis(50);

async fn three(sync: Sync) -> (Cluster, Client) {
    let cluster = Cluster::start_with(3, sync.builder()).await.expect("a cluster");
    let client = at(&cluster).await;
    client.ensure_queue(&Queue::default()).await.expect("made");
    (cluster, client)
}

async fn at(cluster: &Cluster) -> Client {
    connect(&cluster.url()).await.with_queue_config(short_leases(3))
}

async fn enqueue(client: &Client, jobs: impl Iterator<Item = NewJob>) -> Vec<JobHandle> {
    let stored = client.enqueue_many(jobs).await.into_iter();
    stored.map(|stored| stored.expect("stored")).collect()
}

fn job(n: u64) -> NewJob {
    let backoff = if STORM.contains(&n) { Duration::ZERO } else { BACKOFF };
    let lane = if STORM.contains(&n) { Priority::Low } else { Priority::Normal };
    NewJob::new(&numbered(n)).priority(lane).max_retries(200).backoff(&Backoff::fixed(backoff))
}

/// The ledger of a queue, by number of job.
async fn ledger(client: &Client, jobs: &[JobHandle], n: usize) -> Vec<AttemptRecord> {
    let filter = RecordFilter::queue(Queue::default()).since(Since::Start);
    let entries = client.attempts(filter.id(jobs[n].id().clone())).await.expect("reads");
    let mut entries = Box::pin(entries);
    let mut all = Vec::new();
    while let Ok(Ok(Some(entry))) = timeout(Duration::from_millis(500), entries.try_next()).await {
        all.push(entry);
    }
    all
}

/// A worker in a process of its own, as far as that goes: a runtime that ends without a word.
struct Doomed {
    runtime: tokio::runtime::Runtime,
    calls: Seen<Call>,
    storm: watch::Sender<bool>,
}

impl Doomed {
    fn start(url: String) -> Self {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let (calls, (storm, gate)) = (Seen::default(), watch::channel(false));
        let note = calls.clone();
        runtime.spawn(async move {
            let handler = move |job: Numbered, context: JobContext| {
                let mut gate = gate.clone();
                note.push((job.n, context.attempt(), Instant::now()));
                async move {
                    if STORM.contains(&job.n) {
                        gate.wait_for(|is_open| *is_open).await.map_err(JobError::failed)?;
                    } else if LONG.contains(&job.n) {
                        std::future::pending::<()>().await;
                    }
                    Err::<(), _>(JobError::failed("not yet"))
                }
            };
            let client = connect(&url).await.with_queue_config(short_leases(3));
            let worker = Worker::builder(&client).concurrency(64).handle(handler);
            let _running = worker.build().expect("valid").start().await.expect("starts");
            std::future::pending::<()>().await;
        });
        Self { runtime, calls, storm }
    }

    fn calls_of(&self, jobs: &std::ops::Range<u64>) -> usize {
        self.calls.all().iter().filter(|(n, ..)| jobs.contains(n)).count()
    }
}

/// Works off what comes once the gate is open.
async fn work(client: &Client, slots: usize, gate: watch::Receiver<bool>) -> (Running, Seen<Call>) {
    let calls = Seen::default();
    let note = calls.clone();
    let handler = move |job: Numbered, context: JobContext| {
        let mut gate = gate.clone();
        note.push((job.n, context.attempt(), Instant::now()));
        async move { gate.wait_for(|is_open| *is_open).await.map(drop).map_err(JobError::failed) }
    };
    let worker = Worker::builder(client).concurrency(slots).handle(handler).build();
    (worker.expect("valid").start().await.expect("starts"), calls)
}

/// 9. R3. All servers and the worker are SIGKILLed at once: nothing is lost, attempts stay exact and delays
/// hold, also for a worker that starts when the consumers have handed out something again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_servers_are_killed_at_once_and_attempts_stay_exact() {
    all_are_killed(Sync::Lazy).await;
}

/// 9. R3 with fsync. The same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_servers_with_fsync_are_killed_at_once_and_attempts_stay_exact() {
    all_are_killed(Sync::Always).await;
}

async fn all_are_killed(sync: Sync) {
    let (cluster, client) = three(sync).await;
    let jobs = enqueue(&client, STORM.chain(FLAKY).chain(LONG).map(job)).await;
    let doomed = Doomed::start(cluster.url());
    let first_of_all = STORM.count() + FLAKY.count() + LONG.count();
    eventually("everything has begun", || async {
        (doomed.calls.len() >= first_of_all).then_some(())
    })
    .await;
    doomed.storm.send(true).expect("it waits");
    eventually("a storm", || async { (doomed.calls_of(&STORM) > STORM_CALLS).then_some(()) }).await;
    let killed = join_all((0..3).map(|node| cluster.kill(node))).await;
    killed.into_iter().for_each(|killed| killed.expect("killed"));
    doomed.runtime.shutdown_background();
    try_join_all((0..3).map(|node| cluster.restart(node))).await.expect("back");
    cluster.ready().await.expect("whole again");

    let client = at(&cluster).await;
    let (open, gate) = watch::channel(false);
    let (first, first_calls) = work(&client, 1, gate.clone()).await;
    eventually("something is handed out again", || async { (first_calls.len() > 0).then_some(()) })
        .await;
    // It holds what it has fetched for two seconds, and then hands that back.
    let second = at(&cluster).await;
    let (second, second_calls) = work(&second, 64, gate).await;
    eventually("the other has some too", || async { (second_calls.len() > 8).then_some(()) }).await;
    let new = enqueue(&client, NEW.map(job)).await;
    open.send(true).expect("they wait");
    for (n, job) in jobs.iter().chain(&new).enumerate() {
        let done = job.completion_within(BACKOFF + PATIENCE).await.expect("an end");
        assert_eq!(done.status, Status::Done, "job {n}");
    }

    let before = doomed.calls.all();
    let after: Vec<Call> = first_calls.all().into_iter().chain(second_calls.all()).collect();
    for (n, attempt, at) in &after {
        let mut earlier = before.iter().filter(|(of, ..)| of == n);
        match *n {
            n if FLAKY.contains(&n) => {
                let failed = earlier.next_back().expect("it was run").2;
                assert_eq!(*attempt, 2, "flaky job {n} goes on where it was");
                assert!(*at + TOLERANCE >= failed + BACKOFF, "job {n} after {:?}", *at - failed);
            }
            // What left no trace is granted again.
            n if LONG.contains(&n) || NEW.contains(&n) => assert_eq!(*attempt, 1, "job {n}"),
            n => assert!(earlier.all(|(_, had, _)| had < attempt), "job {n}, attempt {attempt}"),
        }
    }
    let mut numbers: Vec<u64> = after.iter().map(|(n, ..)| *n).collect();
    numbers.sort_unstable();
    let all = STORM.chain(FLAKY).chain(LONG).chain(NEW).collect::<Vec<_>>();
    assert_eq!(numbers, all, "each was run once more, and once only");
    for n in STORM.count() + FLAKY.count()..first_of_all {
        let entries = ledger(&client, &jobs, n).await;
        let events: Vec<_> = entries.iter().map(|entry| (entry.attempt, entry.event)).collect();
        assert_eq!(events, [(1, AttemptEvent::Started)], "a long job leaves a trace now");
    }
    for n in 0..new.len() {
        assert!(ledger(&client, &new, n).await.is_empty(), "a new job is nothing but new");
    }
    first.drain().await;
    second.drain().await;
}

/// Puts consumers in the place of a queue's as an earlier version made them.
async fn as_made_earlier(nats: &async_nats::Client) {
    let jobs = ["critical", "high", "normal", "low"].map(|lane| ("TIDEMILL_JOBS_default", lane));
    for (stream, consumer) in jobs.into_iter().chain([("TIDEMILL_TIMERS_default", "due")]) {
        let place = format!("{stream}.{consumer}");
        let mut config =
            api(nats, &format!("CONSUMER.INFO.{place}"), Value::Null).await["config"].take();
        config["mem_storage"] = json!(false);
        api(nats, &format!("CONSUMER.DELETE.{place}"), Value::Null).await;
        let filter = config["filter_subject"].as_str().expect("a filter").to_owned();
        let request = json!({ "stream_name": stream, "config": config });
        let made = api(nats, &format!("CONSUMER.CREATE.{place}.{filter}"), request).await;
        assert!(made["error"].is_null(), "{made}");
    }
}

fn is_at_risk(running: &Running) -> bool {
    running.health().troubles.iter().any(|trouble| trouble.kind == TroubleKind::JobsAtRisk)
}

/// What the program says of the default queue.
async fn said(cluster: &Cluster, arguments: &[&str]) -> String {
    let output = program(&cluster.url(), arguments).kill_on_drop(true).output().await;
    let output = output.expect("runs");
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text).into_owned()
}

/// 29. R3. A queue's consumers keep their state on disk, as an earlier version made them: doctor and worker
/// tell of it, and `setup --apply` makes them anew with jobs under way, of which none is run once more than
/// it has to be, or early.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_of_an_earlier_version_is_brought_over_with_jobs_under_way() {
    let (cluster, client) = three(Sync::Lazy).await;
    let nats = nats_at(&cluster.url(), Login::Nobody).await;
    as_made_earlier(&nats).await;
    let calls = Seen::default();
    let note = calls.clone();
    let handler = Handler::new(move |job: Numbered, context: JobContext| {
        note.push((job.n, context.attempt(), Instant::now()));
        async move {
            if FLAKY.contains(&job.n) && context.attempt() == 1 {
                return Err(JobError::failed("not yet"));
            }
            let takes = if LONG.contains(&job.n) { 6 } else { 0 };
            until(Instant::now() + Duration::from_secs(takes)).await;
            Ok(())
        }
    });
    let worker = Worker::builder(&client).concurrency(16).handler(handler);
    let running = worker.build().expect("valid").start().await.expect("starts");
    let mut told = eventually("the worker tells of both streams", || async {
        let troubles = running.health().troubles;
        (troubles.len() == 2).then(|| troubles.iter().map(ToString::to_string).collect::<Vec<_>>())
    })
    .await;
    told.sort_unstable();
    for (told, stream) in told.iter().zip(["TIDEMILL_JOBS_default", "TIDEMILL_TIMERS_default"]) {
        assert!(told.starts_with(&format!("jobs_at_risk at {stream}: ")), "{told}");
        assert!(told.contains("tidemill setup default --apply"), "{told}");
    }
    assert!(running.is_ready(), "it works on");
    let found = said(&cluster, &["doctor", "default"]).await;
    for lane in ["critical", "high", "normal", "low"] {
        assert!(found.contains(&format!("TIDEMILL_JOBS_default/{lane}")), "{found}");
    }
    assert!(found.contains("setup default --apply"), "{found}");
    let differs = said(&cluster, &["setup", "default", "--replicas", "3"]).await;
    assert!(differs.contains("mem_storage is false, not true"), "{differs}");

    let jobs = enqueue(&client, FLAKY.chain(LONG).chain(NEW).map(job)).await;
    let begun = FLAKY.count() + LONG.count();
    eventually("they are under way", || async { (calls.len() >= begun).then_some(()) }).await;
    let mended = said(&cluster, &["setup", "default", "--replicas", "3", "--apply"]).await;
    assert_eq!(mended.matches("mended TIDEMILL_").count(), 5, "{mended}");
    for job in &jobs {
        let done = job.completion_within(BACKOFF + PATIENCE).await.expect("an end");
        assert_eq!(done.status, Status::Done);
    }
    let mut numbers: Vec<(u64, u32)> = calls.all().iter().map(|(n, had, _)| (*n, *had)).collect();
    numbers.sort_unstable();
    let once = LONG.chain(NEW).map(|n| (n, 1));
    let mut expected: Vec<(u64, u32)> = FLAKY.flat_map(|n| [(n, 1), (n, 2)]).chain(once).collect();
    expected.sort_unstable();
    assert_eq!(numbers, expected, "each as often as it has to be");
    for n in FLAKY {
        let of = calls.all().into_iter().filter(|(of, ..)| *of == n);
        let [first, second] = of.map(|(.., at)| at).collect::<Vec<_>>()[..] else { panic!("two") };
        assert!(second + TOLERANCE >= first + BACKOFF, "job {n} after {:?}", second - first);
    }
    eventually("the worker is content", || async { (!is_at_risk(&running)).then_some(()) }).await;
    let found = said(&cluster, &["doctor", "default"]).await;
    assert!(!found.contains("mem_storage") && !found.contains("jobs_at_risk"), "{found}");
    let again = said(&cluster, &["setup", "default", "--replicas", "3", "--apply"]).await;
    assert!(!again.contains("mended") && !again.contains("mem_storage"), "{again}");
    as_made_earlier(&nats).await;
    let revived = said(&cluster, &["doctor", "default", "--revive"]).await;
    let found = said(&cluster, &["doctor", "default"]).await;
    assert!(!found.contains("mem_storage is false"), "{revived}{found}");
    let job = client.enqueue(numbered(1000)).await.expect("stored");
    assert_eq!(completion(&job).await.status, Status::Done);
    running.drain().await;
}
