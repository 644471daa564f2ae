//! What becomes of jobs, on whatever machine they are worked: broadcast to who asked.

use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::{broadcast, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::agent::background::JobType;
use crate::agent::jobs::{PersistEvent, PublishExternalEvent, TestJob};
use crate::client::{Bookmark, Client, RecordFilter};
use crate::error::{Error, Result};
use crate::kind::Job;
use crate::token::{JobId, Kind, Queue};
use crate::wire::{AttemptEvent, AttemptRecord, Completion, RecordKind, Status};

/// An execution of a job: which one, and what was done, or why it failed.
///
/// A job whose id is no UUID, as other programs may enqueue it, is told by the UUIDv5 of its id in the
/// OID namespace.
pub type Execution = (Uuid, Result<JobType, String>);

/// Executions that a slow subscriber may leave behind before it misses some.
const BUFFER: usize = 1024;

/// The pause before a reader that failed is set up again.
const PAUSE: Duration = Duration::from_secs(1);

/// Broadcasts executions, from when somebody first asks for them.
pub(super) struct Completed {
    sender: broadcast::Sender<Execution>,
    reader: watch::Sender<Reader>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reader {
    NotWanted,
    Starting,
    Settled,
}

impl Completed {
    pub(super) fn new() -> Self {
        Self {
            sender: broadcast::Sender::new(BUFFER),
            reader: watch::Sender::new(Reader::NotWanted),
        }
    }

    /// Subscribes; the first one starts the reader, which ends with `end`.
    pub(super) fn subscribe(
        &self,
        client: &Client,
        queue: &Queue,
        end: &CancellationToken,
    ) -> broadcast::Receiver<Execution> {
        let receiver = self.sender.subscribe();
        let is_first = self.reader.send_if_modified(|reader| {
            let is_first = *reader == Reader::NotWanted;
            if is_first {
                *reader = Reader::Starting;
            }
            is_first
        });
        if is_first {
            let relay = Relay {
                client: client.clone(),
                queue: queue.clone(),
                sender: self.sender.clone(),
                reader: self.reader.clone(),
                ends: Bookmark::default(),
                failures: Bookmark::default(),
            };
            tokio::spawn(end.clone().run_until_cancelled_owned(relay.run()));
        }
        receiver
    }

    /// Waits until what happens from now on reaches those who have subscribed.
    pub(super) async fn is_read(&self) {
        let is_settled = |reader: &Reader| *reader != Reader::Starting;
        // The sender is ours, so that it cannot be closed.
        let _ = self.reader.subscribe().wait_for(is_settled).await;
    }

    /// Tells of a job that cannot be run at all.
    pub(super) fn tell_failed(&self, id: Uuid, error: &Error) {
        // Nobody may be listening.
        let _ = self.sender.send((id, Err(error.to_string())));
    }
}

/// Reads the records of a queue and broadcasts what they tell.
struct Relay {
    client: Client,
    queue: Queue,
    sender: broadcast::Sender<Execution>,
    reader: watch::Sender<Reader>,
    /// How far records were read, over all errors.
    ends: Bookmark,
    failures: Bookmark,
}

impl Relay {
    async fn run(self) {
        loop {
            if let Err(error) = self.relay().await {
                tracing::warn!(queue = %self.queue, %error, "completions are not read; trying again");
                if !(error.is_unavailable() || error.is_unknown()) {
                    // Jobs do not wait for what may never be.
                    self.reader.send_replace(Reader::Settled);
                }
            }
            sleep(PAUSE).await;
        }
    }

    async fn relay(&self) -> Result<()> {
        let filter = RecordFilter::queue(self.queue.clone());
        let (client, ends) = (&self.client, self.ends.clone());
        let ends = client.follow(RecordKind::Result, filter.clone(), ends).await?;
        let failures = client.follow(RecordKind::Attempt, filter, self.failures.clone()).await?;
        self.reader.send_replace(Reader::Settled);
        let ends = ends.map_ok(|(_, completion)| executed(&client.opened(completion)));
        let failures = failures.map_ok(|(key, entry)| failed(&key.kind, entry));
        let mut executions = std::pin::pin!(stream::select(ends, failures));
        while let Some(execution) = executions.next().await {
            if let Some(execution) = execution? {
                let _ = self.sender.send(execution);
            }
        }
        Ok(())
    }
}

/// The execution that a completion tells of. What ended in another way was told by the ledger, or
/// never ran.
fn executed(completion: &Completion) -> Option<Execution> {
    if completion.status != Status::Done || !is_ours(&completion.kind) {
        return None;
    }
    let result = completion.result.as_ref()?;
    match serde_json::from_str(result.get()) {
        Ok(job) => Some((uuid(&completion.id), Ok(job))),
        Err(error) => {
            tracing::debug!(job = %completion.id, %error, "done by a handler that is not ours");
            None
        }
    }
}

/// The failed attempt that an entry of the ledger tells of.
fn failed(kind: &Kind, entry: AttemptRecord) -> Option<Execution> {
    let is_failure = entry.event == AttemptEvent::Failed && is_ours(kind);
    is_failure.then(|| {
        let error = entry.error.map(|error| error.message).unwrap_or_default();
        (uuid(&entry.id), Err(error))
    })
}

fn is_ours(kind: &Kind) -> bool {
    [PersistEvent::KIND, PublishExternalEvent::KIND, TestJob::KIND].contains(&kind.as_str())
}

fn uuid(id: &JobId) -> Uuid {
    let text = id.as_str();
    text.parse().unwrap_or_else(|_| Uuid::new_v5(&Uuid::NAMESPACE_OID, text.as_bytes()))
}
