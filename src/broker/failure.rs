//! What a failed connect or request means to the caller.

use std::error::Error as StdError;
use std::io;
use std::time::Duration;

use async_nats::client::{PublishError, PublishErrorKind, RequestError, RequestErrorKind};
use async_nats::rustls::{self, AlertDescription, CertificateError};
use async_nats::{ConnectError, ConnectErrorKind, ServerError};
use chrono::{DateTime, SecondsFormat, Utc};

use super::credentials::Credentials;
use super::events::Right;
use super::jwt;
use super::options::ConnectOptions;
use super::tls::{CertFiles, Tls};
use crate::error::{Error, ErrorKind};

/// The error for a connect that failed.
pub(super) fn connect(options: &ConnectOptions, error: ConnectError, now: DateTime<Utc>) -> Error {
    let failure = match error.kind() {
        ConnectErrorKind::ServerParse => (ErrorKind::Invalid, "the URL is not valid".into()),
        ConnectErrorKind::Authentication => {
            (ErrorKind::Invalid, "the credentials cannot answer the server's challenge".into())
        }
        ConnectErrorKind::AuthorizationViolation => refused(options, now),
        ConnectErrorKind::TimedOut => timed_out(&options.tls),
        ConnectErrorKind::Dns => unavailable(
            "the host name does not resolve; check how it is spelled, and the DNS of this machine",
        ),
        ConnectErrorKind::MaxReconnects => unavailable("tried too often"),
        ConnectErrorKind::Tls | ConnectErrorKind::Io => underlying(options, &error, now),
    };
    connect_failed(options, failure).because(error)
}

/// The error for a connect that took too long.
pub(super) fn connect_timeout(options: &ConnectOptions) -> Error {
    connect_failed(options, timed_out(&options.tls))
}

/// What kind of failure, and why.
type Failure = (ErrorKind, String);

fn connect_failed(options: &ConnectOptions, (kind, why): Failure) -> Error {
    let servers = &options.servers;
    // The client library tells only of that one.
    let which = if servers.len() > 1 { "at the one tried last, " } else { "" };
    Error::new(kind, format!("cannot connect to NATS at {servers}: {which}{why}"))
}

fn unavailable(why: &str) -> Failure {
    (ErrorKind::Unavailable, why.to_owned())
}

fn timed_out(tls: &Tls) -> Failure {
    unavailable(if tls.first {
        "no answer in time"
    } else {
        "no answer in time; a server with `handshake_first` answers only if TLS comes first"
    })
}

fn refused(options: &ConnectOptions, now: DateTime<Utc>) -> Failure {
    let credentials = &options.credentials;
    let expired = credentials.jwt().as_deref().and_then(jwt::expiry).filter(|at| *at <= now);
    let why = match (credentials, expired) {
        (_, Some(at)) => format!(
            "the server refuses {}: the user JWT expired at {}; get a new one",
            credentials.shown(),
            at.to_rfc3339_opts(SecondsFormat::Secs, true),
        ),
        (Credentials::None, None) => {
            let also = if options.tls.client_cert.is_some() {
                ", or knows no user for the client certificate"
            } else {
                ""
            };
            format!(
                "the server wants credentials, and none are given{also}; give a user and \
                 password, a token, an nkey or a credentials file"
            )
        }
        (_, None) => format!("the server refuses {}; check it", credentials.shown()),
    };
    (ErrorKind::Permission, why)
}

fn underlying(options: &ConnectOptions, error: &ConnectError, now: DateTime<Utc>) -> Failure {
    if let Some(error) = error.source().and_then(|error| error.downcast_ref::<ServerError>()) {
        return server_said(options, error, now);
    }
    if let Some(error) = tls_error(error) {
        return tls(&options.tls, error);
    }
    if error.kind() == ConnectErrorKind::Tls {
        return (ErrorKind::Invalid, "cannot set up TLS".into());
    }
    let io_error = error.source().and_then(|error| error.downcast_ref::<io::Error>());
    unavailable(match io_error.map(io::Error::kind) {
        Some(io::ErrorKind::ConnectionRefused) => {
            "nobody listens there; check the address, and that the server runs"
        }
        _ if options.tls.first => "the server breaks off the connection",
        _ => {
            "the server breaks off the connection, as it does with `handshake_first` if TLS does \
             not come first"
        }
    })
}

