//! What a private broker can be told, and how it is put together.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::Broker;
use super::config::{Cluster, Config, Storage, max_file_store};
use super::find::{Environment, Notice, Search, Server, Wanted};
use super::folder::Folder;
use super::keeper::{Keeper, Plan, Supervision};
use super::ready::{ConnectWith, Goal, Readiness};
use crate::broker::ConnectOptions;
use crate::error::Result;

/// How a private broker is found, configured and kept.
///
/// Made by [`Broker::builder`], ended by [`start`](Self::start).
#[derive(Clone)]
pub struct BrokerBuilder {
    data_dir: Option<PathBuf>,
    port: Option<u16>,
    nats_server: Option<PathBuf>,
    version: Option<String>,
    environment: Option<Environment>,
    notice: Notice,
    name: String,
    config: String,
    storage: Storage,
    cluster: Option<Cluster>,
    connect_with: Option<ConnectWith>,
    supervision: Supervision,
    ready_within: Duration,
}

impl Default for BrokerBuilder {
    fn default() -> Self {
        Self {
            data_dir: None,
            port: None,
            nats_server: None,
            version: None,
            environment: None,
            notice: Arc::new(|line| tracing::info!("{line}")),
            name: "tidemill".into(),
            config: String::new(),
            storage: Storage::JetStream { extra: String::new() },
            cluster: None,
            connect_with: None,
            supervision: Supervision::Off,
            ready_within: Duration::from_secs(60),
        }
    }
}

impl BrokerBuilder {
    /// The folder for streams, configuration and log; it is created, kept, and used by one broker
    /// at a time. Default: a temporary one that goes with the broker.
    pub fn data_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.data_dir = Some(path.into());
        self
    }

    /// The port to have if it is free; if not, or by default, any free one.
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port).filter(|port| *port != 0);
        self
    }

    /// The server to run, instead of one that is looked for.
    pub fn nats_server(mut self, path: impl Into<PathBuf>) -> Self {
        self.nats_server = Some(path.into());
        self
    }

    /// The one version that will do, such as `2.12.8`. Default: 2.12.0 or newer.
    ///
    /// If it is not there it is installed; only a few versions can be.
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.version = Some(version.into());
        self
    }

    /// Where to look for a server. Default: [`Environment::current`].
    pub fn environment(mut self, environment: Environment) -> Self {
        self.environment = Some(environment);
        self
    }

    /// Where to tell, in a line each, that a server is being installed. Default: an info event of
    /// `tracing`.
    pub fn notice(mut self, notice: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.notice = Arc::new(notice);
        self
    }

    /// Text to append to the configuration: accounts, permissions, limits.
    pub fn config(mut self, text: impl Into<String>) -> Self {
        self.config = text.into();
        self
    }

    /// Text to put into the configuration's `jetstream` block, such as `sync_interval: always`.
    pub fn jetstream_config(mut self, text: impl Into<String>) -> Self {
        self.storage = Storage::JetStream { extra: text.into() };
        self
    }

    /// A server without JetStream; it is ready when it takes a connection.
    pub fn without_jetstream(mut self) -> Self {
        self.storage = Storage::Off;
        self
    }

    /// What it takes to connect, where the configuration wants a login or TLS: asked with it is
    /// whether the server is ready. Unless the server is
    /// [without JetStream](Self::without_jetstream), the user's account must have it.
    pub fn connect_with(
        mut self,
        with: impl Fn(ConnectOptions) -> ConnectOptions + Send + Sync + 'static,
    ) -> Self {
        self.connect_with = Some(Arc::new(with));
        self
    }

    /// Starts the server again when it dies by itself: on the same port and store, with growing
    /// pauses, three times in a row at most. Default: it stays down.
    pub fn supervised(mut self) -> Self {
        self.supervision = Supervision::On;
        self
    }

    /// How long the server may take to be ready; a large store takes long to recover. Default: 60 s.
    pub fn ready_within(mut self, limit: Duration) -> Self {
        self.ready_within = limit;
        self
    }

    /// Finds or installs a server, starts it, and waits until it is ready.
    ///
    /// # Errors
    ///
    /// When there is no server and none can be installed (the message lists the ways to get one),
    /// the folder is in use, or the server does not come up (the message ends with its last words).
    pub async fn start(self) -> Result<Broker> {
        let server = self.find().await?;
        let folder = match &self.data_dir {
            Some(path) => Folder::open(path)?,
            None => Folder::temporary()?,
        };
        let (version, port) = (server.version, self.port);
        let plan = self.plan(server, max_file_store(folder.capacity()?));
        let keeper = Keeper::start(plan, folder, port).await?;
        Ok(Broker::new(keeper, version))
    }

    pub(super) async fn find(&self) -> Result<Server> {
        let wanted = match &self.version {
            Some(version) => Wanted::Exactly(version.parse()?),
            None => Wanted::Supported,
        };
        let environment = self.environment.clone().unwrap_or_else(Environment::current);
        let nats_server = self.nats_server.as_deref();
        Search { nats_server, wanted, environment: &environment, notice: &self.notice }.run().await
    }

    /// The same, with the server to run looked up once for many.
    pub(super) async fn found(mut self) -> Result<Self> {
        self.nats_server = Some(self.find().await?.path);
        Ok(self)
    }

    /// One server of a cluster, in its own folder below this one's.
    pub(super) fn node(mut self, name: &str, cluster: Cluster) -> Self {
        self.data_dir = self.data_dir.map(|path| path.join(name));
        self.port = None;
        self.name = name.into();
        self.cluster = Some(cluster);
        self
    }

    pub(super) fn has_jetstream(&self) -> bool {
        matches!(self.storage, Storage::JetStream { .. })
    }

    pub(super) fn readiness(&self) -> Readiness {
        // One server of a cluster has no JetStream before the others are there.
        let goal = match (&self.storage, &self.cluster) {
            (Storage::JetStream { .. }, None) => Goal::JetStream,
            (Storage::JetStream { .. }, Some(_)) | (Storage::Off, _) => Goal::Connect,
        };
        Readiness { goal, connect_with: self.connect_with.clone(), within: self.ready_within }
    }

    fn plan(self, server: Server, max_file_store: u64) -> Plan {
        Plan {
            server,
            readiness: self.readiness(),
            supervision: self.supervision,
            config: Config {
                name: self.name,
                port: 0, // picked at the start
                storage: self.storage,
                max_file_store,
                cluster: self.cluster,
                extra: self.config,
            },
        }
    }
}

impl fmt::Debug for BrokerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BrokerBuilder")
            .field("data_dir", &self.data_dir)
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}
