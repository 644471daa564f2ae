//! Jobs that are taken and not settled while servers come and go, in a work queue that nobody else works.
//!
//! A server that was away may delete such jobs once it leads, where a consumer keeps its state on disk; see
//! the guide's page on what can be lost. It takes the steps that are here, in this order.

use std::time::{Duration, Instant};

use async_nats::{Client as Nats, Message};
use futures_util::StreamExt;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tidemill::{Client, Queue};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::site::{Login, nats_at};
use super::{PATIENCE, api, eventually, short_leases, until};

/// Taken and unacked when a server goes, and acked just before it comes back.
pub(crate) const BEFORE: usize = 20;
/// Taken while it is away, and unacked to the end.
pub(crate) const MEANWHILE: usize = 200;
/// Taken and acked while it is away: so many that a consumer's leader compacts its log (nats-server does
/// from 1024 entries on).
const ACKED: usize = 1500;

/// Rounds of a few jobs each that go through once a server is back: on top of what it may lack.
const ROUNDS: usize = 25;

/// What is unacked stays so for longer than any test takes.
pub(crate) const ACK_WAIT: Duration = Duration::from_secs(300);

/// A work queue and the one consumer of it that matters.
#[derive(Clone, Copy)]
pub(crate) struct Lane {
    pub(crate) stream: &'static str,
    pub(crate) consumer: &'static str,
    pub(crate) subject: &'static str,
}

/// A lane of a queue of tidemill's.
pub(crate) const HELD: Lane = Lane {
    stream: "TIDEMILL_JOBS_held",
    consumer: "normal",
    subject: "tidemill.jobs.held.normal.numbered",
};

impl Lane {
    pub(crate) async fn publish(self, nats: &Nats, count: usize) {
        let store = async || nats.request(self.subject, "{\"n\":1}".into()).await.ok();
        for _ in 0..count.div_ceil(200) {
            join_all((0..200).map(|_| eventually("stored", store))).await;
        }
    }

    /// Takes so many, which have to be there.
    pub(crate) async fn pull(self, nats: &Nats, count: usize) -> Vec<Message> {
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

    /// Has one of the servers lead the stream, and then the consumer.
    pub(crate) async fn led_by(self, nats: &Nats, node: usize) {
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

    /// Takes and acks a few and puts in as many.
    async fn flow(self, nats: &Nats) {
        self.publish(nats, 4).await;
        for message in self.pull(nats, 4).await {
            ack(nats, &message).await;
        }
        until(Instant::now() + Duration::from_millis(10)).await;
    }
}

pub(crate) async fn ack(nats: &Nats, message: &Message) {
    let reply = message.reply.clone().expect("a delivery");
    nats.publish(reply, "+ACK".into()).await.expect("sent");
}

fn sequence(message: &Message) -> u64 {
    let reply = message.reply.as_ref().expect("a delivery");
    reply.split('.').nth(5).and_then(|token| token.parse().ok()).expect("a sequence")
}

/// Jobs of one lane that somebody holds.
pub(crate) struct Held {
    lane: Lane,
    nats: Nats,
    /// Those of before the server went.
    before: Vec<Message>,
    /// By sequence: what has to be there in the end.
    unacked: Vec<u64>,
    /// Goes through while a server comes back, until it is dropped.
    flow: Option<Flow>,
}

/// A few jobs that go through again and again, with how often they did.
struct Flow {
    rounds: watch::Receiver<usize>,
    _task: JoinSet<()>,
}

impl Flow {
    fn start(lane: Lane, nats: Nats) -> Self {
        let (count, rounds) = watch::channel(0);
        let mut task = JoinSet::new();
        task.spawn(async move {
            loop {
                lane.flow(&nats).await;
                count.send_modify(|count| *count += 1);
            }
        });
        Self { rounds, _task: task }
    }

    /// Waits until so many rounds more have gone through.
    async fn goes_on(&mut self, more: usize) {
        let from = *self.rounds.borrow();
        let gone_on = self.rounds.wait_for(|rounds| *rounds >= from + more);
        timeout(PATIENCE, gone_on).await.expect("jobs go through").expect("the task lives");
    }
}

impl Held {
    /// Jobs of a queue of tidemill's own making.
    pub(crate) async fn start(client: &Client, url: &str) -> Self {
        let mut config = short_leases(3);
        config.ack_wait = ACK_WAIT;
        let queue = Queue::new("held").expect("valid");
        let maker = client.clone().with_queue_config(config);
        eventually("a queue", || async { maker.ensure_queue(&queue).await.ok() }).await;
        Self::of(HELD, nats_at(url, Login::Nobody).await)
    }

    pub(crate) fn of(lane: Lane, nats: Nats) -> Self {
        Self { lane, nats, before: Vec::new(), unacked: Vec::new(), flow: None }
    }

    /// Some are taken, and every server has it on its disk.
    pub(crate) async fn before(&mut self) {
        // What is waiting beyond is for the rounds.
        self.lane.publish(&self.nats, BEFORE + MEANWHILE + ACKED + 400).await;
        self.before = self.lane.pull(&self.nats, BEFORE).await;
        // State is written ten times a second.
        until(Instant::now() + Duration::from_secs(1)).await;
    }

    /// While a server is away more are taken, and many acked.
    pub(crate) async fn while_away(&mut self) {
        let held = self.lane.pull(&self.nats, MEANWHILE).await;
        self.unacked.extend(held.iter().map(sequence));
        // One after the other, since those that come together are one entry.
        for message in self.lane.pull(&self.nats, ACKED).await {
            let reply = message.reply.expect("a delivery");
            let acked = async || self.nats.request(reply.clone(), "+ACK".into()).await.ok();
            eventually("acked", acked).await;
        }
        for message in self.before.drain(..) {
            ack(&self.nats, &message).await;
        }
        self.nats.flush().await.expect("sent");
        self.flow = Some(Flow::start(self.lane, self.nats.clone()));
    }

    /// How many of those that are unacked are gone, once a server leads that was away.
    pub(crate) async fn gone(&mut self, node: usize) -> usize {
        if let Some(mut flow) = self.flow.take() {
            flow.goes_on(ROUNDS).await;
        }
        self.lane.led_by(&self.nats, node).await;
        // A leader deletes what it takes for settled within moments.
        until(Instant::now() + Duration::from_secs(2)).await;
        let verb = format!("STREAM.MSG.GET.{}", self.lane.stream);
        let is_there = async |sequence: &u64| {
            api(&self.nats, &verb, json!({ "seq": sequence })).await["error"].is_null()
        };
        join_all(self.unacked.iter().map(is_there))
            .await
            .into_iter()
            .filter(|is_there| !is_there)
            .count()
    }

    /// All are there when a server leads that was away.
    pub(crate) async fn are_there(&mut self, node: usize) {
        let gone = self.gone(node).await;
        let unacked = self.unacked.len();
        assert_eq!(
            gone,
            0,
            "of {unacked} jobs that somebody holds, deleted once n{} leads",
            node + 1
        );
    }
}
