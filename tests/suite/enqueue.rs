//! Jobs go in: from the library, from any NATS client, one or many, or not at all with a reason.

use std::time::Duration;

use futures_util::StreamExt;
use tidemill::{
    Client, ConnectOptions, JobContext, JobError, NewJob, Priority, Queue, QueueConfig,
    RecordFilter, Since, Status,
};

use crate::support::{
    Mill, Numbered, Seen, completion, connect, eventually, numbered, stream_messages,
};

#[tokio::test]
async fn a_job_is_worked_and_its_completion_says_so() {
    let mill = Mill::start().await;
    let double = |job: Numbered, _: JobContext| async move { Ok::<_, JobError>(job.n * 2) };
    let worker = mill.worker().name("w1").handle(double).build().expect("valid");
    let running = worker.start().await.expect("starts");
    let job = mill.client.enqueue(numbered(21)).priority(Priority::High).await.expect("stored");
    let done = completion(&job).await;
    assert_eq!((done.status, done.attempt), (Status::Done, 1));
    assert_eq!(done.result::<u64>().expect("a number"), Some(42));
    assert_eq!(done.priority, Priority::High);
    assert_eq!((done.id.as_str(), done.worker.as_str()), (job.id().as_str(), "w1"));
    assert!(done.enqueued_at <= done.finished_at);
    running.drain().await;
    assert_eq!(stream_messages(&mill.nats().await, "TIDEMILL_JOBS_default").await, 0);
}

