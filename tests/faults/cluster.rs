//! Three brokers of which one or two are lost, frozen, restarted, wiped or on their way out.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use tidemill::Client;
use tidemill::embedded::Cluster;
use tokio::time::timeout;

use crate::support::copies::{Copies, caught_up, jsz};
use crate::support::held::Held;
use crate::support::load::{Load, Runs, Said, goes_through, longest_gap, work};
use crate::support::process::signal;
use crate::support::site::Login;
use crate::support::{
    GAP, PATIENCE, RECOVERY, Seen, Sync, api, connect, eventually, impatient, short_leases,
};

const JOBS: &str = "TIDEMILL_JOBS_default";

/// How long after the servers have agreed on leaders work may stand still, where they took long: on a
/// machine that is busy with other tests, their elections do.
const AFTER_ELECTION: Duration = Duration::from_secs(8);

/// What a machine that is busy with other tests may add to how long work stands still.
const BUSY: Duration = Duration::from_secs(5);

/// A cluster with the default queue in three replicas, and a client that knows all servers.
pub(crate) struct Three {
    pub(crate) cluster: Cluster,
    /// For producers: it soon gives up.
    pub(crate) client: Client,
    /// For workers: it waits as long for an answer as one does by default.
    pub(crate) worker: Client,
}

/// Whose leader.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Leads {
    JobsStream,
    LaneConsumer,
    JetStream,
}

/// How a server is lost.
#[derive(Clone, Copy, Debug)]
enum Lost {
    Killed,
    Frozen,
}

impl Three {
    async fn start(sync: Sync) -> Self {
        let cluster = Cluster::start_with(3, sync.builder()).await.expect("a cluster");
        Self::of(cluster).await
    }

    pub(crate) async fn of(cluster: Cluster) -> Self {
        let client = impatient(&cluster.url(), short_leases(3)).await;
        let worker = connect(&cluster.url()).await.with_queue_config(short_leases(3));
        Self { cluster, client, worker }
    }

    /// A producer that asks for longer what became of its jobs, as one by default does: 20 s.
    async fn patient(&self) -> Client {
        let mut config = short_leases(3);
        config.ack_wait = Duration::from_secs(10);
        connect(&self.cluster.url()).await.with_queue_config(config)
    }

    /// A client of the bare protocol at a server that runs.
    pub(crate) async fn nats(&self, but: usize) -> async_nats::Client {
        let node = self.cluster.node((but + 1) % 3);
        async_nats::connect(node.url()).await.expect("connects")
    }

    /// Which server leads.
    pub(crate) async fn leader(&self, of: Leads) -> usize {
        let nats = self.nats(0).await;
        eventually(&format!("a leader: {of:?}"), || async {
            let name = match of {
                Leads::JobsStream => {
                    let info = api(&nats, &format!("STREAM.INFO.{JOBS}"), Value::Null).await;
                    info["cluster"]["leader"].as_str()?.to_owned()
                }
                Leads::LaneConsumer => {
                    let info = format!("CONSUMER.INFO.{JOBS}.normal");
                    let info = api(&nats, &info, Value::Null).await;
                    info["cluster"]["leader"].as_str()?.to_owned()
                }
                Leads::JetStream => meta_leader(&self.cluster).await?,
            };
            name.strip_prefix('n')?.parse::<usize>().ok()?.checked_sub(1)
        })
        .await
    }

    async fn lose(&self, node: usize, how: Lost) {
        match how {
            Lost::Killed => self.cluster.kill(node).await.expect("killed"),
            Lost::Frozen => self.cluster.node(node).freeze().await.expect("freezes"),
        }
    }

    async fn give_back(&self, node: usize, how: Lost) {
        match how {
            Lost::Killed => self.cluster.restart(node).await.expect("back"),
            Lost::Frozen => self.cluster.node(node).thaw().await.expect("thaws"),
        }
        self.cluster.ready().await.expect("whole again");
        self.caught_up().await;
    }

    /// Waits until all that work needs is led by another server than the lost one.
    async fn goes_on_without(&self, lost: usize) {
        let nats = self.nats(lost).await;
        let lost = format!("n{}", lost + 1);
        let streams = ["JOBS", "RESULTS", "ATTEMPTS"].into_iter();
        let streams = streams.map(|stream| format!("STREAM.INFO.TIDEMILL_{stream}_default"));
        for verb in streams.chain([format!("CONSUMER.INFO.{JOBS}.normal")]) {
            eventually(&format!("another leader: {verb}"), || async {
                let asked = api(&nats, &verb, Value::Null);
                let info = timeout(Duration::from_secs(1), asked).await.ok()?;
                info["cluster"]["leader"].as_str().filter(|leader| *leader != lost).map(drop)
            })
            .await;
        }
    }

    /// Jobs that somebody holds while servers come and go.
    async fn held(&self) -> Held {
        Held::start(&self.worker, &self.cluster.url()).await
    }

