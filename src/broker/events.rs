//! What happens to a connection behind the callers' backs: it comes and goes, and the server refuses
//! subjects. A refusal is not an answer to a request, so requests look here for theirs.

use std::collections::VecDeque;
use std::time::Instant;

use async_nats::{Event, ServerError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How many refused subjects of a kind are kept. Waiting requests look at once, so few are enough.
const DENIALS: usize = 64;

/// Takes the connection's events.
pub(super) struct Events {
    epochs: watch::Sender<u64>,
    denials: watch::Sender<Denials>,
    closed: CancellationToken,
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
            epochs: watch::Sender::new(0),
            denials: watch::Sender::default(),
            closed: CancellationToken::new(),
            inboxes: format!("{inbox_prefix}."),
        }
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
            Event::Connected => self.connected(),
            Event::ServerError(ServerError::Other(text)) => self.server_error(text),
            Event::ServerError(error) => tracing::warn!(%error, "the NATS server reports an error"),
            Event::ClientError(error) => tracing::warn!(%error, "cannot connect to NATS"),
            Event::Disconnected => tracing::warn!("disconnected from NATS"),
            Event::SlowConsumer(id) => tracing::warn!(id, "a subscription is too slow"),
            Event::LameDuckMode => tracing::info!("the NATS server is about to stop"),
            Event::Draining => tracing::debug!("closing the NATS connection"),
            Event::Closed => {
                tracing::debug!("closed the NATS connection");
                self.closed.cancel();
            }
        }
    }

    fn connected(&self) {
        self.denials.send_if_modified(|denials| denials.inbox.take().is_some());
        self.epochs.send_modify(|epoch| *epoch += 1);
        tracing::debug!("connected to NATS");
    }

    fn server_error(&self, text: &str) {
        tracing::warn!(error = text, "the NATS server reports an error");
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

    /// Whether no request gets an answer until the next connect.
    pub(super) fn are_of_answers(&self) -> bool {
        self.inbox.is_some()
    }

    /// Whether a subscription to `subject`, made at `since`, was refused.
    pub(super) fn against_subscription(&self, subject: &str, since: Instant) -> bool {
        self.subscriptions.has(subject, since)
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
    fn counts_connects() {
        let events = Events::new("_INBOX");
        let epochs = events.epochs();
        events.take(&Event::Connected);
        events.take(&Event::Disconnected);
        events.take(&Event::Connected);
        assert_eq!(*epochs.borrow(), 2);
    }
}
