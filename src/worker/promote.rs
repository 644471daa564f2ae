//! Promoting: timers that are due, and what cron entries put out, go to their lanes. Any worker of the
//! queue does it; there is no leader.
//!
//! A job is published to its lane under the guard of its id, and the due message is acked when the run
//! is certain to be held by something younger than that message, or to have ended. What is younger is
//! told by `Tidemill-Promoted`, by which a promoted job names the due message it was copied from: a
//! look at time, or at the run alone, would not do. Whoever sets a timer, a worker or a client, stores
//! it first and takes the source off its lane after that, however much later; so a due message may
//! find on the lane:
//!
//! - nothing: the job is published.
//! - the source, because who set the timer is slow or was killed. It is older and proves nothing: acked
//!   for it, the last copy would go with the source. The due message is given back for a while, until
//!   the source is taken away, or, where nobody does, is run: then the run has ended, or is on a timer
//!   again, which is younger, and the due message is acked.
//! - its own copy, of a promoter that was killed or cut off before it acked: acked. That copy may also
//!   have been moved to another lane (it keeps the header), have failed and been parked (that timer is
//!   younger), been put out again and promoted (that names a younger message), or have ended.
//!
//! Everybody else goes by the same order. A job is acked in favour of a timer that stands already only
//! if that timer is younger, see `park`; an operator's verb takes away the older of two, see
//! `control::rearrange`. So of all that hold a run the youngest is never taken away for another, only
//! for a completion, whoever is killed in between.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};

use super::Shared;
use super::health::Part;
use super::pause::Pause;
use super::stock::Seen;
use crate::broker::{Broken, Delivery, Pulled, Puller, Stored, Word};
use crate::client::{Copied, Due, Promotion};
use crate::error::{Error, ErrorKind, Result};
use crate::stuck::Outlet;
use crate::topology::DUE;
use crate::wire::time::Time;

/// Timers asked for at once, and promoted at once.
const BATCH: usize = 256;

/// How long one promotion may take before the timer goes to another worker.
const LIMIT: Duration = Duration::from_secs(10);

/// A timer that could not be promoted is tried again after a second to half a minute.
const TRY_AGAIN: Duration = Duration::from_secs(1);
const TRY_AGAIN_SPREAD: Duration = Duration::from_secs(29);

/// What is on the timers' subjects and cannot be read is left for a person, and looked at rarely.
const UNREADABLE: Duration = Duration::from_secs(3600);

/// How soon to look again for the source of a timer: at first, and where that is being run.
const SOURCE_IS_THERE: Duration = Duration::from_secs(1);
const SOURCE_STAYS: Duration = Duration::from_secs(30);

/// How long what is under way when fetching stops may take to come in.
const LAST_ARRIVALS: Duration = Duration::from_secs(2);

struct Promoter {
    shared: Arc<Shared>,
    puller: Puller,
    epochs: watch::Receiver<u64>,
    at_once: Arc<Semaphore>,
    queue: usize,
    /// Since when the consumer remembers what it hands out; `None` where that has to be asked again.
    remembers_since: Option<Time>,
    /// How far the consumer had counted what it handed out, when it last did so here.
    seen: Seen,
    /// How many pulls in a row ended before their time.
    broken: u32,
    pause: Pause,
}

/// Promotes the timers of a queue until the worker stops fetching.
pub(super) async fn run(shared: Arc<Shared>, queue: usize) {
    let stream = shared.queues[queue].streams.timers.clone();
    let mut pause = Pause::default();
    let puller = loop {
        match Puller::open(&shared.conn, &stream, DUE).await {
            Ok(puller) => break puller,
            Err(error) => shared.supervision.report(Part::Timers(queue), &error),
        }
        tokio::select! {
            () = shared.stop_fetching.cancelled() => return,
            () = sleep(pause.next()) => {}
        }
    };
    shared.supervision.clear(Part::Timers(queue));
    let epochs = shared.conn.epochs();
    let promoter = Promoter {
        shared,
        puller,
        epochs,
        at_once: Arc::new(Semaphore::new(BATCH)),
        queue,
        remembers_since: None,
        seen: Seen::HandedOut(0),
        broken: 0,
        pause: Pause::default(),
    };
    promoter.run().await;
}

