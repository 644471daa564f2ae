//! `--exec`: commands in any language as handlers.

use rustix::process::{Pid, test_kill_process};
use serde_json::{Value, json};

use crate::support::{Mill, eventually};

/// Enqueues a job and waits for its completion.
fn work_off(mill: &Mill, kind: &str, options: &[&str]) -> Value {
    let enqueue = ["enqueue", "default", kind, r#"{"n":3}"#, "--wait", "20s", "--json"];
    let said = mill.run(&[&enqueue, options].concat());
    serde_json::from_str(&said.out).unwrap_or_else(|_| panic!("{said:?}"))
}

/// A handler that no line of Rust knows of.
const PYTHON: &str = r#"
import json, os, sys
job = json.load(sys.stdin)
told = {name[9:].lower(): value for name, value in os.environ.items() if name.startswith("TIDEMILL_")}
json.dump({"twice": job["n"] * 2, "told": told}, sys.stdout)
"#;

#[tokio::test]
async fn a_command_is_told_of_its_job_and_answers_with_its_output() {
    let mill = Mill::start().await;
    let script = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(script.path(), PYTHON).expect("written");
    let handler = format!("double=python3 {}", script.path().display());
    let _worker = mill.work(&["--exec", &handler]);
    let done =
        work_off(&mill, "double", &["--id", "job-1", "--priority", "low", "--max-retries", "1"]);
    assert_eq!(done["result"]["twice"], 6);
    let told = &done["result"]["told"];
    for (name, value) in [
        ("id", "job-1"),
        ("kind", "double"),
        ("queue", "default"),
        ("priority", "low"),
        ("attempt", "1"),
        ("max_attempts", "2"),
    ] {
        assert_eq!(told[name], value, "{name} in {told}");
    }
    assert_eq!(told["run"], done["run"]);
}

#[tokio::test]
async fn exit_codes_decide() {
    let mill = Mill::start().await;
    let _worker = mill.work(&[
        "--backoff",
        "fixed:50",
        "--exec",
        "flaky=if [ $TIDEMILL_ATTEMPT = 1 ]; then echo first >&2; exit 7; fi; echo ok",
        "--exec",
        "hopeless=echo bad data >&2; exit 65",
        "--exec",
        "failing=echo never >&2; exit 1",
        "--exec",
        "silent=exit 0",
        "--exec",
        "missing=no-such-command-anywhere",
    ]);
    let flaky = work_off(&mill, "flaky", &[]);
    assert_eq!((&flaky["status"], &flaky["attempt"]), (&json!("done"), &json!(2)));
    assert_eq!(flaky["result"], "ok");
    let hopeless = work_off(&mill, "hopeless", &[]);
    assert_eq!((&hopeless["status"], &hopeless["attempt"]), (&json!("dead"), &json!(1)));
    assert_eq!(hopeless["reason"], "discarded");
    assert!(hopeless["error"]["message"].as_str().expect("text").starts_with("bad data"));
    let failing = work_off(&mill, "failing", &["--max-retries", "2"]);
    assert_eq!((&failing["status"], &failing["attempt"]), (&json!("dead"), &json!(3)));
    assert_eq!(failing["error"]["message"], "never (exit status: 1)");
    let silent = work_off(&mill, "silent", &[]);
    assert_eq!((&silent["status"], &silent["result"]), (&json!("done"), &Value::Null));
    let missing = work_off(&mill, "missing", &["--max-retries", "0"]);
    let error = missing["error"]["message"].as_str().expect("text");
    assert!(error.contains("no-such-command-anywhere") && error.contains("127"), "{error}");
}

#[tokio::test]
async fn a_command_that_takes_too_long_is_ended_with_all_that_it_started() {
    let mill = Mill::start().await;
    let notes = tempfile::NamedTempFile::new().expect("a file");
    let stuck = format!(
        "stuck=trap '' TERM; sleep 600 & echo $! > {}; wait; sleep 600",
        notes.path().display()
    );
    let _worker = mill.work(&["--exec", &stuck]);
    let dead = work_off(&mill, "stuck", &["--timeout", "500ms", "--max-retries", "0"]);
    assert_eq!((&dead["status"], &dead["error"]["kind"]), (&json!("dead"), &json!("timeout")));
    let written = std::fs::read_to_string(notes.path()).expect("it had begun");
    let child = Pid::from_raw(written.trim().parse().expect("an id")).expect("an id");
    eventually("the end of what the command started", || {
        test_kill_process(child).is_err().then_some(())
    });
}

#[tokio::test]
async fn queues_are_worked_by_weight_and_a_mistake_is_told_before_anything_starts() {
    let mill = Mill::start().await;
    let worker = mill.work(&["--queue", "mail:3", "--queue", "images", "--exec", "any=echo here"]);
    assert!(worker.heard().contains("works any of queue mail, images"), "{}", worker.heard());
    for queue in ["mail", "images"] {
        let said = mill.run(&["enqueue", queue, "any", "--wait", "20s"]);
        assert_eq!(said.code, 0, "{said:?}");
    }
    worker.terminate();
    let table: [(&[&str], &str); 6] = [
        (&[], "--exec KIND=COMMAND"),
        (&["--exec", "nothing"], "KIND=TARGET"),
        (&["--exec", "a b=true"], "use 1 to 64 characters of A-Z a-z 0-9 _ -"),
        (&["--queue", "q:0", "--exec", "a=true"], "weight"),
        (&["--http", "a=nowhere"], "nowhere"),
        (&["--exec", "a=true", "--exec", "a=false"], "a"),
    ];
    for (arguments, named) in table {
        let said = mill.run(&[&["work"], arguments].concat());
        assert_eq!(said.code, 2, "{arguments:?}: {said:?}");
        assert!(said.err.contains(named), "{arguments:?}: {said:?}");
    }
}

#[tokio::test]
async fn no_completions_are_kept_where_none_are_wanted() {
    let mill = Mill::start().await;
    let _worker =
        mill.work(&["--no-completions", "--exec", "fine=exit 0", "--exec", "bad=exit 65"]);
    mill.ok(&["enqueue", "default", "fine", "1", "--id", "fine-1"]);
    let bad = work_off(&mill, "bad", &["--id", "bad-1"]);
    assert_eq!(bad["status"], "dead");
    mill.ok(&["queue", "wait-empty", "default"]);
    assert_eq!(mill.json(&["results", "get", "bad-1"]).len(), 1);
    let none = mill.run(&["results", "get", "fine-1"]);
    assert_ne!(none.code, 0, "{none:?}");
    assert!(none.err.contains("fine-1"), "{none:?}");
}

#[tokio::test]
async fn a_worker_is_driven_by_as_many_threads_as_it_is_told() {
    let mill = Mill::start().await;
    for (options, expected) in [(&[][..], 2..20), (&["--threads", "20"], 21..40)] {
        let count = ["--exec", "count=ls /proc/$PPID/task | wc -l"];
        let worker = mill.work(&[&count, options].concat());
        let threads = work_off(&mill, "count", &[])["result"].as_u64().expect("a number");
        assert!(expected.contains(&threads), "{options:?}: {threads}");
        worker.terminate();
    }
}
