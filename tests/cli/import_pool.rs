//! `tidemill import` of the pending jobs of an agent runtime's pool.

use std::path::PathBuf;

use base64::Engine;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{JOBS_STREAM, Mill, Running, documents, messages};

const PENDING: &str = include_str!("../fixtures/pending_jobs.json");

/// A pool's file in a folder of its own.
struct PoolFile {
    file: PathBuf,
    folder: TempDir,
}

impl PoolFile {
    fn new(text: impl AsRef<[u8]>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("pending_jobs.json");
        std::fs::write(&file, text).expect("written");
        Self { file, folder }
    }

    fn of(entries: &[Value]) -> Self {
        Self::new(serde_json::to_string(entries).expect("JSON"))
    }

    fn path(&self) -> &str {
        self.file.to_str().expect("a plain path")
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.file).expect("reads")
    }

    fn is_put_aside(&self, ending: &str) -> bool {
        let aside = self.folder.path().join(format!("pending_jobs.json.{ending}"));
        !self.file.exists() && aside.exists()
    }
}

fn pending() -> Vec<Value> {
    serde_json::from_str(PENDING).expect("JSON")
}

/// A test job as the pool writes it, with an id made of a number.
fn entry(n: u32) -> Value {
    json!({
        "id": format!("00000000-0000-4000-8000-{n:012}"), "priority": "Normal", "retries": 0,
        "max_retries": 3, "job_type": {"type": "TestJob", "payload": {"message": n.to_string()}},
        "conditions": {"run_after": null}, "created_at": "2026-11-23T07:00:05.419359451Z",
    })
}

#[tokio::test]
async fn the_pending_jobs_of_a_pool_are_taken_over_once() {
    let mill = Mill::start().await;
    let mut entries = pending();
    entries[2]["priority"] = "Urgent".into();
    let broken = PoolFile::of(&entries);
    let bytes = broken.bytes();
    let said = mill.run(&["import", broken.path()]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.err.contains("entry 2 was left out: priority: unknown variant"), "{said:?}");
    assert!(
        said.out.starts_with("imported 13 jobs into queue default; the file stays"),
        "{said:?}"
    );
    assert_eq!(broken.bytes(), bytes, "untouched");

    let file = PoolFile::new(PENDING);
    let whole = mill.ok(&["import", file.path()]);
    assert!(
        whole.starts_with("imported 1 jobs into queue default, 13 were there already"),
        "{whole}"
    );
    assert!(file.is_put_aside("imported"));
    assert_eq!(messages(&mill, JOBS_STREAM).await, 14);
    let tried = "7fbde550-41be-4691-af06-47ddde336907";
    let job = &mill.json(&["job", "get", tried])[0];
    assert_eq!((&job["kind"], &job["priority"]), (&"test_job".into(), &"normal".into()));
    assert_eq!(job["enqueued_at"], "2026-11-23T07:00:05.419Z");
    let headers = job["headers"].as_array().expect("a list");
    assert!(headers.contains(&serde_json::json!(["Tidemill-Attempts-Used", "2"])), "{job}");

    // What is over stays over.
    mill.ok(&["job", "cancel", tried]);
    std::fs::write(&file.file, PENDING).expect("written");
    let again = mill.ok(&["import", file.path()]);
    assert!(
        again.starts_with("imported 0 jobs into queue default, 14 were there already"),
        "{again}"
    );
    assert_eq!(messages(&mill, JOBS_STREAM).await, 13);
    assert!(file.is_put_aside("imported.1"));
}

#[tokio::test]
async fn a_dry_run_tells_what_would_be_and_touches_nothing() {
    let mill = Mill::start().await;
    let mut entries = pending();
    entries[2]["priority"] = "Urgent".into();
    for (file, code, count) in [(PoolFile::new(PENDING), 0, 14), (PoolFile::of(&entries), 1, 13)] {
        let bytes = file.bytes();
        let would = mill.run(&["import", file.path(), "--dry-run"]);
        let expected = format!("would be imported: {count} jobs into queue default\n");
        assert_eq!((would.code, would.out.as_str()), (code, expected.as_str()), "{would:?}");
        let would = mill.run(&["import", file.path(), "--dry-run", "--json"]);
        let told = &documents(&would.out)[0];
        assert_eq!((would.code, told["entries"].as_u64()), (code, Some(14)));
        assert_eq!(told["broken"].as_array().map(Vec::len), Some(14 - count));
        assert_eq!(file.bytes(), bytes);
    }
    assert_eq!(messages(&mill, JOBS_STREAM).await, 0);
    // Without a broker all but the sizes is checked.
    let file = PoolFile::new(PENDING);
    mill.broker.kill().await.expect("killed");
    let would = mill.run(&["import", file.path(), "--dry-run"]);
    assert_eq!((would.code, would.err.contains("sizes are not checked")), (0, true), "{would:?}");
}

