//! Signed jobs: a queue that asks for signatures runs what a trusted key vouches for, and nothing else.

use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use tidemill::{
    Backoff, Client, CronChange, CronJob, DeadLetter, Handler, JobContext, JobError, JobHandle,
    NewJob, Priority, Queue, RetryPolicy, Running, SealKey, SealKeys, SigningKey, Status,
    TrustedKeys, Worker,
};

use crate::support::{
    Mill, Numbered, Seen, completion, dead, eventually, numbered, stream_messages,
};

fn trusted(keys: &[&SigningKey]) -> TrustedKeys {
    TrustedKeys::new(keys.iter().map(|key| key.public_key())).expect("keys")
}

fn signing(mill: &Mill, key: &SigningKey) -> Client {
    mill.client.clone().with_signing_key(key.clone())
}

/// A worker that takes jobs of these keys alone, and notes the numbers of those that run.
async fn work(client: &Client, keys: &[&SigningKey], seen: &Seen<u64>) -> Running {
    let note = seen.clone();
    let handler = Handler::new(move |job: Numbered, context: JobContext| {
        note.push(job.n);
        let fails = job.n == 13 && context.attempt() < 3;
        async move { if fails { Err(JobError::failed("again")) } else { Ok(job.n) } }
    })
    .retry(RetryPolicy::new(5, Backoff::fixed(Duration::from_millis(200))));
    let worker = Worker::builder(client)
        .handler(handler)
        .park_over(Duration::ZERO)
        .require_signature("default", trusted(keys));
    worker.build().expect("valid").start().await.expect("starts")
}

/// A job on its lane, as any client reads it.
async fn on_lane(mill: &Mill, job: &JobHandle) -> (HeaderMap, Bytes) {
    let nats = mill.nats().await;
    let subject = format!("tidemill.jobs.default.normal.{}.{}", job.kind(), job.id());
    let get = format!("$JS.API.DIRECT.GET.TIDEMILL_JOBS_default.{subject}");
    let message = nats.request(get, "".into()).await.expect("an answer");
    assert_eq!(message.status, None, "there is none");
    let mut headers = HeaderMap::new();
    for (name, values) in message.headers.unwrap_or_default().iter() {
        for value in values.iter().filter(|_| !name.to_string().starts_with("Nats-")) {
            headers.append(name.clone(), value.clone());
        }
    }
    (headers, message.payload)
}

async fn publish(mill: &Mill, subject: &str, headers: &HeaderMap, body: &Bytes) {
    let nats = mill.nats().await;
    nats.request_with_headers(subject.to_owned(), headers.clone(), body.clone())
        .await
        .expect("stored");
}

/// The next dead letter, taken away.
async fn buried(mill: &Mill) -> DeadLetter {
    let letter = eventually("a dead letter", || async { dead(mill).await.pop() }).await;
    mill.client.discard_dead(&letter).await.expect("deleted");
    letter
}

