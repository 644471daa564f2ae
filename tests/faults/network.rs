//! Lines that fail between clients and the broker.

use std::time::{Duration, Instant};

use tidemill::{Queue, Status};

use crate::proxy::Proxy;
use crate::support::chaos::Chaos;
use crate::support::island::Island;
use crate::support::load::{Load, goes_through, longest_gap, work, work_for};
use crate::support::process::at_broker;
use crate::support::proxy::{Door, FaultProxy, Way};
use crate::support::{
    ACK_WAIT, GAP, PATIENCE, R1, RECOVERY, Seen, Setup, Site, Sync, connect, eventually, impatient,
    lane_counts, short_leases, short_mill, stream_messages,
};

/// A producer goes on enqueueing while `breaks` goes on, and after it is over. Every call ends in its
/// bound (`Load` looks), what was told as stored is, and no job is there twice.
async fn a_producer_behind(site: &Site, breaks: impl AsyncFn(&FaultProxy)) {
    let proxy = FaultProxy::start(site.node().url()).await;
    let client = impatient(&proxy.url, short_leases(site.replicas())).await;
    let load = Load::start(&client, 120, Duration::from_millis(15));
    let nats = site.nats().await;
    eventually("some are stored", || async {
        (stream_messages(&nats, "TIDEMILL_JOBS_default").await >= 30).then_some(())
    })
    .await;
    breaks(&proxy).await;
    proxy.heal();
    let mut said = load.end().await;
    assert!(said.ok.len() >= 30, "{said:?}");
    // Soon after, everything goes as before.
    goes_through(&client, 1000, &mut said).await;
    for (n, error) in &said.refused {
        assert!(error.is_unavailable(), "{n}: {error:?}");
    }
    let stored = stream_messages(&nats, "TIDEMILL_JOBS_default").await as usize;
    assert!(stored >= said.ok.len(), "{stored} of {} are there", said.ok.len());
    let runs = Seen::default();
    let running = work(&site.hands, &runs).await;
    said.is_all_done(&site.client, &nats, &runs, RECOVERY).await;
    running.drain().await;
    site.copies_agree().await;
}

/// For as long as producers give up on a call and some have begun after that.
const A_WHILE: Duration = Duration::from_secs(3);

/// What becomes of the bytes to the broker, and of those to the producer, for a while.
async fn ways_for_a_while(proxy: &FaultProxy, to_broker: Way, to_producer: Way) {
    proxy.ways(to_broker, to_producer);
    tokio::time::sleep(A_WHILE).await;
}

/// 13. The line is dead, both ways: calls end as unknown or unavailable, none is told as stored.
#[tokio::test]
async fn a_producer_on_a_dead_line_is_told_the_truth() {
    let dead = async |proxy: &FaultProxy| ways_for_a_while(proxy, Way::Held, Way::Held).await;
    a_producer_behind(&Site::start(R1).await, dead).await;
}

/// 13. The line swallows bytes, both ways, and connections stay.
#[tokio::test]
async fn a_producer_whose_bytes_vanish_is_told_the_truth() {
    let lossy = async |proxy: &FaultProxy| ways_for_a_while(proxy, Way::Lost, Way::Lost).await;
    a_producer_behind(&Site::start(R1).await, lossy).await;
}

/// 13, 26. The way there works, the way back is dead: everything is stored, and nobody is told.
#[tokio::test]
async fn a_producer_that_hears_nothing_doubles_nothing() {
    let deaf = async |proxy: &FaultProxy| ways_for_a_while(proxy, Way::Pass, Way::Held).await;
    a_producer_behind(&Site::start(R1).await, deaf).await;
}

/// 13. The way back works, the way there is dead.
#[tokio::test]
async fn a_producer_that_is_not_heard_is_told_so() {
    let dumb = async |proxy: &FaultProxy| ways_for_a_while(proxy, Way::Held, Way::Pass).await;
    a_producer_behind(&Site::start(R1).await, dumb).await;
}

/// 13. Every connection is cut in the midst of what it carries, after few bytes, again and again.
#[tokio::test]
async fn a_producer_that_is_cut_off_in_mid_frame_goes_on() {
    a_producer_behind(&Site::start(R1).await, cuts_in_mid_frame).await;
}

