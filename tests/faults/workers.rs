//! Workers that are killed, frozen, stopped, or kept from their threads.

use std::time::{Duration, Instant};

use tidemill::{Handler, JobContext, JobError, NewJob, RetryPolicy, Status};

use crate::support::chaos::Chaos;
use crate::support::footprint::Footprint;
use crate::support::load::{Load, is_empty, work};
use crate::support::process::{Process, program};
use crate::support::proxy::{FaultProxy, Way};
use crate::support::{
    ACK_WAIT, Mill, Numbered, RECOVERY, Seen, Sync, completion, eventually, numbered, short_mill,
    stream_messages,
};

const RESULTS: &str = "TIDEMILL_RESULTS_default";

/// Jobs of each of the loads with workers that come and go, and how many start a second.
const JOBS: u32 = 400;
const RATE: u32 = 100;

/// Waits until so many jobs have ended.
async fn ended(nats: &async_nats::Client, count: u64) {
    eventually(&format!("{count} ends"), || async {
        (stream_messages(nats, RESULTS).await >= count).then_some(())
    })
    .await;
}

/// What becomes of one of two workers, again and again, at random points of its work.
async fn workers_come_and_go(times: u64, faults: u64, what: impl AsyncFn(Process)) -> u64 {
    let mill = short_mill(Sync::Lazy).await;
    let nats = mill.nats().await;
    let chaos = Chaos::start(mill.broker.url());
    let mut chance = chaos.chance();
    let stays = chaos.worker("stays").await;
    let producer = chaos.producer("producer", JOBS, RATE).await;
    for round in 1..=times {
        let worker = chaos.worker(&format!("w{round}")).await;
        let before = u64::from(JOBS) * 2 / 3 * round / times;
        ended(&nats, before + chance.u64(..20)).await;
        what(worker).await;
    }
    producer.says("done").await;
    let report = chaos.holds(faults, RECOVERY).await;
    stays.terminate().await;
    assert_eq!(report["enqueued"]["ok"], JOBS, "{report:#}");
    report["extra_runs"].as_u64().expect("a count")
}

/// 1. A worker is SIGKILLed at random points, six times: nothing is lost, nothing ends twice, and only
/// what it was running is run again.
#[tokio::test]
async fn workers_that_are_killed_at_random_points_lose_nothing() {
    let extra = workers_come_and_go(6, 6, async |worker| worker.kill().await).await;
    assert!(extra <= 6 * 8, "{extra} extra runs: more than the killed ones had in hands");
}

/// 3. A worker is SIGTERMed under load, six times, as in a rolling deployment: not one job is run twice.
#[tokio::test]
async fn workers_that_are_told_to_stop_cost_no_second_run() {
    let extra = workers_come_and_go(6, 0, async |worker| worker.terminate().await).await;
    assert_eq!(extra, 0, "extra runs");
}

/// 2. A worker is SIGSTOPped for longer than its leases and goes on: what it held is run by others, its
/// late word causes no third run, and every run has one completion.
#[tokio::test]
async fn workers_that_were_frozen_past_their_leases_stay_silent() {
    let extra = workers_come_and_go(2, 2, async |worker| {
        worker.freeze().await;
        tokio::time::sleep(ACK_WAIT + ACK_WAIT / 2).await;
        worker.thaw();
        worker.terminate().await;
    })
    .await;
    assert!(extra <= 2 * 8, "{extra} extra runs: more than the frozen one had in hands");
}

