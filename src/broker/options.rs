//! How to reach the broker: where it is, who we are, what to trust, how long to wait.

use std::path::PathBuf;
use std::time::Duration;

use super::credentials::{Credentials, Secret, Seed};
use super::servers::Servers;
use super::tls::{CertFiles, Tls};
use crate::error::{Error, Result};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How to connect to NATS.
///
/// Nothing is taken from the environment. Files are read when connecting, those with credentials
/// and certificates again at every reconnect, so they may be renewed meanwhile. Of several ways to
/// authenticate, the one set last is used. `Debug` shows no secrets.
///
/// ```
/// use tidemill::ConnectOptions;
///
/// let options = ConnectOptions::new("tls://nats-1.example.com,tls://nats-2.example.com")?
///     .name("billing")
///     .creds_file("/run/secrets/billing.creds");
/// # Ok::<(), tidemill::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    pub(super) servers: Servers,
    pub(super) credentials: Credentials,
    pub(super) tls: Tls,
    pub(super) name: Option<String>,
    pub(super) inbox_prefix: String,
    pub(super) request_timeout: Duration,
    pub(super) connect_timeout: Duration,
    pub(super) keep_trying: bool,
    js_api_prefix: String,
}

impl ConnectOptions {
    /// Options for one server, or for several of one cluster, separated by commas.
    ///
    /// A URL is `nats://HOST` or `tls://HOST`, with `:PORT` if that is not 4222. One with `tls://`
    /// makes TLS a must for all. Credentials in a URL, `USER:PASSWORD@HOST` or `TOKEN@HOST`, are
    /// used for all servers.
    ///
    /// # Errors
    ///
    /// [`is_invalid`](crate::Error::is_invalid), naming the URL that is wrong.
    pub fn new(servers: impl AsRef<str>) -> Result<Self> {
        let (servers, credentials) = Servers::parse(servers.as_ref())?;
        Ok(Self {
            servers,
            credentials: credentials.unwrap_or(Credentials::None),
            tls: Tls::default(),
            name: None,
            inbox_prefix: "_INBOX".to_owned(),
            request_timeout: REQUEST_TIMEOUT,
            connect_timeout: CONNECT_TIMEOUT,
            keep_trying: false,
            js_api_prefix: "$JS.API".to_owned(),
        })
    }

    /// Replaces the servers, and the credentials if the new URLs carry some.
    ///
    /// # Errors
    ///
    /// Those of [`new`](Self::new).
    pub fn servers(mut self, servers: impl AsRef<str>) -> Result<Self> {
        let (servers, credentials) = Servers::parse(servers.as_ref())?;
        self.servers = servers;
        self.credentials = credentials.unwrap_or(self.credentials);
        Ok(self)
    }

    /// What the server calls this connection in its logs and reports. None by default.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Authenticates with a name and a password.
    #[must_use]
    pub fn user_password(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.credentials = Credentials::User { user: user.into(), password: Secret::new(password) };
        self
    }

