//! Fetching for one lane: ask for what the lane has room for, decide about what comes before it
//! takes a slot, and let the rest into the lane.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::Shared;
use super::admit::{FirstSight, admit_undisturbed};
use super::history::highest_in_ledger;
use super::job::{Attempt, Held, Work};
use super::lanes::LaneId;
use super::lease::Lease;
use crate::broker::{Born, Delivery, Pulled, Puller, consumer_born};
use crate::error::{Error, ErrorKind, Result};
use crate::outcome::{BuryReason, Settlement};
use crate::wire::time::Time;
use crate::wire::{ErrorInfo, JobHeaders, Reading, read_job};

/// Pauses after something went wrong with the broker, doubling, with jitter.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A job that needs a newer worker is given back for this long.
const NEWER_PROTOCOL_DELAY: Duration = Duration::from_secs(30);

/// How long what is under way when fetching stops may take to come in.
const LAST_ARRIVALS: Duration = Duration::from_secs(4);

/// One lane's fetcher.
struct Fetcher {
    shared: Arc<Shared>,
    lane: LaneId,
    puller: Puller,
    epochs: watch::Receiver<u64>,
    ack_wait: Duration,
    consumer_created: Time,
    /// See [`FirstSight::suspect_up_to`].
    suspect_up_to: u64,
    /// The highest sequence that came in here.
    highest: u64,
    pause: Duration,
}

