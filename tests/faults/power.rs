//! The power of a broker is cut: what it had not synced is gone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tidemill::embedded::Broker;
use tidemill::{Backoff, Client, Handler, JobContext, JobError, RetryPolicy, Worker};
use tokio::sync::Semaphore;

use crate::support::load::{Load, Said, confirmed, is_empty, work};
use crate::support::power::{Disk, Dropped, Names};
use crate::support::process::clear_away;
use crate::support::{
    ACK_WAIT, Numbered, RECOVERY, Seen, Sync, impatient, short_leases, stream_messages,
};

/// How often jobs are enqueued.
const PACE: Duration = Duration::from_millis(10);

/// A broker with the default queue, on a disk that loses power.
struct Powered {
    broker: Broker,
    client: Client,
    disk: Disk,
    _folder: TempDir,
}

impl Powered {
    async fn start(sync: Sync) -> Option<Self> {
        let folder = TempDir::with_prefix("tidemill-power-").expect("a folder");
        let disk = Disk::at(&folder.path().join("jetstream"), Names::Journalled)?;
        let broker = sync.builder().data_dir(folder.path()).start().await.expect("a broker");
        let client = impatient(broker.url(), short_leases(1)).await;
        if let Sync::Lazy | Sync::EverySecond = sync {
            // The queue has been there for long.
            disk.sync();
        }
        Some(Self { broker, client, disk, _folder: folder })
    }

    async fn cut_power(&self) -> Dropped {
        self.broker.kill().await.expect("killed");
        let dropped = self.disk.cut();
        self.broker.restart().await.expect("back");
        dropped
    }

    async fn nats(&self) -> async_nats::Client {
        async_nats::connect(self.broker.url()).await.expect("connects")
    }

    async fn stop(self) {
        self.broker.stop().await.expect("stops");
    }
}

/// 8. R1 with fsync. Power is cut five times under load: what was confirmed is done, once by its
/// completion, and hardly anything runs again.
#[tokio::test]
async fn with_fsync_a_power_cut_loses_nothing() {
    power_is_cut(5, 60, 0).await;
}

/// 8. R1 with fsync. The same with jobs of 64 KiB, so that blocks fill up, are begun and removed.
#[tokio::test]
async fn with_fsync_a_power_cut_loses_nothing_that_is_large() {
    power_is_cut(3, 100, 64 << 10).await;
}

/// Cuts power that often, each time when so many more jobs of so many bytes were begun.
async fn power_is_cut(cuts: usize, apart: usize, bytes: usize) {
    let Some(mill) = Powered::start(Sync::Always).await else { return };
    let runs = Seen::default();
    let running = work(&mill.client, &runs).await;
    let jobs = (cuts + 1) * apart + apart / 2;
    let load = Load::of_size(&mill.client, 0, jobs as u64, PACE, bytes);
    for cut in 1..=cuts {
        runs.wait_for(cut * apart).await;
        mill.cut_power().await;
    }
    let said = load.end().await;
    assert!(said.refused.is_empty(), "{:?}", said.refused);
    said.have_ended(RECOVERY).await;
    clear_away(mill.broker.url()).await;
    let nats = mill.nats().await;
    let became = said.is_all_done(&mill.client, &nats, &runs, RECOVERY).await;
    // What ran at a cut may run again, and no more: acks are synced as well.
    assert!(became.extra_runs <= cuts * 16, "{became:?}");
    running.drain().await;
    mill.stop().await;
}

/// 8. R1 with the default. Of jobs that were confirmed those are worked that the system had written by
/// then; what is lost are the newest, and none between.
#[tokio::test]
async fn by_default_a_power_cut_loses_the_newest() {
    let Some(mill) = Powered::start(Sync::Lazy).await else { return };
    let mut said = confirmed(&mill.client, 0, 100).await;
    mill.disk.sync();
    said.add(confirmed(&mill.client, 1000, 100).await);
    let dropped = mill.cut_power().await;
    assert!(dropped.bytes > 0, "everything was synced");
    let runs = Seen::default();
    let running = work(&mill.client, &runs).await;
    let lost = said.lost(&mill.client, &mill.nats().await, &runs).await;
    assert!(lost.are_newest(100) && lost.last > 0, "{lost:?}");
    running.drain().await;
    mill.stop().await;
}

