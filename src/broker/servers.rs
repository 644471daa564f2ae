//! The list of servers: comma-separated URLs in one string, as `NATS_URL` and context files have it.

use std::fmt;

use async_nats::ServerAddr;
use percent_encoding::percent_decode_str;

use super::credentials::{Credentials, Secret};
use crate::error::{Error, Result};

/// The servers of one cluster, without the credentials their URLs may have carried.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Servers(Vec<ServerAddr>);

impl Servers {
    /// Reads a list of URLs, and the credentials in them if there are any.
    ///
    /// `HOST`, `nats://HOST:PORT`, `tls://USER:PASSWORD@HOST` and `nats://TOKEN@HOST` are all fine.
    pub(super) fn parse(list: &str) -> Result<(Self, Option<Credentials>)> {
        let mut servers = Vec::new();
        let mut credentials = None;
        for (url, rest) in parts(list) {
            let (server, found) = parse_one(url).map_err(|flaw| bad_url(url, rest, flaw))?;
            servers.push(server);
            if credentials.is_some() && found.is_some() && credentials != found {
                return Err(Error::invalid(
                    "the servers' URLs carry different credentials; one connection has one",
                ));
            }
            credentials = credentials.or(found);
        }
        if servers.is_empty() {
            return Err(Error::invalid(
                "no server is given; give a URL like nats://127.0.0.1:4222",
            ));
        }
        Ok((Self(servers), credentials))
    }

    pub(super) fn addrs(&self) -> &[ServerAddr] {
        &self.0
    }

    pub(super) fn len(&self) -> u32 {
        u32::try_from(self.0.len()).unwrap_or(u32::MAX)
    }

    /// Whether a URL asks for TLS. The servers it leads to must then have it too.
    pub(super) fn ask_for_tls(&self) -> bool {
        self.0.iter().any(ServerAddr::tls_required)
    }
}

impl fmt::Display for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, server) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let host = server.host();
            let port = server.port();
            if host.contains(':') {
                write!(f, "{comma}{}://[{host}]:{port}", server.scheme())?;
            } else {
                write!(f, "{comma}{}://{host}:{port}", server.scheme())?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The URLs of a list, each with what follows it.
fn parts(list: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut rest = Some(list);
    std::iter::from_fn(move || {
        let (part, after) = match rest?.split_once(',') {
            Some((part, after)) => (part, Some(after)),
            None => (rest?, None),
        };
        rest = after;
        Some((part.trim(), after.unwrap_or_default()))
    })
    .filter(|(part, _)| !part.is_empty())
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

fn parse_one(url: &str) -> Result<(ServerAddr, Option<Credentials>), Cause> {
    let server: ServerAddr = url.parse()?;
    if server.host().is_empty() {
        return Err("it has no host".into());
    }
    if !matches!(server.scheme(), "nats" | "tls") {
        return Err("its scheme is neither nats nor tls".into());
    }
    let credentials = credentials_of(&server)?;
    let mut plain = server.into_inner();
    if !matches!(plain.path(), "" | "/") || plain.query().is_some() || plain.fragment().is_some() {
        return Err(
            "something follows the port, or a /, ? or # in a password is not encoded".into()
        );
    }
    // These fail only for URLs without a host, which were refused above.
    if plain.set_username("").is_err() || plain.set_password(None).is_err() {
        return Err("it has no host".into());
    }
    Ok((ServerAddr::from_url(plain)?, credentials))
}

/// A name alone is a token, as in every NATS client.
fn credentials_of(server: &ServerAddr) -> Result<Option<Credentials>, std::str::Utf8Error> {
    let Some(user) = server.username() else { return Ok(None) };
    let user = decoded(user)?;
    let credentials = match server.password() {
        Some(password) => Credentials::User { user, password: Secret::new(decoded(password)?) },
        None => Credentials::Token(Secret::new(user)),
    };
    Ok(Some(credentials))
}

fn decoded(text: &str) -> Result<String, std::str::Utf8Error> {
    Ok(percent_decode_str(text).decode_utf8()?.into_owned())
}

fn bad_url(url: &str, rest: &str, flaw: Cause) -> Error {
    Error::invalid(format!(
        "'{}' is not the URL of a NATS server; give nats://HOST:PORT or tls://HOST:PORT, with \
         special characters in a password as %XX",
        without_credentials(url, rest)
    ))
    .because(flaw)
}

/// What a message may show of a URL that could not be parsed. With an `@` to come, it may be the
/// first half of one whose password holds a comma.
fn without_credentials(url: &str, rest: &str) -> String {
    let (scheme, after) =
        url.split_once("://").map_or(("nats", url), |(scheme, after)| (scheme, after));
    match after.rsplit_once('@') {
        _ if rest.contains('@') => format!("{scheme}://…"),
        Some((_, host)) => format!("{scheme}://…@{host}"),
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn shown(list: &str) -> String {
        Servers::parse(list).expect("valid").0.to_string()
    }

    #[track_caller]
    fn refused(list: &str) -> String {
        let error = Servers::parse(list).expect_err("invalid");
        assert!(error.is_invalid());
        error.to_string()
    }

    #[test]
    fn fills_in_scheme_and_port() {
        assert_eq!(shown("nats://a"), "nats://a:4222");
        assert_eq!(shown("a:7"), "nats://a:7");
        assert_eq!(shown("tls://a.b"), "tls://a.b:4222");
        assert_eq!(shown("nats://[::1]"), "nats://[::1]:4222");
        assert_eq!(shown(" nats://a , nats://b:1,"), "nats://a:4222,nats://b:1");
    }

    #[test]
    fn names_the_url_that_is_wrong() {
        assert!(refused("nats://a,http://b").contains("'http://b'"));
        assert!(refused("ws://a").contains("'ws://a'"));
        assert!(refused("nats://a:port").contains("'nats://a:port'"));
        assert!(refused("nats://").contains("'nats://'"));
        assert!(refused("nats://a/b").contains("'nats://a/b'"));
        assert!(refused(" , ").contains("no server is given"));
    }

    #[test]
    fn never_shows_credentials() {
        let message = refused("nats://me:hunter2@a:port");
        assert!(!message.contains("hunter2") && message.contains("a:port"), "{message}");
        for bad in ["me:hunter2@a:port", "nats://hunter2/x@a", "me:hunter2,x@a", "u:hunter2#@a"] {
            let message = format!("{:?}", Servers::parse(bad).expect_err(bad));
            assert!(!message.contains("hunter2"), "{message}");
        }
        assert_eq!(shown("nats://me:hunter2@a"), "nats://a:4222");
    }

    #[test]
    fn takes_credentials_from_urls() {
        let credentials = |list| Servers::parse(list).expect("valid").1;
        let user = Credentials::User { user: "me".into(), password: Secret::new("p@ss") };
        assert_eq!(credentials("nats://me:p%40ss@a"), Some(user.clone()));
        assert_eq!(credentials("nats://me:p%40ss@a,nats://b"), Some(user));
        assert_eq!(credentials("nats://t0ken@a"), Some(Credentials::Token(Secret::new("t0ken"))));
        assert_eq!(credentials("nats://a"), None);
        assert!(refused("nats://t1@a,nats://t2@b").contains("different credentials"));
    }

    #[test]
    fn one_tls_url_makes_all_tls() {
        let asks = |list| Servers::parse(list).expect("valid").0.ask_for_tls();
        assert!(asks("nats://a,tls://b"));
        assert!(!asks("nats://a,nats://b"));
    }
}
