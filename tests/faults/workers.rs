//! Workers that are killed, frozen, stopped, or kept from their threads.

use std::time::{Duration, Instant};

use tidemill::{Handler, JobContext, JobError, NewJob, RetryPolicy, Status};

use crate::support::chaos::Chaos;
use crate::support::footprint::Footprint;
use crate::support::load::{Load, is_empty, work};
use crate::support::process::{Process, program};
use crate::support::proxy::{FaultProxy, Way};
use crate::support::{
    ACK_WAIT, Mill, Numbered, PATIENCE, R1, RECOVERY, Seen, Setup, Site, Sync, completion,
    eventually, numbered, short_leases, short_mill, stream_messages,
};

const RESULTS: &str = "TIDEMILL_RESULTS_default";

/// Jobs that a load with workers that come and go has for each of them, and how many start a second.
const JOBS_OF_EACH: u64 = 66;
const RATE: u32 = 100;

/// What a worker that is lost had in hands at most: eight jobs that ran, and as many that had just ended
/// and were not yet on record.
const IN_HANDS: u64 = 2 * 8;

/// How a worker leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaves {
    Killed,
    /// It is stopped where it is for longer than its leases, and then told to stop.
    Frozen,
    Told,
}

/// Waits until so many jobs have ended.
async fn ended(nats: &async_nats::Client, count: u64) {
    eventually(&format!("{count} ends"), || async {
        (stream_messages(nats, RESULTS).await >= count).then_some(())
    })
    .await;
}

/// Beside one that stays, workers come and leave, one after the other, at random points of their work:
/// nothing is lost, nothing ends twice, and only what they held is run again.
async fn workers_come_and_go(setup: Setup, workers: &[Leaves]) {
    let site = Site::start(setup).await;
    let nats = site.nats().await;
    let chaos = Chaos::start(&site.url());
    let mut chance = chaos.chance();
    let stays = chaos.worker("stays").await;
    let jobs = JOBS_OF_EACH * workers.len() as u64;
    let producer = chaos.producer("producer", jobs, RATE).await;
    for (n, leaves) in (0..).zip(workers) {
        let worker = chaos.worker(&format!("w{n}")).await;
        ended(&nats, (jobs * (n + 1) / (workers.len() as u64 + 2)) + chance.u64(..20)).await;
        match leaves {
            Leaves::Killed => worker.kill().await,
            Leaves::Told => worker.terminate().await,
            Leaves::Frozen => {
                worker.freeze().await;
                tokio::time::sleep(ACK_WAIT + ACK_WAIT / 2).await;
                worker.thaw();
                worker.terminate().await;
            }
        }
    }
    producer.says("done").await;
    let faults = workers.iter().filter(|leaves| **leaves != Leaves::Told).count() as u64;
    let report = chaos.holds(faults, RECOVERY).await;
    stays.terminate().await;
    site.copies_agree().await;
    assert_eq!(report["enqueued"]["ok"], jobs, "{report:#}");
    let extra = report["extra_runs"].as_u64().expect("a count");
    assert!(
        extra <= faults * IN_HANDS,
        "{extra} extra runs: more than those that left so had in hands"
    );
}

/// 1. A worker is SIGKILLed at random points, six times: nothing is lost, nothing ends twice, and only
/// what it was running is run again.
#[tokio::test]
async fn workers_that_are_killed_at_random_points_lose_nothing() {
    workers_come_and_go(R1, &[Leaves::Killed; 6]).await;
}

/// 3. A worker is SIGTERMed under load, six times, as in a rolling deployment: not one job is run twice.
#[tokio::test]
async fn workers_that_are_told_to_stop_cost_no_second_run() {
    workers_come_and_go(R1, &[Leaves::Told; 6]).await;
}

/// 2. A worker is SIGSTOPped for longer than its leases and goes on: what it held is run by others, its
/// late word causes no third run, and every run has one completion.
#[tokio::test]
async fn workers_that_were_frozen_past_their_leases_stay_silent() {
    workers_come_and_go(R1, &[Leaves::Frozen; 2]).await;
}

pub(crate) async fn killed_and_frozen(setup: Setup) {
    workers_come_and_go(setup, &[Leaves::Killed, Leaves::Frozen, Leaves::Killed]).await;
}

pub(crate) async fn told_to_stop(setup: Setup) {
    workers_come_and_go(setup, &[Leaves::Told; 4]).await;
}

