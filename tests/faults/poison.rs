//! Messages that no client library would write, and that ours breaks down over: it panics, or lets go of
//! the connection. Whoever may publish jobs may publish these.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use tidemill::embedded::Broker;
use tidemill::{
    Client, ConnectOptions, DeadLetter, Handler, JobContext, JobError, JobFilter, JobId, JobInfo,
    NewJob, Priority, Queue, RetryPolicy, Running, Status, TroubleKind, Worker,
};

use crate::support::load::is_empty;
use crate::support::process::{Process, program};
use crate::support::raw::publish_raw;
use crate::support::{
    GAP, Mill, NOTHING, Numbered, PATIENCE, Sync, completion, dead, eventually, numbered,
    short_leases, short_mill, stream_messages, worker_without,
};

/// The subject of a job with this id.
fn subject(id: &[u8]) -> Vec<u8> {
    [b"tidemill.jobs.default.normal.numbered.", id].concat()
}

/// A header block of these lines.
fn block(lines: &[u8]) -> Vec<u8> {
    [b"NATS/1.0\r\n", lines, b"\r\n\r\n"].concat()
}

/// Headers over which the client library panics.
fn panics() -> Vec<u8> {
    block(b"X-Name: a\rb")
}

async fn start(mill: &Mill) -> Running {
    let handler = |_: Numbered, _: JobContext| async { Ok::<_, JobError>(()) };
    mill.worker().handle(handler).build().expect("valid").start().await.expect("starts")
}

/// Works a job that must not be held up, and costs no attempt.
async fn good_ones(mill: &Mill, count: u64) {
    for n in 1..=count {
        let job = mill.client.enqueue(numbered(n)).await.expect("stored");
        let done = job.completion_within(GAP).await.expect("not held up");
        assert_eq!((done.status, done.attempt), (Status::Done, 1), "{n}");
    }
}

/// 24. Headers and subjects that break the connection of whoever they are sent to: each such job is buried
/// with the reason, whole, and neither the worker nor the others are held up.
#[tokio::test]
async fn what_cannot_be_read_is_buried_and_holds_up_nothing() {
    let long = [&b"X: "[..], &[0xff; 60_000]].concat();
    let many = b"\xffa: b\r\n".repeat(7_000);
    // By the id: headers, what is wrong with it, and whether that is in the subject.
    let table: [(&[u8], Vec<u8>, &str); 16] = [
        (b"stray", panics(), "carriage return"),
        (b"newer", block(b"Tidemill-Protocol: 9\r\nX: a\rb"), "carriage return"),
        (b"stray-in-next-line", block(b"X: a\n\rb"), "carriage return"),
        (b"stray-in-our-own", block(b"Tidemill-Tags: a\rb"), "carriage return"),
        (b"no-text", block(b"X: \xff\xfe"), "UTF-8"),
        (b"no-name", block(b"\xc3\xbc: a"), "name"),
        (b"space-in-name", block(b"a b: c"), "name"),
        (b"no-colon", block(b"no colon here"), "colon"),
        (b"behind-the-end", [block(b"a: b"), b"c".to_vec()].concat(), "colon"),
        (b"no-version", b"rubbish\r\n\r\n".to_vec(), "NATS/1.0"),
        (b"one-byte", b"x".to_vec(), "NATS/1.0"),
        (b"long", block(&long), "UTF-8"),
        (b"many", block(&many), "UTF-8"),
        (b"\xff", Vec::new(), "UTF-8"),
        (b"a\x0bb", block(b"a: b"), "white space"),
        (b"a\rb", block(b"a: b"), "white space"),
    ];
    let mill = short_mill(Sync::Lazy).await;
    let running = start(&mill).await;
    let mut flaws = HashMap::new();
    for (n, (id, headers, flaw)) in table.into_iter().enumerate() {
        publish_raw(&mill.broker, [(subject(id), headers.clone())]).await;
        good_ones(&mill, 3).await;
        let name = String::from_utf8_lossy(id).into_owned();
        let letter = eventually(&format!("a letter of {name:?}"), || async {
            dead(&mill).await.into_iter().nth(n)
        })
        .await;
        let is_about_subject = !id.is_ascii() || id.iter().any(u8::is_ascii_control);
        assert!(is_about_subject || letter.id.as_str() == name, "{letter:?}");
        let reason = if is_about_subject { "bad_subject" } else { "bad_header" };
        assert_eq!((letter.info.reason.as_str(), letter.info.attempts), (reason, 0));
        assert!(letter.info.errors[0].message.contains(flaw), "{name}: {letter:?}");
        assert_eq!(letter.payload, &b"{\"n\":0}"[..]);
        flaws.insert(name, (headers, letter));
    }
    is_empty(&mill.nats().await).await;
    // The headers are kept as they were, as far as there is room.
    let (headers, letter) = &flaws["no-text"];
    assert_eq!(kept_block(letter), *headers);
    let (headers, letter) = &flaws["long"];
    assert_eq!(kept_block(letter), headers[..18 * 1024]);
    assert!(running.health().is_ready(), "{:?}", running.health());
    running.drain().await;
}