    /// Authenticates with a token.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.credentials = Credentials::Token(Secret::new(token));
        self
    }

    /// Authenticates with an nkey: its seed (`SU…`), or a file that holds that.
    #[must_use]
    pub fn nkey(mut self, seed_or_file: impl Into<String>) -> Self {
        self.credentials = Credentials::Nkey(Seed::given(seed_or_file.into()));
        self
    }

    /// Authenticates with a credentials file: a user JWT with its seed, as `nsc` writes them.
    #[must_use]
    pub fn creds_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.credentials = Credentials::File(path.into());
        self
    }

    /// Authenticates with a user JWT and the nkey it was issued for: its seed (`SU…`), or a file that
    /// holds that.
    #[must_use]
    pub fn jwt(mut self, jwt: impl Into<String>, seed_or_file: impl Into<String>) -> Self {
        let seed = Seed::given(seed_or_file.into());
        self.credentials = Credentials::Jwt { jwt: Secret::new(jwt), seed };
        self
    }

    /// Trusts the CA certificates in this PEM file instead of the platform's.
    #[must_use]
    pub fn root_ca(mut self, path: impl Into<PathBuf>) -> Self {
        self.tls.root_ca = Some(path.into());
        self
    }

    /// Shows the server a certificate: PEM files of the chain and of the private key.
    #[must_use]
    pub fn client_cert(mut self, cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.tls.client_cert = Some(CertFiles { cert: cert.into(), key: key.into() });
        self
    }

    /// Begins with the TLS handshake, for servers with `handshake_first`. Implies TLS.
    #[must_use]
    pub fn tls_first(mut self) -> Self {
        self.tls.first = true;
        self.tls.required = true;
        self
    }

    /// Refuses servers without TLS. Without this, the server decides.
    #[must_use]
    pub fn require_tls(mut self) -> Self {
        self.tls.required = true;
        self
    }

    /// Where answers are sent; `_INBOX` by default. The user needs the right to subscribe to
    /// `PREFIX.>`.
    #[must_use]
    pub fn inbox_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.inbox_prefix = prefix.into();
        self
    }

    /// Uses the JetStream of another domain, such as a leaf node's hub.
    #[must_use]
    pub fn js_domain(self, domain: impl AsRef<str>) -> Self {
        self.js_api_prefix(format!("$JS.{}.API", domain.as_ref()))
    }

    /// Uses a JetStream imported from another account under this prefix instead of `$JS.API`.
    #[must_use]
    pub fn js_api_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.js_api_prefix = prefix.into().trim_end_matches('.').to_owned();
        self
    }

    /// How long to wait for an answer; 5 s by default.
    #[must_use]
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// How long to try each server when connecting; 5 s by default.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Goes on trying, without end, when no server can be reached at first.
    ///
    /// Connecting then returns at once, and requests fail until a server is there. Without this,
    /// connecting fails; a connection that was there once is always restored.
    #[must_use]
    pub fn keep_trying(mut self) -> Self {
        self.keep_trying = true;
        self
    }

    /// What JetStream's API subjects begin with: `$JS.API` unless set otherwise.
    pub fn api_prefix(&self) -> &str {
        &self.js_api_prefix
    }

    /// Refuses what would only be noticed as requests that are never answered.
    pub(super) fn check(&self) -> Result<()> {
        check_prefix("inbox prefix", &self.inbox_prefix)?;
        check_prefix("JetStream API prefix", &self.js_api_prefix)?;
        self.credentials.check()
    }
}

fn check_prefix(what: &str, prefix: &str) -> Result<()> {
    let bad = |token: &str| {
        token.is_empty() || token.contains(|c: char| c.is_whitespace() || matches!(c, '*' | '>'))
    };
    if prefix.split('.').any(bad) {
        return Err(Error::invalid(format!(
            "the {what} '{prefix}' is not a subject without wildcards"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> ConnectOptions {
        ConnectOptions::new("nats://a").expect("valid")
    }

    #[test]
    fn prefixes_the_api() {
        assert_eq!(options().api_prefix(), "$JS.API");
        assert_eq!(options().js_domain("hub").api_prefix(), "$JS.hub.API");
        assert_eq!(options().js_api_prefix("jobs.api").api_prefix(), "jobs.api");
    }

    #[test]
    fn refuses_prefixes_that_cannot_work() {
        for bad in ["", "a..b", ".a", "a.*", ">", "a b"] {
            assert!(options().js_api_prefix(bad).check().is_err(), "{bad}");
            assert!(options().inbox_prefix(bad).check().is_err(), "{bad}");
        }
        assert!(options().js_domain("a b").check().is_err());
        assert!(options().inbox_prefix("_INBOX.billing").check().is_ok());
    }

    #[test]
    fn debug_shows_servers_and_no_secrets() {
        let url = ConnectOptions::new("nats://me:hunter2@a").expect("valid");
        let all = [
            url.clone(),
            options().user_password("me", "hunter2"),
            options().token("hunter2"),
            options().nkey("SUHUNTER2"),
            options().jwt("hunter2", "SUHUNTER2"),
        ];
        assert!(!format!("{all:?}").to_lowercase().contains("hunter2"));
        assert!(format!("{url:?}").contains("nats://a:4222"));
    }

    #[test]
    fn replaced_servers_keep_the_credentials_unless_they_bring_some() {
        let kept = options().token("t").servers("b").expect("valid");
        assert_eq!(kept.credentials, Credentials::Token(Secret::new("t")));
        let brought = options().token("t").servers("u@b").expect("valid");
        assert_eq!(brought.credentials, Credentials::Token(Secret::new("u")));
    }
}
