//! Cron: what the broker enqueues by itself, again and again.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use chrono::{TimeDelta, Utc};
use futures_util::future::join_all;
use tidemill::embedded::Broker;
use tidemill::{
    Client, CronChange, CronEntry, CronJob, CronName, JobContext, JobError, NewJob, Priority,
    Queue, Running, Schedule, Status, Worker,
};

use crate::support::{Mill, Numbered, Seen, completion, connect, eventually, numbered, until};

const TIMERS: &str = "TIDEMILL_TIMERS_default";

fn name(text: &str) -> CronName {
    CronName::new(text).expect("a name")
}

fn every_second() -> Schedule {
    "@every 1s".parse().expect("a schedule")
}

async fn entries(client: &Client) -> Vec<CronEntry> {
    client.cron().list(&Queue::default()).await.expect("lists")
}

async fn entry(client: &Client, of: &str) -> CronEntry {
    client.cron().get(&Queue::default(), &name(of)).await.expect("is there")
}

/// A worker whose jobs take `long`, and that notes the id of each and when it began.
async fn noting(client: &Client, seen: &Seen<(String, Instant)>, long: Duration) -> Running {
    let note = seen.clone();
    let handler = move |_: Numbered, context: JobContext| {
        note.push((context.id().to_string(), Instant::now()));
        async move {
            until(Instant::now() + long).await;
            Ok::<_, JobError>(())
        }
    };
    let worker = Worker::builder(client).handle(handler).build().expect("valid");
    worker.start().await.expect("starts")
}

#[tokio::test]
async fn each_firing_is_a_job_of_its_own() {
    let mill = Mill::start().await;
    let seen = Seen::default();
    let running = noting(&mill.client, &seen, Duration::ZERO).await;
    let job = NewJob::new(&numbered(7)).priority(Priority::High).tag("ticks");
    let tick = CronJob::new("tick", every_second(), job);
    assert_eq!(mill.client.cron().add(tick).await.expect("added"), CronChange::Added);
    let before = entry(&mill.client, "tick").await;
    assert!(before.last.is_none() && before.next().is_some(), "{before:?}");
    let all = seen.wait_for(3).await;
    let ids: HashSet<&String> = all.iter().map(|(id, _)| id).collect();
    assert_eq!(ids.len(), all.len());
    assert!(ids.iter().all(|id| id.starts_with("c-tick-")), "{ids:?}");
    let after = entry(&mill.client, "tick").await;
    let last = after.last.clone().expect("it has fired");
    assert!(ids.contains(&last.id.to_string()) || seen.len() > all.len());
    let next = after.next().expect("it fires on");
    assert!(next > last.at && next <= last.at + TimeDelta::seconds(3), "{next} after {last:?}");
    let spacing: Vec<TimeDelta> =
        after.upcoming(4).windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(spacing, [TimeDelta::seconds(1); 3]);
    let job = &mill.client.job(&Queue::default(), None, &last.id).await.expect("known")[0];
    assert_eq!(job.priority, Priority::High);
    assert!(mill.client.cron().remove(&Queue::default(), &name("tick")).await.expect("removed"));
    assert!(!mill.client.cron().remove(&Queue::default(), &name("tick")).await.expect("gone"));
    assert!(entries(&mill.client).await.is_empty());
    running.drain().await;
}

