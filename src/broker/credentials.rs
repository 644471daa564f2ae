//! How a connection proves who it is.
//!
//! Files are read at every connect and reconnect: short-lived credentials are replaced on disk while
//! the process runs, and those read at its start would be refused from then on.

use std::fmt;
use std::path::{Path, PathBuf};

use nkeys::KeyPair;

use crate::error::{Error, Result};

/// Text that `Debug` does not show.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Secret(String);

impl Secret {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// What a server is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Credentials {
    /// Nothing, for servers that ask for nothing.
    None,
    User {
        user: String,
        password: Secret,
    },
    Token(Secret),
    Nkey(Seed),
    /// A file with a JWT and its seed.
    File(PathBuf),
    Jwt {
        jwt: Secret,
        seed: Seed,
    },
}

/// The private half of an nkey.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seed {
    /// A seed, right or mistyped, or the bare name of a file with one. Never shown.
    Given(Secret),
    /// A file with one.
    File(PathBuf),
}

impl Credentials {
    /// Finds out before connecting whether files can be read and keys can sign.
    pub(super) fn check(&self) -> Result<()> {
        self.answer(b"nonce").map(drop)
    }

    /// The answer to a server's challenge. Reads files.
    pub(super) fn answer(&self, nonce: &[u8]) -> Result<async_nats::Auth> {
        let mut answer = async_nats::Auth::new();
        match self {
            Self::None => {}
            Self::User { user, password } => {
                answer.username = Some(user.clone());
                answer.password = Some(password.0.clone());
            }
            Self::Token(token) => answer.token = Some(token.0.clone()),
            Self::Nkey(seed) => {
                let key = seed.key()?;
                answer.nkey = Some(key.public_key());
                answer.signature = Some(signature(&key, nonce)?);
            }
            Self::File(path) => {
                let (jwt, key) = read_creds(path)?;
                answer.jwt = Some(jwt);
                answer.signature = Some(signature(&key, nonce)?);
            }
            Self::Jwt { jwt, seed } => {
                answer.jwt = Some(jwt.0.clone());
                answer.signature = Some(signature(&seed.key()?, nonce)?);
            }
        }
        Ok(answer)
    }

    /// The user JWT that a server is shown, if there is one. Reads files.
    pub(super) fn jwt(&self) -> Option<String> {
        match self {
            Self::Jwt { jwt, .. } => Some(jwt.0.clone()),
            Self::File(path) => read_creds(path).ok().map(|(jwt, _)| jwt),
            Self::None | Self::User { .. } | Self::Token(_) | Self::Nkey(_) => None,
        }
    }

    /// What they are, without what is secret in them.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::None => "a client without credentials".into(),
            Self::User { user, .. } => format!("user '{user}' with this password"),
            Self::Token(_) => "this token".into(),
            Self::Nkey(seed) => match seed.key() {
                Ok(key) => format!("the nkey {}", key.public_key()),
                Err(_) => "this nkey".into(),
            },
            Self::File(path) => format!("the credentials in {}", path.display()),
            Self::Jwt { .. } => "this user JWT".into(),
        }
    }
}

impl Seed {
    /// Only what cannot be a seed, however mistyped, is a path that may be shown.
    pub(super) fn given(seed_or_file: &str) -> Self {
        let text = seed_or_file.trim();
        if text.contains(['/', '\\', '.']) {
            Self::File(text.into())
        } else {
            Self::Given(Secret::new(text))
        }
    }

    fn key(&self) -> Result<KeyPair> {
        match self {
            Self::File(path) => read_nkey(path),
            Self::Given(text) => match user_key(&text.0) {
                Some(key) => Ok(key),
                None if Path::new(&text.0).is_file() => read_nkey(Path::new(&text.0)),
                None => Err(Error::invalid(
                    "the nkey given is neither a user's seed (SU…) nor the name of a file with one",
                )),
            },
        }
    }
}

/// A user's key; the seeds of accounts and operators are of no use here.
fn user_key(seed: &str) -> Option<KeyPair> {
    KeyPair::from_seed(seed).ok().filter(|key| key.public_key().starts_with('U'))
}

fn signature(key: &KeyPair, nonce: &[u8]) -> Result<Vec<u8>> {
    key.sign(nonce)
        .map_err(|error| Error::invalid("cannot sign with the nkey; is it a seed?").because(error))
}

fn read_creds(path: &Path) -> Result<(String, KeyPair)> {
    let text = read(path, "credentials file")?;
    let jwt = block(&text, "NATS USER JWT");
    let seed = block(&text, "USER NKEY SEED");
    match (jwt, seed) {
        (Some(jwt), Some(seed)) => match user_key(seed) {
            Some(key) => Ok((jwt.to_owned(), key)),
            None => Err(malformed(path, "holds no valid user seed (SU…)")),
        },
        (None, _) | (_, None) => {
            Err(malformed(path, "is no credentials file: it must hold a user JWT and its seed"))
        }
    }
}

