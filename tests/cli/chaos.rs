//! `tidemill chaos`: its roles and its checker on a real broker, and a run with a fault.

use std::fs;
use std::path::Path;

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Mill, Running, Said, documents, said, tidemill};

/// A queue with a worker and a producer, both child processes that write a history.
struct Rig {
    mill: Mill,
    history: TempDir,
}

impl Rig {
    async fn start() -> Self {
        let mill = Mill::start().await;
        mill.ok(&["setup", "chaos", "--ack-wait", "2s"]);
        Self { mill, history: tempfile::tempdir().expect("a folder") }
    }

    fn role(&self, role: &str, name: &str, more: &[&str]) -> Running {
        let history = self.history.path().to_str().expect("UTF-8");
        let arguments = ["chaos", role, "--history", history, "--name", name];
        let running = Running::start(self.mill.command(&[&arguments, more].concat()));
        running.hears("ready");
        running
    }

    fn check(&self, more: &[&str]) -> (Said, Value) {
        let history = self.history.path().to_str().expect("UTF-8");
        let arguments = ["chaos", "check", "--history", history, "--json"];
        let said = self.mill.run(&[&arguments, more].concat());
        let [report] = &*documents(&said.out) else { panic!("{said:?}") };
        let report = report.clone();
        (said, report)
    }

    fn note(&self, more: &[&str]) {
        let history = self.history.path().to_str().expect("UTF-8");
        self.mill.ok(&[&["chaos", "note", "--history", history], more].concat());
    }

    /// Changes the lines of one process.
    fn tamper(&self, name: &str, change: impl Fn(&mut Vec<String>)) {
        tamper(&self.history.path().join(format!("{name}.ndjson")), change);
    }
}

fn tamper(path: &Path, change: impl Fn(&mut Vec<String>)) {
    let text = fs::read_to_string(path).expect("reads");
    let mut lines: Vec<String> = text.lines().map(ToOwned::to_owned).collect();
    change(&mut lines);
    lines.push(String::new());
    fs::write(path, lines.join("\n")).expect("writes");
}

fn is(event: &str) -> impl Fn(&String) -> bool {
    let tag = format!("\"event\":\"{event}\"");
    move |line: &String| line.contains(&tag)
}

#[tokio::test]
async fn roles_without_faults_hold_and_what_is_tampered_with_is_found() {
    let rig = Rig::start().await;
    let worker = rig.role("worker", "w1", &[]);
    let mut producer =
        rig.role("producer", "p1", &["--jobs", "300", "--rate", "300", "--seed", "7"]);
    assert!(producer.ended().success(), "{}", producer.heard());
    assert!(producer.heard().contains("done"), "{}", producer.heard());
    let (said, report) = rig.check(&["--within", "30"]);
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(report["holds"], true, "{report}");
    assert_eq!(report["violations"].as_array().map(Vec::len), Some(0));
    assert_eq!(report["seed"], 7);
    assert_eq!(report["enqueued"]["ok"], 300);
    for name in ["unknown", "refused", "duplicate"] {
        assert_eq!(report["enqueued"][name], 0, "{name}");
    }
    for name in ["prefix", "middle", "suffix"] {
        assert_eq!(report["lost"][name], 0, "{name}");
    }
    for name in ["phantoms", "second_completions", "extra_runs", "wrong_attempts", "wrong_ends"] {
        assert_eq!(report[name], 0, "{name}");
    }
    assert_eq!((&report["early_retries"], &report["late_retries"]), (&0.into(), &0.into()));
    assert!(report["recovered_ms"].is_null(), "there was no fault");
    assert_eq!((&report["streams"]["jobs"], &report["streams"]["timers"]), (&0.into(), &0.into()));
    let runs = report["runs_per_job"].as_object().expect("an object");
    assert!(runs.contains_key("1") && runs.contains_key("2") && runs.contains_key("3"), "{runs:?}");
    let lanes = report["lane_starts"].as_object().expect("an object");
    assert_eq!(lanes.len(), 4, "{lanes:?}");
    worker.terminate();

    let (again, same) = rig.check(&["--offline"]);
    assert_eq!((again.code, &same), (0, &report), "what was collected is checked as well");
    rig.tamper("collected", |lines| {
        let at = lines.iter().position(is("completion")).expect("there is one");
        lines.remove(at);
    });
    let (said, report) = rig.check(&["--offline"]);
    assert_eq!((said.code, &report["holds"]), (1, &false.into()), "{report}");
    let lost: u64 = ["prefix", "middle", "suffix"]
        .iter()
        .map(|name| report["lost"][name].as_u64().expect("a number"))
        .sum();
    assert_eq!(lost, 1, "{report}");
    rig.tamper("w1", |lines| {
        let at = lines.iter().position(is("start")).expect("there is one");
        let doubled = lines[at].clone();
        let phantom = doubled.replace("\"id\":\"p1-", "\"id\":\"nobody-");
        lines.extend([doubled, phantom]);
    });
    let (said, report) = rig.check(&["--offline"]);
    assert_eq!(said.code, 1);
    assert_eq!((&report["extra_runs"], &report["phantoms"]), (&1.into(), &1.into()), "{report}");
    let history = rig.history.path().to_str().expect("UTF-8");
    let told = rig.mill.run(&["chaos", "check", "--history", history, "--offline"]);
    assert_eq!(told.code, 1, "{told:?}");
    assert!(told.out.contains("nobody enqueued it: nobody-"), "{told:?}");
    let (said, report) = rig.check(&[]);
    assert_eq!(report["lost"]["middle"], 0, "collected anew: {report}");
    assert_eq!(said.code, 1, "the phantom is still there");
}