#[tokio::test]
async fn adding_again_replaces_by_name_in_one_step() {
    let mill = Mill::start().await;
    let cron = mill.client.cron();
    let nine: Schedule = "0 9 * * *".parse().expect("valid");
    let with = |priority: Priority, kind: &str| {
        CronJob::new("report", nine.clone(), NewJob::raw(kind, "{}").priority(priority))
    };
    let same = || with(Priority::Low, "report");
    assert_eq!(cron.add(same()).await.expect("added"), CronChange::Added);
    let first = entry(&mill.client, "report").await;
    assert_eq!(cron.add(same()).await.expect("there"), CronChange::Unchanged);
    assert_eq!(entry(&mill.client, "report").await.changed_at, first.changed_at);
    // Another lane and another kind are another subject: the old one goes in the same step.
    let other = with(Priority::High, "digest");
    assert_eq!(cron.add(other).await.expect("replaced"), CronChange::Updated);
    let all = entries(&mill.client).await;
    assert_eq!(all.len(), 1);
    assert_eq!((all[0].kind.as_str(), all[0].priority), ("digest", Priority::High));
    // However many do it at once.
    let racers = (0..40).map(|n| {
        let job = with(Priority::ALL[n % 4], &format!("kind-{}", n % 5));
        async move { cron.add(job).await }
    });
    let mut won = 0;
    for outcome in join_all(racers).await {
        match outcome {
            Ok(_) => won += 1,
            Err(error) => assert!(error.is_unavailable(), "{error}"),
        }
    }
    assert!(won > 0);
    assert_eq!(entries(&mill.client).await.len(), 1, "one of a name, whatever happens");
}

#[tokio::test]
async fn a_paused_entry_stays_paused_and_can_be_run() {
    let mill = Mill::start().await;
    let seen = Seen::default();
    let running = noting(&mill.client, &seen, Duration::ZERO).await;
    let (cron, queue) = (mill.client.cron(), Queue::default());
    let tick = |n: u64| CronJob::new("tick", every_second(), numbered(n));
    cron.add(tick(1)).await.expect("added");
    seen.wait_for(1).await;
    assert!(cron.pause(&queue, &name("tick")).await.expect("paused"));
    assert!(!cron.pause(&queue, &name("tick")).await.expect("already"));
    // Also where the code declares it anew, on another lane.
    assert_eq!(cron.add(tick(2)).await.expect("changed"), CronChange::Updated);
    let moved =
        CronJob::new("tick", every_second(), NewJob::new(&numbered(2)).priority(Priority::Low));
    assert_eq!(cron.add(moved).await.expect("moved"), CronChange::Updated);
    let paused = entry(&mill.client, "tick").await;
    assert!(paused.paused_at.is_some() && paused.next().is_none());
    until(Instant::now() + Duration::from_millis(500)).await;
    let so_far = seen.len();
    until(Instant::now() + Duration::from_millis(2500)).await;
    assert_eq!(seen.len(), so_far, "a paused entry does not fire");
    let job = cron.run(&queue, &name("tick")).await.expect("enqueued");
    assert!(job.id().as_str().starts_with("c-tick-"));
    assert_eq!(completion(&job).await.status, Status::Done);
    assert_eq!(seen.len(), so_far + 1);
    assert!(cron.resume(&queue, &name("tick")).await.expect("resumed"));
    seen.wait_for(so_far + 2).await;
    assert!(cron.pause(&queue, &name("none")).await.expect_err("none").is_not_found());
    running.drain().await;
}

#[tokio::test]
async fn what_the_code_declares_is_what_there_is() {
    let mill = Mill::start().await;
    let cron = mill.client.cron();
    let hourly = |name: &str, queue: &str| {
        let job = NewJob::raw("work", "{}").queue(queue);
        CronJob::new(name, "@hourly".parse().expect("valid"), job)
    };
    cron.add(hourly("by-hand", "default")).await.expect("added");
    let other = cron.reconcile_set("billing", [hourly("invoices", "default")]);
    other.await.expect("declared");
    let first = [hourly("one", "default"), hourly("two", "default"), hourly("three", "images")];
    let done = cron.reconcile(first).await.expect("declared");
    assert_eq!(done.added, [name("one"), name("two"), name("three")]);
    let daily = CronJob::new("two", "@daily".parse().expect("valid"), NewJob::raw("work", "{}"));
    let done = cron.reconcile([hourly("one", "default"), daily]).await.expect("declared");
    assert_eq!(done.unchanged, [name("one")]);
    assert_eq!(done.updated, [name("two")]);
    assert_eq!(done.removed, [name("three")], "also from a queue that is not declared any more");
    let left: Vec<String> =
        entries(&mill.client).await.iter().map(|entry| entry.name.to_string()).collect();
    assert_eq!(left, ["by-hand", "invoices", "one", "two"]);
    let twice = cron.reconcile([hourly("one", "default"), hourly("one", "default")]).await;
    assert!(twice.expect_err("refused").to_string().contains("declared twice"));
    let done = cron.reconcile([]).await.expect("declared");
    assert_eq!(done.removed, [name("one"), name("two")]);
}