fn kept_block(letter: &DeadLetter) -> Vec<u8> {
    use base64::Engine;
    let block = letter.headers.get("Tidemill-Header-Block").expect("kept");
    base64::engine::general_purpose::STANDARD.decode(block).expect("base64")
}

/// 24. What looks hostile and can be read is a job like any other.
#[tokio::test]
async fn what_can_be_read_is_a_job() {
    let table: [(&[u8], Vec<u8>); 8] = [
        (b"status", b"NATS/1.0 404 No Messages\r\n\r\n".to_vec()),
        (b"broker", b"NATS/1.0 409 Consumer Deleted\r\nA: b\r\n\r\n".to_vec()),
        (b"idle", b"NATS/1.0 100 Idle\r\n\r\n".to_vec()),
        (b"no-end", b"NATS/1.0".to_vec()),
        (b"line-feeds", b"NATS/1.0\nA: b\n\n".to_vec()),
        (b"no-name", block(b": a")),
        (b"goes-on", block(b"A: b\r\n c")),
        (b"control", block(b"A: \x00\x01\x1b[2J\x7f")),
    ];
    let mill = short_mill(Sync::Lazy).await;
    let running = start(&mill).await;
    for (id, headers) in table {
        publish_raw(&mill.broker, [(subject(id), headers)]).await;
        let id = JobId::new(std::str::from_utf8(id).expect("text")).expect("valid");
        let ended = eventually("an end", || async {
            mill.client.completions_of(&Queue::default(), None, &id).await.expect("reads").pop()
        })
        .await;
        assert_eq!((ended.status, ended.attempt), (Status::Done, 1), "{id}");
    }
    running.drain().await;
}

/// 24. A message over which the client library panics: the worker's process goes on, with the jobs that
/// it is at, and buries it.
#[tokio::test]
async fn a_panic_of_the_client_library_ends_no_worker() {
    let mill = short_mill(Sync::Lazy).await;
    let url = mill.broker.url();
    let worker = Process::worker(url, &["--exec", "slow=sleep 4", "--exec", "quick=true"]).await;
    let slow = mill.client.enqueue(NewJob::raw("slow", "{}")).await.expect("stored");
    eventually("it runs", || async {
        let running = mill.client.running(&Queue::default()).await.expect("asks");
        (!running.is_empty()).then_some(())
    })
    .await;
    publish_raw(&mill.broker, [(subject(b"odd"), panics())]).await;
    let quick = mill.client.enqueue(NewJob::raw("quick", "{}")).await.expect("stored");
    let done = quick.completion_within(GAP).await.expect("not held up");
    assert_eq!((done.status, done.attempt), (Status::Done, 1));
    let letter = eventually("a dead letter", || async { dead(&mill).await.pop() }).await;
    assert_eq!((letter.info.reason.as_str(), letter.id.as_str()), ("bad_header", "odd"));
    // The lease was kept over it: nobody ran that job once more.
    let done = completion(&slow).await;
    assert_eq!((done.status, done.attempt), (Status::Done, 1));
    is_empty(&mill.nats().await).await;
    // It is still registered, and hears what it is told.
    eventually("it is asked", || async {
        let info = mill.nats().await.request("$SRV.INFO.tidemill-worker", "".into()).await;
        info.is_ok().then_some(())
    })
    .await;
    assert!(worker.heard().contains("broke down"), "{}", worker.heard());
    worker.terminate().await;
}

