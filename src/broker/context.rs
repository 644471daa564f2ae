//! NATS contexts: named connection settings in files, kept with `nats context` (ADR-21).

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::credentials::{Credentials, Secret, Seed};
use super::options::ConnectOptions;
use crate::error::{Error, ErrorKind, Result};

const DEFAULT_URL: &str = "nats://127.0.0.1:4222";

/// How many contexts a message lists at most.
const LISTED: usize = 20;

/// The keys we use; files hold more. An empty value is the same as none.
#[derive(Default, Deserialize)]
#[serde(default)]
struct ContextFile {
    url: String,
    token: String,
    user: String,
    password: String,
    creds: String,
    nkey: String,
    user_jwt: String,
    user_seed: String,
    cert: String,
    key: String,
    ca: String,
    nsc: String,
    tls_first: bool,
    jetstream_domain: String,
    jetstream_api_prefix: String,
    inbox_prefix: String,
}

impl ConnectOptions {
    /// The settings of a NATS context file.
    ///
    /// Of several credentials in it, the first of user, creds, JWT, nkey and token is used.
    ///
    /// # Errors
    ///
    /// [`is_invalid`](crate::Error::is_invalid); the message says which file or key is wrong. The
    /// key `nsc` is not supported.
    pub fn from_context_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read(path).map_err(|error| unreadable(path, error))?;
        decode(&text)
            .map_err(|flaw| Error::invalid(format!("{} {flaw}", path.display())))?
            .options()
            .map_err(|error| {
                Error::invalid(format!("cannot use the NATS context {}", path.display()))
                    .because(error)
            })
    }

    /// The settings of the NATS context of this name, in `context/NAME.json` below `config_dir`; or
    /// of the one chosen with `nats context select`, and `None` if none is chosen.
    ///
    /// The `nats` command keeps contexts in `$XDG_CONFIG_HOME/nats`, or else `~/.config/nats`.
    ///
    /// # Errors
    ///
    /// [`is_not_found`](crate::Error::is_not_found) if there is no such context; the message lists
    /// those there are. [`is_invalid`](crate::Error::is_invalid) if this cannot be the name of one,
    /// and the errors of [`from_context_file`](Self::from_context_file).
    pub fn from_context(config_dir: &Path, name: Option<&str>) -> Result<Option<Self>> {
        let name = match name {
            Some(name) => name.to_owned(),
            None => match selected(config_dir)? {
                Some(name) => name,
                None => return Ok(None),
            },
        };
        if name.is_empty() || name.contains("..") || name.contains(['/', '\\']) {
            return Err(Error::invalid(format!("'{name}' cannot be the name of a NATS context")));
        }
        let path = config_dir.join("context").join(format!("{name}.json"));
        if !path.exists() {
            return Err(unknown(config_dir, &name));
        }
        Self::from_context_file(path).map(Some)
    }
}

/// The name of the context chosen with `nats context select`.
fn selected(config_dir: &Path) -> Result<Option<String>> {
    let path = config_dir.join("context.txt");
    match std::fs::read_to_string(&path) {
        Ok(name) => Ok(Some(name.trim().to_owned()).filter(|name| !name.is_empty())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(&path, error)),
    }
}

fn unknown(config_dir: &Path, name: &str) -> Error {
    let known = known(config_dir);
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    let folder = config_dir.join("context");
    Error::new(
        ErrorKind::NotFound,
        format!("there is no NATS context '{name}' in {}; known there: {known}", folder.display()),
    )
}

/// The names of the contexts that there are, the first of them.
fn known(config_dir: &Path) -> Vec<String> {
    let Ok(files) = std::fs::read_dir(config_dir.join("context")) else { return Vec::new() };
    let name = |file: std::fs::DirEntry| {
        let path = file.path();
        let is_context = path.extension().is_some_and(|extension| extension == "json");
        is_context.then(|| path.file_stem().map(|name| name.to_string_lossy().into_owned()))?
    };
    let mut names: Vec<_> = files.flatten().filter_map(name).collect();
    names.sort();
    if names.len() > LISTED {
        names.truncate(LISTED);
        names.push("…".into());
    }
    names
}

/// What is wrong is told in our words: the decoder's would quote the value, which may be a password.
fn decode(text: &[u8]) -> Result<ContextFile, String> {
    let mut json = serde_json::Deserializer::from_slice(text);
    serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let (line, column) = (error.inner().line(), error.inner().column());
        let key = error.path();
        if error.inner().is_data() {
            format!(
                "is no NATS context: the key '{key}' holds a value of another type (line {line})"
            )
        } else {
            format!("is no NATS context: it is not JSON at line {line}, column {column}")
        }
    })
}

