//! What is done about troubles: jobs that could not be settled are not started, what is missing is made
//! where this worker may, and what no part would try by itself is tried.

use std::iter::once;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::{Part, Reprovision, TroubleKind};
use crate::broker::{Expect, Link, Word};
use crate::error::Result;
use crate::wire::{Headers, RecordKind};
use crate::worker::Shared;
use crate::worker::lanes::LaneId;
use crate::worker::pause::Pause;

/// How long a new connection may take.
const RECONNECT: Duration = Duration::from_secs(5);

/// Reports how the connection stands, until `end`.
pub(in crate::worker) async fn keep_link(shared: Arc<Shared>, end: CancellationToken) {
    let mut links = shared.conn.links();
    loop {
        let link = links.borrow_and_update().clone();
        let report = |kind, what: &str| {
            shared.supervision.report_kind(Part::Link, kind, None, what.to_owned());
        };
        match link {
            // Whose first event may be on its way here.
            Link::Begun if shared.conn.is_connected() => shared.supervision.clear(Part::Link),
            Link::Begun => report(TroubleKind::ConnectionLost, "not yet connected to NATS"),
            Link::Up => shared.supervision.clear(Part::Link),
            Link::Down { problem: None, .. } => {
                report(TroubleKind::ConnectionLost, "the connection to NATS is gone");
            }
            Link::Down { problem: Some(problem), .. } => {
                report(TroubleKind::ConnectionLost, &format!("cannot connect to NATS: {problem}"));
            }
            Link::Closed => {
                report(TroubleKind::ConnectionClosed, "the connection to NATS was closed for good");
            }
        }
        tokio::select! {
            () = end.cancelled() => return,
            changed = links.changed() => if changed.is_err() { return end.cancelled().await },
        }
    }
}

/// Has the server take up again the answers that it refused, until `end`: it does so for a new
/// connection only.
pub(in crate::worker) async fn keep_inbox(shared: Arc<Shared>, end: CancellationToken) {
    let keep = async {
        loop {
            let denied = shared.conn.inbox_denied().await;
            let mut pause = Pause::default();
            loop {
                shared.supervision.report(Part::Inbox, &denied);
                sleep(pause.next()).await;
                if shared.is_heard_anew().await {
                    break shared.supervision.clear(Part::Inbox);
                }
            }
        }
    };
    tokio::select! {
        () = end.cancelled() => {}
        () = keep => {}
    }
}

/// Lets no job of a queue start while it could not be settled, until `end`.
pub(in crate::worker) async fn keep_gate(
    shared: Arc<Shared>,
    queue: usize,
    end: CancellationToken,
) {
    let mut changes = shared.supervision.health();
    let mut is_shut = false;
    loop {
        changes.borrow_and_update();
        let to_be_shut = shared.supervision.keep_from_starting(queue);
        if to_be_shut != is_shut {
            is_shut = to_be_shut;
            match is_shut {
                true => shared.lanes().shut(queue),
                false => shared.open_lanes(queue),
            }
        }
        tokio::select! {
            () = end.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
        }
    }
}

/// Tries what nobody else of a queue tries, with growing pauses, until `end`.
pub(in crate::worker) async fn mend(shared: Arc<Shared>, queue: usize, end: CancellationToken) {
    let mut changes = shared.supervision.health();
    let mut pause = Pause::default();
    let mut next = Instant::now();
    loop {
        changes.borrow_and_update();
        let troubles = shared.supervision.of_queue(queue);
        if troubles.is_empty() {
            pause.reset();
            next = Instant::now() + pause.next();
        }
        tokio::select! {
            () = end.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
            () = sleep_until(next), if !troubles.is_empty() => {
                tokio::select! {
                    () = end.cancelled() => return,
                    () = shared.mend(queue, &troubles) => next = Instant::now() + pause.next(),
                }
            }
        }
    }
}