#[tokio::test]
async fn with_json_it_tells_of_each_job() {
    let mill = Mill::start().await;
    // The second stands in the file once more.
    let mut entries = vec![entry(0), entry(1), entry(1), entry(2)];
    entries[3]["conditions"]["depends_on"] = json!(["another"]);
    let broken = PoolFile::of(&entries);
    let said = mill.run(&["import", broken.path(), "--json"]);
    let told = &documents(&said.out)[0];
    // The pool writes those of one time the other way round.
    assert_eq!((said.code, &told["added"]), (1, &json!([entry(1)["id"], entry(0)["id"]])));
    assert_eq!(told["there"], json!([entry(1)["id"]]));
    assert_eq!((&told["broken"][0]["entry"], &told["renamed"]), (&json!(3), &Value::Null));
    let whole = PoolFile::of(&[entry(1), entry(2)]);
    let told = &mill.json(&["import", whole.path()])[0];
    assert_eq!(told["added"], json!([entry(2)["id"]]));
    assert_eq!(told["renamed"], format!("{}.imported", whole.path()));
}

#[tokio::test]
async fn an_entry_that_no_broker_takes_does_not_keep_out_the_others() {
    let mill = Mill::start().await;
    let mut entries: Vec<Value> = (0..5).map(entry).collect();
    entries[1]["job_type"]["payload"]["message"] = "x".repeat(1024 * 1024).into();
    let file = PoolFile::of(&entries);
    let bytes = file.bytes();
    for arguments in [["import", file.path(), "--dry-run"], ["import", file.path(), "--quiet"]] {
        let said = mill.run(&arguments);
        assert_eq!(said.code, 1, "{said:?}");
        assert!(said.err.contains("entry 1 was left out: job "), "{said:?}");
        assert!(said.err.contains("this server takes"), "{said:?}");
    }
    assert_eq!(messages(&mill, JOBS_STREAM).await, 4);
    assert_eq!(file.bytes(), bytes);
}

#[tokio::test]
async fn of_a_file_that_was_cut_off_the_whole_entries_go_in() {
    let mill = Mill::start().await;
    let file = PoolFile::new(&PENDING[..PENDING.len() * 2 / 3]);
    let bytes = file.bytes();
    let said = mill.run(&["import", file.path()]);
    assert_eq!(said.code, 1, "{said:?}");
    let whole = messages(&mill, JOBS_STREAM).await;
    assert!((1..14).contains(&whole));
    let rest = format!("entry {whole} was left out: from here on the file cannot be read");
    assert!(said.err.contains(&rest), "{said:?}");
    assert_eq!(file.bytes(), bytes);
}

#[tokio::test]
async fn a_full_queue_and_a_broker_that_is_away_are_waited_for() {
    let mill = Mill::start().await;
    mill.ok(&["setup", "--max-jobs", "5"]);
    let file = PoolFile::new(PENDING);
    let mut import = Running::start(mill.command(&["import", file.path()]));
    import.hears("the queue is full: waiting");
    mill.broker.kill().await.expect("killed");
    mill.broker.restart().await.expect("restarted");
    assert!(!import.has_ended() && file.file.exists());
    let working = mill.work(&["--run-store", "jetstream"]);
    assert_eq!(import.ended().code(), Some(0), "{}", import.heard());
    assert!(import.heard().contains("imported 14 jobs"), "{}", import.heard());
    is_emptied(&mill);
    working.terminate();
}