impl Promoter {
    async fn run(mut self) {
        let stop = self.shared.stop_fetching.clone();
        loop {
            self.ask().await;
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                changed = self.epochs.changed() => self.reconnected(changed.is_ok()).await,
                pulled = self.puller.next() => self.take(pulled).await,
            }
        }
        self.finish().await;
    }

    /// Keeps a pull open, of a consumer of which is known what it remembers.
    async fn ask(&mut self) {
        while !self.puller.is_open() && !self.shared.stop_fetching.is_cancelled() {
            if let Err(error) = self.take_stock().await {
                self.shared.supervision.report(Part::Timers(self.queue), &error);
                self.rest().await;
            } else if let Err(error) = self.puller.pull(BATCH).await {
                self.broken(Broken::Unsent(error)).await;
            }
        }
    }

    async fn reconnected(&mut self, is_alive: bool) {
        self.puller.forget();
        if !is_alive {
            return self.shared.stop_fetching.cancelled().await;
        }
        self.remembers_since = None;
        // It may have been a timer that broke the connection.
        let (shared, queue) = (self.shared.clone(), self.queue);
        self.shared.tasks.spawn(async move { shared.promote_unreadable(queue).await });
    }

    async fn take(&mut self, pulled: Pulled) {
        match pulled {
            Pulled::Job(delivery) => {
                self.is_served();
                // It is another one, or has forgotten what it handed out: nothing comes for the first time.
                self.seen = self.seen.then(delivery.handed_out);
                if self.seen == Seen::CountsAnew {
                    self.remembers_since = None;
                }
                self.promote(delivery).await;
            }
            Pulled::Over { .. } => self.is_served(),
            Pulled::Broken { why, .. } => self.broken(why).await,
            Pulled::Closed => self.shared.stop_fetching.cancelled().await,
        }
    }

    /// A pull was answered as it should be.
    fn is_served(&mut self) {
        self.broken = 0;
        self.pause.reset();
        self.shared.supervision.clear(Part::Timers(self.queue));
    }

    /// A pull ended before its time: see what is the matter, and pause.
    async fn broken(&mut self, why: Broken) {
        tracing::debug!(%why, "promoting timers starts anew");
        self.broken += 1;
        self.remembers_since = None;
        if let Some(error) = self.what_is_the_matter(why).await {
            self.shared.supervision.report(Part::Timers(self.queue), &error);
        }
        self.rest().await;
    }

    /// Lets some time pass, and more of it each time until all is well again.
    async fn rest(&mut self) {
        tokio::select! {
            () = self.shared.stop_fetching.cancelled() => {}
            () = sleep(self.pause.next()) => {}
        }
    }

    /// Learns since when the consumer remembers what it hands out, where that is not known.
    async fn take_stock(&mut self) -> Result<()> {
        if self.remembers_since.is_some() {
            return Ok(());
        }
        let stock = self.shared.stock_of(self.queue, Outlet::Due, self.seen).await?;
        self.remembers_since = Some(stock.remembers_since);
        self.seen = Seen::HandedOut(0);
        Ok(())
    }

    /// Why a pull may have ended; `None` where that is nothing, or over.
    async fn what_is_the_matter(&mut self, why: Broken) -> Option<Error> {
        let stream = &self.shared.queues[self.queue].streams.timers;
        let place = format!("{stream}/{DUE}");
        let suspected = match why {
            Broken::Denied(error) => return Some(error),
            Broken::Refused(why) => return Some(Error::new(ErrorKind::Broker, why).at(place)),
            Broken::LeaderChanged | Broken::Deleted => None,
            Broken::Silent | Broken::NobodyThere | Broken::Unsent(_) => (self.broken > 1)
                .then(|| Error::new(ErrorKind::Unavailable, why.to_string()).at(place)),
        };
        match self.take_stock().await {
            Ok(()) => suspected,
            Err(error) => Some(error),
        }
    }

    /// Promotes to the side, so that one that takes long holds no other up.
    async fn promote(&self, delivery: Delivery) {
        let Ok(turn) = self.at_once.clone().acquire_owned().await else { return };
        let (shared, remembers_since) = (self.shared.clone(), self.remembers_since);
        self.shared.tasks.spawn(async move {
            if let Err(error) = shared.promote(delivery, remembers_since).await {
                tracing::debug!(%error, "a timer was not settled; it comes again");
            }
            drop(turn);
        });
    }

    /// Stops pulling and hands back what the broker has sent until then.
    async fn finish(mut self) {
        if let Err(error) = self.puller.close().await {
            tracing::debug!(%error, "promoting did not stop cleanly");
        }
        let hand_back = async {
            while let Pulled::Job(delivery) = self.puller.next().await {
                if let Err(error) =
                    delivery.ack.say(&self.shared.conn, Word::Nak(Duration::ZERO)).await
                {
                    tracing::debug!(%error, "a timer was not handed back");
                }
            }
        };
        if timeout(LAST_ARRIVALS, hand_back).await.is_err() {
            tracing::debug!("timers may still have been on their way here");
        }
    }
}

