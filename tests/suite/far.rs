//! What is seen and done over a slow line, or by a clock of another time, is what is so.

use std::time::Duration;

use chrono::{Datelike, Utc};
use tidemill::{Handler, JobContext, JobError, Queue, Status};

use crate::link::Link;
use crate::support::{Mill, Numbered, completion, connect, eventually, numbered, stream_messages};

/// Jobs go from lane to timer and back without end; a look over a slow line takes long enough for
/// each to be at neither place when it is looked for there.
#[tokio::test]
async fn a_queue_whose_jobs_are_on_the_move_is_not_empty() {
    let mill = Mill::start().await;
    let restless = Handler::new(|_: Numbered, _: JobContext| async {
        Err::<(), _>(JobError::snooze(Duration::from_millis(300)))
    });
    let worker = mill.worker().park_over(Duration::from_millis(10)).handler(restless);
    let running = worker.build().expect("valid").start().await.expect("starts");
    mill.client.enqueue(numbered(1)).await.expect("stored");
    let nats = mill.nats().await;
    eventually("it is on a timer", || async {
        (stream_messages(&nats, "TIDEMILL_TIMERS_default").await == 1).then_some(())
    })
    .await;
    let link = Link::slow(mill.broker.url(), Duration::from_millis(40)).await;
    let far = connect(&link.url).await;
    let patience = Duration::from_secs(12);
    let emptied = tokio::time::timeout(patience, far.wait_empty(&Queue::default())).await;
    assert!(emptied.is_err(), "it was never empty");
    running.drain().await;
}

#[tokio::test]
async fn times_are_counted_by_the_clock_of_the_broker() {
    let mill = Mill::start().await;
    let link = Link::to_the_next_century(mill.broker.url()).await;
    let year = Utc::now().year() + 100;
    let tidemill = async |arguments: &[&str]| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_tidemill"));
        let output = command.args(["--server", &link.url]).args(arguments).output().await;
        let output = output.expect("runs");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let job = mill.client.enqueue(numbered(1)).id("a").await.expect("stored");
    mill.client.enqueue(numbered(1)).id("b").await.expect("stored");
    let moved = tidemill(&["job", "reschedule", "a", "--in", "1h"]).await;
    assert!(moved.starts_with(&format!("moved a to run at {year}-")), "{moved}");
    tidemill(&["queue", "pause", "--for", "1h"]).await;
    let paused = tidemill(&["queue", "info"]).await;
    assert!(paused.contains(&format!("until {year}-")), "{paused}");
    tidemill(&["job", "cancel", "a", "b"]).await;
    let done = completion(&job).await;
    assert_eq!((done.status, done.finished_at.year()), (Status::Cancelled, year));
}