#[tokio::test]
async fn a_killed_worker_costs_no_job_and_is_explained_by_its_fault() {
    let rig = Rig::start().await;
    let mut first = rig.role("worker", "w1", &["--concurrency", "4"]);
    let mut producer = rig.role("producer", "p1", &["--jobs", "200", "--rate", "200"]);
    rig.note(&["--fault", "worker-killed"]);
    first.signal(Signal::KILL);
    first.ended();
    rig.note(&["--healed", "worker-killed"]);
    let second = rig.role("worker", "w2", &[]);
    assert!(producer.ended().success(), "{}", producer.heard());
    let (said, report) = rig.check(&["--within", "30"]);
    assert_eq!(said.code, 0, "{report}");
    assert_eq!(report["faults"]["worker-killed"], 1);
    assert!(report["recovered_ms"].as_u64().is_some(), "{report}");
    second.terminate();
}

#[tokio::test]
async fn a_worker_ends_with_its_parent_and_a_queue_that_is_not_worked_is_told() {
    let rig = Rig::start().await;
    let mut child = rig.role("worker", "w1", &["--until-stdin-ends"]);
    assert!(child.ended().success(), "its input has ended: {}", child.heard());
    let mut producer = rig.role("producer", "p1", &["--jobs", "20", "--rate", "1000"]);
    assert!(producer.ended().success(), "{}", producer.heard());
    let (said, report) = rig.check(&["--within", "1"]);
    assert_eq!(said.code, 1, "{said:?}");
    assert_eq!(report["streams"]["jobs"], 20);
    let violations = report["violations"].to_string();
    assert!(violations.contains("not seen empty"), "{violations}");
    assert!(violations.contains("20 × confirmed, but without an end"), "{violations}");
}

#[test]
fn a_folder_without_a_history_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().to_str().expect("UTF-8");
    let told = said(tidemill(&["chaos", "check", "--history", path, "--offline"]), "");
    assert_eq!(told.code, 1, "{told:?}");
    assert!(told.err.contains("there is no history in"), "{told:?}");
}

