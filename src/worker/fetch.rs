//! Fetching for one lane: ask for what the lane has room for, decide about what comes before it
//! takes a slot, and let the rest into the lane.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::Shared;
use super::admit::{Admission, Claim, FirstSight};
use super::arrive::Arrival;
use super::health::Part;
use super::history::highest_in_ledger;
use super::job::Work;
use super::lanes::LaneId;
use super::pause::Pause;
use super::stock::{Seen, Stock};
use crate::broker::{AckSubject, Broken, Delivery, Pulled, Puller, Word};
use crate::error::{Error, ErrorKind, Result};
use crate::outcome::BuryReason;
use crate::stuck::Outlet;
use crate::wire::{JobOptions, Reading, read_job};

/// A job that needs a newer worker is given back for this long.
const NEWER_PROTOCOL_DELAY: Duration = Duration::from_secs(30);

/// How long what is under way when fetching stops may take to come in.
const LAST_ARRIVALS: Duration = Duration::from_secs(4);

/// How long a lane may go without asking before it is looked at anew. No two servers restart within it,
/// and elect a leader.
const UNHEARD: Duration = Duration::from_secs(1);

/// One lane's fetcher.
struct Fetcher {
    shared: Arc<Shared>,
    lane: LaneId,
    puller: Puller,
    epochs: watch::Receiver<u64>,
    stock: Stock,
    /// See [`FirstSight::suspect_up_to`].
    suspect_up_to: u64,
    /// The highest sequence that came in here.
    highest: u64,
    /// How far the consumer had counted what it handed out, when it last did so here.
    handed_out: u64,
    /// When the consumer was last heard of, or listened to.
    heard: Instant,
    /// How many pulls in a row ended before their time.
    broken: u32,
    pause: Pause,
}

/// What is left to be done with a job that does not go into its lane.
enum Left {
    ToCarryOut(Work, Admission),
    /// It needs a newer worker.
    ToGiveBack(AckSubject),
}

/// Fetches until the worker stops fetching, then hands back what is still coming in.
pub(super) async fn run(shared: Arc<Shared>, lane: LaneId) {
    let mut pause = Pause::default();
    let opened = loop {
        match Fetcher::open(shared.clone(), lane).await {
            Ok(fetcher) => break fetcher,
            Err(error) => {
                tracing::debug!(lane = %lane.priority, %error, "cannot fetch yet");
                shared.supervision.report(Part::Lane(lane), &error);
                tokio::select! {
                    () = shared.stop_fetching.cancelled() => return,
                    () = sleep(pause.next()) => {}
                }
            }
        }
    };
    shared.supervision.clear(Part::Lane(lane));
    opened.run().await;
}

impl Fetcher {
    async fn open(shared: Arc<Shared>, lane: LaneId) -> Result<Self> {
        let queue = &shared.queues[lane.queue];
        shared.client.ensure_once(&queue.name).await?;
        let epochs = shared.conn.epochs();
        let puller =
            Puller::open(&shared.conn, &queue.streams.jobs, lane.priority.as_str()).await?;
        let outlet = Outlet::Lane(lane.priority);
        let stock = shared.stock_of(lane.queue, outlet, Seen::HandedOut(0)).await?;
        let mut fetcher = Self {
            lane,
            puller,
            epochs,
            stock,
            suspect_up_to: 0,
            highest: 0,
            handed_out: 0,
            heard: Instant::now(),
            broken: 0,
            pause: Pause::default(),
            shared,
        };
        fetcher.stock_taken(stock).await?;
        Ok(fetcher)
    }

    /// Learns what has to be known of the broker before its word on first deliveries is taken: at
    /// the start, and after anything that may have been a crash.
    async fn take_stock(&mut self, seen: Seen) -> Result<()> {
        let stock = self.shared.stock_of(self.lane.queue, self.outlet(), seen).await?;
        self.stock_taken(stock).await
    }

    async fn stock_taken(&mut self, stock: Stock) -> Result<()> {
        let queue = &self.shared.queues[self.lane.queue];
        let in_ledger = highest_in_ledger(&self.shared.conn, &queue.streams).await?;
        self.stock = stock;
        self.suspect_up_to = in_ledger.max(self.highest);
        self.handed_out = 0;
        self.heard = Instant::now();
        // It may have been a job that broke the connection, and would again when its lease is over.
        let (shared, lane, last_here) = (self.shared.clone(), self.lane, self.highest);
        let ack_wait = stock.ack_wait;
        self.shared.tasks.spawn(async move {
            shared.bury_unreadable(lane, ack_wait, last_here).await;
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
                () = changed(&mut self.epochs) => self.recover().await,
                pulled = self.puller.next() => self.take(pulled).await,
                () = room.notified(), if !self.puller.is_open() => {}
            }
        }
        self.finish().await;
    }

