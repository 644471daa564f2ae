//! `tidemill dead`: dead letters listed, shown, retried, discarded.

use crate::support::Mill;

/// A broker with three dead letters of two kinds.
async fn graveyard() -> Mill {
    let mill = Mill::start().await;
    let worker = mill.work(&[
        "--backoff",
        "fixed:50",
        "--exec",
        "reject=echo bad data >&2; exit 65",
        "--exec",
        "fail=echo broken >&2; exit 1",
    ]);
    for (kind, id) in [("reject", "r1"), ("reject", "r2"), ("fail", "f1")] {
        let enqueue = ["enqueue", "default", kind, r#"{"n":1}"#, "--id", id, "-H", "X-Of: me"];
        let said = mill.run(&[&enqueue[..], &["--max-retries", "1", "--wait", "20s"]].concat());
        assert_eq!(said.code, 5, "{said:?}");
    }
    worker.terminate();
    mill
}

fn ids(mill: &Mill, filter: &[&str]) -> Vec<String> {
    let letters = mill.json(&[&["dead", "ls"], filter].concat());
    letters.iter().map(|letter| letter["id"].as_str().expect("text").to_owned()).collect()
}

#[tokio::test]
async fn letters_are_listed_and_shown_with_everything() {
    let mill = graveyard().await;
    assert_eq!(ids(&mill, &[]), ["r1", "r2", "f1"]);
    assert_eq!(ids(&mill, &["--kind", "fail"]), ["f1"]);
    assert_eq!(ids(&mill, &["--reason", "discarded"]), ["r1", "r2"]);
    assert_eq!(ids(&mill, &["--limit", "1"]), ["r1"]);
    let table = mill.ok(&["dead", "ls"]);
    for part in ["r1", "attempts_exhausted", "bad data", "broken", "╭"] {
        assert!(table.contains(part), "{table}");
    }
    let shown = &mill.json(&["dead", "show", "f1"])[0];
    assert_eq!(shown["payload"], serde_json::json!({"n": 1}));
    assert_eq!(shown["info"]["attempts"], 2);
    let headers = serde_json::json!([["Tidemill-Max-Retries", "1"], ["X-Of", "me"]]);
    let kept = shown["headers"].as_array().expect("a list").iter();
    let kept: Vec<_> = kept.filter(|pair| pair[0] != "Tidemill-Run").cloned().collect();
    assert_eq!(serde_json::json!(kept), headers, "the job's own and no other");
    let errors: Vec<&str> = shown["attempts"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|attempt| attempt["error"]["message"].as_str())
        .collect();
    assert_eq!(errors, ["broken (exit status: 1)"; 2]);
    let text = mill.ok(&["dead", "show", "f1"]);
    for part in ["attempts_exhausted", "X-Of: me", "broken (exit status: 1)", "\"n\": 1"] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(mill.run(&["dead", "show", "nobody"]).code, 3);
}

#[tokio::test]
async fn a_letter_is_retried_and_its_history_stays() {
    let mill = graveyard().await;
    let would = mill.ok(&["dead", "retry", "f1", "--dry-run"]);
    assert_eq!(would, "would be retried f1 fail\n");
    assert_eq!(ids(&mill, &["--kind", "fail"]), ["f1"], "nothing was done");
    let retried = &mill.json(&["dead", "retry", "f1"])[0];
    assert_eq!((&retried["id"], &retried["done"]), (&"f1".into(), &"retried".into()));
    assert!(ids(&mill, &["--kind", "fail"]).is_empty());
    let _worker = mill.work(&["--exec", "fail=echo mended"]);
    let runs = crate::support::eventually("the new run", || {
        let runs = mill.json(&["results", "get", "f1"]);
        (runs.len() == 2).then_some(runs)
    });
    assert_eq!((&runs[0]["status"], &runs[1]["status"]), (&"dead".into(), &"done".into()));
    assert_eq!((&runs[1]["attempt"], &runs[1]["run"]), (&1.into(), &retried["run"]));
    assert_eq!(mill.run(&["dead", "retry", "f1"]).code, 3);
}

#[tokio::test]
async fn many_at_once_take_a_word_from_a_person_or_a_flag() {
    let mill = graveyard().await;
    let said = mill.run(&["dead", "discard"]);
    assert_eq!(said.code, 2, "{said:?}");
    assert!(said.err.contains("name the jobs to discard, or say --all"), "{said:?}");
    let said = mill.run(&["dead", "discard", "--all"]);
    assert_eq!(said.code, 2, "no prompt without a terminal: {said:?}");
    assert!(
        said.err.contains("to discard 3 dead letters without being asked, say --yes"),
        "{said:?}"
    );
    assert_eq!(mill.ok(&["dead", "discard", "--all", "--dry-run"]).lines().count(), 3);
    assert_eq!(ids(&mill, &[]).len(), 3, "nothing was done");

    assert_eq!(mill.ok(&["dead", "discard", "r1"]), "discarded r1 reject\n");
    mill.ok(&["dead", "discard", "--all", "--kind", "reject", "--yes"]);
    assert_eq!(ids(&mill, &[]), ["f1"]);
    let retried = mill.json(&["dead", "retry", "--all", "--yes"]);
    assert_eq!(retried.len(), 1);
    let said = mill.run(&["dead", "ls"]);
    assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (0, "", "no dead letters\n"));
}
