//! The broker's JetStream API: a request with JSON, an answer with JSON or an error code.

use bytes::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::connection::Connection;
use crate::error::{Error, ErrorKind, Result};

/// Error codes of the JetStream API (nats-server `errors.json`) that we tell apart.
pub(super) mod code {
    pub(crate) const ACCOUNT_RESOURCES: u64 = 10002;
    pub(crate) const INSUFFICIENT_RESOURCES: u64 = 10023;
    pub(crate) const MEMORY_RESOURCES: u64 = 10028;
    pub(crate) const JETSTREAM_NOT_ENABLED_FOR_ACCOUNT: u64 = 10039;
    pub(crate) const STORAGE_RESOURCES: u64 = 10047;
    pub(crate) const MESSAGE_TOO_LARGE: u64 = 10054;
    pub(crate) const STREAM_NAME_IN_USE: u64 = 10058;
    pub(crate) const STREAM_NOT_FOUND: u64 = 10059;
    pub(crate) const CONSUMER_NOT_FOUND: u64 = 10014;
    pub(crate) const MESSAGE_NOT_FOUND: u64 = 10037;
    pub(crate) const SEQUENCE_NOT_FOUND: u64 = 10043;
    pub(crate) const MESSAGE_DELETE_FAILED: u64 = 10057;
    pub(crate) const WRONG_LAST_SEQUENCE: u64 = 10071;
    pub(crate) const JETSTREAM_NOT_ENABLED: u64 = 10076;
    pub(crate) const STREAM_FULL: u64 = 10077;
    pub(crate) const STREAM_OFFLINE: u64 = 10118;
    pub(crate) const CONSUMER_OFFLINE: u64 = 10119;
    pub(crate) const CONSUMER_EXISTS: u64 = 10148;
    pub(crate) const SEQUENCE_IN_FLIGHT: u64 = 10164;
    pub(crate) const TOO_MANY_REQUESTS: u64 = 10167;
    pub(crate) const ATOMIC_PUBLISH_DISABLED: u64 = 10174;
    pub(crate) const BATCH_PUBLISH_DISABLED: u64 = 10205;
    pub(crate) const TOO_MANY_ATOMIC_BATCHES: u64 = 10210;
}

/// An error in an answer of the API.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub(super) struct ApiError {
    pub(super) code: u64,
    pub(super) err_code: u64,
    pub(super) description: String,
}

impl ApiError {
    /// Whether a stream takes no batches of the kind that was sent.
    pub(super) fn is_batch_refused(&self) -> bool {
        matches!(self.err_code, code::ATOMIC_PUBLISH_DISABLED | code::BATCH_PUBLISH_DISABLED)
    }

    /// Whether it says that the stream, consumer or message asked for does not exist.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(
            self.err_code,
            code::STREAM_NOT_FOUND | code::CONSUMER_NOT_FOUND | code::MESSAGE_NOT_FOUND
        )
    }

    /// The error as ours; `attempted` says what we wanted.
    pub(super) fn into_error(self, attempted: &str) -> Error {
        let kind = match self.err_code {
            code::STREAM_FULL
            | code::ACCOUNT_RESOURCES
            | code::INSUFFICIENT_RESOURCES
            | code::STORAGE_RESOURCES
            | code::MEMORY_RESOURCES
            | code::TOO_MANY_REQUESTS => ErrorKind::Full,
            code::MESSAGE_TOO_LARGE => ErrorKind::TooLarge,
            code::JETSTREAM_NOT_ENABLED | code::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => {
                ErrorKind::Unsupported
            }
            code::STREAM_NOT_FOUND => ErrorKind::NoStream,
            code::CONSUMER_NOT_FOUND => ErrorKind::NoConsumer,
            code::MESSAGE_NOT_FOUND => ErrorKind::NotFound,
            // All servers that hold it are down.
            code::STREAM_OFFLINE | code::CONSUMER_OFFLINE => ErrorKind::Unavailable,
            // Those of others, or one of ours whose answer is missing: there is room again in seconds.
            code::TOO_MANY_ATOMIC_BATCHES => ErrorKind::Unavailable,
            _ if self.code == 503 => ErrorKind::Unavailable,
            _ => ErrorKind::Broker,
        };
        let Self { code, err_code, description } = self;
        Error::new(
            kind,
            format!("cannot {attempted}: {description} (broker error {code}/{err_code})"),
        )
    }
}

