//! Sealed payloads: the broker holds ciphertext, handlers get what was sealed, and every way that a job
//! can take leaves it as it is.

use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use tidemill::{
    AttemptEvent, Backoff, Client, CronChange, CronJob, Error, Handler, JobContext, JobError,
    JobHandle, NewJob, Priority, Queue, RetryPolicy, Running, SealKey, SealKeys, Status, Worker,
};

use crate::support::{Mill, Numbered, Seen, completion, dead, eventually, numbered};

fn key(id: &str, byte: u8) -> SealKey {
    SealKey::new(id, [byte; 32]).expect("a key")
}

/// A number of one digit, with what sealing adds.
const SEALED_BYTES: usize = r#"{"n":7}"#.len() + 28;

/// The only keys of most tests.
fn keys() -> SealKeys {
    SealKeys::new(key("k1", 1))
}

fn sealing(mill: &Mill) -> Client {
    mill.client.clone().with_seal_keys(keys())
}

/// A worker with the keys of its client, which notes the numbers of jobs and doubles them.
async fn work(client: &Client, seen: &Seen<u64>) -> Running {
    let note = seen.clone();
    let handler = move |job: Numbered, _: JobContext| {
        note.push(job.n);
        async move { Ok::<_, JobError>(job.n * 2) }
    };
    // What is put off at all becomes a timer.
    let worker = Worker::builder(client).handle(handler).park_over(Duration::ZERO);
    worker.build().expect("valid").start().await.expect("starts")
}

/// The last message of a subject, as any client reads it.
async fn stored(mill: &Mill, stream: &str, subject: &str) -> (HeaderMap, Bytes) {
    let nats = mill.nats().await;
    let get = format!("$JS.API.DIRECT.GET.{stream}.{subject}");
    let message = nats.request(get, "".into()).await.expect("an answer");
    assert_eq!(message.status, None, "there is none");
    (message.headers.unwrap_or_default(), message.payload)
}

/// The same of a job on its lane.
async fn on_lane(mill: &Mill, lane: &str, job: &JobHandle) -> (HeaderMap, Bytes) {
    let subject = format!("tidemill.jobs.default.{lane}.{}.{}", job.kind(), job.id());
    stored(mill, "TIDEMILL_JOBS_default", &subject).await
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).expect("given").as_str()
}