    /// Opens a pull for what the lane has room for, unless one is open. If it cannot be sent, nothing else
    /// would have it tried again.
    async fn ask(&mut self) {
        while !self.puller.is_open() && !self.shared.stop_fetching.is_cancelled() {
            let count = self.shared.ask(self.lane);
            if count == 0 {
                return;
            }
            self.make_up_for_silence().await;
            if let Err(error) = self.puller.pull(count).await {
                self.shared.give_up(self.lane, count);
                self.broken(Broken::Unsent(error)).await;
            }
        }
    }

    /// Who has not listened for a while, since all its places were taken, may not have heard that the
    /// consumer's leader is another.
    async fn make_up_for_silence(&mut self) {
        if self.heard.elapsed() < UNHEARD {
            return;
        }
        let (queue, outlet) = (self.lane.queue, self.outlet());
        match self.shared.may_have_lapsed(queue, outlet, &self.stock).await {
            Ok(false) => self.heard = Instant::now(),
            Ok(true) | Err(_) => self.take_stock_at_last(Seen::HandedOut(self.handed_out)).await,
        }
    }

    /// Takes what has come, and what else is there without waiting.
    async fn take(&mut self, pulled: Pulled) {
        let mut next = Some(pulled);
        while let Some(pulled) = next {
            let is_last = matches!(pulled, Pulled::Closed);
            self.take_one(pulled).await;
            // A broker that has been away is asked first what it has forgotten.
            let is_new_connection = self.epochs.has_changed().unwrap_or(true);
            next = match is_last || is_new_connection {
                true => None,
                false => self.puller.try_next(),
            };
        }
    }

    async fn take_one(&mut self, pulled: Pulled) {
        match pulled {
            Pulled::Job(delivery) => {
                self.is_served();
                // Boxed, so that a delivery is not moved about for what is rare.
                if delivery.handed_out <= self.handed_out {
                    Box::pin(self.take_of_another(delivery)).await;
                } else if let Some(left) = self.take_job(delivery) {
                    Box::pin(self.end(left)).await;
                }
            }
            Pulled::Over { unfilled } => {
                self.is_served();
                self.shared.give_up(self.lane, unfilled);
            }
            Pulled::Broken { unfilled, why } => {
                self.shared.give_up(self.lane, unfilled);
                self.broken(why).await;
            }
            Pulled::Closed => {
                // The client library is gone; it comes back with a new worker only.
                tracing::error!("the connection is closed for good; no more jobs are fetched");
                self.shared.stop_fetching();
            }
        }
    }

    /// The consumer counts anew: it was made anew, and knows nothing of earlier deliveries.
    async fn take_of_another(&mut self, delivery: Delivery) {
        tracing::info!(lane = %self.lane.priority, "the lane's consumer is another one");
        self.take_stock_at_last(Seen::CountsAnew).await;
        if let Some(left) = self.take_job(delivery) {
            self.end(left).await;
        }
    }

    /// Takes up a job, as a rule into its lane; what is left to be done with it.
    fn take_job(&mut self, delivery: Delivery) -> Option<Left> {
        self.handed_out = delivery.handed_out;
        match self.read(delivery) {
            Ok(arrival) => {
                let (work, admission) = self.admit(arrival)?;
                Some(Left::ToCarryOut(work, admission))
            }
            Err(ack) => Some(Left::ToGiveBack(ack)),
        }
    }

    async fn end(&self, left: Left) {
        match left {
            Left::ToCarryOut(work, admission) => self.shared.carry_out(work, admission).await,
            Left::ToGiveBack(ack) => self.give_back(&ack).await,
        }
    }

    /// A pull was answered as it should be.
    fn is_served(&mut self) {
        self.broken = 0;
        self.heard = Instant::now();
        self.pause.reset();
        self.shared.supervision.clear(Part::Lane(self.lane));
    }

    /// A pull ended before its time: pause, and see what is the matter.
    async fn broken(&mut self, why: Broken) {
        tracing::debug!(lane = %self.lane.priority, %why, "fetching starts anew");
        self.broken += 1;
        let (part, place) = (Part::Lane(self.lane), self.place());
        let refused = match why {
            Broken::Denied(error) => Some(error),
            Broken::Refused(why) => Some(Error::new(ErrorKind::Broker, why).at(place)),
            Broken::LeaderChanged | Broken::Deleted => None,
            // Once is nothing, as where a leader went without a word.
            Broken::Silent | Broken::NobodyThere | Broken::Unsent(_) => (self.broken > 1)
                .then(|| Error::new(ErrorKind::Unavailable, why.to_string()).at(place)),
        };
        if let Some(error) = &refused {
            self.shared.supervision.report(part, error);
        }
        self.rest().await;
        self.take_stock_at_last(Seen::HandedOut(self.handed_out)).await;
        match refused {
            // The consumer is there, but that is not what is the matter: a pull that is answered ends it.
            Some(error) => self.shared.supervision.report(part, &error),
            None => self.shared.supervision.clear(part),
        }
    }

