//! One attempt: announce, run the handler within its limits, hand the outcome on to be settled.

use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::poll;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::Instrument;

use super::context::JobContext;
use super::handler::{Handler, WhenDone};
use super::health::Part;
use super::job::Work;
use super::lease::{Lease, Stop};
use super::settle::ToSettle;
use super::{Shared, panic};
use crate::outcome::{BuryReason, JobError, Outcome, Settlement, settle};
use crate::seal::open_payload;
use crate::wire::time::Time;
use crate::wire::{AttemptEvent, ErrorInfo, RecordKind};

/// How long a handler that is told to stop may take to do so before it is dropped.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// A job whose attempt cannot be written down is given back for this long, or for `ack_wait` where
/// that is shorter.
const UNRECORDED_DELAY: Duration = Duration::from_secs(30);

/// How a handler came to its end.
enum Ended {
    /// By itself.
    Returned(Outcome),
    /// It took too long.
    TimedOut,
    /// It was told to stop.
    Stopped(Stop),
}

/// An attempt that may begin.
struct Begun {
    work: Work,
    payload: Bytes,
    started_at: Time,
}

/// Runs one attempt and queues what becomes of its job; `now` is when it was taken into its slot. Returns
/// when the handler was through with it.
pub(super) async fn attempt(
    shared: &Shared,
    handler: Option<&Handler>,
    work: Work,
    now: Instant,
) -> Instant {
    let Some(handler) = handler else {
        // Admission lets through only kinds that are registered.
        shared.settle(work, Settlement::Release { delay: UNRECORDED_DELAY }).await;
        return now;
    };
    let Some(Begun { work, payload, started_at }) = begin(shared, work, now).await else {
        return Instant::now();
    };
    let span = tracing::info_span!(
        "job",
        id = %work.key.id,
        kind = %work.key.kind,
        attempt = work.attempt.number
    );
    let ended = run(shared, handler, &work, payload, started_at).instrument(span).await;
    let ended_at = Instant::now();
    if let Some(settlement) = decide(handler, &work, ended, ended_at) {
        shared.settler.settle(ToSettle { work, settlement, started_at: Some(started_at) }).await;
    } else {
        tracing::warn!(job = %work.key.id, "the lease is lost; another worker has the job");
        shared.release(&work);
    }
    ended_at
}

/// Announces an attempt where it has to be; `None` where it is not to be run, and that is settled. What
/// is rare is boxed: it takes ten times the room of the rest.
async fn begin(shared: &Shared, mut work: Work, now: Instant) -> Option<Begun> {
    // In this order, so that whoever cancels finds it running or is found by it.
    let started_at = shared.clock.at(now);
    work.lease.runs(work.attempt.number, started_at);
    if shared.cancelled.contains(&work.key) {
        shared.settle(work, Settlement::Forget).await;
        return None;
    }
    // The process may have been halted since it was fetched.
    if work.lease.is_lost_at(now) {
        shared.lost_before_it_began(&work);
        return None;
    }
    if work.lease.stopped().is_some() {
        shared.settle(work, Settlement::Release { delay: Duration::ZERO }).await;
        return None;
    }
    let payload = match open(shared, &work) {
        Ok(payload) => payload,
        Err(problem) => {
            Box::pin(bury_unopened(shared, work, problem)).await;
            return None;
        }
    };
    if work.attempt.announce {
        work = Box::pin(announce(shared, work, started_at)).await?;
    }
    Some(Begun { work, payload, started_at })
}

/// Writes down that an attempt starts; `None` where it is not to be run, and that is settled.
async fn announce(shared: &Shared, mut work: Work, started_at: Time) -> Option<Work> {
    match shared.write_down(&work, work.attempt.ledger, AttemptEvent::Started, |_| {}).await {
        Ok(Some(entry)) => work.attempt.ledger = entry,
        Ok(None) => {
            shared.release(&work);
            return None;
        }
        Err(error) => {
            tracing::debug!(job = %work.key.id, %error, "an attempt cannot be written down; not run");
            let part = Part::Records(work.lane.queue, RecordKind::Attempt);
            shared.supervision.report(part, &error);
            let delay = UNRECORDED_DELAY.min(work.lease.ack_wait());
            // It may be written down for all that. Then the ledger has to say too that it was not
            // begun.
            let started_at = error.is_unknown().then_some(started_at);
            let settlement = Settlement::Release { delay };
            shared.settler.settle(ToSettle { work, settlement, started_at }).await;
            return None;
        }
    }
    // It may have taken long.
    if work.lease.is_lost_at(Instant::now()) {
        shared.lost_before_it_began(&work);
        return None;
    }
    Some(work)
}

