//! Clocks that are wrong.

use std::time::{Duration, Instant};

use chrono::{TimeDelta, Utc};
use tidemill::{NewJob, Status};

use crate::support::process::{Process, program};
use crate::support::{R1, Setup, Site, completion, skip};

/// A worker whose wall clock is off by this; `None`, after saying so, where this machine cannot.
async fn worker_off_by(url: &str, by: &str, arguments: &[&str]) -> Option<Process> {
    // It runs programs below itself, which would hear no signals; so it is only asked for its library.
    let mut ask = std::process::Command::new("faketime");
    let Ok(library) = ask.args(["-f", by, "printenv", "LD_PRELOAD"]).output() else {
        skip("a clock that is wrong takes the program faketime");
        return None;
    };
    let library = String::from_utf8(library.stdout).expect("a path");
    let mut command = program(url, &["work"]);
    command.args(arguments).env("LD_PRELOAD", library.trim()).env("FAKETIME", by);
    // Timers go by the monotonic clock, which nobody sets.
    command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("DONT_FAKE_MONOTONIC", "1");
    let worker = Process::start(command);
    worker.says("Ctrl-C drains").await;
    Some(worker)
}

/// Delays, expiries and retries with a worker whose clock is an hour off.
async fn an_hour_off(site: &Site, by: &str) {
    let arguments = [
        "--exec",
        // Its own clock, so that the test would notice if it were right.
        "once=date +%s; test $TIDEMILL_ATTEMPT -gt 1",
        "--exec",
        "quick=date +%s",
        "--backoff",
        "fixed:1000",
    ];
    let Some(worker) = worker_off_by(&site.url(), by, &arguments).await else { return };
    let asked = Instant::now();
    let delayed = NewJob::raw("quick", "{}").delay(Duration::from_secs(3));
    let delayed = site.client.enqueue(delayed).await.expect("stored");
    let at = NewJob::raw("quick", "{}").run_at(Utc::now() + TimeDelta::seconds(3));
    let at = site.client.enqueue(at).await.expect("stored");
    let expires = NewJob::raw("quick", "{}").expires_at(Utc::now() + TimeDelta::minutes(30));
    let expires = site.client.enqueue(expires).await.expect("stored");
    let expired = NewJob::raw("quick", "{}").expires_at(Utc::now() - TimeDelta::minutes(30));
    let expired = site.client.enqueue(expired).await.expect("stored");
    let retried = site.client.enqueue(NewJob::raw("once", "{}")).await.expect("stored");
    let done = completion(&expires).await;
    assert_eq!(done.status, Status::Done, "it has half an hour left");
    let its_clock: serde_json::Value = done.result().expect("JSON").expect("it tells its time");
    let its_clock: i64 = its_clock.to_string().trim_matches('"').parse().expect("seconds");
    let off = (its_clock - Utc::now().timestamp()).abs();
    assert!(off > 3000, "its clock is only {off} s off: the test shows nothing");
    assert_eq!(completion(&expired).await.status, Status::Expired);
    let done = completion(&retried).await;
    assert_eq!((done.status, done.attempt), (Status::Done, 2));
    assert!(asked.elapsed() >= Duration::from_secs(1), "retried after {:?}", asked.elapsed());
    for (what, job) in [("a delay", &delayed), ("a time", &at)] {
        assert_eq!(completion(job).await.status, Status::Done);
        let after = asked.elapsed();
        assert!(after >= Duration::from_millis(2900), "{what} of 3 s was over after {after:?}");
        assert!(after < Duration::from_secs(8), "{what} of 3 s was over after {after:?}");
        // What is on record is the broker's time too.
        let finished = completion(job).await.finished_at;
        let off = (finished - Utc::now()).num_seconds().abs();
        assert!(off < 60, "it is said to have ended {off} s away from now");
    }
    assert!(site.dead().await.is_empty());
    worker.terminate().await;
    site.copies_agree().await;
}

/// An hour ahead.
pub(crate) async fn a_clock_is_wrong(setup: Setup) {
    an_hour_off(&Site::start(setup).await, "+1h").await;
}

/// 21. A worker's clock is an hour ahead: nothing runs early, nothing that is alive expires, nothing that
/// has expired runs, and records carry the broker's time.
#[tokio::test]
async fn a_worker_an_hour_ahead_is_on_time() {
    a_clock_is_wrong(R1).await;
}

/// 21. The same, an hour behind.
#[tokio::test]
async fn a_worker_an_hour_behind_is_on_time() {
    an_hour_off(&Site::start(R1).await, "-1h").await;
}
