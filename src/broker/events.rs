//! What happens to a connection behind the callers' backs: it comes and goes, and the server refuses
//! subjects. A refusal is not an answer to a request, so requests look here for theirs.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use async_nats::{Event, ServerError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How many refused subjects of a kind are kept. Waiting requests look at once, so few are enough.
const DENIALS: usize = 64;

/// How the connection stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    /// It is being made for the first time.
    Begun,
    Up,
    /// It is gone and being made anew; why the last try failed, once one has.
    Down {
        since: Instant,
        problem: Option<String>,
    },
    /// It has ended for good.
    Closed,
}

/// Takes the connection's events.
pub(super) struct Events {
    links: watch::Sender<Link>,
    /// Whether it is on our own wish that the connection ends next.
    renewing: Arc<AtomicBool>,
    /// What the log has, in short, and need not have again until the next connect.
    logged: Mutex<HashSet<String>>,
    epochs: watch::Sender<u64>,
    denials: watch::Sender<Denials>,
    closed: CancellationToken,
    /// Whether another client is to take the place of one that has died.
    is_dead: AtomicBool,
    /// What the subjects begin with to which answers are sent.
    inboxes: String,
}

/// What the server has refused lately.
#[derive(Default)]
pub(super) struct Denials {
    /// Answers' subject, refused in this epoch; no request gets an answer until the next.
    inbox: Option<String>,
    publishes: Refused,
    subscriptions: Refused,
}

/// Subjects and when they were refused, the latest last.
#[derive(Default)]
struct Refused(VecDeque<(Instant, String)>);

/// A right the user lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Right {
    Publish,
    Subscribe,
}

impl Events {
    pub(super) fn new(inbox_prefix: &str) -> Self {
        Self {
            links: watch::Sender::new(Link::Begun),
            renewing: Arc::default(),
            logged: Mutex::default(),
            epochs: watch::Sender::new(0),
            denials: watch::Sender::default(),
            closed: CancellationToken::new(),
            is_dead: AtomicBool::new(false),
            inboxes: format!("{inbox_prefix}."),
        }
    }

    /// How the connection stands.
    pub(super) fn links(&self) -> watch::Receiver<Link> {
        self.links.subscribe()
    }

    /// To be set before the connection is ended to be made anew, which is no loss of it.
    pub(super) fn renewing(&self) -> Arc<AtomicBool> {
        self.renewing.clone()
    }

    /// How many times the connection has been made.
    pub(super) fn epochs(&self) -> watch::Receiver<u64> {
        self.epochs.subscribe()
    }

    /// Cancelled when the connection has ended for good.
    pub(super) fn closed(&self) -> CancellationToken {
        self.closed.clone()
    }

    /// What the server refuses. Before the first refusal, waiting for a change takes no lock.
    pub(super) fn denials(&self) -> watch::Receiver<Denials> {
        self.denials.subscribe()
    }

    pub(super) fn take(&self, event: &Event) {
        match event {
            // Told when it has taken its place.
            Event::Connected if self.is_dead.load(Ordering::Relaxed) => {}
            Event::Connected => self.connected(),
            Event::ServerError(ServerError::Other(text)) => self.server_error(text),
            Event::ServerError(error) => tracing::warn!(%error, "the NATS server reports an error"),
            Event::ClientError(error) => self.failed(&error.to_string()),
            Event::Disconnected => self.disconnected(),
            Event::SlowConsumer(id) => self.dropped(*id),
            Event::LameDuckMode => tracing::info!("the NATS server is about to stop"),
            Event::Draining => tracing::debug!("closing the NATS connection"),
            Event::Closed => {
                tracing::debug!("closed the NATS connection");
                self.links.send_replace(Link::Closed);
                self.closed.cancel();
            }
        }
    }

    /// Whether the connection was closed.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    /// The client's task has ended by itself, and another is to take its place.
    pub(super) fn died(&self, why: &str) {
        tracing::warn!(target: "tidemill::health", "{why}: connecting anew");
        self.is_dead.store(true, Ordering::Relaxed);
        let down = Link::Down { since: Instant::now(), problem: Some(why.to_owned()) };
        self.links.send_replace(down);
    }

    /// Another has taken its place, and is connected.
    pub(super) fn renewed(&self) {
        self.is_dead.store(false, Ordering::Relaxed);
        self.connected();
    }

