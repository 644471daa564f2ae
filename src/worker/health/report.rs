//! Where the parts of a worker report what is the matter, and others learn of it: by the log, once when
//! a trouble begins and once when it is over, and by [`Health`].

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::troubles::{Change, Troubles};
use super::{Health, Part, Reprovision, Trouble, TroubleKind};
use crate::broker::Clock;
use crate::error::{Error, ErrorKind};
use crate::token::{Namespace, Queue};
use crate::topology::{DUE, StreamNames};
use crate::wire::RecordKind;

/// Where a worker's queues are.
#[derive(Debug)]
pub(in crate::worker) struct Place {
    pub(in crate::worker) queue: Queue,
    pub(in crate::worker) streams: StreamNames,
}

/// The troubles of a worker, as its parts report them.
#[derive(Debug)]
pub(in crate::worker) struct Supervision {
    namespace: Namespace,
    places: Vec<Place>,
    reprovision: Reprovision,
    clock: Clock,
    troubles: Mutex<Troubles>,
    /// How many parts are in trouble, to be asked for each job.
    in_trouble: AtomicUsize,
    health: watch::Sender<Health>,
}

impl Supervision {
    pub(in crate::worker) fn new(
        namespace: Namespace,
        places: Vec<Place>,
        reprovision: Reprovision,
        clock: Clock,
    ) -> Self {
        Self {
            namespace,
            places,
            reprovision,
            clock,
            troubles: Mutex::default(),
            in_trouble: AtomicUsize::new(0),
            health: watch::Sender::default(),
        }
    }

    /// How the worker is, to be followed.
    pub(in crate::worker) fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    pub(in crate::worker) fn drains(&self) {
        self.health.send_modify(|health| health.is_draining = true);
    }

    /// A part failed with this error.
    pub(in crate::worker) fn report(&self, part: Part, error: &Error) {
        self.report_kind(part, kind_of(error), error.place(), error.to_string());
    }

    /// A part is in trouble of this kind.
    pub(in crate::worker) fn report_kind(
        &self,
        part: Part,
        kind: TroubleKind,
        named: Option<&str>,
        what: String,
    ) {
        let queue = part.queue().map(|queue| &self.places[queue].queue);
        let trouble = Trouble {
            kind,
            effect: part.effect(),
            queue: queue.cloned(),
            place: self.place(part, kind, named),
            since: self.clock.now(),
            what,
            remedy: self.remedy(part, kind, queue),
        };
        let mut troubles = self.troubles();
        let changes = troubles.report(part, trouble, Instant::now());
        self.tell(troubles, changes);
    }

    /// A part is well. Costs next to nothing while all are.
    pub(in crate::worker) fn clear(&self, part: Part) {
        if self.is_all_well() {
            return;
        }
        let mut troubles = self.troubles();
        let changes = troubles.clear(part, Instant::now());
        self.tell(troubles, changes);
    }

    pub(in crate::worker) fn is_all_well(&self) -> bool {
        self.in_trouble.load(Ordering::Acquire) == 0
    }

    /// So many leases were lost so far.
    pub(in crate::worker) fn lost_leases(&self, lost: u64) {
        self.health.send_modify(|health| health.lost_leases = lost);
    }

    /// The parts of a queue that are in trouble.
    pub(super) fn of_queue(&self, queue: usize) -> Vec<(Part, TroubleKind)> {
        if self.is_all_well() { Vec::new() } else { self.troubles().of_queue(queue) }
    }

    /// Whether no job of a queue may be started, since it could not be settled.
    pub(super) fn keep_from_starting(&self, queue: usize) -> bool {
        !self.is_all_well() && self.troubles().keep_from_starting(queue)
    }

    pub(super) fn reprovision(&self) -> Reprovision {
        self.reprovision
    }

    fn troubles(&self) -> MutexGuard<'_, Troubles> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Under the lock, so that what is told is in the order in which it happened.
    fn tell(&self, troubles: MutexGuard<'_, Troubles>, changes: Vec<Change>) {
        self.in_trouble.store(troubles.parts(), Ordering::Release);
        if changes.is_empty() {
            return;
        }
        self.health.send_modify(|health| health.troubles = troubles.list());
        for change in changes {
            match change {
                Change::Began(trouble) => log_begin(&trouble),
                Change::Reworded => {}
                Change::Ended(trouble, lasted) => log_end(&trouble, lasted),
            }
        }
    }

