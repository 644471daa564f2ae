//! One broker that is killed, restarted, frozen, slow, or another version than before.

use std::time::{Duration, Instant};

use tidemill::{NewJob, Priority, Status};

use crate::support::disk::{Slow, slow_disk};
use crate::support::load::{Load, Said, goes_through, is_empty, longest_gap, work, work_for};
use crate::support::site::Login;
use crate::support::{
    ACK_WAIT, GAP, R1, RECOVERY, Seen, Setup, Site, Sync, completion, connect, eventually,
    impatient, numbered, short_leases, short_mill, stream_messages,
};

/// Producers and a worker while the broker is killed five times.
async fn killed_again_and_again(sync: Sync) {
    const KILLS: usize = 5;
    let mill = short_mill(sync).await;
    let runs = Seen::default();
    let running = work(&mill.client, &runs).await;
    let load = Load::start(&mill.client, 500, Duration::from_millis(8));
    for kill in 1..=KILLS {
        runs.wait_for(kill * 60).await;
        mill.broker.kill().await.expect("killed");
        mill.broker.restart().await.expect("back");
    }
    let said = load.end().await;
    assert!(said.refused.is_empty(), "{:?}", said.refused);
    let nats = mill.nats().await;
    let became = said.is_all_done(&mill.client, &nats, &runs, RECOVERY).await;
    running.drain().await;
    // What ran at a crash may run again, and no more.
    assert!(became.extra_runs <= KILLS * 16, "{became:?}");
}

/// 5. R1. The broker is SIGKILLed five times under load: what was confirmed is done, once by its
/// completion; what was not is told as unknown, and never doubled.
#[tokio::test]
async fn a_broker_killed_again_and_again_loses_nothing_that_it_confirmed() {
    killed_again_and_again(Sync::Lazy).await;
}

/// 5. R1 with fsync. The same.
#[tokio::test]
async fn a_broker_with_fsync_killed_again_and_again_loses_nothing() {
    killed_again_and_again(Sync::Always).await;
}

/// 5. The broker is SIGSTOPped for ten seconds: enqueues meanwhile are unknown in time, and when it goes
/// on, everything is done within the lease and 15 s.
#[tokio::test]
async fn a_broker_that_was_frozen_is_gone_on_with() {
    frozen(Sync::Lazy).await;
}

/// 5. R1 with fsync. The same.
#[tokio::test]
async fn a_broker_with_fsync_that_was_frozen_is_gone_on_with() {
    frozen(Sync::Always).await;
}

async fn frozen(sync: Sync) {
    let mill = short_mill(sync).await;
    let runs = Seen::default();
    let running = work(&mill.client, &runs).await;
    let before = Load::start(&mill.client, 50, Duration::from_millis(5)).end().await;
    mill.broker.freeze().await.expect("freezes");
    let frozen = Instant::now();
    let meanwhile = Load::from(&mill.client, 1000, 20, Duration::from_millis(5)).end().await;
    assert!(meanwhile.ok.is_empty(), "nobody can have confirmed {:?}", meanwhile.ok);
    assert_eq!(meanwhile.unknown.len(), 20, "{:?}", meanwhile.refused);
    crate::support::until(frozen + Duration::from_secs(10)).await;
    mill.broker.thaw().await.expect("thaws");
    let nats = mill.nats().await;
    let mut after = Load::from(&mill.client, 2000, 50, Duration::from_millis(5)).end().await;
    after.add(before);
    after.add(meanwhile);
    after.is_all_done(&mill.client, &nats, &runs, RECOVERY).await;
    running.drain().await;
}

