//! `tidemill doctor`: each finding provoked on a real broker, and stuck jobs brought back.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tidemill::embedded::Broker;
use tidemill::{Client, ConnectOptions};

use crate::support::{JOBS_STREAM, Mill, Said, documents, eventually, messages, said, tidemill};

const LOW: &str = "tidemill.jobs.default.low.>";

/// What the doctor finds, by its codes, and how it ended.
fn findings(mill: &Mill, queue: &str) -> (Vec<Value>, i32) {
    let said = mill.run(&["doctor", queue, "--json"]);
    let found = documents(&said.out).remove(0);
    (found["findings"].as_array().expect("a list").clone(), said.code)
}

/// The codes of those that are more than notes.
fn codes(found: &[Value]) -> BTreeSet<String> {
    let serious = found.iter().filter(|finding| finding["severity"] != "note");
    serious.map(|finding| finding["code"].as_str().expect("a code").to_owned()).collect()
}

/// That there is such a finding, whatever else is found.
#[track_caller]
fn finds(mill: &Mill, code: &str, place: &str, fix: &str) {
    let (found, _) = findings(mill, "default");
    let mut there =
        found.iter().filter(|finding| finding["code"] == code && finding["place"] == place);
    let is_it = |it: &Value| it["fix"].as_str().expect("a fix").contains(fix);
    assert!(there.any(is_it), "no {code} at {place} with {fix}: {found:?}");
}

async fn api(mill: &Mill, call: &str, request: Value) -> Value {
    let nats = async_nats::connect(mill.broker.url()).await.expect("connects");
    let answer = nats.request(format!("$JS.API.{call}"), request.to_string().into()).await;
    let answer: Value = serde_json::from_slice(&answer.expect("an answer").payload).expect("JSON");
    assert!(answer["error"].is_null(), "{call}: {answer}");
    answer
}

/// Changes a lane's consumer by hand.
async fn edit_lane(mill: &Mill, lane: &str, options: &[(&str, Value)]) {
    let info = api(mill, &format!("CONSUMER.INFO.{JOBS_STREAM}.{lane}"), json!({})).await;
    let mut config = info["config"].clone();
    for (option, value) in options {
        config[option] = value.clone();
    }
    let filter = config["filter_subject"].as_str().unwrap_or(LOW).to_owned();
    let request = json!({ "stream_name": JOBS_STREAM, "config": config, "action": "update" });
    api(mill, &format!("CONSUMER.CREATE.{JOBS_STREAM}.{lane}.{filter}"), request).await;
}

/// Changes a stream by hand.
async fn edit_stream(mill: &Mill, stream: &str, options: &[(&str, Value)]) {
    let info = api(mill, &format!("STREAM.INFO.{stream}"), json!({})).await;
    let mut config = info["config"].clone();
    for (option, value) in options {
        config[option] = value.clone();
    }
    api(mill, &format!("STREAM.UPDATE.{stream}"), config).await;
}

#[tokio::test]
async fn a_healthy_queue_is_well() {
    let mill = Mill::start().await;
    mill.ok(&["setup", "default", "mail"]);
    let (found, code) = findings(&mill, "default");
    assert_eq!((codes(&found), code), (BTreeSet::new(), 0), "{found:?}");
    let told = mill.ok(&["doctor"]);
    assert!(told.contains("queue default  all is well"), "{told}");
    assert!(told.contains("queue mail  all is well"), "{told}");
    assert!(told.contains("sync_interval"), "how to see what cannot be seen: {told}");

    // With jobs that wait, run, back off and are put off, and a worker at it.
    let worker = mill.work(&["--exec", "fails=exit 1", "--exec", "slow=sleep 20", "-c", "4"]);
    mill.ok(&["enqueue", "default", "slow", "--count", "6"]);
    mill.ok(&["enqueue", "default", "fails", "--count", "3", "--priority", "low"]);
    mill.ok(&["enqueue", "default", "fails", "--in", "1h"]);
    eventually("jobs run and back off", || {
        let info = &mill.json(&["queue", "info"])[0];
        let unsettled = |lane: usize| info["lanes"][lane]["unsettled"].as_u64();
        (unsettled(2) >= Some(4) && unsettled(3) == Some(3)).then_some(())
    });
    let (found, code) = findings(&mill, "default");
    assert_eq!((codes(&found), code), (BTreeSet::new(), 0), "{found:?}");
    let nothing = mill.ok(&["doctor", "default", "--revive", "--json"]);
    assert_eq!(nothing, "", "nothing is stuck");
    drop(worker);
}