/// 2. A worker is SIGSTOPped past its leases with jobs that it has fetched and not begun, and goes on: it
/// begins none of them, since others have them.
#[tokio::test]
async fn a_worker_that_was_frozen_begins_nothing_that_others_have() {
    let site = Site::start(R1).await;
    let nats = site.nats().await;
    let chaos = Chaos::start(&site.url());
    chaos.fill(150).await;
    let frozen = chaos.worker("frozen").await;
    ended(&nats, 50).await;
    frozen.freeze().await;
    let other = chaos.worker("other").await;
    ended(&nats, 200).await;
    tokio::time::sleep(ACK_WAIT).await;
    frozen.thaw();
    let report = chaos.holds(1, RECOVERY).await;
    let extra = report["extra_runs"].as_u64().expect("a count");
    assert!(extra <= IN_HANDS, "{extra} extra runs: more than it had in hands when it was frozen");
    for worker in [frozen, other] {
        worker.terminate().await;
    }
}

/// 4. A handler blocks a thread of the runtime for three leases: as a rule the lease is kept. Where that
/// thread was the one that Tokio had do its I/O, it is lost, and another worker runs the job: once more at
/// most, with one completion.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_handler_that_blocks_a_thread_is_run_once_more_at_most() {
    a_thread_is_blocked(R1).await;
}

pub(crate) async fn a_thread_is_blocked(setup: Setup) {
    let site = Site::start(setup).await;
    let seen = Seen::default();
    let worker = || {
        let note = seen.clone();
        site.worker().handle(move |job: Numbered, _: JobContext| {
            note.push(job.n);
            let is_first = note.len() == 1;
            async move {
                if is_first {
                    std::thread::sleep(3 * ACK_WAIT);
                }
                Ok::<_, JobError>(())
            }
        })
    };
    let one = worker().build().expect("valid").start().await.expect("starts");
    let other = worker().build().expect("valid").start().await.expect("starts");
    let job = site.client.enqueue(numbered(1)).await.expect("stored");
    assert!(completion(&job).await.attempt <= 2);
    one.drain().await;
    other.drain().await;
    assert!(matches!(seen.all()[..], [1] | [1, 1]), "{:?}", seen.all());
    let nats = site.nats().await;
    assert_eq!(stream_messages(&nats, RESULTS).await, 1);
    site.copies_agree().await;
}

/// 4. Handlers block every thread of a worker's runtime for three leases, so that it cannot keep them:
/// others run the jobs, it stays silent about them, and each has one completion.
#[tokio::test]
async fn a_worker_whose_every_thread_is_blocked_loses_its_leases_and_no_job() {
    let mill = short_mill(Sync::Lazy).await;
    let url = mill.broker.url().to_owned();
    let (seen, blocked) = (Seen::default(), Seen::default());
    let note = blocked.clone();
    // A runtime of one thread, beside this one's.
    let stuck = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async move {
            let client = crate::support::connect(&url).await;
            let blocks = note.clone();
            let handler = move |job: Numbered, _: JobContext| {
                blocks.push(job.n);
                async {
                    std::thread::sleep(3 * ACK_WAIT);
                    Ok::<_, JobError>(())
                }
            };
            let worker = tidemill::Worker::builder(&client).name("stuck").concurrency(1);
            let worker = worker.handle(handler).build().expect("valid");
            let running = worker.start().await.expect("starts");
            note.wait_for(1).await;
            running.drain().await;
        });
    });
    let job = mill.client.enqueue(numbered(1)).await.expect("stored");
    blocked.wait_for(1).await;
    let note = seen.clone();
    let quick = mill.worker().name("quick").handle(move |job: Numbered, _: JobContext| {
        note.push(job.n);
        async { Ok::<_, JobError>(()) }
    });
    let quick = quick.build().expect("valid").start().await.expect("starts");
    let done = completion(&job).await;
    assert_eq!((done.status, done.worker.as_str(), done.attempt), (Status::Done, "quick", 1));
    tokio::task::spawn_blocking(move || stuck.join()).await.expect("joins").expect("no panic");
    let nats = mill.nats().await;
    is_empty(&nats).await;
    assert_eq!((seen.len(), blocked.len()), (1, 1), "no third run");
    assert_eq!(stream_messages(&nats, RESULTS).await, 1);
    quick.drain().await;
}

/// 4. A handler that aborts its process is no attempt of the other jobs that ran beside it beyond the
/// one that they lose, and they all end.
#[tokio::test]
async fn a_job_that_aborts_its_worker_takes_no_other_with_it() {
    a_worker_is_aborted(R1).await;
}

