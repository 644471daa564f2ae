//! Handlers: a user's async function for a kind, erased at the edge; and functions around it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;

use super::brief::Brevity;
use super::context::JobContext;
use super::panic;
use crate::error::Result;
use crate::kind::Job;
use crate::outcome::{JobError, Outcome, UNDECODABLE};
use crate::retry::RetryPolicy;
use crate::token::Kind;
use crate::wire::name;

/// How long an attempt may take unless the kind or the job says otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(600);

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type Function = Arc<dyn Fn(Bytes, JobContext) -> BoxFuture<Outcome> + Send + Sync>;
type Around = Arc<dyn Fn(JobContext, Next) -> BoxFuture<Outcome> + Send + Sync>;

/// What a handler or a middleware returns: the result as JSON, if there is one, or an error.
pub type HandlerResult = Result<Option<Box<RawValue>>, JobError>;

/// A function for jobs of a kind, with its limits.
#[derive(Clone)]
pub struct Handler {
    kind: Result<Kind, String>,
    function: Function,
    pub(super) timeout: Duration,
    pub(super) policy: RetryPolicy,
    pub(super) done: WhenDone,
    pub(super) brevity: Arc<Brevity>,
}

/// What is left of a job that is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WhenDone {
    /// Its completion.
    IsRecorded,
    /// Nothing.
    IsForgotten,
}

