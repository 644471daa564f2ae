//! A server that comes back must not delete what is under way.
//!
//! nats-server deletes unacked messages from a replicated work queue whose consumer keeps its state on disk:
//! a server that was away recovers what it knew, counts more as acked than was when it comes back, does not
//! take its leader's word against that, and deletes accordingly once it leads. A queue of tidemill's goes
//! through that here beside a bare one with such a consumer, which has to lose something: else the
//! conditions were not met, and nothing was shown.

use std::time::{Duration, Instant};

use async_nats::Client as Nats;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tidemill::Queue;
use tidemill::embedded::Cluster;

use crate::support::copies::jsz;
use crate::support::held::{ACK_WAIT, BEFORE, HELD, Held, Lane, MEANWHILE};
use crate::support::site::{Login, nats_at};
use crate::support::{Sync, api, connect, eventually, short_leases, until};

/// How often the bare queue may lose nothing before the test gives up: it does where the server has
/// recovered before its stream's group replays what it missed.
const TRIES: usize = 4;

/// Streams beside the two, which a server that comes back has to recover too.
const OTHERS: usize = 6;

/// The server that goes, and the one that leads meanwhile.
const AWAY: usize = 2;
const LEADER: usize = 0;

/// As anybody would make one.
const BARE: Lane = Lane { stream: "BARE", consumer: "c", subject: "bare.x" };

/// A client at the servers that stay.
async fn at_the_others(cluster: &Cluster) -> Nats {
    let others = (0..3).filter(|node| *node != AWAY).map(|node| cluster.node(node).url());
    nats_at(&others.collect::<Vec<_>>().join(","), Login::Nobody).await
}

/// Makes the bare queue, and others to be recovered.
async fn make(nats: &Nats) {
    let made = async |verb: String, request: Value| {
        let answer = api(nats, &verb, request).await;
        assert!(answer["error"].is_null(), "{verb}: {answer}");
    };
    let replicated = |name: &str, subjects: &str, retention: &str| {
        json!({ "name": name, "subjects": [subjects], "retention": retention,
                "storage": "file", "num_replicas": 3 })
    };
    let durable = |name: &str| {
        json!({ "durable_name": name, "name": name, "ack_policy": "explicit", "max_deliver": -1,
                "ack_wait": ACK_WAIT.as_nanos() as u64, "max_ack_pending": -1 })
    };
    let bare = replicated(BARE.stream, "bare.>", "workqueue");
    made(format!("STREAM.CREATE.{}", BARE.stream), bare).await;
    let consumer = json!({ "stream_name": BARE.stream, "config": durable(BARE.consumer) });
    made(format!("CONSUMER.CREATE.{}.{}", BARE.stream, BARE.consumer), consumer).await;
    for n in 0..OTHERS {
        let name = format!("OTHER_{n}");
        let other = replicated(&name, &format!("other.{n}.>"), "limits");
        made(format!("STREAM.CREATE.{name}"), other).await;
        let consumer = json!({ "stream_name": name, "config": durable("c") });
        made(format!("CONSUMER.CREATE.{name}.c"), consumer).await;
    }
}

/// Waits until the server that will go knows what is taken.
async fn is_known(cluster: &Cluster, lane: Lane) {
    eventually("the server knows what is handed out", || async {
        let page = jsz(cluster.node(AWAY)).await?;
        let streams = page["account_details"][0]["stream_detail"].as_array()?.clone();
        let stream = streams.iter().find(|stream| stream["name"] == lane.stream)?;
        let consumers = stream["consumer_detail"].as_array()?;
        let consumer = consumers.iter().find(|one| one["name"] == lane.consumer)?;
        (consumer["num_ack_pending"] == BEFORE).then_some(())
    })
    .await;
}

/// Waits until every replica of a lane has all that its leader has.
async fn has_caught_up(nats: &Nats, lane: Lane) {
    let Lane { stream, consumer, .. } = lane;
    for verb in [format!("STREAM.INFO.{stream}"), format!("CONSUMER.INFO.{stream}.{consumer}")] {
        eventually(&verb, || async {
            let info = api(nats, &verb, Value::Null).await;
            let replicas = info["cluster"]["replicas"].as_array()?;
            let is_current = |replica: &Value| replica["current"] == true;
            (replicas.len() == 2 && replicas.iter().all(is_current)).then_some(())
        })
        .await;
    }
}

/// What is unacked while a server is away, and of that what is deleted when it has come back and leads:
/// of each lane.
async fn lost_by_return(cluster: &Cluster, lanes: [Lane; 2]) -> Vec<usize> {
    let nats = at_the_others(cluster).await;
    let mut all = lanes.map(|lane| Held::of(lane, nats.clone()));
    for (held, lane) in all.iter_mut().zip(lanes) {
        lane.led_by(&nats, LEADER).await;
        held.before().await;
        is_known(cluster, lane).await;
    }
    cluster.kill(AWAY).await.expect("killed");
    join_all(all.iter_mut().map(Held::while_away)).await;
    until(Instant::now() + Duration::from_millis(300)).await;
    cluster.restart(AWAY).await.expect("back");
    for lane in lanes {
        has_caught_up(&nats, lane).await;
    }
    until(Instant::now() + Duration::from_secs(1)).await;
    let mut gone = Vec::new();
    for held in &mut all {
        gone.push(held.gone(AWAY).await);
    }
    gone
}

/// 11. R3. A server is away while jobs are taken, comes back under load, and leads: none of a queue's
/// unacked jobs is deleted, as those of a consumer with its state on disk are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_comes_back_and_leads_deletes_nothing_that_is_under_way() {
    let mut of_bare = Vec::new();
    for _ in 0..TRIES {
        let cluster = Cluster::start_with(3, Sync::Lazy.builder()).await.expect("a cluster");
        let mut config = short_leases(3);
        config.ack_wait = ACK_WAIT;
        let client = connect(&cluster.url()).await.with_queue_config(config);
        client.ensure_queue(&Queue::new("held").expect("valid")).await.expect("made");
        make(&at_the_others(&cluster).await).await;
        let gone = lost_by_return(&cluster, [HELD, BARE]).await;
        assert_eq!(gone[0], 0, "of {MEANWHILE} unacked jobs were deleted");
        of_bare.push(gone[1]);
        if gone[1] > 0 {
            return;
        }
    }
    panic!("the conditions were not met, so that nothing was shown: {of_bare:?} of the bare queue");
}