    /// What a trouble is at: so named that parts which are in the same trouble name the same.
    fn place(&self, part: Part, kind: TroubleKind, named: Option<&str>) -> Option<String> {
        let named = named.map(str::to_owned);
        let streams = |queue: usize| &self.places[queue].streams;
        match (part, kind) {
            (Part::Link | Part::Leases, _) => None,
            (Part::Inbox | Part::Setup(_) | Part::Control(_) | Part::Unreadable(_), _)
            | (Part::Stuck(_, _), TroubleKind::PermissionDenied) => named,
            // Not the one record's subject: the right is one to all.
            (Part::Records(queue, record), TroubleKind::PermissionDenied) => {
                let (ns, queue) = (&self.namespace, &self.places[queue].queue);
                Some(format!("{ns}.{}.{queue}.>", record.token()))
            }
            (Part::Records(queue, record), _) => Some(streams(queue).of(record).to_owned()),
            (Part::Acks(lane), _) => {
                Some(format!("$JS.ACK.{}.{}.>", streams(lane.queue).jobs, lane.priority))
            }
            (Part::Lane(lane), TroubleKind::NotAnswering) => Some(streams(lane.queue).jobs.clone()),
            (Part::Lane(lane), _) => {
                named.or_else(|| Some(format!("{}/{}", streams(lane.queue).jobs, lane.priority)))
            }
            (Part::Timers(queue), TroubleKind::NotAnswering) => Some(streams(queue).timers.clone()),
            (Part::Timers(queue), _) => {
                named.or_else(|| Some(format!("{}/{DUE}", streams(queue).timers)))
            }
            // Lanes of one queue were made together.
            (Part::Memory(queue, outlet), _) => Some(outlet.stream(streams(queue)).to_owned()),
            (Part::Stuck(queue, outlet), _) => {
                Some(format!("{}/{}", outlet.stream(streams(queue)), outlet.consumer()))
            }
        }
    }

    fn remedy(&self, part: Part, kind: TroubleKind, queue: Option<&Queue>) -> String {
        let queue = queue.map_or("", Queue::as_str);
        let again = match self.reprovision {
            Reprovision::Never => "",
            Reprovision::Consumers => " (this worker makes consumers again by itself)",
            Reprovision::Everything => " (this worker makes it again by itself)",
        };
        match (kind, part) {
            (TroubleKind::ConnectionLost, _) => {
                "it is tried until it answers: see that nats-server runs and can be reached".into()
            }
            (TroubleKind::ConnectionClosed, _) => "start the worker anew".into(),
            (TroubleKind::PermissionDenied, _) => {
                "grant this worker's user the right; it is tried again".into()
            }
            (TroubleKind::StreamMissing, _) => {
                format!("make it again, empty: `tidemill setup {queue}`{again}")
            }
            (TroubleKind::ConsumerMissing, _) => {
                format!("make it again: `tidemill setup {queue}`{again}")
            }
            (TroubleKind::Full, Part::Records(_, RecordKind::Dead)) => {
                "jobs wait to be buried: retry or discard letters (`tidemill dead`), or raise the \
                 stream's limits"
                    .into()
            }
            (TroubleKind::Full, _) => {
                "make room: raise the stream's or the account's limits, or free the broker's disk"
                    .into()
            }
            (TroubleKind::NotAnswering, _) => {
                "see nats-server's log and its /healthz: a server that ran out of disk has to be \
                 restarted when there is room"
                    .into()
            }
            (TroubleKind::Refused, _) => format!("see what `tidemill doctor {queue}` finds"),
            (TroubleKind::JobsStuck, _) => {
                format!("mend the consumer and bring them back: `tidemill doctor {queue} --revive`")
            }
            (TroubleKind::JobsAtRisk, _) => {
                format!("make its consumers anew: `tidemill setup {queue} --apply`")
            }
            (TroubleKind::LeasesLost, _) => {
                "handlers that keep a thread busy, a slow machine or a slow line are the usual \
                 causes: lower the concurrency, or raise `ack_wait`"
                    .into()
            }
        }
    }
}