/// 24. Who shares a connection over which its client dies again and again: what is asked is answered, and
/// what is sent is taken, also in the moment in which there is none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_asked_while_the_client_dies_is_answered() {
    const DEATHS: usize = 20;
    let mill = short_mill(Sync::Lazy).await;
    let running = start(&mill).await;
    let done = AtomicBool::new(false);
    let asked = AtomicU64::new(0);
    let ask = async || {
        while !done.load(Ordering::Relaxed) {
            let queue = Queue::default();
            let job = mill.client.enqueue(numbered(asked.fetch_add(1, Ordering::Relaxed))).await;
            match job {
                Ok(job) => {
                    let ended = job.completion_within(GAP).await.expect("told of");
                    assert_eq!((ended.status, ended.attempt), (Status::Done, 1));
                }
                // It was on its way: nobody can know.
                Err(error) => assert!(error.is_unknown(), "{error:?}"),
            }
            let unknown = JobId::new("nowhere").expect("valid");
            let found = mill.client.completions_of(&queue, None, &unknown).await.expect("read");
            assert!(found.is_empty());
            mill.client.running(&queue).await.expect("gathered");
        }
    };
    let kill = async {
        for n in 0..DEATHS {
            publish_raw(&mill.broker, [(subject(format!("bad-{n}").as_bytes()), panics())]).await;
            eventually("a letter", || async { dead(&mill).await.into_iter().nth(n) }).await;
        }
        done.store(true, Ordering::Relaxed);
    };
    tokio::join!(ask(), ask(), kill);
    is_empty(&mill.nats().await).await;
    running.drain().await;
}

/// 24. The client dies at moments at which lanes are about to ask for jobs, as they all are when a worker
/// starts: each asks again.
#[tokio::test]
async fn lanes_that_cannot_ask_while_the_client_dies_ask_again() {
    const QUEUES: usize = 8;
    const STARTS: u64 = 4;
    let mill = short_mill(Sync::Lazy).await;
    let names = (0..QUEUES).map(|n| Queue::new(format!("q{n}")).expect("valid"));
    let queues: Vec<Queue> = names.collect();
    for queue in &queues {
        mill.client.ensure_queue(queue).await.expect("made");
    }
    for n in 0..STARTS {
        let bad = |queue| format!("tidemill.jobs.{queue}.high.numbered.bad-{n}").into_bytes();
        publish_raw(&mill.broker, queues.iter().map(|queue| (bad(queue), panics()))).await;
        let worker = mill.worker().handle(|_: Numbered, _| async { Ok::<_, JobError>(()) });
        let worker = queues.iter().fold(worker, |worker, queue| worker.queue(queue.as_str()));
        let running = worker.build().expect("valid").start().await.expect("starts");
        let lanes = queues.iter().flat_map(|queue| Priority::ALL.map(|priority| (queue, priority)));
        let good = lanes.map(|(queue, lane)| NewJob::new(&numbered(n)).queue(queue).priority(lane));
        for job in mill.client.enqueue_many(good).await {
            let done = job.expect("stored").completion_within(GAP).await.expect("not held up");
            assert_eq!((done.status, done.attempt), (Status::Done, 1), "{done:?}");
        }
        running.drain().await;
    }
}