#[test]
fn a_short_run_with_a_killed_worker_holds_and_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let history = folder.path().join("history");
    let path = history.to_str().expect("UTF-8");
    let run = ["chaos", "--minutes", "0.08", "--seed", "11", "--only", "worker-killed", "--json"];
    let load = ["--workers", "2", "--rate", "60", "--load", "plain", "--ack-wait", "2s"];
    let load = [&load[..], &["--history", path]].concat();
    let told = said(tidemill(&[&run[..], &load].concat()), "");
    assert_eq!(told.code, 0, "{told:?}");
    let [report] = &*documents(&told.out) else { panic!("{told:?}") };
    assert_eq!((&report["holds"], &report["seed"]), (&true.into(), &11.into()), "{report}");
    assert!(report["faults"]["worker-killed"].as_u64() > Some(0), "{report}");
    assert!(report["enqueued"]["ok"].as_u64() > Some(200), "{report}");
    assert!(report["recovered_ms"].as_u64().is_some(), "{report}");
    let shares = report["shares"].as_object().expect("an object");
    let starts = |lane: &str| shares[lane].as_u64().expect("a count");
    assert_eq!(shares.len(), 4, "all lanes were full in the beginning: {report}");
    assert!(starts("critical") > 4 * starts("low"), "{shares:?}");
    let lines = fs::read_to_string(history.join("nemesis.ndjson")).expect("reads");
    let looks = lines.lines().filter(|line| line.contains("\"event\":\"footprint\"")).count();
    assert!(looks >= 3 * 2, "two workers and a broker, before and after the fault: {lines}");
    assert!(told.err.contains("seed 11") && told.err.contains("worker-killed w"), "{told:?}");
    // The history of the run can be checked once more.
    let again = said(tidemill(&["chaos", "check", "--history", path, "--offline", "--json"]), "");
    assert_eq!((again.code, &documents(&again.out)[0]), (0, report), "{again:?}");
}

/// On three servers, an upgrade under load is what loses jobs that are under way, and makes workers misjudge
/// the broker's clock, where either can happen.
#[test]
fn an_upgrade_of_three_servers_under_load_loses_nothing_and_starts_nothing_early() {
    let run = ["chaos", "--nodes", "3", "--minutes", "0.6", "--rate", "320", "--json"];
    let only = ["--seed", "1", "--only", "rolling-upgrade-under-load"];
    let told = said(tidemill(&[&run[..], &only].concat()), "");
    let [report] = &*documents(&told.out) else { panic!("{told:?}") };
    assert!(report["enqueued"]["ok"].as_u64() > Some(10_000), "{report}");
    assert_eq!(report["faults"]["rolling-upgrade-under-load"], 1, "{report}");
    for kind in ["unique", "cancelled", "moved", "cron"] {
        let figures = report[kind].as_object().expect("an object");
        let most = figures.values().filter_map(Value::as_u64).max();
        assert!(most > Some(10), "{kind}: {report}");
    }
    assert_eq!((&report["lost_jobs"], &report["early_retries"]), (&json!([]), &0.into()));
    assert_eq!((told.code, &report["violations"]), (0, &json!([])), "{told:?}");
}

#[test]
fn an_interrupted_run_is_made_whole_checked_and_gone() {
    let run = ["chaos", "--minutes", "5", "--nodes", "1", "--rate", "40", "--workers", "1"];
    let mut chaos = Running::start(tidemill(
        &[&run[..], &["--only", "worker-frozen", "--load", "plain"]].concat(),
    ));
    let heard = chaos.hears("worker-frozen w");
    let folder = heard.lines().find_map(|line| line.split_once("history in "));
    let folder = folder.expect("it says where").1.to_owned();
    chaos.signal(Signal::INT);
    assert_eq!(chaos.ended().code(), Some(130), "{}", chaos.heard());
    assert!(chaos.heard().contains("every invariant holds"), "{}", chaos.heard());
    assert!(!Path::new(&folder).exists(), "it was nothing to keep");
}

#[test]
fn what_cannot_be_done_is_refused() {
    for (arguments, problem) in [
        (&["--replicas", "3"][..], "use --nodes 3"),
        (&["--only", "quorum-lost"], "quorum-lost cannot be done to 1 servers"),
        (&["--minutes", "0"], "minutes is 0"),
    ] {
        let told = said(tidemill(&[&["chaos"], arguments].concat()), "");
        assert_eq!(told.code, 2, "{told:?}");
        assert!(told.err.contains(problem), "{told:?}");
    }
}
