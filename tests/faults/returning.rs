//! A server that comes back must not delete what is under way.
//!
//! nats-server deletes unacked messages from a replicated work queue whose consumer keeps its state on disk:
//! a server that was away recovers what it knew, counts more as acked than was when it comes back, does not
//! take its leader's word against that, and deletes accordingly once it leads. A queue of tidemill's goes
//! through that here beside a bare one with such a consumer, which has to lose something: else the
//! conditions were not met, and nothing was shown.

use std::time::{Duration, Instant};

use async_nats::{Client as Nats, Message};
use futures_util::StreamExt;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tidemill::Queue;
use tidemill::embedded::Cluster;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::support::copies::{caught_up, jsz};
use crate::support::site::{Login, nats_at};
use crate::support::{Sync, api, connect, eventually, short_leases, until};

/// How often the bare queue may lose nothing before the test gives up: it does when the server's recovery
/// is over before its stream's group replays what it missed.
const TRIES: usize = 4;

/// Streams beside the two, which a server that comes back has to recover too.
const OTHERS: usize = 6;

/// Handed out and unacked when the server goes; while it is away; and acked while it is away, so many
/// that the consumer's leader compacts its log (from 1024 entries on).
const BEFORE: usize = 20;
const MEANWHILE: usize = 200;
const ACKED: usize = 1500;

/// What is unacked stays so for longer than all of it takes.
const ACK_WAIT: Duration = Duration::from_secs(120);

/// The server that goes, and the one that leads meanwhile.
const AWAY: usize = 2;
const LEADER: usize = 0;

/// A work queue and the one consumer of it that matters.
#[derive(Clone, Copy)]
struct Lane {
    stream: &'static str,
    consumer: &'static str,
    subject: &'static str,
}

const TIDEMILL: Lane = Lane {
    stream: "TIDEMILL_JOBS_default",
    consumer: "normal",
    subject: "tidemill.jobs.default.normal.numbered",
};

/// As anybody would make one.
const BARE: Lane = Lane { stream: "BARE", consumer: "c", subject: "bare.x" };

impl Lane {
    async fn publish(self, nats: &Nats, count: usize) {
        let stored = (0..count).map(|_| nats.request(self.subject, "{\"n\":1}".into()));
        for stored in join_all(stored).await {
            stored.expect("stored");
        }
    }

    /// Takes so many, which have to be there.
    async fn pull(self, nats: &Nats, count: usize) -> Vec<Message> {
        let inbox = nats.new_inbox();
        let mut answers = nats.subscribe(inbox.clone()).await.expect("subscribes");
        let Self { stream, consumer, .. } = self;
        let next = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}");
        let mut taken = Vec::new();
        while taken.len() < count {
            let request = json!({ "batch": count - taken.len(), "expires": 3_000_000_000_u64 });
            let request = request.to_string().into();
            nats.publish_with_reply(next.clone(), inbox.clone(), request).await.expect("asks");
            while taken.len() < count {
                let answer = timeout(Duration::from_secs(5), answers.next()).await;
                let Ok(Some(message)) = answer else { break };
                if message.status.is_some() {
                    break;
                }
                taken.push(message);
            }
        }
        taken
    }

    async fn has(self, nats: &Nats, sequence: u64) -> bool {
        let verb = format!("STREAM.MSG.GET.{}", self.stream);
        api(nats, &verb, json!({ "seq": sequence })).await["error"].is_null()
    }

    /// Has one of the servers lead the stream, and then the consumer.
    async fn led_by(self, nats: &Nats, node: usize) {
        let Self { stream, consumer, .. } = self;
        let place = format!("{stream}.{consumer}");
        let name = format!("n{}", node + 1);
        for (what, place) in [("STREAM", stream), ("CONSUMER", place.as_str())] {
            let info = format!("{what}.INFO.{place}");
            let down = format!("{what}.LEADER.STEPDOWN.{place}");
            eventually(&format!("{name} leads {place}"), || async {
                let leader = api(nats, &info, Value::Null).await["cluster"]["leader"].take();
                if leader == name {
                    return Some(());
                }
                api(nats, &down, json!({ "placement": { "preferred": name } })).await;
                until(Instant::now() + Duration::from_millis(500)).await;
                None
            })
            .await;
        }
    }

    /// Waits until the server that will go knows of so many that are unacked.
    async fn is_known_to(self, cluster: &Cluster, node: usize, unacked: usize) {
        eventually("the server knows what is handed out", || async {
            let page = jsz(cluster.node(node)).await?;
            let streams = page["account_details"][0]["stream_detail"].as_array()?.clone();
            let stream = streams.iter().find(|stream| stream["name"] == self.stream)?;
            let consumers = stream["consumer_detail"].as_array()?;
            let consumer = consumers.iter().find(|one| one["name"] == self.consumer)?;
            (consumer["num_ack_pending"] == unacked).then_some(())
        })
        .await;
    }

    /// Takes and acks a few and puts in as many, until it is told to end.
    async fn flow(self, nats: &Nats, end: &CancellationToken) {
        while !end.is_cancelled() {
            self.publish(nats, 4).await;
            for message in self.pull(nats, 4).await {
                ack(nats, &message).await;
            }
            until(Instant::now() + Duration::from_millis(10)).await;
        }
    }
}

