//! How to reach NATS: servers, credentials, TLS. Read and checked before anything is connected.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_nats::ServerAddr;

use super::credentials::Credentials;
use crate::error::{Error, Result};

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// How to reach NATS. Reads no environment; [`ConnectOptions::from_context`] reads the contexts of
/// the `nats` command line.
///
/// ```
/// use tidemill::ConnectOptions;
///
/// let options = ConnectOptions::new("nats://a.example:4222,nats://b.example:4222")?
///     .creds_file("/etc/tidemill/worker.creds")
///     .inbox_prefix("_INBOX_worker");
/// # Ok::<(), tidemill::Error>(())
/// ```
#[derive(Clone)]
pub struct ConnectOptions {
    pub(super) servers: Vec<ServerAddr>,
    pub(super) name: Option<String>,
    pub(super) credentials: Credentials,
    pub(super) root_ca: Option<PathBuf>,
    pub(super) client_cert: Option<(PathBuf, PathBuf)>,
    pub(super) tls_first: bool,
    pub(super) require_tls: bool,
    pub(super) inbox_prefix: Option<String>,
    pub(super) js_prefix: String,
    pub(super) request_timeout: Duration,
    pub(super) connect_timeout: Duration,
    pub(super) keep_trying: bool,
}

impl ConnectOptions {
    /// One server or several, with commas between: `nats://host:4222`, `tls://host`, or just a host.
    ///
    /// # Errors
    /// `is_invalid`, naming the part that is no server's URL.
    pub fn new(urls: impl AsRef<str>) -> Result<Self> {
        Ok(Self {
            servers: parse_servers(urls.as_ref())?,
            name: None,
            credentials: Credentials::None,
            root_ca: None,
            client_cert: None,
            tls_first: false,
            require_tls: false,
            inbox_prefix: None,
            js_prefix: "$JS.API".to_owned(),
            request_timeout: DEFAULT_TIMEOUT,
            connect_timeout: DEFAULT_TIMEOUT,
            keep_trying: false,
        })
    }

    /// Other servers, with everything else as it is.
    ///
    /// # Errors
    /// As [`ConnectOptions::new`].
    pub fn servers(mut self, urls: impl AsRef<str>) -> Result<Self> {
        self.servers = parse_servers(urls.as_ref())?;
        Ok(self)
    }

    /// A name that the server shows for this connection.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// A user and a password.
    #[must_use]
    pub fn user_password(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.credentials = Credentials::Password(user.into(), password.into());
        self
    }

