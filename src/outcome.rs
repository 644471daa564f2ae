//! What a handler can say, and what it means: outcome to settlement, pure.

use std::fmt;
use std::time::Duration;

use serde_json::value::RawValue;

use crate::retry::{MAX_DELAY, RetryPolicy};
use crate::wire::ErrorInfo;

/// A snooze costs no attempt, but a job that snoozes more often than this is buried.
pub const MAX_SNOOZES: u32 = 1000;

/// Why a handler did not finish its job, and what is to happen with it.
///
/// Any error converts into one by `?` and means: try again by the retry policy. The constructors
/// say otherwise. (Like `anyhow::Error` it is no [`std::error::Error`] itself, which is what makes
/// that conversion possible.)
///
/// ```
/// use std::time::Duration;
/// use tidemill::JobError;
///
/// fn charge(card: &str) -> Result<(), JobError> {
///     let digits: u64 = card.parse()?; // retried
///     if digits == 0 {
///         return Err(JobError::discard("there is no card 0")); // buried at once
///     }
///     if digits == 1 {
///         let minute = Duration::from_secs(60);
///         return Err(JobError::failed("bank is closed").retry_after(minute));
///     }
///     Ok(())
/// }
/// ```
#[derive(Debug)]
pub struct JobError {
    verdict: Verdict,
    info: Box<ErrorInfo>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Retry(Option<Duration>),
    Snooze(Duration),
    Discard,
    Cancelled,
}

impl JobError {
    fn with(verdict: Verdict, kind: &str, message: impl fmt::Display) -> Self {
        Self { verdict, info: Box::new(ErrorInfo::new(kind, message.to_string())) }
    }

    /// A failed attempt: retried by the policy, buried when the attempts are used up.
    pub fn failed(message: impl fmt::Display) -> Self {
        Self::with(Verdict::Retry(None), "failed", message)
    }

    /// Not now: come back after `delay`. Costs no attempt; [`MAX_SNOOZES`] bury.
    pub fn snooze(delay: Duration) -> Self {
        Self::with(Verdict::Snooze(delay.min(MAX_DELAY)), "snooze", "snoozed by its handler")
    }

    /// Bury the job at once: trying again is pointless.
    pub fn discard(message: impl fmt::Display) -> Self {
        Self::with(Verdict::Discard, "discarded", message)
    }

    /// End the job as cancelled: it is not wanted any more.
    pub fn cancelled(message: impl fmt::Display) -> Self {
        Self::with(Verdict::Cancelled, "cancelled", message)
    }

    /// For a failure: the delay before the next attempt, in place of the policy's.
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        if let Verdict::Retry(after) = &mut self.verdict {
            *after = Some(delay.min(MAX_DELAY));
        }
        self
    }

    /// What is recorded of this error.
    pub fn info(&self) -> &ErrorInfo {
        &self.info
    }

    /// Names the class of the error in its records, in place of the one the constructor gave.
    #[must_use]
    pub fn kind(mut self, kind: impl Into<String>) -> Self {
        self.info.kind = kind.into();
        self
    }

    pub(crate) fn with_backtrace(mut self, backtrace: Option<String>) -> Self {
        self.info.backtrace = backtrace;
        self
    }
}

impl<E: std::error::Error + Send + Sync + 'static> From<E> for JobError {
    fn from(error: E) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            message.push_str(": ");
            message.push_str(&cause.to_string());
            source = cause.source();
        }
        Self::failed(message)
    }
}

impl fmt::Display for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.info.message)
    }
}

/// How an attempt ended, as far as the handler goes.
pub(crate) type Outcome = Result<Option<Box<RawValue>>, JobError>;

/// Why a job is buried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BuryReason {
    /// Every attempt failed.
    AttemptsExhausted,
    /// The handler said so.
    Discarded,
    /// The payload is not what the handler takes.
    Undecodable,
    /// A header of ours does not parse or is given twice.
    BadHeader,
    /// The subject's tokens fit no record.
    BadSubject,
    /// No live worker knows the kind.
    UnknownKind,
    /// The last attempt took its worker with it.
    WorkerLost,
    /// [`MAX_SNOOZES`] snoozes.
    SnoozedTooOften,
    /// It is sealed, and the worker's keys do not open it.
    Unsealable,
    /// The queue takes signed jobs alone, and it is not signed.
    Unsigned,
    /// The same, and its signature is none of a trusted key for this job.
    BadSignature,
}

impl BuryReason {
    const ALL: [Self; 11] = [
        Self::AttemptsExhausted,
        Self::Discarded,
        Self::Undecodable,
        Self::BadHeader,
        Self::BadSubject,
        Self::UnknownKind,
        Self::WorkerLost,
        Self::SnoozedTooOften,
        Self::Unsealable,
        Self::Unsigned,
        Self::BadSignature,
    ];

    /// The reason of that name, as records tell it.
    pub(crate) fn from_wire(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == text)
    }

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::AttemptsExhausted => "attempts_exhausted",
            Self::Discarded => "discarded",
            Self::Undecodable => "undecodable",
            Self::BadHeader => "bad_header",
            Self::BadSubject => "bad_subject",
            Self::UnknownKind => "unknown_kind",
            Self::WorkerLost => "worker_lost",
            Self::SnoozedTooOften => "snoozed_too_often",
            Self::Unsealable => "unsealable",
            Self::Unsigned => "unsigned",
            Self::BadSignature => "bad_signature",
        }
    }
}