/// Fetches until the worker stops fetching, then hands back what is still coming in.
pub(super) async fn run(shared: Arc<Shared>, lane: LaneId) {
    let mut pause = FIRST_PAUSE;
    let opened = loop {
        match Fetcher::open(shared.clone(), lane).await {
            Ok(fetcher) => break fetcher,
            Err(error) => {
                tracing::warn!(lane = %lane.priority, %error, "cannot fetch yet");
                tokio::select! {
                    () = shared.stop_fetching.cancelled() => return,
                    () = sleep(pause.mul_f64(0.5 + fastrand::f64())) => {}
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    };
    opened.run().await;
}

impl Fetcher {
    async fn open(shared: Arc<Shared>, lane: LaneId) -> Result<Self> {
        let queue = &shared.queues[lane.queue];
        shared.client.ensure_once(&queue.name).await?;
        let epochs = shared.conn.epochs();
        let puller =
            Puller::open(&shared.conn, &queue.streams.jobs, lane.priority.as_str()).await?;
        let mut fetcher = Self {
            lane,
            puller,
            epochs,
            ack_wait: Duration::ZERO,
            consumer_created: shared.clock.now(),
            suspect_up_to: 0,
            highest: 0,
            pause: FIRST_PAUSE,
            shared,
        };
        fetcher.take_stock().await?;
        Ok(fetcher)
    }

    /// Learns what has to be known of the broker before its word on first deliveries is taken: at
    /// the start, and after anything that may have been a crash.
    async fn take_stock(&mut self) -> Result<()> {
        let queue = &self.shared.queues[self.lane.queue];
        let lane = self.lane.priority.as_str();
        let born = consumer_born(&self.shared.conn, &queue.streams.jobs, lane, &self.shared.clock);
        let ledger = highest_in_ledger(&self.shared.conn, &queue.streams);
        let (born, in_ledger) = tokio::try_join!(born, ledger)?;
        let Some(Born { created, ack_wait }) = born else {
            let place = format!("{}/{lane}", queue.streams.jobs);
            return Err(Error::new(ErrorKind::NotFound, format!("consumer {place} is gone")));
        };
        self.ack_wait = ack_wait;
        self.consumer_created = created;
        self.suspect_up_to = in_ledger.max(self.highest);
        // It may have been a job that broke the connection, and would again when its lease is over.
        let (shared, lane) = (self.shared.clone(), self.lane);
        self.shared.tasks.spawn(async move {
            if let Err(error) = shared.bury_unreadable(lane, ack_wait).await {
                tracing::debug!(%error, "unsettled jobs were not looked at");
            }
        });
        Ok(())
    }

    async fn run(mut self) {
        let stop = self.shared.stop_fetching.clone();
        let room = self.shared.room(self.lane).clone();
        loop {
            self.ask().await;
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = changed(&mut self.epochs) => self.recover("reconnected").await,
                pulled = self.puller.next() => self.take(pulled).await,
                () = room.notified(), if !self.puller.is_open() => {}
            }
        }
        self.finish().await;
    }

    /// Opens a pull for what the lane has room for, unless one is open.
    async fn ask(&mut self) {
        if self.puller.is_open() {
            return;
        }
        let count = self.shared.ask(self.lane);
        if count == 0 {
            return;
        }
        if let Err(error) = self.puller.pull(count).await {
            self.shared.give_up(self.lane, count);
            self.recover(&error.to_string()).await;
        }
    }

    /// Takes what has come, and what else is there without waiting.
    async fn take(&mut self, pulled: Pulled) {
        let mut next = Some(pulled);
        while let Some(pulled) = next {
            self.take_one(pulled).await;
            // A broker that has been away is asked first what it has forgotten.
            let is_new_connection = self.epochs.has_changed().unwrap_or(true);
            next = match self.shared.stop_fetching.is_cancelled() || is_new_connection {
                true => None,
                false => self.puller.next().now_or_never(),
            };
        }
    }

    async fn take_one(&mut self, pulled: Pulled) {
        match pulled {
            Pulled::Job(delivery) => {
                self.pause = FIRST_PAUSE;
                self.admit(delivery).await;
            }
            Pulled::Over { unfilled } => {
                self.pause = FIRST_PAUSE;
                self.shared.give_up(self.lane, unfilled);
            }
            Pulled::Broken { unfilled, why } => {
                self.shared.give_up(self.lane, unfilled);
                // What is refused would be refused at once again.
                self.rest().await;
                self.recover(&why).await;
            }
            Pulled::Closed => {
                // The client library is gone; it comes back with a new worker only.
                tracing::error!("the connection is closed for good; no more jobs are fetched");
                self.shared.stop_fetching.cancel();
            }
        }
    }

    /// After a sign that the broker may have restarted: give up the pull, pause, take stock.
    async fn recover(&mut self, why: &str) {
        tracing::info!(lane = %self.lane.priority, why, "fetching starts anew");
        self.shared.give_up(self.lane, self.puller.forget());
        loop {
            match self.take_stock().await {
                Ok(()) => return,
                Err(error) => tracing::warn!(lane = %self.lane.priority, %error, "cannot fetch"),
            }
            self.rest().await;
            if self.shared.stop_fetching.is_cancelled() {
                return;
            }
        }
    }

    /// Lets some time pass, and more of it each time until all is well again; a new connection is tried
    /// at once.
    async fn rest(&mut self) {
        tokio::select! {
            () = self.shared.stop_fetching.cancelled() => {}
            () = changed(&mut self.epochs) => {}
            () = sleep(self.pause.mul_f64(0.5 + fastrand::f64())) => {}
        }
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }

    /// Stops pulling and hands back what the broker has sent until then.
    async fn finish(mut self) {
        if let Err(error) = self.puller.close().await {
            tracing::debug!(%error, "fetching did not stop cleanly");
        }
        let hand_back = async {
            while let Pulled::Job(delivery) = self.puller.next().await {
                if let Err(error) = delivery.ack.nak(&self.shared.conn, Duration::ZERO).await {
                    tracing::debug!(%error, "a job was not handed back");
                }
            }
        };
        if timeout(LAST_ARRIVALS, hand_back).await.is_err() {
            tracing::debug!("jobs may still have been on their way here");
        }
    }

    /// Takes hold of a job and decides what becomes of it before it runs.
    async fn admit(&mut self, delivery: Delivery) {
        let shared = &self.shared;
        let sight = FirstSight {
            delivered: delivery.delivered,
            sequence: delivery.sequence,
            stored: delivery.stored,
            consumer_created: self.consumer_created,
            suspect_up_to: self.suspect_up_to,
        };
        self.highest = self.highest.max(delivery.sequence);
        let queue = &shared.queues[self.lane.queue];
        let Delivery { subject, headers, sequence, .. } = &delivery;
        let priority = self.lane.priority;
        let reading =
            read_job(&shared.namespace, &queue.name, priority, subject, headers, *sequence);
        let (key, options, unreadable) = match reading {
            Reading::Job { key, options } => (key, options, None),
            Reading::NewerProtocol => {
                // Not ours to judge, so no record is written: only given back.
                shared.give_up(self.lane, 1);
                if let Err(error) = delivery.ack.nak(&shared.conn, NEWER_PROTOCOL_DELAY).await {
                    tracing::debug!(%error, "a job was not given back");
                }
                return;
            }
            Reading::BadHeader { key, problem } => {
                (key, JobHeaders::default(), Some((BuryReason::BadHeader, problem)))
            }
            Reading::BadSubject { key, problem } => {
                (key, JobHeaders::default(), Some((BuryReason::BadSubject, problem)))
            }
        };
        let Some(job) = shared.leases.hold(Held {
            lane: self.lane,
            key,
            sequence: delivery.sequence,
            stored: delivery.stored,
            headers: delivery.headers,
            options,
            payload: delivery.payload,
            lease: Lease::new(delivery.ack, delivery.received, self.ack_wait),
        }) else {
            // We are at it already.
            return shared.give_up(self.lane, 1);
        };
        let work = Work { job, attempt: Attempt::UNDISTURBED };
        if let Some((reason, problem)) = unreadable {
            let error = ErrorInfo::new(reason.as_str(), problem);
            shared.turn_down(work, Settlement::Bury { reason, error }, 0).await;
        } else if sight.is_undisturbed(&work.options) {
            let admission = admit_undisturbed(work.as_candidate(), shared.clock.now());
            shared.carry_out(work, admission).await;
        } else {
            // Looked up to the side, so that other jobs need not wait.
            let shared = shared.clone();
            self.shared.tasks.spawn(async move { shared.admit_by_record(work).await });
        }
    }
}

/// Waits for a new connection.
async fn changed(epochs: &mut watch::Receiver<u64>) {
    if epochs.changed().await.is_err() {
        std::future::pending().await
    }
}
