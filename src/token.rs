//! Names that become subject tokens: namespace, queue, kind, job id, run id.
//!
//! A token is 1 to 64 characters of `A-Z a-z 0-9 _ -`, so that it needs no escaping in a subject, a
//! stream name, a shell or a URL. A namespace is stricter, because its upper case names streams.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};

use crate::error::{Error, Result};

/// The longest token, in bytes.
pub const MAX_TOKEN_BYTES: usize = 64;

/// The longest name of a cron entry, in bytes: the ids of its jobs are longer.
pub const MAX_CRON_NAME_BYTES: usize = 40;

/// The longest namespace, in bytes.
pub const MAX_NAMESPACE_BYTES: usize = 32;

/// Whether `text` can stand as one of our subject tokens.
pub(crate) fn is_token(text: &str) -> bool {
    is_token_within(text, MAX_TOKEN_BYTES)
}

fn is_token_within(text: &str, max: usize) -> bool {
    (1..=max).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

fn check_token(what: &str, text: &str, max: usize) -> Result<()> {
    if is_token_within(text, max) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{what} {text:?} is not a valid token: use 1 to {max} characters of A-Z a-z 0-9 _ -"
    )))
}

/// Ids with these beginnings are derived by tidemill and may not be chosen by a caller.
const RESERVED_ID_PREFIXES: [&str; 3] = ["s-", "c-", "d-"];

/// The UUIDv5 namespace of unique keys: the UUIDv5 of `tidemill.unique` in the URL namespace.
const KEY_NAMESPACE: uuid::Uuid = uuid::uuid!("069917cd-cbc8-5986-b5e3-28873f14b420");

macro_rules! token {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name(Arc<str>);

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
                out.serialize_str(&self.0)
            }
        }

        impl $name {
            #[doc = concat!("Checks that `text` can be a ", $what, ".")]
            ///
            /// # Errors
            /// [`Error::is_invalid`], naming the text and the rule.
            pub fn new(text: impl AsRef<str>) -> Result<Self> {
                let text = text.as_ref();
                check_token($what, text, $max)?;
                Ok(Self(text.into()))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;

            fn try_from(text: String) -> Result<Self> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.to_string()
            }
        }

        impl PartialEq<str> for $name {
            fn eq(&self, other: &str) -> bool {
                &*self.0 == other
            }
        }

        impl PartialEq<&str> for $name {
            fn eq(&self, other: &&str) -> bool {
                &*self.0 == *other
            }
        }
    };
}

token!(
    /// A named set of jobs with its own streams and limits.
    Queue,
    "queue",
    MAX_TOKEN_BYTES
);
token!(
    /// A job type's stable name.
    Kind,
    "kind",
    MAX_TOKEN_BYTES
);
token!(
    /// What a caller knows a job by. An id can come back; each time is a new [`RunId`].
    JobId,
    "job id",
    MAX_TOKEN_BYTES
);
token!(
    /// One enqueue of an id. A run cannot come back.
    RunId,
    "run id",
    MAX_TOKEN_BYTES
);

token!(
    /// What a cron entry is known by in its queue.
    CronName,
    "cron name",
    MAX_CRON_NAME_BYTES
);

impl Default for Queue {
    /// The queue `default`.
    fn default() -> Self {
        Self("default".into())
    }
}

impl JobId {
    /// A fresh id: a UUID of version 7, which sorts by time.
    pub fn fresh() -> Self {
        Self(uuid::Uuid::now_v7().hyphenated().to_string().into())
    }

    /// The id of a unique job: the UUIDv5 of its key in a namespace of tidemill's own.
    pub(crate) fn of_key(key: &str) -> Self {
        Self(uuid::Uuid::new_v5(&KEY_NAMESPACE, key.as_bytes()).hyphenated().to_string().into())
    }

    /// The id of the job at a place in an import: the UUIDv5 of both.
    pub(crate) fn of_import(import: &str, position: u64) -> Self {
        let imports = uuid::Uuid::new_v5(&KEY_NAMESPACE, b"import");
        let place = format!("{import}/{position}");
        Self(uuid::Uuid::new_v5(&imports, place.as_bytes()).hyphenated().to_string().into())
    }

    /// The id of a job that was published without one: `s-<stream sequence>`.
    pub(crate) fn of_sequence(sequence: u64) -> Self {
        Self(format!("s-{sequence}").into())
    }

    /// The stream sequence of a job that was published without an id.
    pub(crate) fn as_sequence(&self) -> Option<u64> {
        self.0.strip_prefix("s-")?.parse().ok()
    }

    /// The id of all jobs of a cron entry whose runs do not overlap.
    pub(crate) fn of_cron(name: &CronName) -> Self {
        Self(format!("c-{name}").into())
    }

    /// The id of one firing of a cron entry; the number is the firing's own.
    pub(crate) fn of_firing(name: &CronName, number: u64) -> Self {
        Self(format!("c-{name}-{number}").into())
    }