/// 24. Hundreds of them, among jobs that run already: all are buried, and no job is charged an attempt.
#[tokio::test]
async fn hundreds_of_them_hold_up_nothing_for_long() {
    const POISON: u32 = 300;
    // Of each. A connection is made anew in a hundredth of a second, on a busy machine in more.
    const HELD_UP: Duration = Duration::from_millis(150);
    let mill = short_mill(Sync::Lazy).await;
    let bad = (0..POISON).map(|n| (subject(format!("bad-{n}").as_bytes()), panics()));
    publish_raw(&mill.broker, bad).await;
    let good = (1..=200).map(|n| NewJob::new(&numbered(n)));
    let good = mill.client.enqueue_many(good).await;
    let running = start(&mill).await;
    let begun = Instant::now();
    for job in good {
        let done = completion(&job.expect("stored")).await;
        assert_eq!((done.status, done.attempt), (Status::Done, 1));
    }
    let took = begun.elapsed();
    is_empty(&mill.nats().await).await;
    assert_eq!(dead(&mill).await.len(), POISON as usize);
    assert!(took < POISON * HELD_UP, "{took:?}");
    running.drain().await;
}

/// 24. No bytes in the place of headers end a worker, and each job with such ends.
#[tokio::test]
async fn no_bytes_for_headers_end_a_worker() {
    const CASES: usize = 150;
    let piece = prop_oneof![
        Just(b"\r".to_vec()),
        Just(b"\n".to_vec()),
        Just(b"\r\n".to_vec()),
        Just(b": ".to_vec()),
        Just(b" ".to_vec()),
        Just(b"X-A".to_vec()),
        Just(b"Nats-Sequence: 1".to_vec()),
        Just(b"Tidemill-Timeout: 5".to_vec()),
        Just("\u{a0}\u{85}".as_bytes().to_vec()),
        vec(any::<u8>(), 0..8),
    ];
    let start_of = prop_oneof![
        8 => Just(b"NATS/1.0\r\n".to_vec()),
        1 => Just(b"NATS/1.0 404 No\r\n".to_vec()),
        1 => Just(Vec::new()),
    ];
    let blocks = (start_of, vec(piece, 0..12), any::<bool>()).prop_map(|(start, pieces, ends)| {
        let end: &[u8] = if ends { b"\r\n\r\n" } else { b"" };
        [start, pieces.concat(), end.to_vec()].concat()
    });
    let mut runner = TestRunner::deterministic();
    let blocks = (0..CASES).map(|_| blocks.new_tree(&mut runner).expect("a block").current());
    let mill = short_mill(Sync::Lazy).await;
    let running = start(&mill).await;
    let jobs: Vec<_> =
        blocks.enumerate().map(|(n, block)| (subject(format!("n{n}").as_bytes()), block)).collect();
    for some in jobs.chunks(10) {
        publish_raw(&mill.broker, some.to_vec()).await;
        good_ones(&mill, 1).await;
    }
    is_empty(&mill.nats().await).await;
    let ended = stream_messages(&mill.nats().await, "TIDEMILL_RESULTS_default").await;
    assert_eq!(ended, (CASES + CASES / 10) as u64, "each has ended");
    assert!(running.health().is_ready(), "{:?}", running.health());
    running.drain().await;
}

async fn listed(mill: &Mill, state: Option<&str>) -> Vec<JobInfo> {
    let mut filter = JobFilter::default();
    filter.state = state.map(str::to_owned);
    mill.client.jobs(filter).try_collect().await.expect("a list")
}

