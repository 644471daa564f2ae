//! The client library's task may die: over a stray carriage return in a message's headers it panics, and
//! any client may have published such a message. Then a new one takes its place under all that uses the
//! connection, which sees no more of it than of a connection that was lost and made anew.

use std::collections::VecDeque;
use std::ops::Deref;
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

use async_nats::client::SubscribeErrorKind;
use async_nats::{Client, Message, SubscribeError, Subscriber};
use futures_util::{FutureExt, StreamExt};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::connection::Inner;
use super::dial;
use super::events::Events;
use super::failure;
use super::options::ConnectOptions;
use crate::error::{Error, ErrorKind, Result};

/// What the health of a connection says whose task has died.
const DIED: &str = "the client library broke down, as over a message that it cannot read";

/// How soon a new one is tried again; longer with every time that it fails, up to the next.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(4);

/// One client of those that a connection has had.
pub(super) struct OneClient {
    client: Client,
    /// How many there were before it.
    before: u64,
    /// Cancelled when its task has ended.
    gone: CancellationToken,
}

impl OneClient {
    /// Cancelled when its task has ended.
    pub(super) fn gone(&self) -> CancellationToken {
        self.gone.clone()
    }
}

impl Deref for OneClient {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

/// The client that is in use.
pub(super) struct Clients {
    now: RwLock<Arc<OneClient>>,
    /// How many there were before it; `None` once there will be no other.
    before: watch::Sender<Option<u64>>,
}

impl Clients {
    pub(super) fn new(first: OneClient) -> Self {
        Self { before: watch::Sender::new(Some(first.before)), now: RwLock::new(Arc::new(first)) }
    }