/// 6. A finished job is published again with its run after a restart, when the broker has forgotten all
/// message ids: the worker finds its completion and does not run it.
#[tokio::test]
async fn a_finished_run_that_comes_again_after_a_restart_is_not_run() {
    let mill = short_mill(Sync::Lazy).await;
    let runs = Seen::default();
    let running = work(&mill.client, &runs).await;
    let nats = mill.nats().await;
    let again = async || {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Tidemill-Run", "r1");
        headers.insert("Tidemill-Attempts-Used", "0");
        let subject = "tidemill.jobs.default.normal.numbered.order-17";
        nats.request_with_headers(subject, headers, r#"{"n":1}"#.into()).await.ok()
    };
    eventually("stored", again).await;
    is_empty(&nats).await;
    mill.broker.restart().await.expect("back");
    eventually("stored again", again).await;
    is_empty(&nats).await;
    assert_eq!((runs.len(), stream_messages(&nats, "TIDEMILL_RESULTS_default").await), (1, 1));
    running.drain().await;
}

/// 7. R1 with fsync. Every fsync takes 100 ms: everything goes slowly, no lease is lost, nothing runs
/// twice, and nothing is taken for stored that is not.
#[tokio::test]
async fn a_slow_disk_makes_it_slow_and_nothing_else() {
    a_disk_is_slow(Setup::One(Sync::Always), Slow::Syncs, Duration::from_millis(100)).await;
}

/// 7. R1. Every write takes 100 ms: the same.
#[tokio::test]
async fn a_disk_that_is_slow_to_write_makes_it_slow_and_nothing_else() {
    a_disk_is_slow(R1, Slow::Writes, Duration::from_millis(100)).await;
}

/// 7. R3. Every write of the server that leads the jobs takes 50 ms: the same, and all servers hold the
/// same in the end.
#[tokio::test]
async fn a_slow_disk_of_the_leader_makes_it_slow_and_nothing_else() {
    a_disk_is_slow(Setup::Three(Sync::Lazy), Slow::Writes, Duration::from_millis(50)).await;
}

/// 7. R3 with fsync. Every fsync of the server that leads the jobs takes 100 ms: the same.
#[tokio::test]
async fn a_slow_disk_of_the_leader_with_fsync_makes_it_slow_and_nothing_else() {
    a_disk_is_slow(Setup::Three(Sync::Always), Slow::Syncs, Duration::from_millis(100)).await;
}

/// The disk of the server that leads the jobs is slow.
async fn a_disk_is_slow(setup: Setup, slow: Slow, by: Duration) {
    let mut config = short_leases(setup.replicas());
    // Far longer than a write takes, as the lease that one has by default.
    config.ack_wait = Duration::from_secs(10);
    let site = Site::of(setup, setup.builder(), Login::Nobody, config).await;
    let runs = Seen::default();
    let running = work(&site.hands, &runs).await;
    let nats = site.nats().await;
    let pid = site.leader_of("TIDEMILL_JOBS_default").await.pid().expect("it runs");
    let Some(slow) = slow_disk(pid, slow, by).await else { return };
    let asked = Instant::now();
    // A producer that soon sends again what is slow to be confirmed could have it there twice.
    let producer = &site.hands;
    let mut said = Load::from(producer, 1, 1, Duration::from_millis(1)).end().await;
    said.is_all_done(&site.client, &nats, &runs, RECOVERY).await;
    assert!(asked.elapsed() > by, "the disk is not slow: {:?} for a job", asked.elapsed());
    said.add(Load::from(producer, 100, 24, Duration::from_millis(100)).end().await);
    assert!(said.refused.is_empty(), "{:?}", said.refused);
    let became = said.is_all_done(&site.client, &nats, &runs, Duration::from_secs(25)).await;
    assert_eq!(became.extra_runs, 0, "a lease was lost");
    drop(slow);
    running.drain().await;
    site.copies_agree().await;
}

/// 11. R1. The broker is restarted, and told to leave (lame duck, SIGUSR2) and started again, under load:
/// enqueues meanwhile are confirmed or unknown, nothing is lost, nothing ends twice.
#[tokio::test]
async fn a_broker_that_is_told_to_leave_loses_nothing() {
    told_to_leave(Sync::Lazy).await;
}

/// 11. R1 with fsync. The same.
#[tokio::test]
async fn a_broker_with_fsync_that_is_told_to_leave_loses_nothing() {
    told_to_leave(Sync::Always).await;
}

async fn told_to_leave(sync: Sync) {
    let quick = "lame_duck_duration: \"30s\"\nlame_duck_grace_period: \"1s\"";
    let setup = Setup::One(sync);
    let builder = setup.builder().config(quick);
    let site = Site::of(setup, builder, Login::Nobody, short_leases(1)).await;
    let runs = Seen::default();
    let running = work(&site.hands, &runs).await;
    let load = Load::start(&site.client, 400, Duration::from_millis(12));
    runs.wait_for(60).await;
    site.node().restart().await.expect("back");
    let seen = runs.len();
    runs.wait_for(seen + 40).await;
    site.node().lame_duck().await.expect("it leaves");
    site.node().restart().await.expect("back");
    let said = load.end().await;
    assert!(said.refused.is_empty(), "{:?}", said.refused);
    let nats = site.nats().await;
    let became = said.is_all_done(&site.client, &nats, &runs, RECOVERY).await;
    assert!(became.extra_runs <= 2 * 16, "{became:?}");
    running.drain().await;
}

/// 11. R1. The broker loses all that it has stored: what was in it is gone, which its jobs' handles tell in
/// time; the next enqueue makes the queue anew, the worker works it by itself, and no word about an old
/// job takes a new one away.
#[tokio::test]
async fn a_broker_that_lost_its_disk_begins_anew() {
    wiped(Sync::Lazy).await;
}

/// 11. R1 with fsync. The same.
#[tokio::test]
async fn a_broker_with_fsync_that_lost_its_disk_begins_anew() {
    wiped(Sync::Always).await;
}

async fn wiped(sync: Sync) {
    let site = Site::start(Setup::One(sync)).await;
    let runs = Seen::default();
    let running = work_for(&site.hands, &runs, Duration::from_millis(500)).await;
    // These run while everything goes.
    Load::start(&site.client, 16, Duration::from_millis(1)).end().await;
    runs.wait_for(16).await;
    site.node().wipe().await.expect("wiped");
    site.node().restart().await.expect("back");
    let mut said = Said::default();
    goes_through(&site.client, 1000, &mut said).await;
    said.add(Load::from(&site.client, 2000, 40, Duration::from_millis(2)).end().await);
    assert!(said.ok.len() >= 40, "{said:?}");
    for (n, job) in &said.ok {
        let done = job.completion_within(GAP + ACK_WAIT).await;
        let done = done.unwrap_or_else(|error| panic!("job {n} is lost: {error}"));
        assert_eq!(done.status, Status::Done, "{n}");
    }
    is_empty(&site.nats().await).await;
    running.drain().await;
}

/// 38. R1. The broker is upgraded from 2.12.8 over 2.14.6 to 2.15.1 under a backlog of jobs, delays and
/// retries, with a worker that stays: nothing is lost or doubled.
#[tokio::test]
async fn a_broker_is_upgraded_under_a_live_backlog() {
    upgraded(Sync::Lazy).await;
}

/// 38. R1 with fsync. The same.
#[tokio::test]
async fn a_broker_with_fsync_is_upgraded_under_a_live_backlog() {
    upgraded(Sync::Always).await;
}

async fn upgraded(sync: Sync) {
    let folder = tempfile::tempdir().expect("a folder");
    let runs = Seen::default();
    let mut port = 0;
    let mut alive = None;
    let (mut jobs, mut waiting) = (Vec::new(), Vec::new());
    for (round, version) in (0..).zip(["2.12.8", "2.14.6", "2.15.1"]) {
        let broker = sync.builder().version(version).data_dir(folder.path()).port(port);
        let broker = broker.start().await.expect("a broker");
        assert_eq!(broker.version(), version);
        port = broker.url().rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
        if alive.is_none() {
            let client = impatient(broker.url(), short_leases(1)).await;
            let running = work_for(&client, &runs, Duration::from_millis(30)).await;
            alive = Some((client, running));
        }
        let (client, _) = alive.as_ref().expect("it is there");
        let mut said = Load::from(client, round * 1000, 150, Duration::from_millis(2)).end().await;
        assert!(said.refused.is_empty() && said.unknown.is_empty(), "{said:?}");
        jobs.append(&mut said.ok);
        for n in 0..10 {
            let n = round * 1000 + 500 + n;
            let job = NewJob::new(&numbered(n)).priority(Priority::Low);
            let job = client.enqueue(job.delay(Duration::from_secs(4))).await.expect("stored");
            waiting.push((n, job));
        }
        if version != "2.15.1" {
            // In the midst of it.
            broker.stop().await.expect("stops");
            continue;
        }
        let nats = async_nats::connect(broker.url()).await.expect("connects");
        for (n, job) in jobs.iter().chain(&waiting) {
            let done = completion(job).await;
            assert_eq!(done.status, Status::Done, "job {n}");
        }
        is_empty(&nats).await;
        assert_eq!(stream_messages(&nats, "TIDEMILL_RESULTS_default").await, 3 * 160);
        let (client, running) = alive.take().expect("it is there");
        let twice = runs.len() - 3 * (150 + 30) - 3 * 12;
        assert!(twice <= 2 * 16, "{twice} runs beyond what stopping twice explains");
        running.drain().await;
        drop(client);
    }
}

/// 5. Work stands still for no longer than the broker does, and 15 s.
#[tokio::test]
async fn work_stands_still_for_no_longer_than_the_broker_does() {
    let mill = short_mill(Sync::Lazy).await;
    let runs = Seen::default();
    let running = work(&mill.client, &runs).await;
    let producer = connect(mill.broker.url()).await;
    let load = Load::start(&producer, 300, Duration::from_millis(20));
    runs.wait_for(50).await;
    let from = Instant::now();
    mill.broker.kill().await.expect("killed");
    tokio::time::sleep(ACK_WAIT).await;
    mill.broker.restart().await.expect("back");
    let said = load.end().await;
    let nats = mill.nats().await;
    said.is_all_done(&mill.client, &nats, &runs, RECOVERY).await;
    let gap = longest_gap(&runs, from);
    assert!(gap < ACK_WAIT + GAP, "nothing was begun for {gap:?}");
    running.drain().await;
}