#[tokio::test]
async fn what_was_changed_by_hand_is_found_with_its_remedy() {
    let mill = Mill::start().await;
    mill.ok(&["setup", "--max-jobs", "10", "--max-dead", "10"]);
    let lane = |name: &str| format!("{JOBS_STREAM}/{name}");
    let revive = "tidemill doctor default --revive";

    edit_lane(&mill, "low", &[("max_deliver", json!(3)), ("max_ack_pending", json!(1))]).await;
    finds(&mill, "max_deliver", &lane("low"), revive);
    finds(&mill, "max_ack_pending", &lane("low"), revive);
    edit_lane(
        &mill,
        "high",
        &[("max_deliver", json!(5)), ("backoff", json!([30_000_000_000_u64, 40_000_000_000_u64]))],
    )
    .await;
    finds(&mill, "backoff", &lane("high"), revive);
    edit_lane(&mill, "critical", &[("filter_subject", json!("tidemill.jobs.default.critical.a"))])
        .await;
    finds(&mill, "filter_subject", &lane("critical"), revive);
    mill.ok(&["queue", "pause", "--priority", "normal"]);
    finds(&mill, "paused", &lane("normal"), "tidemill queue resume default --priority normal");
    mill.ok(&["queue", "resume"]);

    mill.ok(&["enqueue", "default", "nobody", "--count", "8"]);
    finds(&mill, "stream_nearly_full", JOBS_STREAM, "nats stream edit");
    finds(&mill, "no_worker", "default", "tidemill work --queue default --exec nobody=COMMAND");
    let results = "TIDEMILL_RESULTS_default";
    edit_stream(
        &mill,
        results,
        &[("max_age", json!(60_000_000_000_u64)), ("duplicate_window", json!(60_000_000_000_u64))],
    )
    .await;
    finds(&mill, "results_too_short", results, "--max-age 300s");
    edit_stream(&mill, JOBS_STREAM, &[("max_age", json!(3_600_000_000_000_u64))]).await;
    finds(&mill, "stream_differs", JOBS_STREAM, "max_age");
    api(&mill, "CONSUMER.DELETE.TIDEMILL_TIMERS_default.due", json!({})).await;
    finds(&mill, "consumer_missing", "TIDEMILL_TIMERS_default/due", "tidemill setup default");
    api(&mill, "STREAM.DELETE.TIDEMILL_DEAD_default", json!({})).await;
    finds(&mill, "stream_missing", "TIDEMILL_DEAD_default", "tidemill setup default");

    let said = mill.run(&["doctor"]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(
        said.out.contains("error") && said.out.contains("-> tidemill setup default"),
        "{said:?}"
    );
    let missing = mill.run(&["doctor", "nowhere"]);
    assert_eq!(missing.code, 3, "{missing:?}");
}

#[tokio::test]
async fn a_stream_that_is_full_and_subjects_that_no_lane_has_are_found() {
    let mill = Mill::start().await;
    mill.ok(&["setup", "--max-jobs", "4"]);
    edit_stream(
        &mill,
        JOBS_STREAM,
        &[(
            "subjects",
            json!([
                "tidemill.jobs.default.critical.>",
                "tidemill.jobs.default.high.>",
                "tidemill.jobs.default.normal.>",
                LOW,
                "tidemill.jobs.default.urgent.>",
            ]),
        )],
    )
    .await;
    let nats = async_nats::connect(mill.broker.url()).await.expect("connects");
    let stored = nats.request("tidemill.jobs.default.urgent.any", "{}".into()).await;
    assert!(String::from_utf8_lossy(&stored.expect("stored").payload).contains("seq"));
    finds(&mill, "subjects_uncovered", JOBS_STREAM, "nats stream subjects");
    finds(&mill, "stream_differs", JOBS_STREAM, "subjects");
    // Each option that differs is told, and each kind that nobody works.
    edit_stream(&mill, JOBS_STREAM, &[("max_age", json!(3_600_000_000_000_u64))]).await;
    finds(&mill, "stream_differs", JOBS_STREAM, "max_age");
    finds(&mill, "stream_differs", JOBS_STREAM, "subjects");
    mill.ok(&["enqueue", "default", "any", "--count", "3"]);
    finds(&mill, "stream_full", JOBS_STREAM, "raise its limits");
}

#[tokio::test]
async fn rights_that_workers_need_are_named() {
    let rights = |denied: &str| {
        format!(
            r#"accounts {{ JOBS {{ jetstream: enabled, users: [
                 {{ user: admin, password: admin }}
                 {{ user: worker, password: worker, permissions {{
                   publish: {{ allow: ">", deny: [{denied}] }}, subscribe: ">" }} }}
               ] }} }}"#
        )
    };
    let as_admin = |options: ConnectOptions| options.user_password("admin", "admin");
    let broker = Broker::builder().config(rights("")).connect_with(as_admin).start().await;
    let broker = broker.expect("a broker");
    let options = ConnectOptions::new(broker.url()).expect("a URL");
    let admin = Client::connect(as_admin(options)).await.expect("connects");
    admin.ensure_queue(&tidemill::Queue::default()).await.expect("made");
    let doctor = || -> Said {
        let mut command = tidemill(&["doctor", "default", "--json"]);
        command.env("NATS_URL", broker.url());
        command.env("NATS_USER", "worker").env("NATS_PASSWORD", "worker");
        said(command, "")
    };
    let healthy = doctor();
    assert_eq!(healthy.code, 0, "{healthy:?}");
    let denied = [
        ("tidemill.results.>", "tidemill.results.default.>"),
        (
            "$JS.API.STREAM.MSG.GET.TIDEMILL_ATTEMPTS_default",
            "$JS.API.STREAM.MSG.GET.TIDEMILL_ATTEMPTS_default",
        ),
        ("$JS.ACK.*.low.>", "$JS.ACK.TIDEMILL_JOBS_default.low.>"),
        (
            "$JS.API.CONSUMER.MSG.NEXT.*.high",
            "$JS.API.CONSUMER.MSG.NEXT.TIDEMILL_JOBS_default.high",
        ),
    ];
    let all: Vec<String> = denied.iter().map(|(subject, _)| format!("{subject:?}")).collect();
    broker.reload(rights(&all.join(", "))).await.expect("valid");
    let found = documents(&doctor().out).remove(0);
    let found = found["findings"].as_array().expect("a list").clone();
    let lacks: BTreeSet<&str> = found
        .iter()
        .filter(|finding| finding["code"] == "right_missing")
        .map(|finding| finding["place"].as_str().expect("a place"))
        .collect();
    assert!(denied.iter().all(|(_, place)| lacks.contains(place)), "{lacks:?}");
    broker.reload(rights(r#""$JS.API.STREAM.INFO.>""#)).await.expect("valid");
    let blind = doctor();
    assert_eq!(blind.code, 1, "{blind:?}");
    assert!(blind.out.contains("right_missing"), "{blind:?}");
}

/// The attempts of every job that the worker's command has written down, sorted.
fn attempts(path: &std::path::Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[tokio::test]
async fn jobs_that_were_handed_out_too_often_come_back_with_their_attempts() {
    let mill = Mill::start().await;
    mill.ok(&["setup"]);
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    edit_lane(&mill, "normal", &[("max_deliver", json!(1))]).await;
    let writes = |exit: u8| {
        format!("n=echo $TIDEMILL_ID $TIDEMILL_ATTEMPT >> {}; exit {exit}", log.display())
    };
    let failing = writes(1);
    let arguments = ["--exec", failing.as_str(), "--backoff", "fixed:500"];
    let worker = mill.work(&arguments);
    mill.ok(&["enqueue", "default", "n", "--id", "a"]);
    mill.ok(&["enqueue", "default", "n", "--id", "b"]);
    eventually("both have failed once", || (attempts(&log).len() == 2).then_some(()));
    eventually("both are stuck", || {
        let (found, _) = findings(&mill, "default");
        codes(&found).contains("stuck_jobs").then_some(())
    });
    worker.terminate();
    // One that merely waits is not touched.
    mill.ok(&["enqueue", "default", "n", "--id", "c"]);
    let before = messages(&mill, JOBS_STREAM).await;
    let would = mill.ok(&["doctor", "default", "--revive", "--dry-run", "--json"]);
    assert!(documents(&would).iter().all(|job| job["done"].is_null()), "{would}");
    let would: BTreeSet<String> =
        documents(&would).iter().map(|job| job["id"].as_str().expect("an id").to_owned()).collect();
    assert_eq!(would, BTreeSet::from(["a".to_owned(), "b".to_owned()]));
    assert_eq!(messages(&mill, JOBS_STREAM).await, before, "nothing was done");
    let revived = mill.ok(&["doctor", "default", "--revive"]);
    assert_eq!(revived.lines().count(), 2, "{revived}");
    assert_eq!(messages(&mill, JOBS_STREAM).await, 3, "each is there once");
    let (found, _) = findings(&mill, "default");
    assert_eq!(codes(&found), BTreeSet::from(["no_worker".to_owned()]), "{found:?}");
    let good = writes(0);
    let worker = mill.work(&["--exec", good.as_str()]);
    mill.ok(&["queue", "wait-empty", "--timeout", "20s"]);
    worker.terminate();
    assert_eq!(attempts(&log), ["a 1", "a 2", "b 1", "b 2", "c 1"]);
    assert_eq!(mill.ok(&["doctor", "default", "--revive", "--json"]), "");
}

#[tokio::test]
async fn jobs_that_a_filter_left_out_come_back_and_those_that_back_off_are_not_doubled() {
    let mill = Mill::start().await;
    mill.ok(&["setup"]);
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    let writes = |kind: &str, exit: u8| {
        format!("{kind}=echo $TIDEMILL_ID $TIDEMILL_ATTEMPT >> {}; exit {exit}", log.display())
    };
    let (fails, runs) = (writes("fails", 1), writes("runs", 0));
    let arguments = ["--exec", &fails, "--exec", &runs, "--backoff", "fixed:20000"];
    let worker = mill.work(&arguments);
    mill.ok(&["enqueue", "default", "fails", "--id", "back-off", "--max-retries", "1"]);
    eventually("it backs off", || (attempts(&log).len() == 1).then_some(()));
    edit_lane(
        &mill,
        "normal",
        &[("filter_subject", json!("tidemill.jobs.default.normal.fails.>"))],
    )
    .await;
    mill.ok(&["enqueue", "default", "runs", "--id", "left-out"]);
    // One behind it lets the consumer pass it.
    mill.ok(&["enqueue", "default", "fails", "--id", "behind", "--max-retries", "0"]);
    eventually("the one behind has run", || (attempts(&log).len() == 2).then_some(()));
    eventually("it is stuck", || {
        let (found, _) = findings(&mill, "default");
        codes(&found).contains("stuck_jobs").then_some(())
    });
    let revived = mill.json(&["doctor", "default", "--revive"]);
    assert_eq!(revived.len(), 1, "{revived:?}");
    assert_eq!((&revived[0]["id"], &revived[0]["done"]), (&json!("left-out"), &json!("moved")));
    eventually("it has run", || (attempts(&log).len() == 3).then_some(()));
    mill.ok(&["queue", "wait-empty", "--timeout", "30s"]);
    worker.terminate();
    assert_eq!(attempts(&log), ["back-off 1", "back-off 2", "behind 1", "left-out 1"]);
}

#[tokio::test]
async fn what_is_left_of_a_job_that_has_ended_is_cleared_away_and_not_run() {
    let mill = Mill::start().await;
    mill.ok(&["setup"]);
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    let writes = |kind: &str| format!("{kind}=echo $TIDEMILL_ID >> {}", log.display());
    let (runs, passes) = (writes("runs"), writes("passes"));
    let worker = mill.work(&["--exec", &runs, "--exec", &passes]);
    let ended = mill.ok(&["enqueue", "default", "runs", "--id", "left", "--wait", "20s", "--json"]);
    let ended = documents(&ended).remove(0);
    mill.ok(&["queue", "wait-empty", "--timeout", "20s"]);
    // As a server leaves it that is stopped between an ack and the deletion after it: there, and for no
    // consumer to hand out.
    let passed = json!("tidemill.jobs.default.normal.passes.>");
    edit_lane(&mill, "normal", &[("filter_subject", passed)]).await;
    let nats = async_nats::connect(mill.broker.url()).await.expect("connects");
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Tidemill-Run", ended["run"].as_str().expect("a run"));
    let jetstream = async_nats::jetstream::new(nats);
    let subject = "tidemill.jobs.default.normal.runs.left";
    let left = jetstream.publish_with_headers(subject, headers, "null".into()).await;
    left.expect("sent").await.expect("stored");
    mill.ok(&["enqueue", "default", "passes", "--id", "behind", "--wait", "20s"]);
    eventually("it is stuck", || {
        let (found, _) = findings(&mill, "default");
        codes(&found).contains("stuck_jobs").then_some(())
    });
    let revived = mill.json(&["doctor", "default", "--revive"]);
    assert_eq!(revived.len(), 1, "{revived:?}");
    assert_eq!(revived[0]["id"], "left");
    assert_eq!(revived[0]["done"], "cleared");
    mill.ok(&["queue", "wait-empty", "--timeout", "20s"]);
    worker.terminate();
    assert_eq!(attempts(&log), ["behind", "left"], "each was run once");
    assert_eq!(messages(&mill, JOBS_STREAM).await, 0);
}