impl Shared {
    /// Puts a job whose time has come into its lane, then takes the timer away. What was stored later than
    /// the consumer remembers nobody had in hands whom it does not know of; where that is not known,
    /// anything may have been.
    pub(super) async fn promote(
        &self,
        delivery: Delivery,
        remembers_since: Option<Time>,
    ) -> Result<()> {
        let Delivery { subject, headers, payload, sequence, delivered, stored, ack, .. } = delivery;
        let is_first = delivered == 1 && remembers_since.is_some_and(|since| stored > since);
        let copied = if is_first { Copied::Never } else { Copied::Perhaps };
        let stored = Some(stored);
        let message = Stored { subject: subject.to_string(), sequence, headers, payload, stored };
        let Some(due) = self.client.read_due(message) else {
            tracing::warn!(%subject, "what is due there is no job");
            return ack.say_surely(&self.conn, Word::Nak(UNREADABLE)).await;
        };
        let id = due.job.id.clone();
        let problem = match timeout(LIMIT, self.put_on_lane(due, copied)).await {
            // Acked for certain: a timer that came again after its run had been parked anew would
            // cost a look.
            Ok(Ok(Promotion::Done)) => return ack.say_surely(&self.conn, Word::Ack).await,
            Ok(Ok(Promotion::BeingMoved)) => {
                tracing::debug!(job = %id, "what a timer was set from is still on its lane");
                let times = u32::try_from(delivered).unwrap_or(u32::MAX);
                let delay = SOURCE_IS_THERE.saturating_mul(times).min(SOURCE_STAYS);
                return ack.say_surely(&self.conn, Word::Nak(delay)).await;
            }
            Ok(Ok(Promotion::KeptOut)) => {
                "another job of its unique key is in the queue".to_owned()
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {LIMIT:?}"),
        };
        tracing::warn!(job = %id, problem, "a timer cannot be promoted yet");
        let delay = TRY_AGAIN + TRY_AGAIN_SPREAD.mul_f64(fastrand::f64());
        ack.say_surely(&self.conn, Word::Nak(delay)).await
    }

    async fn put_on_lane(&self, due: Due, copied: Copied) -> Result<Promotion> {
        // That is on record already, and whoever cancelled it looks for what is left of it.
        if due.is_of_timer() && self.cancelled.contains(&due.job.key()) {
            return Ok(Promotion::Done);
        }
        self.client.promote(due, copied).await
    }
}