    pub(super) fn now(&self) -> Arc<OneClient> {
        self.now.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The client; where it has died, its successor, once there is one.
    pub(super) async fn living(&self) -> Arc<OneClient> {
        loop {
            let client = self.now();
            if !client.gone.is_cancelled() || !self.has_successor(&client).await {
                return client;
            }
        }
    }

    /// Does with the client what can be done again where it `failed_by_death`, and then does it with its
    /// successor.
    pub(super) async fn outlive<T, E, F>(
        &self,
        mut doing: impl FnMut(Arc<OneClient>) -> F,
        failed_by_death: impl Fn(&E) -> bool,
    ) -> Result<T, E>
    where
        F: Future<Output = Result<T, E>>,
    {
        loop {
            let client = self.now();
            match doing(client.clone()).await {
                Err(error) if failed_by_death(&error) && self.has_successor(&client).await => {}
                done => return done,
            }
        }
    }

    /// Waits for the client that takes the place of this one; whether there will be any.
    async fn has_successor(&self, client: &OneClient) -> bool {
        let is_news = |before: &Option<u64>| before.is_none_or(|before| before > client.before);
        self.renewals().wait_for(is_news).await.is_ok_and(|before| before.is_some())
    }

    /// Changes with every client.
    pub(super) fn renewals(&self) -> watch::Receiver<Option<u64>> {
        self.before.subscribe()
    }

    fn replace(&self, client: OneClient) {
        let before = client.before;
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(client);
        self.before.send_replace(Some(before));
    }
}

/// Connects a client, the first of a connection or one `before` which there were so many.
pub(super) async fn connect(
    options: &ConnectOptions,
    events: &Arc<Events>,
    before: u64,
) -> Result<OneClient> {
    let gone = CancellationToken::new();
    let client = open(options, events, gone.clone().drop_guard()).await?;
    Ok(OneClient { client, before, gone })
}

async fn open(options: &ConnectOptions, events: &Arc<Events>, alive: DropGuard) -> Result<Client> {
    let servers = &options.servers;
    // One more: a name may have two addresses.
    let limit = options.connect_timeout.saturating_mul(servers.len().saturating_add(1));
    let connecting = dial::nats_options(options, events.clone(), alive)?.connect(servers.addrs());
    timeout(limit, connecting)
        .await
        .map_err(|_| failure::connect_timeout(options))?
        .map_err(|error| failure::connect(options, error, chrono::Utc::now()))
}

/// Puts a new client in the place of each that dies, until the connection is closed.
pub(super) async fn keep(
    conn: Weak<Inner>,
    mut options: ConnectOptions,
    events: Arc<Events>,
    mut gone: CancellationToken,
) {
    // A client that is still connecting does not know the server's limits.
    options.keep_trying = false;
    for before in 1.. {
        gone.cancelled().await;
        if wanted(&conn, &events).is_none() {
            return;
        }
        events.died(DIED);
        let mut pause = FIRST_PAUSE;
        loop {
            let connected = connect(&options, &events, before).await;
            let Some(inner) = wanted(&conn, &events) else { return };
            match connected {
                Ok(client) => {
                    gone = client.gone();
                    inner.clients().replace(client);
                    events.renewed();
                    break;
                }
                Err(error) => events.failed(&error.to_string()),
            }
            drop(inner);
            sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// The connection, unless it is closed or nobody has it any more.
fn wanted(conn: &Weak<Inner>, events: &Events) -> Option<Arc<Inner>> {
    let inner = conn.upgrade()?;
    if inner.is_closing() || events.is_closed() {
        inner.clients().before.send_replace(None);
        return None;
    }
    Some(inner)
}

/// The messages of a subscription, which lasts as long as the connection.
pub(crate) struct Messages {
    /// Not to keep it open.
    conn: Weak<Inner>,
    subject: String,
    subscriber: Subscriber,
    /// How many clients there were before the one that it is of.
    before: u64,
    renewals: watch::Receiver<Option<u64>>,
    /// What had come before the client died.
    earlier: VecDeque<Message>,
    is_ending: bool,
}

impl Messages {
    pub(super) async fn open(conn: &Arc<Inner>, subject: String) -> Result<Self> {
        let renewals = conn.clients().renewals();
        let open = |client: Arc<OneClient>| {
            let subject = subject.clone();
            async move { Ok((client.subscribe(subject).await?, client.before)) }
        };
        let is_dead = |error: &SubscribeError| error.kind() == SubscribeErrorKind::Other;
        let opened = conn.clients().outlive(open, is_dead).await;
        let (subscriber, before) = opened.map_err(|error| closed().because(error))?;
        Ok(Self {
            conn: Arc::downgrade(conn),
            subject,
            subscriber,
            before,
            renewals,
            earlier: VecDeque::new(),
            is_ending: false,
        })
    }

    /// The next message; `None` once none will come. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<Message> {
        loop {
            if let Some(message) = self.earlier.pop_front() {
                return Some(message);
            }
            if let Some(message) = self.subscriber.next().await {
                return Some(message);
            }
            if self.is_ending || !self.renew().await {
                return None;
            }
        }
    }

    /// What has come already; `None` too where that can be known only by waiting.
    pub(super) fn try_next(&mut self) -> Option<Message> {
        self.earlier.pop_front().or_else(|| self.subscriber.next().now_or_never().flatten())
    }

    /// Subscribes anew if the client has died and there is another by now: before anything is asked of
    /// which the answer comes here.
    pub(super) async fn refresh(&mut self) {
        let before = *self.renewals.borrow();
        if before.is_some_and(|before| before > self.before) {
            self.renew().await;
        }
    }

    /// Ends it; what has been sent until then still comes.
    pub(super) async fn drain(&mut self) -> Result<()> {
        self.is_ending = true;
        self.subscriber.drain().await.map_err(|error| {
            Error::new(ErrorKind::Unavailable, "cannot end a subscription").because(error)
        })
    }

    /// Waits for the next client and subscribes there; whether there is one.
    async fn renew(&mut self) -> bool {
        loop {
            let known = self.before;
            let is_news = |before: &Option<u64>| before.is_none_or(|before| before > known);
            let before = match self.renewals.wait_for(is_news).await {
                Ok(before) => *before,
                Err(_) => return false,
            };
            let (Some(before), Some(conn)) = (before, self.conn.upgrade()) else { return false };
            let subscribed = conn.clients().now().subscribe(self.subject.clone()).await;
            self.before = before;
            let Ok(subscriber) = subscribed else { continue };
            let mut left = std::mem::replace(&mut self.subscriber, subscriber);
            while let Some(Some(message)) = left.next().now_or_never() {
                self.earlier.push_back(message);
            }
            return true;
        }
    }
}

fn closed() -> Error {
    failure::disconnected("subscribe")
}