pub(crate) async fn a_worker_is_aborted(setup: Setup) {
    let site = Site::start(setup).await;
    let abort = "abort=kill -ABRT $PPID; sleep 5";
    let arguments = ["--exec", abort, "--exec", "quick=sleep 0.2", "--backoff", "fixed:100"];
    let aborts = site.client.enqueue(NewJob::raw("abort", "{}").max_retries(1)).await;
    let aborts = aborts.expect("stored");
    let mut others = Vec::new();
    for _ in 0..20 {
        others.push(site.client.enqueue(NewJob::raw("quick", "{}")).await.expect("stored"));
    }
    let url = site.url();
    let supervisor = async {
        loop {
            // As a supervisor would, start the worker again whenever it is gone.
            let worker = Process::start(program(&url, &[&["work"], &arguments[..]].concat()));
            worker.gone().await;
        }
    };
    let ends = async {
        let end = completion(&aborts).await;
        assert_eq!((end.status, end.reason.as_deref()), (Status::Dead, Some("worker_lost")));
        for job in &others {
            assert_eq!(completion(job).await.status, Status::Done);
        }
    };
    tokio::select! {
        () = supervisor => unreachable!("it goes on"),
        () = ends => {}
    }
    site.copies_agree().await;
}

/// 2, 5, 12, 14. I9. A worker that has lived through crashed and frozen brokers, resets and silence
/// holds no more memory, files and threads than before.
#[tokio::test]
async fn a_worker_that_lived_through_faults_holds_no_more_than_before() {
    let mill = short_mill(Sync::Lazy).await;
    let proxy = FaultProxy::start(mill.broker.url()).await;
    let worker = Process::worker(&proxy.url, &["--exec", "quick=true"]).await;
    let some = async || {
        for _ in 0..20 {
            let job = mill.client.enqueue(NewJob::raw("quick", "{}")).await.expect("stored");
            completion(&job).await;
        }
    };
    some().await;
    let before = Footprint::of(worker.pid());
    let files_of_broker = || Footprint::of(mill.broker.pid().expect("it runs")).files;
    let files = files_of_broker();
    for round in 0..6 {
        let what = match round % 3 {
            0 => {
                mill.broker.kill().await.expect("killed");
                mill.broker.restart().await.expect("back");
                "the broker crashed"
            }
            1 => {
                proxy.reset();
                "connections were reset"
            }
            _ => {
                proxy.ways(Way::Lost, Way::Lost);
                proxy.reset();
                proxy.heal();
                "connections were silent"
            }
        };
        some().await;
        eventually(&format!("after {what} the worker is back at {before:?}"), || async {
            Footprint::of(worker.pid()).is_back_at(&before).then_some(())
        })
        .await;
        eventually(&format!("after {what} the broker is back at {files} files"), || async {
            (files_of_broker() <= files + 4).then_some(())
        })
        .await;
    }
    worker.terminate().await;
}

/// 20. Jobs of nearly a megabyte each: a worker never holds more of them than it is about to run. That is
/// 20 MiB here; what its allocator keeps beside them is up to 60 MiB, so that far more are waiting.
#[tokio::test]
async fn a_worker_holds_few_large_jobs_at_once() {
    const WAITING: usize = 400;
    let mut config = short_leases(1);
    config.max_jobs_bytes = 512 << 20;
    let mill = Mill::with(config).await;
    let payload = format!("\"{}\"", "x".repeat(900 * 1024));
    let jobs = (0..WAITING).map(|_| NewJob::raw("large", payload.clone()));
    let jobs: Vec<_> =
        mill.client.enqueue_many(jobs).await.into_iter().map(|job| job.expect("stored")).collect();
    let arguments = ["--exec", "large=cat >/dev/null; sleep 0.05", "--concurrency", "4"];
    let worker = Process::worker(mill.broker.url(), &arguments).await;
    for job in &jobs {
        assert_eq!(completion(job).await.status, Status::Done);
    }
    let peak = Footprint::of(worker.pid()).peak_kib / 1024;
    let waited = WAITING as u64 * 900 / 1024;
    assert!(peak < waited / 2, "{peak} MiB at its peak, of {waited} MiB of jobs");
    assert!(!worker.heard().contains("too slow"), "{}", worker.heard());
    worker.terminate().await;
}

/// All lanes are full and nothing is broken: two workers start their jobs by 8:4:2:1, within what chance
/// makes of so many starts.
#[tokio::test]
async fn full_lanes_are_served_by_their_weights() {
    let site = Site::start(R1).await;
    let chaos = Chaos::start(&site.url());
    chaos.fill(250).await;
    let workers = [chaos.worker("one").await, chaos.worker("other").await];
    // The checker looks.
    let report = chaos.holds(0, PATIENCE).await;
    let shares = report["shares"].as_object().expect("an object");
    let starts = shares.values().map(|starts| starts.as_u64().expect("a count")).sum::<u64>();
    assert!(starts >= 200, "{starts} starts while all lanes were full show nothing: {report:#}");
    assert_eq!(report["extra_runs"], 0, "{report:#}");
    for worker in workers {
        worker.terminate().await;
    }
}

