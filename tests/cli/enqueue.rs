//! `tidemill enqueue`: one job, many, a line each, and what is refused.

use serde_json::json;

use crate::support::{Mill, tidemill};

#[tokio::test]
async fn a_payload_is_an_argument_a_file_or_the_input() {
    let mill = Mill::start().await;
    let _worker = mill.work(&["--exec", "echo=cat"]);
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), r#"{"from":"file"}"#).expect("written");
    let from_file = format!("@{}", file.path().display());
    let result = |payload: &str, input: &str| {
        let enqueue = ["enqueue", "default", "echo", payload, "--wait", "20s", "--json"];
        let said = mill.run_with(&enqueue, input);
        assert_eq!(said.code, 0, "{said:?}");
        let done: serde_json::Value = serde_json::from_str(&said.out).expect("one document");
        assert_eq!((&done["status"], &done["attempt"]), (&json!("done"), &json!(1)));
        done["result"].clone()
    };
    assert_eq!(result(r#"{"from":"argument"}"#, ""), json!({"from": "argument"}));
    assert_eq!(result(&from_file, ""), json!({"from": "file"}));
    assert_eq!(result("-", r#"{"from":"input"}"#), json!({"from": "input"}));
}

#[tokio::test]
async fn options_reach_the_job() {
    let mill = Mill::start().await;
    let options = [
        "--priority",
        "high",
        "--id",
        "mine",
        "--max-retries",
        "7",
        "--timeout",
        "90s",
        "-H",
        "X-Tenant: blue",
        "--in",
        "90m",
        "--expires-at",
        "2036-12-01T09:00:00+01:00",
        "--tag",
        "a",
        "--tag",
        "b",
    ];
    let told = mill.ok(&[&["enqueue", "default", "any", "[1]"], &options[..]].concat());
    assert_eq!(told, "mine\n");
    let nats = async_nats::connect(mill.broker.url()).await.expect("connects");
    let subject = "tidemill.jobs.default.high.any.mine";
    let get = format!("$JS.API.DIRECT.GET.TIDEMILL_JOBS_default.{subject}");
    let stored = nats.request(get, "".into()).await.expect("it is there");
    assert_eq!(stored.payload, "[1]");
    let headers = stored.headers.expect("headers");
    for (name, value) in [
        ("Tidemill-Max-Retries", "7"),
        ("Tidemill-Timeout", "90000"),
        ("Tidemill-Tags", "a,b"),
        ("Tidemill-Run-After", "+5400000"),
        ("Tidemill-Expires-At", "2036-12-01T08:00:00.000Z"),
        ("X-Tenant", "blue"),
    ] {
        assert_eq!(headers.get(name).map(async_nats::HeaderValue::as_str), Some(value), "{name}");
    }
}

#[tokio::test]
async fn a_time_with_its_zone_is_when_it_runs() {
    let mill = Mill::start().await;
    mill.ok(&["enqueue", "default", "any", "--id", "a", "--at", "2036-12-01T09:00:00+01:00"]);
    let shown = mill.ok(&["job", "get", "a"]);
    assert!(shown.contains("scheduled until 2036-12-01 08:00:00Z"), "{shown}");
    let _worker = mill.work(&["--exec", "any=echo ran"]);
    let past = ["enqueue", "default", "any", "--at", "2020-01-01T00:00:00Z", "--wait", "20s"];
    assert!(mill.ok(&past).starts_with("done"), "what is overdue runs at once");
}

#[tokio::test]
async fn a_key_that_is_to_be_held_for_longer_than_results_are_kept_is_warned_of() {
    let mill = Mill::start().await;
    mill.ok(&["setup", "--ack-wait", "2s", "--results-age", "1h"]);
    let worker = mill.work(&["--exec", "any=true"]);
    let enqueue = ["enqueue", "default", "any", "--unique", "one", "--wait", "20s"];
    mill.ok(&[&enqueue[..], &["--unique-for", "30m"]].concat());
    assert!(!worker.heard().contains("max_age"), "{}", worker.heard());
    mill.run(&[&enqueue[..], &["--unique-for", "2h"]].concat());
    worker.hears("completions are kept for less than a unique job's period");
}

#[tokio::test]
async fn waiting_tells_by_its_exit_code_how_the_job_ended() {
    let mill = Mill::start().await;
    let _worker = mill.work(&["--exec", "good=echo fine", "--exec", "bad=echo no >&2; exit 65"]);
    let good = mill.run(&["enqueue", "default", "good", "--wait"]);
    assert_eq!(good.code, 0, "{good:?}");
    assert!(good.out.starts_with("done") && good.out.contains(r#"-> "fine""#), "{good:?}");
    let bad = mill.run(&["enqueue", "default", "bad", "--wait"]);
    assert_eq!(bad.code, 5, "{bad:?}");
    assert!(bad.out.starts_with("dead") && bad.out.contains("discarded: no"), "{bad:?}");
    let nobody = mill.run(&["enqueue", "default", "nobody", "--wait", "300ms"]);
    assert_eq!(nobody.code, 124, "{nobody:?}");
    assert!(nobody.err.contains("has not ended within 300ms; it is still queued"), "{nobody:?}");
}

#[tokio::test]
async fn many_jobs_by_count_or_by_lines() {
    let mill = Mill::start().await;
    let counted = mill.ok(&["enqueue", "default", "any", "--count", "2500"]);
    assert!(counted.starts_with("enqueued 2500 jobs in "), "{counted}");
    let lines: String = (0..1200).map(|n| format!("{{\"n\":{n}}}\n\n")).collect();
    let said = mill.run_with(&["enqueue", "default", "any", "-", "--lines", "--json"], &lines);
    assert_eq!(said.code, 0, "{said:?}");
    let told: serde_json::Value = serde_json::from_str(&said.out).expect("one document");
    assert_eq!(told["enqueued"], 1200);
    assert!(said.err.is_empty(), "no progress without a terminal: {said:?}");
}

#[tokio::test]
async fn a_bad_line_stops_the_rest_and_is_named_with_what_went_in_before() {
    let mill = Mill::start().await;
    let lines = "{\"n\":1}\n{\"n\":2}\n{\"n\":\n{\"n\":4}\n";
    let said = mill.run_with(&["enqueue", "default", "any", "-", "--lines"], lines);
    assert_eq!(said.code, 2, "{said:?}");
    assert!(said.out.starts_with("enqueued 2 jobs"), "{said:?}");
    assert!(said.err.contains("stopped after 2 jobs were enqueued"), "{said:?}");
    assert!(said.err.contains("line 3 is not JSON"), "{said:?}");
    let atomic = ["enqueue", "all", "any", "-", "--lines", "--atomic"];
    let none = mill.run_with(&atomic, lines);
    assert_eq!((none.code, none.out.as_str()), (2, ""), "{none:?}");
    assert_eq!(mill.run_with(&atomic, "1\n2\n").out, "enqueued 2 jobs, all together\n");
    // Bytes of another format are nobody's business but the handler's.
    let other = ["enqueue", "default", "any", "-", "--lines", "-H", "Content-Type:text/plain"];
    let said = mill.run_with(&other, lines);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.out.starts_with("enqueued 4 jobs"), "{said:?}");
}

#[tokio::test]
async fn what_was_typed_wrong_is_named_with_the_rule() {
    let mill = Mill::start().await;
    let table: [(&[&str], &str); 10] = [
        (&["a b", "any"], "use 1 to 64 characters of A-Z a-z 0-9 _ -"),
        (&["default", "a.b"], "use 1 to 64 characters of A-Z a-z 0-9 _ -"),
        (&["default", "any", "--id", "x/y"], "use 1 to 64 characters of A-Z a-z 0-9 _ -"),
        (&["default", "any", "--id", "s-1"], "s-"),
        (&["default", "any", "{"], "the payload is not JSON"),
        (&["default", "any", "--priority", "urgent"], "critical, high, normal"),
        (&["default", "any", "--timeout", "soon"], "soon"),
        (&["default", "any", "--at", "tomorrow"], "such as 2026-12-01T09:00:00+01:00"),
        (&["default", "any", "-H", "nocolon"], "use NAME:VALUE"),
        (&["default", "any", "-H", "Tidemill-Tags: x"], "Tidemill-"),
    ];
    for (arguments, rule) in table {
        let said = mill.run(&[&["enqueue"], arguments].concat());
        assert_eq!(said.code, 2, "{arguments:?}: {said:?}");
        assert!(said.err.contains(rule) && said.out.is_empty(), "{arguments:?}: {said:?}");
    }
    let missing = mill.run(&["enqueue", "default", "any", "@/no/such/file"]);
    assert_eq!(missing.code, 1, "{missing:?}");
    assert!(missing.err.contains("cannot read /no/such/file"), "{missing:?}");
}

#[test]
fn nobody_there_is_told_with_where_it_was_looked_for() {
    let mut command = tidemill(&["enqueue", "default", "any"]);
    command.env("NATS_URL", "nats://127.0.0.1:1");
    let said = crate::support::said(command, "");
    assert_eq!(said.code, 6, "{said:?}");
    assert!(said.err.contains("nats://127.0.0.1:1: nobody listens there"), "{said:?}");
}

#[tokio::test]
async fn a_taken_key_tells_the_job_that_is_there() {
    let mill = Mill::start().await;
    let unique = ["enqueue", "default", "any", "--unique", "user-7"];
    for wrong in [&["--count", "3"][..], &["--unique", ""]] {
        assert_eq!(mill.run(&[&unique[..], wrong].concat()).code, 2, "{wrong:?}");
    }
    assert_eq!(mill.run(&["enqueue", "default", "any", "--unique", ""]).code, 2);
    let first = mill.run(&unique);
    let second = mill.run(&unique);
    assert_eq!((first.code, second.code), (0, 0), "{second:?}");
    assert_eq!(first.out, second.out);
    assert!(first.err.is_empty() && second.err.contains("was there already"), "{second:?}");
    assert_eq!(mill.json(&unique)[0]["duplicate"], true);
    let replace = [&unique[..3], &[r#"{"new":1}"#], &unique[3..], &["--replace"]].concat();
    assert_eq!(mill.json(&replace)[0]["duplicate"], false);
    let waiting = mill.json(&["job", "ls"]);
    assert_eq!(waiting.len(), 1);
    let id = waiting[0]["id"].as_str().expect("text");
    let runs = mill.json(&["job", "get", id]);
    assert_eq!(runs[0]["completion"]["reason"], "replaced");
    assert_eq!(runs[1]["payload"]["new"], 1);
}

#[test]
fn a_dry_run_checks_and_needs_no_broker() {
    let said = |arguments: &[&str]| {
        let mut command = tidemill(&[&["enqueue", "default", "any"], arguments].concat());
        let output = command.env("NATS_URL", "nats://127.0.0.1:1").output().expect("runs");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, out, _) = said(&["[1]", "--count", "3", "--dry-run"]);
    assert_eq!(code, Some(0));
    assert_eq!(out, "would be enqueued: 3 jobs of kind any in queue default\n");
    let (code, _, err) = said(&["[1]", "--id", "s-7", "--dry-run"]);
    assert_eq!((code, err.contains("kept for ids")), (Some(2), true), "{err}");
    assert_eq!(said(&["[1", "--dry-run"]).0, Some(2));
    let file = tempfile::NamedTempFile::new().expect("a file");
    let lines = format!("@{}", file.path().display());
    for atomic in [&[][..], &["--atomic"]] {
        std::fs::write(file.path(), "1\n\n2\n").expect("written");
        let arguments = [&[&*lines, "--lines", "--dry-run"], atomic].concat();
        let (code, out, _) = said(&arguments);
        assert_eq!(code, Some(0));
        assert_eq!(out, "would be enqueued: 2 jobs of kind any in queue default\n");
        std::fs::write(file.path(), "1\n{\n").expect("written");
        let (code, _, err) = said(&arguments);
        assert_eq!((code, err.contains("line 2 is not JSON")), (Some(2), true), "{err}");
    }
}
