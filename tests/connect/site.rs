//! A server with exactly the files of `deploy/nats`, and clients of each of its roles.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_nats::{Event, ServerError};
use tempfile::TempDir;
use tidemill::embedded::Broker;
use tidemill::{Client, ConnectOptions};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::certs::{Authority, Pair};
use crate::commands::tidemill;
use crate::contexts::Contexts;
use crate::support::to;

/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A user of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Producer,
    Mail,
    Worker,
    Operator,
    Provisioner,
    Observer,
    /// Another tenant.
    Other,
    System,
}

impl Role {
    /// Those that have to do with the queue.
    pub(crate) const ALL: [Self; 6] = [
        Self::Producer,
        Self::Mail,
        Self::Worker,
        Self::Operator,
        Self::Provisioner,
        Self::Observer,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Producer => "producer",
            Self::Mail => "mail",
            Self::Worker => "worker",
            Self::Operator => "operator",
            Self::Provisioner => "provisioner",
            Self::Observer => "observer",
            Self::Other => "other",
            Self::System => "system",
        }
    }

    pub(crate) fn inbox(self) -> String {
        format!("_INBOX_{}", self.name())
    }

    /// What its JetStream API subjects begin with, where that is not `$JS.API`.
    fn api_prefix(self) -> Option<&'static str> {
        match self {
            Self::Mail | Self::Observer => Some("JS.tidemill"),
            Self::Producer
            | Self::Worker
            | Self::Operator
            | Self::Provisioner
            | Self::Other
            | Self::System => None,
        }
    }
}

/// The server, its folder and its CA.
pub(crate) struct Site {
    pub(crate) broker: Broker,
    pub(crate) authority: Authority,
    client: Pair,
    folder: TempDir,
}

impl Site {
    /// A server with the files, and `more` behind them.
    pub(crate) async fn start(more: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let conf = folder.path().join("conf");
        copy_configuration(&conf);
        let arguments = ["nkeys", &conf.to_string_lossy()];
        tidemill(&Contexts::new(), &arguments, &[]).assert().success();
        let authority = Authority::new();
        let port = free_port();
        write_site(&conf, &folder.path().join("data"), &authority, port);
        let client = authority.pair("client");
        let operator = Self::login(&conf, &authority, &client, Role::Operator);
        let broker = Broker::builder()
            .data_dir(folder.path().join("data"))
            .port(port)
            .config(format!("include \"../conf/nats.conf\"\n{more}\n"))
            .connect_with(operator);
        let broker = broker.start().await.expect("a broker");
        Self { broker, authority, client, folder }
    }

    /// The same with the queue `default`.
    pub(crate) async fn with_queue(more: &str) -> Self {
        let site = Self::start(more).await;
        let queue = tidemill::Queue::default();
        site.client(Role::Provisioner).await.ensure_queue(&queue).await.expect("made");
        site
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    fn conf(&self) -> PathBuf {
        self.folder.path().join("conf")
    }

    fn seed(&self, role: Role) -> PathBuf {
        seed(&self.conf(), role)
    }

    fn login(
        conf: &Path,
        authority: &Authority,
        client: &Pair,
        role: Role,
    ) -> impl Fn(ConnectOptions) -> ConnectOptions + Send + Sync + 'static {
        let (seed, ca) = (seed(conf, role).to_string_lossy().into_owned(), authority.ca());
        let (cert, key) = (client.cert.clone(), client.key.clone());
        move |options| {
            let options = options.root_ca(&ca).client_cert(&cert, &key).nkey(&seed);
            let options = options.inbox_prefix(role.inbox());
            match role.api_prefix() {
                Some(prefix) => options.js_api_prefix(prefix),
                None => options,
            }
        }
    }

    pub(crate) fn options(&self, role: Role) -> ConnectOptions {
        let login = Self::login(&self.conf(), &self.authority, &self.client, role);
        login(to(self.broker.url()))
    }

    pub(crate) async fn client(&self, role: Role) -> Client {
        Client::connect(self.options(role)).await.expect("connects")
    }

