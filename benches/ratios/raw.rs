//! What a program does that has no job system: plain loops of the client library, the fastest that are
//! worth writing. Nothing here survives a crash in the middle without doubling or losing something.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use async_nats::HeaderMap;
use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy};
use async_nats::jetstream::{self, Context};
use bytes::Bytes;
use futures_util::future::try_join_all;
use futures_util::{StreamExt, TryStreamExt, stream};

/// Priorities need lanes; so that only the client is compared, they are here too. The last has the jobs.
const LANES: [&str; 4] = ["critical", "high", "low", "normal"];

/// Publishes in flight at once.
const WINDOW: usize = 500;

/// Messages that are worked as one: fetched, recorded, then acked.
const GROUP: usize = 500;

/// Groups under way at once.
const GROUPS_AT_ONCE: usize = 4;

/// The most messages of a batch, and the broker's word is not wanted before its end.
const BATCH: usize = 250;
const FLOW: usize = 2 * BATCH;

/// What a loop records of each job before it acks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// Nothing.
    Nothing,
    /// A completion.
    Completion,
    /// A completion under the condition that there is none.
    Fenced,
    /// The same, those of a group in batches with one word of the broker for each.
    FencedTogether,
}

/// A stream of jobs, and one for completions.
pub(crate) struct Raw {
    context: Context,
}

impl Raw {
    pub(crate) async fn connect(url: &str) -> Result<Self> {
        let client = async_nats::connect(url).await?;
        Ok(Self { context: jetstream::new(client) })
    }

    /// Makes the streams anew.
    pub(crate) async fn anew(&self) -> Result<()> {
        for name in ["RAW_JOBS", "RAW_RESULTS"] {
            // It may not be there.
            let _ = self.context.delete_stream(name).await;
        }
        let jobs = Config {
            name: "RAW_JOBS".to_owned(),
            subjects: LANES.map(|lane| format!("rawloops.jobs.bench.{lane}.>")).to_vec(),
            retention: RetentionPolicy::WorkQueue,
            discard: DiscardPolicy::New,
            ..Config::default()
        };
        self.context.create_stream(jobs).await?;
        let results = Config {
            name: "RAW_RESULTS".to_owned(),
            subjects: vec!["rawloops.results.>".to_owned()],
            allow_batch_publish: true,
            ..Config::default()
        };
        self.context.create_stream(results).await?;
        // A queue has its consumers before it has jobs.
        self.consumer().await?;
        Ok(())
    }

    /// The consumers of all lanes; that of the one lane that has jobs.
    async fn consumer(&self) -> Result<PullConsumer> {
        let stream = self.context.get_stream("RAW_JOBS").await?;
        let mut consumer = None;
        for lane in LANES {
            let config = pull::Config {
                durable_name: Some(lane.to_owned()),
                filter_subject: format!("rawloops.jobs.bench.{lane}.>"),
                ack_policy: AckPolicy::Explicit,
                max_ack_pending: -1,
                ..pull::Config::default()
            };
            consumer = Some(stream.create_consumer(config).await?);
        }
        consumer.context("there are lanes")
    }

    /// Publishes many, some in flight at once, and awaits the broker's word for each.
    pub(crate) async fn publish(&self, jobs: u64, payload: Bytes) -> Result<Duration> {
        let started = Instant::now();
        stream::iter(0..jobs)
            .map(|n| {
                let published = self.context.publish(job_subject(n), payload.clone());
                async move { anyhow::Ok(published.await?.await?) }
            })
            .buffered(WINDOW)
            .try_for_each(|_| async { Ok(()) })
            .await?;
        Ok(started.elapsed())
    }

    /// Publishes one after the other.
    pub(crate) async fn publish_one_by_one(&self, jobs: u64, payload: Bytes) -> Result<Duration> {
        let started = Instant::now();
        for n in 0..jobs {
            self.context.publish(job_subject(n), payload.clone()).await?.await?;
        }
        Ok(started.elapsed())
    }