async fn cuts_in_mid_frame(proxy: &FaultProxy) {
    for bytes in [1, 37, 150, 333, 700, 1024, 1500, 2222] {
        proxy.cut_after(bytes);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// 13. Bytes arrive one by one, a millisecond apart.
#[tokio::test]
async fn a_producer_on_a_trickling_line_goes_on() {
    let slow = async |proxy: &FaultProxy| ways_for_a_while(proxy, Way::Trickle, Way::Trickle).await;
    a_producer_behind(&Site::start(R1).await, slow).await;
}

/// 13. Connections are reset and then refused for a while.
#[tokio::test]
async fn a_producer_that_is_refused_goes_on_when_it_is_not() {
    a_producer_behind(&Site::start(R1).await, refuses_for_a_while).await;
}

async fn refuses_for_a_while(proxy: &FaultProxy) {
    proxy.door(Door::Refuses);
    proxy.reset();
    tokio::time::sleep(A_WHILE).await;
}

/// In a row: the way back is dead, and connections are cut in mid frame.
pub(crate) async fn producers_lines_fail(setup: Setup) {
    let site = Site::behind_a_line(setup).await;
    let deaf = async |proxy: &FaultProxy| ways_for_a_while(proxy, Way::Pass, Way::Held).await;
    a_producer_behind(&site, deaf).await;
    site.anew("connections are cut in mid frame").await;
    a_producer_behind(&site, cuts_in_mid_frame).await;
}

/// 14. A worker 200 ms away, more or less, whose connection is reset six times: everything is done, in
/// order of attempts, and no lease of a healthy connection is lost.
#[tokio::test]
async fn a_worker_on_a_slow_line_with_resets_loses_nothing() {
    const RESETS: usize = 6;
    let mill = short_mill(Sync::Lazy).await;
    let proxy = FaultProxy::start(mill.broker.url()).await;
    let client = connect(&proxy.url).await.with_queue_config(short_leases(1));
    let runs = Seen::default();
    let running = work(&client, &runs).await;
    proxy.ways(Way::Late(Duration::from_millis(200)), Way::Late(Duration::from_millis(200)));
    let load = Load::start(&mill.client, 120, Duration::from_millis(20));
    for _ in 0..RESETS {
        let seen = runs.len();
        runs.wait_for(seen + 12).await;
        proxy.reset();
    }
    let said = load.end().await;
    assert_eq!(said.ok.len(), 120, "the producer is not behind the line");
    let nats = mill.nats().await;
    let became = said.is_all_done(&mill.client, &nats, &runs, PATIENCE).await;
    assert!(became.extra_runs <= RESETS * 16, "{became:?}");
    running.drain().await;
}

/// 12, 13. A worker's line is dead one way or both for longer than its leases: another takes the jobs,
/// it stays silent about them when the line is back, and then works on.
#[tokio::test]
async fn a_worker_behind_a_half_open_line_stays_silent_and_comes_back() {
    let ways = [(Way::Held, Way::Pass), (Way::Pass, Way::Held), (Way::Held, Way::Held)];
    lines_of_a_worker_fail(R1, &ways).await;
}

/// The worker is heard and hears nothing.
pub(crate) async fn a_worker_is_cut_off(setup: Setup) {
    lines_of_a_worker_fail(setup, &[(Way::Pass, Way::Held)]).await;
}

async fn lines_of_a_worker_fail(setup: Setup, ways: &[(Way, Way)]) {
    let site = Site::behind_a_line(setup).await;
    let nats = site.nats().await;
    let proxy = FaultProxy::start(site.node().url()).await;
    let behind = connect(&proxy.url).await.with_queue_config(short_leases(setup.replicas()));
    let (cut_off, others) = (Seen::default(), Seen::default());
    let far = work_for(&behind, &cut_off, Duration::from_millis(50)).await;
    let near = work_for(&site.hands, &others, Duration::from_millis(50)).await;
    let mut said = crate::support::load::Said::default();
    for (round, (to_broker, to_client)) in (0..).zip(ways) {
        let load = Load::from(&site.client, round * 1000, 400, Duration::from_millis(20));
        let seen = cut_off.len();
        cut_off.wait_for(seen + 10).await;
        proxy.ways(*to_broker, *to_client);
        tokio::time::sleep(2 * ACK_WAIT).await;
        proxy.heal();
        said.add(load.end().await);
        assert!(said.unknown.is_empty() && said.refused.is_empty(), "{said:?}");
    }
    let all = Seen::default();
    said.is_all_done(&site.client, &nats, &all, RECOVERY).await;
    // It works again, alone.
    near.drain().await;
    let seen = cut_off.len();
    said.add(Load::from(&site.client, 9000, 20, Duration::from_millis(1)).end().await);
    cut_off.wait_for(seen + 20).await;
    said.is_all_done(&site.client, &nats, &all, RECOVERY).await;
    let jobs = ways.len() * 400 + 20;
    let extra = (cut_off.len() + others.len()).saturating_sub(jobs + jobs / 5);
    assert!(extra <= ways.len() * 16, "{extra} extra runs: more than it held when the line died");
    far.drain().await;
    site.copies_agree().await;
}

/// 12. A worker in a network of its own whose cable is pulled for three leases, twice: nothing is lost,
/// nothing ends twice or is buried by the deliveries that it missed, and it works on afterwards.
#[tokio::test]
async fn a_worker_whose_cable_is_pulled_loses_nothing_and_comes_back() {
    let Some(island) = Island::new() else { return };
    let site = Site::start(R1).await;
    let nats = site.nats().await;
    // The broker listens on loopback only; the cable ends here.
    let landing = FaultProxy::at(&island.address, site.node().url()).await;
    let chaos = Chaos::start(&site.url());
    let mut command = island.command(env!("CARGO_BIN_EXE_tidemill"), &[]);
    at_broker(&mut command, &landing.url);
    let far = chaos.worker_by(command, "far").await;
    let near = chaos.worker("near").await;
    let producer = chaos.producer("producer", 600, 40).await;
    for cut in 1..=2_u64 {
        eventually("some are done", || async {
            (stream_messages(&nats, "TIDEMILL_RESULTS_default").await >= cut * 100).then_some(())
        })
        .await;
        island.cut();
        tokio::time::sleep(3 * ACK_WAIT).await;
        island.heal();
    }
    producer.says("done").await;
    near.terminate().await;
    let report = chaos.holds(2, Duration::from_secs(30)).await;
    assert_eq!(report["enqueued"]["ok"], 600, "{report:#}");
    let extra = report["extra_runs"].as_u64().expect("a count");
    assert!(extra <= 2 * 8, "{extra} extra runs: more than it ran when the cable was pulled");
    far.terminate().await;
}

/// 14, 9. A server that falls silent without a word is noticed within 15 s: a worker whose connection is
/// dead for good works over a new one.
#[tokio::test]
async fn silence_is_noticed_within_fifteen_seconds() {
    let mill = short_mill(Sync::Lazy).await;
    let proxy = FaultProxy::start(mill.broker.url()).await;
    let behind = connect(&proxy.url).await.with_queue_config(short_leases(1));
    let runs = Seen::default();
    let running = work(&behind, &runs).await;
    let load = Load::start(&mill.client, 900, Duration::from_millis(20));
    runs.wait_for(20).await;
    let from = Instant::now();
    // Connections that are open now stay deaf; one that is made anew would be sound.
    proxy.deaf();
    let said = load.end().await;
    let nats = mill.nats().await;
    said.is_all_done(&mill.client, &nats, &runs, RECOVERY).await;
    let gap = longest_gap(&runs, from);
    assert!(gap < GAP, "nothing was begun for {gap:?}");
    running.drain().await;
}

/// 13. What a worker says of an attempt is stored, and the broker's word for it lost: the attempt has not
/// begun, so it costs none.
#[tokio::test]
async fn an_attempt_whose_announcement_is_unconfirmed_costs_none() {
    let mill = short_mill(Sync::Lazy).await;
    let nats = mill.nats().await;
    let proxy = Proxy::start(mill.broker.url()).await;
    let client = proxy.client().await.with_queue_config(short_leases(1));
    let runs = Seen::default();
    let running = work(&client, &runs).await;
    proxy.lose_answer_to("PUB tidemill.attempts");
    let mut headers = async_nats::HeaderMap::new();
    // It may have been begun before, as it says of itself, so that every attempt is announced.
    headers.insert("Tidemill-Attempts-Used", "0");
    let subject = "tidemill.jobs.default.normal.numbered.order-17";
    nats.request_with_headers(subject, headers, r#"{"n":1}"#.into()).await.expect("stored");
    proxy.met().await;
    runs.wait_for(1).await;
    let (n, attempt, _) = runs.all()[0];
    assert_eq!((n, attempt), (1, 1));
    let id = tidemill::JobId::new("order-17").expect("valid");
    let done = eventually("its end", || async {
        let ends = mill.client.completions_of(&Queue::default(), None, &id).await;
        ends.expect("reads").pop()
    })
    .await;
    assert_eq!((done.status, done.attempt), (Status::Done, 1));
    assert_eq!(lane_counts(&nats, "default", "normal").await.0, 0);
    running.drain().await;
}
