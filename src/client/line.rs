//! Jobs as lines of JSON, as they travel in files.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::NewJob;
use crate::error::{Error, Result};
use crate::priority::Priority;
use crate::retry::Backoff;
use crate::wire::time;

/// What a line can say; see [`NewJob::from_json`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    kind: String,
    payload: Option<Box<RawValue>>,
    queue: Option<String>,
    priority: Option<Priority>,
    id: Option<String>,
    unique: Option<String>,
    unique_for_ms: Option<u64>,
    max_retries: Option<u32>,
    backoff: Option<String>,
    timeout_ms: Option<u64>,
    #[serde(default, with = "time::rfc3339_option")]
    run_at: Option<DateTime<Utc>>,
    delay_ms: Option<u64>,
    #[serde(default, with = "time::rfc3339_option")]
    expires_at: Option<DateTime<Utc>>,
    #[serde(default)]
    tags: Vec<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
}

impl NewJob {
    /// A job from a JSON object: `kind`, and if need be `payload` (any JSON; `{}` unless given),
    /// `queue`, `priority`, `id`, `unique` (a key), `unique_for_ms`, `max_retries`, `backoff` (as on the
    /// wire, such as `exp:2000:2:3600000`), `timeout_ms`, `run_at` and `expires_at` (RFC 3339),
    /// `delay_ms`, `tags` (a list), `headers` (an object).
    ///
    /// ```
    /// # fn main() -> tidemill::Result<()> {
    /// use tidemill::NewJob;
    ///
    /// NewJob::from_json(r#"{"kind": "resize", "payload": {"width": 640}, "priority": "low"}"#)?;
    /// let refused = NewJob::from_json(r#"{"kind": "resize", "prio": "low"}"#).unwrap_err();
    /// assert!(refused.to_string().contains("unknown field `prio`"));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `is_invalid` where it is no such object, or says something that cannot be.
    pub fn from_json(text: impl AsRef<[u8]>) -> Result<Self> {
        if text.as_ref().trim_ascii_start().first() != Some(&b'{') {
            let message = r#"not a job: expected an object such as {"kind": "resize"}"#;
            return Err(Error::invalid(message));
        }
        let mut reader = serde_json::Deserializer::from_slice(text.as_ref());
        let line: Line = serde_path_to_error::deserialize(&mut reader)
            .and_then(|line| match reader.end() {
                Ok(()) => Ok(line),
                Err(error) => {
                    let track = serde_path_to_error::Track::new();
                    Err(serde_path_to_error::Error::new(track.path(), error))
                }
            })
            .map_err(|error| Error::invalid(format!("not a job: {}", told(&error))))?;
        line.into_job()
    }
}

/// What is wrong with a line, and where in it.
fn told(error: &serde_path_to_error::Error<serde_json::Error>) -> String {
    let (inner, path) = (error.inner(), error.path().to_string());
    let place = format!(" at line {} column {}", inner.line(), inner.column());
    let text = inner.to_string();
    let what = text.strip_suffix(&place).unwrap_or(&text);
    let at = if path == "." || what.contains(&format!("`{path}`")) {
        String::new()
    } else {
        format!("{path}: ")
    };
    format!("{at}{what} (column {})", inner.column())
}