    /// The median time from a publish to where its message is received, one at a time.
    pub(crate) async fn latency(&self, jobs: u64, payload: Bytes) -> Result<Duration> {
        let consumer = self.consumer().await?;
        let mut messages = consumer.stream().max_messages_per_batch(GROUP).messages().await?;
        let mut took = Vec::new();
        for n in 0..jobs {
            tokio::time::sleep(Duration::from_millis(1)).await;
            let published = Instant::now();
            let stored = self.context.publish(job_subject(n), payload.clone()).await?;
            let message = messages.next().await.context("messages end")??;
            took.push(published.elapsed());
            stored.await?;
            message.double_ack().await.map_err(anyhow::Error::from_boxed)?;
        }
        took.sort();
        Ok(took[took.len() / 2])
    }

    /// Gets through what waits.
    pub(crate) async fn drain(&self, jobs: u64, record: Record) -> Result<Duration> {
        let consumer = self.consumer().await?;
        let started = Instant::now();
        let messages = consumer.stream().max_messages_per_batch(2 * GROUP).messages().await?;
        let mut groups = messages
            .ready_chunks(GROUP)
            .map(|group| async {
                self.work(group.into_iter().collect::<Result<_, _>>()?, record).await
            })
            .buffer_unordered(GROUPS_AT_ONCE);
        let mut left = jobs;
        while left > 0 {
            left -= groups.next().await.context("messages end")??;
        }
        let took = started.elapsed();
        let stream = self.context.get_stream("RAW_JOBS").await?;
        let messages = stream.get_info().await?.state.messages;
        ensure!(messages == 0, "{messages} messages are left");
        Ok(took)
    }

    /// Records a group, and then acks it; how many there were.
    async fn work(&self, group: Vec<jetstream::Message>, record: Record) -> Result<u64> {
        match record {
            Record::Nothing => {}
            Record::Completion => {
                try_join_all(group.iter().map(|job| self.complete(job, None))).await?;
            }
            Record::Fenced => {
                try_join_all(group.iter().map(|job| self.complete(job, Some(fence())))).await?;
            }
            Record::FencedTogether => {
                try_join_all(group.chunks(BATCH).map(|jobs| self.complete_together(jobs))).await?;
            }
        }
        let (last, rest) = group.split_last().context("groups are not empty")?;
        for job in rest {
            job.ack().await.map_err(anyhow::Error::from_boxed)?;
        }
        last.double_ack().await.map_err(anyhow::Error::from_boxed)?;
        Ok(group.len() as u64)
    }

    async fn complete(&self, job: &jetstream::Message, headers: Option<HeaderMap>) -> Result<()> {
        let (subject, body) = completion(job);
        let published = match headers {
            Some(headers) => self.context.publish_with_headers(subject, headers, body).await?,
            None => self.context.publish(subject, body).await?,
        };
        published.await?;
        Ok(())
    }

    async fn complete_together(&self, jobs: &[jetstream::Message]) -> Result<()> {
        let client = self.context.client();
        let inbox = client.new_inbox();
        let mut answers = client.subscribe(format!("{inbox}.>")).await?;
        let batch = inbox.rsplit('.').next().unwrap_or_default();
        for (number, job) in (1..).zip(jobs) {
            // The last commits, the first starts.
            let operation = if number == jobs.len() { 2 } else { u8::from(number > 1) };
            let reply = format!("{inbox}.{batch}.{FLOW}.fail.{number}.{operation}.$FI");
            let (subject, body) = completion(job);
            client.publish_with_reply_and_headers(subject, reply, fence(), body).await?;
        }
        loop {
            let answer = answers.next().await.context("the connection ends")?;
            let told: serde_json::Value = serde_json::from_slice(&answer.payload)?;
            if told["type"].is_null() {
                ensure!(told["count"] == jobs.len(), "not all are stored: {told}");
                return Ok(());
            }
        }
    }
}

fn fence() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Expected-Last-Subject-Sequence", "0");
    headers
}

/// Subject and body, as large as tidemill's.
fn completion(job: &jetstream::Message) -> (String, Bytes) {
    let id = job.subject.rsplit('.').next().unwrap_or_default();
    let subject = format!("rawloops.results.bench.bench.{id}._");
    let of = "x".repeat(300);
    let body = format!("{{\"id\":\"{id}\",\"status\":\"done\",\"of\":\"{of}\"}}");
    (subject, body.into())
}

/// As long as one of tidemill's, whose ids are UUIDs.
fn job_subject(n: u64) -> String {
    format!("rawloops.jobs.bench.normal.bench.{n:036}")
}
