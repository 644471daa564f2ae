//! Where a fault is tried: on one server or on three, that write when the system pleases or before they
//! confirm. These are the columns of the README's table of faults.

use std::time::Duration;

use tidemill::embedded::{Broker, BrokerBuilder, Cluster};
use tidemill::{Client, ConnectOptions, DeadFilter, DeadLetter, Queue, QueueConfig, Worker};

use super::copies::{Copies, caught_up};
use super::{Sync, eventually, short_leases};

/// How long a client asks before it gives up, where something is broken so that it does.
const IMPATIENT: Duration = Duration::from_secs(1);

/// How many servers there are, as many copies of each stream, and when they write.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Setup {
    One(Sync),
    Three(Sync),
}

/// R1 of the table; the tests of R1+, R3 and R3+ are in `everywhere`.
pub(crate) const R1: Setup = Setup::One(Sync::Lazy);

impl Setup {
    pub(crate) fn replicas(self) -> u8 {
        match self {
            Self::One(_) => 1,
            Self::Three(_) => 3,
        }
    }

    pub(crate) fn builder(self) -> BrokerBuilder {
        let (Self::One(sync) | Self::Three(sync)) = self;
        sync.builder()
    }
}

/// Servers with the default queue, leases of which are short.
pub(crate) struct Site {
    setup: Setup,
    servers: Servers,
    login: Login,
    /// For producers: it soon gives up.
    pub(crate) client: Client,
    /// For workers: where there are three servers it waits as long for an answer as one does by default,
    /// since a leader that is lost takes some seconds to be followed.
    pub(crate) hands: Client,
}

enum Servers {
    One(Broker),
    Three(Cluster),
}

/// Who connects.
#[derive(Clone, Copy)]
pub(crate) enum Login {
    Nobody,
    /// With the password of the same text.
    User(&'static str),
}

impl Login {
    pub(crate) fn of(self, options: ConnectOptions) -> ConnectOptions {
        match self {
            Self::Nobody => options,
            Self::User(name) => options.user_password(name, name),
        }
    }
}

impl Site {
    pub(crate) async fn start(setup: Setup) -> Self {
        Self::of(setup, setup.builder(), Login::Nobody, short_leases(setup.replicas())).await
    }

    /// With servers of which a client hears nothing but what it is told: one that is told of a line goes by
    /// no other.
    pub(crate) async fn behind_a_line(setup: Setup) -> Self {
        let builder = setup.builder().config("client_advertise: \"127.0.0.1:1\"");
        Self::of(setup, builder, Login::Nobody, short_leases(setup.replicas())).await
    }

    /// With servers and a queue that are made so.
    pub(crate) async fn of(
        setup: Setup,
        builder: BrokerBuilder,
        login: Login,
        config: QueueConfig,
    ) -> Self {
        let builder = builder.connect_with(move |options| login.of(options));
        let servers = match setup {
            Setup::One(_) => Servers::One(builder.start().await.expect("a broker")),
            Setup::Three(_) => {
                Servers::Three(Cluster::start_with(3, builder).await.expect("a cluster"))
            }
        };
        let url = servers.url();
        let connect = async |options: ConnectOptions| {
            let client = Client::connect(login.of(options)).await.expect("connects");
            client.with_queue_config(config.clone())
        };
        let options = ConnectOptions::new(&url).expect("a URL");
        let client = connect(options.clone().request_timeout(IMPATIENT)).await;
        let hands = match setup {
            Setup::One(_) => client.clone(),
            Setup::Three(_) => connect(options).await,
        };
        let site = Self { setup, servers, login, client, hands };
        site.has_queue().await;
        site
    }

    /// Makes the default queue where it is not there.
    pub(crate) async fn has_queue(&self) {
        let queue = Queue::default();
        eventually("a queue", || async { self.hands.ensure_queue(&queue).await.ok() }).await;
    }

    /// Has another part of a test begin with a queue in which nothing was ever done. Where it fails, what
    /// it was about is the last that was said.
    pub(crate) async fn anew(&self, about: &str) {
        eprintln!("{:?}: {about}", self.setup);
        let queue = Queue::default();
        eventually("no queue", || async {
            let removed = self.hands.remove_queue(&queue).await;
            removed.map_or_else(|error| error.is_not_found(), |()| true).then_some(())
        })
        .await;
        self.has_queue().await;
    }

    pub(crate) fn replicas(&self) -> u8 {
        self.setup.replicas()
    }

    pub(crate) fn url(&self) -> String {
        self.servers.url()
    }

    pub(crate) fn nodes(&self) -> &[Broker] {
        match &self.servers {
            Servers::One(broker) => std::slice::from_ref(broker),
            Servers::Three(cluster) => cluster.nodes(),
        }
    }

    /// One of the servers, which the proxies of a test have behind them.
    pub(crate) fn node(&self) -> &Broker {
        &self.nodes()[0]
    }

    /// A client of the bare protocol, as other programs have one.
    pub(crate) async fn nats(&self) -> async_nats::Client {
        nats_at(&self.url(), self.login).await
    }

    pub(crate) fn worker(&self) -> tidemill::WorkerBuilder {
        Worker::builder(&self.hands)
    }

    /// The dead letters of the default queue.
    pub(crate) async fn dead(&self) -> Vec<DeadLetter> {
        use futures_util::TryStreamExt;
        let letters = self.client.dead_letters(DeadFilter::queue(Queue::default()));
        letters.try_collect().await.expect("reads")
    }

    /// Starts a server again, and waits until it has all that the others have.
    pub(crate) async fn give_back(&self, node: &Broker) {
        node.restart().await.expect("back");
        if let Servers::Three(cluster) = &self.servers {
            cluster.ready().await.expect("whole again");
            caught_up(&self.nats().await).await;
        }
    }

    /// Gives all servers another configuration while they run.
    pub(crate) async fn reload(&self, config: &str) {
        for node in self.nodes() {
            node.reload(config).await.expect("in force");
        }
    }

    /// The server that leads a stream.
    pub(crate) async fn leader_of(&self, stream: &str) -> &Broker {
        let Servers::Three(cluster) = &self.servers else { return self.node() };
        let nats = self.nats().await;
        let index = eventually(&format!("a leader of {stream}"), || async {
            let verb = format!("STREAM.INFO.{stream}");
            let info = super::api(&nats, &verb, serde_json::Value::Null).await;
            let name = info["cluster"]["leader"].as_str()?.to_owned();
            name.strip_prefix('n')?.parse::<usize>().ok()?.checked_sub(1)
        })
        .await;
        cluster.node(index)
    }

    /// Looks that every server has the same copy of everything, which is so when nothing is under way any
    /// more.
    pub(crate) async fn copies_agree(&self) {
        match &self.servers {
            Servers::One(_) => {}
            Servers::Three(cluster) => Copies::agree(cluster, self.login).await,
        }
    }
}

impl Servers {
    fn url(&self) -> String {
        match self {
            Self::One(broker) => broker.url().to_owned(),
            Self::Three(cluster) => cluster.url(),
        }
    }
}

pub(crate) async fn nats_at(url: &str, login: Login) -> async_nats::Client {
    let options = match login {
        Login::Nobody => async_nats::ConnectOptions::new(),
        Login::User(name) => {
            async_nats::ConnectOptions::with_user_and_password(name.into(), name.into())
        }
    };
    let servers: Vec<&str> = url.split(',').collect();
    let servers = servers.into_iter().map(|url| url.parse().expect("a URL"));
    options.connect(servers.collect::<Vec<async_nats::ServerAddr>>()).await.expect("connects")
}