/// The settings in the text of a context file.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn read_context(text: &[u8]) -> Option<ConnectOptions> {
    decode(text).ok()?.options().ok()
}

impl ContextFile {
    fn options(self) -> Result<ConnectOptions> {
        if !self.nsc.is_empty() {
            return Err(Error::invalid(
                "its key 'nsc' is not supported; write the credentials with \
                 `nsc generate creds` and set 'creds' to that file",
            ));
        }
        let url = if self.url.is_empty() { DEFAULT_URL } else { &self.url };
        let mut options = ConnectOptions::new(url)?;
        if let Some(credentials) = self.credentials()? {
            options.credentials = credentials;
        }
        Ok(self.jetstream(self.tls(options)?))
    }

    fn credentials(&self) -> Result<Option<Credentials>> {
        if !self.user.is_empty() {
            let password = Secret::new(&self.password);
            return Ok(Some(Credentials::User { user: self.user.clone(), password }));
        }
        if let Some(creds) = path(&self.creds) {
            return Ok(Some(Credentials::File(creds)));
        }
        let nkey = path(&self.nkey).map(Seed::File);
        if !self.user_jwt.is_empty() {
            let seed = Some(&self.user_seed).filter(|seed| !seed.is_empty());
            let seed =
                seed.map(|seed| Seed::Given(Secret::new(seed))).or(nkey).ok_or_else(|| {
                    Error::invalid("'user_jwt' needs 'user_seed' or 'nkey' beside it")
                })?;
            return Ok(Some(Credentials::Jwt { jwt: Secret::new(&self.user_jwt), seed }));
        }
        let token = Some(&self.token).filter(|token| !token.is_empty());
        let token = token.map(|token| Credentials::Token(Secret::new(token)));
        Ok(nkey.map(Credentials::Nkey).or(token))
    }

    fn tls(&self, mut options: ConnectOptions) -> Result<ConnectOptions> {
        if let Some(ca) = path(&self.ca) {
            options = options.root_ca(ca);
        }
        match (path(&self.cert), path(&self.key)) {
            (Some(cert), Some(key)) => options = options.client_cert(cert, key),
            (None, None) => {}
            (Some(_), None) => return Err(Error::invalid("'cert' needs 'key' beside it")),
            (None, Some(_)) => return Err(Error::invalid("'key' needs 'cert' beside it")),
        }
        Ok(if self.tls_first { options.tls_first() } else { options })
    }

    fn jetstream(&self, mut options: ConnectOptions) -> ConnectOptions {
        if !self.inbox_prefix.is_empty() {
            options = options.inbox_prefix(&self.inbox_prefix);
        }
        match (self.jetstream_domain.as_str(), self.jetstream_api_prefix.as_str()) {
            ("", "") => options,
            (domain, "") => options.js_domain(domain),
            (_, prefix) => options.js_api_prefix(prefix),
        }
    }
}

/// A path, where `~/` is the user's home folder.
fn path(text: &str) -> Option<PathBuf> {
    let home = text.strip_prefix("~/").and_then(|rest| Some(std::env::home_dir()?.join(rest)));
    home.or_else(|| (!text.is_empty()).then(|| text.into()))
}

