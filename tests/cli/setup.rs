//! `tidemill setup`: makes what is missing, tells what differs, changes nothing.

use crate::support::Mill;

#[tokio::test]
async fn a_queue_is_made_once_and_then_is_there() {
    let mill = Mill::start().await;
    let made = mill.ok(&["setup"]);
    for part in [
        "TIDEMILL_JOBS_default",
        "TIDEMILL_RESULTS_default",
        "TIDEMILL_ATTEMPTS_default",
        "TIDEMILL_DEAD_default",
        "TIDEMILL_TIMERS_default",
        "TIDEMILL_TIMERS_default/due",
        "TIDEMILL_JOBS_default/critical",
        "TIDEMILL_JOBS_default/low",
    ] {
        assert!(made.contains(&format!("made {part}\n")), "{made}");
    }
    assert_eq!(mill.ok(&["setup"]), "queue default is there, as asked for\n");
    let said = mill.run(&["setup", "fleeting", "--memory"]);
    assert_eq!(said.code, 1, "a private broker has little memory to give: {said:?}");
    assert!(said.err.contains("lower the queue's size limits or raise the account's"), "{said:?}");
    let limits = ["--max-bytes", "--max-results-bytes", "--max-dead-bytes"];
    let small = limits.map(|limit| [limit, "1000000"]).concat();
    mill.ok(&[&["setup", "fleeting", "--memory"], &small[..]].concat());
    assert!(mill.ok(&["setup", "fleeting"]).contains(r#"storage is "memory", not "file""#));
    let two = mill.json(&["setup", "mail", "images"]);
    assert_eq!((&two[0]["queue"], &two[1]["queue"]), (&"mail".into(), &"images".into()));
    assert_eq!(two[1]["created"].as_array().expect("a list").len(), 10);
}

#[tokio::test]
async fn what_differs_is_told_and_left_alone() {
    let mill = Mill::start().await;
    mill.ok(&["setup", "--max-jobs", "500", "--ack-wait", "10s"]);
    let differs = mill.ok(&["setup"]);
    let jobs = "differs, left as it is: TIDEMILL_JOBS_default: max_msgs is 500, not 10000000";
    assert!(differs.contains(jobs), "{differs}");
    assert!(differs.contains("ack_wait is 10000000000, not 30000000000"), "{differs}");
    let again = mill.json(&["setup", "--max-jobs", "500", "--ack-wait", "10s"]);
    let nothing = serde_json::json!([]);
    assert_eq!((&again[0]["created"], &again[0]["drift"]), (&nothing, &nothing), "unchanged");

    // A worker minds what it relies on, not the limits that somebody chose.
    let worker = mill.work(&["--exec", "any=true"]);
    worker.terminate();
    let nats = async_nats::connect(mill.broker.url()).await.expect("connects");
    let update = serde_json::json!({ "stream_name": "TIDEMILL_JOBS_default", "config": {
        "durable_name": "low", "ack_policy": "explicit", "ack_wait": 10_000_000_000_u64,
        "max_deliver": 3, "filter_subject": "tidemill.jobs.default.low.>", "max_waiting": 8192,
        "max_ack_pending": -1, "num_replicas": 1,
    }});
    let subject = "$JS.API.CONSUMER.CREATE.TIDEMILL_JOBS_default.low.tidemill.jobs.default.low.>";
    let answer = nats.request(subject, update.to_string().into()).await.expect("an answer");
    assert!(!String::from_utf8_lossy(&answer.payload).contains("err_code"), "{answer:?}");
    let worker = mill.work(&["--exec", "any=true"]);
    let heard = worker.hears("max_deliver is 3, not -1");
    assert!(!heard.contains("max_msgs"), "{heard}");

    let as_it_is = ["setup", "--max-jobs", "500", "--ack-wait", "10s"];
    let differs = mill.ok(&as_it_is);
    assert!(differs.contains("TIDEMILL_JOBS_default/low: max_deliver is 3, not -1"), "{differs}");
    assert!(differs.contains("`tidemill setup default --apply`"), "{differs}");
    let apply = [&as_it_is[..], &["--apply"]].concat();
    assert_eq!(mill.ok(&apply), "mended TIDEMILL_JOBS_default/low\n");
    assert_eq!(mill.ok(&apply), "queue default is there, as asked for\n");
    assert_eq!(mill.run(&[&apply[..], &["--dry-run"]].concat()).code, 2, "one or the other");
}

#[tokio::test]
async fn wishes_that_would_break_a_promise_are_refused() {
    let mill = Mill::start().await;
    for (arguments, named) in [
        (["--replicas", "2"], "use 1, 3 or 5"),
        (["--ack-wait", "10ms"], "use at least 1 s"),
        (["--results-age", "1m"], "ten times ack_wait"),
    ] {
        let said = mill.run(&[&["setup"], &arguments[..]].concat());
        assert_eq!(said.code, 2, "{said:?}");
        assert!(said.err.contains(named), "{said:?}");
    }
    let said = mill.run(&["setup", "--replicas", "3"]);
    assert_ne!(said.code, 0, "one server has no three replicas: {said:?}");
    assert!(said.err.contains("replicas"), "{said:?}");
}

#[tokio::test]
async fn a_dry_run_makes_nothing() {
    let mill = Mill::start().await;
    let would = mill.ok(&["setup", "mail", "--dry-run"]);
    assert!(would.contains("would be made: TIDEMILL_JOBS_mail\n"), "{would}");
    assert!(mill.json(&["queue", "ls"]).is_empty());
    mill.ok(&["setup", "mail"]);
    let there = mill.ok(&["setup", "mail", "--dry-run"]);
    assert_eq!(there, "queue mail is there, as asked for\n");
}
