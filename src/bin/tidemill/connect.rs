//! How to reach NATS, by the flags and environment names of the `nats` command line.
//!
//! Flags go before the environment, and both before a context.

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::time::Duration;

use clap::Args;
use etcetera::BaseStrategy;
use tidemill::ConnectOptions;

use crate::cli::duration;
use crate::exit::UsageError;
use crate::login::{Given, Login};

const DEFAULT_URL: &str = "nats://127.0.0.1:4222";

/// Where NATS is and who we are there. An empty value is none, as variables in a container's
/// environment often are.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct ConnectArgs {
    /// Server URLs, with commas between
    #[arg(
        short,
        long,
        global = true,
        env = "NATS_URL",
        value_name = "URL",
        hide_env_values = true
    )]
    server: Option<Given>,
    #[command(flatten)]
    login: Login,
    /// Client certificate; needs --tlskey
    #[arg(long, global = true, env = "NATS_CERT", value_name = "FILE")]
    tlscert: Option<OsString>,
    /// Key of the client certificate
    #[arg(long, global = true, env = "NATS_KEY", value_name = "FILE")]
    tlskey: Option<OsString>,
    /// Certificate authorities to trust instead of the platform's
    #[arg(long, global = true, env = "NATS_CA", value_name = "FILE")]
    tlsca: Option<OsString>,
    /// Start with TLS before the server asks for it
    #[arg(long, global = true, alias = "tls-first")]
    tlsfirst: bool,
    /// How long to wait for an answer; 5s unless set
    #[arg(long, global = true, env = "NATS_TIMEOUT", value_parser = patience, value_name = "TIME")]
    nats_timeout: Option<Duration>,
    /// A context of the nats command line, or a context file
    #[arg(long, global = true, env = "NATS_CONTEXT", value_name = "NAME|FILE")]
    context: Option<String>,
    /// Use no context, not even the selected one
    #[arg(long, global = true)]
    no_context: bool,
    /// JetStream domain
    #[arg(long, global = true, env = "NATS_JS_DOMAIN", value_name = "DOMAIN")]
    js_domain: Option<String>,
    /// Prefix of the JetStream API
    #[arg(long, global = true, env = "NATS_JS_API_PREFIX", value_name = "PREFIX")]
    js_api_prefix: Option<String>,
    /// Prefix of the subjects on which answers come
    #[arg(long, global = true, env = "NATS_INBOX_PREFIX", value_name = "PREFIX")]
    inbox_prefix: Option<String>,
    /// Name of the connection
    #[arg(
        long,
        global = true,
        value_name = "NAME",
        default_value = "tidemill",
        hide_default_value = true
    )]
    connection_name: String,
}

impl ConnectArgs {
    /// See [`Login::with_seed_of_environment`].
    pub(crate) fn with_seed_of_environment(mut self) -> Self {
        self.login = self.login.with_seed_of_environment();
        self
    }

    /// What the flags and the environment say, over what the context says.
    pub(crate) fn options(&self) -> anyhow::Result<ConnectOptions> {
        let server = self.server();
        let options = match (self.context()?, server) {
            (Some(context), Some(url)) => context.servers(url)?,
            (Some(context), None) => context,
            (None, url) => ConnectOptions::new(url.unwrap_or(DEFAULT_URL))?,
        };
        let url_has_login = server.is_some_and(|url| url.contains('@'));
        let options = self.login.apply(options, url_has_login, |name| env::var_os(name))?;
        Ok(self.jetstream(self.tls(options)?).name(&self.connection_name))
    }

    fn server(&self) -> Option<&str> {
        said(self.server.as_ref()).map(Given::reveal)
    }

    fn context(&self) -> anyhow::Result<Option<ConnectOptions>> {
        let name = said(self.context.as_ref()).map(String::as_str);
        // A server that is named has nothing to do with the context that happens to be selected.
        if self.no_context || (name.is_none() && self.server().is_some()) {
            return Ok(None);
        }
        if let Some(file) = name.filter(|name| name.contains(std::path::is_separator)) {
            return Ok(Some(ConnectOptions::from_context_file(file)?));
        }
        let Ok(folders) = etcetera::choose_base_strategy() else {
            let lost =
                "there is no home folder to look for NATS contexts in; give a context's file";
            return name.map_or(Ok(None), |_| Err(UsageError(lost.into()).into()));
        };
        Ok(ConnectOptions::from_context(&folders.config_dir().join("nats"), name)?)
    }

    fn tls(&self, mut options: ConnectOptions) -> Result<ConnectOptions, UsageError> {
        let cert = said(self.tlscert.as_ref()).map(Path::new);
        let key = said(self.tlskey.as_ref()).map(Path::new);
        options = match (cert, key) {
            (Some(cert), Some(key)) => options.client_cert(cert, key),
            (None, None) => options,
            (Some(_), None) => return Err(needs("--tlscert (NATS_CERT)", "--tlskey (NATS_KEY)")),
            (None, Some(_)) => return Err(needs("--tlskey (NATS_KEY)", "--tlscert (NATS_CERT)")),
        };
        if let Some(ca) = said(self.tlsca.as_ref()) {
            options = options.root_ca(ca);
        }
        Ok(if self.tlsfirst { options.tls_first() } else { options })
    }

    fn jetstream(&self, mut options: ConnectOptions) -> ConnectOptions {
        if let Some(timeout) = self.nats_timeout.filter(|timeout| !timeout.is_zero()) {
            options = options.request_timeout(timeout).connect_timeout(timeout);
        }
        if let Some(domain) = said(self.js_domain.as_ref()) {
            options = options.js_domain(domain);
        }
        if let Some(prefix) = said(self.js_api_prefix.as_ref()) {
            options = options.js_api_prefix(prefix);
        }
        if let Some(prefix) = said(self.inbox_prefix.as_ref()) {
            options = options.inbox_prefix(prefix);
        }
        options
    }
}

/// A value, unless it is empty.
pub(crate) fn said<T: AsRef<OsStr>>(value: Option<&T>) -> Option<&T> {
    value.filter(|value| !value.as_ref().is_empty())
}

pub(crate) fn needs(given: &str, missing: &str) -> UsageError {
    UsageError(format!("{given} needs {missing}"))
}

/// A duration; nothing, like zero, leaves what is.
fn patience(text: &str) -> Result<Duration, String> {
    if text.is_empty() { Ok(Duration::ZERO) } else { duration(text) }
}
