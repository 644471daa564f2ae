//! `tidemill results`: looked up, and watched.

use rustix::process::Signal;

use crate::support::{Mill, Running, documents};

#[tokio::test]
async fn a_job_is_looked_up_with_all_its_runs() {
    let mill = Mill::start().await;
    let _worker = mill.work(&["--exec", "any=cat"]);
    for n in ["1", "2"] {
        let enqueue = ["enqueue", "default", "any", n, "--id", "twice", "--wait", "20s"];
        assert_eq!(mill.run(&enqueue).code, 0);
    }
    let runs = mill.json(&["results", "get", "twice"]);
    assert_eq!(runs.len(), 2);
    assert_eq!((&runs[0]["result"], &runs[1]["result"]), (&1.into(), &2.into()), "the newest last");
    assert_ne!(runs[0]["run"], runs[1]["run"]);
    assert_eq!(mill.ok(&["results", "get", "twice", "--kind", "any"]).lines().count(), 2);
    for missing in [&["twice", "--kind", "other"][..], &["another"]] {
        let said = mill.run(&[&["results", "get"], missing].concat());
        assert_eq!(said.code, 3, "{said:?}");
        assert!(said.err.contains("has no completion of job"), "{said:?}");
    }
    let said = mill.run(&["results", "get", "any", "--queue", "nowhere"]);
    assert_eq!(said.code, 3, "{said:?}");
    assert!(said.err.contains("no stream TIDEMILL_RESULTS_nowhere: the queue has not"), "{said:?}");
}

#[tokio::test]
async fn completions_are_watched_from_now_on_and_from_before() {
    let mill = Mill::start().await;
    let _worker = mill.work(&["--exec", "good=cat", "--exec", "bad=exit 65"]);
    for kind in ["good", "bad"] {
        mill.run(&["enqueue", "default", kind, "--wait", "20s"]);
    }
    let before = mill.json(&["results", "watch", "--since", "1h", "--limit", "2"]);
    let kinds: Vec<&str> = before.iter().filter_map(|done| done["kind"].as_str()).collect();
    assert_eq!(kinds, ["good", "bad"]);
    let dead = ["results", "watch", "--since", "1h", "--limit", "1", "--status", "dead"];
    assert_eq!(mill.json(&dead)[0]["kind"], "bad");

    let mut watch = Running::start(mill.command(&["results", "watch", "--json"]));
    // It says nothing until something ends; enqueue until it has begun to watch.
    crate::support::eventually("a completion is seen", || {
        mill.run(&["enqueue", "default", "good", r#"{"seen":1}"#, "--wait", "20s"]);
        watch.heard().contains(r#""seen":1"#).then_some(())
    });
    watch.signal(Signal::INT);
    assert_eq!(watch.ended().code(), Some(0));
    assert!(documents(&watch.heard()).iter().all(|done| done["kind"] == "good"));
}
