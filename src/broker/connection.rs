//! One connection to NATS, and the one way to ask something over it.

use std::convert::identity;
use std::fmt;
use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use async_nats::client::{PublishError, PublishErrorKind, RequestError, RequestErrorKind};
use async_nats::{HeaderMap, Message, Request, Subject, ToSubject};
use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{StreamExt, poll};
use tokio::sync::{OnceCell, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::careful::Breakers;
use super::deaf;
use super::events::{Denials, Events, Link};
use super::failure;
use super::given::Given;
use super::ingest::Ingest;
use super::options::ConnectOptions;
use super::renew::{self, Clients, Messages, OneClient};
use crate::error::{Error, ErrorKind, Result};

/// The most answers that are heard to one question to all.
const MAX_GATHERED: usize = 10_000;

/// How long a question goes without an answer at most until it is asked again. Any replica may be asked
/// what a stream holds, also one whose server is frozen: the others count it in for minutes, and it gets
/// every second or third of the questions.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// A connection that restores itself. Clones share it; it ends with the last one.
#[derive(Clone)]
pub(crate) struct Connection(Arc<Inner>);

pub(super) struct Inner {
    clients: Clients,
    api_prefix: String,
    request_timeout: Duration,
    links: watch::Receiver<Link>,
    renewing: Arc<AtomicBool>,
    epochs: watch::Receiver<u64>,
    /// Never read from: its clones see everything ever denied as a change.
    denials: watch::Receiver<Denials>,
    closed: CancellationToken,
    is_closing: AtomicBool,
    ingest: OnceCell<Ingest>,
    /// Messages that broke a look-up.
    breakers: Breakers,
}

impl Connection {
    /// Connects, or with [`ConnectOptions::keep_trying`] begins to.
    pub(crate) async fn open(options: &ConnectOptions) -> Result<Self> {
        options.check()?;
        let events = Arc::new(Events::new(&options.inbox_prefix));
        let (epochs, denials, closed) = (events.epochs(), events.denials(), events.closed());
        let (links, renewing) = (events.links(), events.renewing());
        let client = renew::connect(options, &events, 0).await?;
        let gone = client.gone();
        let conn = Self(Arc::new(Inner {
            clients: Clients::new(client),
            api_prefix: options.api_prefix().to_owned(),
            request_timeout: options.request_timeout,
            links,
            renewing,
            epochs,
            denials,
            closed,
            is_closing: AtomicBool::new(false),
            ingest: OnceCell::new(),
            breakers: Breakers::default(),
        }));
        let weak = Arc::downgrade(&conn.0);
        tokio::spawn(deaf::watch(weak.clone(), conn.0.denials.clone()));
        tokio::spawn(renew::keep(weak, options.clone(), events, gone));
        Ok(conn)
    }

    /// What stores batches, opened when it is first needed.
    pub(super) async fn ingest<F>(&self, open: impl FnOnce() -> F) -> Result<&Ingest>
    where
        F: Future<Output = Result<Ingest>>,
    {
        self.0.ingest.get_or_try_init(open).await
    }

    pub(super) fn opened_ingest(&self) -> Option<&Ingest> {
        self.0.ingest.get()
    }

    /// The connection as `async_nats` has it just now.
    pub(super) fn client(&self) -> Arc<OneClient> {
        self.0.clients.now()
    }

    /// The same, or its successor once there is one.
    pub(super) async fn living_client(&self) -> Arc<OneClient> {
        self.0.clients.living().await
    }

    /// Changes when a client takes the place of one that has died.
    pub(super) fn renewals(&self) -> watch::Receiver<Option<u64>> {
        self.0.clients.renewals()
    }

    /// Messages that broke a look-up.
    pub(super) fn breakers(&self) -> &Breakers {
        &self.0.breakers
    }

    /// How long an answer may take.
    pub(super) fn timeout(&self) -> Duration {
        self.0.request_timeout
    }

    /// How many bytes the server takes in one message, headers included.
    pub(crate) fn max_payload(&self) -> usize {
        self.client().max_payload()
    }

    /// The version of the server; zeros before the first connect.
    pub(crate) fn server_version(&self) -> (u32, u32, u32) {
        version(&self.client().server_info().version)
    }

    /// How many times this connection has been made. A change from now on means that answers and
    /// messages may have been lost.
    pub(crate) fn epochs(&self) -> watch::Receiver<u64> {
        let mut epochs = self.0.epochs.clone();
        epochs.mark_unchanged();
        epochs
    }

    /// How this connection stands.
    pub(crate) fn links(&self) -> watch::Receiver<Link> {
        self.0.links.clone()
    }

    /// Whether it is there just now.
    pub(crate) fn is_connected(&self) -> bool {
        self.client().connection_state() == async_nats::connection::State::Connected
    }

    /// The subject on which answers would come that the server refuses to this connection; it has to be
    /// made anew for them to come again, see [`Connection::reconnect`].
    pub(crate) async fn inbox_denied(&self) -> Error {
        let mut denials = self.0.denials.clone();
        loop {
            if let Some(inbox) = denials.borrow_and_update().inbox() {
                return failure::subscription_denied(inbox);
            }
            if denials.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Whether the server refuses this connection's answers.
    pub(crate) fn is_inbox_denied(&self) -> bool {
        self.0.denials.borrow().inbox().is_some()
    }

    /// Makes the connection anew, with all that it subscribes to. A server that has refused a
    /// subscription does not take it up again by itself when the right to it is granted.
    pub(crate) async fn reconnect(&self) -> Result<()> {
        self.0.renewing.store(true, Ordering::Relaxed);
        let gone = |error| failure::disconnected("connect anew").because(error);
        self.in_time("connect anew", self.client().force_reconnect(), gone).await
    }

    /// The subject of a JetStream API call such as `STREAM.INFO.X`.
    pub(super) fn api_subject(&self, call: &str) -> String {
        format!("{}.{call}", self.0.api_prefix)
    }

    /// Publishes and waits for the answer, whatever it says.
    ///
    /// Fails with `Unavailable` if nobody takes the subject, `Unknown` if no answer came in time,
    /// `TooLarge`, or `Permission` as soon as the server refuses the subject or the answer's.
    pub(super) async fn request(
        &self,
        subject: impl ToSubject,
        headers: Option<HeaderMap>,
        payload: Bytes,
    ) -> Result<Message> {
        let subject = subject.to_subject();
        let mut request = Request::new().payload(payload).timeout(None);
        request.headers = headers;
        let answer = async {
            let client = self.living_client().await;
            client.send_request(subject.clone(), request).await
        };
        self.answered(&subject, answer).await
    }

    /// Bounds the wait for an answer to what is sent to `subject`.
    async fn answered(
        &self,
        subject: &Subject,
        answer: impl Future<Output = std::result::Result<Message, RequestError>>,
    ) -> Result<Message> {
        let asked = Instant::now();
        tokio::select! {
            biased;
            // Our limit, unlike async-nats', covers the wait for room in its queue too.
            answer = timeout(self.0.request_timeout, answer) => match answer {
                Ok(answer) => answer.map_err(|error| failure::request(subject, error)),
                Err(_) => Err(failure::request_timeout(subject, self.0.request_timeout)),
            },
            error = self.denied(subject, asked) => Err(error),
        }
    }

    /// Asks what may be asked any number of times, and does so while no answer comes: one that was sent
    /// while the leader was away is lost, and its successor would answer at once; so is one that the
    /// client took with it when it died. Fails as [`Connection::request`] does, in the same time.
    pub(super) async fn question(
        &self,
        subject: impl ToSubject,
        payload: Bytes,
    ) -> Result<Message> {
        let subject = subject.to_subject();
        let ask = |client: Arc<OneClient>| {
            let request = Request::new().payload(payload.clone()).timeout(None);
            let subject = subject.clone();
            async move { client.send_request(subject, request).await }
        };
        let is_lost = |error: &RequestError| error.kind() == RequestErrorKind::Other;
        self.until_answered(|| self.answered(&subject, self.0.clients.outlive(ask, is_lost))).await
    }

    /// The same where the answer may be what kills the client: its successor is spared.
    pub(super) async fn perilous_question(
        &self,
        subject: impl ToSubject,
        payload: Bytes,
    ) -> Result<Message> {
        let subject = subject.to_subject();
        self.until_answered(|| self.request(subject.clone(), None, payload.clone())).await
    }

    /// Asks anew from time to time, and whenever the connection is made anew, which loses what was on its
    /// way, until one of the questions is answered.
    async fn until_answered<F: Future>(&self, mut ask: impl FnMut() -> F) -> F::Output {
        let mut epochs = self.epochs();
        let pause = ASK_AGAIN.min(self.timeout() / 4);
        let mut asked = FuturesUnordered::new();
        loop {
            asked.push(ask());
            tokio::select! {
                biased;
                Some(answer) = asked.next() => return answer,
                Ok(()) = epochs.changed() => {}
                () = sleep(pause) => {}
            }
        }
    }

    /// Asks what gets several answers.
    pub(super) async fn request_many(
        &self,
        subject: impl ToSubject,
        payload: Bytes,
    ) -> Result<Answers> {
        let subject = subject.to_subject();
        let inbox = self.client().new_inbox();
        let asked = Instant::now();
        let ask = |client: Arc<OneClient>| {
            let (subject, inbox, payload) = (subject.clone(), inbox.clone(), payload.clone());
            async move {
                // Of this client or a later one, and then this one takes no more.
                let messages = Messages::open(&self.0, inbox.clone()).await?;
                let sent = client.publish_with_reply(subject.clone(), inbox, payload).await;
                sent.map(|()| messages).map_err(|error| failure::publish(&subject, error))
            }
        };
        let is_lost = |error: &Error| error.kind() == ErrorKind::Unavailable;
        let messages = self.in_time("ask", self.0.clients.outlive(ask, is_lost), identity).await?;
        Ok(Answers { conn: self.clone(), subject, asked, messages })
    }

    /// The same for a question, see [`Connection::question`]: the first answer, and where more come.
    pub(super) async fn question_many(
        &self,
        subject: impl ToSubject,
        payload: Bytes,
    ) -> Result<(Option<Message>, Answers)> {
        let subject = subject.to_subject();
        self.until_answered(|| async {
            let mut answers = self.request_many(subject.clone(), payload.clone()).await?;
            Ok((answers.next(self.timeout()).await?, answers))
        })
        .await
    }

    /// Asks all who listen to a subject, and hears their answers until one is enough, or none has come
    /// for `stall`. With nobody there it ends at once.
    ///
    /// The first may take as long as any answer, and if it was slow, so may be those after it: over a
    /// slow line, silence says little.
    pub(crate) async fn gather(
        &self,
        subject: String,
        payload: Bytes,
        stall: Duration,
        mut hear: impl FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<()> {
        let mut answers = self.request_many(subject, payload).await?;
        let mut patience = self.timeout();
        for nth in 0..MAX_GATHERED {
            match answers.next(patience).await? {
                // Nobody there at all is answered by the broker with a status.
                Some(answer) if answer.status.is_some() => break,
                Some(answer) if hear(&answer.payload).is_break() => break,
                Some(_) if nth == 0 => patience = stall.max(answers.asked.elapsed()),
                Some(_) => {}
                None => break,
            }
        }
        Ok(())
    }

    /// Sends a message that nobody confirms.
    pub(crate) async fn publish(&self, subject: impl ToSubject, payload: Bytes) -> Result<()> {
        let subject = subject.to_subject();
        let send = |client: Arc<OneClient>| {
            let (subject, payload) = (subject.clone(), payload.clone());
            async move { client.publish(subject, payload).await }
        };
        let sending = self.0.clients.outlive(send, is_untaken);
        self.in_time("send a message", sending, |error| failure::publish(&subject, error)).await
    }

    /// The same for many, in order, up to the first that cannot be sent.
    pub(super) async fn publish_each<'a>(
        &self,
        messages: impl Iterator<Item = (&'a Subject, Bytes)>,
    ) -> Result<()> {
        let sending = async {
            let mut client = self.client();
            for (subject, payload) in messages {
                let given = Given::new(subject.clone());
                if client.publish(given, payload.clone()).await.is_err() {
                    // Whether it has died, and has a successor for the rest too.
                    self.publish(subject.clone(), payload).await?;
                    client = self.client();
                }
            }
            Ok(())
        };
        self.in_time("send messages", sending, identity).await
    }

    /// The same with headers.
    pub(super) async fn publish_with_headers(
        &self,
        subject: impl ToSubject,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Result<()> {
        let subject = subject.to_subject();
        let send = |client: Arc<OneClient>| {
            let (subject, headers, payload) = (subject.clone(), headers.clone(), payload.clone());
            async move { client.publish_with_headers(subject, headers, payload).await }
        };
        let sending = self.0.clients.outlive(send, is_untaken);
        self.in_time("send a message", sending, |error| failure::publish(&subject, error)).await
    }

    pub(crate) async fn subscribe(&self, subject: String) -> Result<Messages> {
        self.in_time("subscribe", Messages::open(&self.0, subject), identity).await
    }

    /// Sends what is still on its way.
    pub(crate) async fn flush(&self) -> Result<()> {
        let gone = |error| failure::disconnected("flush").because(error);
        self.in_time("flush", self.client().flush(), gone).await
    }

    /// Sends what is still on its way and ends the connection, for all its clones.
    pub(crate) async fn close(&self) -> Result<()> {
        let flushed = self.flush().await;
        self.0.is_closing.store(true, Ordering::Relaxed);
        // It fails only where the connection has ended already.
        if self.client().drain().await.is_ok() {
            let _ = timeout(self.timeout(), self.0.closed.cancelled()).await;
        }
        flushed
    }

    /// Bounds what waits while disconnected, for room in the queue or for the connection.
    async fn in_time<T, E>(
        &self,
        what: &str,
        doing: impl Future<Output = std::result::Result<T, E>>,
        failure: impl FnOnce(E) -> Error,
    ) -> Result<T> {
        let mut doing = pin!(doing);
        let done = match poll!(doing.as_mut()) {
            // As a rule there is room, and no clock is needed.
            Poll::Ready(done) => done,
            Poll::Pending => match timeout(self.timeout(), doing).await {
                Ok(done) => done,
                Err(late) => return Err(failure::disconnected(what).because(late)),
            },
        };
        done.map_err(failure)
    }

    /// Waits until the server refuses a subscription to `subject` made at `since` or later.
    pub(crate) async fn subscription_denied(&self, subject: &str, since: Instant) -> Error {
        let mut denials = self.0.denials.clone();
        loop {
            if denials.borrow_and_update().against_subscription(subject, since) {
                return failure::subscription_denied(subject);
            }
            if denials.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until the server refuses a request to `subject` made at `asked`.
    pub(super) async fn denied(&self, subject: &Subject, asked: Instant) -> Error {
        let mut denials = self.0.denials.clone();
        while denials.changed().await.is_ok() {
            if let Some(denial) = denials.borrow_and_update().against(subject, asked) {
                return failure::request_denied(subject, denial);
            }
        }
        std::future::pending().await
    }
}

impl Inner {
    pub(super) fn clients(&self) -> &Clients {
        &self.clients
    }

    /// Whether it ends on our own wish.
    pub(super) fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = &self.0.api_prefix;
        f.debug_struct("Connection").field("api_prefix", prefix).finish_non_exhaustive()
    }
}

/// Whether a client has not even taken the message, since it has died.
fn is_untaken(error: &PublishError) -> bool {
    error.kind() == PublishErrorKind::Send
}

/// What comes in answer to one question.
pub(super) struct Answers {
    conn: Connection,
    subject: Subject,
    asked: Instant,
    messages: Messages,
}

impl Answers {
    /// The next answer; `None` if none came within `patience`.
    pub(super) async fn next(&mut self, patience: Duration) -> Result<Option<Message>> {
        tokio::select! {
            biased;
            answer = timeout(patience, self.messages.next()) => Ok(answer.ok().flatten()),
            error = self.conn.denied(&self.subject, self.asked) => Err(error),
        }
    }
}

/// Reads `2.12.1` and `2.12.1-RC.2`; what is missing is zero.
fn version(text: &str) -> (u32, u32, u32) {
    let release = text.split(['-', '+']).next().unwrap_or_default();
    let mut numbers = release.split('.').map(|number| number.parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    (next(), next(), next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_versions() {
        assert_eq!(version("2.12.1"), (2, 12, 1));
        assert_eq!(version("2.14.0-RC.2"), (2, 14, 0));
        assert_eq!(version("2.11"), (2, 11, 0));
        assert_eq!(version(""), (0, 0, 0));
    }
}
