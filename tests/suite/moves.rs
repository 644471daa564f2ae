//! Jobs that are moved by somebody who is slow, or killed, between the copy and the end of the
//! source: never lost, and run twice at most.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::StreamExt;
use futures_util::future::join_all;
use tidemill::embedded::Cluster;
use tidemill::{
    Backoff, Client, Handler, JobContext, JobError, JobState, NewJob, Priority, QueueConfig,
    RetryPolicy, Running, Status, Worker,
};

use crate::proxy::Proxy;
use crate::support::{
    Mill, Numbered, Seen, completion, connect, consumer_counts, eventually, numbered,
    stream_messages,
};

const JOBS: &str = "TIDEMILL_JOBS_default";
const TIMERS: &str = "TIDEMILL_TIMERS_default";
const DELETE: &str = "STREAM.MSG.DELETE";

async fn noting(mill: &Mill, seen: &Seen<(u64, u32)>) -> Running {
    let note = seen.clone();
    let handler = move |job: Numbered, context: JobContext| {
        note.push((job.n, context.attempt()));
        async { Ok::<_, JobError>(()) }
    };
    mill.worker().handle(handler).build().expect("valid").start().await.expect("starts")
}

async fn nothing_is_left(mill: &Mill) {
    no_job_is_left(&mill.nats().await).await;
}

async fn no_job_is_left(nats: &async_nats::Client) {
    eventually("nothing is left", || async {
        let left = stream_messages(nats, JOBS).await + stream_messages(nats, TIMERS).await;
        (left == 0).then_some(())
    })
    .await;
}

/// Lets a client begin something that ends in a deletion, and kills it before that.
async fn killed_before_the_deletion<F>(mill: &Mill, verb: impl FnOnce(Client) -> F)
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    let proxy = Proxy::start(mill.broker.url()).await;
    let client = proxy.client().await;
    proxy.hold(DELETE);
    let verb = tokio::spawn(verb(client));
    proxy.met().await;
    verb.abort();
    proxy.cut();
}