impl Handler {
    /// A handler for a typed payload. What it returns is the result in the completion.
    ///
    /// A payload that is no `J` buries its job with the path to the field that is wrong.
    pub fn new<J, F, Fut, R, E>(function: F) -> Self
    where
        J: Job,
        F: Fn(J, JobContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, E>> + Send + 'static,
        R: Serialize,
        E: Into<JobError>,
    {
        Self::erased(J::KIND, move |payload: Bytes, context: JobContext| {
            let job = decode::<J>(&payload, &context).map(|job| function(job, context));
            async move { to_outcome(job?.await) }
        })
    }

    /// A handler that blocks its thread: it runs on Tokio's pool for blocking work, and cannot be
    /// dropped when its time is up, only told by [`JobContext::cancellation`].
    pub fn blocking<J, F, R, E>(function: F) -> Self
    where
        J: Job,
        F: Fn(J, JobContext) -> Result<R, E> + Send + Sync + 'static,
        R: Serialize,
        E: Into<JobError>,
    {
        let function = Arc::new(function);
        Self::erased(J::KIND, move |payload: Bytes, context: JobContext| {
            let job = decode::<J>(&payload, &context);
            let function = function.clone();
            async move {
                let job = job?;
                let call = move || to_outcome(function(job, context));
                tokio::task::spawn_blocking(move || panic::capture(call))
                    .await
                    .unwrap_or_else(|error| Err(JobError::failed(error)))
            }
        })
    }

    /// A handler for any payload of a kind that has no Rust type.
    pub fn raw<F, Fut>(kind: impl AsRef<str>, function: F) -> Self
    where
        F: Fn(Bytes, JobContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = HandlerResult> + Send + 'static,
    {
        Self::erased(kind.as_ref(), function)
    }

    fn erased<F, Fut>(kind: &str, function: F) -> Self
    where
        F: Fn(Bytes, JobContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Outcome> + Send + 'static,
    {
        Self {
            kind: Kind::new(kind).map_err(|error| error.to_string()),
            function: Arc::new(move |payload, context| Box::pin(function(payload, context))),
            timeout: DEFAULT_TIMEOUT,
            policy: RetryPolicy::default(),
            done: WhenDone::IsRecorded,
            brevity: Arc::default(),
        }
    }

    /// How long one attempt may take. Default [`DEFAULT_TIMEOUT`].
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// When a failed attempt is tried again, where the job does not say.
    #[must_use]
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Keeps no completions of jobs that are done: they are acked and forgotten, which takes half the
    /// time. For jobs in great numbers that may run again: nobody can wait for one of these or see its
    /// result, [`NewJob::unique_for`](crate::NewJob::unique_for) does not hold once it is done, and a
    /// job that is done runs again where its ack is lost or another worker has it too. All other ends
    /// (dead, cancelled, expired) are recorded as ever.
    #[must_use]
    pub fn without_completions(mut self) -> Self {
        self.done = WhenDone::IsForgotten;
        self
    }

    pub(super) fn kind(&self) -> Result<Kind> {
        self.kind.clone().map_err(crate::Error::invalid)
    }

    /// Calls the function, inside of all `around` it.
    pub(super) fn call(
        &self,
        payload: Bytes,
        context: JobContext,
        around: &Arc<[Middleware]>,
    ) -> BoxFuture<Outcome> {
        if around.is_empty() {
            return (self.function)(payload, context);
        }
        let next = Next { payload, function: self.function.clone(), around: around.clone(), at: 0 };
        next.run(context)
    }
}

fn decode<J: Job>(payload: &[u8], context: &JobContext) -> Result<J, JobError> {
    let undecodable = |message: String| JobError::discard(message).kind(UNDECODABLE);
    if let Some(content_type) = context.headers().get(name::CONTENT_TYPE)
        && !is_json(content_type)
    {
        return Err(undecodable(format!(
            "content type is {content_type:?}: kind {} takes application/json",
            context.kind()
        )));
    }
    // What an error tells of a sealed payload would stand in the broker for all to read.
    let sealed = |error: &serde_json::Error| {
        let (line, column) = (error.line(), error.column());
        format!(
            "payload does not decode at line {line}, column {column}; what stands there is sealed"
        )
    };
    let mut json = serde_json::Deserializer::from_slice(payload);
    let job = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        undecodable(match context.is_sealed() {
            true => sealed(error.inner()),
            false => {
                format!("payload does not decode at {}: {}", error.path(), error.inner())
            }
        })
    })?;
    json.end().map_err(|error| {
        undecodable(match context.is_sealed() {
            true => sealed(&error),
            false => format!("payload does not decode: {error}"),
        })
    })?;
    Ok(job)
}

/// Whether a media type is JSON: `application/json`, `text/json` or anything `+json`.
fn is_json(content_type: &str) -> bool {
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    let (_, subtype) = media_type.split_once('/').unwrap_or_default();
    let subtype = subtype.to_ascii_lowercase();
    subtype == "json" || subtype.ends_with("+json")
}

fn to_outcome<R: Serialize, E: Into<JobError>>(returned: Result<R, E>) -> Outcome {
    let result = serde_json::value::to_raw_value(&returned.map_err(Into::into)?)
        .map_err(|error| JobError::discard(format!("the result does not serialize: {error}")))?;
    // `()` and `None` are no result.
    Ok((result.get() != "null").then_some(result))
}

/// A function around every handler of a worker: it may look, change the outcome, or not go on.
#[derive(Clone)]
pub(crate) struct Middleware(Around);

impl Middleware {
    pub(super) fn new<F, Fut>(function: F) -> Self
    where
        F: Fn(JobContext, Next) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = HandlerResult> + Send + 'static,
    {
        Self(Arc::new(move |context, next| Box::pin(function(context, next))))
    }
}

/// The rest of the way to a handler, as middleware sees it.
pub struct Next {
    payload: Bytes,
    function: Function,
    around: Arc<[Middleware]>,
    at: usize,
}

impl Next {
    /// The job's payload.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// Goes on to the next middleware, and in the end to the handler.
    pub fn run(
        mut self,
        context: JobContext,
    ) -> Pin<Box<dyn Future<Output = HandlerResult> + Send>> {
        match self.around.get(self.at).cloned() {
            Some(Middleware(around)) => {
                self.at += 1;
                around(context, self)
            }
            None => (self.function)(self.payload, context),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_by_its_media_type() {
        for json in ["application/json", "application/json; charset=utf-8", "text/json", "a/b+JSON"]
        {
            assert!(is_json(json), "{json}");
        }
        for other in ["", "text/plain", "application/x-protobuf", "application/jsonish"] {
            assert!(!is_json(other), "{other}");
        }
    }
}
