//! The library example: the README's block is `examples/send_email.rs`, which runs here.

use std::process::Command;

use tidemill::embedded::Broker;

use crate::blocks;

/// Set for a process of this test that is to be the example.
const IS_EXAMPLE: &str = "TIDEMILL_TEST_IS_EXAMPLE";

mod example {
    include!("../../examples/send_email.rs");

    pub(super) fn run() {
        main().expect("the example succeeds");
    }
}

#[test]
fn the_readme_shows_the_example() {
    let (_, example) = include_str!("../../examples/send_email.rs")
        .split_once("\n\n")
        .expect("a comment, then code");
    assert_eq!(blocks("rust,no_run"), [example.trim_end()]);
}

#[tokio::test]
async fn the_example_runs() {
    if std::env::var_os(IS_EXAMPLE).is_some() {
        return tokio::task::spawn_blocking(|| std::thread::spawn(example::run).join())
            .await
            .expect("runs")
            .expect("the example succeeds");
    }
    let broker = Broker::start().await.expect("a broker");
    let url = broker.url().to_owned();
    let output = tokio::task::spawn_blocking(move || {
        Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "library::the_example_runs", "--nocapture"])
            .env(IS_EXAMPLE, "1")
            .env("NATS_URL", url)
            .output()
    });
    let output = output.await.expect("waits").expect("starts");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(said.contains(r#"Some("sent to a@example.com in attempt 1")"#), "{said}");
}