/// Asks the API; `Ok(Err(_))` is its own refusal.
pub(super) async fn call<T: DeserializeOwned>(
    conn: &Connection,
    verb: &str,
    request: Option<&Value>,
) -> Result<Result<T, ApiError>> {
    let body = match request {
        Some(request) => Bytes::from(request.to_string()),
        None => Bytes::new(),
    };
    let subject = conn.api_subject(verb);
    let answer = match is_question(verb) {
        true => conn.question(subject, body).await?,
        false => conn.request(subject, None, body).await?,
    };
    decode(verb, &answer.payload)
}

/// Whether a call changes nothing, so that it may be made again before the first was answered.
fn is_question(verb: &str) -> bool {
    verb == "INFO"
        || ["STREAM.INFO.", "STREAM.MSG.GET.", "STREAM.NAMES", "CONSUMER.INFO."]
            .iter()
            .any(|question| verb.starts_with(question))
}

fn decode<T: DeserializeOwned>(verb: &str, body: &[u8]) -> Result<Result<T, ApiError>> {
    #[derive(Deserialize)]
    struct Envelope {
        error: Option<ApiError>,
    }
    let unreadable = |error: serde_json::Error| {
        Error::new(ErrorKind::Broker, format!("the broker's answer to {verb} does not decode"))
            .because(error)
    };
    let envelope: Envelope = serde_json::from_slice(body).map_err(unreadable)?;
    match envelope.error {
        Some(error) => Ok(Err(error)),
        None => serde_json::from_slice(body).map(Ok).map_err(unreadable),
    }
}

/// Asks the API something of which only the success matters.
#[cfg(feature = "embedded")]
pub(crate) async fn ask(conn: &Connection, verb: &str, request: Option<&Value>) -> Result<()> {
    let answer = call::<Value>(conn, verb, request).await?;
    answer.map(drop).map_err(|error| error.into_error(verb))
}

/// What the API says of the account and, through it, of the server.
#[derive(Debug, Deserialize)]
pub(super) struct AccountInfo {
    #[serde(default)]
    pub(super) api: ApiStats,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct ApiStats {
    #[serde(default)]
    pub(super) level: u64,
}

pub(super) async fn account_info(conn: &Connection) -> Result<AccountInfo> {
    let off = |error: Error| {
        Error::new(
            ErrorKind::Unsupported,
            "JetStream is off on this server or for this account: enable it (nats-server -js)",
        )
        .because(error)
    };
    match call(conn, "INFO", None).await {
        Ok(Ok(info)) => Ok(info),
        Ok(Err(error)) => {
            let error = error.into_error("ask for JetStream's account information");
            Err(if error.is_unsupported() { off(error) } else { error })
        }
        // Nobody listens there, while a cluster without a leader answers so or not at all.
        Err(error) if error.kind() == ErrorKind::NoResponders => Err(off(error)),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_something_is_asked_once() {
        for verb in
            ["INFO", "STREAM.INFO.X", "STREAM.MSG.GET.X", "STREAM.NAMES", "CONSUMER.INFO.X.c"]
        {
            assert!(is_question(verb), "{verb}");
        }
        for verb in [
            "STREAM.CREATE.X",
            "STREAM.UPDATE.X",
            "STREAM.PURGE.X",
            "STREAM.DELETE.X",
            "STREAM.MSG.DELETE.X",
            "CONSUMER.CREATE.X.c.f",
            "CONSUMER.DELETE.X.c",
            "CONSUMER.PAUSE.X.c",
            "CONSUMER.MSG.NEXT.X.c",
        ] {
            assert!(!is_question(verb), "{verb}");
        }
    }

    #[test]
    fn an_error_is_told_from_an_answer() {
        let answer: Result<AccountInfo, _> = decode("INFO", br#"{"api":{"level":5}}"#).expect("ok");
        assert_eq!(answer.expect("an answer").api.level, 5);
        let refusal = br#"{"error":{"code":503,"err_code":10076,"description":"not enabled"}}"#;
        let error = decode::<AccountInfo>("INFO", refusal).expect("ok").expect_err("a refusal");
        assert!(error.into_error("look").is_unsupported());
        assert!(decode::<AccountInfo>("INFO", b"+OK").is_err());
    }
}