fn server_said(options: &ConnectOptions, error: &ServerError, now: DateTime<Utc>) -> Failure {
    // `account authentication expired`, `authentication timeout` and others.
    if error.to_string().to_lowercase().contains("authentication") {
        return refused(options, now);
    }
    unavailable("the server turns connections away")
}

fn tls(tls: &Tls, error: &rustls::Error) -> Failure {
    match error {
        rustls::Error::InvalidCertificate(flaw) => unavailable(flaw_of(flaw)),
        rustls::Error::AlertReceived(alert) if is_about_us(*alert) => {
            let why = match &tls.client_cert {
                Some(CertFiles { cert, .. }) => format!(
                    "the server refuses the client certificate {}; it may have expired, or be \
                     signed by a CA that the server does not trust",
                    cert.display()
                ),
                None => "the server wants a client certificate; give one, with its key".into(),
            };
            (ErrorKind::Permission, why)
        }
        rustls::Error::InvalidMessage(_) if tls.first => unavailable(
            "the server does not begin with TLS; leave out TLS first, or set `handshake_first` \
             there",
        ),
        rustls::Error::InvalidMessage(_) => unavailable(
            "the server has no TLS, which is demanded here; use nats:// without TLS, or enable it \
             there",
        ),
        _ => unavailable("the TLS handshake failed"),
    }
}

fn flaw_of(flaw: &CertificateError) -> &'static str {
    match flaw {
        // The signature is bad where a CA has the name of one that is known, and another key.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "the server's certificate is not trusted: no known CA signed it; give its CA"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "the server's certificate is for another host; use a name that it holds"
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the server's certificate has expired; renew it there"
        }
        _ => "the server's certificate is not valid",
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
    match error.kind() {
        RequestErrorKind::NoResponders => Error::new(
            ErrorKind::NoResponders,
            format!("no responders for {subject}: nothing there takes it, or JetStream is off"),
        ),
        RequestErrorKind::InvalidSubject => invalid_subject(subject),
        RequestErrorKind::MaxPayloadExceeded => too_large(subject),
        RequestErrorKind::TimedOut | RequestErrorKind::Other => Error::new(
            ErrorKind::Unknown,
            format!("the connection broke while waiting for {subject}"),
        ),
    }
    .at(subject)
    .because(error)
}

/// The error for a message that the client did not take.
pub(super) fn publish(subject: &str, error: PublishError) -> Error {
    match error.kind() {
        PublishErrorKind::Send => disconnected("send a message"),
        PublishErrorKind::InvalidSubject => invalid_subject(subject),
        PublishErrorKind::MaxPayloadExceeded => too_large(subject),
    }
    .at(subject)
    .because(error)
}

fn invalid_subject(subject: &str) -> Error {
    Error::new(ErrorKind::Invalid, format!("'{subject}' is not a valid subject"))
}

fn too_large(subject: &str) -> Error {
    Error::new(ErrorKind::TooLarge, format!("the message for {subject} is too large"))
}

/// The error for a request without an answer.
pub(super) fn request_timeout(subject: &str, waited: Duration) -> Error {
    let message =
        format!("no answer for {subject} within {waited:?}: it may or may not have happened");
    Error::new(ErrorKind::Unknown, message).at(subject)
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
    Error::new(ErrorKind::Permission, message).at(denied)
}

/// The error for a subscription that the user has no right to.
pub(super) fn subscription_denied(subject: &str) -> Error {
    let message = format!("no permission to subscribe to {subject}; grant this user that");
    Error::new(ErrorKind::Permission, message).at(subject)
}

/// The error for what needs a connection and found none.
pub(super) fn disconnected(what: &str) -> Error {
    Error::new(ErrorKind::Unavailable, format!("cannot {what}: the connection is gone"))
}
