//! Cancelling, and where jobs stand.

use std::time::Duration;

use futures_util::TryStreamExt;
use tidemill::{
    Backoff, Cancellation, Handler, JobContext, JobError, JobFilter, JobHandle, JobInfo, JobState,
    NewJob, Priority, Queue, RetryPolicy, Status,
};

use crate::proxy::Proxy;
use crate::support::{
    Mill, Numbered, Seen, completion, eventually, lane_counts, numbered, stream_messages,
};

async fn cancel(mill: &Mill, job: &JobHandle) -> Vec<Status> {
    let cancelled = mill.client.cancel(job.queue(), None, job.id(), "not wanted").await;
    cancelled.expect("cancelled").iter().map(|cancelled| cancelled.status).collect()
}

async fn state(mill: &Mill, job: &JobHandle) -> JobState {
    let mut jobs = mill.client.job(job.queue(), None, job.id()).await.expect("known");
    jobs.pop().expect("one").state
}

#[tokio::test]
async fn a_job_is_seen_in_all_its_states() {
    let mill = Mill::start().await;
    let handler = Handler::new(|_: Numbered, context: JobContext| async move {
        if context.attempt() == 1 {
            return Err(JobError::failed("once"));
        }
        context.cancellation().cancelled().await;
        Err::<(), _>(JobError::failed("stopped"))
    });
    let policy = RetryPolicy::new(3, Backoff::fixed(Duration::from_secs(2)));
    let worker = mill.worker().name("w1").park_over(Duration::from_secs(5));
    let worker = worker.handler(handler.retry(policy)).build().expect("valid");
    let job = mill.client.enqueue(numbered(1)).id("seen").tag("blue").await.expect("stored");
    assert!(matches!(state(&mill, &job).await, JobState::Waiting));
    let later = mill.client.enqueue(numbered(2)).delay(Duration::from_secs(60));
    let later = later.priority(Priority::Low).await.expect("stored");
    assert!(matches!(state(&mill, &later).await, JobState::Scheduled(_)));

    let running = worker.start().await.expect("starts");
    eventually("it backs off", || async {
        matches!(state(&mill, &job).await, JobState::BackingOff(_)).then_some(())
    })
    .await;
    let told = eventually("it runs", || async {
        match state(&mill, &job).await {
            JobState::Running(told) => Some(told),
            _ => None,
        }
    })
    .await;
    assert_eq!((told.worker.as_str(), told.attempt, &told.run), ("w1", 2, job.run()));
    // The timer of the later one, parked by now, is listed with the rest.
    let all: Vec<_> =
        mill.client.jobs(JobFilter::queue(Queue::default())).try_collect().await.expect("reads");
    let states: Vec<(&str, &str)> =
        all.iter().map(|job| (job.priority.as_str(), job.state.as_str())).collect();
    assert_eq!(states, [("normal", "running"), ("low", "scheduled")]);
    let mut blue = JobFilter::queue(Queue::default());
    blue.tag = Some("blue".into());
    let blue: Vec<_> = mill.client.jobs(blue).try_collect().await.expect("reads");
    assert_eq!(blue.len(), 1);
    assert_eq!((blue[0].id.as_str(), blue[0].attempts.len()), ("seen", 2));

    assert_eq!(cancel(&mill, &job).await, [Status::Cancelled]);
    assert!(matches!(state(&mill, &job).await, JobState::Ended(done) if done.attempt == 2));
    running.drain().await;
    let nobody = tidemill::JobId::new("nobody").expect("an id");
    let unknown = mill.client.job(&Queue::default(), None, &nobody).await;
    assert!(unknown.expect_err("not there").is_not_found());
}

