//! What to do with a job that was handed over: decided before it takes a slot. Pure.

use std::time::Duration;

use super::history::History;
use super::job::Attempt;
use crate::outcome::BuryReason;
use crate::retry::RetryPolicy;
use crate::sign::{Distrust, TrustedKeys};
use crate::token::JobId;
use crate::wire::time::{self, Time};
use crate::wire::{ErrorInfo, Headers, JobHeaders, JobOptions, RecordKey, Unique, Unvouched};

/// A message, and whose run it says it is.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) key: RecordKey,
    pub(crate) options: JobOptions,
    /// Why it is not taken.
    pub(crate) refused: Option<(BuryReason, String)>,
    /// Whose run it says it is, where nobody vouches for that: its key is another then.
    pub(crate) unvouched: Option<Box<Unvouched>>,
}

impl Claim {
    pub(crate) fn new(
        key: RecordKey,
        options: JobOptions,
        refused: Option<(BuryReason, String)>,
    ) -> Self {
        Self { key, options, refused, unvouched: None }
    }

    /// In a queue that takes signed jobs alone. What none of its keys vouches for is refused, and goes on
    /// record by its sequence: as the run that it says it is, anybody could end that by it.
    pub(crate) fn vouched(
        mut self,
        by: &TrustedKeys,
        headers: &Headers,
        body: &[u8],
        sequence: u64,
    ) -> Self {
        // Copies change it, so it is not signed: the ledger alone counts attempts.
        if self.options.attempts_used.is_some() {
            self.options.attempts_used = Some(0);
        }
        if self.refused.is_none() {
            let signature = self.options.signature.as_deref();
            self.refused = match by.check(signature, &self.key, headers, body) {
                Ok(()) => return self,
                Err(Distrust::Unsigned) => {
                    let problem = "its queue takes signed jobs alone, and it is not signed";
                    Some((BuryReason::Unsigned, problem.to_owned()))
                }
                Err(Distrust::Bad(problem)) => Some((BuryReason::BadSignature, problem)),
            };
        }
        let id = JobId::of_sequence(sequence);
        let by_sequence = RecordKey { run: id.as_run(), id, ..self.key.clone() };
        // Without an id of its own it claims nothing.
        if self.key != by_sequence {
            let RecordKey { id, run, .. } = std::mem::replace(&mut self.key, by_sequence);
            self.unvouched = Some(Box::new(Unvouched { id, run }));
        }
        self
    }
}

/// What tells an undisturbed first delivery from one that may not be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FirstSight {
    /// The broker's count of deliveries.
    pub(crate) delivered: u64,
    pub(crate) sequence: u64,
    pub(crate) stored: Time,
    /// Since when the lane's consumer remembers what it hands out. One that was made anew, or has begun
    /// anew, knows nothing of earlier deliveries.
    pub(crate) remembers_since: Time,
    /// Up to this sequence a broker that crashed may have forgotten deliveries.
    pub(crate) suspect_up_to: u64,
}

impl FirstSight {
    /// Whether nobody can have touched this job before.
    pub(crate) fn is_undisturbed(self, options: &JobHeaders) -> bool {
        self.delivered == 1
            && options.attempts_used.is_none()
            && self.stored > self.remembers_since
            && self.sequence > self.suspect_up_to
            // Whether its key was done lately has to be looked up.
            && !matches!(options.unique, Some(Unique::For(_)))
    }
}

/// What becomes of a job before it runs.
#[derive(Debug, PartialEq)]
pub(crate) enum Admission {
    /// It may run.
    Run(Attempt),
    /// Not yet: it is to come back after `delay`, with `used` attempts.
    NotYet { delay: Duration, used: u32 },
    /// It has ended before: only take it off the queue.
    HasEnded,
    /// Its key was done too short a while ago.
    Duplicate,
    /// It was not started in time.
    Expired,
    /// It will not be tried again.
    Bury { reason: BuryReason, error: ErrorInfo, attempts: u32 },
}

/// The job as far as admission goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate<'a> {
    pub(crate) options: &'a JobHeaders,
    pub(crate) sequence: u64,
    pub(crate) stored: Time,
}

/// Decides about a job that nobody can have touched. Most need no clock.
pub(crate) fn admit_undisturbed(job: Candidate<'_>, now: impl FnOnce() -> Time) -> Admission {
    let JobHeaders { run_after: None, expires_at: None, .. } = job.options else {
        return not_now(job, now()).unwrap_or(Admission::Run(Attempt::UNDISTURBED));
    };
    Admission::Run(Attempt::UNDISTURBED)
}

