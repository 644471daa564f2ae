//! Being told to stop: once drains, twice stops at once.

use rustix::process::Signal;

use crate::support::{Mill, eventually};

/// How many times a file was written to.
fn lines(file: &tempfile::NamedTempFile) -> usize {
    std::fs::read_to_string(file.path()).expect("reads").lines().count()
}

#[tokio::test]
async fn told_once_a_worker_ends_what_runs_and_hands_back_the_rest() {
    let mill = Mill::start().await;
    let notes = tempfile::NamedTempFile::new().expect("a file");
    let slow = format!("slow=echo x >> {}; sleep 1; echo done", notes.path().display());
    let mut worker = mill.work(&["--concurrency", "1", "--exec", &slow]);
    let first = mill.ok(&["enqueue", "default", "slow"]);
    let second = mill.ok(&["enqueue", "default", "slow"]);
    eventually("a running job", || (lines(&notes) == 1).then_some(()));
    worker.signal(Signal::INT);
    worker.hears("draining: running jobs may end; once more stops at once");
    let status = worker.ended();
    assert_eq!(status.code(), Some(0), "{}", worker.heard());
    let found = mill.json(&["results", "get", first.trim()]);
    assert_eq!((&found[0]["status"], &found[0]["result"]), (&"done".into(), &"done".into()));
    assert_eq!(mill.run(&["results", "get", second.trim()]).code, 3, "it has not ended");
    assert_eq!(lines(&notes), 1, "it was not begun");
    let _worker = mill.work(&["--exec", "slow=echo again"]);
    let ended = eventually("the second job", || {
        let said = mill.run(&["results", "get", second.trim(), "--json"]);
        (said.code == 0)
            .then(|| serde_json::from_str::<serde_json::Value>(&said.out).expect("JSON"))
    });
    assert_eq!(ended["attempt"], 1, "handing back costs nothing");
}

#[tokio::test]
async fn told_twice_it_stops_now_and_the_job_comes_back() {
    let mill = Mill::start().await;
    mill.ok(&["setup", "--ack-wait", "2s"]);
    let notes = tempfile::NamedTempFile::new().expect("a file");
    let endless = format!("endless=echo x >> {}; sleep 600", notes.path().display());
    let mut worker = mill.work(&["--exec", &endless]);
    let id = mill.ok(&["enqueue", "default", "endless"]);
    eventually("a running job", || (lines(&notes) == 1).then_some(()));
    worker.signal(Signal::TERM);
    worker.hears("draining");
    worker.signal(Signal::TERM);
    assert_eq!(worker.ended().code(), Some(130), "{}", worker.heard());
    assert!(worker.heard().contains("stopping now"), "{}", worker.heard());
    let _worker = mill.work(&["--exec", "endless=echo brought to an end"]);
    eventually("the job's second worker", || {
        let said = mill.run(&["results", "get", id.trim()]);
        (said.code == 0 && said.out.contains("brought to an end")).then_some(())
    });
}
