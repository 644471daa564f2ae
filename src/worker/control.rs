//! What a worker is told while it works: that runs are cancelled; and what it is asked.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::health::Part;
use super::lease::Stop;
use super::pause::Pause;
use crate::broker::{Messages, Told};
use crate::wire::{
    CancelRequest, RecordKey, RunningAnswer, RunningJob, RunningRequest, Verb, control_filter,
};

/// Jobs told in one message, which has to hold them.
const TOLD_AT_ONCE: usize = 1000;

/// Cancelled runs that are remembered at most, the oldest forgotten first.
const MAX_REMEMBERED: usize = 100_000;

/// Runs that were cancelled lately, and until when to remember it: a delivery of theirs may still be on
/// its way.
#[derive(Debug, Default)]
pub(super) struct CancelledRuns(Mutex<HashMap<RecordKey, Instant>>);

impl CancelledRuns {
    fn all(&self) -> MutexGuard<'_, HashMap<RecordKey, Instant>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn remember(&self, key: RecordKey, now: Instant, for_long: Duration) {
        let mut all = self.all();
        if all.len() >= MAX_REMEMBERED {
            all.retain(|_, until| now < *until);
        }
        if all.len() >= MAX_REMEMBERED
            && let Some(oldest) =
                all.iter().min_by_key(|(_, until)| **until).map(|(key, _)| key.clone())
        {
            all.remove(&oldest);
        }
        all.insert(key, now + for_long);
    }

    /// Whether a run is known to be cancelled.
    pub(super) fn contains(&self, key: &RecordKey) -> bool {
        let all = self.all();
        !all.is_empty() && all.get(key).is_some_and(|until| Instant::now() < *until)
    }
}

/// How soon to ask again whether a subscription stands.
const HEARD_AGAIN: Duration = Duration::from_secs(5);

/// Listens for one queue until `end`.
pub(super) async fn listen(
    shared: Arc<Shared>,
    queue: usize,
    ack_wait: Duration,
    end: CancellationToken,
) {
    let filter = control_filter(&shared.namespace, &shared.queues[queue].name);
    let mut pause = Pause::default();
    loop {
        let heard = async {
            let asked = std::time::Instant::now();
            match shared.conn.subscribe(filter.clone()).await {
                Ok(messages) => tokio::select! {
                    () = shared.hear(queue, 2 * ack_wait, messages) => {}
                    denied = shared.conn.subscription_denied(&filter, asked) => {
                        shared.supervision.report(Part::Control(queue), &denied);
                    }
                    never = shared.is_heard(queue) => match never {},
                },
                Err(error) => tracing::debug!(%error, "cannot listen to what workers are told"),
            }
            sleep(pause.next()).await;
        };
        tokio::select! {
            () = end.cancelled() => return,
            () = heard => {}
        }
    }
}

impl Shared {
    /// Notes that a subscription was not refused: by the time that anything is answered, it would be.
    async fn is_heard(&self, queue: usize) -> Infallible {
        while self.born(&self.queues[queue]).await.is_err() {
            sleep(HEARD_AGAIN).await;
        }
        self.supervision.clear(Part::Control(queue));
        std::future::pending().await
    }

    async fn hear(&self, queue: usize, remember_for: Duration, mut messages: Messages) {
        while let Some(message) = messages.next().await {
            let told = Told::from(message);
            let answers = match Verb::of_subject(told.subject()) {
                Some(Verb::Cancel) => self.told_to_cancel(queue, told.payload(), remember_for),
                Some(Verb::Running) => self.asked_what_runs(queue, told.payload()),
                None => continue,
            };
            if let Err(error) = told.answer(&self.conn, answers).await {
                tracing::debug!(%error, "an answer was not sent");
            }
        }
    }

    /// Stops the run here, and remembers not to start it.
    fn told_to_cancel(&self, queue: usize, request: &[u8], remember_for: Duration) -> Vec<Bytes> {
        match serde_json::from_slice::<CancelRequest>(request) {
            Ok(request) => {
                let key = request.key(self.queues[queue].name.clone());
                tracing::info!(job = %key.id, run = %key.run, "cancelled");
                // Remembered first: what starts just now looks before it runs.
                self.cancelled.remember(key.clone(), Instant::now(), remember_for);
                self.leases.stop(&key, Stop::Cancelled);
            }
            Err(error) => tracing::warn!(%error, "a request to cancel cannot be read"),
        }
        vec![Bytes::from_static(b"{}")]
    }

    /// Answers in any case: who asks takes silence for a slow line.
    fn asked_what_runs(&self, queue: usize, request: &[u8]) -> Vec<Bytes> {
        // Whoever says nothing, or what we do not know, hears of all.
        let RunningRequest { id } = serde_json::from_slice(request).unwrap_or_default();
        let mut jobs = self.leases.running(queue, &self.recorder.worker);
        jobs.retain(|job| id.as_ref().is_none_or(|id| *id == job.id));
        let told = |jobs: &[RunningJob]| {
            let answer = RunningAnswer { jobs: jobs.to_vec() };
            serde_json::to_vec(&answer).map_or_else(|_| Bytes::from_static(b"{}"), Bytes::from)
        };
        match jobs.is_empty() {
            true => vec![told(&[])],
            false => jobs.chunks(TOLD_AT_ONCE).map(told).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::{JobId, Kind, Queue, RunId};

    #[test]
    fn memory_of_cancelled_runs_is_bounded() {
        let key = |n: usize| RecordKey {
            queue: Queue::default(),
            kind: Kind::new("any").expect("valid"),
            id: JobId::new(n.to_string()).expect("valid"),
            run: RunId::new("r").expect("valid"),
        };
        let (runs, start) = (CancelledRuns::default(), Instant::now());
        assert!(!runs.contains(&key(0)));
        for n in 0..=MAX_REMEMBERED {
            let now = start + Duration::from_millis(n as u64);
            runs.remember(key(n), now, Duration::from_secs(3600));
        }
        assert_eq!(runs.all().len(), MAX_REMEMBERED);
        assert!(!runs.contains(&key(0)) && runs.contains(&key(MAX_REMEMBERED)));
        let later = start + Duration::from_secs(7200);
        runs.remember(key(0), later, Duration::from_secs(60));
        assert_eq!(runs.all().len(), 1, "the old ones were forgotten");
    }
}