/// Decides about a job with what is on record of it.
pub(crate) fn admit(
    job: Candidate<'_>,
    history: History,
    policy: &RetryPolicy,
    now: Time,
) -> Admission {
    let used = history.used.max(job.options.attempts_used.unwrap_or(0));
    let error = |fallback: &str| {
        history.error.clone().unwrap_or_else(|| ErrorInfo::new("unknown", fallback))
    };
    if history.has_ended {
        return Admission::HasEnded;
    }
    if let Some(reason) = &history.to_bury {
        let reason = BuryReason::from_wire(reason).unwrap_or(BuryReason::AttemptsExhausted);
        return Admission::Bury {
            reason,
            error: error("the error is not on record"),
            attempts: used,
        };
    }
    if used == 0 {
        if history.is_duplicate {
            return Admission::Duplicate;
        }
        if let Some(admission) = not_now(job, now) {
            return admission;
        }
    }
    // One that knows of fewer attempts is no copy that was made for it to run at once, but was sent again by
    // a producer that did not hear that the first had come in.
    let knows_less = job.options.attempts_used.unwrap_or(0) < history.used;
    match history.retry_at {
        // A delay that the broker forgot: the rest of it.
        Some((sequence, at)) if (sequence == job.sequence || knows_less) && at > now => {
            return Admission::NotYet { delay: time::until(at, now), used };
        }
        Some(_) | None => {}
    }
    if used >= policy.max_attempts() {
        let (reason, error) = if history.was_lost {
            let message =
                "the worker was lost in the last attempt: it crashed, was killed or cut off";
            (BuryReason::WorkerLost, ErrorInfo::new("worker_lost", message))
        } else {
            (BuryReason::AttemptsExhausted, error("all attempts were used before"))
        };
        return Admission::Bury { reason, error, attempts: used };
    }
    let History { snoozes, ledger, .. } = history;
    Admission::Run(Attempt { number: used + 1, snoozes, announce: true, ledger })
}

