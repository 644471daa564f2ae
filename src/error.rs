//! One error for the whole library: opaque, with predicates for what a caller can act on.
//!
//! A message says what was attempted, with what, and what to do. The cause, where there is one, is
//! its [`source`](std::error::Error::source). Types of other crates do not show through.

use std::error::Error as StdError;
use std::fmt;

/// The result of a call into this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Cause = Box<dyn StdError + Send + Sync>;

/// Why a call failed.
///
/// Ask the predicates what kind of failure it is; show it with `{}` for the message alone, or walk
/// [`source`](std::error::Error::source) for the causes.
#[derive(thiserror::Error)]
#[error(transparent)]
pub struct Error(Box<Inner>);

#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Inner {
    kind: ErrorKind,
    message: String,
    /// The stream, consumer or subject that it is about, where that is known.
    place: Option<String>,
    #[source]
    cause: Option<Cause>,
}

/// What a caller can tell apart. Kept private so that it can grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ErrorKind {
    /// Something given to us breaks a rule: a name, a header, a payload, a setting.
    Invalid,
    /// A payload or record is larger than the server takes.
    TooLarge,
    /// What was asked for is not there.
    NotFound,
    /// The stream is not there.
    NoStream,
    /// The consumer is not there, on a stream that is.
    NoConsumer,
    /// A job of the same id is waiting or running and may not be there twice.
    Duplicate,
    /// The queue, the account or the disk has no room.
    Full,
    /// The broker refuses these credentials, or refuses them this subject.
    Permission,
    /// The broker cannot be reached, or has no JetStream at the moment.
    Unavailable,
    /// The broker is there, and nothing at it takes the subject.
    NoResponders,
    /// The server is too old, or lacks JetStream.
    Unsupported,
    /// It may or may not have happened.
    Unknown,
    /// The time given for waiting has passed.
    Timeout,
    /// The broker answered something else that is wrong.
    Broker,
    /// A local file, process or download failed.
    #[cfg(feature = "embedded")]
    Local,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, message: message.into(), place: None, cause: None }))
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    pub(crate) fn because(mut self, cause: impl Into<Cause>) -> Self {
        self.0.cause = Some(cause.into());
        self
    }

    /// Names the stream, consumer or subject that it is about.
    pub(crate) fn at(mut self, place: impl Into<String>) -> Self {
        self.0.place = Some(place.into());
        self
    }

    /// What it is about, where that is known.
    pub(crate) fn place(&self) -> Option<&str> {
        self.0.place.as_deref()
    }

    pub(crate) fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Something given to the call breaks a rule; the message names it and the rule.
    pub fn is_invalid(&self) -> bool {
        self.0.kind == ErrorKind::Invalid
    }

    /// A payload is larger than the server takes; the message names both sizes.
    pub fn is_too_large(&self) -> bool {
        self.0.kind == ErrorKind::TooLarge
    }

    /// What was asked for does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self.0.kind, ErrorKind::NotFound | ErrorKind::NoStream | ErrorKind::NoConsumer)
    }

    /// A job of this id already waits, runs or backs off.
    pub fn is_duplicate(&self) -> bool {
        self.0.kind == ErrorKind::Duplicate
    }

    /// The queue, the account or the broker's disk is full. Nothing was stored; try again later.
    pub fn is_full(&self) -> bool {
        self.0.kind == ErrorKind::Full
    }

    /// The broker refuses the credentials, or a subject to them.
    pub fn is_permission(&self) -> bool {
        self.0.kind == ErrorKind::Permission
    }

    /// The broker cannot be reached or has no JetStream at the moment.
    pub fn is_unavailable(&self) -> bool {
        matches!(self.0.kind, ErrorKind::Unavailable | ErrorKind::NoResponders)
    }

    /// The server lacks a feature: it is too old, or JetStream is off.
    pub fn is_unsupported(&self) -> bool {
        self.0.kind == ErrorKind::Unsupported
    }

    /// Nobody knows whether it happened: the broker did not answer in time.
    pub fn is_unknown(&self) -> bool {
        self.0.kind == ErrorKind::Unknown
    }

    /// The time given for waiting has passed; what was waited for may still come.
    pub fn is_timeout(&self) -> bool {
        self.0.kind == ErrorKind::Timeout
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Error");
        out.field("kind", &self.0.kind).field("message", &self.0.message);
        if let Some(cause) = &self.0.cause {
            out.field("cause", cause);
        }
        out.finish()
    }
}
