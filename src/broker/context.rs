//! The contexts of the `nats` command line (ADR-21): files that say how to reach a server.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::options::ConnectOptions;
use crate::error::{Error, ErrorKind, Result};

const DEFAULT_URL: &str = "nats://127.0.0.1:4222";

/// What of a context file matters here; the rest is ignored.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Context {
    url: String,
    token: String,
    user: String,
    password: String,
    creds: String,
    nkey: String,
    cert: String,
    key: String,
    ca: String,
    nsc: String,
    jetstream_domain: String,
    jetstream_api_prefix: String,
    inbox_prefix: String,
    user_jwt: String,
    user_seed: String,
    tls_first: bool,
}

impl ConnectOptions {
    /// Reads a context of the `nats` command line by its name, or the selected one. `config_dir` is
    /// the folder `nats` in the user's configuration folder, such as `~/.config/nats`.
    ///
    /// `Ok(None)` where no name is given and none is selected.
    ///
    /// # Errors
    /// `is_not_found` where there is no such context, `is_invalid` where its file does not read.
    pub fn from_context(config_dir: &Path, name: Option<&str>) -> Result<Option<Self>> {
        let selected;
        let name = match name {
            Some(name) => name,
            None => {
                selected =
                    std::fs::read_to_string(config_dir.join("context.txt")).unwrap_or_default();
                selected.trim()
            }
        };
        if name.is_empty() {
            return Ok(None);
        }
        if name.contains("..") || name.contains(['/', '\\']) {
            return Err(Error::invalid(format!("{name:?} is no name of a context")));
        }
        let path = config_dir.join("context").join(format!("{name}.json"));
        if !path.exists() {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("there is no NATS context {name:?}: {} is missing", path.display()),
            ));
        }
        Self::from_context_file(&path).map(Some)
    }

    /// Reads a context file of the `nats` command line.
    ///
    /// # Errors
    /// `is_invalid` where it does not read, or asks for something that is not supported.
    pub fn from_context_file(path: &Path) -> Result<Self> {
        let wrong = |why: &str| Error::invalid(format!("NATS context {} {why}", path.display()));
        let text = std::fs::read_to_string(path)
            .map_err(|error| wrong("cannot be read").because(error))?;
        let context: Context =
            serde_json::from_str(&text).map_err(|error| wrong("does not decode").because(error))?;
        if !context.nsc.is_empty() {
            return Err(wrong(
                "names an nsc profile, which is not supported: generate a credentials file (nsc \
                 generate creds) and set it as creds",
            ));
        }
        context.into_options()
    }
}

impl Context {
    fn into_options(self) -> Result<ConnectOptions> {
        let url = if self.url.is_empty() { DEFAULT_URL } else { &self.url };
        let mut options = ConnectOptions::new(url)?;
        // In the order of the nats command line.
        options = if !self.user.is_empty() {
            options.user_password(&self.user, &self.password)
        } else if !self.creds.is_empty() {
            options.creds_file(home(&self.creds))
        } else if !self.nkey.is_empty() {
            options.nkey(home(&self.nkey).to_string_lossy())
        } else if !self.user_jwt.is_empty() {
            options.jwt(&self.user_jwt, &self.user_seed)
        } else if !self.token.is_empty() {
            options.token(&self.token)
        } else {
            options
        };
        if !self.ca.is_empty() {
            options = options.root_ca(home(&self.ca));
        }
        if !self.cert.is_empty() {
            options = options.client_cert(home(&self.cert), home(&self.key));
        }
        if self.tls_first {
            options = options.tls_first();
        }
        if !self.inbox_prefix.is_empty() {
            options = options.inbox_prefix(&self.inbox_prefix);
        }
        if !self.jetstream_domain.is_empty() {
            options = options.js_domain(&self.jetstream_domain);
        }
        if !self.jetstream_api_prefix.is_empty() {
            options = options.js_api_prefix(&self.jetstream_api_prefix);
        }
        Ok(options)
    }
}

/// A path in which `~/` stands for the user's home.
fn home(path: &str) -> PathBuf {
    match (path.strip_prefix("~/"), std::env::home_dir()) {
        (Some(rest), Some(home)) => home.join(rest),
        (None, _) | (Some(_), None) => PathBuf::from(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(contexts: &[(&str, &str)], selected: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("context")).expect("a folder");
        for (name, text) in contexts {
            let path = folder.path().join("context").join(format!("{name}.json"));
            std::fs::write(path, text).expect("written");
        }
        std::fs::write(folder.path().join("context.txt"), selected).expect("written");
        folder
    }

    #[test]
    fn the_named_context_goes_before_the_selected_one() {
        let folder = folder(
            &[
                ("a", r#"{"url":"nats://a","description":"x","color_scheme":"blue"}"#),
                ("b", r#"{"url":"nats://b:1,nats://c:2","token":"t"}"#),
            ],
            "a\n",
        );
        let read = |name| ConnectOptions::from_context(folder.path(), name).expect("reads");
        assert_eq!(read(None).expect("selected").shown_servers(), "a:4222");
        let named = read(Some("b")).expect("named");
        assert_eq!(named.shown_servers(), "b:1, c:2");
        assert!(format!("{named:?}").contains("token"));
    }

    #[test]
    fn none_selected_is_no_mistake_and_a_missing_one_is() {
        let folder = folder(&[], "");
        assert!(ConnectOptions::from_context(folder.path(), None).expect("fine").is_none());
        let missing = ConnectOptions::from_context(folder.path(), Some("x")).expect_err("missing");
        assert!(missing.is_not_found());
        for bad in ["../x", "a/b"] {
            assert!(ConnectOptions::from_context(folder.path(), Some(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_domain_shapes_the_api_prefix() {
        let folder = folder(&[("d", r#"{"jetstream_domain":"hub","user":"u","token":"t"}"#)], "d");
        let options = ConnectOptions::from_context(folder.path(), None).expect("reads").expect("d");
        assert_eq!(options.js_prefix, "$JS.hub.API");
        assert_eq!(options.shown_servers(), "127.0.0.1:4222");
        assert!(format!("{options:?}").contains("user and password"));
    }
}
