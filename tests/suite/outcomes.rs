//! What handlers say, and what becomes of their jobs.

use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use tidemill::{
    AttemptEvent, Backoff, Handler, JobContext, JobError, JobEvent, Next, Queue, RecordFilter,
    RetryPolicy, Since, Status,
};

use crate::support::{Mill, Numbered, PATIENCE, Seen, completion, dead, numbered};

fn quick(retries: u32) -> RetryPolicy {
    RetryPolicy::new(retries, Backoff::fixed(Duration::from_millis(50)))
}

#[tokio::test]
async fn a_failed_job_is_retried_with_its_attempts_counted_and_its_errors_kept() {
    let mill = Mill::start().await;
    let seen = Seen::default();
    let note = seen.clone();
    let handler = Handler::new(move |_: Numbered, context: JobContext| {
        note.push((context.attempt(), context.max_attempts()));
        let attempt = context.attempt();
        async move { if attempt < 3 { Err(JobError::failed("not yet")) } else { Ok(()) } }
    })
    .retry(quick(5));
    let running = mill.worker().handler(handler).build().expect("ok").start().await.expect("ok");
    let attempts = RecordFilter::queue(Queue::default()).since(Since::Start);
    let attempts = mill.client.attempts(attempts).await.expect("follows");
    let job = mill.client.enqueue(numbered(1)).await.expect("stored");
    let done = completion(&job).await;
    assert_eq!((done.status, done.attempt), (Status::Done, 3));
    assert_eq!(seen.all(), [(1, 6), (2, 6), (3, 6)]);
    let failed: Vec<(u32, String)> = attempts
        .try_filter(|entry| std::future::ready(entry.event == AttemptEvent::Failed))
        .take(2)
        .map(|entry| entry.map(|entry| (entry.attempt, entry.error.expect("kept").message)))
        .try_collect()
        .await
        .expect("reads");
    assert_eq!(failed, [(1, "not yet".to_owned()), (2, "not yet".to_owned())]);
    running.drain().await;
}

#[tokio::test]
async fn retries_come_when_the_policy_says() {
    let mill = Mill::start().await;
    let starts = Seen::default();
    let note = starts.clone();
    let handler = move |_: Numbered, context: JobContext| {
        note.push(std::time::Instant::now());
        let last = context.attempt() == context.max_attempts();
        async move { if last { Ok(()) } else { Err(JobError::failed("again")) } }
    };
    let running = mill.worker().handle(handler).build().expect("ok").start().await.expect("ok");
    // The job's own law goes before the worker's: 400, 800 and 1200 ms.
    let linear = Backoff::linear(Duration::from_millis(400));
    let job = mill.client.enqueue(numbered(1)).backoff(&linear).max_retries(3).await.expect("ok");
    completion(&job).await;
    let starts = starts.all();
    for (index, pair) in starts.windows(2).enumerate() {
        let delay = pair[1] - pair[0];
        let wanted = Duration::from_millis(400) * (u32::try_from(index).expect("small") + 1);
        assert!(delay >= wanted, "retry {index} after {delay:?}, before {wanted:?}");
        assert!(delay < wanted + Duration::from_secs(1), "retry {index} after {delay:?}");
    }
    running.drain().await;
}

#[tokio::test]
async fn when_the_attempts_are_used_up_the_job_is_buried_with_everything() {
    let mill = Mill::start().await;
    let handler = |_: Numbered, _: JobContext| async { Err::<(), _>(JobError::failed("never")) };
    let handler = Handler::new(handler).retry(quick(2));
    let running = mill.worker().handler(handler).build().expect("ok").start().await.expect("ok");
    let job = mill.client.enqueue(numbered(8)).header("X-Tenant", "7").await.expect("stored");
    let done = completion(&job).await;
    assert_eq!((done.status, done.attempt), (Status::Dead, 3));
    assert_eq!(done.reason.as_deref(), Some("attempts_exhausted"));
    assert_eq!(done.error.expect("kept").message, "never");
    let letters = dead(&mill).await;
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].payload, r#"{"n":8}"#);
    assert_eq!(letters[0].headers.get("X-Tenant"), Some("7"));
    assert_eq!(
        (letters[0].info.attempts, letters[0].info.reason.as_str()),
        (3, "attempts_exhausted")
    );
    let attempts = mill.client.attempts_of(&letters[0]).await.expect("reads");
    let failed: Vec<u32> = attempts
        .iter()
        .filter(|entry| entry.event == AttemptEvent::Failed)
        .map(|entry| entry.attempt)
        .collect();
    assert_eq!(failed, [1, 2, 3]);
    running.drain().await;
}