#[tokio::test]
async fn a_plain_publish_without_headers_and_id_is_a_job() {
    let mill = Mill::start().await;
    let seen = Seen::default();
    let note = seen.clone();
    let handler = move |job: Numbered, context: JobContext| {
        note.push((job.n, context.id().to_string(), context.run().to_string()));
        async { Ok::<_, JobError>(()) }
    };
    let running = mill.worker().handle(handler).build().expect("valid").start().await.expect("ok");
    let nats = mill.nats().await;
    let reply = nats
        .request("tidemill.jobs.default.low.numbered", r#"{"n": 7}"#.into())
        .await
        .expect("a PubAck");
    let ack: serde_json::Value = serde_json::from_slice(&reply.payload).expect("JSON");
    let id = format!("s-{}", ack["seq"]);
    assert_eq!(seen.wait_for(1).await, [(7, id.clone(), id.clone())]);
    let id = tidemill::JobId::new(&id).expect("valid");
    let done = eventually("the completion", || async {
        mill.client.completions_of(&Queue::default(), None, &id).await.expect("reads").pop()
    })
    .await;
    assert_eq!(done.status, Status::Done);
    running.drain().await;
}

#[tokio::test]
async fn a_mistyped_lane_fails_at_once() {
    let mill = Mill::start().await;
    let nats = mill.nats().await;
    let error = nats.request("tidemill.jobs.default.hihg.numbered", "{}".into()).await;
    let error = error.expect_err("no stream takes it");
    assert_eq!(error.kind(), async_nats::RequestErrorKind::NoResponders);
}

#[tokio::test]
async fn bad_names_are_refused_with_the_rule() {
    let mill = Mill::start().await;
    let refused = |job: NewJob| async { mill.client.enqueue(job).await.expect_err("refused") };
    for (job, part) in [
        (NewJob::raw("send email", "{}"), "kind \"send email\""),
        (NewJob::raw("send", "{}").queue("a.b"), "queue \"a.b\""),
        (NewJob::raw("send", "{}").id("*"), "job id \"*\""),
        (NewJob::raw("send", "{}").id("s-1"), "kept for ids that tidemill derives"),
    ] {
        let error = refused(job).await;
        assert!(error.is_invalid() && error.to_string().contains(part), "{error}");
    }
}

#[tokio::test]
async fn a_payload_over_the_limit_names_both_sizes() {
    let mill = Mill::start().await;
    let job = NewJob::raw("send", vec![b' '; 1024 * 1024]);
    let error = mill.client.enqueue(job).await.expect_err("too large");
    assert!(error.is_too_large(), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("1048576 bytes") && text.contains("983040"), "{text}");
}

#[tokio::test]
async fn a_full_queue_refuses_and_takes_again_when_there_is_room() {
    let mut config = QueueConfig::default();
    config.max_jobs = 3;
    let mill = Mill::with(config).await;
    for n in 0..3 {
        mill.client.enqueue(numbered(n)).await.expect("there is room");
    }
    let error = mill.client.enqueue(numbered(3)).await.expect_err("full");
    assert!(error.is_full(), "{error:?}");
    let handler = |_: Numbered, _: JobContext| async { Ok::<_, JobError>(()) };
    let running = mill.worker().handle(handler).build().expect("valid").start().await.expect("ok");
    let job = eventually("room", || async { mill.client.enqueue(numbered(4)).await.ok() }).await;
    completion(&job).await;
    running.drain().await;
}

#[tokio::test]
async fn a_queue_is_made_on_first_use_and_ensuring_it_again_changes_nothing() {
    let mill = Mill::start().await;
    let job = mill.client.enqueue(numbered(1)).queue("fresh").await.expect("made and stored");
    assert_eq!(job.queue().as_str(), "fresh");
    let fresh = Queue::new("fresh").expect("valid");
    let again = mill.client.ensure_queue(&fresh).await.expect("fine");
    assert!(again.created.is_empty() && again.drift.is_empty(), "{again:?}");
    let mut other = QueueConfig::default();
    other.max_jobs = 5;
    let other = mill.client.clone().with_queue_config(other);
    let drift = other.ensure_queue(&fresh).await.expect("fine").drift;
    assert_eq!(drift.len(), 1, "{drift:?}");
    assert_eq!(drift[0].to_string(), "TIDEMILL_JOBS_fresh: max_msgs is 10000000, not 5");
    let queues = mill.client.queues().await.expect("lists");
    assert_eq!(queues, [Queue::default(), fresh]);
}

#[tokio::test]
async fn an_id_that_comes_back_is_a_new_run_with_its_own_completion() {
    let mill = Mill::start().await;
    let echo = |job: Numbered, _: JobContext| async move { Ok::<_, JobError>(job.n) };
    let running = mill.worker().handle(echo).build().expect("valid").start().await.expect("ok");
    let first = mill.client.enqueue(numbered(1)).id("order-17").await.expect("stored");
    assert_eq!(completion(&first).await.result::<u64>().expect("a number"), Some(1));
    let second = mill.client.enqueue(numbered(2)).id("order-17").await.expect("stored");
    assert_ne!(first.run(), second.run());
    assert_eq!(completion(&second).await.result::<u64>().expect("a number"), Some(2));
    assert_eq!(completion(&first).await.result::<u64>().expect("a number"), Some(1));
    let both = mill.client.completions_of(&Queue::default(), None, first.id()).await;
    assert_eq!(both.expect("reads").len(), 2);
    running.drain().await;
}

#[tokio::test]
async fn completions_are_followed_from_now_and_replayed_from_the_start() {
    let mill = Mill::start().await;
    let echo = |job: Numbered, _: JobContext| async move { Ok::<_, JobError>(job.n) };
    let running = mill.worker().handle(echo).build().expect("valid").start().await.expect("ok");
    for n in 0..300 {
        mill.client.enqueue(numbered(n)).await.expect("stored");
    }
    let nats = mill.nats().await;
    eventually("300 completions", || async {
        (stream_messages(&nats, "TIDEMILL_RESULTS_default").await == 300).then_some(())
    })
    .await;
    let follow =
        |since| mill.client.completions(RecordFilter::queue(Queue::default()).since(since));
    let replay = follow(Since::Start).await.expect("follows");
    let mut numbers: Vec<u64> = replay
        .take(300)
        .map(|record| record.expect("reads").result::<u64>().expect("a number").expect("there"))
        .collect()
        .await;
    numbers.sort_unstable();
    assert_eq!(numbers, (0..300).collect::<Vec<_>>());
    let now = follow(Since::Now).await.expect("follows");
    futures_util::pin_mut!(now);
    let job = mill.client.enqueue(numbered(1000)).await.expect("stored");
    let next = tokio::time::timeout(Duration::from_secs(10), now.next()).await.expect("in time");
    assert_eq!(next.expect("endless").expect("reads").id, *job.id());
    running.drain().await;
}

#[tokio::test]
async fn many_make_one_queue_at_once() {
    let mill = Mill::start().await;
    let queue = Queue::new("crowded").expect("valid");
    let mut making = tokio::task::JoinSet::new();
    for n in 0..12 {
        let (client, queue) = (connect(mill.broker.url()).await, queue.clone());
        making.spawn(async move {
            let made = client.ensure_queue(&queue).await.expect("made or there");
            client.enqueue(numbered(n)).queue(queue.as_str()).await.expect("stored");
            made
        });
    }
    let made = making.join_all().await;
    assert!(made.iter().all(|made| made.drift.is_empty()), "{made:?}");
    // Five streams and five consumers, each made by one of them.
    let mut created: Vec<&String> = made.iter().flat_map(|made| &made.created).collect();
    created.sort_unstable();
    created.dedup();
    assert_eq!(created.len(), 10, "{created:?}");
    assert_eq!(stream_messages(&mill.nats().await, "TIDEMILL_JOBS_crowded").await, 12);
}

#[tokio::test]
async fn an_enqueue_that_is_never_answered_is_unknown_and_stored_once_at_most() {
    let mut config = QueueConfig::default();
    config.ack_wait = Duration::from_secs(1);
    let mill = Mill::start().await;
    let options = ConnectOptions::new(mill.broker.url()).expect("a URL");
    let options = options.request_timeout(Duration::from_millis(200));
    let client = Client::connect(options).await.expect("connects").with_queue_config(config);
    mill.broker.freeze().await.expect("freezes");
    let error = client.enqueue(numbered(1)).await.expect_err("nobody answers");
    assert!(error.is_unknown(), "{error}");
    mill.broker.thaw().await.expect("thaws");
    // All that was sent arrives now: the first attempt, and guarded repetitions.
    let nats = mill.nats().await;
    eventually("what was sent", || async {
        (stream_messages(&nats, "TIDEMILL_JOBS_default").await > 0).then_some(())
    })
    .await;
    client.flush().await.expect("flushed");
    assert_eq!(stream_messages(&nats, "TIDEMILL_JOBS_default").await, 1);
}

#[tokio::test]
async fn a_queue_that_is_made_anew_never_uses_a_sequence_twice() {
    let mill = Mill::start().await;
    let before = mill.client.enqueue(numbered(1)).await.expect("stored").sequence().expect("told");
    let nats = mill.nats().await;
    let delete = "$JS.API.STREAM.DELETE.TIDEMILL_JOBS_default";
    nats.request(delete, "".into()).await.expect("an answer");
    let after = mill
        .client
        .enqueue(numbered(1))
        .await
        .expect("made anew and stored")
        .sequence()
        .expect("told");
    assert!(after > before, "{after} after {before}");
}