async fn ack(nats: &Nats, message: &Message) {
    let reply = message.reply.clone().expect("a delivery");
    nats.publish(reply, "+ACK".into()).await.expect("sent");
}

fn sequence(message: &Message) -> u64 {
    let reply = message.reply.as_ref().expect("a delivery");
    reply.split('.').nth(5).and_then(|token| token.parse().ok()).expect("a sequence")
}

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

/// What is unacked while a server is away, and of that what is deleted when it has come back and leads:
/// of each lane.
async fn lost_by_return(cluster: &Cluster, lanes: &[Lane]) -> Vec<usize> {
    let nats = at_the_others(cluster).await;
    let mut unacked = Vec::new();
    for lane in lanes {
        lane.led_by(&nats, LEADER).await;
        lane.publish(&nats, BEFORE + MEANWHILE + ACKED + 500).await;
        unacked.push(lane.pull(&nats, BEFORE).await);
        lane.is_known_to(cluster, AWAY, BEFORE).await;
    }
    // It is on its disk soon after.
    until(Instant::now() + Duration::from_secs(1)).await;
    cluster.kill(AWAY).await.expect("killed");
    let mut meanwhile: Vec<Vec<u64>> = Vec::new();
    for (lane, unacked) in lanes.iter().zip(&unacked) {
        let handed_out = lane.pull(&nats, MEANWHILE).await;
        meanwhile.push(handed_out.iter().map(sequence).collect());
        // One after the other, since those that come together are one entry.
        for message in lane.pull(&nats, ACKED).await {
            let reply = message.reply.expect("a delivery");
            nats.request(reply, "+ACK".into()).await.expect("acked");
        }
        for message in unacked {
            ack(&nats, message).await;
        }
    }
    nats.flush().await.expect("sent");
    until(Instant::now() + Duration::from_millis(1500)).await;
    let end = CancellationToken::new();
    let flows = join_all(lanes.iter().map(|lane| lane.flow(&nats, &end)));
    let comes_back = async {
        until(Instant::now() + Duration::from_millis(300)).await;
        cluster.restart(AWAY).await.expect("back");
        cluster.ready().await.expect("whole again");
        caught_up(&nats).await;
        end.cancel();
    };
    tokio::join!(flows, comes_back);
    let mut lost = Vec::new();
    for (lane, meanwhile) in lanes.iter().zip(meanwhile) {
        lane.led_by(&nats, AWAY).await;
        // A leader deletes what it takes for settled within moments.
        until(Instant::now() + Duration::from_secs(2)).await;
        let there = join_all(meanwhile.iter().map(|sequence| lane.has(&nats, *sequence))).await;
        lost.push(there.into_iter().filter(|is_there| !is_there).count());
    }
    lost
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
        client.ensure_queue(&Queue::default()).await.expect("made");
        make(&at_the_others(&cluster).await).await;
        let lost = lost_by_return(&cluster, &[TIDEMILL, BARE]).await;
        assert_eq!(lost[0], 0, "of {MEANWHILE} unacked jobs were deleted");
        of_bare.push(lost[1]);
        if lost[1] > 0 {
            return;
        }
    }
    panic!("the conditions were not met, so that nothing was shown: {of_bare:?} of the bare queue");
}
