//! Imports: what is put in under a name and a position is run once for it, however often it is put in.

use std::time::Duration;

use tidemill::{JobContext, JobError, NewJob};
use tokio::time::timeout;

use crate::support::{Mill, Numbered, Seen, eventually, numbered, stream_messages};

fn jobs(from: u64, to: u64) -> Vec<(u64, NewJob)> {
    (from..to).map(|n| (n, NewJob::new(&numbered(n)))).collect()
}

#[tokio::test]
async fn broken_off_while_a_worker_takes_the_jobs_none_is_lost_and_none_run_twice() {
    const JOBS: u64 = 4000;
    const CHUNK: u64 = 1000;
    let mill = Mill::start().await;
    let seen = Seen::default();
    let note = seen.clone();
    let handler = move |job: Numbered, _: JobContext| {
        note.push(job.n);
        async { Ok::<_, JobError>(()) }
    };
    let worker = mill.worker().concurrency(50).handle(handler).build().expect("valid");
    let running = worker.start().await.expect("starts");
    let import = mill.client.import("orders").expect("a name");
    for from in (0..JOBS).step_by(CHUNK as usize) {
        // Given up somewhere in the midst, with jobs stored, on their way, and run already.
        let some = import.put(jobs(from, from + CHUNK));
        let given_up = timeout(Duration::from_millis(15 + from / 100), some).await.is_err();
        eventually("what was stored is run", || async {
            let nats = mill.nats().await;
            (stream_messages(&nats, "TIDEMILL_JOBS_default").await == 0).then_some(())
        })
        .await;
        assert!(given_up || seen.len() as u64 == from + CHUNK);
        let again = import.clone().uncertain_below(from + CHUNK);
        for outcome in again.put(jobs(from, from + CHUNK)).await {
            outcome.expect("stored, now or before");
        }
    }
    seen.wait_for(JOBS as usize).await;
    running.drain().await;
    let mut all = seen.all();
    all.sort_unstable();
    assert_eq!(all, (0..JOBS).collect::<Vec<_>>(), "each once");
}

#[tokio::test]
async fn while_the_broker_is_away_it_goes_on_trying() {
    const JOBS: u64 = 2000;
    let mill = Mill::start().await;
    let import = mill.client.import("orders").expect("a name");
    let put = import.put(jobs(0, JOBS));
    let crash = async {
        let nats = mill.nats().await;
        eventually("some are stored", || async {
            (stream_messages(&nats, "TIDEMILL_JOBS_default").await > 50).then_some(())
        })
        .await;
        mill.broker.kill().await.expect("kills");
        mill.broker.restart().await.expect("restarts");
    };
    let (outcomes, ()) = tokio::join!(put, crash);
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    assert_eq!(stream_messages(&mill.nats().await, "TIDEMILL_JOBS_default").await, JOBS);
}

#[tokio::test]
async fn lines_of_one_id_are_put_in_again_without_doubling_any() {
    let mill = Mill::start().await;
    let nats = mill.nats().await;
    let import = mill.client.import("orders").expect("a name");
    let lines = || (0..5).map(|n| (n, NewJob::new(&numbered(n)).id("order-17")));
    for outcome in import.put(lines()).await {
        outcome.expect("stored");
    }
    // One of them is on a timer by now.
    let later = Duration::from_secs(3600);
    let parked = [(5, NewJob::new(&numbered(5)).delay(later))];
    for outcome in import.put(parked.clone()).await {
        outcome.expect("stored");
    }
    let nobodys = tidemill::Handler::raw("other", |_, _| async { Ok(None) });
    let worker = mill.worker().handler(nobodys).build().expect("valid");
    let running = worker.start().await.expect("starts");
    eventually("it is parked", || async {
        (stream_messages(&nats, "TIDEMILL_TIMERS_default").await == 1).then_some(())
    })
    .await;
    running.drain().await;
    let again = import.uncertain_below(6);
    for outcome in again.put(lines().chain(parked)).await {
        outcome.expect("there");
    }
    assert_eq!(stream_messages(&nats, "TIDEMILL_JOBS_default").await, 5);
    assert_eq!(stream_messages(&nats, "TIDEMILL_TIMERS_default").await, 1);
}