#[tokio::test]
async fn overlapping_runs_are_allowed_or_left_out() {
    let mill = Mill::start().await;
    let (skipping, overlapping) = (Seen::default(), Seen::default());
    let long = Duration::from_millis(2600);
    let running = noting(&mill.client, &skipping, long).await;
    let handler = {
        let note = overlapping.clone();
        move |_: Numbered, _: JobContext| {
            note.push(Instant::now());
            async move {
                until(Instant::now() + long).await;
                Ok::<_, JobError>(())
            }
        }
    };
    let worker = Worker::builder(&mill.client).queue("other").handle(handler);
    let beside = worker.build().expect("valid").start().await.expect("starts");
    let cron = mill.client.cron();
    cron.add(CronJob::new("slow", every_second(), numbered(1)).skip_overlap())
        .await
        .expect("added");
    let there = NewJob::new(&numbered(1)).queue("other");
    cron.add(CronJob::new("slow", every_second(), there)).await.expect("added");
    let apart = skipping.wait_for(3).await;
    for pair in apart.windows(2) {
        assert!(pair[1].1 - pair[0].1 >= long, "one at a time");
        assert_eq!(pair[0].0, "c-slow");
    }
    let seen = overlapping.all();
    assert!(seen.windows(2).any(|pair| pair[1] - pair[0] < long), "these overlap: {seen:?}");
    eventually("a firing is noted as left out", || async {
        let last = entry(&mill.client, "slow").await.last?;
        last.skipped.then_some(())
    })
    .await;
    let again = cron.run(&Queue::default(), &name("slow")).await.expect("looked at");
    assert!(again.is_duplicate(), "one is unfinished");
    join_all([running.drain(), beside.drain()]).await;
}

/// How the broker is away for a while.
enum Away {
    Killed,
    Frozen,
}

/// Lets the broker be away while two entries are due, one of them three times.
async fn fires_once_after(away: Away) {
    let mill = Mill::start().await;
    let seen = Seen::default();
    let running = noting(&mill.client, &seen, Duration::ZERO).await;
    let every_two = "@every 2s".parse().expect("valid");
    mill.client.cron().add(CronJob::new("tick", every_two, numbered(1))).await.expect("added");
    let due = Utc::now() + TimeDelta::seconds(3);
    let once = due.format("%S %M %H %d %m *").to_string().parse().expect("a pattern");
    let job = NewJob::new(&numbered(2));
    mill.client.cron().add(CronJob::new("yearly", once, job)).await.expect("added");
    match away {
        Away::Killed => mill.broker.kill().await.expect("kills"),
        Away::Frozen => mill.broker.freeze().await.expect("freezes"),
    }
    until(Instant::now() + Duration::from_secs(7)).await;
    match away {
        Away::Killed => mill.broker.restart().await.expect("restarts"),
        Away::Frozen => mill.broker.thaw().await.expect("thaws"),
    }
    let of = |name: &str| {
        let begins = format!("c-{name}-");
        let all = seen.all();
        let of_it = all.iter().filter(|(id, _)| id.starts_with(&begins));
        of_it.map(|(_, at)| *at).collect::<Vec<_>>()
    };
    eventually("it fires again and again", || async {
        (of("tick").len() >= 5 && !of("yearly").is_empty()).then_some(())
    })
    .await;
    assert_eq!(of("yearly").len(), 1, "made up for, once");
    // Three were missed: one at most is made up, and the next come in their time.
    let ticks = of("tick");
    let close = ticks.windows(2).filter(|pair| pair[1] - pair[0] < Duration::from_millis(1200));
    assert!(close.count() <= 1, "no burst: {ticks:?}");
    running.drain().await;
}