#[tokio::test]
async fn handlers_can_snooze_discard_cancel_and_name_the_delay() {
    let mill = Mill::start().await;
    let seen = Seen::default();
    let note = seen.clone();
    let handler = move |job: Numbered, context: JobContext| {
        let count = note.all().iter().filter(|n| **n == job.n).count();
        note.push(job.n);
        let attempt = context.attempt();
        async move {
            match (job.n, count) {
                (1, 0 | 1) => Err(JobError::snooze(Duration::from_millis(100))),
                (2, _) => Err(JobError::discard("pointless")),
                (3, _) => Err(JobError::cancelled("not wanted")),
                (4, 0) => Err(JobError::failed("busy").retry_after(Duration::from_millis(100))),
                _ => Ok(attempt),
            }
        }
    };
    let running = mill.worker().handle(handler).build().expect("ok").start().await.expect("ok");
    let client = &mill.client;
    let enqueue = |n| async move { client.enqueue(numbered(n)).await.expect("stored") };
    let [snoozed, discarded, cancelled, late] =
        [enqueue(1).await, enqueue(2).await, enqueue(3).await, enqueue(4).await];
    let done = completion(&snoozed).await;
    assert_eq!((done.status, done.attempt), (Status::Done, 1), "a snooze costs no attempt");
    let done = completion(&discarded).await;
    assert_eq!((done.status, done.reason.as_deref()), (Status::Dead, Some("discarded")));
    let done = completion(&cancelled).await;
    assert_eq!((done.status, done.reason.as_deref()), (Status::Cancelled, Some("not wanted")));
    let done = completion(&late).await;
    assert_eq!((done.status, done.attempt), (Status::Done, 2));
    running.drain().await;
}

#[tokio::test]
async fn a_panic_is_a_failed_attempt_with_message_and_backtrace() {
    let mill = Mill::start().await;
    let handler = |job: Numbered, _: JobContext| async move {
        assert!(job.n != 13, "unlucky {}", job.n);
        Ok::<_, JobError>(())
    };
    let running = mill
        .worker()
        .handler(Handler::new(handler).retry(quick(0)))
        .build()
        .expect("ok")
        .start()
        .await
        .expect("ok");
    let unlucky = mill.client.enqueue(numbered(13)).await.expect("stored");
    let error = completion(&unlucky).await.error.expect("kept");
    assert_eq!((error.kind.as_str(), error.message.as_str()), ("panic", "panicked: unlucky 13"));
    assert!(error.backtrace.expect("captured").contains("outcomes"));
    let lucky = mill.client.enqueue(numbered(7)).await.expect("stored");
    assert_eq!(completion(&lucky).await.status, Status::Done, "the worker goes on");
    running.drain().await;
}

#[tokio::test]
async fn blocking_handlers_run_beside_and_their_panics_are_caught() {
    let mill = Mill::start().await;
    let handler = Handler::blocking(|job: Numbered, _: JobContext| {
        std::thread::sleep(Duration::from_millis(50));
        assert!(job.n > 0, "nothing to do");
        Ok::<_, JobError>(job.n + 1)
    });
    let running = mill
        .worker()
        .handler(handler.retry(quick(0)))
        .build()
        .expect("ok")
        .start()
        .await
        .expect("ok");
    let good = mill.client.enqueue(numbered(1)).await.expect("stored");
    let bad = mill.client.enqueue(numbered(0)).await.expect("stored");
    assert_eq!(completion(&good).await.result::<u64>().expect("a number"), Some(2));
    let error = completion(&bad).await.error.expect("kept");
    assert_eq!(error.message, "panicked: nothing to do");
    running.drain().await;
}

#[tokio::test]
async fn a_job_whose_time_passes_is_a_failed_attempt() {
    let mill = Mill::start().await;
    let told = Seen::default();
    let note = told.clone();
    let handler = move |_: Numbered, context: JobContext| {
        let note = note.clone();
        async move {
            context.cancellation().cancelled().await;
            note.push(context.attempt());
            std::future::pending::<()>().await;
            Ok::<_, JobError>(())
        }
    };
    let running = mill.worker().handle(handler).build().expect("ok").start().await.expect("ok");
    let limit = Duration::from_millis(100);
    let job = mill.client.enqueue(numbered(1)).timeout(limit).max_retries(0).await.expect("ok");
    let done = completion(&job).await;
    assert_eq!(done.status, Status::Dead);
    let error = done.error.expect("kept");
    assert_eq!((error.kind.as_str(), error.message.as_str()), ("timeout", "timed out after 100ms"));
    assert_eq!(told.all(), [1], "the handler was told first");
    running.drain().await;
}

