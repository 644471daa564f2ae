//! One broker that is killed, restarted, frozen, slow, or another version than before.

use std::time::{Duration, Instant};

use tidemill::embedded::Broker;
use tidemill::{NewJob, Priority, Status};

use crate::support::disk::slow_disk;
use crate::support::load::{Load, is_empty, longest_gap, work, work_for};
use crate::support::{
    ACK_WAIT, GAP, RECOVERY, Seen, Sync, completion, connect, eventually, impatient, numbered,
    short_leases, short_mill, stream_messages,
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
    let mill = short_mill(Sync::Lazy).await;
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
    let mill = short_mill(Sync::Always).await;
    let runs = Seen::default();
    let running = work(&mill.client, &runs).await;
    let nats = mill.nats().await;
    let pid = mill.broker.pid().expect("it runs");
    let Some(slow) = slow_disk(pid, Duration::from_millis(100)).await else { return };
    let asked = Instant::now();
    let said = Load::start(&mill.client, 24, Duration::from_millis(100)).end().await;
    assert!(asked.elapsed() > Duration::from_secs(2), "the disk is not slow");
    assert!(said.refused.is_empty(), "{:?}", said.refused);
    let became = said.is_all_done(&mill.client, &nats, &runs, Duration::from_secs(25)).await;
    assert_eq!(became.extra_runs, 0, "a lease was lost");
    drop(slow);
    running.drain().await;
}

/// 38. R1. The broker is upgraded from 2.12.8 over 2.14.6 to 2.15.1 under a backlog of jobs, delays and
/// retries, with a worker that stays: nothing is lost or doubled.
#[tokio::test]
async fn a_broker_is_upgraded_under_a_live_backlog() {
    let folder = tempfile::tempdir().expect("a folder");
    let runs = Seen::default();
    let mut port = 0;
    let mut alive = None;
    let (mut jobs, mut waiting) = (Vec::new(), Vec::new());
    for (round, version) in (0..).zip(["2.12.8", "2.14.6", "2.15.1"]) {
        let broker = Broker::builder().version(version).data_dir(folder.path()).port(port);
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