    /// After a new connection, which may mean that the broker has restarted: give up the pull and take
    /// stock.
    async fn recover(&mut self) {
        tracing::info!(lane = %self.lane.priority, "connected anew: fetching starts anew");
        self.shared.give_up(self.lane, self.puller.forget());
        self.take_stock_at_last(Seen::HandedOut(self.handed_out)).await;
        self.shared.supervision.clear(Part::Lane(self.lane));
    }

    /// Takes stock, however long it takes.
    async fn take_stock_at_last(&mut self, seen: Seen) {
        while let Err(error) = self.take_stock(seen).await {
            tracing::debug!(lane = %self.lane.priority, %error, "cannot fetch");
            self.shared.supervision.report(Part::Lane(self.lane), &error);
            if self.shared.stop_fetching.is_cancelled() {
                return;
            }
            self.rest().await;
        }
    }

    /// Lets some time pass, and more of it each time until all is well again; a new connection is tried
    /// at once.
    async fn rest(&mut self) {
        tokio::select! {
            () = self.shared.stop_fetching.cancelled() => {}
            () = changed(&mut self.epochs) => {}
            () = sleep(self.pause.next()) => {}
        }
    }

    fn outlet(&self) -> Outlet {
        Outlet::Lane(self.lane.priority)
    }

    fn place(&self) -> String {
        format!("{}/{}", self.shared.queues[self.lane.queue].streams.jobs, self.lane.priority)
    }

    /// Stops pulling and hands back what the broker has sent until then.
    async fn finish(mut self) {
        if let Err(error) = self.puller.close().await {
            tracing::debug!(%error, "fetching did not stop cleanly");
        }
        let hand_back = async {
            while let Pulled::Job(delivery) = self.puller.next().await {
                if let Err(error) =
                    delivery.ack.say(&self.shared.conn, Word::Nak(Duration::ZERO)).await
                {
                    tracing::debug!(%error, "a job was not handed back");
                }
            }
        };
        if timeout(LAST_ARRIVALS, hand_back).await.is_err() {
            tracing::debug!("jobs may still have been on their way here");
        }
    }

    /// Has a job taken up; what is left to be carried out.
    fn admit(&self, arrival: Arrival) -> Option<(Work, Admission)> {
        if self.shared.queues[self.lane.queue].trusted.is_none() {
            return self.shared.take_up(arrival);
        }
        // A signature takes longer to check than a job to fetch.
        let shared = self.shared.clone();
        self.shared.tasks.spawn(async move {
            if let Some((work, admission)) = shared.take_up(arrival) {
                shared.carry_out(work, admission).await;
            }
        });
        None
    }

    /// Reads a job, unless its protocol is too new: then it is not ours to judge.
    fn read(&mut self, delivery: Delivery) -> Result<Arrival, AckSubject> {
        let shared = &self.shared;
        let sight = FirstSight {
            delivered: delivery.delivered,
            sequence: delivery.sequence,
            stored: delivery.stored,
            remembers_since: self.stock.remembers_since,
            suspect_up_to: self.suspect_up_to,
        };
        self.highest = self.highest.max(delivery.sequence);
        let queue = &shared.queues[self.lane.queue];
        let Delivery { subject, headers, sequence, .. } = &delivery;
        let priority = self.lane.priority;
        let reading =
            read_job(&shared.namespace, &queue.name, priority, subject, headers, *sequence);
        let claim = match reading {
            Reading::Job { key, options } => Claim::new(key, options, None),
            Reading::NewerProtocol => return Err(delivery.ack),
            Reading::BadHeader { key, problem } => {
                let refused = Some((BuryReason::BadHeader, problem));
                Claim::new(key, JobOptions::default(), refused)
            }
            Reading::BadSubject { key, problem } => {
                let refused = Some((BuryReason::BadSubject, problem));
                Claim::new(key, JobOptions::default(), refused)
            }
        };
        Ok(Arrival { lane: self.lane, ack_wait: self.stock.ack_wait, delivery, claim, sight })
    }

    /// Gives a job back; no record is written.
    async fn give_back(&self, ack: &AckSubject) {
        self.shared.give_up(self.lane, 1);
        if let Err(error) = ack.say(&self.shared.conn, Word::Nak(NEWER_PROTOCOL_DELAY)).await {
            tracing::debug!(%error, "a job was not given back");
        }
    }
}

/// Waits for a new connection.
async fn changed(epochs: &mut watch::Receiver<u64>) {
    if epochs.changed().await.is_err() {
        std::future::pending().await
    }
}
