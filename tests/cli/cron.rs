//! `tidemill cron`: jobs that the broker enqueues by itself.

use tidemill::embedded::Broker;

use crate::support::{Mill, eventually, tidemill};

#[tokio::test]
async fn entries_are_added_listed_paused_run_and_removed() {
    let mill = Mill::start().await;
    assert!(mill.run(&["cron", "ls"]).err.contains("no cron entries"));
    let add = |more: &[&'static str]| {
        let base = ["cron", "add", "report", "mail", "send", r#"{"to":"all"}"#];
        let when = ["--schedule", "0 9 * * mon-fri", "--tz", "Europe/Berlin", "--tag", "weekly"];
        mill.ok(&[&base[..], &when, more].concat())
    };
    assert!(add(&["--dry-run"]).starts_with("would be added: report in queue mail, next at "));
    assert!(mill.json(&["cron", "ls"]).is_empty(), "only told");
    assert!(add(&[]).starts_with("added: report in queue mail, next at "));
    assert!(add(&[]).starts_with("unchanged: "));
    assert!(add(&["--priority", "low", "--dry-run"]).starts_with("would be updated: "));
    assert!(add(&["--priority", "low", "--skip-overlap"]).starts_with("updated: "));

    let listed = mill.ok(&["cron", "ls"]);
    for shown in ["report", "0 9 * * mon-fri", "Europe/Berlin", "skips overlap", "09:00:00 CE"] {
        assert!(listed.contains(shown), "{shown}: {listed}");
    }
    let entry = &mill.json(&["cron", "ls", "--queue", "mail"])[0];
    assert_eq!((&entry["kind"], &entry["priority"]), (&"send".into(), &"low".into()));
    assert_eq!(entry["payload"]["to"], "all");
    let upcoming = entry["upcoming"].as_array().expect("a list");
    assert_eq!((upcoming.len(), &upcoming[0]), (5, &entry["next"]));

    assert_eq!(mill.ok(&["cron", "pause", "report", "--dry-run"]).find("would be paused"), Some(0));
    assert_eq!(mill.ok(&["cron", "pause", "report"]), "paused: report in queue mail\n");
    assert_eq!(mill.ok(&["cron", "pause", "report"]), "nothing to do: report in queue mail\n");
    assert!(mill.ok(&["cron", "ls"]).contains("paused since"));
    let changed = add(&["--priority", "high", "--skip-overlap"]);
    assert_eq!(
        changed,
        "updated: report in queue mail, still paused: tidemill cron resume report\n"
    );
    assert!(add(&["--priority", "low", "--skip-overlap"]).contains("still paused"));
    let would = mill.ok(&["cron", "run", "report", "--dry-run"]);
    assert_eq!(would, "would be enqueued: send on lane low of queue mail\n");
    assert_eq!(mill.ok(&["cron", "run", "report"]), "c-report\n");
    let job = &mill.json(&["job", "get", "c-report", "--queue", "mail"])[0];
    assert_eq!((&job["state"], &job["tags"][0]), (&"waiting".into(), &"weekly".into()));
    let again = mill.run(&["cron", "run", "report"]);
    assert!(again.err.contains("was there already"), "{again:?}");
    let would = mill.ok(&["cron", "resume", "report", "--dry-run"]);
    assert_eq!(would, "would be resumed: report in queue mail\n");
    assert!(mill.ok(&["cron", "ls"]).contains("paused since"), "nothing was done");
    assert_eq!(mill.ok(&["cron", "resume", "report"]), "resumed: report in queue mail\n");

    assert_eq!(mill.json(&["queue", "info", "mail"])[0]["cron"], 1);
    mill.ok(&["queue", "purge", "mail", "--yes"]);
    assert_eq!(mill.json(&["cron", "ls"]).len(), 1, "what recurs is no job");
    assert_eq!(mill.ok(&["cron", "rm", "report", "--dry-run"]).find("would be removed"), Some(0));
    assert_eq!(mill.ok(&["cron", "rm", "report"]), "removed: report in queue mail\n");
    let gone = mill.run(&["cron", "rm", "report"]);
    assert_eq!((gone.code, gone.err.contains("no queue has a cron entry report")), (3, true));
}

#[tokio::test]
async fn what_other_crons_know_reaches_the_broker_in_its_own_words() {
    let mill = Mill::start().await;
    for (name, schedule, time) in
        [("sundays", "30 6 * * 7", "Sun 20"), ("nights", "@midnight", "00:00:00 UTC")]
    {
        mill.ok(&["cron", "add", name, "default", "any", "--schedule", schedule]);
        let listed = mill.ok(&["cron", "ls"]);
        assert!(listed.contains(time), "{schedule}: {listed}");
        mill.ok(&["cron", "rm", name]);
    }
}

/// What a server cannot do it is not asked for, and nobody takes it for empty.
#[tokio::test]
async fn every_verb_says_what_an_old_server_lacks() {
    let broker = Broker::builder().version("2.12.8").start().await.expect("a broker");
    let mill = Mill { broker };
    mill.ok(&["setup"]);
    let schedule = ["--schedule", "@daily"];
    let add = [&["cron", "add", "x", "default", "x"][..], &schedule].concat();
    let mut verbs = vec![add, vec!["cron", "ls"], vec!["cron", "ls", "--queue", "default"]];
    for verb in ["rm", "pause", "resume", "run"] {
        verbs.push(vec!["cron", verb, "x"]);
        verbs.push(vec!["cron", verb, "x", "--queue", "default"]);
        verbs.push(vec!["cron", verb, "x", "--dry-run"]);
    }
    for verb in verbs {
        let said = mill.run(&verb);
        assert_eq!(said.code, 6, "{verb:?}: {said:?}");
        assert!(said.err.contains("cron needs nats-server 2.14 or newer: this one is 2.12.8"));
    }
}

#[tokio::test]
async fn a_name_in_two_queues_needs_its_queue() {
    let mill = Mill::start().await;
    for queue in ["mail", "images"] {
        mill.ok(&["cron", "add", "tidy", queue, "tidy", "--schedule", "@daily"]);
    }
    let either = mill.run(&["cron", "rm", "tidy"]);
    assert_eq!(either.code, 2, "{either:?}");
    assert!(either.err.contains("queues images, mail have an entry tidy"), "{either:?}");
    mill.ok(&["cron", "rm", "tidy", "--queue", "mail"]);
    mill.ok(&["cron", "rm", "tidy"]);
}

#[tokio::test]
async fn the_last_run_is_told_with_its_end() {
    let mill = Mill::start().await;
    mill.ok(&["cron", "add", "tick", "default", "tick", "--schedule", "@every 1s"]);
    let worker = mill.work(&["--exec", "tick=cat"]);
    let last = eventually("a run has ended", || {
        let last = mill.json(&["cron", "ls"]).pop()?["last"].take();
        (last["status"] == "done").then_some(last)
    });
    assert!(last["id"].as_str().expect("an id").starts_with("c-tick-"), "{last}");
    drop(worker);
}

#[test]
fn schedules_are_told_and_refused_without_a_broker() {
    let said = |arguments: &[&str]| {
        let output = tidemill(arguments).env("NATS_URL", "nats://127.0.0.1:1").output();
        let output = output.expect("runs");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, out, _) = said(&["cron", "next", "30 2 1 1 *", "--tz", "Asia/Tokyo", "-n", "2"]);
    assert_eq!((code, out.lines().count()), (Some(0), 2), "{out}");
    assert!(out.lines().all(|line| line.ends_with("-01-01 02:30:00 JST")), "{out}");
    for (schedule, reason) in [
        ("0 9 L * *", "nats-server knows no L"),
        ("0 9 15W * *", "nats-server knows no"),
        ("0 9 * * fri#2", "nats-server knows no"),
        ("0 0 9 1 1 * 2030", "year"),
        ("@every 5ms", "at least 1 s"),
    ] {
        let add = ["cron", "add", "x", "default", "x", "--schedule", schedule];
        let (code, _, err) = said(&add);
        assert!(code == Some(2) && err.contains(reason), "{schedule}: {err}");
    }
    let zone = ["cron", "next", "@daily", "--tz", "Mars/Olympus"];
    assert!(said(&zone).2.contains("IANA name"), "{:?}", said(&zone));
}
