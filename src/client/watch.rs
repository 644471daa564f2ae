//! Watching one run: what its handler tells of it, and its end.

use std::time::Instant;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, Stream};
use serde::{Deserialize, Serialize};

use super::Client;
use crate::broker::{Messages, Told};
use crate::error::{Error, Result};
use crate::token::RunId;
use crate::wire::{Completion, RecordKey, events_subject};

/// Something that is told of a run while it is watched.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum JobEvent {
    /// How far it is, by its handler's word.
    Progress {
        /// From 0 to 1.
        progress: f64,
        /// What it is at.
        message: String,
        /// In which attempt.
        attempt: u32,
    },
    /// A line that its handler logged.
    Log {
        /// The line.
        message: String,
        /// In which attempt.
        attempt: u32,
    },
    /// It has ended.
    Ended(Box<Completion>),
}

#[derive(Deserialize)]
struct Envelope {
    run: RunId,
    #[serde(flatten)]
    event: JobEvent,
}

/// A run that is watched.
struct Watching {
    key: RecordKey,
    events: Messages,
    end: BoxFuture<'static, Result<Completion>>,
    refused: BoxFuture<'static, Error>,
}

impl Client {
    /// What a run's handler tells from now on, ending with its completion. What was told before is
    /// gone: events are not stored.
    pub(crate) async fn watch_run(
        &self,
        key: RecordKey,
    ) -> Result<impl Stream<Item = Result<JobEvent>> + Send + use<>> {
        let subject = events_subject(&self.namespace, &key.queue, &key.kind, &key.id);
        let since = Instant::now();
        let events = self.conn.subscribe(subject.clone()).await?;
        let (client, run) = (self.clone(), key.clone());
        let end = async move { client.watch_for(&run).await }.boxed();
        let conn = self.conn.clone();
        let refused = async move { conn.subscription_denied(&subject, since).await }.boxed();
        let start = Some(Watching { key, events, end, refused });
        Ok(stream::try_unfold(start, |watching| async move {
            let Some(mut watching) = watching else { return Ok(None) };
            let event = watching.next().await?;
            let is_over = matches!(event, JobEvent::Ended(_));
            Ok(Some((event, (!is_over).then_some(watching))))
        }))
    }
}

impl Watching {
    async fn next(&mut self) -> Result<JobEvent> {
        loop {
            tokio::select! {
                biased;
                Some(message) = self.events.next() => {
                    if let Some(event) = read(&self.key, Told::from(message).payload()) {
                        return Ok(event);
                    }
                }
                error = &mut self.refused => return Err(error),
                completion = &mut self.end => return Ok(JobEvent::Ended(Box::new(completion?))),
            }
        }
    }
}

/// An event of this run; anybody may publish there, so the rest is passed over.
fn read(key: &RecordKey, body: &[u8]) -> Option<JobEvent> {
    let envelope: Envelope = serde_json::from_slice(body).ok()?;
    let is_end = matches!(envelope.event, JobEvent::Ended(_));
    (envelope.run == key.run && !is_end).then_some(envelope.event)
}