/// 35. Everything of one kind fails, again and again, in thousands: fresh jobs of the same lane and of
/// others are worked all the while.
#[tokio::test]
async fn a_retry_storm_holds_up_no_fresh_job() {
    const STORM: u64 = 500;
    let mill = short_mill(Sync::Lazy).await;
    let storm = Handler::raw("storm", |_, _| async { Err(JobError::failed("always")) });
    let again = RetryPolicy::new(1000, tidemill::Backoff::fixed(Duration::from_millis(600)));
    let fresh = |_: Numbered, _: JobContext| async { Ok::<_, JobError>(()) };
    let worker = mill.worker().handler(storm.retry(again)).handle(fresh);
    let running = worker.build().expect("valid").start().await.expect("starts");
    let jobs = (0..STORM).map(|_| NewJob::raw("storm", "{}"));
    for stored in mill.client.enqueue_many(jobs).await {
        stored.expect("stored");
    }
    let nats = mill.nats().await;
    eventually("the storm", || async {
        let entries = stream_messages(&nats, "TIDEMILL_ATTEMPTS_default").await;
        (entries > 2 * STORM).then_some(())
    })
    .await;
    for n in 0..20 {
        for priority in [tidemill::Priority::Normal, tidemill::Priority::Low] {
            let job = mill.client.enqueue(numbered(n)).priority(priority).await.expect("stored");
            let asked = Instant::now();
            assert_eq!(completion(&job).await.status, Status::Done);
            let took = asked.elapsed();
            assert!(took < Duration::from_secs(5), "a fresh job of {priority} took {took:?}");
        }
    }
    running.drain().await;
}

/// 26. A producer is SIGKILLed between its publish and the broker's word for it; run again with the same
/// key, it finds the job there, and one run of it is done.
#[tokio::test]
async fn a_producer_that_is_killed_before_the_brokers_word_is_run_again() {
    let mill = short_mill(Sync::Lazy).await;
    let nats = mill.nats().await;
    let proxy = FaultProxy::start(mill.broker.url()).await;
    let arguments = ["enqueue", "default", "numbered", r#"{"n":1}"#, "--unique", "order-17"];
    // The broker's words are held back from when the producer is connected.
    let producer = enqueue_without_an_answer(&mill, &proxy, &arguments).await;
    eventually("the job is stored", || async {
        (stream_messages(&nats, "TIDEMILL_JOBS_default").await == 1).then_some(())
    })
    .await;
    producer.kill().await;
    proxy.heal();
    let again = Process::start(program(&proxy.url, &arguments));
    assert!(again.ended().await.success());
    assert_eq!(stream_messages(&nats, "TIDEMILL_JOBS_default").await, 1, "the same job");
    let runs = Seen::default();
    let running = work(&mill.client, &runs).await;
    is_empty(&nats).await;
    assert_eq!((runs.len(), stream_messages(&nats, RESULTS).await), (1, 1));
    running.drain().await;
}

/// Starts a producer that gets no answer any more once its publish is on its way.
async fn enqueue_without_an_answer(mill: &Mill, proxy: &FaultProxy, arguments: &[&str]) -> Process {
    // A subscriber hears of the publish, and closes the way back before the stream can confirm it or
    // just after; either way the producer is killed with its answer unread or unsent.
    let nats = mill.nats().await;
    let mut heard = nats.subscribe("tidemill.jobs.>").await.expect("subscribes");
    nats.flush().await.expect("flushed");
    // What comes back is slow enough to be stopped.
    proxy.ways(Way::Pass, Way::Late(Duration::from_millis(300)));
    let producer = Process::start(program(&proxy.url, arguments));
    futures_util::StreamExt::next(&mut heard).await.expect("the publish");
    proxy.ways(Way::Pass, Way::Held);
    producer
}

/// 1. The only worker is SIGKILLed with its slots full: another has all of its jobs within a lease and
/// 2 s.
#[tokio::test]
async fn jobs_of_a_worker_that_is_gone_are_taken_up_within_a_lease() {
    gone_with_full_hands(R1).await;
}

pub(crate) async fn gone_with_full_hands(setup: Setup) {
    let site = Site::start(setup).await;
    let runs = Seen::default();
    let worker = Process::worker(&site.url(), &["--exec", "numbered=sleep 60"]).await;
    let load = Load::start(&site.client, 16, Duration::from_millis(1)).end().await;
    let nats = site.nats().await;
    eventually("all are in hands", || async {
        let counts = crate::support::lane_counts(&nats, "default", "normal").await;
        (counts == (0, 16)).then_some(())
    })
    .await;
    worker.kill().await;
    let killed = Instant::now();
    let running = work(&site.hands, &runs).await;
    load.is_all_done(&site.client, &nats, &runs, ACK_WAIT + Duration::from_secs(2)).await;
    assert!(killed.elapsed() < ACK_WAIT + Duration::from_secs(3), "{:?}", killed.elapsed());
    running.drain().await;
    site.copies_agree().await;
}
