//! The connection: made with care, watched, and asked with a bound on every wait.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::subject::ToSubject;
use async_nats::{ConnectErrorKind, Event, HeaderMap, RequestErrorKind, ServerError};
use bytes::Bytes;
use tokio::sync::watch;

use super::options::ConnectOptions;
use crate::error::{Error, ErrorKind, Result};

/// Messages of a subscription.
pub(crate) type Messages = async_nats::Subscriber;

/// How soon a server that has fallen silent is noticed: two of these without an answer. The client
/// library's own default would take three minutes.
const PING_EVERY: Duration = Duration::from_secs(5);

/// The longest pause between two tries to reconnect.
const LONGEST_PAUSE: Duration = Duration::from_secs(4);

/// Refusals that are remembered.
const MAX_REFUSALS: usize = 32;

/// A connection to NATS. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Connection(Arc<Inner>);

struct Inner {
    client: async_nats::Client,
    js_prefix: String,
    request_timeout: Duration,
    watched: Arc<Watched>,
}

/// What the client library tells of the connection.
struct Watched {
    /// Counts the times that it was made.
    epoch: watch::Sender<u64>,
    /// Counts the refusals; the texts of the latest are in `refused`.
    refusals: watch::Sender<u64>,
    refused: Mutex<VecDeque<String>>,
}

impl Connection {
    pub(crate) async fn open(options: &ConnectOptions) -> Result<Self> {
        options.check_files()?;
        let watched = Arc::new(Watched {
            epoch: watch::Sender::new(0),
            refusals: watch::Sender::new(0),
            refused: Mutex::default(),
        });
        let client = tokio::time::timeout(
            options.connect_timeout.saturating_mul(2),
            native_options(options, watched.clone()).connect(options.servers.as_slice()),
        )
        .await
        .map_err(|_| unreachable(options, "nobody answers"))?
        .map_err(|error| connect_error(options, error))?;
        Ok(Self(Arc::new(Inner {
            client,
            js_prefix: options.js_prefix.clone(),
            request_timeout: options.request_timeout,
            watched,
        })))
    }

    pub(super) fn client(&self) -> &async_nats::Client {
        &self.0.client
    }

    /// How long an answer may take.
    pub(super) fn timeout(&self) -> Duration {
        self.0.request_timeout
    }

    /// Changes each time that the connection was made anew.
    pub(crate) fn epochs(&self) -> watch::Receiver<u64> {
        self.0.watched.epoch.subscribe()
    }

    /// The largest message that the server takes, in bytes.
    pub(crate) fn max_payload(&self) -> usize {
        self.0.client.server_info().max_payload
    }

    /// The server's version.
    pub(crate) fn server_version(&self) -> (u32, u32, u32) {
        parse_version(&self.0.client.server_info().version)
    }

