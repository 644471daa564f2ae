//! Messages that no consumer hands out any more: workers clear away what had ended, bring back what had
//! not, and tell of what they cannot bring back, all with no more than a worker's rights.

use std::time::Duration;

use async_nats::jetstream;
use serde_json::{Value, json};
use tidemill::embedded::Cluster;
use tidemill::{
    Backoff, Client, Handler, Health, JobContext, JobError, Queue, QueueConfig, RetryPolicy,
    Running, Status, TroubleKind, Worker,
};

use crate::support::{
    Mill, Numbered, Seen, completion, connect, consumer_counts, eventually, numbered,
    stream_messages,
};

const JOBS: &str = "TIDEMILL_JOBS_default";
const TIMERS: &str = "TIDEMILL_TIMERS_default";
const LANE: &str = "tidemill.jobs.default.normal.>";

/// Short, so that workers look often.
const ACK_WAIT: Duration = Duration::from_secs(1);

async fn api(nats: &async_nats::Client, call: &str, request: Value) -> Value {
    let answer = nats.request(format!("$JS.API.{call}"), request.to_string().into()).await;
    let answer: Value = serde_json::from_slice(&answer.expect("an answer").payload).expect("JSON");
    assert!(answer["error"].is_null(), "{call}: {answer}");
    answer
}

/// Changes an option of a consumer by hand.
async fn edit(nats: &async_nats::Client, stream: &str, consumer: &str, option: &str, value: Value) {
    let info = api(nats, &format!("CONSUMER.INFO.{stream}.{consumer}"), json!({})).await;
    let mut config = info["config"].clone();
    config[option] = value;
    let filter = config["filter_subject"].as_str().expect("a filter").to_owned();
    let request = json!({ "stream_name": stream, "config": config, "action": "update" });
    api(nats, &format!("CONSUMER.CREATE.{stream}.{consumer}.{filter}"), request).await;
}

/// Waits until the normal lane's consumer has passed all that there is.
async fn passed(nats: &async_nats::Client) {
    eventually("the consumer has passed all", || async {
        (consumer_counts(nats, JOBS, "normal").await == (0, 0)).then_some(())
    })
    .await;
}

fn noting(seen: &Seen<(u64, u32)>) -> Handler {
    let seen = seen.clone();
    Handler::new(move |job: Numbered, context: JobContext| {
        seen.push((job.n, context.attempt()));
        async { Ok::<_, JobError>(()) }
    })
}

async fn work(client: &Client, handler: Handler) -> Running {
    Worker::builder(client).handler(handler).build().expect("valid").start().await.expect("starts")
}

async fn nothing_is_left(nats: &async_nats::Client, stream: &str) {
    eventually("nothing is left", || async {
        (stream_messages(nats, stream).await == 0).then_some(())
    })
    .await;
}

fn is_stuck(health: &Health) -> bool {
    health.troubles.iter().any(|trouble| trouble.kind == TroubleKind::JobsStuck)
}

/// Leaves the message of a job on the normal lane that has ended, as a server does that is stopped
/// between an ack and the deletion after it: there, and for no consumer to hand out.
async fn leave_ended(nats: &async_nats::Client, client: &Client, n: u64) {
    let job = client.enqueue(numbered(n)).id(format!("left-{n}")).await.expect("stored");
    let run = completion(&job).await.run;
    let elsewhere = json!("tidemill.jobs.default.normal.elsewhere.>");
    edit(nats, JOBS, "normal", "filter_subject", elsewhere).await;
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Tidemill-Run", run.as_str());
    let subject = format!("tidemill.jobs.default.normal.numbered.left-{n}");
    let body = format!("{{\"n\":{n}}}");
    let jetstream = jetstream::new(nats.clone());
    let left = jetstream.publish_with_headers(subject, headers, body.into()).await;
    left.expect("sent").await.expect("stored");
    pass(nats).await;
    edit(nats, JOBS, "normal", "filter_subject", json!(LANE)).await;
}

/// Has the normal lane's consumer pass all that its filter leaves out.
async fn pass(nats: &async_nats::Client) {
    let behind = "tidemill.jobs.default.normal.elsewhere.behind";
    let behind = jetstream::new(nats.clone()).publish(behind, "null".into()).await;
    let sequence = behind.expect("sent").await.expect("stored").sequence;
    // A worker gives it back, which knows of no such kind.
    eventually("the one behind was handed out", || async {
        let info = api(nats, &format!("CONSUMER.INFO.{JOBS}.normal"), json!({})).await;
        (info["delivered"]["stream_seq"].as_u64() >= Some(sequence)).then_some(())
    })
    .await;
    api(nats, &format!("STREAM.MSG.DELETE.{JOBS}"), json!({ "seq": sequence })).await;
    passed(nats).await;
}

