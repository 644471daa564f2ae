//! What `tidemill work` tells of what keeps it from working: on standard error, by a file, to systemd.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use serde_json::json;

use crate::support::{Mill, PATIENCE, Running, eventually};

async fn delete_lane(mill: &Mill, lane: &str) {
    let nats = async_nats::connect(mill.broker.url()).await.expect("connects");
    let subject = format!("$JS.API.CONSUMER.DELETE.TIDEMILL_JOBS_default.{lane}");
    let answer = nats.request(subject, json!({}).to_string().into()).await.expect("an answer");
    assert!(String::from_utf8_lossy(&answer.payload).contains("true"), "{answer:?}");
}

#[tokio::test]
async fn a_trouble_is_told_once_and_the_ready_file_is_there_while_there_is_none() {
    let mill = Mill::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let ready = folder.path().join("ready");
    std::fs::write(&ready, "of a worker that was killed").expect("writes");
    let path = ready.to_str().expect("UTF-8");
    let worker = mill.work(&["--exec", "any=true", "--name", "miller", "--ready-file", path]);
    eventually("it is ready", || {
        std::fs::read_to_string(&ready).ok().filter(|name| name == "miller\n")
    });
    delete_lane(&mill, "low").await;
    let told = "consumer_missing at TIDEMILL_JOBS_default/low";
    worker.hears(told);
    eventually("it is not ready", || (!ready.exists()).then_some(()));
    let heard = worker.hears("`tidemill setup default`");
    assert!(heard.contains("WARN"), "{heard}");
    // Longer than several tries take.
    let begun = std::time::Instant::now();
    eventually("4 seconds", || (begun.elapsed() > Duration::from_secs(4)).then_some(()));
    mill.ok(&["setup"]);
    worker.hears("over: consumer_missing");
    eventually("it is ready again", || ready.exists().then_some(()));
    let heard = worker.heard();
    assert_eq!(
        heard.matches(told).count(),
        2,
        "once when it began, once when it was over: {heard}"
    );
    worker.terminate();
    assert!(!ready.exists(), "gone with the worker");
}

#[tokio::test]
async fn what_is_gone_is_made_again_by_a_worker_that_is_told_to() {
    let mill = Mill::start().await;
    let worker = mill.work(&["--exec", "any=true", "--reprovision"]);
    delete_lane(&mill, "normal").await;
    worker.hears("over: consumer_missing");
    mill.ok(&["enqueue", "default", "any", "--wait", "20s"]);
    worker.terminate();
}

#[tokio::test]
async fn systemd_hears_that_it_is_ready_and_that_it_stops() {
    let mill = Mill::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("binds");
    socket.set_read_timeout(Some(PATIENCE)).expect("set");
    let mut command = mill.command(&["work", "--exec", "any=true"]);
    command.env("NOTIFY_SOCKET", &path);
    let worker = Running::start(command);
    let hears = |wanted: &str| loop {
        let mut buffer = [0; 4096];
        let count = socket.recv(&mut buffer).expect("a notification");
        let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
        if text.contains(wanted) {
            return text;
        }
    };
    assert!(hears("READY=1").contains("STATUS=working"));
    worker.terminate();
    assert!(hears("STOPPING=1").contains("STATUS=draining"));
}
