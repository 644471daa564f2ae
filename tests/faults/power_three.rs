//! The power of one of three brokers is cut, and of all three at once: what they had not synced is gone.

use std::time::Duration;

use tempfile::TempDir;
use tidemill::embedded::Cluster;

use crate::cluster::{Leads, Three};
use crate::support::load::{Load, Said, confirmed, goes_through, work};
use crate::support::lost::Lost;
use crate::support::power::{Disk, Dropped, Names};
use crate::support::process::clear_away;
use crate::support::{RECOVERY, Seen, Sync, impatient, short_leases};

/// How often jobs are enqueued.
const PACE: Duration = Duration::from_millis(10);

/// Three brokers, each on a disk of its own that loses power.
struct PoweredThree {
    three: Three,
    disks: Vec<Disk>,
    _folder: TempDir,
}

impl PoweredThree {
    async fn start(sync: Sync) -> Option<Self> {
        let folder = TempDir::with_prefix("tidemill-power-").expect("a folder");
        let store = |node: u32| folder.path().join(format!("n{node}")).join("jetstream");
        let disks = (1..=3).map(|node| Disk::at(&store(node), Names::Journalled));
        let disks: Vec<Disk> = disks.collect::<Option<_>>()?;
        let template = sync.builder().data_dir(folder.path());
        let cluster = Cluster::start_with(3, template).await.expect("a cluster");
        let three = Three::of(cluster).await;
        three.caught_up().await;
        let started = Self { three, disks, _folder: folder };
        if let Sync::Lazy | Sync::EverySecond = sync {
            // The queue has been there for long.
            started.sync();
        }
        Some(started)
    }

    fn sync(&self) {
        self.disks.iter().for_each(Disk::sync);
    }

    async fn lose_power(&self, node: usize) -> Dropped {
        self.three.cluster.kill(node).await.expect("killed");
        self.disks[node].cut()
    }

    async fn restart(&self, node: usize) {
        self.three.cluster.restart(node).await.expect("back");
    }

    /// Power fails for all at once, and comes back.
    async fn cut_power(&self) {
        tokio::join!(self.lose_power(0), self.lose_power(1), self.lose_power(2));
        tokio::join!(self.restart(0), self.restart(1), self.restart(2));
        self.three.cluster.ready().await.expect("whole again");
    }

    async fn stop(self) {
        let Self { three, disks, .. } = self;
        three.cluster.stop().await.expect("stops");
        drop(disks);
    }
}

/// 8. R3. The leader loses power under load and comes back: the two others have all that it lost, and
/// nothing is lost.
#[tokio::test]
async fn one_of_three_that_loses_power_loses_nothing() {
    let Some(mill) = PoweredThree::start(Sync::Lazy).await else { return };
    let runs = Seen::default();
    let running = work(&mill.three.worker, &runs).await;
    let load = Load::start(&mill.three.client, 200, PACE);
    runs.wait_for(40).await;
    let leader = mill.three.leader(Leads::JobsStream).await;
    let dropped = mill.lose_power(leader).await;
    assert!(dropped.bytes > 0, "everything was synced");
    mill.restart(leader).await;
    let said = load.end().await;
    assert!(said.refused.is_empty(), "{:?}", said.refused);
    mill.three.cluster.ready().await.expect("whole again");
    mill.three.caught_up().await;
    said.have_ended(RECOVERY).await;
    clear_away(&mill.three.cluster.url()).await;
    let nats = mill.three.nats(0).await;
    // Who waits longer for an answer than producers here do.
    said.is_all_done(&mill.three.worker, &nats, &runs, RECOVERY).await;
    running.drain().await;
    mill.stop().await;
}

/// 8. R3 with fsync. All three lose power at once under load: what was confirmed is done, once by its
/// completion.
#[tokio::test]
async fn with_fsync_three_that_lose_power_at_once_lose_nothing() {
    let Some(mill) = PoweredThree::start(Sync::Always).await else { return };
    let runs = Seen::default();
    let running = work(&mill.three.worker, &runs).await;
    let load = Load::start(&mill.three.client, 200, PACE);
    runs.wait_for(60).await;
    mill.cut_power().await;
    let mut said = load.end().await;
    goes_through(&mill.three.client, 1000, &mut said).await;
    said.have_ended(RECOVERY).await;
    clear_away(&mill.three.cluster.url()).await;
    let nats = mill.three.nats(0).await;
    said.is_all_done(&mill.three.worker, &nats, &runs, RECOVERY).await;
    mill.three.caught_up().await;
    running.drain().await;
    mill.stop().await;
}

/// 8. R3. The same with the default: the newest are lost, and none between.
#[tokio::test]
async fn by_default_three_that_lose_power_at_once_lose_the_newest() {
    let Some(mill) = PoweredThree::start(Sync::Lazy).await else { return };
    let mut said = confirmed(&mill.three.client, 0, 100).await;
    mill.three.caught_up().await;
    mill.sync();
    said.add(confirmed(&mill.three.client, 1000, 100).await);
    mill.cut_power().await;
    let runs = Seen::default();
    let running = work(&mill.three.worker, &runs).await;
    let lost = said.lost(&mill.three.worker, &mill.three.nats(0).await, &runs).await;
    assert!(lost.are_newest(100), "{lost:?}");
    running.drain().await;
    mill.stop().await;
}

/// One server stands still, so that two confirm what it does not know; one of these is gone, the other
/// loses power: whoever comes back first must not agree with the one that stood still that there was
/// nothing.
async fn one_loses_power_while_another_lags(sync: Sync) -> Option<Lost> {
    let mill = PoweredThree::start(sync).await?;
    let leader = mill.three.leader(Leads::JobsStream).await;
    let (lags, leaves) = ((leader + 1) % 3, (leader + 2) % 3);
    let client = impatient(mill.three.cluster.node(leader).url(), short_leases(3)).await;
    let mut said = confirmed(&client, 0, 50).await;
    mill.three.caught_up().await;
    mill.sync();
    mill.three.cluster.node(lags).freeze().await.expect("freezes");
    said.add(confirmed(&client, 1000, 100).await);
    mill.three.cluster.kill(leaves).await.expect("killed");
    mill.lose_power(leader).await;
    mill.three.cluster.node(lags).thaw().await.expect("thaws");
    mill.restart(leader).await;
    let mut after = Said::default();
    goes_through(&mill.three.client, 3000, &mut after).await;
    mill.restart(leaves).await;
    let runs = Seen::default();
    let running = work(&mill.three.worker, &runs).await;
    let nats = mill.three.nats(0).await;
    let lost = said.lost(&mill.three.worker, &nats, &runs).await;
    let lost_after = after.lost(&mill.three.worker, &nats, &runs).await;
    assert_eq!(lost_after, Lost::default(), "what was confirmed afterwards");
    running.drain().await;
    mill.stop().await;
    Some(lost)
}

/// 8. R3 with fsync. One server loses power while another lags and the third is gone: nothing is lost.
#[tokio::test]
async fn with_fsync_one_that_loses_power_while_another_lags_loses_nothing() {
    let Some(lost) = one_loses_power_while_another_lags(Sync::Always).await else { return };
    assert_eq!(lost, Lost::default());
}

/// 8. R3. The same with the default: what only those two had is lost that are no longer there, and
/// nothing that is older.
#[tokio::test]
async fn by_default_one_that_loses_power_while_another_lags_loses_the_newest() {
    let Some(lost) = one_loses_power_while_another_lags(Sync::Lazy).await else { return };
    assert!(lost.are_newest(100), "{lost:?}");
}
