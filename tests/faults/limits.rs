//! No room: on the disk, in the account, for results; and lanes that hand out no more.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tidemill::embedded::Broker;
use tidemill::{JobContext, JobError, NewJob, Priority, Queue, Status};
use tokio::time::timeout;

use crate::support::disk::SmallDisk;
use crate::support::load::{Load, goes_through, is_empty, is_empty_of, work};
use crate::support::site::Login;
use crate::support::{
    ACK_WAIT, Numbered, R1, RECOVERY, Seen, Setup, Site, Sync, api, change, completion, eventually,
    impatient, numbered, short_leases, short_mill, stream_messages,
};

/// 17. R1. The disk is full, has room again, and the broker is restarted: what was confirmed before is
/// done, nothing was told as stored meanwhile that is not, and no run has two completions. Of jobs that
/// were done when it was full, some are in the queue again, handed out to nobody: the worker clears them
/// away.
#[tokio::test]
async fn a_full_disk_loses_nothing_that_was_confirmed() {
    a_disk_is_full(Sync::Lazy).await;
}

/// 17. R1 with fsync. The same.
#[tokio::test]
async fn a_full_disk_with_fsync_loses_nothing_that_was_confirmed() {
    a_disk_is_full(Sync::Always).await;
}

async fn a_disk_is_full(sync: Sync) {
    let Some(disk) = SmallDisk::of_mib(48) else { return };
    let broker = Broker::builder()
        .data_dir(disk.path().join("broker"))
        // Left alone it would be half of the disk, and the broker refuse before that is full.
        .jetstream_config(format!("max_file_store: 8GB\n{}", sync.config()));
    let broker = broker.start().await.expect("a broker");
    let client = impatient(broker.url(), short_leases(1)).await;
    let runs = Seen::default();
    let running = work(&client, &runs).await;
    let mut said = Load::start(&client, 100, Duration::from_millis(3)).end().await;
    assert_eq!(said.ok.len(), 100);
    disk.fill();
    // What a file has open may still take a little; large ones find no room.
    let large =
        || NewJob::raw("numbered", format!("{{\"n\":1,\"x\":\"{}\"}}", "x".repeat(200_000)));
    let refused = eventually("no room", || async { client.enqueue(large()).await.err() }).await;
    assert!(refused.is_unknown() || refused.is_full(), "{refused:?}");
    said.add(Load::from(&client, 1000, 20, Duration::from_millis(5)).end().await);
    disk.free();
    broker.restart().await.expect("back");
    goes_through(&client, 2000, &mut said).await;
    for (n, job) in &said.ok {
        let done = job.completion_within(RECOVERY).await;
        let done = done.unwrap_or_else(|error| panic!("job {n} is lost: {error}"));
        assert_eq!(done.status, Status::Done, "job {n}");
    }
    // That some of them are done and off the queue the disk had no room to note. They are there again,
    // though their consumer will not hand them out any more. The worker has to see them twice.
    let emptied = timeout(2 * RECOVERY, client.wait_empty(&Queue::default())).await;
    emptied.expect("what had ended is cleared away in time").expect("looks");
    for (_, job) in &said.ok {
        let ends = client.completions_of(job.queue(), None, job.id()).await.expect("reads").len();
        assert_eq!(ends, 1, "{job:?}");
    }
    running.drain().await;
    drop(broker);
}

/// An account with 8 MB for each copy, of which the queue takes six at most.
fn small_account(replicas: u8) -> String {
    let mb = 8 * u64::from(replicas);
    format!(
        "accounts {{ SMALL {{ jetstream {{ max_file: {mb}MB, max_mem: 1MB }}, \
         users: [{{ user: u, password: u }}] }} }}"
    )
}

/// 15, 16. The queue is full: the next job is refused, and none is dropped. The account is full, by other
/// streams: enqueues are told so as full, a job that is done meanwhile
/// waits to be recorded and is not run again, and all goes on by itself when there is room.
#[tokio::test]
async fn a_full_queue_and_a_full_account_are_told_and_gone_on_with() {
    queue_and_account_are_full(R1).await;
}