#[tokio::test]
async fn told_to_stop_it_leaves_the_file_and_goes_on_later() {
    let mill = Mill::start().await;
    mill.ok(&["setup", "--max-jobs", "5"]);
    let file = PoolFile::new(PENDING);
    let mut import = Running::start(mill.command(&["import", file.path()]));
    import.hears("the queue is full: waiting");
    import.signal(rustix::process::Signal::INT);
    assert_eq!(import.ended().code(), Some(130));
    import.hears("the same command goes on with it");
    let working = mill.work(&["--run-store", "jetstream"]);
    mill.ok(&["import", file.path()]);
    is_emptied(&mill);
    working.terminate();
}

#[tokio::test]
async fn either_flag_makes_a_worker_of_all_that_is_imported() {
    for flag in [["--run-store", "jetstream"], ["--event-publisher", "none"]] {
        let mill = Mill::start().await;
        mill.ok(&["import", PoolFile::new(PENDING).path()]);
        let working = mill.work(&flag);
        is_emptied(&mill);
        working.terminate();
    }
}

/// Waits until each of the pending jobs is done.
fn is_emptied(mill: &Mill) {
    let watch = ["results", "watch", "--since", "1h", "--limit", "14", "--json"];
    let mut watching = Running::start(mill.command(&watch));
    assert!(watching.ended().success());
    let ends = documents(&watching.heard());
    assert!(ends.iter().all(|end| end["status"] == "done"), "{ends:?}");
}

/// What the broker has under a subject: the payload, and a line for each header.
async fn stored(nats: &async_nats::Client, subject: &str) -> (Value, Vec<String>) {
    let request = json!({ "last_by_subj": subject }).to_string();
    let get = format!("$JS.API.STREAM.MSG.GET.{JOBS_STREAM}");
    let answer = nats.request(get, request.into()).await.expect("an answer");
    let answer: Value = serde_json::from_slice(&answer.payload).expect("JSON");
    let decoded = |name: &str| {
        let text =
            answer["message"][name].as_str().unwrap_or_else(|| panic!("{subject}: {answer}"));
        let bytes = base64::engine::general_purpose::STANDARD.decode(text).expect("base64");
        String::from_utf8(bytes).expect("UTF-8")
    };
    let mut headers: Vec<String> =
        decoded("hdrs").trim().lines().skip(1).map(String::from).collect();
    headers.sort();
    (serde_json::from_str(&decoded("data")).expect("JSON"), headers)
}

#[tokio::test]
async fn the_broker_has_all_that_the_file_says() {
    let mill = Mill::start().await;
    let mut entries: Vec<Value> = (0..4).map(entry).collect();
    let lanes = [("Low", "low"), ("Normal", "normal"), ("High", "high"), ("Critical", "critical")];
    for (n, (entry, (priority, _))) in entries.iter_mut().zip(lanes).enumerate() {
        entry["priority"] = priority.into();
        entry["max_retries"] = (n + 4).into();
        entry["retries"] = (n + 1).into();
        entry["conditions"]["run_after"] = format!("2036-11-2{n}T07:00:07.419000001Z").into();
        entry["job_type"]["payload"]["added_later"] = json!({"x": 1e-7});
    }
    mill.ok(&["import", PoolFile::of(&entries).path()]);
    let nats = async_nats::connect(mill.broker.url()).await.expect("connects");
    for (n, (entry, (_, lane))) in entries.iter().zip(lanes).enumerate() {
        let id = entry["id"].as_str().expect("an id");
        let subject = format!("tidemill.jobs.default.{lane}.test_job.{id}");
        let (payload, headers) = stored(&nats, &subject).await;
        assert_eq!(payload, entry["job_type"]["payload"]);
        let mut expected = vec![
            format!("Tidemill-Attempts-Used: {}", n + 1),
            "Tidemill-Backoff: linear:2000".to_owned(),
            "Tidemill-Created-At: 2026-11-23T07:00:05.419Z".to_owned(),
            format!("Tidemill-Max-Retries: {}", n + 4),
            format!("Tidemill-Run: {id}"),
            format!("Tidemill-Run-After: 2036-11-2{n}T07:00:07.420Z"),
        ];
        expected
            .extend(headers.iter().filter(|header| header.starts_with("Nats-Expected")).cloned());
        expected.sort();
        assert_eq!(headers, expected);
    }
}