#[tokio::test]
async fn middleware_goes_around_handlers_in_order() {
    let mill = Mill::start().await;
    let seen: Seen<String> = Seen::default();
    let (outer, inner, core) = (seen.clone(), seen.clone(), seen.clone());
    let handler = move |_: Numbered, _: JobContext| {
        core.push("handler".into());
        async { Ok::<_, JobError>(()) }
    };
    let around = |name: &'static str, note: Seen<String>| {
        move |context: JobContext, next: Next| {
            let note = note.clone();
            async move {
                note.push(format!("{name} in"));
                let outcome = next.run(context).await;
                note.push(format!("{name} out"));
                outcome
            }
        }
    };
    let running = mill
        .worker()
        .middleware(around("outer", outer))
        .middleware(around("inner", inner))
        .handle(handler)
        .build()
        .expect("ok")
        .start()
        .await
        .expect("ok");
    completion(&mill.client.enqueue(numbered(1)).await.expect("stored")).await;
    assert_eq!(seen.all(), ["outer in", "inner in", "handler", "inner out", "outer out"]);
    running.drain().await;
}

#[tokio::test]
async fn watchers_see_progress_and_log_lines() {
    let mill = Mill::start().await;
    let nats = mill.nats().await;
    let events = nats.subscribe("tidemill.events.default.numbered.watched").await.expect("ok");
    nats.flush().await.expect("flushed");
    let handler = |_: Numbered, context: JobContext| async move {
        context.log("half of it").await;
        context.progress(0.5, "halfway").await;
        Ok::<_, JobError>(())
    };
    let running = mill.worker().handle(handler).build().expect("ok").start().await.expect("ok");
    let job = mill.client.enqueue(numbered(1)).id("watched").await.expect("stored");
    completion(&job).await;
    let read = |message: async_nats::Message| -> serde_json::Value {
        serde_json::from_slice(&message.payload).expect("JSON")
    };
    let seen: Vec<_> = tokio::time::timeout(PATIENCE, events.map(read).take(2).collect())
        .await
        .expect("both come");
    assert_eq!((&seen[0]["event"], &seen[0]["message"]), (&"log".into(), &"half of it".into()));
    assert_eq!((&seen[1]["event"], &seen[1]["progress"]), (&"progress".into(), &0.5.into()));
    assert_eq!((&seen[1]["run"], &seen[1]["attempt"]), (&job.run().as_str().into(), &1.into()));
    running.drain().await;
}

#[tokio::test]
async fn a_run_is_watched_live_to_its_end() {
    let mill = Mill::start().await;
    let handler = |_: Numbered, context: JobContext| async move {
        context.log("half of it").await;
        context.progress(0.4, "resizing").await;
        Ok::<_, JobError>(())
    };
    let job = mill.client.enqueue(numbered(1)).await.expect("stored");
    let info = mill.client.job(job.queue(), None, job.id()).await.expect("known").pop();
    let events = mill.client.watch(&info.expect("one")).await.expect("watches");
    mill.client.flush().await.expect("subscribed");
    let running = mill.worker().handle(handler).build().expect("ok").start().await.expect("ok");
    let all: Vec<JobEvent> = tokio::time::timeout(PATIENCE, events.try_collect())
        .await
        .expect("it ends")
        .expect("reads");
    match &all[..] {
        [
            JobEvent::Log { message: line, .. },
            JobEvent::Progress { progress, message, attempt: 1 },
            JobEvent::Ended(done),
        ] => {
            assert_eq!((line.as_str(), message.as_str()), ("half of it", "resizing"));
            assert!((progress - 0.4).abs() < 1e-9);
            assert_eq!(done.status, Status::Done);
        }
        other => panic!("{other:?}"),
    }
    running.drain().await;
}

#[tokio::test]
async fn a_panic_before_the_first_await_is_a_failed_attempt_and_keeps_no_slot() {
    let mill = Mill::start().await;
    let handler = Handler::raw("numbered", |_, context: JobContext| {
        assert!(context.attempt() > 1, "at once");
        async { Ok(None) }
    });
    let worker = mill.worker().concurrency(1).handler(handler.retry(quick(1)));
    let running = worker.build().expect("valid").start().await.expect("starts");
    for n in 1..=3 {
        let job = mill.client.enqueue(numbered(n)).await.expect("stored");
        let done = completion(&job).await;
        assert_eq!((done.status, done.attempt), (Status::Done, 2));
    }
    running.drain().await;
}