/// A timer that a promoter has had in its hands, whatever it did with it.
async fn timer_was_seen(mill: &Mill) {
    let nats = mill.nats().await;
    eventually("a promoter has seen the timer", || async {
        let (_, unsettled) = consumer_counts(&nats, TIMERS, "due").await;
        (unsettled > 0 || stream_messages(&nats, TIMERS).await == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_timer_that_fires_before_its_source_is_deleted_keeps_the_job() {
    let mill = Mill::start().await;
    let proxy = Proxy::start(mill.broker.url()).await;
    let slow = proxy.client().await;
    let seen = Seen::default();
    let job = mill.client.enqueue(numbered(1)).await.expect("stored");
    mill.client.pause(job.queue(), None, None).await.expect("paused");
    let running = noting(&mill, &seen).await;

    proxy.hold(DELETE);
    let (queue, id) = (job.queue().clone(), job.id().clone());
    let soon = Utc::now() + TimeDelta::milliseconds(1500);
    let moving = tokio::spawn(async move { slow.reschedule(&queue, None, &id, soon).await });
    proxy.met().await;
    timer_was_seen(&mill).await;
    proxy.release();
    assert_eq!(moving.await.expect("no panic").expect("moved"), 1);

    mill.client.resume(job.queue(), None).await.expect("resumed");
    assert_eq!(completion(&job).await.status, Status::Done);
    assert_eq!(seen.all(), [(1, 1)]);
    nothing_is_left(&mill).await;
    running.drain().await;
}

#[tokio::test]
async fn a_client_that_is_killed_before_it_deletes_the_source_loses_and_doubles_nothing() {
    let mill = Mill::start().await;
    let seen = Seen::default();
    let job = mill.client.enqueue(numbered(1)).await.expect("stored");
    let soon = Utc::now() + TimeDelta::milliseconds(1500);
    let (queue, id) = (job.queue().clone(), job.id().clone());
    killed_before_the_deletion(&mill, |client| async move {
        client.reschedule(&queue, None, &id, soon).await
    })
    .await;
    let nats = mill.nats().await;
    assert_eq!(stream_messages(&nats, JOBS).await, 1, "the source");
    assert_eq!(stream_messages(&nats, TIMERS).await, 1, "and its copy");
    // The source is run, and the timer finds the completion.
    let running = noting(&mill, &seen).await;
    assert_eq!(completion(&job).await.status, Status::Done);
    nothing_is_left(&mill).await;
    assert_eq!(seen.all(), [(1, 1)]);
    running.drain().await;
}

#[tokio::test]
async fn what_was_left_twice_on_the_lanes_or_timers_moves_as_one() {
    let mill = Mill::start().await;
    let nats = mill.nats().await;
    let seen = Seen::default();
    let plain = mill.client.enqueue(numbered(1)).id("plain").await.expect("stored");
    let unique = mill.client.enqueue(NewJob::new(&numbered(2)).unique("k")).await.expect("stored");
    let later = Utc::now() + TimeDelta::hours(1);
    for job in [&plain, &unique] {
        let (queue, id) = (job.queue().clone(), job.id().clone());
        killed_before_the_deletion(&mill, |client| async move {
            client.set_priority(&queue, None, &id, Priority::High).await
        })
        .await;
    }
    assert_eq!(stream_messages(&nats, JOBS).await, 4, "two each");
    for job in [&plain, &unique] {
        let moved = mill.client.set_priority(job.queue(), None, job.id(), Priority::Low).await;
        assert_eq!(moved.expect("moved"), 1);
    }
    assert_eq!(stream_messages(&nats, JOBS).await, 2, "one each");
    let (queue, id) = (plain.queue().clone(), plain.id().clone());
    killed_before_the_deletion(&mill, |client| async move {
        client.reschedule(&queue, None, &id, later).await
    })
    .await;
    let moved = mill.client.run_now(plain.queue(), None, plain.id()).await;
    assert_eq!(moved.expect("moved"), 1);
    let running = noting(&mill, &seen).await;
    for job in [&plain, &unique] {
        assert_eq!(completion(job).await.status, Status::Done);
    }
    nothing_is_left(&mill).await;
    let mut all = seen.all();
    all.sort_unstable();
    assert_eq!(all, [(1, 1), (2, 1)]);
    running.drain().await;
}

#[tokio::test]
async fn a_timer_changes_its_lane_in_one_step() {
    let mill = Mill::start().await;
    let nats = mill.nats().await;
    let job = mill.client.enqueue(numbered(1)).await.expect("stored");
    let later = Utc::now() + TimeDelta::hours(1);
    mill.client.reschedule(job.queue(), None, job.id(), later).await.expect("moved");
    let client = &mill.client;
    let (queue, id) = (job.queue().clone(), job.id().clone());
    killed_before_the_deletion(&mill, |client| async move {
        client.set_priority(&queue, None, &id, Priority::High).await
    })
    .await;
    assert_eq!(stream_messages(&nats, TIMERS).await, 1, "in the old one's place");
    let moved = client.set_priority(job.queue(), None, job.id(), Priority::Low).await;
    assert_eq!(moved.expect("moved"), 1);
    assert_eq!(stream_messages(&nats, TIMERS).await, 1, "in the old one's place");
    let there = client.job(job.queue(), None, job.id()).await.expect("known").pop().expect("one");
    assert_eq!(there.priority, Priority::Low);
    assert_eq!(there.state.as_str(), "scheduled");
    assert_eq!(client.run_now(job.queue(), None, job.id()).await.expect("moved"), 1);
    let seen = Seen::default();
    let running = noting(&mill, &seen).await;
    assert_eq!(completion(&job).await.priority, Priority::Low);
    nothing_is_left(&mill).await;
    running.drain().await;
}

/// A timer that is older than a job is no reason to let go of the job: who finds both takes the timer
/// away.
#[tokio::test]
async fn a_job_that_is_parked_takes_the_place_of_a_timer_that_is_older() {
    let mill = Mill::start().await;
    let nats = mill.nats().await;
    let publish = |subject: &str, headers: &[(&str, &str)]| {
        let (nats, subject) = (nats.clone(), subject.to_owned());
        let mut map = async_nats::HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, *value);
        }
        async move { nats.request_with_headers(subject, map, r#"{"n":1}"#.into()).await }
    };
    let run = ("Tidemill-Run", "r1");
    let target = ("Nats-Schedule-Target", "tidemill.due.default.normal.numbered.a.r1");
    let schedule = ("Nats-Schedule", "@at 2099-01-01T00:00:00Z");
    let timer = "tidemill.timers.default.normal.numbered.a.r1";
    publish(timer, &[run, target, schedule]).await.expect("stored");
    let promoted = ("Tidemill-Promoted", "9000000000000000");
    let later = ("Tidemill-Run-After", "2098-01-01T00:00:00Z");
    let job = "tidemill.jobs.default.normal.numbered.a";
    publish(job, &[run, promoted, later]).await.expect("stored");
    let running = noting(&mill, &Seen::default()).await;
    eventually("it is parked", || async {
        (stream_messages(&nats, JOBS).await == 0).then_some(())
    })
    .await;
    assert_eq!(stream_messages(&nats, TIMERS).await, 1);
    let id = tidemill::JobId::new("a").expect("an id");
    let there = mill.client.job(&Default::default(), None, &id).await.expect("known");
    let JobState::Scheduled(due) = there[0].state else { panic!("{there:?}") };
    let asked: DateTime<Utc> = "2098-01-01T00:00:00Z".parse().expect("a time");
    assert!((due - asked).num_milliseconds().abs() < 1000, "{due}");
    running.drain().await;
}

#[tokio::test]
async fn many_who_move_at_once_lose_nothing() {
    let mill = Mill::start().await;
    let client = || mill.client.clone();
    move_about([client(), client(), client()]).await;
    nothing_is_left(&mill).await;
}

#[tokio::test]
async fn many_who_move_at_once_on_three_servers_lose_nothing() {
    let cluster = Cluster::start(3).await.expect("a cluster");
    let mut config = QueueConfig::default();
    config.replicas = 3;
    let at = |node: usize| {
        let (url, config) = (cluster.node(node).url().to_owned(), config.clone());
        async move { connect(&url).await.with_queue_config(config) }
    };
    move_about([at(0).await, at(1).await, at(2).await]).await;
    no_job_is_left(&async_nats::connect(cluster.node(0).url()).await.expect("connects")).await;
}

/// Lets jobs fail, be parked and promoted, while clients move them about as they like.
async fn move_about(clients: [Client; 3]) {
    const JOBS_AT_ONCE: u64 = 60;
    const MOVES: u64 = 150;
    let handler = Handler::new(|_: Numbered, context: JobContext| {
        let attempt = context.attempt();
        async move { if attempt < 3 { Err(JobError::failed("not yet")) } else { Ok(()) } }
    });
    let policy = RetryPolicy::new(10_000, Backoff::fixed(Duration::from_millis(700)));
    let worker = Worker::builder(&clients[0]).park_over(Duration::from_millis(300));
    let worker = worker.handler(handler.retry(policy)).build().expect("valid");
    let running = worker.start().await.expect("starts");
    let mut jobs = Vec::new();
    for n in 0..JOBS_AT_ONCE {
        let job = clients[1].enqueue(numbered(n)).id(format!("job-{}", n % 40));
        jobs.push(job.delay(Duration::from_millis(n * 20)).await.expect("stored"));
    }
    let movers = (0..).zip(clients).map(|(mover, client)| {
        let jobs = jobs.clone();
        async move {
            for step in 0..MOVES {
                let dice = fastrand::Rng::with_seed(mover * 1000 + step).u64(..);
                let job = &jobs[usize::try_from(dice % JOBS_AT_ONCE).expect("small")];
                let (queue, id) = (job.queue(), job.id());
                let soon = Utc::now() + TimeDelta::milliseconds((dice >> 20) as i64 % 600);
                let lane = Priority::ALL[(dice >> 30) as usize % 4];
                let moved = match (dice >> 8) % 3 {
                    0 => client.run_now(queue, None, id).await,
                    1 => client.reschedule(queue, None, id, soon).await,
                    _ => client.set_priority(queue, None, id, lane).await,
                };
                if let Err(error) = moved {
                    // It runs, has ended, or is moved by the others.
                    let may_be =
                        error.is_invalid() || error.is_not_found() || error.is_unavailable();
                    assert!(may_be, "{error}");
                }
            }
        }
    });
    join_all(movers).await;
    for job in &jobs {
        assert_eq!(completion(job).await.status, Status::Done, "{job:?}");
    }
    running.drain().await;
}

/// What promoters and parkers leave that are killed between two steps.
#[tokio::test]
async fn what_is_due_and_held_by_something_younger_is_only_acked() {
    let mill = Mill::start().await;
    let nats = mill.nats().await;
    mill.client.pause(&Default::default(), None, None).await.expect("paused");
    let publish = |subject: String, headers: Vec<(&'static str, String)>| {
        let (nats, mut map) = (nats.clone(), async_nats::HeaderMap::new());
        for (name, value) in headers {
            map.insert(name, value);
        }
        async move {
            let answer = nats.request_with_headers(subject, map, r#"{"n":1}"#.into()).await;
            let answer: serde_json::Value =
                serde_json::from_slice(&answer.expect("an answer").payload).expect("JSON");
            answer["seq"].as_u64().unwrap_or_else(|| panic!("not stored: {answer}"))
        }
    };
    let run = || ("Tidemill-Run", "r1".to_owned());
    let due = |id: &str| format!("tidemill.due.default.normal.numbered.{id}.r1");
    // Promoted, but not acked.
    let out = publish(due("copied"), vec![run()]).await;
    let used = ("Tidemill-Attempts-Used", "0".to_owned());
    let copy = vec![run(), used, ("Tidemill-Promoted", out.to_string())];
    publish("tidemill.jobs.default.low.numbered.copied".to_owned(), copy).await;
    // Promoted, run, and parked again.
    publish(due("parked"), vec![run()]).await;
    let target = ("Nats-Schedule-Target", due("parked"));
    let schedule = ("Nats-Schedule", "@at 2099-01-01T00:00:00Z".to_owned());
    let subject = "tidemill.timers.default.normal.numbered.parked.r1".to_owned();
    publish(subject, vec![run(), target, schedule]).await;

    // Promoters had both in their hands.
    let inbox = nats.new_inbox();
    let handed_out = nats.subscribe(inbox.clone()).await.expect("subscribed").take(2);
    let next = "$JS.API.CONSUMER.MSG.NEXT.TIDEMILL_TIMERS_default.due";
    nats.publish_with_reply(next, inbox, "2".into()).await.expect("sent");
    for out in handed_out.collect::<Vec<_>>().await {
        nats.publish(out.reply.expect("to be acked"), "-NAK".into()).await.expect("sent");
    }

    let seen = Seen::default();
    let running = noting(&mill, &seen).await;
    eventually("both are acked", || async {
        (stream_messages(&nats, TIMERS).await == 1).then_some(())
    })
    .await;
    assert_eq!(stream_messages(&nats, JOBS).await, 1, "nothing was copied");
    let parked = tidemill::JobId::new("parked").expect("an id");
    let there = mill.client.job(&Default::default(), None, &parked).await.expect("known");
    assert_eq!((there.len(), there[0].state.as_str()), (1, "scheduled"));
    mill.client.resume(&Default::default(), None).await.expect("resumed");
    assert_eq!(seen.wait_for(1).await, [(1, 1)]);
    running.drain().await;
}