    /// A token.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.credentials = Credentials::Token(token.into());
        self
    }

    /// An nkey: the seed of a user (`SU…`), or a file that holds it.
    #[must_use]
    pub fn nkey(mut self, seed_or_file: impl Into<String>) -> Self {
        self.credentials = Credentials::Nkey(seed_or_file.into());
        self
    }

    /// A credentials file with a JWT and a seed. It is read anew for each connection, so that it can
    /// be replaced while the program runs.
    #[must_use]
    pub fn creds_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.credentials = Credentials::File(path.into());
        self
    }

    /// A user's JWT and its seed.
    #[must_use]
    pub fn jwt(mut self, jwt: impl Into<String>, seed: impl Into<String>) -> Self {
        self.credentials = Credentials::Jwt { jwt: jwt.into(), seed: seed.into() };
        self
    }

    /// Trusts the certificate authorities in this file.
    #[must_use]
    pub fn root_ca(mut self, path: impl Into<PathBuf>) -> Self {
        self.root_ca = Some(path.into());
        self
    }

    /// Shows this certificate to the server.
    #[must_use]
    pub fn client_cert(mut self, cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.client_cert = Some((cert.into(), key.into()));
        self
    }

    /// Starts with TLS instead of waiting for the server to ask for it.
    #[must_use]
    pub fn tls_first(mut self) -> Self {
        self.tls_first = true;
        self
    }

    /// Refuses a server without TLS.
    #[must_use]
    pub fn require_tls(mut self) -> Self {
        self.require_tls = true;
        self
    }

    /// What the subjects begin with on which answers come; permissions may ask for one.
    #[must_use]
    pub fn inbox_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.inbox_prefix = Some(prefix.into());
        self
    }

    /// The JetStream domain to use.
    #[must_use]
    pub fn js_domain(self, domain: impl AsRef<str>) -> Self {
        let prefix = format!("$JS.{}.API", domain.as_ref());
        self.js_api_prefix(prefix)
    }

    /// What the subjects of the JetStream API begin with. Default `$JS.API`.
    #[must_use]
    pub fn js_api_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.js_prefix = prefix.into().trim_end_matches('.').to_owned();
        self
    }

    /// How long an answer may take. Default 5 s.
    #[must_use]
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// How long connecting may take. Default 5 s.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Goes on in the background where no server answers at first, as a worker may want that starts
    /// before its broker.
    #[must_use]
    pub fn keep_trying(mut self) -> Self {
        self.keep_trying = true;
        self
    }

    /// The servers, without passwords that their URLs may carry.
    pub(super) fn shown_servers(&self) -> String {
        let shown =
            self.servers.iter().map(|server| format!("{}:{}", server.host(), server.port()));
        shown.collect::<Vec<_>>().join(", ")
    }

    /// Looks at every file before connecting, so that a mistake is named as what it is.
    pub(super) fn check_files(&self) -> Result<()> {
        let certs = self.client_cert.iter().flat_map(|(cert, key)| [cert, key]);
        for path in self.root_ca.iter().chain(certs) {
            readable(path)?;
        }
        self.credentials.check()
    }
}

fn readable(path: &Path) -> Result<()> {
    std::fs::File::open(path)
        .map(drop)
        .map_err(|error| Error::invalid(format!("cannot read {}", path.display())).because(error))
}

fn parse_servers(urls: &str) -> Result<Vec<ServerAddr>> {
    let servers: Vec<ServerAddr> = urls
        .split(',')
        .map(str::trim)
        .filter(|url| !url.is_empty())
        .map(|url| {
            let invalid = || {
                Error::invalid(format!(
                    "{:?} is no server's URL: use nats://host:4222 or tls://host:4222",
                    without_secret(url)
                ))
            };
            let server: ServerAddr =
                url.parse().map_err(|error: std::io::Error| invalid().because(error))?;
            if server.host().is_empty() { Err(invalid()) } else { Ok(server) }
        })
        .collect::<Result<_>>()?;
    if servers.is_empty() {
        return Err(Error::invalid("no server is given: use nats://host:4222"));
    }
    Ok(servers)
}

/// A URL without what may be a password in it.
fn without_secret(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{host}"),
        (None, Some((_, host))) => host.to_owned(),
        (_, None) => url.to_owned(),
    }
}

impl fmt::Debug for ConnectOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectOptions")
            .field("servers", &self.shown_servers())
            .field("credentials", &self.credentials)
            .field("root_ca", &self.root_ca)
            .field("inbox_prefix", &self.inbox_prefix)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_a_list() {
        let options = ConnectOptions::new("nats://a:4333, b,tls://c").expect("valid");
        assert_eq!(options.shown_servers(), "a:4333, b:4222, c:4222");
        for bad in ["", " , ", "http://a", "nats://"] {
            assert!(ConnectOptions::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn no_secret_shows() {
        let options =
            ConnectOptions::new("nats://u:hush@a").expect("valid").user_password("u", "hush");
        assert!(!format!("{options:?}").contains("hush"), "{options:?}");
        let error = ConnectOptions::new("http://u:hush@a").expect_err("no such scheme");
        assert!(!format!("{error:?}").contains("hush"), "{error:?}");
    }

    #[test]
    fn missing_files_are_named() {
        let options = ConnectOptions::new("a").expect("valid").root_ca("/nowhere/ca.pem");
        let error = options.check_files().expect_err("missing");
        assert!(error.to_string().contains("/nowhere/ca.pem"));
    }
}