    /// Waits until every replica of every stream and consumer has all that its leader has.
    pub(crate) async fn caught_up(&self) {
        caught_up(&self.nats(0).await).await;
    }

    /// Looks that all servers hold the same.
    async fn copies_agree(&self) {
        Copies::agree(&self.cluster, Login::Nobody).await;
    }
}

/// What a server's monitor says of who leads JetStream.
async fn meta_leader(cluster: &Cluster) -> Option<String> {
    let jsz = jsz(cluster.node(0)).await?;
    Some(jsz["meta_cluster"]["leader"].as_str()?.to_owned())
}

/// A leader is killed, comes back, and another is frozen, and comes back, under load.
async fn leaders_are_lost(sync: Sync, of: Leads) {
    let three = Three::start(sync).await;
    let runs = Seen::default();
    let running = work(&three.worker, &runs).await;
    let (mut said, mut held) = (Said::default(), three.held().await);
    for (first, how) in [(0, Lost::Killed), (10_000, Lost::Frozen)] {
        let load = Load::from(&three.client, first, 1000, Duration::from_millis(15));
        some_more(&runs).await;
        held.before().await;
        let leader = three.leader(of).await;
        let from = Instant::now();
        three.lose(leader, how).await;
        three.goes_on_without(leader).await;
        let allowed = GAP.max(from.elapsed() + AFTER_ELECTION) + BUSY;
        some_more(&runs).await;
        let gap = longest_gap(&runs, from);
        assert!(gap < allowed, "{how:?} leader, {of:?}: nothing was begun for {gap:?}");
        held.while_away().await;
        three.give_back(leader, how).await;
        held.are_there(leader).await;
        said.add(load.end().await);
    }
    assert!(said.refused.is_empty(), "{:?}", said.refused);
    let nats = three.nats(0).await;
    let became = said.is_all_done(&three.client, &nats, &runs, RECOVERY).await;
    // What it had fetched, and could not record in time, may be run again.
    assert!(became.extra_runs <= 2 * 100, "{became:?}");
    three.caught_up().await;
    running.drain().await;
    three.copies_agree().await;
}

/// 9. R3. The jobs stream's leader is SIGKILLed, and one is SIGSTOPped: work stands still for no more
/// than 15 s, where an election takes no longer, nothing is lost, and all replicas agree in the end.
#[tokio::test]
async fn a_stream_leader_is_lost() {
    leaders_are_lost(Sync::Lazy, Leads::JobsStream).await;
}

/// 9. R3. The same with the leader of a lane's consumer.
#[tokio::test]
async fn a_consumer_leader_is_lost() {
    leaders_are_lost(Sync::Lazy, Leads::LaneConsumer).await;
}

/// 9. R3 with fsync. The same with the leader of JetStream as a whole.
#[tokio::test]
async fn the_leader_of_jetstream_is_lost() {
    leaders_are_lost(Sync::Always, Leads::JetStream).await;
}

/// Two of three servers are away for a while.
async fn quorum_is_lost(sync: Sync) {
    let three = Three::start(sync).await;
    let runs = Seen::default();
    let running = work(&three.worker, &runs).await;
    let mut said = Load::start(&three.client, 100, Duration::from_millis(5)).end().await;
    for node in [1, 2] {
        three.lose(node, Lost::Killed).await;
    }
    let meanwhile = Load::from(&three.client, 1000, 20, Duration::from_millis(20)).end().await;
    assert!(meanwhile.ok.is_empty(), "one of three cannot have confirmed {:?}", meanwhile.ok);
    for (n, error) in &meanwhile.refused {
        assert!(error.is_unavailable(), "{n}: {error:?}");
    }
    said.add(meanwhile);
    for node in [1, 2] {
        three.cluster.restart(node).await.expect("back");
    }
    three.cluster.ready().await.expect("whole again");
    goes_through(&three.client, 2000, &mut said).await;
    let nats = three.nats(0).await;
    said.is_all_done(&three.client, &nats, &runs, RECOVERY).await;
    three.caught_up().await;
    running.drain().await;
    three.copies_agree().await;
}

/// 10. R3. Two of three servers are SIGKILLed: no enqueue is told as stored, all end in time, and when
/// the two are back, everything is done.
#[tokio::test]
async fn without_a_quorum_nothing_is_promised() {
    quorum_is_lost(Sync::Lazy).await;
}

/// 10. R3 with fsync. The same.
#[tokio::test]
async fn without_a_quorum_nothing_is_promised_with_fsync() {
    quorum_is_lost(Sync::Always).await;
}

/// Under a load, waits until so many more have been run.
async fn some_more(runs: &Runs) {
    let seen = runs.len();
    runs.wait_for(seen + 40).await;
}

