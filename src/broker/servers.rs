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
        let urls = list.split(',').map(str::trim).filter(|url| !url.is_empty());
        let mut servers = Vec::new();
        let mut credentials = None;
        for url in urls {
            let (server, found) = parse_one(url)?;
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

fn parse_one(url: &str) -> Result<(ServerAddr, Option<Credentials>)> {
    let server: ServerAddr = url.parse().map_err(|error| bad_url(url).because(error))?;
    if server.host().is_empty() || !matches!(server.scheme(), "nats" | "tls") {
        return Err(bad_url(url));
    }
    let credentials = credentials_of(&server).map_err(|error| bad_url(url).because(error))?;
    let mut plain = server.into_inner();
    // These fail only for URLs without a host, which were refused above.
    let stripped = plain.set_username("").is_ok() && plain.set_password(None).is_ok();
    let server = ServerAddr::from_url(plain).map_err(|error| bad_url(url).because(error))?;
    if stripped { Ok((server, credentials)) } else { Err(bad_url(url)) }
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

fn bad_url(url: &str) -> Error {
    Error::invalid(format!(
        "'{}' is not the URL of a NATS server; give nats://HOST:PORT or tls://HOST:PORT",
        without_credentials(url)
    ))
}

/// What a message may show of a URL that could not be parsed.
fn without_credentials(url: &str) -> String {
    let Some((before, host)) = url.rsplit_once('@') else { return url.to_owned() };
    let scheme = before.split_once("://").map_or("", |(scheme, _)| scheme);
    format!("{scheme}://…@{host}")
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
        assert!(refused(" , ").contains("no server is given"));
    }

    #[test]
    fn never_shows_credentials() {
        let message = refused("nats://me:hunter2@a:port");
        assert!(!message.contains("hunter2") && message.contains("a:port"), "{message}");
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