/// 8. R1 with the default. Jobs that ended shortly before are there again, run again, and have one
/// completion each.
#[tokio::test]
async fn by_default_what_ended_last_runs_again_after_a_power_cut() {
    let Some(mill) = Powered::start(Sync::Lazy).await else { return };
    let said = confirmed(&mill.client, 0, 50).await;
    mill.disk.sync();
    let runs = Seen::default();
    let running = work(&mill.client, &runs).await;
    let nats = mill.nats().await;
    is_empty(&nats).await;
    let before = runs.len();
    assert_eq!(stream_messages(&nats, "TIDEMILL_RESULTS_default").await, 50);
    mill.cut_power().await;
    runs.wait_for(before + 50).await;
    said.is_all_done(&mill.client, &mill.nats().await, &runs, RECOVERY).await;
    running.drain().await;
    mill.stop().await;
}

/// 8. R1, synced every second. What was confirmed two seconds before the cut is there.
#[tokio::test]
async fn what_is_older_than_the_sync_interval_survives_a_power_cut() {
    let Some(mill) = Powered::start(Sync::EverySecond).await else { return };
    let mut said = confirmed(&mill.client, 0, 100).await;
    let newest = confirmed(&mill.client, 1000, 200).await;
    said.add(newest);
    mill.cut_power().await;
    let runs = Seen::default();
    let running = work(&mill.client, &runs).await;
    let lost = said.lost(&mill.client, &mill.nats().await, &runs).await;
    assert!(lost.are_newest(200), "{lost:?}");
    running.drain().await;
    mill.stop().await;
}

/// Who is given the jobs that are confirmed after a cut.
#[derive(Clone, Copy, Debug)]
enum GivenTo {
    WhoHasTheLost,
    Another,
}

/// A worker has jobs that a power cut takes from the broker, which gives out their sequences again: what
/// becomes of the lost ones is not taken for the end of those in their place.
async fn sequences_come_again(given_to: GivenTo) {
    let Some(mill) = Powered::start(Sync::Lazy).await else { return };
    let (runs, go) = (Seen::default(), Arc::new(Semaphore::new(0)));
    let worker = |at_once: usize| {
        let (note, go) = (runs.clone(), go.clone());
        let handler = move |job: Numbered, context: JobContext| {
            let (go, attempt) = (go.clone(), context.attempt());
            note.push((job.n, attempt, Instant::now()));
            async move {
                if job.n < 100 {
                    drop(go.acquire().await);
                    return Ok(());
                }
                if attempt > 1 { Ok(()) } else { Err(JobError::failed("once")) }
            }
        };
        let policy = RetryPolicy::new(5, Backoff::fixed(ACK_WAIT));
        let worker = Worker::builder(&mill.client).concurrency(at_once);
        worker.handler(Handler::new(handler).retry(policy)).build().expect("valid")
    };
    let at_once = match given_to {
        GivenTo::WhoHasTheLost => 20,
        GivenTo::Another => 5,
    };
    let first = worker(at_once).start().await.expect("starts");
    let lost = confirmed(&mill.client, 0, 5).await;
    runs.wait_for(5).await;
    mill.cut_power().await;
    let said = confirmed(&mill.client, 100, 5).await;
    let sequences = |said: &Said| said.ok.iter().map(|(_, job)| job.sequence()).collect::<Vec<_>>();
    assert_eq!(sequences(&lost), sequences(&said), "they do not come again");
    let second = match given_to {
        GivenTo::WhoHasTheLost => None,
        GivenTo::Another => Some(worker(20).start().await.expect("starts")),
    };
    // They fail once. While they back off, the others end.
    runs.wait_for(10).await;
    go.close();
    said.have_ended(RECOVERY).await;
    is_empty(&mill.nats().await).await;
    assert_eq!(runs.len(), 5 + 2 * 5, "{:?}", runs.all());
    for running in [Some(first), second].into_iter().flatten() {
        running.drain().await;
    }
    mill.stop().await;
}

/// 8. R1 with the default. Jobs that are confirmed after a power cut get sequences that lost ones had
/// before: their worker runs them, though it has the lost ones in hands.
#[tokio::test]
async fn a_worker_does_not_take_new_jobs_for_those_that_a_power_cut_took() {
    sequences_come_again(GivenTo::WhoHasTheLost).await;
}

/// 8. R1 with the default. The same with another worker: the end of the lost ones is not theirs.
#[tokio::test]
async fn the_end_of_jobs_that_a_power_cut_took_is_not_that_of_new_ones() {
    sequences_come_again(GivenTo::Another).await;
}
