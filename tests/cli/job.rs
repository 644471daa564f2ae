//! `tidemill job`: looked at, listed, cancelled.

use rustix::process::{Pid, test_kill_process};

use serde::{Deserialize, Serialize};
use tidemill::{Client, ConnectOptions, Job, JobContext, JobError, Worker};

use crate::support::{Mill, Running, eventually};

#[derive(Serialize, Deserialize)]
struct Resize {}

impl Job for Resize {
    const KIND: &'static str = "resize";
}

#[tokio::test]
async fn jobs_are_shown_and_listed_with_their_states() {
    let mill = Mill::start().await;
    mill.ok(&["enqueue", "default", "any", r#"{"n":1}"#, "--id", "a", "--tag", "blue"]);
    mill.ok(&["enqueue", "default", "any", "--id", "b", "--in", "1h", "--priority", "low"]);
    let shown = &mill.json(&["job", "get", "a"])[0];
    assert_eq!((&shown["state"], &shown["payload"]["n"]), (&"waiting".into(), &1.into()));
    let text = mill.ok(&["job", "get", "b"]);
    assert!(text.contains("scheduled until 20") && text.contains("default (low)"), "{text}");
    let ids = |filter: &[&str]| -> Vec<String> {
        let jobs = mill.json(&[&["job", "ls"], filter].concat());
        jobs.iter().map(|job| job["id"].as_str().expect("text").to_owned()).collect()
    };
    assert_eq!(ids(&["--tag", "blue"]), ["a"]);
    assert_eq!(ids(&["--priority", "low"]), ["b"]);
    assert_eq!(ids(&["--state", "scheduled"]), ["b"]);
    assert_eq!(ids(&["--state", "waiting"]), ["a"]);
    assert_eq!(ids(&["--kind", "any"]), ["a", "b"]);
    assert_eq!(ids(&["--kind", "other"]), Vec::<String>::new());
    assert_eq!(ids(&["--limit", "1"]), ["a"]);
    let cut = mill.run(&["job", "ls", "--limit", "1", "--json"]);
    let cursor = mill.json(&["job", "ls", "--limit", "1"])[0]["cursor"].clone();
    let cursor = cursor.as_str().expect("text");
    assert!(cut.err.contains(&format!("go on with --after {cursor}")), "{cut:?}");
    assert_eq!(ids(&["--after", cursor]), ["b"]);
    assert_eq!(mill.run(&["job", "ls", "--after", "there"]).code, 2);
    assert_eq!(mill.run(&["job", "ls", "--limit", "0"]).code, 2);
    assert!(mill.ok(&["job", "ls"]).contains("waiting"));
    let missing = mill.run(&["job", "get", "nobody"]);
    assert_eq!(missing.code, 3, "{missing:?}");
    assert!(missing.err.contains("queue default knows no job nobody"), "{missing:?}");
}

#[tokio::test]
async fn jobs_are_listed_by_each_state_that_they_can_be_in() {
    let mill = Mill::start().await;
    let _worker = mill.work(&[
        "--backoff",
        "fixed:30000",
        "--exec",
        "good=true",
        "--exec",
        "hopeless=exit 65",
        "--exec",
        "failing=exit 1",
        "--exec",
        "long=sleep 600",
    ]);
    let ids = |state: &str| -> Vec<String> {
        let jobs = mill.json(&["job", "ls", "--state", state]);
        jobs.iter().map(|job| job["id"].as_str().expect("text").to_owned()).collect()
    };
    let listed = |state: &str, expected: &[&str]| {
        eventually(&format!("{expected:?} as {state}"), || (ids(state) == expected).then_some(()));
    };
    for (id, kind) in [("g", "good"), ("h", "hopeless"), ("f", "failing"), ("l", "long")] {
        mill.ok(&["enqueue", "default", kind, "--id", id]);
    }
    let past = "2020-01-01T00:00:00Z";
    mill.ok(&["enqueue", "default", "good", "--id", "e", "--expires-at", past]);
    mill.ok(&["enqueue", "default", "good", "--id", "c", "--in", "30s"]);
    mill.ok(&["job", "cancel", "c"]);
    mill.ok(&["enqueue", "default", "good", "--id", "g2", "--priority", "low"]);
    for (state, expected) in [
        ("done", &["g", "g2"][..]),
        ("dead", &["h"]),
        ("failed", &["f"]),
        ("backing_off", &["f"]),
        ("running", &["l"]),
        ("expired", &["e"]),
        ("cancelled", &["c"]),
    ] {
        listed(state, expected);
    }
    let done = mill.json(&["job", "ls", "--state", "done", "--limit", "1"]);
    assert_eq!((&done[0]["id"], &done[0]["completion"]["status"]), (&"g".into(), &"done".into()));
    let cursor = done[0]["cursor"].as_str().expect("text");
    let rest = mill.json(&["job", "ls", "--state", "done", "--after", cursor]);
    assert_eq!((rest.len(), &rest[0]["id"]), (1, &"g2".into()));
    let low = mill.json(&["job", "ls", "--state", "done", "--priority", "low", "--kind", "good"]);
    assert_eq!((low.len(), &low[0]["id"]), (1, &"g2".into()));
    assert!(mill.ok(&["job", "ls", "--state", "dead"]).contains("dead, discarded"));
    for wrong in [&["--tag", "blue"][..], &["--after", "j7"]] {
        let said = mill.run(&[&["job", "ls", "--state", "done"], wrong].concat());
        assert_eq!(said.code, 2, "{said:?}");
    }
    let over = mill.run(&["job", "cancel", "--all", "--state", "done", "--yes"]);
    assert_eq!(over.code, 2, "{over:?}");
    let would = mill.ok(&["job", "cancel", "--all", "--state", "failed", "--dry-run"]);
    assert_eq!(would, "would be cancelled f failing (backing_off)\n");
    mill.ok(&["job", "cancel", "--all", "--state", "failed", "--yes"]);
    listed("failed", &[]);
    listed("running", &["l"]);
}

#[tokio::test]
async fn jobs_are_cancelled_by_id_or_filter_after_a_word() {
    let mill = Mill::start().await;
    for id in ["a", "b", "c"] {
        let kind = if id == "c" { "other" } else { "any" };
        mill.ok(&["enqueue", "default", kind, "--id", id]);
    }
    let would = mill.ok(&["job", "cancel", "a", "--dry-run"]);
    assert_eq!(would, "would be cancelled a any (waiting)\n");
    assert_eq!(mill.json(&["job", "ls"]).len(), 3, "nothing was done");
    assert_eq!(mill.ok(&["job", "cancel", "a", "--reason", "a mistake"]), "cancelled a any\n");
    let gone = &mill.json(&["results", "get", "a"])[0];
    assert_eq!((&gone["status"], &gone["reason"]), (&"cancelled".into(), &"a mistake".into()));
    let would = mill.ok(&["job", "cancel", "--all", "--kind", "any", "--dry-run"]);
    assert_eq!(would, "would be cancelled b any (waiting)\n");
    assert_eq!(mill.json(&["job", "ls"]).len(), 2, "nothing was done");
    let unasked = mill.run(&["job", "cancel", "--all"]);
    assert_eq!(unasked.code, 2, "{unasked:?}");
    assert!(unasked.err.contains("to cancel jobs without being asked, say --yes"), "{unasked:?}");
    mill.ok(&["job", "cancel", "--all", "--kind", "any", "--yes"]);
    assert_eq!(mill.json(&["job", "ls"])[0]["id"], "c");
    assert_eq!(mill.ok(&["job", "cancel", "a"]), "has ended already as cancelled a any\n");
    assert_eq!(
        mill.ok(&["job", "cancel", "a", "--dry-run"]),
        "has ended already as cancelled a any\n"
    );
    let would = mill.run(&["job", "run", "a", "--dry-run"]);
    assert_eq!(would.code, 3, "{would:?}");
    assert!(would.err.contains("no unfinished job a: it ended as cancelled"), "{would:?}");
    let mixed = mill.run(&["job", "cancel", "c", "--tag", "blue"]);
    assert_eq!(mixed.code, 2, "{mixed:?}");
    let nothing = mill.run(&["job", "cancel", "--all", "--kind", "nobodys", "--yes"]);
    assert!(nothing.code == 0 && nothing.err.contains("nothing was done"), "{nothing:?}");
    let partly = mill.run(&["job", "cancel", "nobody", "c", "noone"]);
    assert_eq!((partly.code, partly.out.as_str()), (3, "cancelled c other\n"));
    assert!(partly.err.contains("nobody") && partly.err.contains("noone"), "{partly:?}");
    assert_eq!(mill.run(&["job", "cancel"]).code, 2);
}

#[tokio::test]
async fn a_command_that_runs_is_told_and_then_killed_with_all_that_it_started() {
    let mill = Mill::start().await;
    let notes = tempfile::NamedTempFile::new().expect("a file");
    let file = notes.path().display();
    let deaf = format!(
        "deaf=echo $$ >> {file}; trap 'echo told >> {file}' TERM; sleep 600 & echo $! >> {file}; \
                        while true; do sleep 1; done"
    );
    let _worker = mill.work(&["--exec", &deaf]);
    mill.ok(&["enqueue", "default", "deaf", "--id", "d"]);
    let lines = || std::fs::read_to_string(notes.path()).expect("reads");
    let started = eventually("it runs", || {
        let lines = lines();
        let ids = lines.lines().map(|id| Pid::from_raw(id.parse().expect("an id")).expect("an id"));
        Some(ids.collect::<Vec<_>>()).filter(|ids| ids.len() == 2)
    });
    assert_eq!(mill.json(&["job", "get", "d"])[0]["state"], "running");
    assert_eq!(mill.ok(&["job", "cancel", "d"]), "cancelled d deaf\n");
    for id in started {
        eventually("the end of all it started", || test_kill_process(id).is_err().then_some(()));
    }
    assert!(lines().contains("told"), "first it was told: {}", lines());
    assert_eq!(mill.json(&["job", "get", "d"])[0]["state"], "cancelled");
}

#[tokio::test]
async fn what_is_deaf_is_killed_though_the_command_that_started_it_obeyed() {
    let mill = Mill::start().await;
    let notes = tempfile::NamedTempFile::new().expect("a file");
    let stubborn = format!(
        "stubborn=sh -c 'trap \"\" TERM; echo $$ > {}; sleep 600' > /dev/null 2>&1 & wait",
        notes.path().display()
    );
    let _worker = mill.work(&["--exec", &stubborn]);
    mill.ok(&["enqueue", "default", "stubborn", "--id", "s"]);
    let deaf = eventually("it runs", || {
        let id = std::fs::read_to_string(notes.path()).expect("reads").trim().parse().ok()?;
        Pid::from_raw(id)
    });
    assert_eq!(mill.ok(&["job", "cancel", "s"]), "cancelled s stubborn\n");
    eventually("the end of what is deaf", || test_kill_process(deaf).is_err().then_some(()));
}

#[tokio::test]
async fn a_job_is_moved_and_says_where_to() {
    let mill = Mill::start().await;
    mill.ok(&["enqueue", "default", "any", "--id", "a", "--in", "1h"]);
    let would = mill.ok(&["job", "priority", "a", "high", "--dry-run"]);
    assert_eq!(would, "would be moved a to priority high\n");
    assert_eq!(mill.json(&["job", "get", "a"])[0]["priority"], "normal", "nothing was done");
    assert_eq!(mill.ok(&["job", "priority", "a", "high"]), "moved a to priority high\n");
    let moved = &mill.json(&["job", "get", "a"])[0];
    assert_eq!((&moved["priority"], &moved["state"]), (&"high".into(), &"scheduled".into()));
    let at = ["job", "reschedule", "a", "--at", "2036-12-01T09:00:00+01:00"];
    let would = mill.ok(&[&at[..], &["--dry-run"]].concat());
    assert_eq!(would, "would be moved a to run at 2036-12-01 08:00:00Z\n");
    assert!(!mill.ok(&["job", "get", "a"]).contains("2036"), "nothing was done");
    assert_eq!(mill.ok(&at), "moved a to run at 2036-12-01 08:00:00Z\n");
    assert!(mill.ok(&["job", "get", "a"]).contains("scheduled until 2036-12-01 08:00:00Z"));
    let _worker = mill.work(&["--exec", "any=echo ran"]);
    assert_eq!(mill.ok(&["job", "run", "a"]), "moved a to run now\n");
    eventually("its end", || (mill.run(&["results", "get", "a"]).code == 0).then_some(()));
    assert_eq!(mill.run(&["job", "run", "nobody"]).code, 3);
    assert_eq!(mill.run(&["job", "reschedule", "a"]).code, 2);
}

#[tokio::test]
async fn a_move_that_would_be_refused_is_refused_when_it_is_only_told() {
    let mill = Mill::start().await;
    let _worker = mill.work(&["--backoff", "fixed:30000", "--exec", "any=exit 1"]);
    mill.ok(&["enqueue", "default", "any", "--unique", "one"]);
    let id = eventually("it backs off", || {
        let job = mill.json(&["job", "ls", "--state", "failed"]).pop()?;
        Some(job["id"].as_str()?.to_owned())
    });
    for change in [&["reschedule", &*id, "--in", "1h"][..], &["priority", &id, "low"]] {
        for dry_run in [&[][..], &["--dry-run"]] {
            let said = mill.run(&[&["job"], change, dry_run].concat());
            assert_eq!(said.code, 2, "{change:?} {dry_run:?}: {said:?}");
            assert!(said.err.contains("is unique and has been tried"), "{said:?}");
        }
    }
    // At once it may run, by whatever word.
    let past = ["job", "reschedule", &id, "--at", "2020-01-01T00:00:00Z"];
    mill.ok(&[&past[..], &["--dry-run"]].concat());
    mill.ok(&["job", "run", &id, "--dry-run"]);
    mill.ok(&past);
}

#[tokio::test]
async fn a_job_is_watched_to_its_end() {
    let mill = Mill::start().await;
    mill.ok(&["enqueue", "default", "any", "--id", "a"]);
    let mut watch = Running::start(mill.command(&["job", "watch", "a"]));
    watch.hears("waiting");
    let fails_once = "any=test $TIDEMILL_ATTEMPT = 2 && echo fine";
    let _worker = mill.work(&["--backoff", "fixed:500", "--exec", fails_once]);
    watch.hears("attempt 1 failed at 20");
    watch.hears("again at 20");
    watch.hears("done");
    assert_eq!(watch.ended().code(), Some(0));
    assert!(mill.ok(&["job", "watch", "a"]).starts_with("done"), "over already");
    let shown = mill.ok(&["job", "get", "a"]);
    assert!(shown.contains("attempt 2, by ") && shown.contains("fine"), "{shown}");
    assert!(mill.json(&["job", "get", "a"])[0].get("payload").is_none(), "it is gone");
}

#[tokio::test]
async fn progress_and_log_lines_are_told_while_it_runs() {
    let mill = Mill::start().await;
    mill.ok(&["enqueue", "default", "resize", "--id", "a"]);
    let watch = Running::start(mill.command(&["job", "watch", "a"]));
    let (go_on, told) = tokio::sync::watch::channel(false);
    let handler = move |_: Resize, context: JobContext| {
        let mut told = told.clone();
        async move {
            while !*told.borrow() {
                context.progress(0.4, "resizing").await;
                context.log("the second of five").await;
                tokio::select! {
                    changed = told.changed() => drop(changed),
                    () = tokio::time::sleep(std::time::Duration::from_millis(100)) => {}
                }
            }
            Ok::<_, JobError>("resized")
        }
    };
    let options = ConnectOptions::new(mill.broker.url()).expect("a URL");
    let client = Client::connect(options).await.expect("connects");
    let worker = Worker::builder(&client).handle(handler);
    let running = worker.build().expect("valid").start().await.expect("starts");
    let heard = tokio::task::spawn_blocking(move || {
        watch.hears("40 %  resizing (attempt 1)");
        watch.hears("the second of five");
        watch
    });
    let mut watch = heard.await.expect("heard while it ran");
    go_on.send(true).expect("it listens");
    let ended = tokio::task::spawn_blocking(move || (watch.ended().code(), watch.heard()));
    let (code, heard) = ended.await.expect("ends");
    assert!(code == Some(0) && heard.contains("done"), "{heard}");
    running.drain().await;
}

/// The most memory that a program has taken, in KiB, when it has printed all that it prints.
#[cfg(target_os = "linux")]
fn peak_memory(mut command: std::process::Command, lines: usize) -> u64 {
    use std::io::BufRead;

    let mut child = command.stdout(std::process::Stdio::piped()).spawn().expect("starts");
    let out = std::io::BufReader::new(child.stdout.take().expect("piped"));
    let status = format!("/proc/{}/status", child.id());
    let (mut seen, mut peak) = (0, 0);
    for line in out.lines() {
        line.expect("text");
        seen += 1;
        if seen % 1000 == 0 {
            // It is gone when it has written the last lines.
            let text = std::fs::read_to_string(&status).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
            peak = peak.max(number.unwrap_or(0));
        }
    }
    assert!(child.wait().expect("ends").success());
    assert!(seen >= lines, "{seen} lines");
    peak
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_long_list_takes_no_more_memory_than_a_short_one() {
    const JOBS: u64 = 100_000;
    let mill = Mill::start().await;
    let options = ConnectOptions::new(mill.broker.url()).expect("a URL");
    let client = Client::connect(options).await.expect("connects");
    for chunk in 0..JOBS / 10_000 {
        let job = |n| tidemill::NewJob::raw("any", format!("{{\"n\":{}}}", chunk * 10_000 + n));
        for stored in client.enqueue_many((0..10_000).map(job)).await {
            stored.expect("stored");
        }
    }
    for json in [&["--json"][..], &[]] {
        let list = |count: u64| {
            let limit = count.to_string();
            let command = mill.command(&[&["job", "ls", "--limit", &limit], json].concat());
            peak_memory(command, usize::try_from(count).expect("small"))
        };
        let (short, long) = (list(5_000), list(JOBS));
        assert!(long < short + 20 * 1024, "{json:?}: {short} KiB, {long} KiB");
    }
}