#[tokio::test]
async fn what_is_left_of_a_job_that_has_ended_is_cleared_away_by_a_worker() {
    let mill = Mill::with_ack_wait(ACK_WAIT).await;
    let (nats, seen) = (mill.nats().await, Seen::default());
    let running = work(&mill.client, noting(&seen)).await;
    leave_ended(&nats, &mill.client, 1).await;
    assert_eq!(stream_messages(&nats, JOBS).await, 1);
    // The same id, enqueued anew, is another message.
    let anew = mill.client.enqueue(numbered(2)).id("left-1").await.expect("stored");
    assert_eq!(completion(&anew).await.status, Status::Done);
    nothing_is_left(&nats, JOBS).await;
    assert_eq!(seen.all(), [(1, 1), (2, 1)], "each was run once");
    assert!(!is_stuck(&running.health()), "{:?}", running.health());
    running.drain().await;
}

#[tokio::test]
async fn what_is_left_in_a_cluster_is_cleared_away_by_a_worker() {
    let cluster = Cluster::start(3).await.expect("a cluster");
    let mut config = QueueConfig::default();
    (config.replicas, config.ack_wait) = (3, ACK_WAIT);
    let client = connect(cluster.node(0).url()).await.with_queue_config(config);
    let nats = async_nats::connect(cluster.node(1).url()).await.expect("connects");
    let seen = Seen::default();
    let running = work(&client, noting(&seen)).await;
    leave_ended(&nats, &client, 1).await;
    nothing_is_left(&nats, JOBS).await;
    assert_eq!(seen.all(), [(1, 1)]);
    running.drain().await;
}

#[tokio::test]
async fn a_job_that_a_filter_left_out_is_told_and_brought_back_once_the_filter_is_mended() {
    let mill = Mill::with_ack_wait(ACK_WAIT).await;
    let (nats, seen) = (mill.nats().await, Seen::default());
    let running = work(&mill.client, noting(&seen)).await;
    let elsewhere = json!("tidemill.jobs.default.normal.elsewhere.>");
    edit(&nats, JOBS, "normal", "filter_subject", elsewhere).await;
    let job = mill.client.enqueue(numbered(1)).await.expect("stored");
    pass(&nats).await;
    let trouble = eventually("it is told", || async {
        running.health().troubles.into_iter().find(|one| one.kind == TroubleKind::JobsStuck)
    })
    .await;
    let told = trouble.to_string();
    let place = format!("jobs_stuck at {JOBS}/normal: 1 jobs are beyond");
    assert!(told.starts_with(&place), "{told}");
    assert!(
        told.contains("its filter_subject") && told.contains("doctor default --revive"),
        "{told}"
    );
    assert!(running.is_ready(), "it works on");
    assert_eq!(stream_messages(&nats, JOBS).await, 1, "copies would be left out as well");
    edit(&nats, JOBS, "normal", "filter_subject", json!(LANE)).await;
    assert_eq!(completion(&job).await.attempt, 1);
    nothing_is_left(&nats, JOBS).await;
    eventually("it is over", || async { (!is_stuck(&running.health())).then_some(()) }).await;
    assert_eq!(seen.all(), [(1, 1)]);
    running.drain().await;
}

#[tokio::test]
async fn a_job_that_was_handed_out_too_often_goes_on_with_its_attempts() {
    let mill = Mill::with_ack_wait(ACK_WAIT).await;
    let (nats, seen) = (mill.nats().await, Seen::default());
    edit(&nats, JOBS, "normal", "max_deliver", json!(1)).await;
    let note = seen.clone();
    let policy = RetryPolicy::new(3, Backoff::fixed(Duration::from_millis(200)));
    let handler = Handler::new(move |job: Numbered, context: JobContext| {
        note.push((job.n, context.attempt()));
        async move {
            match context.attempt() {
                1 => Err(JobError::failed("the first time")),
                _ => Ok(()),
            }
        }
    });
    let running = work(&mill.client, handler.retry(policy)).await;
    let job = mill.client.enqueue(numbered(1)).await.expect("stored");
    eventually("it is told", || async { is_stuck(&running.health()).then_some(()) }).await;
    edit(&nats, JOBS, "normal", "max_deliver", json!(-1)).await;
    assert_eq!(completion(&job).await.attempt, 2);
    assert_eq!(seen.all(), [(1, 1), (1, 2)]);
    running.drain().await;
}

