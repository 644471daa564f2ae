//! `tidemill import`: jobs from a file, broken off and gone on with.

use std::io::Write;
use std::path::Path;

use serde_json::Value;
use tempfile::NamedTempFile;

use crate::support::{JOBS_STREAM as STREAM, Mill, Running, messages};

/// A file of that many jobs of one kind.
fn file_of(count: u64) -> NamedTempFile {
    let mut file = NamedTempFile::new().expect("a file");
    for n in 0..count {
        writeln!(file, r#"{{"kind":"numbered","payload":{{"n":{n}}}}}"#).expect("written");
    }
    file
}

fn path(file: &NamedTempFile) -> &str {
    file.path().to_str().expect("a plain path")
}

#[tokio::test]
async fn lines_become_jobs_and_mistakes_are_named_by_line() {
    let mill = Mill::start().await;
    let mut file = NamedTempFile::new().expect("a file");
    let lines = r#"{"kind":"any","payload":{"n":1},"id":"a","priority":"high","tags":["blue"]}

{"kind":"any","unique":"one"}
{"kind":"any","unique":"one"}
{"kind":"any","prio":"high"}
{"kind":"a b"}
{"kind":"any","queue":"other","run_at":"2036-12-01T09:00:00+01:00"}"#;
    file.write_all(lines.as_bytes()).expect("written");
    let would = mill.run(&["import", path(&file), "--dry-run"]);
    assert_eq!(
        (would.code, would.out.contains("would be imported: 4 jobs")),
        (1, true),
        "{would:?}"
    );
    let said = mill.run(&["import", path(&file)]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.out.starts_with("imported 3 jobs in "), "{said:?}");
    assert!(said.out.contains("1 were there already, 2 lines left out"), "{said:?}");
    for reason in ["line 5 was left out: not a job: unknown field `prio`", "line 6 was left out"] {
        assert!(said.err.contains(reason), "{reason}: {said:?}");
    }
    let job = &mill.json(&["job", "get", "a"])[0];
    assert_eq!((&job["priority"], &job["tags"][0]), (&"high".into(), &"blue".into()));
    assert_eq!(mill.json(&["job", "ls", "--queue", "other"])[0]["state"], "scheduled");
    assert!(!Path::new(&format!("{}.import", path(&file))).exists(), "nothing is left behind");
    let input = mill.run_with(&["import", "-", "--json"], "{\"kind\":\"any\"}\n");
    let told: Value = serde_json::from_str(&input.out).expect("JSON");
    assert_eq!((&told["imported"], &told["left_out"]), (&1.into(), &0.into()));
    assert_eq!(mill.run(&["import", "/nowhere/jobs"]).code, 1);
}

#[tokio::test]
async fn killed_again_and_again_it_goes_on_and_doubles_none() {
    const JOBS: u64 = 30_000;
    let mill = Mill::start().await;
    mill.ok(&["setup"]);
    let file = file_of(JOBS);
    let mut kills = 0;
    for limit in [3_000, 9_000, 15_000] {
        let mut import = Running::start(mill.command(&["import", path(&file)]));
        loop {
            if messages(&mill, STREAM).await >= limit {
                import.signal(rustix::process::Signal::KILL);
                kills += 1;
                break;
            }
            assert!(!import.has_ended(), "it was too quick to be killed");
        }
        import.ended();
    }
    assert_eq!(kills, 3);
    assert!(messages(&mill, STREAM).await < JOBS, "there is something left to do");
    let said = mill.run(&["import", path(&file)]);
    assert!(said.code == 0 && said.err.contains("goes on at line "), "{said:?}");
    assert_eq!(messages(&mill, STREAM).await, JOBS, "each once");
}

#[tokio::test]
async fn what_was_left_out_before_it_was_broken_off_is_told_in_the_end() {
    let mill = Mill::start().await;
    mill.ok(&["setup", "--max-jobs", "1500"]);
    let mut file = NamedTempFile::new().expect("a file");
    for n in 1..=3000 {
        let word = if n % 1000 == 7 { "prio" } else { "priority" };
        writeln!(file, r#"{{"kind":"any","{word}":"low"}}"#).expect("written");
    }
    let mut import = Running::start(mill.command(&["import", path(&file)]));
    import.hears("the queue is full: waiting");
    import.signal(rustix::process::Signal::INT);
    assert_eq!(import.ended().code(), Some(130));
    mill.ok(&["queue", "purge", "--yes"]);
    let _worker = mill.work(&["--exec", "any=true"]);
    let said = mill.run(&["import", path(&file)]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.out.contains(", 3 lines left out"), "{said:?}");
    for line in [7, 1007, 2007] {
        let told = format!("line {line} was left out: not a job: unknown field `prio`");
        assert_eq!(said.err.matches(&told).count(), 1, "{said:?}");
    }
}

/// Watched on a terminal, which Python lends it.
#[tokio::test]
async fn how_far_it_has_come_is_shown_to_whoever_watches() {
    const TERMINAL: &str = "import os, pty, sys\n\
                            status = pty.spawn(sys.argv[1:])\n\
                            sys.exit(os.waitstatus_to_exitcode(status))";
    let mill = Mill::start().await;
    mill.ok(&["setup"]);
    let file = file_of(20_000);
    let program = env!("CARGO_BIN_EXE_tidemill");
    let mut command = std::process::Command::new("python3");
    command.args(["-c", TERMINAL, program, "--server", mill.broker.url()]);
    command.args(["import", path(&file)]).env("TERM", "xterm");
    let said = crate::support::said(command, "");
    assert_eq!(said.code, 0, "{said:?}");
    for shown in [" jobs, ", " left", "imported 20000 jobs"] {
        assert!(said.out.contains(shown), "{shown}: {said:?}");
    }
}

#[tokio::test]
async fn a_broker_that_is_killed_is_waited_for() {
    const JOBS: u64 = 30_000;
    let mill = Mill::start().await;
    mill.ok(&["setup"]);
    let file = file_of(JOBS);
    let mut import = Running::start(mill.command(&["import", path(&file)]));
    while messages(&mill, STREAM).await < 3_000 {
        assert!(!import.has_ended(), "it was too quick");
    }
    mill.broker.kill().await.expect("kills");
    mill.broker.restart().await.expect("restarts");
    assert_eq!(import.ended().code(), Some(0), "{}", import.heard());
    assert!(import.heard().contains("imported 30000 jobs"), "{}", import.heard());
    assert_eq!(messages(&mill, STREAM).await, JOBS, "each once");
}

#[tokio::test]
async fn told_to_stop_it_says_where_and_a_changed_file_is_refused() {
    let mill = Mill::start().await;
    mill.ok(&["setup", "--max-jobs", "1500"]);
    let mut file = file_of(5_000);
    let mut import = Running::start(mill.command(&["import", path(&file)]));
    import.hears("the queue is full: waiting");
    import.signal(rustix::process::Signal::INT);
    assert_eq!(import.ended().code(), Some(130));
    import.hears("stopped at line 1001; the same command goes on from there");
    file.write_all(b"{}").expect("written");
    let changed = mill.run(&["import", path(&file)]);
    assert_eq!((changed.code, changed.err.contains("has changed")), (2, true), "{changed:?}");
    std::fs::remove_file(format!("{}.import", path(&file))).expect("removes");
}