#[tokio::test]
async fn what_waits_or_is_timed_is_gone_with_a_completion_and_right_counts() {
    let mill = Mill::start().await;
    let waiting = mill.client.enqueue(numbered(1)).await.expect("stored");
    let nats = mill.nats().await;
    let plain = nats.request("tidemill.jobs.default.low.numbered", r#"{"n":2}"#.into()).await;
    let plain: serde_json::Value =
        serde_json::from_slice(&plain.expect("stored").payload).expect("JSON");
    let plain = tidemill::JobId::new(format!("s-{}", plain["seq"])).expect("an id");
    let timed =
        mill.client.enqueue(numbered(3)).delay(Duration::from_secs(3600)).await.expect("ok");
    // A worker that knows none of them parks the timed one.
    let handler = |_: tidemill::JobContext| async { Ok::<_, JobError>(()) };
    let other = Handler::raw("other", move |_, context| {
        let done = handler(context);
        async move { done.await.map(|()| None) }
    });
    let running = mill.worker().park_over(Duration::from_secs(1)).handler(other).build();
    let running = running.expect("valid").start().await.expect("starts");
    eventually("a timer", || async {
        (stream_messages(&nats, "TIDEMILL_TIMERS_default").await == 1).then_some(())
    })
    .await;
    running.drain().await;

    for job in [&waiting, &timed] {
        assert_eq!(cancel(&mill, job).await, [Status::Cancelled]);
        let done = completion(job).await;
        assert_eq!((done.status, done.attempt), (Status::Cancelled, 0));
        assert_eq!(done.reason.as_deref(), Some("not wanted"));
        assert_eq!(cancel(&mill, job).await, [Status::Cancelled], "repeating it is harmless");
    }
    assert_eq!(Some(completion(&waiting).await.seq), waiting.sequence());
    assert_eq!(completion(&timed).await.seq, 0, "it was on no lane");
    let by_sequence = mill.client.cancel(&Queue::default(), None, &plain, "no").await.expect("ok");
    assert_eq!(by_sequence[0].status, Status::Cancelled);
    for lane in ["normal", "low"] {
        let counts = lane_counts(&nats, "default", lane).await;
        assert_eq!(counts.0, 0, "{lane}: {counts:?}");
    }
    for stream in ["TIDEMILL_JOBS_default", "TIDEMILL_TIMERS_default"] {
        assert_eq!(stream_messages(&nats, stream).await, 0, "{stream}");
    }
    let nobody = tidemill::JobId::new("nobody").expect("an id");
    let error = mill.client.cancel(&Queue::default(), None, &nobody, "no").await;
    assert!(error.expect_err("not there").is_not_found());
}

#[tokio::test]
async fn what_runs_is_told_to_stop_on_whatever_worker_and_aborted_if_it_does_not() {
    let mill = Mill::start().await;
    let (told, ended): (Seen<u64>, Seen<u64>) = Default::default();
    let (note_told, note_ended) = (told.clone(), ended.clone());
    let handler = move |job: Numbered, context: JobContext| {
        let (told, ended) = (note_told.clone(), note_ended.clone());
        async move {
            told.push(job.n);
            if job.n == 1 {
                context.cancellation().cancelled().await;
            } else {
                // Deaf to being told.
                std::future::pending::<()>().await;
            }
            ended.push(job.n);
            Err::<(), _>(JobError::failed("stopped"))
        }
    };
    let mut workers = Vec::new();
    for _ in 0..3 {
        let worker = mill.worker().concurrency(1).handle(handler.clone()).build().expect("ok");
        workers.push(worker.start().await.expect("starts"));
    }
    let heeds = mill.client.enqueue(numbered(1)).await.expect("stored");
    let deaf = mill.client.enqueue(numbered(2)).await.expect("stored");
    told.wait_for(2).await;
    for job in [&heeds, &deaf] {
        assert_eq!(cancel(&mill, job).await, [Status::Cancelled]);
        assert_eq!(completion(job).await.status, Status::Cancelled);
    }
    ended.wait_for(1).await;
    let nats = mill.nats().await;
    eventually("their slots are free", || async {
        let running = mill.client.running(&Queue::default()).await.expect("told");
        running.is_empty().then_some(())
    })
    .await;
    assert_eq!(ended.all(), [1], "the deaf one was dropped");
    assert_eq!(stream_messages(&nats, "TIDEMILL_JOBS_default").await, 0);
    assert_eq!(stream_messages(&nats, "TIDEMILL_RESULTS_default").await, 2);
    for running in workers {
        running.drain().await;
    }
}

#[tokio::test]
async fn no_job_is_both_cancelled_and_done() {
    const JOBS: u64 = 300;
    let mill = Mill::start().await;
    let handler = |_: Numbered, _: JobContext| async {
        tokio::time::sleep(Duration::from_millis(3)).await;
        Ok::<_, JobError>(())
    };
    let worker = mill.worker().concurrency(4).handle(handler).build().expect("valid");
    let running = worker.start().await.expect("starts");
    let mut jobs = Vec::new();
    for stored in mill.client.enqueue_many((0..JOBS).map(|n| NewJob::new(&numbered(n)))).await {
        jobs.push(stored.expect("stored"));
    }
    completion(&jobs[0]).await;
    // From the end, to meet the worker on its way.
    let mut claimed = Vec::new();
    for job in jobs.iter().rev() {
        claimed.push(cancel(&mill, job).await);
    }
    let mut cancelled = 0;
    for (job, claimed) in jobs.iter().rev().zip(claimed) {
        let done = completion(job).await;
        assert_eq!(claimed, [done.status], "what was said is on record");
        cancelled += u64::from(done.status == Status::Cancelled);
    }
    assert!((1..JOBS).contains(&cancelled), "{cancelled}: the race was none");
    let nats = mill.nats().await;
    assert_eq!(stream_messages(&nats, "TIDEMILL_RESULTS_default").await, JOBS);
    eventually("the queue is empty", || async {
        (stream_messages(&nats, "TIDEMILL_JOBS_default").await == 0).then_some(())
    })
    .await;
    running.drain().await;
}

#[tokio::test]
async fn what_a_filter_leaves_is_cancelled_however_many() {
    let mill = Mill::start().await;
    let jobs = (0..700).map(|n| {
        let tag = if n % 7 == 0 { "keep" } else { "drop" };
        let job = NewJob::new(&numbered(n)).tag(tag).priority(Priority::ALL[n as usize % 4]);
        if n % 3 == 0 { job.delay(Duration::from_secs(3600)) } else { job }
    });
    for stored in mill.client.enqueue_many(jobs).await {
        stored.expect("stored");
    }
    let mut filter = JobFilter::queue(Queue::default());
    filter.tag = Some("drop".to_owned());
    let cancelled = mill.client.cancel_all(filter.clone(), "not wanted");
    let cancelled: Vec<Cancellation> = cancelled.try_collect().await.expect("cancels");
    assert_eq!(cancelled.len(), 600);
    assert!(cancelled.iter().all(|done| done.status == Status::Cancelled));
    let left: Vec<JobInfo> =
        mill.client.jobs(JobFilter::queue(Queue::default())).try_collect().await.expect("lists");
    assert_eq!(left.len(), 100);
    assert!(left.iter().all(|job| job.tags == ["keep"]));
    let again: Vec<Cancellation> =
        mill.client.cancel_all(filter, "again").try_collect().await.expect("nothing to do");
    assert!(again.is_empty());
}

async fn put_by_hand(nats: &async_nats::Client, subject: String, headers: &[(&str, String)]) {
    let mut map = async_nats::HeaderMap::new();
    for (name, value) in headers {
        map.insert(*name, value.as_str());
    }
    let answer = nats.request_with_headers(subject, map, "{}".into()).await.expect("an answer");
    let text = String::from_utf8_lossy(&answer.payload).into_owned();
    assert!(text.contains("\"seq\""), "{text}");
}

/// As a worker does it that has the job in its hands.
async fn park_by_hand(nats: &async_nats::Client, job: &JobHandle) {
    let at = |what: &str| format!("tidemill.{what}.default.normal.numbered.{}._", job.id());
    let run = ("Tidemill-Run", job.run().to_string());
    let target = ("Nats-Schedule-Target", at("due"));
    let schedule = ("Nats-Schedule", "@at 2099-01-01T00:00:00Z".to_owned());
    put_by_hand(nats, at("timers"), &[run, target, schedule]).await;
}

#[tokio::test]
async fn what_is_moved_while_it_is_cancelled_is_gone_from_everywhere() {
    let mill = Mill::start().await;
    let nats = mill.nats().await;
    let proxy = Proxy::start(mill.broker.url()).await;
    let client = proxy.client().await;
    let job = mill.client.enqueue(numbered(1)).await.expect("stored");
    proxy.hold("STREAM.MSG.DELETE");
    let (queue, id) = (job.queue().clone(), job.id().clone());
    let cancelling = tokio::spawn(async move { client.cancel(&queue, None, &id, "no").await });
    proxy.met().await;
    park_by_hand(&nats, &job).await;
    proxy.release();
    let cancelled = cancelling.await.expect("no panic").expect("cancelled");
    assert_eq!(cancelled.len(), 1);
    for stream in ["TIDEMILL_JOBS_default", "TIDEMILL_TIMERS_default"] {
        assert_eq!(stream_messages(&nats, stream).await, 0, "{stream}");
    }
    assert_eq!(mill.client.unfinished(job.queue()).await.expect("counted"), 0);
}

#[tokio::test]
async fn all_runs_of_an_id_are_cancelled_however_many() {
    const RUNS: u64 = 600;
    let mill = Mill::start().await;
    let jobs = (0..RUNS).map(|n| NewJob::new(&numbered(n)).id("order-17"));
    let mut first = None;
    for stored in mill.client.enqueue_many(jobs).await {
        first.get_or_insert(stored.expect("stored"));
    }
    let cancelled = cancel(&mill, &first.expect("many")).await;
    assert_eq!(cancelled.len() as u64, RUNS);
    assert_eq!(stream_messages(&mill.nats().await, "TIDEMILL_JOBS_default").await, 0);
}

#[tokio::test]
async fn a_filter_finds_what_is_promoted_behind_its_back() {
    let mill = Mill::start().await;
    let nats = mill.nats().await;
    let proxy = Proxy::start(mill.broker.url()).await;
    let client = proxy.client().await;
    // The lanes were looked at when it comes there.
    proxy.hold("DIRECT.GET.TIDEMILL_TIMERS_default");
    let began = client.cancel_all(JobFilter::queue(Queue::default()), "no");
    let cancelling = tokio::spawn(began.try_collect::<Vec<Cancellation>>());
    let created = chrono::Utc::now() - chrono::TimeDelta::seconds(60);
    proxy.met().await;
    let subject = "tidemill.jobs.default.normal.numbered.late".to_owned();
    put_by_hand(&nats, subject, &[("Tidemill-Created-At", created.to_rfc3339())]).await;
    proxy.release();
    let cancelled = cancelling.await.expect("no panic").expect("cancels");
    assert_eq!(cancelled.len(), 1);
    assert_eq!(stream_messages(&nats, "TIDEMILL_JOBS_default").await, 0);
}