/// What keeps a job that has not started from starting now: not due, or expired.
fn not_now(job: Candidate<'_>, now: Time) -> Option<Admission> {
    if job.options.expires_at.is_some_and(|expiry| expiry <= now) {
        return Some(Admission::Expired);
    }
    let due = job.options.run_after?.due(job.stored);
    if due <= now {
        return None;
    }
    // Whichever comes first is worth coming back for.
    let next = job.options.expires_at.map_or(due, |expiry| expiry.min(due));
    Some(Admission::NotYet { delay: time::until(next, now), used: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retry::Backoff;
    use crate::sign::SigningKey;
    use crate::wire::{RunAfter, Scope};

    const SECOND: Duration = Duration::from_secs(1);

    fn claim(id: &str, run: &str, refused: Option<(BuryReason, String)>) -> Claim {
        let key = RecordKey::of("default", "send_email", id, run);
        let options = JobHeaders { attempts_used: Some(7), ..JobHeaders::default() };
        Claim::new(key, options.into(), refused)
    }

    #[test]
    fn what_nobody_vouches_for_is_on_record_by_its_sequence() {
        let key = SigningKey::generate();
        let trusted = TrustedKeys::new([key.public_key()]).expect("a key");
        let vouched = |claim: Claim| claim.vouched(&trusted, &Headers::new(), b"{}", 9);
        let mut signed = claim("order-17", "r1", None);
        let signature = key.sign(Scope::Job, &signed.key, &Headers::new(), b"{}");
        signed.options.signature = signature.map(Box::new);
        let signed = vouched(signed);
        assert_eq!((signed.key.id.as_str(), signed.key.run.as_str()), ("order-17", "r1"));
        assert!(signed.refused.is_none() && signed.unvouched.is_none());
        assert_eq!(signed.options.attempts_used, Some(0), "looked up, and not believed");

        let bad_header = Some((BuryReason::BadHeader, "no".to_owned()));
        for (refused, reason) in
            [(None, BuryReason::Unsigned), (bad_header.clone(), BuryReason::BadHeader)]
        {
            let refused = vouched(claim("order-17", "r1", refused));
            assert_eq!((refused.key.id.as_str(), refused.key.run.as_str()), ("s-9", "s-9"));
            assert_eq!(refused.refused.map(|(reason, _)| reason), Some(reason));
            let claimed = refused.unvouched.expect("it claimed something");
            assert_eq!((claimed.id.as_str(), claimed.run.as_str()), ("order-17", "r1"));
        }
        let nameless = vouched(claim("s-9", "s-9", None));
        assert!(nameless.unvouched.is_none() && nameless.key.id.as_str() == "s-9");
    }

    fn at(seconds: i64) -> Time {
        time::from_nanos(seconds * 1_000_000_000)
    }

    fn policy() -> RetryPolicy {
        RetryPolicy::new(2, Backoff::default())
    }

    fn not_yet(seconds: u32, used: u32) -> Admission {
        Admission::NotYet { delay: seconds * SECOND, used }
    }

    fn job(options: &JobHeaders) -> Candidate<'_> {
        Candidate { options, sequence: 9, stored: at(100) }
    }

    fn admitted(options: &JobHeaders, history: History, now: i64) -> Admission {
        admit(job(options), history, &policy(), at(now))
    }

    #[test]
    fn what_is_undisturbed() {
        let sight = FirstSight {
            delivered: 1,
            sequence: 9,
            stored: at(100),
            remembers_since: at(50),
            suspect_up_to: 8,
        };
        let plain = JobHeaders::default();
        assert!(sight.is_undisturbed(&plain));
        assert!(!FirstSight { delivered: 2, ..sight }.is_undisturbed(&plain));
        assert!(!FirstSight { remembers_since: at(100), ..sight }.is_undisturbed(&plain));
        assert!(!FirstSight { suspect_up_to: 9, ..sight }.is_undisturbed(&plain));
        let copied = JobHeaders { attempts_used: Some(0), ..JobHeaders::default() };
        assert!(!sight.is_undisturbed(&copied));
    }

    #[test]
    fn due_and_expiry_count_until_the_first_attempt_starts() {
        let later = JobHeaders {
            run_after: Some(RunAfter::AfterStore(10 * SECOND)),
            expires_at: Some(at(120)),
            ..JobHeaders::default()
        };
        assert_eq!(admit_undisturbed(job(&later), || at(104)), not_yet(6, 0));
        assert_eq!(
            admit_undisturbed(job(&later), || at(110)),
            Admission::Run(Attempt::UNDISTURBED)
        );
        assert_eq!(admit_undisturbed(job(&later), || at(120)), Admission::Expired);
        let retried = History { used: 1, ..History::default() };
        assert!(matches!(admitted(&later, retried, 130), Admission::Run(_)));
        let hopeless = JobHeaders { expires_at: Some(at(105)), ..later };
        assert_eq!(admit_undisturbed(job(&hopeless), || at(101)), not_yet(4, 0));
    }

    #[test]
    fn the_larger_of_header_and_ledger_counts() {
        let copied = JobHeaders { attempts_used: Some(1), ..JobHeaders::default() };
        let run =
            |number| Admission::Run(Attempt { number, snoozes: 0, announce: true, ledger: 0 });
        assert_eq!(admitted(&copied, History::default(), 200), run(2));
        assert_eq!(admitted(&copied, History { used: 2, ..History::default() }, 200), run(3));
        assert_eq!(admitted(&JobHeaders::default(), History::default(), 200), run(1));
    }

    #[test]
    fn an_early_delivery_waits_for_the_rest_of_its_own_delay() {
        let options = JobHeaders::default();
        let bound = |sequence| History {
            used: 1,
            retry_at: Some((sequence, at(210))),
            ..History::default()
        };
        assert_eq!(admitted(&options, bound(9), 207), not_yet(3, 1));
        assert!(matches!(admitted(&options, bound(9), 210), Admission::Run(_)));
        // Said of another message: of the one this was copied from, to run at once.
        let copied = JobHeaders { attempts_used: Some(1), ..JobHeaders::default() };
        assert!(matches!(admitted(&copied, bound(8), 207), Admission::Run(_)));
        // Sent again by who did not know that the first one was worked.
        for sent_again in [options, JobHeaders { attempts_used: Some(0), ..JobHeaders::default() }]
        {
            assert_eq!(admitted(&sent_again, bound(8), 207), not_yet(3, 1));
        }
    }

    #[test]
    fn used_up_attempts_bury_for_the_reason_on_record() {
        let options = JobHeaders::default();
        let reason = |history| match admitted(&options, history, 200) {
            Admission::Bury { reason, .. } => reason,
            other => panic!("{other:?}"),
        };
        let used = History { used: 3, ..History::default() };
        assert_eq!(reason(used), BuryReason::AttemptsExhausted);
        let lost = History { used: 3, was_lost: true, ..History::default() };
        assert_eq!(reason(lost), BuryReason::WorkerLost);
        let to_bury = History { used: 1, to_bury: Some("discarded".into()), ..History::default() };
        assert_eq!(reason(to_bury), BuryReason::Discarded);
        let ended = History { has_ended: true, used: 3, ..History::default() };
        assert_eq!(admitted(&options, ended, 200), Admission::HasEnded);
    }
}
