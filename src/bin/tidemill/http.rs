//! Web hooks as handlers: the payload is posted, the answer is the outcome.
//!
//! 2xx is done with the body as the result; 429 and 503 with `Retry-After` snooze; other 4xx bury;
//! everything else is a failed attempt.

use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use reqwest::{Client, StatusCode, redirect};
use tidemill::{Handler, HandlerResult, JobContext, JobError};

use crate::exec::{Assignment, to_result};
use crate::exit::UsageError;

/// How long connecting may take; the attempt as a whole is bounded by its timeout.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What is kept of an answer that is an error, in bytes.
const MAX_ERROR_BYTES: usize = 2 * 1024;

/// What is kept of an answer that is a result, in bytes.
const MAX_RESULT_BYTES: usize = 4 * 1024 * 1024;

/// The one client of all hooks, which keeps connections open.
pub(crate) fn client() -> anyhow::Result<Client> {
    // Only fails where one is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        // A redirect would turn a post into a get.
        .redirect(redirect::Policy::none())
        .user_agent(concat!("tidemill/", env!("CARGO_PKG_VERSION")))
        .build()
        .context("cannot make an HTTP client")
}

/// A handler that posts to a URL.
pub(crate) fn handler(client: &Client, assignment: &Assignment) -> anyhow::Result<Handler> {
    let target = &assignment.target;
    let url = reqwest::Url::parse(target)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https"))
        .ok_or_else(|| UsageError(format!("{target:?} is no URL: use http://… or https://…")))?;
    let client = client.clone();
    Ok(Handler::raw(&assignment.kind, move |payload, context| {
        let (client, url) = (client.clone(), url.clone());
        async move { post(&client, url, payload, &context).await }
    }))
}

async fn post(
    client: &Client,
    url: reqwest::Url,
    payload: Bytes,
    context: &JobContext,
) -> HandlerResult {
    let content_type = context.headers().get("Content-Type").unwrap_or("application/json");
    let request = client
        .post(url)
        .header(CONTENT_TYPE, content_type)
        .header("Tidemill-Id", context.id().as_str())
        .header("Tidemill-Run", context.run().as_str())
        .header("Tidemill-Kind", context.kind().as_str())
        .header("Tidemill-Queue", context.queue().as_str())
        .header("Tidemill-Attempt", context.attempt())
        .body(payload);
    let answer = request.send().await?;
    let (status, headers) = (answer.status(), answer.headers().clone());
    if let Some(length) = answer.content_length()
        && length > MAX_RESULT_BYTES as u64
    {
        return Err(JobError::discard(format!("{status}: the answer has {length} bytes")));
    }
    let body = answer.bytes().await?;
    outcome(status, &headers, &body)
}

fn outcome(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> HandlerResult {
    if status.is_success() {
        return Ok(to_result(body));
    }
    let come_again =
        matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
    if come_again && let Some(delay) = retry_after(headers) {
        return Err(JobError::snooze(delay));
    }
    let text = String::from_utf8_lossy(&body[..body.len().min(MAX_ERROR_BYTES)]);
    let message = format!("{status}: {}", text.trim());
    if status.is_client_error() && !come_again {
        return Err(JobError::discard(message));
    }
    Err(JobError::failed(message))
}

/// The delay that a server asks for: in seconds, or until a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?;
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = chrono::DateTime::parse_from_rfc2822(text).ok()?;
    (date.with_timezone(&chrono::Utc) - chrono::Utc::now()).to_std().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(status: u16, retry_after: Option<&str>) -> String {
        let mut headers = HeaderMap::new();
        if let Some(value) = retry_after {
            headers.insert(RETRY_AFTER, value.parse().expect("a header"));
        }
        let status = StatusCode::from_u16(status).expect("a status");
        match outcome(status, &headers, b"text") {
            Ok(result) => result.map_or_else(String::new, |raw| raw.get().to_owned()),
            Err(error) => error.info().kind.clone(),
        }
    }

    #[test]
    fn answers_as_a_table() {
        let table = [
            (200, None, "\"text\""),
            (204, None, "\"text\""),
            (429, Some("7"), "snooze"),
            (503, Some("7"), "snooze"),
            (429, None, "failed"),
            (503, None, "failed"),
            (400, None, "discarded"),
            (404, Some("7"), "discarded"),
            (500, Some("7"), "failed"),
            (302, None, "failed"),
        ];
        for (status, retry_after, expected) in table {
            assert_eq!(of(status, retry_after), expected, "{status} {retry_after:?}");
        }
    }

    #[test]
    fn a_date_is_a_delay_too() {
        let mut headers = HeaderMap::new();
        let soon = chrono::Utc::now() + chrono::TimeDelta::seconds(90);
        headers.insert(RETRY_AFTER, soon.to_rfc2822().parse().expect("a header"));
        let delay = retry_after(&headers).expect("a delay");
        assert!((85..=90).contains(&delay.as_secs()), "{delay:?}");
    }
}
