//! Making up for the cron firing that fell into a crash of the broker.
//!
//! A nats-server that is killed forgets which firings were due and counts on from its restart (one
//! that is stopped makes up for one by itself). So each worker looks, when it starts and whenever it
//! has been connected anew, whether an entry should have fired by now: by what the broker said of the
//! next firing at the last one. However many workers see it, and however many firings were missed, it
//! is one run, named by the time at which it was due.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::Shared;
use crate::client::Ready;
use crate::cron::CronEntry;
use crate::error::Result;
use crate::token::Queue;
use crate::wire::RecordKey;
use crate::wire::time::{self, Time};

/// How long the broker has for making up by itself before workers look, and the spread over workers.
const PATIENCE: Duration = Duration::from_secs(3);
const SPREAD: Duration = Duration::from_secs(2);

/// What is due for less is under way.
const LATE: Duration = Duration::from_secs(2);

/// How often looking is tried on one connection.
const TRIES: u32 = 5;

/// Looks after each connection until the worker stops fetching.
pub(super) async fn run(shared: Arc<Shared>, queue: usize) {
    let queue = shared.queues[queue].name.clone();
    let mut epochs = shared.conn.epochs();
    loop {
        let look = async {
            for attempt in 1..=TRIES {
                sleep(PATIENCE * attempt + SPREAD.mul_f64(fastrand::f64())).await;
                match shared.catch_up(&queue).await {
                    Ok(()) => return,
                    // Where there can be no entries, none can be missed.
                    Err(error) if error.is_unsupported() => return,
                    Err(error) => {
                        tracing::debug!(%queue, %error, "cron entries were not looked at")
                    }
                }
            }
        };
        tokio::select! {
            () = shared.stop_fetching.cancelled() => return,
            () = look => {}
        }
        tokio::select! {
            () = shared.stop_fetching.cancelled() => return,
            changed = epochs.changed() => if changed.is_err() { return },
        }
    }
}

impl Shared {
    async fn catch_up(&self, queue: &Queue) -> Result<()> {
        let now = self.clock.now();
        for entry in self.client.cron().list(queue).await? {
            if let Some(due) = missed(&entry, now) {
                self.make_up(entry, due).await?;
            }
        }
        Ok(())
    }

    /// Enqueues what was due then, unless the broker has put it out after all.
    async fn make_up(&self, entry: CronEntry, due: Time) -> Result<()> {
        let streams = self.client.streams(&entry.queue);
        let target = entry.key().target(&self.namespace);
        if self.conn.last_of_leader(&streams.timers, &target).await?.is_some() {
            return Ok(());
        }
        // A list may be of a replica that lags.
        let entry = self.client.cron().get(&entry.queue, &entry.name).await?;
        let now = self.clock.now();
        if missed(&entry, now) != Some(due) {
            return Ok(());
        }
        tracing::warn!(cron = %entry.name, %due, "the broker was away when it was due: made up");
        let number = u64::try_from(due.timestamp_micros()).unwrap_or(1);
        let firing = entry.fire(number, now);
        let RecordKey { queue, kind, id, run } = firing.run.clone();
        let CronEntry { priority, payload, .. } = entry;
        let headers = firing.headers.clone();
        let job = Ready { queue, priority, kind, id, run, headers, payload };
        let stored = self.client.store_once(job).await?;
        self.client.note_fired(&firing, now, stored.is_duplicate()).await
    }
}

/// When an entry was due that has not fired.
fn missed(entry: &CronEntry, now: Time) -> Option<Time> {
    entry.expected().filter(|due| time::after(*due, LATE) < now)
}