    pub(super) fn api_subject(&self, verb: &str) -> String {
        format!("{}.{verb}", self.0.js_prefix)
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// `Unavailable` where nobody listens, `Unknown` where no answer comes in time, `Permission` as
    /// soon as the server refuses the subject.
    pub(super) async fn request(
        &self,
        subject: impl ToSubject,
        headers: Option<HeaderMap>,
        payload: Bytes,
    ) -> Result<async_nats::Message> {
        let subject = subject.to_subject();
        let request = async_nats::Request {
            payload: Some(payload),
            headers,
            timeout: Some(Some(self.timeout())),
            inbox: None,
        };
        let mut refusals = self.0.watched.refusals.subscribe();
        let answer = self.0.client.send_request(subject.clone(), request);
        tokio::pin!(answer);
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => {
                    return answer.map_err(|error| request_error(&subject, error));
                }
                Ok(()) = refusals.changed() => {
                    if let Some(error) = self.0.watched.refusal_of(&subject) {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Asks, and gives all answers; each wait for one must be bounded by the caller.
    pub(super) async fn request_many(
        &self,
        subject: impl ToSubject,
        payload: Bytes,
    ) -> Result<Messages> {
        let inbox = self.0.client.new_inbox();
        let answers = self.subscribe(inbox.clone()).await?;
        self.0
            .client
            .publish_with_reply(subject, inbox, payload)
            .await
            .map_err(|error| disconnected("cannot send a request").because(error))?;
        Ok(answers)
    }

    /// Sends a message that nobody confirms.
    pub(crate) async fn publish(&self, subject: impl ToSubject, payload: Bytes) -> Result<()> {
        self.0
            .client
            .publish(subject, payload)
            .await
            .map_err(|error| disconnected("cannot send a message").because(error))
    }

    pub(crate) async fn subscribe(&self, subject: String) -> Result<Messages> {
        self.0
            .client
            .subscribe(subject)
            .await
            .map_err(|error| disconnected("cannot subscribe").because(error))
    }

    /// Sends what is still on its way.
    pub(crate) async fn flush(&self) -> Result<()> {
        match tokio::time::timeout(self.timeout(), self.0.client.flush()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(disconnected("cannot flush").because(error)),
            Err(_) => Err(disconnected("cannot flush in time")),
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("js_prefix", &self.0.js_prefix).finish_non_exhaustive()
    }
}

impl Watched {
    fn hear(&self, event: Event) {
        match event {
            Event::Connected => {
                tracing::debug!("connected");
                self.epoch.send_modify(|epoch| *epoch += 1);
            }
            Event::ServerError(ServerError::Other(text)) if is_refusal(&text) => {
                tracing::warn!(error = text, "the server refuses a subject");
                let mut refused = self.refused.lock().unwrap_or_else(|poison| poison.into_inner());
                if refused.len() == MAX_REFUSALS {
                    refused.pop_front();
                }
                refused.push_back(text);
                drop(refused);
                self.refusals.send_modify(|count| *count += 1);
            }
            Event::Draining | Event::Closed => tracing::debug!(%event, "connection"),
            Event::Disconnected
            | Event::LameDuckMode
            | Event::SlowConsumer(_)
            | Event::ServerError(_)
            | Event::ClientError(_) => tracing::warn!(%event, "connection"),
        }
    }

    /// The refusal of a subject, if there was one of late. It is taken out: a later request may fare
    /// better, when rights were granted meanwhile.
    fn refusal_of(&self, subject: &str) -> Option<Error> {
        let mut refused = self.refused.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let quoted = format!("\"{}\"", subject.to_lowercase());
        let about = |text: &&String| text.to_lowercase().contains(&quoted);
        let index = refused.iter().position(|text| about(&text))?;
        refused.remove(index)?;
        Some(Error::new(
            ErrorKind::Permission,
            format!(
                "these credentials may not publish on {subject}: grant that right, or use others"
            ),
        ))
    }
}

fn is_refusal(text: &str) -> bool {
    text.to_lowercase().starts_with("permissions violation")
}

fn native_options(options: &ConnectOptions, watched: Arc<Watched>) -> async_nats::ConnectOptions {
    let credentials = options.credentials.clone();
    let mut native = match &options.credentials {
        super::credentials::Credentials::None => async_nats::ConnectOptions::new(),
        _ => async_nats::ConnectOptions::with_auth_callback(move |nonce| {
            let answer = credentials.auth(&nonce);
            async move { answer }
        }),
    };
    native = native
        .ping_interval(PING_EVERY)
        .connection_timeout(options.connect_timeout)
        .request_timeout(Some(options.request_timeout))
        .require_tls(options.require_tls)
        .reconnect_delay_callback(pause)
        .event_callback(move |event| {
            watched.hear(event);
            async {}
        });
    if let Some(name) = &options.name {
        native = native.name(name);
    }
    if let Some(ca) = &options.root_ca {
        native = native.add_root_certificates(ca.clone());
    }
    if let Some((cert, key)) = &options.client_cert {
        native = native.add_client_certificate(cert.clone(), key.clone());
    }
    if options.tls_first {
        native = native.tls_first();
    }
    if let Some(prefix) = &options.inbox_prefix {
        native = native.custom_inbox_prefix(prefix);
    }
    if options.keep_trying {
        native = native.retry_on_initial_connect();
    }
    native
}

/// Full jitter, so that many workers do not come back in one moment.
fn pause(attempt: usize) -> Duration {
    let exponent = u32::try_from(attempt.min(10)).unwrap_or(10);
    Duration::from_millis(10 * 2u64.pow(exponent)).min(LONGEST_PAUSE).mul_f64(fastrand::f64())
}

fn unreachable(options: &ConnectOptions, why: &str) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!("cannot connect to NATS at {}: {why}", options.shown_servers()),
    )
}

fn connect_error(options: &ConnectOptions, error: async_nats::ConnectError) -> Error {
    let (kind, why) = match error.kind() {
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
            (ErrorKind::Permission, "the server refuses the credentials")
        }
        ConnectErrorKind::Tls => (ErrorKind::Unavailable, "TLS failed; check certificates and CA"),
        ConnectErrorKind::Dns => (ErrorKind::Unavailable, "the name does not resolve"),
        ConnectErrorKind::TimedOut => (ErrorKind::Unavailable, "nobody answers in time"),
        ConnectErrorKind::ServerParse => (ErrorKind::Invalid, "the address is not valid"),
        ConnectErrorKind::Io | ConnectErrorKind::MaxReconnects => {
            (ErrorKind::Unavailable, "nobody listens there, or the connection broke")
        }
    };
    let message = format!("cannot connect to NATS at {}: {why}", options.shown_servers());
    Error::new(kind, message).because(error)
}

fn request_error(subject: &str, error: async_nats::RequestError) -> Error {
    let (kind, why) = match error.kind() {
        RequestErrorKind::TimedOut => (ErrorKind::Unknown, "no answer came in time"),
        RequestErrorKind::NoResponders => (ErrorKind::Unavailable, "nobody listens there"),
        RequestErrorKind::MaxPayloadExceeded => {
            (ErrorKind::TooLarge, "it is larger than the server's max_payload")
        }
        RequestErrorKind::InvalidSubject => (ErrorKind::Invalid, "that is no subject"),
        RequestErrorKind::Other => (ErrorKind::Unknown, "the connection broke"),
    };
    Error::new(kind, format!("request on {subject}: {why}")).because(error)
}

fn disconnected(what: &str) -> Error {
    Error::new(ErrorKind::Unavailable, format!("{what}: the connection is gone"))
}

fn parse_version(text: &str) -> (u32, u32, u32) {
    let mut parts = text.split(['.', '-', '+']).map(|part| part.parse().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    (next(), next(), next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(parse_version("2.15.1"), (2, 15, 1));
        assert_eq!(parse_version("2.14.0-RC.2"), (2, 14, 0));
        assert_eq!(parse_version("rubbish"), (0, 0, 0));
    }

    #[test]
    fn pauses_are_bounded() {
        for attempt in [0, 1, 5, 1000] {
            assert!(pause(attempt) <= LONGEST_PAUSE);
        }
    }
}