/// A queue, and then its account.
pub(crate) async fn queue_and_account_are_full(setup: Setup) {
    a_queue_is_full(setup).await;
    an_account_is_full(setup).await;
}

/// A queue with room for five jobs: the sixth is refused as such, none of the others is dropped, and there
/// is room when they are done.
async fn a_queue_is_full(setup: Setup) {
    let site = Site::start(setup).await;
    let nats = site.nats().await;
    change(&nats, "TIDEMILL_JOBS_default", json!({ "max_msgs": 5 })).await;
    let mut said = Load::from(&site.client, 1, 5, Duration::from_millis(1)).end().await;
    assert_eq!(said.ok.len(), 5, "{said:?}");
    let refused = Load::from(&site.client, 6, 1, Duration::from_millis(1)).end().await.refused;
    assert!(matches!(&refused[..], [(6, error)] if error.is_full()), "{refused:?}");
    let runs = Seen::default();
    let running = work(&site.hands, &runs).await;
    goes_through(&site.client, 7, &mut said).await;
    let became = said.is_all_done(&site.client, &nats, &runs, RECOVERY).await;
    assert_eq!(became.extra_runs, 0);
    running.drain().await;
    site.copies_agree().await;
}

async fn an_account_is_full(setup: Setup) {
    let mut config = short_leases(setup.replicas());
    config.max_jobs_bytes = 3 << 20;
    config.max_results_bytes = 1 << 20;
    config.max_dead_bytes = 1 << 20;
    let builder = setup.builder().config(small_account(setup.replicas()));
    let site = Site::of(setup, builder, Login::User("u"), config).await;
    let (client, nats) = (&site.client, site.nats().await);
    let replicas = setup.replicas();
    let other = json!({
        "name": "OTHER", "subjects": ["other"], "storage": "file", "num_replicas": replicas
    });
    assert!(api(&nats, "STREAM.CREATE.OTHER", other).await["error"].is_null());
    let seen = Seen::default();
    let (note, gate) = (seen.clone(), std::sync::Arc::new(tokio::sync::Semaphore::new(0)));
    let pass = gate.clone();
    let handler = move |job: Numbered, context: JobContext| {
        note.push((job.n, context.attempt()));
        let pass = pass.clone();
        async move {
            drop(pass.acquire().await);
            Ok::<_, JobError>(())
        }
    };
    let worker = site.worker().handle(handler).build().expect("valid");
    let running = worker.start().await.expect("starts");
    let job = client.enqueue(numbered(1)).await.expect("stored");
    seen.wait_for(1).await;
    for size in [100_000, 1000, 10] {
        loop {
            let stored = nats.request("other", vec![b'x'; size].into()).await.expect("an answer");
            let stored: Value = serde_json::from_slice(&stored.payload).expect("JSON");
            if !stored["error"].is_null() {
                break;
            }
        }
    }
    // Each of three servers hears a little later how much the others have used.
    let refused = eventually("no room", || async { client.enqueue(numbered(2)).await.err() }).await;
    assert!(refused.is_full(), "{refused:?}");
    gate.add_permits(1);
    let early = job.completion_within(2 * ACK_WAIT).await;
    if matches!(setup, Setup::One(_)) {
        assert!(early.expect_err("there is no room for its end").is_timeout());
    }
    api(&nats, "STREAM.PURGE.OTHER", Value::Null).await;
    gate.add_permits(10);
    let done = completion(&job).await;
    assert_eq!((done.status, done.attempt), (Status::Done, 1));
    let again = eventually("room", || async { client.enqueue(numbered(3)).await.ok() }).await;
    assert_eq!(completion(&again).await.status, Status::Done);
    is_empty(&nats).await;
    let mut runs = seen.all();
    runs.retain(|(n, _)| *n != 2);
    assert_eq!(runs, [(1, 1), (3, 1)], "each was run once");
    running.drain().await;
    site.copies_agree().await;
}