#[tokio::test]
async fn the_broker_has_ciphertext_and_the_handler_what_was_sealed() {
    let mill = Mill::start().await;
    let client = sealing(&mill);
    let job = client.enqueue(numbered(4711)).await.expect("stored");
    let (headers, body) = on_lane(&mill, "normal", &job).await;
    assert_eq!(header(&headers, "Tidemill-Seal"), "v1;k1");
    assert_eq!(body.len(), r#"{"n":4711}"#.len() + 28);
    assert!(!String::from_utf8_lossy(&body).contains("4711"));
    let again = client.enqueue(numbered(4711)).await.expect("stored");
    let (_, other) = on_lane(&mill, "normal", &again).await;
    assert_ne!(body[..12], other[..12], "each has a nonce of its own");
    let shown = client.job(&Queue::default(), None, job.id()).await.expect("there").remove(0);
    assert_eq!(shown.sealed_with().as_deref(), Some("k1"));
    assert_eq!(shown.payload, body);
    assert_eq!(shown.open(&client).expect("opens"), r#"{"n":4711}"#);
    let closed = shown.open(&mill.client).expect_err("without keys");
    assert!(closed.to_string().contains("sealed with key k1"), "{closed}");

    let seen = Seen::default();
    let running = work(&client, &seen).await;
    let done = completion(&job).await;
    assert_eq!((done.status, done.attempt), (Status::Done, 1));
    assert_eq!(done.result::<u64>().expect("opened"), Some(9422));
    assert_eq!(seen.all()[0], 4711);
    // The result is sealed too, and who has not the key is told so.
    let subject = format!("tidemill.results.default.numbered.{}._", job.id());
    let (_, record) = stored(&mill, "TIDEMILL_RESULTS_default", &subject).await;
    let record = String::from_utf8_lossy(&record).into_owned();
    assert!(record.contains(r#""result_sealed":"v1;k1;"#) && !record.contains("9422"), "{record}");
    let closed = mill.client.completions_of(&Queue::default(), None, job.id()).await.expect("read");
    assert_eq!(closed[0].sealed_with(), Some("k1"));
    let error = closed[0].result::<u64>().expect_err("without keys");
    assert!(error.is_invalid() && error.to_string().contains("sealed with key k1"), "{error}");
    running.drain().await;
}

#[tokio::test]
async fn after_a_change_of_keys_the_old_one_opens_and_the_new_one_seals() {
    let mill = Mill::start().await;
    let old = sealing(&mill).enqueue(numbered(1)).await.expect("stored");
    let rotated = SealKeys::new(key("k2", 2)).older(key("k1", 1)).expect("two ids");
    let client = mill.client.clone().with_seal_keys(rotated);
    let new = client.enqueue(numbered(2)).await.expect("stored");
    let (headers, _) = on_lane(&mill, "normal", &new).await;
    assert_eq!(header(&headers, "Tidemill-Seal"), "v1;k2");
    let seen = Seen::default();
    let running = work(&client, &seen).await;
    for job in [&old, &new] {
        let done = completion(job).await;
        assert_eq!((done.status, done.sealed_with()), (Status::Done, Some("k2")));
    }
    let error = completion(&old).await.result::<u64>().expect_err("it has the old key alone");
    assert!(error.to_string().contains("sealed with key k2"), "{error}");
    let opened = client.completions_of(&Queue::default(), None, old.id()).await.expect("read");
    assert_eq!(opened[0].sealed_with(), Some("k2"), "by the worker's current key");
    assert_eq!(opened[0].result::<u64>().expect("opens"), Some(2));
    running.drain().await;
}

#[tokio::test]
async fn what_the_keys_do_not_open_is_buried_as_it_is_and_runs_once_they_do() {
    let mill = Mill::start().await;
    let client = sealing(&mill);
    for (others, why) in [
        (None, "there are no seal keys"),
        (Some(SealKeys::new(key("k2", 2))), "not among those here: k2"),
        (Some(SealKeys::new(key("k1", 2))), "does not open with key k1"),
    ] {
        let job = client.enqueue(numbered(7)).await.expect("stored");
        let (_, body) = on_lane(&mill, "normal", &job).await;
        let without = match others {
            None => mill.client.clone(),
            Some(keys) => mill.client.clone().with_seal_keys(keys),
        };
        let seen = Seen::default();
        let running = work(&without, &seen).await;
        let end = completion(&job).await;
        assert_eq!((end.status, end.reason.as_deref()), (Status::Dead, Some("unsealable")));
        assert_eq!((end.attempt, end.started_at), (0, None), "it did not run");
        running.drain().await;
        let letter = dead(&mill).await.pop().expect("one");
        assert_eq!((letter.payload.clone(), letter.info.attempts), (body, 0));
        let message = &letter.info.errors[0].message;
        assert!(message.contains(why), "{message}");
        let attempts = mill.client.attempts_of(&letter).await.expect("reads");
        assert!(attempts.is_empty(), "{attempts:?}");
        assert_eq!(letter.open(&client).expect("opens"), r#"{"n":7}"#);
        assert_eq!(seen.len(), 0);

        // Who retries it need not have the key.
        let retry = mill.client.retry_dead(&letter).await.expect("stored");
        let running = work(&client, &seen).await;
        let done = completion(&retry).await;
        assert_eq!((done.status, done.attempt, seen.all()), (Status::Done, 1, vec![7]));
        running.drain().await;
    }
}

#[tokio::test]
async fn every_way_in_seals() {
    let mill = Mill::start().await;
    let client = sealing(&mill);
    let mut jobs = vec![client.enqueue(numbered(0)).await.expect("stored")];
    let many = client.enqueue_many((1..4).map(numbered)).await;
    jobs.extend(many.into_iter().map(|stored| stored.expect("stored")));
    jobs.extend(client.enqueue_all((4..7).map(numbered)).await.expect("stored"));
    let import = client.import("all").expect("a name");
    let imported = import.put((7..9).map(|n| (n, NewJob::new(&numbered(n))))).await;
    jobs.extend(imported.into_iter().map(|stored| stored.expect("stored")));
    let unique = |n| NewJob::new(&numbered(n)).unique("one");
    let first = client.enqueue(unique(100)).await.expect("stored");
    assert!(client.enqueue(unique(101)).await.expect("there").is_duplicate());
    jobs.push(client.enqueue_replacing(unique(9)).await.expect("replaced"));
    for job in &jobs {
        let (headers, body) = on_lane(&mill, "normal", job).await;
        assert_eq!(header(&headers, "Tidemill-Seal"), "v1;k1");
        assert_eq!(body.len(), SEALED_BYTES);
    }
    let seen = Seen::default();
    let running = work(&client, &seen).await;
    for (n, job) in jobs.iter().enumerate() {
        let done = completion(job).await;
        assert_eq!(done.status, Status::Done);
        let n = u64::try_from(n).expect("small");
        assert_eq!(done.result::<u64>().expect("opened"), Some(2 * n));
    }
    assert_eq!(completion(&first).await.reason.as_deref(), Some("replaced"));
    running.drain().await;
}

#[tokio::test]
async fn timers_retries_and_moves_leave_it_as_it_is() {
    let mill = Mill::start().await;
    let (client, queue) = (sealing(&mill), Queue::default());
    let hour = Duration::from_secs(3600);
    let seen = Seen::default();
    let note = seen.clone();
    let handler = Handler::new(move |job: Numbered, context: JobContext| {
        note.push((job.n, context.priority(), context.attempt()));
        let fails = job.n == 1 && context.attempt() < 3;
        async move { if fails { Err(JobError::failed("again")) } else { Ok(job.n) } }
    })
    .retry(RetryPolicy::new(5, Backoff::fixed(Duration::from_millis(200))));
    let worker = Worker::builder(&client).handler(handler).park_over(Duration::ZERO);
    let running = worker.build().expect("valid").start().await.expect("starts");
    let retried = client.enqueue(numbered(1)).await.expect("stored");
    let late = client.enqueue(numbered(2)).delay(Duration::from_millis(300)).await.expect("stored");
    for job in [&retried, &late] {
        assert_eq!(completion(job).await.status, Status::Done);
    }
    // Those that an operator moves, who has no key.
    let operator = &mill.client;
    let (mut jobs, mut delayed) = (Vec::new(), Vec::new());
    for n in 3..7 {
        let job = client.enqueue(numbered(n)).delay(hour).await.expect("stored");
        eventually("it is on a timer", || async {
            let subject = format!("tidemill.timers.default.normal.numbered.{}._", job.id());
            let nats = mill.nats().await;
            let get = format!("$JS.API.DIRECT.GET.TIDEMILL_TIMERS_default.{subject}");
            let there = nats.request(get, "".into()).await.expect("an answer");
            (there.status.is_none() && there.payload.len() == SEALED_BYTES).then_some(())
        })
        .await;
        jobs.push(job);
    }
    operator.run_now(&queue, None, jobs[0].id()).await.expect("moved");
    let soon = operator.now(&queue).await + Duration::from_millis(200);
    operator.reschedule(&queue, None, jobs[1].id(), soon).await.expect("moved");
    operator.set_priority(&queue, None, jobs[2].id(), Priority::High).await.expect("moved");
    operator.run_now(&queue, None, jobs[2].id()).await.expect("moved");
    operator.cancel(&queue, None, jobs[3].id(), "test").await.expect("cancelled");
    delayed.extend(jobs.drain(..3));
    for (job, n) in delayed.iter().zip(3..) {
        let done = completion(job).await;
        assert_eq!((done.status, done.result::<u64>().expect("opened")), (Status::Done, Some(n)));
    }
    assert_eq!(completion(&jobs[0]).await.status, Status::Cancelled);
    let seen = seen.all();
    assert!(seen.contains(&(1, Priority::Normal, 3)) && seen.contains(&(5, Priority::High, 1)));
    running.drain().await;
}

#[tokio::test]
async fn what_was_sealed_for_one_job_does_not_open_as_another() {
    let mill = Mill::start().await;
    let client = sealing(&mill);
    let job = client.enqueue(numbered(1)).id("order-1").await.expect("stored");
    let (headers, body) = on_lane(&mill, "normal", &job).await;
    let seen = Seen::default();
    let running = work(&client, &seen).await;
    assert_eq!(completion(&job).await.status, Status::Done);
    let nats = mill.nats().await;
    let mut changed = body.to_vec();
    changed[20] ^= 1;
    let same = "tidemill.jobs.default.normal.numbered.order-1";
    for (subject, body) in [
        ("tidemill.jobs.default.normal.numbered.order-2", body.clone()),
        ("tidemill.jobs.default.normal.numbered", body.clone()),
        (same, changed.into()),
        (same, body.slice(..20)),
    ] {
        let mut map = HeaderMap::new();
        map.insert("Tidemill-Seal", header(&headers, "Tidemill-Seal"));
        nats.request_with_headers(subject, map, body.clone()).await.expect("stored");
        let letter = eventually("a dead letter", || async { dead(&mill).await.pop() }).await;
        assert_eq!((letter.info.reason.as_str(), &letter.payload), ("unsealable", &body));
        client.discard_dead(&letter).await.expect("deleted");
    }
    // On another lane it does, as copies have to.
    let mut map = HeaderMap::new();
    map.insert("Tidemill-Seal", "v1;k1");
    nats.request_with_headers("tidemill.jobs.default.high.numbered.order-1", map, body)
        .await
        .expect("stored");
    assert_eq!(seen.wait_for(2).await, [1, 1]);
    running.drain().await;
}

#[tokio::test]
async fn what_stands_in_a_sealed_payload_is_not_told_when_it_does_not_decode() {
    let mill = Mill::start().await;
    let client = sealing(&mill);
    let running = work(&client, &Seen::default()).await;
    let bad = r#"{"n":"hush4711"}"#;
    let job = client.enqueue(NewJob::raw("numbered", bad)).await.expect("stored");
    let end = completion(&job).await;
    assert_eq!(end.reason.as_deref(), Some("undecodable"));
    let letter = dead(&mill).await.pop().expect("one");
    let attempts = client.attempts_of(&letter).await.expect("reads");
    assert!(attempts.iter().any(|entry| entry.event == AttemptEvent::Failed));
    let shown = format!("{end:?} {letter:?} {attempts:?}");
    assert!(shown.contains("line 1, column") && !shown.contains("hush4711"), "{shown}");
    running.drain().await;
}

#[tokio::test]
async fn what_a_cron_entry_puts_out_is_sealed_and_adding_it_again_changes_nothing() {
    let mill = Mill::start().await;
    let client = sealing(&mill);
    let entry = || {
        CronJob::new("often", "@every 1s".parse().expect("a schedule"), numbered(5)).skip_overlap()
    };
    assert_eq!(client.cron().add(entry()).await.expect("added"), CronChange::Added);
    assert_eq!(client.cron().add(entry()).await.expect("there"), CronChange::Unchanged);
    let there = client.cron().list(&Queue::default()).await.expect("listed").remove(0);
    assert_eq!(there.sealed_with().as_deref(), Some("k1"));
    assert_eq!(there.payload.len(), SEALED_BYTES);
    assert_eq!(there.open(&client).expect("opens"), r#"{"n":5}"#);
    let seen = Seen::default();
    let running = work(&client, &seen).await;
    assert_eq!(seen.wait_for(1).await[0], 5);
    let job = client.cron().run(&Queue::default(), &there.name).await.expect("stored");
    assert_eq!(completion(&job).await.status, Status::Done);
    // With another key it is another entry, as it is without.
    let rotated = SealKeys::new(key("k2", 2)).older(key("k1", 1)).expect("two ids");
    let rotated = mill.client.clone().with_seal_keys(rotated);
    assert_eq!(rotated.cron().add(entry()).await.expect("written"), CronChange::Updated);
    assert_eq!(mill.client.cron().add(entry()).await.expect("written"), CronChange::Updated);
    running.drain().await;
}

#[tokio::test]
async fn no_key_is_shown() {
    let mill = Mill::start().await;
    let client = sealing(&mill);
    let secret = key("k1", 1).reveal();
    let secret = secret.split_once(' ').expect("two words").1;
    let worker = Worker::builder(&client)
        .handle(|_: Numbered, _: JobContext| async { Ok::<_, JobError>(()) });
    let running = worker.build().expect("valid").start().await.expect("starts");
    let error: Error = SealKeys::from_text(&format!("k1{secret}")).expect_err("no key");
    let shown = format!("{client:?} {:?} {:?} {error:?} {error}", keys(), key("k1", 1));
    for secret in [secret, "[1, 1, 1", "0101", "\\u{1}"] {
        assert!(!shown.contains(secret), "{shown}");
    }
    running.drain().await;
}