    /// What the environment holds for a command in this role.
    pub(crate) fn environment(&self, role: Role) -> Vec<(&'static str, String)> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let mut environment = vec![
            ("NATS_URL", self.broker.url().to_owned()),
            ("NATS_CA", text(&self.authority.ca())),
            ("NATS_CERT", text(&self.client.cert)),
            ("NATS_KEY", text(&self.client.key)),
            ("NATS_NKEY", text(&self.seed(role))),
            ("NATS_INBOX_PREFIX", role.inbox()),
        ];
        environment.extend(role.api_prefix().map(|prefix| ("NATS_JS_API_PREFIX", prefix.into())));
        environment
    }

    /// A client of no library of ours, who may try anything.
    pub(crate) async fn raw(&self, role: Role) -> Raw {
        let seed = fs::read_to_string(self.seed(role)).expect("reads");
        let (sender, refusals) = mpsc::unbounded_channel();
        let nats = async_nats::ConnectOptions::with_nkey(seed.trim().to_owned())
            .add_root_certificates(self.authority.ca())
            .add_client_certificate(self.client.cert.clone(), self.client.key.clone())
            .require_tls(true)
            .custom_inbox_prefix(role.inbox())
            .event_callback(move |event| {
                if let Event::ServerError(ServerError::Other(text)) = event {
                    let _ = sender.send(text);
                }
                std::future::ready(())
            })
            .connect(self.broker.url())
            .await
            .expect("connects");
        Raw { nats, refusals }
    }
}

/// Something that the server allows or refuses.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Deed<'a> {
    Publish(&'a str),
    Subscribe(&'a str),
}

/// A connection that hears what it is refused.
pub(crate) struct Raw {
    pub(crate) nats: async_nats::Client,
    refusals: mpsc::UnboundedReceiver<String>,
}

impl Raw {
    /// Does it, and tells whether the server allowed it.
    pub(crate) async fn may(&mut self, deed: Deed<'_>) -> bool {
        /// No role may publish there, and the server refuses in the order in which it is asked.
        const FENCE: &str = "nobody.may";
        let subject = match deed {
            Deed::Publish(subject) => {
                self.nats.publish(subject.to_owned(), "".into()).await.expect("sent");
                subject
            }
            Deed::Subscribe(subject) => {
                let subscriber = self.nats.subscribe(subject.to_owned()).await.expect("sent");
                drop(subscriber);
                subject
            }
        };
        self.nats.publish(FENCE, "".into()).await.expect("sent");
        let mut is_allowed = true;
        loop {
            let refusal = timeout(PATIENCE, self.refusals.recv()).await.expect("in time");
            let refusal = refusal.expect("the connection lives");
            if refusal.contains(FENCE) {
                return is_allowed;
            }
            is_allowed &= !refusal.contains(&format!("\"{subject}\""));
        }
    }
}

fn seed(conf: &Path, role: Role) -> PathBuf {
    conf.join(role.name()).with_extension("nk")
}

/// The files as they are, without those that a site makes for itself.
fn copy_configuration(conf: &Path) {
    fs::create_dir(conf).expect("a folder");
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/nats");
    for name in ["nats.conf", "tls.conf", "accounts.conf"] {
        fs::copy(ours.join(name), conf.join(name)).expect("copied");
    }
}

/// What `site.conf.example` asks for.
fn write_site(conf: &Path, data: &Path, authority: &Authority, port: u16) {
    let Pair { cert, key } = authority.pair("127.0.0.1");
    let store = data.with_file_name("store");
    let text = format!(
        "SITE_NAME = \"nats-1\"\n\
         SITE_LISTEN = \"127.0.0.1:{port}\"\n\
         SITE_MONITOR = \"127.0.0.1:-1\"\n\
         SITE_STORE_DIR = {store:?}\n\
         SITE_STORE_SIZE = 16GB\n\
         SITE_STORE_KEY = \"0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0\"\n\
         SITE_CERT = {cert:?}\n\
         SITE_CERT_KEY = {key:?}\n\
         SITE_CA = {:?}\n",
        authority.ca()
    );
    fs::write(conf.join("site.conf"), text).expect("written");
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("bound").port()
}