async fn is_empty(mill: &Mill) {
    let nats = mill.nats().await;
    eventually("the queue is empty", || async {
        (stream_messages(&nats, "TIDEMILL_JOBS_default").await == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn signed_jobs_run_and_others_are_buried_as_nobodys() {
    let mill = Mill::start().await;
    let (key, other) = (SigningKey::generate(), SigningKey::generate());
    let seen = Seen::default();
    let running = work(&mill.client, &[&key], &seen).await;
    let job = signing(&mill, &key).enqueue(numbered(1)).header("X-Of", "me").await.expect("stored");
    assert_eq!(completion(&job).await.status, Status::Done);
    for (client, reason) in
        [(mill.client.clone(), "unsigned"), (signing(&mill, &other), "bad_signature")]
    {
        let job = client.enqueue(numbered(2)).id("order-2").await.expect("stored");
        let letter = buried(&mill).await;
        assert_eq!((letter.info.reason.as_str(), letter.info.attempts), (reason, 0));
        assert_eq!(letter.payload, r#"{"n":2}"#);
        let claimed = letter.info.unvouched.expect("nobody vouches");
        assert_eq!((&claimed.id, &claimed.run), (job.id(), job.run()));
        assert_eq!(letter.id.as_str(), format!("s-{}", job.sequence().expect("told")));
        let ends = client.completions_of(&Queue::default(), None, job.id()).await.expect("read");
        assert!(ends.is_empty(), "it is not on record as the run that it says it is");
        let end = eventually("the end of what it is", || async {
            let ends = client.completions_of(&Queue::default(), None, &letter.id).await;
            ends.expect("read").pop()
        });
        assert_eq!(end.await.reason.as_deref(), Some(reason));
    }
    assert_eq!(seen.all(), [1]);
    running.drain().await;
}

#[tokio::test]
async fn what_is_changed_in_any_part_is_refused() {
    let mill = Mill::start().await;
    let key = SigningKey::generate();
    let client = signing(&mill, &key);
    let job = client.enqueue(numbered(1)).id("order-1").header("X-Of", "me").await.expect("stored");
    let (headers, body) = on_lane(&mill, &job).await;
    let seen = Seen::default();
    let running = work(&mill.client, &[&key], &seen).await;
    assert_eq!(completion(&job).await.status, Status::Done);
    let with = |name: &str, value: &str| {
        let mut headers = headers.clone();
        headers.insert(name, value);
        headers
    };
    let without = |name: &str| {
        let mut kept = HeaderMap::new();
        for (known, values) in headers.iter().filter(|(known, _)| known.to_string() != name) {
            values.iter().for_each(|value| kept.append(known.clone(), value.clone()));
        }
        kept
    };
    let same = "tidemill.jobs.default.normal.numbered.order-1";
    let signature = headers.get("Tidemill-Signature").expect("given").to_string();
    let forged = signature.replace(key.public_key(), SigningKey::generate().public_key());
    for (what, subject, headers, body, reason) in [
        ("body", same, headers.clone(), Bytes::from(r#"{"n":2}"#), "bad_signature"),
        ("header", same, with("X-Of", "you"), body.clone(), "bad_signature"),
        ("one more", same, with("X-New", "1"), body.clone(), "bad_signature"),
        ("one less", same, without("X-Of"), body.clone(), "bad_signature"),
        ("limit", same, with("Tidemill-Max-Retries", "9"), body.clone(), "bad_signature"),
        ("run", same, with("Tidemill-Run", "mine"), body.clone(), "bad_signature"),
        ("no run", same, without("Tidemill-Run"), body.clone(), "bad_signature"),
        ("signer", same, with("Tidemill-Signature", &forged), body.clone(), "bad_signature"),
        ("none", same, without("Tidemill-Signature"), body.clone(), "unsigned"),
        ("rubbish", same, with("Tidemill-Signature", "v1;x"), body.clone(), "bad_header"),
        (
            "id",
            "tidemill.jobs.default.normal.numbered.order-2",
            headers.clone(),
            body.clone(),
            "bad_signature",
        ),
        (
            "no id",
            "tidemill.jobs.default.normal.numbered",
            headers.clone(),
            body.clone(),
            "bad_signature",
        ),
        (
            "kind",
            "tidemill.jobs.default.normal.refund.order-1",
            headers.clone(),
            body.clone(),
            "bad_signature",
        ),
    ] {
        publish(&mill, subject, &headers, &body).await;
        let letter = buried(&mill).await;
        assert_eq!(letter.info.reason, reason, "{what}");
        assert_eq!(letter.payload, body, "{what}");
        assert!(letter.id.as_str().starts_with("s-"), "{what}");
    }
    assert_eq!(seen.all(), [1]);
    running.drain().await;
}

#[tokio::test]
async fn what_has_ended_does_not_run_when_it_is_published_once_more() {
    let mill = Mill::start().await;
    let key = SigningKey::generate();
    let client = signing(&mill, &key);
    let jobs = [
        client.enqueue(numbered(1)).id("order-1").await.expect("stored"),
        client.enqueue(numbered(2)).await.expect("stored"),
    ];
    let mut read = Vec::new();
    for job in &jobs {
        read.push(on_lane(&mill, job).await);
    }
    let seen = Seen::default();
    let running = work(&mill.client, &[&key], &seen).await;
    for job in &jobs {
        let done = completion(job).await;
        assert_eq!((done.status, done.attempt), (Status::Done, 1));
        let nats = mill.nats().await;
        assert_eq!(stream_messages(&nats, "TIDEMILL_ATTEMPTS_default").await, 0, "all went well");
    }
    for lane in ["normal", "critical"] {
        for (job, (headers, body)) in jobs.iter().zip(&read) {
            let subject = format!("tidemill.jobs.default.{lane}.numbered.{}", job.id());
            publish(&mill, &subject, headers, body).await;
        }
    }
    is_empty(&mill).await;
    assert_eq!(seen.len(), 2, "each ran once");
    assert!(dead(&mill).await.is_empty());
    running.drain().await;
}

#[tokio::test]
async fn a_forged_message_does_not_end_the_run_that_it_says_it_is() {
    let mill = Mill::start().await;
    let key = SigningKey::generate();
    let job = signing(&mill, &key).enqueue(numbered(1)).id("order-1").await.expect("stored");
    let (headers, body) = on_lane(&mill, &job).await;
    let mut unreadable = headers.clone();
    unreadable.insert("Tidemill-Timeout", "soon");
    let subject = "tidemill.jobs.default.critical.numbered.order-1";
    publish(&mill, subject, &headers, &r#"{"n":2}"#.into()).await;
    publish(&mill, subject, &unreadable, &body).await;
    publish(&mill, subject, &HeaderMap::new(), &body).await;
    let seen = Seen::default();
    let running = work(&mill.client, &[&key], &seen).await;
    assert_eq!(completion(&job).await.status, Status::Done);
    let mut reasons = Vec::new();
    for _ in 0..3 {
        reasons.push(buried(&mill).await.info.reason);
    }
    reasons.sort();
    assert_eq!(reasons, ["bad_header", "bad_signature", "unsigned"]);
    // A true one whose attempts are said to be used up runs all the same: the ledger counts.
    let job = signing(&mill, &key).enqueue(numbered(3)).id("order-3").delay(Duration::from_secs(1));
    let job = job.await.expect("stored");
    let (mut headers, body) = (HeaderMap::new(), Bytes::from(r#"{"n":3}"#));
    let queue = Queue::default();
    let known = mill.client.job(&queue, None, job.id()).await.expect("there").remove(0);
    for (name, value) in known.headers.iter() {
        headers.append(name, value);
    }
    headers.insert("Tidemill-Attempts-Used", "1000");
    publish(&mill, "tidemill.jobs.default.critical.numbered.order-3", &headers, &body).await;
    assert_eq!(completion(&job).await.status, Status::Done);
    running.drain().await;
}

#[tokio::test]
async fn two_keys_are_trusted_while_one_takes_the_place_of_the_other() {
    let mill = Mill::start().await;
    let (old, new) = (SigningKey::generate(), SigningKey::generate());
    let seen = Seen::default();
    let running = work(&mill.client, &[&old], &seen).await;
    let job = signing(&mill, &new).enqueue(numbered(1)).id("order-1").await.expect("stored");
    let letter = eventually("a dead letter", || async { dead(&mill).await.pop() }).await;
    let message = &letter.info.errors[0].message;
    assert!(message.contains(new.public_key()) && message.contains("not trusted"), "{message}");
    running.drain().await;
    let running = work(&mill.client, &[&old, &new], &seen).await;
    // Put back as it came: it is the run that was signed, and needs no key.
    let retried = mill.client.retry_dead(&letter).await.expect("stored");
    assert_eq!((retried.id(), retried.run()), (job.id(), job.run()));
    let by_old = signing(&mill, &old).enqueue(numbered(2)).await.expect("stored");
    for job in [&job, &by_old] {
        assert_eq!(completion(job).await.status, Status::Done);
    }
    assert!(dead(&mill).await.is_empty());
    running.drain().await;
}

#[tokio::test]
async fn every_way_in_signs_and_our_own_copies_stay_valid() {
    let mill = Mill::start().await;
    let key = SigningKey::generate();
    let (client, queue) = (signing(&mill, &key), Queue::default());
    let seen = Seen::default();
    let running = work(&mill.client, &[&key], &seen).await;
    let mut jobs = vec![client.enqueue(numbered(13)).await.expect("stored")];
    let many = client.enqueue_many((1..4).map(numbered)).await;
    jobs.extend(many.into_iter().map(|stored| stored.expect("stored")));
    jobs.extend(client.enqueue_all((4..7).map(numbered)).await.expect("stored"));
    let import = client.import("all").expect("a name");
    let imported = import.put((7..9).map(|n| (n, NewJob::new(&numbered(n))))).await;
    jobs.extend(imported.into_iter().map(|stored| stored.expect("stored")));
    jobs.push(client.enqueue(numbered(9)).unique("one").await.expect("stored"));
    jobs.push(client.enqueue(numbered(10)).delay(Duration::from_millis(300)).await.expect("ok"));
    // Moved by an operator without a key.
    let operator = &mill.client;
    let hour = Duration::from_secs(3600);
    let nats = mill.nats().await;
    let mut late = Vec::new();
    for n in 20..24 {
        late.push(
            client.enqueue(numbered(n)).id(format!("late-{n}")).delay(hour).await.expect("ok"),
        );
    }
    eventually("they are on timers", || async {
        let subjects = "tidemill.timers.default.normal.numbered.*.*";
        let request = format!(r#"{{"subjects_filter":"{subjects}"}}"#);
        let info = "$JS.API.STREAM.INFO.TIDEMILL_TIMERS_default";
        let answer = nats.request(info, request.into()).await.expect("an answer");
        let info: serde_json::Value = serde_json::from_slice(&answer.payload).expect("JSON");
        let subjects = info["state"]["subjects"].as_object()?;
        let late = subjects.keys().filter(|subject| subject.contains(".late-"));
        (late.count() == 4).then_some(())
    })
    .await;
    operator.run_now(&queue, None, late[0].id()).await.expect("moved");
    let soon = operator.now(&queue).await + Duration::from_millis(200);
    operator.reschedule(&queue, None, late[1].id(), soon).await.expect("moved");
    operator.set_priority(&queue, None, late[2].id(), Priority::High).await.expect("moved");
    operator.run_now(&queue, None, late[2].id()).await.expect("moved");
    operator.cancel(&queue, None, late[3].id(), "test").await.expect("cancelled");
    for job in jobs.iter().chain(&late[..3]) {
        assert_eq!(completion(job).await.status, Status::Done, "{job:?}");
    }
    assert_eq!(completion(&late[3]).await.status, Status::Cancelled);
    assert_eq!(seen.all().iter().filter(|n| **n == 13).count(), 3, "with its retries");
    assert!(dead(&mill).await.is_empty());
    running.drain().await;
}

#[tokio::test]
async fn a_dead_letters_retry_is_a_new_run_and_signed_anew() {
    let mill = Mill::start().await;
    let key = SigningKey::generate();
    let client = signing(&mill, &key);
    let rubbish = NewJob::raw("numbered", r#"{"n":"x"}"#)
        .expires_at(chrono::Utc::now() + chrono::TimeDelta::hours(1));
    let seen = Seen::default();
    let running = work(&mill.client, &[&key], &seen).await;
    let job = client.enqueue(rubbish).await.expect("stored");
    assert_eq!(completion(&job).await.reason.as_deref(), Some("undecodable"));
    let letter = dead(&mill).await.pop().expect("one");
    assert_eq!((&letter.id, &letter.info.unvouched), (job.id(), &None));
    let refused = mill.client.retry_dead(&letter).await.expect_err("no key");
    assert!(refused.is_invalid() && refused.to_string().contains("a new run"), "{refused}");
    assert_eq!(dead(&mill).await.len(), 1, "it stays");
    let retried = client.retry_dead(&letter).await.expect("stored");
    let end = completion(&retried).await;
    assert_eq!(end.reason.as_deref(), Some("undecodable"), "it was taken, and ran");
    running.drain().await;
}

#[tokio::test]
async fn the_signature_is_over_what_is_sealed() {
    let mill = Mill::start().await;
    let key = SigningKey::generate();
    let seal_keys = SealKeys::new(SealKey::generate("k1").expect("a key"));
    let client = signing(&mill, &key).with_seal_keys(seal_keys);
    let job = client.enqueue(numbered(1)).await.expect("stored");
    let (headers, body) = on_lane(&mill, &job).await;
    let seen = Seen::default();
    let running = work(&client, &[&key], &seen).await;
    let done = completion(&job).await;
    assert_eq!((done.status, done.result::<u64>().expect("opened")), (Status::Done, Some(1)));
    // It is not even opened.
    let mut changed = body.to_vec();
    changed[14] ^= 1;
    let subject = format!("tidemill.jobs.default.normal.numbered.{}", job.id());
    publish(&mill, &subject, &headers, &changed.into()).await;
    assert_eq!(buried(&mill).await.info.reason, "bad_signature");
    let mut other_key = headers.clone();
    other_key.insert("Tidemill-Seal", "v1;k2");
    publish(&mill, &subject, &other_key, &body).await;
    assert_eq!(buried(&mill).await.info.reason, "bad_signature");
    running.drain().await;
}

#[tokio::test]
async fn a_cron_entrys_signature_is_for_its_firings_alone() {
    let mill = Mill::start().await;
    let key = SigningKey::generate();
    let client = signing(&mill, &key);
    let seen = Seen::default();
    let running = work(&mill.client, &[&key], &seen).await;
    let schedule = || "@every 1s".parse().expect("a schedule");
    let apart = || CronJob::new("apart", schedule(), numbered(1));
    let single = CronJob::new("single", schedule(), numbered(2)).skip_overlap();
    assert_eq!(client.cron().add(apart()).await.expect("added"), CronChange::Added);
    assert_eq!(client.cron().add(apart()).await.expect("there"), CronChange::Unchanged);
    client.cron().add(single).await.expect("added");
    eventually("firings of both", || async {
        (seen.all().contains(&1) && seen.all().contains(&2)).then_some(())
    })
    .await;
    let there = client.cron().list(&Queue::default()).await.expect("listed").remove(0);
    let job = mill.client.cron().run(&Queue::default(), &there.name).await.expect("stored");
    assert_eq!(completion(&job).await.status, Status::Done, "who has no key can run it once");
    assert!(dead(&mill).await.is_empty());
    for name in ["apart", "single"] {
        let name = tidemill::CronName::new(name).expect("valid");
        client.cron().remove(&Queue::default(), &name).await.expect("removed");
    }
    let mut headers = HeaderMap::new();
    for (name, value) in there.headers.iter() {
        headers.append(name, value);
    }
    let subject = "tidemill.jobs.default.normal.numbered.order-1";
    publish(&mill, subject, &headers, &there.payload).await;
    assert_eq!(buried(&mill).await.info.reason, "bad_signature", "it is no job of the entry");
    running.drain().await;
}

#[tokio::test]
async fn signatures_are_required_of_queues_that_are_worked() {
    let mill = Mill::start().await;
    let handler = |_: Numbered, _: JobContext| async { Ok::<_, JobError>(()) };
    let key = SigningKey::generate();
    let worker = || Worker::builder(&mill.client).handle(handler);
    let required = worker().require_signature("other", trusted(&[&key])).build();
    let error = required.err().expect("not worked");
    assert!(error.is_invalid() && error.to_string().contains("queue other"), "{error}");
    let twice = worker()
        .require_signature("default", trusted(&[&key]))
        .require_signature("default", trusted(&[&key]));
    assert!(twice.build().err().expect("twice").to_string().contains("twice"));
    let shown = format!("{:?} {key:?}", signing(&mill, &key));
    assert!(!shown.contains(&key.reveal()[2..]), "{shown}");
}

#[tokio::test]
async fn values_of_one_header_are_signed_in_the_order_in_which_they_stand() {
    let mill = Mill::start().await;
    let key = SigningKey::generate();
    let seen = Seen::default();
    let running = work(&mill.client, &[&key], &seen).await;
    let job = signing(&mill, &key).enqueue(numbered(1)).header("X", "b").header("X", "a").await;
    let job = job.expect("stored");
    assert_eq!(completion(&job).await.status, Status::Done);
    let another = signing(&mill, &key).enqueue(numbered(2)).header("X", "b").header("X", "a").await;
    let another = another.expect("stored");
    completion(&another).await;
    running.drain().await;
    // The other way round it is another job.
    let swapped = signing(&mill, &key).enqueue(numbered(3)).header("X", "b").header("X", "a").await;
    let swapped = swapped.expect("stored");
    let (mut headers, body) = on_lane(&mill, &swapped).await;
    headers.insert("X", "a");
    headers.append("X", "b");
    let subject = format!("tidemill.jobs.default.low.numbered.{}", swapped.id());
    publish(&mill, &subject, &headers, &body).await;
    let running = work(&mill.client, &[&key], &seen).await;
    assert_eq!(buried(&mill).await.info.reason, "bad_signature");
    running.drain().await;
}

/// One after the other, their checks would hold each other up: thousands come in at once.
#[tokio::test]
async fn many_signed_jobs_are_checked_beside_each_other() {
    let mill = Mill::start().await;
    let key = SigningKey::generate();
    let seen = Seen::default();
    let jobs = (0..300).map(|n| NewJob::new(&numbered(1000 + n)));
    let stored = signing(&mill, &key).enqueue_many(jobs).await;
    let running = work(&mill.client, &[&key], &seen).await;
    for job in stored {
        let done = completion(&job.expect("stored")).await;
        assert_eq!((done.status, done.attempt), (Status::Done, 1));
    }
    assert_eq!(seen.len(), 300);
    is_empty(&mill).await;
    running.drain().await;
}