    /// Whether this is the id of a firing of that entry, or of all of them.
    pub(crate) fn is_of_cron(&self, name: &CronName) -> bool {
        let Some(rest) = self.0.strip_prefix("c-").and_then(|id| id.strip_prefix(name.as_str()))
        else {
            return false;
        };
        let is_number =
            |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        rest.is_empty() || rest.strip_prefix('-').is_some_and(is_number)
    }

    /// Checks an id that a caller chose: a token without one of the beginnings that we derive.
    pub(crate) fn chosen(text: &str) -> Result<Self> {
        let id = Self::new(text)?;
        match RESERVED_ID_PREFIXES.iter().find(|prefix| text.starts_with(**prefix)) {
            None => Ok(id),
            Some(prefix) => Err(Error::invalid(format!(
                "job id {text:?} begins with {prefix:?}, which is kept for ids that tidemill derives"
            ))),
        }
    }

    /// The run of this id where no header names one: itself if it is a UUID of version 7 (fresh by
    /// construction), else derived from the stream sequence.
    pub(crate) fn default_run(&self, sequence: u64) -> RunId {
        if self.is_uuid_v7() { self.as_run() } else { RunId(format!("s-{sequence}").into()) }
    }

    fn is_uuid_v7(&self) -> bool {
        self.0.len() == 36
            && uuid::Uuid::try_parse(&self.0).is_ok_and(|uuid| uuid.get_version_num() == 7)
    }

    /// The run that has the same text as this id.
    pub(crate) fn as_run(&self) -> RunId {
        RunId(self.0.clone())
    }
}

impl RunId {
    /// A fresh run: a UUID of version 7.
    pub(crate) fn fresh() -> Self {
        Self(uuid::Uuid::now_v7().hyphenated().to_string().into())
    }

    /// The run that retries the dead letter at `sequence`; repeating it is the same run.
    pub(crate) fn of_dead_letter(sequence: u64) -> Self {
        Self(format!("d-{sequence}").into())
    }
}

/// What all subjects and streams of one installation begin with: `tidemill` unless configured.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Namespace(Arc<str>);

impl Namespace {
    /// Checks that `text` can be a namespace: 1 to 32 characters of `a-z 0-9`.
    ///
    /// # Errors
    /// [`Error::is_invalid`], naming the text and the rule.
    pub fn new(text: impl AsRef<str>) -> Result<Self> {
        let text = text.as_ref();
        let valid = (1..=MAX_NAMESPACE_BYTES).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        if valid {
            return Ok(Self(text.into()));
        }
        Err(Error::invalid(format!(
            "namespace {text:?} is not valid: use 1 to {MAX_NAMESPACE_BYTES} characters of a-z 0-9"
        )))
    }

    /// The namespace as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Namespace {
    /// The namespace `tidemill`.
    fn default() -> Self {
        Self("tidemill".into())
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

impl FromStr for Namespace {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::new(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_follow_the_rule() {
        let longest = "x".repeat(64);
        for good in ["a", "send_email", "A-9_z", longest.as_str()] {
            assert!(Kind::new(good).is_ok(), "{good:?}");
        }
        let too_long = "x".repeat(65);
        for bad in ["", "a.b", "a b", "*", ">", "ä", "a\n", too_long.as_str()] {
            let error = Kind::new(bad).expect_err(bad);
            assert!(error.is_invalid());
            assert!(error.to_string().contains("kind"), "{error}");
        }
    }

    #[test]
    fn chosen_ids_keep_off_the_derived_ones() {
        assert!(JobId::chosen("order-17").is_ok());
        for reserved in ["s-1", "c-nightly-4", "d-9"] {
            assert!(JobId::chosen(reserved).expect_err(reserved).to_string().contains("kept for"));
        }
    }

    #[test]
    fn ids_of_keys_are_as_the_protocol_says() {
        let derived = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_URL, b"tidemill.unique");
        assert_eq!(KEY_NAMESPACE, derived);
        for line in crate::wire::protocol_block("text,keys").lines() {
            let (key, id) = line.split_once(" -> ").expect("key -> id");
            assert_eq!(JobId::of_key(key).as_str(), id);
        }
    }

    #[test]
    fn a_run_is_the_id_only_where_the_id_is_fresh() {
        let fresh = JobId::fresh();
        assert_eq!(fresh.default_run(7), fresh.as_run());
        let chosen = JobId::new("order-17").expect("valid");
        assert_eq!(chosen.default_run(7).as_str(), "s-7");
        let v4 = JobId::new("d7a0f29b-636e-499b-a6eb-05072292ad09").expect("valid");
        assert_eq!(v4.default_run(8).as_str(), "s-8");
    }

    #[test]
    fn namespaces_are_lower_case() {
        assert!(Namespace::new("shop2").is_ok());
        for bad in ["", "Shop", "a-b", "a.b"] {
            assert!(Namespace::new(bad).is_err(), "{bad:?}");
        }
    }
}