#[tokio::test]
async fn what_came_due_and_is_handed_out_to_nobody_is_put_on_its_lane() {
    let mill = Mill::with_ack_wait(ACK_WAIT).await;
    let (nats, seen) = (mill.nats().await, Seen::default());
    let job = leave_due(&nats, &mill.client, 1).await;
    let running = work(&mill.client, noting(&seen)).await;
    assert_eq!(completion(&job).await.attempt, 1);
    nothing_is_left(&nats, TIMERS).await;
    assert_eq!(seen.all(), [(1, 1)]);
    running.drain().await;
}

#[tokio::test]
async fn an_operator_brings_back_what_came_due_too() {
    let mill = Mill::with_ack_wait(Duration::from_secs(30)).await;
    let (nats, queue) = (mill.nats().await, Queue::default());
    let job = leave_due(&nats, &mill.client, 1).await;
    let found = mill.client.examine_queue(&queue).await.expect("looks");
    let place = format!("{TIMERS}/due");
    let stuck = found.iter().find(|finding| finding.code == "stuck_jobs" && finding.place == place);
    assert!(stuck.is_some(), "{found:?}");
    let stuck = mill.client.stuck_jobs(&queue).await.expect("looks");
    assert_eq!((stuck.jobs.len(), stuck.untold), (1, 0));
    assert_eq!((stuck.jobs[0].id.as_str(), stuck.jobs[0].stream.as_str()), ("due-1", TIMERS));
    let revived = mill.client.revive_stuck(&queue).await.expect("may");
    let told: Vec<&str> = revived.iter().map(|(_, revived)| revived.as_str()).collect();
    assert_eq!(told, ["moved"]);
    assert_eq!(stream_messages(&nats, TIMERS).await, 0);
    let seen = Seen::default();
    let running = work(&mill.client, noting(&seen)).await;
    assert_eq!(completion(&job).await.attempt, 1);
    assert_eq!(seen.all(), [(1, 1)]);
    assert!(mill.client.revive_stuck(&queue).await.expect("may").is_empty());
    running.drain().await;
}

/// Leaves a job on its due subject that the consumer there has passed by.
async fn leave_due(nats: &async_nats::Client, client: &Client, n: u64) -> tidemill::JobHandle {
    let later = Duration::from_secs(2);
    let job = client.enqueue(numbered(n)).id(format!("due-{n}")).delay(later).await;
    let job = job.expect("stored");
    let parks = Worker::builder(client).park_over(Duration::from_millis(1));
    let parks = parks.handler(noting(&Seen::default())).build().expect("valid");
    let parks = parks.start().await.expect("starts");
    eventually("it is parked", || async { (stream_messages(nats, JOBS).await == 0).then_some(()) })
        .await;
    parks.drain().await;
    edit(nats, TIMERS, "due", "filter_subject", json!("tidemill.due.default.low.>")).await;
    eventually("it has come due", || async {
        let request = json!({ "last_by_subj": "tidemill.due.default.normal.>" });
        let answer =
            nats.request(format!("$JS.API.STREAM.MSG.GET.{TIMERS}"), request.to_string().into());
        let answer = answer.await.expect("an answer");
        (!String::from_utf8_lossy(&answer.payload).contains("error")).then_some(())
    })
    .await;
    // What the filter lets through moves the consumer on.
    let jetstream = jetstream::new(nats.clone());
    let behind = jetstream.publish("tidemill.due.default.low.numbered.x.y", "null".into()).await;
    let sequence = behind.expect("sent").await.expect("stored").sequence;
    let consumer: jetstream::consumer::PullConsumer =
        jetstream.get_consumer_from_stream("due", TIMERS).await.expect("there");
    let mut batch = consumer.fetch().max_messages(1).messages().await.expect("pulls");
    let message = futures_util::StreamExt::next(&mut batch).await.expect("one").expect("read");
    assert_eq!(message.info().expect("of a stream").stream_sequence, sequence);
    message.ack().await.expect("acked");
    eventually("it is settled", || async {
        (stream_messages(nats, TIMERS).await == 1).then_some(())
    })
    .await;
    edit(nats, TIMERS, "due", "filter_subject", json!("tidemill.due.default.>")).await;
    job
}