/// What kind of trouble an error tells of.
pub(in crate::worker) fn kind_of(error: &Error) -> TroubleKind {
    match error.kind() {
        ErrorKind::Permission => TroubleKind::PermissionDenied,
        ErrorKind::NoStream => TroubleKind::StreamMissing,
        ErrorKind::NoConsumer => TroubleKind::ConsumerMissing,
        ErrorKind::Full => TroubleKind::Full,
        ErrorKind::Unavailable
        | ErrorKind::NoResponders
        | ErrorKind::Unknown
        | ErrorKind::Timeout => TroubleKind::NotAnswering,
        ErrorKind::Invalid
        | ErrorKind::TooLarge
        | ErrorKind::NotFound
        | ErrorKind::Duplicate
        | ErrorKind::Unsupported
        | ErrorKind::Broker => TroubleKind::Refused,
        #[cfg(feature = "embedded")]
        ErrorKind::Local => TroubleKind::Refused,
    }
}

fn log_begin(trouble: &Trouble) {
    match trouble.kind {
        // The connection itself says so, to clients without a worker too.
        TroubleKind::ConnectionLost | TroubleKind::ConnectionClosed => {}
        TroubleKind::PermissionDenied
        | TroubleKind::StreamMissing
        | TroubleKind::ConsumerMissing
        | TroubleKind::Full
        | TroubleKind::NotAnswering
        | TroubleKind::Refused
        | TroubleKind::LeasesLost
        | TroubleKind::JobsStuck
        | TroubleKind::JobsAtRisk => tracing::warn!(target: "tidemill::health", "{trouble}"),
    }
}

fn log_end(trouble: &Trouble, lasted: Duration) {
    let Trouble { kind, place, .. } = trouble;
    if matches!(kind, TroubleKind::ConnectionLost | TroubleKind::ConnectionClosed) {
        return;
    }
    let place = place.as_ref().map(|place| format!(" at {place}")).unwrap_or_default();
    tracing::info!(target: "tidemill::health", after = ?lasted, "over: {kind}{place}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::priority::Priority;
    use crate::worker::lanes::LaneId;

    fn supervision() -> Supervision {
        let (namespace, queue) = (Namespace::default(), Queue::default());
        let streams = StreamNames::new(&namespace, &queue);
        let places = vec![Place { queue, streams }];
        let clock = Clock::new(chrono::Utc::now());
        Supervision::new(namespace, places, Reprovision::Never, clock)
    }

    #[test]
    fn what_is_reported_says_what_and_where_and_what_to_do() {
        let supervision = supervision();
        let lane = LaneId { queue: 0, priority: Priority::Low };
        let gone =
            Error::new(ErrorKind::NoConsumer, "consumer not found").at("TIDEMILL_JOBS_default/low");
        supervision.report(Part::Lane(lane), &gone);
        let denied = Error::new(ErrorKind::Permission, "no permission to publish")
            .at("tidemill.results.default.k.i.r");
        supervision.report(Part::Records(0, RecordKind::Result), &denied);
        let health = supervision.health().borrow().clone();
        assert!(!health.is_ready());
        let told: Vec<String> = health.troubles.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "consumer_missing at TIDEMILL_JOBS_default/low: consumer not found; make it again: \
                 `tidemill setup default`",
                "permission_denied at tidemill.results.default.>: no permission to publish; grant \
                 this worker's user the right; it is tried again",
            ]
        );
        supervision.clear(Part::Lane(lane));
        supervision.clear(Part::Records(0, RecordKind::Result));
        assert!(supervision.health().borrow().is_ready());
        assert!(supervision.is_all_well());
    }

    #[test]
    fn a_worker_that_only_lost_something_is_ready_until_it_drains() {
        let supervision = supervision();
        let what = "1 job went to another worker".to_owned();
        supervision.report_kind(Part::Leases, TroubleKind::LeasesLost, None, what);
        supervision.lost_leases(1);
        let health = supervision.health().borrow().clone();
        assert!(health.is_ready() && health.lost_leases == 1 && health.troubles.len() == 1);
        supervision.drains();
        assert!(!supervision.health().borrow().is_ready());
    }
}