/// 11. R3. One server after the other is restarted under load, as in an upgrade, each when all replicas
/// have caught up: no enqueue fails, nothing is lost.
#[tokio::test]
async fn a_rolling_restart_fails_no_enqueue() {
    rolling_restart(Sync::Lazy).await;
}

/// 11. R3 with fsync. The same.
#[tokio::test]
async fn a_rolling_restart_with_fsync_fails_no_enqueue() {
    rolling_restart(Sync::Always).await;
}

async fn rolling_restart(sync: Sync) {
    let three = Three::start(sync).await;
    let runs = Seen::default();
    let running = work(&three.worker, &runs).await;
    let (mut said, mut held) = (Said::default(), three.held().await);
    let producer = three.patient().await;
    for node in 0..3 {
        held.before().await;
        let first = 1000 * node as u64;
        let load = Load::from(&producer, first, 500, Duration::from_millis(15));
        let load = load.each_within(PATIENCE);
        some_more(&runs).await;
        three.lose(node, Lost::Killed).await;
        held.while_away().await;
        three.give_back(node, Lost::Killed).await;
        said.add(load.end().await);
    }
    for node in 0..3 {
        held.are_there(node).await;
    }
    assert_eq!((said.unknown.len(), said.refused.len()), (0, 0), "{said:?}");
    let nats = three.nats(0).await;
    let became = said.is_all_done(&three.client, &nats, &runs, RECOVERY).await;
    assert!(became.extra_runs <= 3 * 100, "{became:?}");
    running.drain().await;
    three.copies_agree().await;
}

/// 11. R3. The stream's leader is told to leave (lame duck, SIGUSR2) and comes back: clients go
/// elsewhere, no enqueue fails, work hardly stands still.
#[tokio::test]
async fn a_lame_duck_fails_no_enqueue() {
    lame_duck(Sync::Lazy).await;
}

/// 11. R3 with fsync. The same.
#[tokio::test]
async fn a_lame_duck_with_fsync_fails_no_enqueue() {
    lame_duck(Sync::Always).await;
}

async fn lame_duck(sync: Sync) {
    let quick = "lame_duck_duration: \"30s\"\nlame_duck_grace_period: \"1s\"";
    let template = sync.builder().config(quick);
    let cluster = Cluster::start_with(3, template).await.expect("a cluster");
    let three = Three::of(cluster).await;
    let runs = Seen::default();
    let running = work(&three.worker, &runs).await;
    let mut held = three.held().await;
    let load = Load::start(&three.patient().await, 800, Duration::from_millis(15));
    let load = load.each_within(PATIENCE);
    some_more(&runs).await;
    held.before().await;
    let leader = three.leader(Leads::JobsStream).await;
    let duck = three.cluster.node(leader);
    let from = Instant::now();
    signal(duck.pid().expect("it runs"), Signal::USR2);
    duck.down().await;
    some_more(&runs).await;
    let gap = longest_gap(&runs, from);
    assert!(gap < GAP + BUSY, "nothing was begun for {gap:?}");
    held.while_away().await;
    three.give_back(leader, Lost::Killed).await;
    held.are_there(leader).await;
    let said = load.end().await;
    assert_eq!((said.unknown.len(), said.refused.len()), (0, 0), "{said:?}");
    let nats = three.nats(0).await;
    said.is_all_done(&three.client, &nats, &runs, RECOVERY).await;
    running.drain().await;
    three.copies_agree().await;
}

/// 11. R3. A server loses its whole store and comes back empty; when it has caught up, another is
/// killed: the two that are left, one of them the new one, have everything.
#[tokio::test]
async fn a_wiped_server_learns_everything_anew() {
    wiped(Sync::Lazy).await;
}

/// 11. R3 with fsync. The same.
#[tokio::test]
async fn a_wiped_server_with_fsync_learns_everything_anew() {
    wiped(Sync::Always).await;
}

async fn wiped(sync: Sync) {
    let three = Three::start(sync).await;
    let runs = Seen::default();
    // A backlog that nobody works yet.
    let mut said = Load::start(&three.client, 200, Duration::from_millis(2)).end().await;
    assert_eq!(said.ok.len(), 200);
    let wiped = (three.leader(Leads::JobsStream).await + 1) % 3;
    three.lose(wiped, Lost::Killed).await;
    std::fs::remove_dir_all(three.cluster.node(wiped).data_dir().join("jetstream")).expect("wiped");
    three.give_back(wiped, Lost::Killed).await;
    let other = (wiped + 1) % 3;
    three.lose(other, Lost::Killed).await;
    let running = work(&three.worker, &runs).await;
    said.add(Load::from(&three.client, 1000, 50, Duration::from_millis(5)).end().await);
    let nats = three.nats(other).await;
    said.is_all_done(&three.client, &nats, &runs, RECOVERY).await;
    running.drain().await;
    three.give_back(other, Lost::Killed).await;
    three.copies_agree().await;
}