impl Line {
    fn into_job(self) -> Result<NewJob> {
        let payload =
            self.payload.map_or_else(|| "{}".to_owned(), |payload| payload.get().to_owned());
        let mut job = NewJob::raw(self.kind, payload);
        if let Some(queue) = self.queue {
            job = job.queue(queue);
        }
        if let Some(priority) = self.priority {
            job = job.priority(priority);
        }
        if let Some(id) = self.id {
            job = job.id(id);
        }
        match (self.unique, self.unique_for_ms) {
            (Some(key), None) => job = job.unique(key),
            (Some(key), Some(period)) => job = job.unique_for(key, Duration::from_millis(period)),
            (None, Some(_)) => {
                return Err(Error::invalid("not a job: unique_for_ms without a key in unique"));
            }
            (None, None) => {}
        }
        if let Some(retries) = self.max_retries {
            job = job.max_retries(retries);
        }
        if let Some(text) = self.backoff {
            let backoff: Backoff =
                text.parse().map_err(|error| Error::invalid(format!("not a job: {error}")))?;
            job = job.backoff(&backoff);
        }
        if let Some(timeout) = self.timeout_ms {
            job = job.timeout(Duration::from_millis(timeout));
        }
        match (self.run_at, self.delay_ms) {
            (Some(time), None) => job = job.run_at(time),
            (None, Some(delay)) => job = job.delay(Duration::from_millis(delay)),
            (Some(_), Some(_)) => {
                return Err(Error::invalid("not a job: run_at and delay_ms exclude each other"));
            }
            (None, None) => {}
        }
        if let Some(time) = self.expires_at {
            job = job.expires_at(time);
        }
        for tag in self.tags {
            job = job.tag(tag);
        }
        for (name, value) in self.headers {
            job = job.header(name, value);
        }
        job.check()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::JobHeaders;

    #[test]
    fn all_that_a_line_can_say_reaches_the_job() {
        let text = r#"{"kind":"resize","payload":{"w": 1.50},"queue":"images","priority":"low",
            "id":"cover-17","max_retries":3,"backoff":"fixed:500","timeout_ms":90000,
            "delay_ms":60000,"expires_at":"2036-12-01T09:00:00Z","tags":["a","b"],
            "headers":{"X-Tenant":"blue"}}"#;
        let job = NewJob::from_json(text).expect("a job").finish().expect("valid");
        assert_eq!((job.queue.as_str(), job.kind.as_str()), ("images", "resize"));
        assert_eq!((job.priority, job.id.as_str()), (Priority::Low, "cover-17"));
        assert_eq!(job.payload, r#"{"w": 1.50}"#, "byte for byte");
        for (name, value) in [
            ("Tidemill-Max-Retries", "3"),
            ("Tidemill-Backoff", "fixed:500"),
            ("Tidemill-Timeout", "90000"),
            ("Tidemill-Run-After", "+60000"),
            ("Tidemill-Expires-At", "2036-12-01T09:00:00.000Z"),
            ("Tidemill-Tags", "a,b"),
            ("X-Tenant", "blue"),
        ] {
            assert_eq!(job.headers.get(name), Some(value), "{name}");
        }
        let least = NewJob::from_json(r#"{"kind":"resize"}"#).expect("a job").finish();
        assert_eq!(least.expect("valid").payload, "{}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let table = [
            ("", "expected an object"),
            ("[\"resize\"]", "expected an object"),
            ("{", "EOF"),
            ("{}", "missing field `kind`"),
            (r#"{"kind":7}"#, "kind: invalid type"),
            (r#"{"kind":"a"} more"#, "trailing characters"),
            (r#"{"kind":"a","paylod":1}"#, "unknown field `paylod`"),
            (r#"{"kind":"a","priority":"urgent"}"#, "priority: "),
            (r#"{"kind":"a","run_at":"soon"}"#, "run_at: not an RFC 3339 time"),
            (r#"{"kind":"a","backoff":"none"}"#, "backoff \"none\""),
            (r#"{"kind":"a b"}"#, "kind \"a b\""),
            (r#"{"kind":"a","id":"s-7"}"#, "kept for ids"),
            (r#"{"kind":"a","unique_for_ms":5}"#, "without a key"),
            (r#"{"kind":"a","delay_ms":5,"run_at":"2036-12-01T09:00:00Z"}"#, "exclude each other"),
        ];
        for (text, reason) in table {
            let error = NewJob::from_json(text).expect_err(text);
            assert!(error.is_invalid() && error.to_string().contains(reason), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn what_a_line_says_is_what_a_worker_reads(
            kind in "[A-Za-z0-9_]{1,30}", queue in "[a-z]{1,20}", id in "[a-z0-9]{2,30}",
            lane in prop::sample::select(Priority::ALL.to_vec()),
            (retries, timeout, delay) in (any::<u32>(), 1u64..1_000_000_000, 0u64..1_000_000_000),
            tags in prop::collection::vec("[a-z]{1,8}", 1..5), text in ".{0,60}",
        ) {
            let payload = serde_json::json!({ "text": text, "list": [1, null, 2.5] });
            let line = serde_json::json!({
                "kind": kind, "queue": queue, "id": id, "priority": lane, "payload": payload,
                "max_retries": retries, "timeout_ms": timeout, "delay_ms": delay, "tags": tags,
            });
            let job = NewJob::from_json(line.to_string()).expect("a job").finish().expect("valid");
            prop_assert_eq!((job.kind.as_str(), job.queue.as_str()), (&*kind, &*queue));
            prop_assert_eq!((job.id.as_str(), job.priority), (&*id, lane));
            let read: serde_json::Value = serde_json::from_slice(&job.payload).expect("JSON");
            prop_assert_eq!(read, payload);
            let headers = JobHeaders::parse(&job.headers).expect("a worker can read it");
            prop_assert_eq!(headers.max_retries, Some(retries));
            prop_assert_eq!(headers.timeout, Some(Duration::from_millis(timeout)));
            prop_assert_eq!(headers.tags, tags);
            let stored = time::from_nanos(0);
            let due = headers.run_after.map(|run_after| run_after.due(stored));
            prop_assert_eq!(due, Some(time::after(stored, Duration::from_millis(delay))));
        }
    }
}