impl Shared {
    /// Connects anew; whether answers come now.
    async fn is_heard_anew(&self) -> bool {
        let mut epochs = self.conn.epochs();
        if self.conn.reconnect().await.is_err() {
            return false;
        }
        let connected = timeout(RECONNECT, epochs.changed()).await;
        // By the time that anything is answered, a refusal would have come.
        let answered = match connected {
            Ok(Ok(())) => self.born(&self.queues[0]).await,
            Ok(Err(_)) | Err(_) => return false,
        };
        let is_answered = match answered {
            Ok(_) => true,
            Err(error) => error.is_permission() || error.is_not_found(),
        };
        is_answered && !self.conn.is_inbox_denied()
    }

    async fn mend(&self, queue: usize, troubles: &[(Part, TroubleKind)]) {
        let is_missing = |kind: &TroubleKind| {
            matches!(kind, TroubleKind::StreamMissing | TroubleKind::ConsumerMissing)
        };
        if troubles.iter().any(|(_, kind)| is_missing(kind)) {
            self.make_again(queue).await;
        } else {
            self.supervision.clear(Part::Setup(queue));
        }
        join_all(troubles.iter().map(|(part, kind)| self.try_part(queue, *part, *kind))).await;
    }

    /// Makes what is missing of a queue, where this worker may.
    async fn make_again(&self, queue: usize) {
        let name = &self.queues[queue].name;
        let made = match self.supervision.reprovision() {
            Reprovision::Never => return,
            Reprovision::Consumers => self.client.ensure_consumers(name).await,
            Reprovision::Everything => self.client.ensure_queue(name).await,
        };
        match made {
            Ok(_) => self.supervision.clear(Part::Setup(queue)),
            Err(error) => self.supervision.report(Part::Setup(queue), &error),
        }
    }

    /// Finds out whether a part is well again that would not find out by itself.
    async fn try_part(&self, queue: usize, part: Part, kind: TroubleKind) {
        let tried = match part {
            // Those whose outcome waits to be written try it themselves.
            Part::Records(_, _) if self.queues[queue].has_stubborn() => return,
            Part::Records(_, RecordKind::Dead) if kind == TroubleKind::Full => {
                match self.conn.has_room(&self.queues[queue].streams.dead).await {
                    Ok(true) => Ok(()),
                    Ok(false) => return,
                    Err(error) => Err(error),
                }
            }
            Part::Records(_, record) => self.try_record(queue, record).await,
            Part::Acks(lane) => self.try_acks(lane).await,
            // These try again by themselves.
            Part::Link
            | Part::Inbox
            | Part::Lane(_)
            | Part::Timers(_)
            | Part::Setup(_)
            | Part::Control(_)
            | Part::Memory(_, _)
            | Part::Stuck(_, _)
            | Part::Unreadable(_)
            | Part::Leases => return,
        };
        match tried {
            Ok(()) => self.supervision.clear(part),
            Err(error) => self.supervision.report(part, &error),
        }
    }

    /// Publishes where records go what the broker takes in under no circumstances: that it says so
    /// tells that it would take a record.
    async fn try_record(&self, queue: usize, record: RecordKind) -> Result<()> {
        const NEVER: u64 = i64::MAX as u64;
        let (ns, name) = (&self.namespace, &self.queues[queue].name);
        let subject = format!("{ns}.{}.{name}._._._", record.token());
        let stream = self.queues[queue].streams.of(record);
        let told = self.conn.store(subject, &Headers::new(), "".into(), Expect::Last(NEVER)).await;
        match told {
            Ok(_) => Ok(()),
            Err(error) => Err(self.conn.why_not_stored(stream, error).await),
        }
    }

    /// Asks whether deliveries of a lane can be settled, and settles those that could not be, if their
    /// outcome is on record.
    async fn try_acks(&self, lane: LaneId) -> Result<()> {
        self.may_settle(lane).await?;
        let queue = &self.queues[lane.queue];
        let mut unsaid = queue.take_unsaid().into_iter();
        while let Some(ack) = unsaid.next() {
            if let Err(error) = ack.say(&self.conn, Word::Ack).await {
                queue.keep_unsaid(once(ack).chain(unsaid));
                return Err(error);
            }
        }
        Ok(())
    }
}