#[tokio::test]
async fn a_broker_that_was_killed_fires_once() {
    fires_once_after(Away::Killed).await;
}

#[tokio::test]
async fn a_broker_that_was_frozen_fires_once() {
    fires_once_after(Away::Frozen).await;
}

#[tokio::test]
async fn without_a_worker_one_firing_is_kept() {
    let mill = Mill::start().await;
    mill.client.cron().add(CronJob::new("tick", every_second(), numbered(1))).await.expect("added");
    let nats = mill.nats().await;
    eventually("it has fired several times", || async {
        let subject = format!("$JS.API.STREAM.INFO.{TIMERS}");
        let answer = nats.request(subject, "".into()).await.expect("an answer");
        let info: serde_json::Value = serde_json::from_slice(&answer.payload).expect("JSON");
        let state = &info["state"];
        let written = state["last_seq"].as_u64()? - state["first_seq"].as_u64()?;
        assert!(state["messages"].as_u64()? <= 2, "the entry and its last firing: {state}");
        (written >= 3).then_some(())
    })
    .await;
    let cron = mill.client.cron();
    cron.pause(&Queue::default(), &name("tick")).await.expect("paused");
    let seen = Seen::default();
    let running = noting(&mill.client, &seen, Duration::ZERO).await;
    seen.wait_for(1).await;
    until(Instant::now() + Duration::from_millis(500)).await;
    assert_eq!(seen.len(), 1);
    running.drain().await;
}

#[tokio::test]
async fn any_client_can_add_an_entry() {
    let mill = Mill::start().await;
    let seen = Seen::default();
    let running = noting(&mill.client, &seen, Duration::ZERO).await;
    let nats = mill.nats().await;
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-Schedule", "* * * * * *");
    headers.insert("Nats-Schedule-Target", "tidemill.due.default.high.numbered.c-raw._");
    let subject = "tidemill.cron.default.high.numbered.raw";
    nats.request_with_headers(subject, headers, r#"{"n":7}"#.into()).await.expect("stored");
    let all = seen.wait_for(2).await;
    assert!(all.iter().all(|(id, _)| id.starts_with("c-raw-")), "{all:?}");
    let entry = entry(&mill.client, "raw").await;
    assert_eq!(entry.schedule, "* * * * * *");
    assert!(mill.client.cron().pause(&Queue::default(), &name("raw")).await.expect("paused"));
    running.drain().await;
}

#[tokio::test]
async fn the_oldest_server_that_can_will_do() {
    let broker = Broker::builder().version("2.14.6").start().await.expect("a broker");
    let client = connect(broker.url()).await;
    let seen = Seen::default();
    let running = noting(&client, &seen, Duration::ZERO).await;
    client.cron().add(CronJob::new("tick", every_second(), numbered(1))).await.expect("added");
    seen.wait_for(2).await;
    let job = NewJob::new(&numbered(1)).priority(Priority::Low);
    let moved = client.cron().add(CronJob::new("tick", every_second(), job)).await;
    assert_eq!(moved.expect("moved"), CronChange::Updated);
    seen.wait_for(seen.len() + 2).await;
    assert_eq!(entries(&client).await.len(), 1);
    running.drain().await;
}

#[tokio::test]
async fn an_old_server_is_told_from_a_new_one() {
    let broker = Broker::builder().version("2.12.8").start().await.expect("a broker");
    let client = connect(broker.url()).await;
    let refused = client.cron().add(CronJob::new("tick", every_second(), numbered(1))).await;
    let error = refused.expect_err("too old");
    assert!(error.is_unsupported());
    assert!(error.to_string().contains("needs nats-server 2.14 or newer: this one is 2.12.8"));
}
