//! What a client shows a server to be let in.

use std::fmt;
use std::path::{Path, PathBuf};

use async_nats::{Auth, AuthError};
use nkeys::KeyPair;

use crate::error::{Error, Result};

/// Credentials of one of NATS' kinds.
#[derive(Clone)]
pub(super) enum Credentials {
    None,
    Password(String, String),
    Token(String),
    /// A seed, or the path of a file with one.
    Nkey(String),
    Jwt {
        jwt: String,
        seed: String,
    },
    /// A file with a JWT and a seed.
    File(PathBuf),
}

impl Credentials {
    /// Whether they can be used at all, as far as that can be told without a server.
    pub(super) fn check(&self) -> Result<()> {
        match self {
            Self::None | Self::Password(..) | Self::Token(_) => Ok(()),
            Self::Nkey(seed_or_file) => seed_of(seed_or_file).and_then(|seed| key(&seed)).map(drop),
            Self::Jwt { seed, .. } => key(seed).map(drop),
            Self::File(path) => read_file(path).map(drop),
        }
    }

    /// What to show for this connection; `nonce` is the server's challenge.
    pub(super) fn auth(&self, nonce: &[u8]) -> Result<Auth, AuthError> {
        self.answer(nonce).map_err(AuthError::new)
    }

    fn answer(&self, nonce: &[u8]) -> Result<Auth> {
        let mut auth = Auth::new();
        match self {
            Self::None => {}
            Self::Password(user, password) => {
                auth.username = Some(user.clone());
                auth.password = Some(password.clone());
            }
            Self::Token(token) => auth.token = Some(token.clone()),
            Self::Nkey(seed_or_file) => {
                let key = key(&seed_of(seed_or_file)?)?;
                auth.signature = Some(sign(&key, nonce)?);
                auth.nkey = Some(key.public_key());
            }
            Self::Jwt { jwt, seed } => {
                auth.signature = Some(sign(&key(seed)?, nonce)?);
                auth.jwt = Some(jwt.clone());
            }
            Self::File(path) => {
                let (jwt, key) = read_file(path)?;
                auth.signature = Some(sign(&key, nonce)?);
                auth.jwt = Some(jwt);
            }
        }
        Ok(auth)
    }
}

fn seed_of(seed_or_file: &str) -> Result<String> {
    if seed_or_file.starts_with("SU") && KeyPair::from_seed(seed_or_file).is_ok() {
        return Ok(seed_or_file.to_owned());
    }
    let text = std::fs::read_to_string(seed_or_file).map_err(|error| {
        // The text may be a mistyped seed: do not show it.
        Error::invalid("the nkey is neither a user's seed (SU…) nor a file that can be read")
            .because(error)
    })?;
    text.lines()
        .map(str::trim)
        .find(|line| line.starts_with("SU"))
        .map(str::to_owned)
        .ok_or_else(|| Error::invalid(format!("{seed_or_file} holds no user's seed (SU…)")))
}

fn key(seed: &str) -> Result<KeyPair> {
    KeyPair::from_seed(seed.trim())
        .map_err(|error| Error::invalid("the nkey seed is not valid").because(error))
}

fn sign(key: &KeyPair, nonce: &[u8]) -> Result<Vec<u8>> {
    key.sign(nonce).map_err(|error| Error::invalid("the nkey seed cannot sign").because(error))
}

fn read_file(path: &Path) -> Result<(String, KeyPair)> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Error::invalid(format!("cannot read the credentials file {}", path.display()))
            .because(error)
    })?;
    let part = |label: &str| {
        decorated(&text, label).ok_or_else(|| {
            Error::invalid(format!("the credentials file {} holds no {label}", path.display()))
        })
    };
    let jwt = part("NATS USER JWT")?.to_owned();
    let seed = part("USER NKEY SEED")?;
    Ok((jwt, key(seed)?))
}

/// The line between `-----BEGIN <label>-----` and its end.
fn decorated<'a>(text: &'a str, label: &str) -> Option<&'a str> {
    let mut lines = text.lines().map(str::trim);
    lines.find(|line| line.starts_with("---") && line.contains(&format!("BEGIN {label}")))?;
    lines.find(|line| !line.is_empty()).filter(|line| !line.starts_with("---"))
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Password(..) => "user and password",
            Self::Token(_) => "token",
            Self::Nkey(_) => "nkey",
            Self::Jwt { .. } => "jwt",
            Self::File(_) => "credentials file",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credentials_file_is_read() {
        let text = "-----BEGIN NATS USER JWT-----\neyJ0\n------END NATS USER JWT------\n\n\
                    *** IMPORTANT ***\n-----BEGIN USER NKEY SEED-----\nSUAX\n------END USER NKEY SEED------\n";
        assert_eq!(decorated(text, "NATS USER JWT"), Some("eyJ0"));
        assert_eq!(decorated(text, "USER NKEY SEED"), Some("SUAX"));
        assert_eq!(decorated("nothing", "USER NKEY SEED"), None);
    }

    #[test]
    fn a_wrong_nkey_is_not_shown() {
        let error = Credentials::Nkey("SUNOTASEED".into()).check().expect_err("wrong");
        assert!(!format!("{error:?}").contains("NOTASEED"), "{error:?}");
    }
}