/// 4. A handler blocks a thread of the runtime for three leases: as a rule the lease is kept. Where that
/// thread was the one that Tokio had do its I/O, it is lost, and another worker runs the job: once more at
/// most, with one completion.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_handler_that_blocks_a_thread_is_run_once_more_at_most() {
    let mill = short_mill(Sync::Lazy).await;
    let seen = Seen::default();
    let worker = || {
        let note = seen.clone();
        mill.worker().handle(move |job: Numbered, _: JobContext| {
            note.push(job.n);
            async {
                std::thread::sleep(3 * ACK_WAIT);
                Ok::<_, JobError>(())
            }
        })
    };
    let one = worker().build().expect("valid").start().await.expect("starts");
    let other = worker().build().expect("valid").start().await.expect("starts");
    let job = mill.client.enqueue(numbered(1)).await.expect("stored");
    assert!(completion(&job).await.attempt <= 2);
    one.drain().await;
    other.drain().await;
    assert!(matches!(seen.all()[..], [1] | [1, 1]), "{:?}", seen.all());
    let nats = mill.nats().await;
    assert_eq!(stream_messages(&nats, RESULTS).await, 1);
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
    let mill = short_mill(Sync::Lazy).await;
    let abort = "abort=kill -ABRT $PPID; sleep 5";
    let arguments = ["--exec", abort, "--exec", "quick=sleep 0.2", "--backoff", "fixed:100"];
    let aborts = mill.client.enqueue(NewJob::raw("abort", "{}").max_retries(1)).await;
    let aborts = aborts.expect("stored");
    let mut others = Vec::new();
    for _ in 0..20 {
        others.push(mill.client.enqueue(NewJob::raw("quick", "{}")).await.expect("stored"));
    }
    let url = mill.broker.url();
    let supervisor = async {
        loop {
            // As a supervisor would, start the worker again whenever it is gone.
            let worker = Process::start(program(url, &[&["work"], &arguments[..]].concat()));
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
    for round in 0..6 {
        match round % 3 {
            0 => {
                mill.broker.kill().await.expect("killed");
                mill.broker.restart().await.expect("back");
            }
            1 => proxy.reset(),
            _ => {
                proxy.ways(Way::Lost, Way::Lost);
                proxy.reset();
                proxy.heal();
            }
        }
        some().await;
    }
    eventually(&format!("it is back at {before:?}"), || async {
        Footprint::of(worker.pid()).is_back_at(&before).then_some(())
    })
    .await;
    worker.terminate().await;
}

/// 20. Jobs of nearly a megabyte each: a worker never holds more of them than it is about to run.
#[tokio::test]
async fn a_worker_holds_few_large_jobs_at_once() {
    let mill = short_mill(Sync::Lazy).await;
    let payload = format!("\"{}\"", "x".repeat(900 * 1024));
    let jobs = (0..150).map(|_| NewJob::raw("large", payload.clone()));
    let jobs: Vec<_> =
        mill.client.enqueue_many(jobs).await.into_iter().map(|job| job.expect("stored")).collect();
    let arguments = ["--exec", "large=cat >/dev/null; sleep 0.05", "--concurrency", "4"];
    let worker = Process::worker(mill.broker.url(), &arguments).await;
    for job in &jobs {
        assert_eq!(completion(job).await.status, Status::Done);
    }
    let peak = Footprint::of(worker.pid()).peak_kib / 1024;
    assert!(peak < 110, "{peak} MiB at its peak, of 135 MiB of jobs");
    assert!(!worker.heard().contains("too slow"), "{}", worker.heard());
    worker.terminate().await;
}

/// 35. Everything of one kind fails, again and again, in thousands: fresh jobs of the same lane and of
/// others are worked all the while.
#[tokio::test]
async fn a_retry_storm_holds_up_no_fresh_job() {
    const STORM: u64 = 500;
    let mill = short_mill(Sync::Lazy).await;
    let storm = Handler::raw("storm", |_, _| async { Err(JobError::failed("always")) });
    let again = RetryPolicy::new(1000, tidemill::Backoff::fixed(Duration::from_millis(300)));
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
            assert!(took < Duration::from_secs(3), "a fresh job of {priority} took {took:?}");
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
    let mill = short_mill(Sync::Lazy).await;
    let runs = Seen::default();
    let worker = Process::worker(mill.broker.url(), &["--exec", "numbered=sleep 60"]).await;
    let load = Load::start(&mill.client, 16, Duration::from_millis(1)).end().await;
    let nats = mill.nats().await;
    eventually("all are in hands", || async {
        let counts = crate::support::lane_counts(&nats, "default", "normal").await;
        (counts == (0, 16)).then_some(())
    })
    .await;
    worker.kill().await;
    let killed = Instant::now();
    let running = work(&mill.client, &runs).await;
    load.is_all_done(&mill.client, &nats, &runs, ACK_WAIT + Duration::from_secs(2)).await;
    assert!(killed.elapsed() < ACK_WAIT + Duration::from_secs(3), "{:?}", killed.elapsed());
    running.drain().await;
}
