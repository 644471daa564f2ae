//! What a failed connect or request means to the caller.

use std::error::Error as StdError;
use std::io;
use std::time::Duration;

use async_nats::client::{RequestError, RequestErrorKind};
use async_nats::rustls::{self, AlertDescription};
use async_nats::{ConnectError, ConnectErrorKind, ServerError};

use super::events::Right;
use super::servers::Servers;
use crate::error::{Error, ErrorKind};

/// The error for a connect that failed.
pub(super) fn connect(servers: &Servers, error: ConnectError) -> Error {
    let failure = match error.kind() {
        ConnectErrorKind::ServerParse => (ErrorKind::Invalid, "the URL is not valid"),
        ConnectErrorKind::Authentication => (ErrorKind::Permission, "cannot answer the challenge"),
        ConnectErrorKind::AuthorizationViolation => refused_credentials(),
        ConnectErrorKind::TimedOut => timed_out(),
        ConnectErrorKind::Dns => (ErrorKind::Unavailable, "the host's name cannot be resolved"),
        ConnectErrorKind::MaxReconnects => (ErrorKind::Unavailable, "tried too often"),
        ConnectErrorKind::Tls | ConnectErrorKind::Io => underlying(&error),
    };
    connect_failed(servers, failure).because(error)
}

/// The error for a connect that took too long.
pub(super) fn connect_timeout(servers: &Servers) -> Error {
    connect_failed(servers, timed_out())
}

fn connect_failed(servers: &Servers, (kind, why): (ErrorKind, &str)) -> Error {
    Error::new(kind, format!("cannot connect to NATS at {servers}: {why}"))
}

fn timed_out() -> (ErrorKind, &'static str) {
    (
        ErrorKind::Unavailable,
        "no answer in time (a server with `handshake_first` answers only with TLS first)",
    )
}

fn refused_credentials() -> (ErrorKind, &'static str) {
    (ErrorKind::Permission, "the server refuses these credentials, or wants some")
}

fn underlying(error: &ConnectError) -> (ErrorKind, &'static str) {
    if let Some(error) = error.source().and_then(|error| error.downcast_ref::<ServerError>()) {
        return server_said(error);
    }
    match tls_error(error) {
        Some(error) => tls(error),
        None if error.kind() == ConnectErrorKind::Tls => (ErrorKind::Invalid, "cannot set up TLS"),
        None => (ErrorKind::Unavailable, "no NATS server answers there"),
    }
}

fn server_said(error: &ServerError) -> (ErrorKind, &'static str) {
    // `account authentication expired`, `authentication timeout` and others.
    if error.to_string().to_lowercase().contains("authentication") {
        return refused_credentials();
    }
    (ErrorKind::Unavailable, "the server turns connections away")
}

fn tls(error: &rustls::Error) -> (ErrorKind, &'static str) {
    match error {
        rustls::Error::InvalidCertificate(_) => (
            ErrorKind::Broker,
            "the server's certificate is not trusted for this host; is the right CA given?",
        ),
        rustls::Error::AlertReceived(alert) if is_about_us(*alert) => {
            (ErrorKind::Permission, "the server refuses our client certificate, or wants one")
        }
        rustls::Error::InvalidMessage(_) => (
            ErrorKind::Broker,
            "the server does not answer with TLS; without `handshake_first`, it wants no TLS first",
        ),
        _ => (ErrorKind::Broker, "the TLS handshake failed"),
    }
}

/// Whether the server objects to our certificate rather than to TLS as such.
fn is_about_us(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::AccessDenied
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRequired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::NoCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::UnsupportedCertificate
    )
}

/// Finds the TLS library's error, which travels inside I/O errors.
fn tls_error(error: &ConnectError) -> Option<&rustls::Error> {
    let mut next = error.source();
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

/// The error for a request that failed.
pub(super) fn request(subject: &str, error: RequestError) -> Error {
    let (kind, message) = match error.kind() {
        RequestErrorKind::NoResponders => (
            ErrorKind::Unavailable,
            format!("no responders for {subject}: nothing there takes it, or JetStream is off"),
        ),
        RequestErrorKind::InvalidSubject => {
            (ErrorKind::Invalid, format!("'{subject}' is not a valid subject"))
        }
        RequestErrorKind::MaxPayloadExceeded => {
            (ErrorKind::TooLarge, format!("the message for {subject} is too large"))
        }
        RequestErrorKind::TimedOut | RequestErrorKind::Other => {
            (ErrorKind::Unknown, format!("the connection broke while waiting for {subject}"))
        }
    };
    Error::new(kind, message).because(error)
}

/// The error for a request without an answer.
pub(super) fn request_timeout(subject: &str, waited: Duration) -> Error {
    let message =
        format!("no answer for {subject} within {waited:?}: it may or may not have happened");
    Error::new(ErrorKind::Unknown, message)
}

/// The error for a request that the user has no right to make.
pub(super) fn request_denied(subject: &str, (right, denied): (Right, &str)) -> Error {
    let message = match right {
        Right::Publish => format!("no permission to publish to {denied}; grant this user that"),
        Right::Subscribe => format!(
            "no permission to subscribe to {denied}, where the answer for {subject} would come; \
             grant this user that, or set an inbox prefix it may use"
        ),
    };
    Error::new(ErrorKind::Permission, message)
}

/// The error for what needs a connection and found none.
pub(super) fn disconnected(what: &str) -> Error {
    Error::new(ErrorKind::Unavailable, format!("cannot {what}: the connection is gone"))
}
