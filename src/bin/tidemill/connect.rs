//! How to reach NATS, by the flags and environment names of the `nats` command line.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use etcetera::BaseStrategy;
use tidemill::ConnectOptions;

use crate::cli::duration;

const DEFAULT_URL: &str = "nats://127.0.0.1:4222";

/// Where NATS is and who we are there.
#[derive(Debug, Args)]
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
    server: Option<String>,
    /// User name (or a token, without a password)
    #[arg(long, global = true, env = "NATS_USER", hide_env_values = true)]
    user: Option<String>,
    /// Password
    #[arg(long, global = true, env = "NATS_PASSWORD", hide_env_values = true)]
    password: Option<String>,
    /// Token
    #[arg(long, global = true, env = "NATS_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Credentials file
    #[arg(long, global = true, env = "NATS_CREDS", value_name = "FILE")]
    creds: Option<PathBuf>,
    /// User nkey: a seed or a file with one
    #[arg(
        long,
        global = true,
        env = "NATS_NKEY",
        value_name = "SEED|FILE",
        hide_env_values = true
    )]
    nkey: Option<String>,
    /// User JWT; needs --seed
    #[arg(long, global = true, env = "NATS_JWT", hide_env_values = true, requires = "seed")]
    jwt: Option<String>,
    /// Seed of the user JWT
    #[arg(long, global = true, env = "NATS_SEED", hide_env_values = true)]
    seed: Option<String>,
    /// Client certificate; needs --tlskey
    #[arg(long, global = true, env = "NATS_CERT", value_name = "FILE", requires = "tlskey")]
    tlscert: Option<PathBuf>,
    /// Key of the client certificate
    #[arg(long, global = true, env = "NATS_KEY", value_name = "FILE")]
    tlskey: Option<PathBuf>,
    /// Certificate authorities to trust
    #[arg(long, global = true, env = "NATS_CA", value_name = "FILE")]
    tlsca: Option<PathBuf>,
    /// Start with TLS before the server asks for it
    #[arg(long, global = true, alias = "tls-first")]
    tlsfirst: bool,
    /// How long to wait for an answer
    #[arg(long, global = true, env = "NATS_TIMEOUT", value_parser = duration, value_name = "TIME")]
    nats_timeout: Option<Duration>,
    /// A context of the nats command line
    #[arg(long, global = true, env = "NATS_CONTEXT", value_name = "NAME")]
    context: Option<String>,
    /// Ignore the selected context
    #[arg(long, global = true, conflicts_with = "context")]
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
    /// Flags and environment go before an explicit context, which goes before the selected one.
    pub(crate) fn options(&self) -> anyhow::Result<ConnectOptions> {
        let mut options = match self.context_options()? {
            // A server that is named has nothing to do with the context that happens to be selected.
            Some(_) if self.server.is_some() && self.context.is_none() => None,
            found => found,
        }
        .map_or_else(|| ConnectOptions::new(self.url()), Ok)?;
        if let (Some(url), Some(_)) = (&self.server, &self.context) {
            options = options.servers(url)?;
        }
        Ok(self.over(options).name(&self.connection_name))
    }

    fn url(&self) -> &str {
        self.server.as_deref().unwrap_or(DEFAULT_URL)
    }

    fn context_options(&self) -> anyhow::Result<Option<ConnectOptions>> {
        if self.no_context {
            return Ok(None);
        }
        let folder = etcetera::choose_base_strategy()
            .context("there is no home folder to look for NATS contexts in")?
            .config_dir()
            .join("nats");
        Ok(ConnectOptions::from_context(&folder, self.context.as_deref())?)
    }

    /// What the flags say, over what is there.
    fn over(&self, mut options: ConnectOptions) -> ConnectOptions {
        options = match (&self.user, &self.password) {
            (Some(user), Some(password)) => options.user_password(user, password),
            // As the nats command line has it.
            (Some(token), None) => options.token(token),
            (None, _) => options,
        };
        if let Some(token) = &self.token {
            options = options.token(token);
        }
        if let Some(nkey) = &self.nkey {
            options = options.nkey(nkey);
        }
        if let (Some(jwt), Some(seed)) = (&self.jwt, &self.seed) {
            options = options.jwt(jwt, seed);
        }
        if let Some(creds) = &self.creds {
            options = options.creds_file(creds);
        }
        if let (Some(cert), Some(key)) = (&self.tlscert, &self.tlskey) {
            options = options.client_cert(cert, key);
        }
        if let Some(ca) = &self.tlsca {
            options = options.root_ca(ca);
        }
        if self.tlsfirst {
            options = options.tls_first();
        }
        if let Some(timeout) = self.nats_timeout {
            options = options.request_timeout(timeout).connect_timeout(timeout);
        }
        if let Some(domain) = &self.js_domain {
            options = options.js_domain(domain);
        }
        if let Some(prefix) = &self.js_api_prefix {
            options = options.js_api_prefix(prefix);
        }
        if let Some(prefix) = &self.inbox_prefix {
            options = options.inbox_prefix(prefix);
        }
        options
    }
}