/// 24. Where such are in the streams, lists go on: they are listed as what they are, or left out as what
/// no worker wrote.
#[tokio::test]
async fn lists_go_on_over_what_cannot_be_read() {
    let mill = short_mill(Sync::Lazy).await;
    let done = mill.client.enqueue(numbered(1)).await.expect("stored");
    let failing = mill.client.enqueue(NewJob::raw("failing", "{}")).await.expect("stored");
    let handler = Handler::raw("failing", |_, _| async { Err(JobError::failed("no")) });
    let once = RetryPolicy::new(0, tidemill::Backoff::default());
    let worker = mill.worker().handle(|_: Numbered, _| async { Ok::<_, JobError>(()) });
    let running = worker.handler(handler.retry(once)).build().expect("ok").start().await;
    completion(&done).await;
    completion(&failing).await;
    running.expect("starts").drain().await;

    for stream in ["results", "attempts", "dead"] {
        let subject = |id| format!("tidemill.{stream}.default.numbered.{id}._").into_bytes();
        let bad = [(subject("bad"), panics()), (subject("worse"), block(b"X: \xff"))];
        publish_raw(&mill.broker, bad).await;
    }
    for n in 0..3 {
        mill.client.enqueue(numbered(n)).id(format!("before-{n}")).await.expect("stored");
    }
    let bad = [
        (subject(b"bad"), panics()),
        (subject(b"forged"), block(b"Nats-Sequence: 1\r\nNats-Subject: x")),
        (subject(b"worse"), block(b"X: \xff")),
        (subject(b"cut"), b"NATS/1.0".to_vec()),
        (subject(b"a\rb"), Vec::new()),
    ];
    publish_raw(&mill.broker, bad).await;
    mill.client.enqueue(numbered(9)).id("after").await.expect("stored");

    let before = connection_number(&mill).await;
    for _ in 0..3 {
        let jobs = listed(&mill, None).await;
        let told: Vec<(&str, bool)> =
            jobs.iter().map(|job| (job.id.as_str(), job.problem.is_some())).collect();
        assert_eq!(told.len(), 9, "{told:?}");
        let named = |id: &str| told.iter().find(|(known, _)| *known == id).map(|(_, bad)| *bad);
        for (id, is_bad) in [
            ("before-0", false),
            ("bad", true),
            ("forged", false),
            ("worse", true),
            ("cut", false),
            ("after", false),
        ] {
            assert_eq!(named(id), Some(is_bad), "{id}: {told:?}");
        }
        assert_eq!(listed(&mill, Some("done")).await.len(), 1);
        assert_eq!(dead(&mill).await.len(), 1);
        let id = JobId::new("bad").expect("valid");
        let found = mill.client.job(&Queue::default(), None, &id).await.expect("found");
        assert!(found[0].problem.is_some(), "{found:?}");
        assert_eq!(done.completion().await.expect("read").status, Status::Done);
        let counted = mill.client.unfinished(&Queue::default()).await.expect("counted");
        assert_eq!(counted, 9);
    }
    let shown = program(mill.broker.url(), &["job", "ls", "--json"]).output().await.expect("runs");
    let shown = String::from_utf8(shown.stdout).expect("text");
    assert_eq!(shown.lines().count(), 9, "{shown}");
    assert_eq!(shown.matches("stands for headers that cannot be read").count(), 2, "{shown}");
    // Each costs the connection at most once, and is known from then on.
    let lost = connection_number(&mill).await - before - 1;
    assert!((1..=10).contains(&lost), "{lost} connections");
    // One that is taken away is missed no more than any other.
    let id = JobId::new("bad").expect("valid");
    mill.client.cancel(&Queue::default(), None, &id, "no").await.expect("cancelled");
    assert_eq!(listed(&mill, None).await.len(), 8);
}

/// The number that the broker gives to a new connection: it counts them.
async fn connection_number(mill: &Mill) -> u64 {
    mill.nats().await.server_info().client_id
}

