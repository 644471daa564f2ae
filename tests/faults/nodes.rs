//! Servers of three that become different from the others: one has no room on its disk, one after the
//! other is of another version.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use tidemill::embedded::Broker;
use tidemill::{NewJob, Priority, Status};

use crate::support::disk::SmallDisk;
use crate::support::held::Held;
use crate::support::load::{Load, Said, goes_through, is_empty, work, work_for};
use crate::support::site::Login;
use crate::support::{
    RECOVERY, Seen, Setup, Site, Sync, completion, numbered, short_leases, stream_messages,
};

/// 17. R3. The disk of the server that leads the jobs is full: it leaves JetStream, and the others go on,
/// so that enqueues are confirmed, refused or unknown, in time. It has room again and is restarted: what was
/// confirmed is done, nothing ends twice, and all servers hold the same.
#[tokio::test]
async fn a_full_disk_of_the_leader_loses_nothing_that_was_confirmed() {
    a_disk_is_full(Sync::Lazy).await;
}

/// 17. R3 with fsync. The same.
#[tokio::test]
async fn a_full_disk_of_the_leader_with_fsync_loses_nothing_that_was_confirmed() {
    a_disk_is_full(Sync::Always).await;
}

async fn a_disk_is_full(sync: Sync) {
    let folder = TempDir::with_prefix("tidemill-disks-").expect("a folder");
    let mut disks = Vec::new();
    for node in ["n1", "n2", "n3"] {
        let path = folder.path().join(node);
        std::fs::create_dir(&path).expect("a folder");
        let Some(disk) = SmallDisk::at(&path, 48) else { return };
        disks.push(disk);
    }
    let setup = Setup::Three(sync);
    // Left alone it would be half of the disk, and the servers refuse before that is full.
    let limits = format!("max_file_store: 8GB\n{}", sync.config());
    let builder = Broker::builder().jetstream_config(limits).data_dir(folder.path());
    let site = Site::of(setup, builder, Login::Nobody, short_leases(3)).await;
    let runs = Seen::default();
    let running = work(&site.hands, &runs).await;
    let mut said = Load::start(&site.client, 100, Duration::from_millis(3)).end().await;
    let leader = site.leader_of("TIDEMILL_JOBS_default").await;
    let full = disks.iter().find(|disk| leader.data_dir().starts_with(disk.path()));
    let full = full.expect("it is on one of them");
    full.fill();
    // What a file has open may still take a little; large ones find no room.
    let large = Load::of_size(&site.client, 1000, 40, Duration::from_millis(100), 200_000);
    said.add(large.end().await);
    let log = leader.log_tail(1000);
    assert!(log.contains("no space left on device"), "its disk is not full: {log}");
    full.free();
    site.give_back(leader).await;
    goes_through(&site.client, 2000, &mut said).await;
    let nats = site.nats().await;
    said.is_all_done(&site.client, &nats, &runs, RECOVERY).await;
    running.drain().await;
    site.copies_agree().await;
}

/// 38. R3. One server after the other is upgraded from 2.12.8 to 2.14.6, and then to 2.15.1, under a backlog
/// of jobs, delays and retries, with a worker that stays: nothing is lost or doubled, and all servers hold
/// the same in the end.
#[tokio::test]
async fn servers_are_upgraded_one_after_the_other() {
    upgraded(Sync::Lazy).await;
}

/// 38. R3 with fsync. The same.
#[tokio::test]
async fn servers_with_fsync_are_upgraded_one_after_the_other() {
    upgraded(Sync::Always).await;
}

async fn upgraded(sync: Sync) {
    let folder = TempDir::with_prefix("tidemill-versions-").expect("a folder");
    // What all servers are started from; which version that is changes.
    let program = folder.path().join("nats-server");
    symlink(installed("2.12.8").await, &program).expect("a link");
    let builder = sync.builder().nats_server(&program);
    let setup = Setup::Three(sync);
    let site = Site::of(setup, builder, Login::Nobody, short_leases(3)).await;
    let runs = Seen::default();
    let running = work_for(&site.hands, &runs, Duration::from_millis(30)).await;
    let (mut said, mut waiting) = (Said::default(), Vec::new());
    let mut held = Held::start(&site.hands, &site.url()).await;
    let mut first = 0;
    for version in ["2.14.6", "2.15.1"] {
        std::fs::remove_file(&program).expect("it is there");
        symlink(installed(version).await, &program).expect("a link");
        for node in site.nodes() {
            held.before().await;
            let load = Load::from(&site.client, first, 100, Duration::from_millis(20));
            for n in first + 500..first + 505 {
                let job = NewJob::new(&numbered(n)).priority(Priority::Low);
                let job = job.delay(Duration::from_secs(4));
                waiting.push(site.client.enqueue(job).await.expect("stored"));
            }
            node.kill().await.expect("killed");
            held.while_away().await;
            site.give_back(node).await;
            said.add(load.end().await);
            first += 1000;
        }
    }
    for node in 0..3 {
        held.are_there(node).await;
    }
    assert!(said.refused.is_empty(), "{:?}", said.refused);
    let nats = site.nats().await;
    assert_eq!(nats.server_info().version, "2.15.1");
    for job in &waiting {
        assert_eq!(completion(job).await.status, Status::Done);
    }
    for (n, job) in &said.ok {
        let done = job.completion_within(RECOVERY).await;
        let done = done.unwrap_or_else(|error| panic!("job {n} is lost: {error}"));
        assert_eq!(done.status, Status::Done, "job {n}");
    }
    is_empty(&nats).await;
    let ended = stream_messages(&nats, "TIDEMILL_RESULTS_default").await as usize;
    let known = said.ok.len() + waiting.len();
    assert!((known..=known + said.unknown.len()).contains(&ended), "{ended} of {known}");
    running.drain().await;
    site.copies_agree().await;
}

/// Where a version of the server is.
async fn installed(version: &str) -> PathBuf {
    let broker = Broker::builder().version(version).without_jetstream().start().await;
    let broker = broker.expect("a broker");
    let process = format!("/proc/{}/exe", broker.pid().expect("it runs"));
    let program = std::fs::read_link(Path::new(&process)).expect("it runs");
    broker.stop().await.expect("stops");
    program
}
