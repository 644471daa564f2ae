//! The example of an agent's run.

use std::process::Command;

/// Set for a process of this test that is to be the example.
const IS_EXAMPLE: &str = "TIDEMILL_TEST_IS_EXAMPLE";

mod agent_runtime {
    include!("../../examples/agent_runtime.rs");

    pub(super) fn run() {
        main().expect("the example succeeds");
    }
}

#[test]
fn two_processes_work_a_run_that_is_read_back_in_order() {
    if std::env::var_os(IS_EXAMPLE).is_some() {
        return agent_runtime::run();
    }
    let test = "example::two_processes_work_a_run_that_is_read_back_in_order";
    let output = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", test, "--nocapture"])
        .env(IS_EXAMPLE, "1")
        .env_remove("NATS_URL")
        .output()
        .expect("starts");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    let mut log = said.lines().skip_while(|line| !line.starts_with("run ")).skip(1).map(str::trim);
    for expected in [
        "0 RunStarted",
        "1 TextDelta: pieces",
        "2 TextDelta: of",
        "3 TextDelta: eight,",
        "4 TextDelta: pieces",
        "5 TextDelta: of",
        "6 TextDelta: eight",
        "7 RunCompleted",
        "8 events are published",
    ] {
        assert_eq!(log.next(), Some(expected), "{said}");
    }
    let by_worker = log.map_while(|line| Some(line.split_once(" jobs were done by ")?.0));
    let by_worker: Vec<u32> = by_worker.map(|jobs| jobs.parse().expect("a number")).collect();
    assert_eq!((by_worker.len(), by_worker.iter().sum::<u32>()), (2, 16), "{said}");
}