    fn connected(&self) {
        self.denials.send_if_modified(|denials| denials.inbox.take().is_some());
        self.renewing.store(false, Ordering::Relaxed);
        let before = self.links.send_replace(Link::Up);
        self.epochs.send_modify(|epoch| *epoch += 1);
        self.logged().clear();
        match before {
            Link::Down { since, .. } => {
                let after = since.elapsed();
                tracing::info!(target: "tidemill::health", ?after, "connected to NATS again");
            }
            Link::Begun | Link::Up | Link::Closed => tracing::debug!("connected to NATS"),
        }
    }

    fn disconnected(&self) {
        if self.renewing.load(Ordering::Relaxed) {
            return tracing::debug!("the connection to NATS is made anew");
        }
        let down = Link::Down { since: Instant::now(), problem: None };
        match self.links.send_replace(down) {
            Link::Begun | Link::Up => tracing::warn!(
                target: "tidemill::health",
                "disconnected from NATS: connecting again until it answers; see that the server runs"
            ),
            Link::Down { .. } | Link::Closed => {}
        }
    }

    /// A try to connect has failed; the log has the first one of a row, and each that is another.
    pub(super) fn failed(&self, why: &str) {
        self.links.send_if_modified(|link| match link {
            Link::Down { problem, .. } if problem.as_deref() == Some(why) => false,
            Link::Down { problem, .. } => {
                *problem = Some(why.to_owned());
                true
            }
            Link::Up => {
                *link = Link::Down { since: Instant::now(), problem: Some(why.to_owned()) };
                true
            }
            Link::Begun | Link::Closed => false,
        });
        if self.is_to_be_logged(why) {
            tracing::warn!(target: "tidemill::health", error = why, "cannot connect to NATS");
        } else {
            tracing::debug!(error = why, "still cannot connect to NATS");
        }
    }

    /// A message was dropped, since a subscription was full: the log has the first.
    fn dropped(&self, id: u64) {
        if self.is_to_be_logged(&format!("slow {id}")) {
            tracing::warn!(id, "a subscription is read too slowly: messages to it are dropped");
        } else {
            tracing::debug!(id, "another message to a subscription was dropped");
        }
    }

    /// Whether the log does not have this yet, since the last connect.
    fn is_to_be_logged(&self, what: &str) -> bool {
        let mut logged = self.logged();
        logged.len() < DENIALS && logged.insert(what.to_owned())
    }

    fn logged(&self) -> MutexGuard<'_, HashSet<String>> {
        self.logged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn server_error(&self, text: &str) {
        if self.is_to_be_logged(&in_short(text)) {
            tracing::warn!(error = text, "the NATS server reports an error");
        } else {
            tracing::debug!(error = text, "the NATS server reports an error again");
        }
        match denied(text) {
            Some((Right::Publish, subject)) => self.denials.send_modify(|denials| {
                denials.publishes.add(Instant::now(), subject);
            }),
            Some((Right::Subscribe, subject)) if subject.starts_with(&self.inboxes) => {
                self.denials.send_modify(|denials| denials.inbox = Some(subject.to_owned()));
            }
            Some((Right::Subscribe, subject)) => self.denials.send_modify(|denials| {
                denials.subscriptions.add(Instant::now(), subject);
            }),
            None => {}
        }
    }
}

impl Refused {
    fn add(&mut self, at: Instant, subject: &str) {
        if self.0.len() == DENIALS {
            self.0.pop_front();
        }
        self.0.push_back((at, subject.to_owned()));
    }

    fn has(&self, subject: &str, since: Instant) -> bool {
        self.0.iter().rev().any(|(at, refused)| *at >= since && refused == subject)
    }
}

impl Denials {
    /// Why a request to `subject`, made at `since`, gets no answer: the right that lacks, to what.
    pub(super) fn against<'a>(
        &'a self,
        subject: &'a str,
        since: Instant,
    ) -> Option<(Right, &'a str)> {
        if self.publishes.has(subject, since) {
            return Some((Right::Publish, subject));
        }
        self.inbox.as_deref().map(|inbox| (Right::Subscribe, inbox))
    }

    /// Where answers would come, if the server refuses that.
    pub(super) fn inbox(&self) -> Option<&str> {
        self.inbox.as_deref()
    }

    /// Whether a subscription to `subject`, made at `since`, was refused.
    pub(super) fn against_subscription(&self, subject: &str, since: Instant) -> bool {
        self.subscriptions.has(subject, since)
    }
}

/// An error without what differs from job to job: the first words of the subject that is refused.
fn in_short(text: &str) -> String {
    const TOKENS: usize = 4;
    match denied(text) {
        Some((right, subject)) => {
            let tokens: Vec<&str> = subject.split('.').take(TOKENS).collect();
            format!("{right:?} {}", tokens.join("."))
        }
        None => text.to_owned(),
    }
}