/// What becomes of a job that a worker holds.
#[derive(Debug)]
pub(crate) enum Settlement {
    /// Done.
    Complete { result: Option<Box<RawValue>> },
    /// Failed: to be tried again after `delay`.
    Retry { delay: Duration, error: Box<ErrorInfo> },
    /// Put off by its handler.
    Snooze { delay: Duration, snoozes: u32 },
    /// Not to be tried again.
    Bury { reason: BuryReason, error: Box<ErrorInfo> },
    /// Not wanted any more.
    Cancel { reason: String },
    /// Not started in time.
    Expire,
    /// Given back after `delay`, for this or another worker; costs no attempt.
    Release { delay: Duration },
    /// Not due yet, after `used` attempts: to come back after `delay`.
    PutOff { delay: Duration, used: u32 },
    /// Ended before: only taken off the queue.
    Forget,
}

/// The class under which a payload that does not decode is recorded.
pub(crate) const UNDECODABLE: &str = "undecodable";

/// Decides what becomes of a job whose attempt number `attempt` ended with `outcome`, after
/// `snoozes` earlier snoozes. `chance` in 0 to 1 feeds the jitter.
pub(crate) fn settle(
    outcome: Outcome,
    attempt: u32,
    snoozes: u32,
    policy: &RetryPolicy,
    chance: f64,
) -> Settlement {
    let JobError { verdict, info } = match outcome {
        Ok(result) => return Settlement::Complete { result },
        Err(error) => error,
    };
    match verdict {
        Verdict::Retry(_) if attempt >= policy.max_attempts() => {
            Settlement::Bury { reason: BuryReason::AttemptsExhausted, error: info }
        }
        Verdict::Retry(after) => Settlement::Retry {
            delay: after.unwrap_or_else(|| policy.backoff.delay(attempt, chance)),
            error: info,
        },
        Verdict::Snooze(_) if snoozes >= MAX_SNOOZES => {
            Settlement::Bury { reason: BuryReason::SnoozedTooOften, error: info }
        }
        Verdict::Snooze(delay) => Settlement::Snooze { delay, snoozes: snoozes + 1 },
        Verdict::Discard if info.kind == UNDECODABLE => {
            Settlement::Bury { reason: BuryReason::Undecodable, error: info }
        }
        Verdict::Discard => Settlement::Bury { reason: BuryReason::Discarded, error: info },
        Verdict::Cancelled => Settlement::Cancel { reason: info.message },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retry::Backoff;

    const SECOND: Duration = Duration::from_secs(1);

    fn policy() -> RetryPolicy {
        RetryPolicy::new(2, Backoff::linear(2 * SECOND))
    }

    fn of(outcome: Outcome, attempt: u32, snoozes: u32) -> Settlement {
        settle(outcome, attempt, snoozes, &policy(), 0.5)
    }

    #[test]
    fn a_failure_is_retried_until_the_attempts_are_used() {
        for (attempt, seconds) in [(1, 2), (2, 4)] {
            match of(Err(JobError::failed("no")), attempt, 0) {
                Settlement::Retry { delay, error } => {
                    assert_eq!(delay, seconds * SECOND);
                    assert_eq!(error.message, "no");
                }
                other => panic!("{other:?}"),
            }
        }
        let last = of(Err(JobError::failed("no")), 3, 0);
        assert!(matches!(last, Settlement::Bury { reason: BuryReason::AttemptsExhausted, .. }));
    }

    #[test]
    fn the_handler_may_name_the_delay() {
        let late = Err(JobError::failed("no").retry_after(60 * SECOND));
        assert!(matches!(of(late, 1, 0), Settlement::Retry { delay, .. } if delay == 60 * SECOND));
        let exhausted = Err(JobError::failed("no").retry_after(60 * SECOND));
        assert!(matches!(of(exhausted, 3, 0), Settlement::Bury { .. }));
    }

    #[test]
    fn a_snooze_costs_no_attempt_but_is_bounded() {
        let snoozed = of(Err(JobError::snooze(SECOND)), 9, 41);
        assert!(matches!(snoozed, Settlement::Snooze { snoozes: 42, .. }));
        let worn_out = of(Err(JobError::snooze(SECOND)), 1, MAX_SNOOZES);
        assert!(matches!(worn_out, Settlement::Bury { reason: BuryReason::SnoozedTooOften, .. }));
    }

    #[test]
    fn discard_and_cancel_end_at_once() {
        let discarded = of(Err(JobError::discard("never")), 1, 0);
        assert!(matches!(discarded, Settlement::Bury { reason: BuryReason::Discarded, .. }));
        let cancelled = of(Err(JobError::cancelled("not wanted")), 1, 0);
        assert!(matches!(cancelled, Settlement::Cancel { reason } if reason == "not wanted"));
    }

    #[test]
    fn causes_are_part_of_the_message() {
        let cause = crate::Error::invalid("inner");
        let error: JobError = crate::Error::invalid("outer").because(cause).into();
        assert_eq!(error.info().message, "outer: inner");
    }
}
