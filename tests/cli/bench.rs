//! `tidemill bench`.

use std::time::Duration;

use rustix::process::Signal;
use tokio::time::{sleep, timeout};

use crate::support::{Mill, PATIENCE, Running, messages, tidemill};

#[tokio::test]
async fn a_broker_of_ones_own_is_measured_and_left_as_it_was() {
    let mill = Mill::start().await;
    let bench = |more: &[&'static str]| {
        [&["bench", "drain", "enqueue", "latency", "--connected", "--jobs", "300"][..], more]
            .concat()
    };
    let measured = mill.json(&bench(&[]));
    let scenarios: Vec<&str> =
        measured.iter().map(|figures| figures["scenario"].as_str().expect("text")).collect();
    let expected = ["drain", "enqueue", "enqueue", "enqueue", "latency", "latency"];
    assert_eq!(scenarios, expected);
    for figures in &measured {
        assert!(figures["jobs_per_second"].as_f64().is_some_and(|rate| rate > 0.0), "{figures}");
    }
    let latency = &measured[5]["latency"];
    assert!(latency["p50_us"].as_u64() <= latency["max_us"].as_u64(), "{latency}");
    assert!(mill.json(&["queue", "ls"]).is_empty(), "its queue is gone");
    mill.ok(&["enqueue", "bench", "any"]);
    let refused = mill.run(&bench(&[]));
    assert_eq!(refused.code, 2, "{refused:?}");
    assert!(refused.err.contains("queue bench is there already"), "{refused:?}");
    assert_eq!(mill.json(&["queue", "ls"])[0]["jobs"], 1, "and untouched");
}

#[test]
fn without_a_word_it_measures_a_private_broker() {
    let mut bench = tidemill(&["bench", "drain", "--jobs", "300"]);
    let output = bench.env("NATS_URL", "nats://127.0.0.1:1").output().expect("runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(said.contains("drain") && said.contains("broker CPU"), "{said}");
}

#[tokio::test]
async fn an_interrupted_one_drains_its_worker_before_it_takes_its_queue_away() {
    let mill = Mill::start().await;
    let arguments = ["bench", "steady", "--connected", "--rate", "500", "--jobs", "1000000"];
    let mut bench = Running::start(mill.command(&arguments));
    let works = async {
        while messages(&mill, "TIDEMILL_RESULTS_bench").await < 100 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, works).await.expect("it works in time");
    bench.signal(Signal::INT);
    assert_eq!(bench.ended().code(), Some(130), "{}", bench.heard());
    assert_eq!(bench.heard(), "", "nothing went wrong");
    assert!(mill.json(&["queue", "ls"]).is_empty(), "its queue is gone");
}

#[tokio::test]
async fn every_load_is_measured() {
    let mill = Mill::start().await;
    let loads = ["steady", "priority", "retry-storm", "backlog", "scale", "timers"];
    let sizes = ["--connected", "--jobs", "300", "--rate", "1000", "--waiting", "100,1000"];
    let more = ["--processes", "1,2", "--concurrency", "8"];
    let measured = mill.json(&[&["bench"][..], &loads, &sizes, &more].concat());
    let figures = |of: &str| {
        let all = measured.iter().filter(|figures| figures["scenario"] == of).collect::<Vec<_>>();
        assert_eq!(all.len(), if of == "retry-storm" { 1 } else { 2 }, "{of}: {measured:?}");
        all
    };
    for load in loads {
        for figures in figures(load) {
            assert!(figures["jobs_per_second"].as_f64().is_some_and(|rate| rate > 0.0), "{load}");
            assert!(figures["rss_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{load}");
        }
    }
    for compared in ["priority", "backlog", "scale"] {
        assert!(figures(compared)[1]["ratio"].as_f64().is_some_and(|ratio| ratio > 0.0));
    }
    assert_eq!(figures("timers")[1]["of"], "due at once, 0 early");
    assert!(mill.json(&["queue", "ls"]).is_empty(), "its queue is gone");
}