fn read_nkey(path: &Path) -> Result<KeyPair> {
    let text = read(path, "nkey file")?;
    let bare = || text.lines().map(str::trim).find(|line| line.starts_with("SU"));
    let seed = block(&text, "USER NKEY SEED")
        .or_else(bare)
        .ok_or_else(|| malformed(path, "holds no user's seed (SU…)"))?;
    user_key(seed).ok_or_else(|| malformed(path, "holds no valid user seed (SU…)"))
}

/// The line after `-----BEGIN <label>-----`.
fn block<'a>(text: &'a str, label: &str) -> Option<&'a str> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.find(|line| line.starts_with("---") && line.contains(&format!("BEGIN {label}")))?;
    lines.next()
}

fn read(path: &Path, what: &str) -> Result<String> {
    std::fs::read_to_string(path).map_err(|error| {
        Error::invalid(format!("cannot read the {what} {}", path.display())).because(error)
    })
}

fn malformed(path: &Path, how: &str) -> Error {
    Error::invalid(format!("the file {} {how}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        std::fs::write(file.path(), text).expect("written");
        file
    }

    fn creds(jwt: &str, seed: &str) -> String {
        format!(
            "-----BEGIN NATS USER JWT-----\r\n{jwt}\r\n------END NATS USER JWT------\r\n\r\n\
             ** IMPORTANT **\r\n-----BEGIN USER NKEY SEED-----\r\n{seed}\r\n\
             ------END USER NKEY SEED------\r\n"
        )
    }

    #[test]
    fn signs_with_the_file_as_it_is_now() {
        let key = KeyPair::new_user();
        let seed = key.seed().expect("seed");
        let file = file(&creds("first", &seed));
        let credentials = Credentials::File(file.path().into());
        assert_eq!(credentials.answer(b"n").expect("answer").jwt.as_deref(), Some("first"));

        std::fs::write(file.path(), creds("second", &seed)).expect("written");
        let answer = credentials.answer(b"n").expect("answer");
        assert_eq!(answer.jwt.as_deref(), Some("second"));
        key.verify(b"n", &answer.signature.expect("signature")).expect("signed");
    }

    #[test]
    fn reads_bare_and_decorated_nkey_files() {
        let key = KeyPair::new_user();
        let seed = key.seed().expect("seed");
        for text in [seed.clone(), format!("\n{seed}\n"), creds("jwt", &seed)] {
            let file = file(&text);
            let answer =
                Credentials::Nkey(Seed::File(file.path().into())).answer(b"n").expect("answer");
            assert_eq!(answer.nkey, Some(key.public_key()));
        }
    }

    #[test]
    fn says_which_file_is_wrong() {
        let missing = Credentials::File("/no/such.creds".into()).check().expect_err("missing");
        assert!(missing.to_string().contains("/no/such.creds"));
        for text in ["", "-----BEGIN NATS USER JWT-----\nx\n", &creds("jwt", "SUNOSEED")] {
            let file = file(text);
            let path = file.path().display().to_string();
            let error = Credentials::File(file.path().into()).check().expect_err("malformed");
            assert!(error.is_invalid() && error.to_string().contains(&path), "{error}");
        }
    }

    #[test]
    fn shows_no_secret() {
        let credentials = [
            Credentials::User { user: "me".into(), password: Secret::new("hunter2") },
            Credentials::Token(Secret::new("hunter2")),
            Credentials::Jwt { jwt: Secret::new("hunter2"), seed: Seed::given("hunter2") },
        ];
        assert!(!format!("{credentials:?}").contains("hunter2"));
        for credentials in credentials {
            assert!(!credentials.shown().contains("hunter2"));
        }
    }

    #[test]
    fn no_mistyped_seed_is_shown_and_files_are() {
        let account = KeyPair::new_account().seed().expect("seed");
        let user = KeyPair::new_user().seed().expect("seed");
        let cut = &user[..user.len() - 1];
        for bad in [&account, cut, &user.to_lowercase(), &format!("seed: {user}")] {
            let credentials = Credentials::Nkey(Seed::given(bad));
            let error = credentials.check().expect_err("no user's seed");
            let shown = format!("{error:?} {error} {credentials:?} {}", credentials.shown());
            assert!(!shown.contains(&bad[8..20]), "{shown}");
        }
        let given = Seed::given(&format!(" {user}\n")).key().expect("a seed");
        assert_eq!(given.seed().expect("seed"), user);
        let error = Credentials::Nkey(Seed::given("/no/such.nk")).check().expect_err("missing");
        assert!(error.to_string().contains("/no/such.nk"));
    }
}