/// 24. A job that gives itself the broker's headers is found by its own place: what is done to it is done
/// to no other.
#[tokio::test]
async fn who_forges_the_brokers_headers_has_no_other_job_cancelled() {
    let mill = short_mill(Sync::Lazy).await;
    let victim = mill.client.enqueue(numbered(1)).id("victim").await.expect("stored");
    let forged = format!(
        "Nats-Sequence: {}\r\nNats-Subject: tidemill.jobs.default.normal.numbered.victim",
        victim.sequence().expect("known")
    );
    publish_raw(&mill.broker, [(subject(b"forger"), block(forged.as_bytes()))]).await;
    let forger = JobId::new("forger").expect("valid");
    mill.client.cancel(&Queue::default(), None, &forger, "no").await.expect("cancelled");
    let left = listed(&mill, None).await;
    assert_eq!(left.iter().map(|job| job.id.as_str()).collect::<Vec<_>>(), ["victim"]);
    let running = start(&mill).await;
    assert_eq!(completion(&victim).await.status, Status::Done);
    running.drain().await;
}

/// 24. A timer that cannot be read: its job is buried when it is due, and other timers fire.
#[tokio::test]
async fn a_timer_that_cannot_be_read_is_buried_when_it_is_due() {
    let mill = short_mill(Sync::Lazy).await;
    let running = start(&mill).await;
    let due = b"tidemill.due.default.normal.numbered.odd.r1".to_vec();
    publish_raw(&mill.broker, [(due, panics())]).await;
    // What is not found at once is found when it is handed out again, which for timers takes 30 s.
    let mut letter = None;
    for _ in 0..2 * PATIENCE.as_secs() {
        letter = dead(&mill).await.pop();
        if letter.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let letter = letter.expect("a dead letter");
    assert_eq!((letter.info.reason.as_str(), letter.id.as_str()), ("bad_header", "odd"));
    assert_eq!(kept_block(&letter), panics());
    let soon = chrono::Utc::now() + chrono::TimeDelta::seconds(1);
    let timed = mill.client.enqueue(numbered(1)).run_at(soon).await.expect("stored");
    assert_eq!(completion(&timed).await.status, Status::Done);
    is_empty(&mill.nats().await).await;
    running.drain().await;
}

/// 24, 30. Without the right to look at single messages nobody can bury such a job: it costs a connection
/// each time that its lease is over. The worker says so, works on, and buries it when it may.
#[tokio::test]
async fn without_the_right_to_look_the_worker_says_so_and_works_on() {
    let get = "$JS.API.STREAM.MSG.GET.TIDEMILL_JOBS_default";
    let broker = Broker::builder()
        .config(worker_without(get, NOTHING))
        .connect_with(|options| options.user_password("admin", "admin"))
        .start()
        .await
        .expect("a broker");
    let user = async |name: &str| {
        let options = ConnectOptions::new(broker.url()).expect("a URL").user_password(name, name);
        let client = Client::connect(options).await.expect("connects");
        client.with_queue_config(short_leases(1))
    };
    let admin = user("admin").await;
    admin.ensure_queue(&Queue::default()).await.expect("made");
    let handler = |_: Numbered, _: JobContext| async { Ok::<_, JobError>(()) };
    let worker = Worker::builder(&user("worker").await).handle(handler).build();
    let running = worker.expect("valid").start().await.expect("starts");
    publish_raw(&broker, [(subject(b"odd"), panics())]).await;
    eventually("it is told", || async {
        let health = running.health();
        let is_it = |place: &Option<String>| place.as_deref() == Some(get);
        let mut denied =
            health.troubles.iter().filter(|trouble| trouble.kind == TroubleKind::PermissionDenied);
        denied.any(|trouble| is_it(&trouble.place)).then_some(())
    })
    .await;
    let job = admin.enqueue(numbered(1)).await.expect("stored");
    assert_eq!(completion(&job).await.status, Status::Done);
    broker.reload(worker_without(NOTHING, NOTHING)).await.expect("in force");
    let letters = || admin.dead_letters(tidemill::DeadFilter::queue(Queue::default()));
    let letter = eventually("a dead letter", || async {
        letters().try_collect::<Vec<_>>().await.expect("reads").pop()
    })
    .await;
    assert_eq!(letter.id.as_str(), "odd");
    eventually("all is well", || async { running.health().troubles.is_empty().then_some(()) })
        .await;
    running.drain().await;
}
