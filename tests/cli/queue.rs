//! `tidemill queue`: queues as a whole.

use crate::support::{Mill, eventually};

#[tokio::test]
async fn queues_are_listed_paused_and_resumed() {
    let mill = Mill::start().await;
    assert!(mill.run(&["queue", "ls"]).err.contains("no queues"));
    mill.ok(&["setup", "mail", "images"]);
    mill.ok(&["enqueue", "mail", "any", "--count", "3", "--priority", "high"]);
    let listed = mill.json(&["queue", "ls"]);
    assert_eq!((&listed[0]["queue"], &listed[1]["jobs"]), (&"images".into(), &3.into()));
    assert!(mill.ok(&["queue", "ls"]).contains("mail"));

    let would = mill.ok(&["queue", "pause", "mail", "--dry-run"]);
    assert_eq!(would, "would be paused: queue mail\n");
    let lane = ["queue", "pause", "mail", "--priority", "high", "--for", "1h"];
    assert_eq!(mill.ok(&lane), "paused: lane high of queue mail\n");
    mill.ok(&["queue", "pause", "mail", "--priority", "low"]);
    let info = mill.ok(&["queue", "info", "mail"]);
    assert!(info.contains("3 unfinished jobs") && info.contains("until resumed"), "{info}");
    assert!(info.contains("until 20"), "{info}");
    let shown = &mill.json(&["queue", "info", "mail"])[0]["lanes"];
    assert!(shown[0]["paused_until"].is_null(), "{shown}");
    assert_eq!(shown[1]["waiting"], 3);
    let would = mill.ok(&["queue", "resume", "mail", "--dry-run"]);
    assert_eq!(would, "would be resumed: queue mail\n");
    assert!(mill.ok(&["queue", "info", "mail"]).contains("until resumed"), "nothing was done");
    assert_eq!(mill.ok(&["queue", "resume", "mail"]), "resumed: queue mail\n");
    assert!(!mill.ok(&["queue", "info", "mail"]).contains("until"));
    let until = ["queue", "pause", "mail", "--until", "2036-12-01T09:00:00+01:00"];
    mill.ok(&until);
    let info = mill.ok(&["queue", "info", "mail"]);
    assert!(info.contains("until 2036-12-01 08:00:00Z"), "{info}");
    mill.ok(&["queue", "resume", "mail"]);
    let passed = ["queue", "pause", "mail", "--until", "2020-01-01T00:00:00Z"];
    for dry_run in [&[][..], &["--dry-run"]] {
        let said = mill.run(&[&passed[..], dry_run].concat());
        assert_eq!(said.code, 2, "{said:?}");
        assert!(said.err.contains("has passed: pause until a later time"), "{said:?}");
    }
    for missing in ["info", "pause", "resume", "purge", "wait-empty", "rm"] {
        let said = mill.run(&["queue", missing, "nowhere"]);
        assert_eq!(said.code, 3, "{missing}: {said:?}");
    }
}

#[tokio::test]
async fn what_deletes_takes_a_word_and_says_how_many() {
    let mill = Mill::start().await;
    mill.ok(&["enqueue", "mail", "any", "--count", "3"]);
    mill.ok(&["enqueue", "mail", "any", "--count", "2", "--priority", "low"]);
    let unasked = mill.run(&["queue", "purge", "mail"]);
    assert_eq!(unasked.code, 2, "{unasked:?}");
    assert!(unasked.err.contains("to delete 5 unfinished jobs"), "{unasked:?}");
    for priority in ["low", "high"] {
        mill.ok(&["enqueue", "mail", "any", "--priority", priority, "--in", "1h"]);
    }
    let parks = mill.work(&["--queue", "mail", "--exec", "other=true"]);
    eventually("both are parked", || {
        (mill.json(&["queue", "info", "mail"])[0]["timers"] == 2).then_some(())
    });
    parks.terminate();
    let would = mill.ok(&["queue", "purge", "mail", "--priority", "low", "--dry-run"]);
    let told = "would be deleted: 2 unfinished jobs of lane low (and 1 timers)";
    assert!(would.starts_with(told), "{would}");
    let lane = ["queue", "purge", "mail", "--priority", "low", "--yes"];
    assert_eq!(mill.ok(&lane), "deleted 3 jobs of queue mail\n");
    let waited = mill.run(&["queue", "wait-empty", "mail", "--timeout", "300ms"]);
    assert_eq!(waited.code, 124, "{waited:?}");
    assert!(waited.err.contains("still has 4 unfinished jobs"), "{waited:?}");
    mill.ok(&["queue", "purge", "mail", "--yes"]);
    mill.ok(&["queue", "wait-empty", "mail"]);
    assert_eq!(mill.run(&["queue", "rm", "mail"]).code, 2);
    assert!(mill.ok(&["queue", "rm", "mail", "--dry-run"]).starts_with("would be deleted: queue"));
    assert_eq!(mill.ok(&["queue", "rm", "mail", "--yes"]), "deleted queue mail\n");
    assert!(mill.json(&["queue", "ls"]).is_empty());
}
