//! How a connection proves who it is.
//!
//! Files are read at every connect and reconnect: short-lived credentials are replaced on disk while
//! the process runs, and those read at its start would be refused from then on.

use std::fmt;
use std::path::{Path, PathBuf};

use nkeys::KeyPair;

use crate::error::{Error, ErrorKind, Result};

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
    Inline(Secret),
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
}

impl Seed {
    /// What is in a seed's letters is a seed, right or wrong, and never shown; the rest are paths.
    pub(super) fn given(seed_or_file: String) -> Self {
        let is_seed = seed_or_file.starts_with("SU")
            && seed_or_file.bytes().all(|byte| matches!(byte, b'A'..=b'Z' | b'2'..=b'7'));
        if is_seed { Self::Inline(Secret(seed_or_file)) } else { Self::File(seed_or_file.into()) }
    }

    fn key(&self) -> Result<KeyPair> {
        match self {
            Self::Inline(seed) => KeyPair::from_seed(seed.0.trim())
                .map_err(|error| Error::invalid("the nkey seed is not valid").because(error)),
            Self::File(path) => read_nkey(path),
        }
    }
}

fn signature(key: &KeyPair, nonce: &[u8]) -> Result<Vec<u8>> {
    key.sign(nonce)
        .map_err(|error| Error::invalid("cannot sign with the nkey; is it a seed?").because(error))
}

fn read_creds(path: &Path) -> Result<(String, KeyPair)> {
    let text = read(path, "credentials file")?;
    let jwt = block(&text, "NATS USER JWT");
    let key = block(&text, "USER NKEY SEED").map(KeyPair::from_seed);
    match (jwt, key) {
        (Some(jwt), Some(Ok(key))) => Ok((jwt.to_owned(), key)),
        (_, Some(Err(error))) => Err(malformed(path, "holds no valid seed").because(error)),
        (None, _) | (_, None) => Err(malformed(path, "must hold a user JWT and its nkey seed")),
    }
}

fn read_nkey(path: &Path) -> Result<KeyPair> {
    let text = read(path, "nkey file")?;
    let bare = || text.lines().map(str::trim).find(|line| line.starts_with("SU"));
    let seed = block(&text, "USER NKEY SEED")
        .or_else(bare)
        .ok_or_else(|| malformed(path, "holds no user nkey seed (it would begin with SU)"))?;
    KeyPair::from_seed(seed).map_err(|error| malformed(path, "holds no valid seed").because(error))
}

/// The line after `-----BEGIN <label>-----`.
fn block<'a>(text: &'a str, label: &str) -> Option<&'a str> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.find(|line| line.starts_with("---") && line.contains(&format!("BEGIN {label}")))?;
    lines.next()
}

fn read(path: &Path, what: &str) -> Result<String> {
    std::fs::read_to_string(path).map_err(|error| {
        let message = format!("cannot read the {what} {}", path.display());
        Error::new(ErrorKind::Local, message).because(error)
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
            Credentials::Jwt {
                jwt: Secret::new("hunter2"),
                seed: Seed::Inline(Secret::new("hunter2")),
            },
        ];
        assert!(!format!("{credentials:?}").contains("hunter2"));
        let error = Credentials::Nkey(Seed::given("SUHUNTER2".into())).check().expect_err("bad");
        assert!(!format!("{error:?}").contains("HUNTER2"), "{error:?}");
    }
}