/// A worker whose jobs are done at once, fail once, or fail for good, by their number.
async fn by_number(site: &Site, queue: &str, runs: &Seen<(u64, u32)>) -> tidemill::Running {
    let note = runs.clone();
    let handler = move |job: Numbered, context: JobContext| {
        let attempt = context.attempt();
        note.push((job.n, attempt));
        async move {
            match job.n {
                0 => Ok(()),
                1 if attempt > 1 => Ok(()),
                1 => Err(JobError::failed("once").retry_after(Duration::from_millis(50))),
                _ => Err(JobError::discard("never")),
            }
        }
    };
    let worker = site.worker().queue(queue).handle(handler);
    worker.build().expect("valid").start().await.expect("starts")
}

/// What a stream of records lacks: itself, or room.
#[derive(Clone, Copy, Debug)]
enum Lacks {
    Stream,
    Room,
}

/// When a dead letter that found no place is tried again, 60 s later, and some time for it.
const TRIED_AGAIN: Duration = Duration::from_secs(60 + 15);

/// Which stream of records of a queue lacks what, for a job of which number; and how that ends, in how
/// many attempts.
#[derive(Clone, Copy, Debug)]
struct Case {
    /// So called that those of different cases can be beside each other.
    queue: &'static str,
    records: &'static str,
    lacks: Lacks,
    n: u64,
    end: Status,
    attempts: u32,
}

const NO_RESULTS: Case = Case {
    queue: "no-results",
    records: "RESULTS",
    lacks: Lacks::Stream,
    n: 0,
    end: Status::Done,
    attempts: 1,
};
const FULL_RESULTS: Case = Case { queue: "full-results", lacks: Lacks::Room, ..NO_RESULTS };
const NO_LEDGER: Case =
    Case { queue: "no-ledger", records: "ATTEMPTS", n: 1, attempts: 2, ..NO_RESULTS };
const FULL_LEDGER: Case = Case { queue: "full-ledger", lacks: Lacks::Room, ..NO_LEDGER };
const NO_LETTERS: Case =
    Case { queue: "no-letters", records: "DEAD", n: 2, end: Status::Dead, ..NO_RESULTS };

/// A stream of records cannot take any, then can: the job is kept and not run again meanwhile.
async fn records_wait(site: &Site, case: Case) {
    let Case { queue, records, lacks, n, end, attempts } = case;
    let stream = &format!("TIDEMILL_{records}_{queue}");
    let nats = site.nats().await;
    let name = Queue::new(queue).expect("valid");
    eventually("a queue", || async { site.hands.ensure_queue(&name).await.ok() }).await;
    let runs = Seen::default();
    let running = by_number(site, queue, &runs).await;
    let job_of = |n| NewJob::new(&numbered(n)).queue(queue);
    // Where there is no ledger to begin with, nothing is fetched.
    let before = site.client.enqueue(job_of(0)).await.expect("stored");
    completion(&before).await;
    is_empty_of(&nats, queue).await;
    let runs_of = || runs.all()[1..].to_vec();
    match lacks {
        Lacks::Stream => drop(api(&nats, &format!("STREAM.DELETE.{stream}"), Value::Null).await),
        // One byte is less than any record.
        Lacks::Room => {
            change(&nats, stream, json!({ "discard": "new", "max_bytes": 1 })).await;
        }
    }
    let job = site.client.enqueue(job_of(n)).await.expect("stored");
    runs.wait_for(2).await;
    let early = job.completion_within(ACK_WAIT + ACK_WAIT / 2).await;
    assert!(early.is_err_and(|error| error.is_timeout()), "{case:?}: its end cannot be recorded");
    assert_eq!(runs_of(), [(n, 1)], "{case:?}: it is kept by who ran it, and not run again");
    let kept = stream_messages(&nats, &format!("TIDEMILL_JOBS_{queue}")).await;
    assert_eq!(kept, 1, "{case:?}: it is still there");
    match lacks {
        Lacks::Stream => {
            eventually("its stream", || async { site.hands.ensure_queue(&name).await.ok() }).await;
        }
        Lacks::Room => change(&nats, stream, json!({ "max_bytes": 1 << 20 })).await,
    }
    let done = job.completion_within(TRIED_AGAIN).await;
    let done = done.unwrap_or_else(|error| panic!("{case:?}: not in time: {error}"));
    assert_eq!((done.status, done.attempt), (end, attempts), "{case:?}");
    let expected: Vec<_> = (1..=attempts).map(|attempt| (n, attempt)).collect();
    assert_eq!(runs_of(), expected, "{case:?}");
    is_empty_of(&nats, queue).await;
    running.drain().await;
}