fn unreadable(path: &Path, error: io::Error) -> Error {
    Error::invalid(format!("cannot read the NATS context {}", path.display())).because(error)
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    fn read(json: &str) -> Result<ConnectOptions> {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        std::fs::write(file.path(), json).expect("written");
        ConnectOptions::from_context_file(file.path())
    }

    #[track_caller]
    fn credentials(json: &str) -> Credentials {
        read(json).expect("valid").credentials
    }

    #[test]
    fn takes_the_first_credentials_in_order() {
        let user = Credentials::User { user: "u".into(), password: Secret::new("p") };
        let jwt = |seed| Credentials::Jwt { jwt: Secret::new("j"), seed };
        let inline = Seed::Given(Secret::new("s"));
        let cases = [
            (r#"{"user":"u","password":"p","creds":"/c","nkey":"/n","token":"t"}"#, user),
            (r#"{"creds":"/c","nkey":"/n","token":"t"}"#, Credentials::File("/c".into())),
            (r#"{"user_jwt":"j","user_seed":"s","nkey":"/n"}"#, jwt(inline)),
            (r#"{"user_jwt":"j","nkey":"/n"}"#, jwt(Seed::File("/n".into()))),
            (r#"{"nkey":"/n","token":"t"}"#, Credentials::Nkey(Seed::File("/n".into()))),
            (r#"{"creds":"","token":"t"}"#, Credentials::Token(Secret::new("t"))),
            (r#"{"url":"nats://t@a"}"#, Credentials::Token(Secret::new("t"))),
            ("{}", Credentials::None),
        ];
        for (json, expected) in cases {
            assert_eq!(credentials(json), expected, "{json}");
        }
    }

    #[test]
    fn takes_everything_else_and_ignores_unknown_keys() {
        let json = r#"{"description":"x","color_scheme":"y","url":"tls://a,tls://b","ca":"/ca",
            "cert":"/cert","key":"/key","tls_first":true,"jetstream_domain":"hub",
            "inbox_prefix":"_INBOX.me"}"#;
        let options = read(json).expect("valid");
        assert_eq!(options.servers.to_string(), "tls://a:4222,tls://b:4222");
        assert_eq!(options.api_prefix(), "$JS.hub.API");
        assert_eq!(options.inbox_prefix, "_INBOX.me");
        assert_eq!(options.tls.root_ca.as_deref(), Some(Path::new("/ca")));
        assert!(options.tls.client_cert.is_some() && options.tls.first);
    }

    #[test]
    fn says_what_is_wrong_with_a_file() {
        let cases = [
            (r#"{"nsc":"nsc://o/a/u"}"#, "nsc generate creds"),
            (r#"{"cert":"/c"}"#, "'key'"),
            (r#"{"user_jwt":"j"}"#, "'user_seed'"),
            (r#"{"url":"http://a"}"#, "'http://a'"),
        ];
        for (json, expected) in cases {
            let error = read(json).expect_err("invalid");
            let cause = error.source().expect("cause").to_string();
            assert!(error.is_invalid() && cause.contains(expected), "{json}: {cause}");
        }
        let cases = [
            (r#"{"url":7}"#, "the key 'url'"),
            (r#"{"token":4711}"#, "the key 'token'"),
            ("{\n  \"password\": \"4711", "line 2"),
            ("4711", "no NATS context"),
        ];
        for (json, expected) in cases {
            let error = read(json).expect_err("invalid");
            assert!(error.to_string().contains(expected), "{json}: {error}");
            assert!(!format!("{error:?}").contains("4711"), "{json}: {error:?}");
        }
    }

    #[test]
    fn finds_contexts_by_name() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let context = |name| ConnectOptions::from_context(dir.path(), name);
        assert!(context(None).expect("none").is_none());

        std::fs::create_dir(dir.path().join("context")).expect("folder");
        std::fs::write(dir.path().join("context/a.b.json"), r#"{"url":"h"}"#).expect("written");
        std::fs::write(dir.path().join("context.txt"), "a.b\n").expect("written");
        let options = context(None).expect("valid").expect("selected");
        assert_eq!(options.servers.to_string(), "nats://h:4222");

        assert!(context(Some("a.b")).expect("valid").is_some());
        let missing = context(Some("other")).expect_err("missing");
        assert!(missing.is_not_found() && missing.to_string().contains("a.b"), "{missing}");
        for bad in ["", "..", "../a", "x/y", "x\\y"] {
            assert!(context(Some(bad)).expect_err("bad name").is_invalid(), "{bad}");
        }
    }

    #[test]
    fn a_long_list_of_contexts_is_cut() {
        let dir = tempfile::tempdir().expect("temporary folder");
        assert!(known(dir.path()).is_empty());
        std::fs::create_dir(dir.path().join("context")).expect("folder");
        for number in 10..40 {
            let file = dir.path().join(format!("context/c{number}.json"));
            std::fs::write(file, "{}").expect("written");
        }
        std::fs::write(dir.path().join("context/README"), "").expect("written");
        let names = known(dir.path());
        assert_eq!((names.len(), names[0].as_str()), (LISTED + 1, "c10"));
        assert_eq!(names.last().map(String::as_str), Some("…"));
    }

    #[test]
    fn a_tilde_is_the_home_folder() {
        let home = std::env::home_dir().expect("home");
        assert_eq!(path("~/x.creds"), Some(home.join("x.creds")));
        assert_eq!(path("/~/x"), Some("/~/x".into()));
        assert_eq!(path(""), None);
    }
}