impl Shared {
    fn lost_before_it_began(&self, work: &Work) {
        tracing::warn!(job = %work.key.id, "the lease is lost before the attempt began");
        self.release(work);
    }
}

/// The payload for the handler.
fn open(shared: &Shared, work: &Work) -> Result<Bytes, String> {
    match &work.options.seal {
        None => Ok(work.payload.clone()),
        Some(seal) => {
            let keys = shared.recorder.seal_keys.as_ref();
            open_payload(keys, seal, &work.key, &work.payload)
        }
    }
}

/// It did not run, and no attempt is counted: with the right key it can be retried as it is.
async fn bury_unopened(shared: &Shared, mut work: Work, problem: String) {
    work.attempt.number = work.attempt.number.saturating_sub(1);
    let reason = BuryReason::Unsealable;
    let error = ErrorInfo::new(reason.as_str(), problem);
    shared.settle(work, Settlement::Bury { reason, error: Box::new(error) }).await;
}

async fn run(
    shared: &Shared,
    handler: &Handler,
    work: &Work,
    payload: Bytes,
    started_at: Time,
) -> Ended {
    let limit = work.options.timeout.unwrap_or(handler.timeout);
    let max_attempts = work.policy(&handler.policy).max_attempts();
    let context = JobContext::new(work, &shared.recorder, max_attempts, started_at);
    // Called when it is polled, so that a panic before its first await is caught too.
    let call = async { handler.call(payload, context, &shared.middleware).await };
    let mut handler = pin!(panic::capture_async(call));
    // What is done at once needs no clock to watch it, nor room for one.
    match poll!(handler.as_mut()) {
        Poll::Ready(outcome) => returned(&work.lease, outcome),
        Poll::Pending => Box::pin(within_limits(handler, &work.lease, limit)).await,
    }
}

/// Lets a handler go on until it is to stop, and a little longer.
async fn within_limits(
    mut handler: Pin<&mut impl Future<Output = Outcome>>,
    lease: &Lease,
    limit: Duration,
) -> Ended {
    let stopped = tokio::select! {
        biased;
        outcome = &mut handler => return returned(lease, outcome),
        () = sleep_until(Instant::now() + limit) => Ended::TimedOut,
        why = stopped(lease) => Ended::Stopped(why),
    };
    lease.cancelled().cancel();
    match timeout(STOP_GRACE, &mut handler).await {
        // Done is done, however late.
        Ok(Ok(result)) => Ended::Returned(Ok(result)),
        Ok(Err(_)) | Err(_) => stopped,
    }
}

fn returned(lease: &Lease, outcome: Outcome) -> Ended {
    match (outcome, lease.stopped()) {
        // It failed because it was told to stop.
        (Err(_), Some(why)) => Ended::Stopped(why),
        (outcome, _) => Ended::Returned(outcome),
    }
}

async fn stopped(lease: &Lease) -> Stop {
    lease.cancelled().cancelled().await;
    match lease.stopped() {
        Some(why) => why,
        None => std::future::pending().await,
    }
}

/// What becomes of the job; `None` if it is not ours to say any more.
fn decide(handler: &Handler, work: &Work, ended: Ended, now: Instant) -> Option<Settlement> {
    if work.lease.is_lost_at(now) {
        return None;
    }
    let outcome = match ended {
        Ended::Stopped(Stop::LeaseLost) => return None,
        Ended::Stopped(Stop::Cancelled) => return Some(Settlement::Forget),
        Ended::Stopped(Stop::Draining) => {
            return Some(Settlement::Release { delay: Duration::ZERO });
        }
        Ended::Returned(outcome) => outcome,
        Ended::TimedOut => {
            let limit = work.options.timeout.unwrap_or(handler.timeout);
            Err(JobError::failed(format!("timed out after {limit:?}")).kind("timeout"))
        }
    };
    let policy = work.policy(&handler.policy);
    if let Err(error) = &outcome {
        let ErrorInfo { kind, message, .. } = error.info();
        tracing::debug!(job = %work.key.id, attempt = work.attempt.number, kind, message, "not done");
    }
    let chance = fastrand::f64();
    let settlement = settle(outcome, work.attempt.number, work.attempt.snoozes, &policy, chance);
    Some(match (settlement, handler.done) {
        (Settlement::Complete { .. }, WhenDone::IsForgotten) => Settlement::Forget,
        (settlement, WhenDone::IsForgotten | WhenDone::IsRecorded) => settlement,
    })
}