/// Reads `Permissions Violation for Publish to "a.b"` and the like.
fn denied(text: &str) -> Option<(Right, &str)> {
    let (_, what) = text.split_once("Permissions Violation for ")?;
    let (verb, rest) = what.split_once(" to \"")?;
    let (subject, _) = rest.split_once('"')?;
    match verb {
        "Publish" => Some((Right::Publish, subject)),
        "Subscription" => Some((Right::Subscribe, subject)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn server_says(events: &Events, text: &str) {
        events.take(&Event::ServerError(ServerError::Other(text.into())));
    }

    #[test]
    fn reads_the_servers_words() {
        let publish = r#"Permissions Violation for Publish to "a.b""#;
        assert_eq!(denied(publish), Some((Right::Publish, "a.b")));
        let queue = r#"Permissions Violation for Subscription to "a.>" using queue "q""#;
        assert_eq!(denied(queue), Some((Right::Subscribe, "a.>")));
        assert_eq!(denied("Maximum Payload Violation"), None);
        assert_eq!(denied(r#"Permissions Violation for Publish to "a"#), None);
    }

    #[test]
    fn a_denial_is_against_later_denied_requests_of_its_subject() {
        let mut denials = Denials::default();
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        denials.publishes.add(now, "a");
        assert_eq!(denials.against("a", now), Some((Right::Publish, "a")));
        assert_eq!(denials.against("b", now), None);
        assert_eq!(denials.against("a", later), None);
        for _ in 0..DENIALS {
            denials.publishes.add(later, "c");
        }
        assert_eq!(denials.publishes.0.len(), DENIALS);
        assert_eq!(denials.against("a", now), None);
    }

    #[test]
    fn a_denied_inbox_stops_all_requests_until_the_next_connect() {
        let events = Events::new("_INBOX");
        let denials = events.denials();
        server_says(&events, r#"Permissions Violation for Subscription to "_INBOX.x.*""#);
        let denied = Some((Right::Subscribe, "_INBOX.x.*"));
        assert_eq!(denials.borrow().against("a", Instant::now()), denied);

        events.take(&Event::Connected);
        assert_eq!(denials.borrow().against("a", Instant::now()), None);
        let since = Instant::now();
        server_says(&events, r#"Permissions Violation for Subscription to "other""#);
        assert_eq!(denials.borrow().against("a", Instant::now()), None);
        assert!(denials.borrow().against_subscription("other", since));
        assert!(!denials.borrow().against_subscription("another", since));
    }

    #[test]
    fn the_log_has_a_slow_subscription_once_until_the_next_connect() {
        let events = Events::new("_INBOX");
        events.take(&Event::SlowConsumer(7));
        events.take(&Event::SlowConsumer(8));
        events.take(&Event::SlowConsumer(7));
        assert_eq!(events.logged().len(), 2);
        events.take(&Event::Connected);
        assert!(events.logged().is_empty());
    }

    #[test]
    fn how_the_connection_stands_follows_what_happens() {
        let events = Events::new("_INBOX");
        let links = events.links();
        assert_eq!(*links.borrow(), Link::Begun);
        events.take(&Event::Connected);
        assert_eq!(*links.borrow(), Link::Up);
        events.take(&Event::Disconnected);
        assert!(matches!(&*links.borrow(), Link::Down { problem: None, .. }));
        events.failed("refused");
        let why = Some("refused".to_owned());
        assert!(matches!(&*links.borrow(), Link::Down { problem, .. } if *problem == why));
        events.take(&Event::Connected);
        events.take(&Event::Closed);
        assert_eq!(*links.borrow(), Link::Closed);
    }

    #[test]
    fn a_refusal_is_logged_once_until_the_next_connect() {
        let events = Events::new("_INBOX");
        let refused = |id| {
            let text =
                format!(r#"Permissions Violation for Publish to "tm.results.q.kind.{id}.r""#);
            events.is_to_be_logged(&in_short(&text))
        };
        assert!(refused(1));
        assert!(!refused(2), "the same right, for another job");
        events.take(&Event::Connected);
        assert!(refused(3));
    }

    #[test]
    fn counts_connects() {
        let events = Events::new("_INBOX");
        let epochs = events.epochs();
        events.take(&Event::Connected);
        events.take(&Event::Disconnected);
        events.take(&Event::Connected);
        assert_eq!(*epochs.borrow(), 2);
    }
}