/// 18. There is no results stream: the job that is done is not acked and not run again, and its
/// completion is stored as soon as there is one.
#[tokio::test]
async fn a_missing_results_stream_is_waited_for() {
    records_wait(&Site::start(R1).await, NO_RESULTS).await;
}

/// 18. The results stream takes no more: the same.
#[tokio::test]
async fn a_full_results_stream_is_waited_for() {
    records_wait(&Site::start(R1).await, FULL_RESULTS).await;
}

/// 18. There is no ledger: a failed attempt is neither forgotten nor repeated.
#[tokio::test]
async fn a_missing_ledger_is_waited_for() {
    records_wait(&Site::start(R1).await, NO_LEDGER).await;
}

/// 18. The ledger takes no more: the same.
#[tokio::test]
async fn a_full_ledger_is_waited_for() {
    records_wait(&Site::start(R1).await, FULL_LEDGER).await;
}

/// Beside each other, in a queue each: completions and ledger have no stream, and have no room.
pub(crate) async fn records_have_no_place(setup: Setup) {
    let site = Site::start(setup).await;
    let cases = [NO_RESULTS, FULL_RESULTS, NO_LEDGER, FULL_LEDGER];
    join_all(cases.map(|case| records_wait(&site, case))).await;
    site.copies_agree().await;
}

/// 19. There is no stream of dead letters, on one server and on three, without and with fsync: the job is
/// buried when there is one, without being run again.
#[tokio::test]
async fn a_missing_stream_of_dead_letters_is_waited_for() {
    let setups = [Sync::Lazy, Sync::Always].map(|sync| [Setup::One(sync), Setup::Three(sync)]);
    // What takes its time is the minute until it is tried again.
    join_all(setups.concat().into_iter().map(|setup| async move {
        let site = Site::start(setup).await;
        records_wait(&site, NO_LETTERS).await;
        site.copies_agree().await;
    }))
    .await;
}

/// 33. A lane's limit of unsettled jobs is used up by delayed retries: other lanes go on at full speed,
/// and the lane itself when the retries are due.
#[tokio::test]
async fn a_lane_that_is_saturated_by_retries_holds_up_no_other() {
    let mill = short_mill(Sync::Lazy).await;
    let nats = mill.nats().await;
    change(&nats, "TIDEMILL_JOBS_default/normal", json!({ "max_ack_pending": 20 })).await;
    let seen = Seen::default();
    let note = seen.clone();
    let handler = move |job: Numbered, context: JobContext| {
        let attempt = context.attempt();
        note.push((job.n, attempt));
        async move {
            if job.n < 20 && attempt == 1 {
                return Err(JobError::failed("once").retry_after(Duration::from_secs(6)));
            }
            Ok(())
        }
    };
    let running = mill.worker().handle(handler).build().expect("ok").start().await.expect("ok");
    let jobs = (0..30).map(|n| NewJob::new(&numbered(n)));
    let stored = mill.client.enqueue_many(jobs).await;
    let jobs: Vec<_> = stored.into_iter().map(|job| job.expect("stored")).collect();
    eventually("the limit is reached", || async {
        let info = "CONSUMER.INFO.TIDEMILL_JOBS_default.normal";
        let info = api(&nats, info, Value::Null).await;
        (info["num_ack_pending"] == 20 && info["num_pending"] == 10).then_some(())
    })
    .await;
    for n in 100..120 {
        let asked = Instant::now();
        let job = mill.client.enqueue(numbered(n)).priority(Priority::Low).await.expect("stored");
        completion(&job).await;
        assert!(asked.elapsed() < Duration::from_secs(1), "{n} took {:?}", asked.elapsed());
    }
    for (n, job) in jobs.iter().enumerate() {
        let done = completion(job).await;
        assert_eq!((done.status, done.attempt), (Status::Done, if n < 20 { 2 } else { 1 }));
    }
    running.drain().await;
}
