//! Bringing an enqueue to a known end: under a guard that lets a run in once, asked again until the
//! broker says what became of it.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Client;
use super::completion::JobHandle;
use super::new_job::Ready;
use super::whereabouts::{Origin, Whereabouts};
use crate::broker::{Expect, Published, Stored};
use crate::error::{Error, ErrorKind, Result};
use crate::token::RunId;
use crate::wire::{JobHeaders, RecordKey, guard_subject, name};

/// The first pause before the broker is asked again; it doubles up to [`LONGEST_PAUSE`].
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(20);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// What became of a run that was to be stored once.
#[derive(Debug)]
pub(crate) enum Settled {
    /// It was stored just now.
    Stored(JobHandle),
    /// It had been stored before, and may have ended since.
    Before(JobHandle),
    /// Another run of its unique id is there.
    Duplicate(JobHandle),
    /// What its timer was set from is still on a lane: nothing was stored.
    BeingMoved,
}

/// Whether somebody may have copied a timer to its lane before.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Copied {
    /// Nobody had it in hands: it is looked for only if the guard keeps it out.
    Never,
    Perhaps,
}

/// A step towards the end of an enqueue.
enum Step {
    /// Look where the run is: it may be stored.
    Look,
    /// Send it, expecting this message as the last of its id.
    Send {
        expected: u64,
    },
    /// Send a unique job again, when the one before it may have gone.
    SendAgain,
    /// Send it where these credentials may not look.
    SendBlindly,
    Done(Settled),
}

impl Client {
    /// Stores a run that may be stored already, or worked already: once in any case.
    pub(crate) async fn store_once(&self, mut job: Ready) -> Result<JobHandle> {
        job.may_be_stored();
        self.resolve_from(job, Step::Look, Sent::Answered).await
    }

    /// Sends a run under its guard until its outcome is known; one that may be stored already, since an
    /// answer is missing, is looked for first.
    pub(super) async fn resolve(&self, job: Ready) -> Result<JobHandle> {
        let (first, sent) = match job.headers.get(name::ATTEMPTS_USED) {
            Some(_) => (Step::Look, Sent::Unanswered),
            None => (Step::Send { expected: 0 }, Sent::Answered),
        };
        self.resolve_from(job, first, sent).await
    }

    async fn resolve_from(&self, job: Ready, first: Step, sent: Sent) -> Result<JobHandle> {
        let key = job.key();
        Ok(match self.settle(job, Origin::Producer, first, sent).await? {
            Settled::Stored(handle) | Settled::Before(handle) | Settled::Duplicate(handle) => {
                handle
            }
            // A producer's run that is on a lane is stored, whatever becomes of it there.
            Settled::BeingMoved => JobHandle::new(self.clone(), key, None),
        })
    }

    /// Copies to its lane what the timers stream holds at `sequence`: once, and not while it is on a
    /// lane as what its timer was set from.
    pub(crate) async fn store_promoted(
        &self,
        mut job: Ready,
        sequence: u64,
        copied: Copied,
    ) -> Result<Settled> {
        job.may_be_stored();
        job.headers.set(name::PROMOTED, sequence.to_string());
        let first = match copied {
            // No guard covers what was published without an id.
            Copied::Never if job.id.as_sequence().is_none() => Step::Send { expected: 0 },
            Copied::Never | Copied::Perhaps => Step::Look,
        };
        self.settle(job, Origin::Timer(sequence), first, Sent::Answered).await
    }

    /// Stores a unique job beside the message at `sequence`, whose place it is to take; `None` where
    /// that is not the last of its id any more.
    pub(crate) async fn store_beside(
        &self,
        mut job: Ready,
        sequence: u64,
    ) -> Result<Option<JobHandle>> {
        let mut rest = Rest::new(self.resolve_window(), Sent::Answered);
        loop {
            let handle = |sequence| Some(JobHandle::new(self.clone(), job.key(), sequence));
            let is_refused = match self.publish_expecting(&job, sequence).await {
                Ok(Published::Stored(sequence)) => return Ok(handle(Some(sequence))),
                Ok(Published::WrongLast(_) | Published::InFlight) => true,
                Err(error) => {
                    rest.unless_lost(&mut job, error)?;
                    false
                }
            };
            let may_be_stored = job.headers.get(name::ATTEMPTS_USED).is_some();
            if is_refused && !may_be_stored {
                return Ok(None);
            }
            match self.look(&job, Origin::Producer, &mut rest).await? {
                Step::Done(Settled::Before(there)) => return Ok(Some(there)),
                Step::Send { .. } if is_refused => return Ok(None),
                Step::SendBlindly => return Err(not_ours_to_see(&job)),
                Step::Done(_) | Step::Send { .. } | Step::SendAgain | Step::Look => {}
            }
            rest.take(&job).await?;
        }
    }

    async fn settle(
        &self,
        mut job: Ready,
        origin: Origin,
        first: Step,
        sent: Sent,
    ) -> Result<Settled> {
        let mut rest = Rest::new(self.resolve_window(), sent);
        let (mut step, mut looks) = (first, 0);
        loop {
            step = match step {
                Step::Done(settled) => return Ok(settled),
                Step::Look => {
                    // The first time it is looked for without delay.
                    if looks > 0 {
                        rest.take(&job).await?;
                    }
                    looks += 1;
                    self.look(&job, origin, &mut rest).await?
                }
                Step::Send { expected } => self.send(&mut job, expected, &mut rest).await?,
                Step::SendAgain => {
                    rest.take(&job).await?;
                    self.send(&mut job, 0, &mut rest).await?
                }
                Step::SendBlindly => {
                    rest.take(&job).await?;
                    self.send_blindly(&mut job, &mut rest).await?
                }
            };
        }
    }

    async fn look(&self, job: &Ready, origin: Origin, rest: &mut Rest) -> Result<Step> {
        let before = |sequence| {
            let handle = JobHandle::new(self.clone(), job.key(), sequence);
            Step::Done(Settled::Before(handle))
        };
        Ok(match self.whereabouts(job, origin).await {
            Ok(Whereabouts::OnLane(sequence)) => before(Some(sequence)),
            Ok(Whereabouts::Timed | Whereabouts::Ended) => before(None),
            Ok(Whereabouts::BeingMoved) => Step::Done(Settled::BeingMoved),
            // Another run of a unique id keeps it out.
            Ok(Whereabouts::Nowhere { .. }) if job.is_unique() => Step::Send { expected: 0 },
            Ok(Whereabouts::Nowhere { last }) => Step::Send { expected: last },
            Err(error) if error.is_permission() => Step::SendBlindly,
            Err(error) => {
                tracing::debug!(%error, "an enqueue cannot be looked for yet");
                rest.because_of(error);
                Step::Look
            }
        })
    }

    async fn send(&self, job: &mut Ready, expected: u64, rest: &mut Rest) -> Result<Step> {
        Ok(match self.publish_expecting(job, expected).await {
            Ok(Published::Stored(sequence)) => {
                Step::Done(Settled::Stored(JobHandle::new(self.clone(), job.key(), Some(sequence))))
            }
            Ok(Published::WrongLast(last)) if job.is_unique() => self.taken_by(job, last).await?,
            // In a cluster a refusal may tell of one that is still on its way: look, with a pause.
            Ok(Published::InFlight) if job.is_unique() => Step::SendAgain,
            Ok(Published::WrongLast(_) | Published::InFlight) => Step::Look,
            Err(error) => {
                rest.unless_lost(job, error)?;
                Step::Look
            }
        })
    }

    async fn send_blindly(&self, job: &mut Ready, rest: &mut Rest) -> Result<Step> {
        let handle = |sequence| JobHandle::new(self.clone(), job.key(), Some(sequence));
        Ok(match self.publish_expecting(job, 0).await {
            Ok(Published::Stored(sequence)) => Step::Done(Settled::Stored(handle(sequence))),
            // Nobody else has a fresh id.
            Ok(Published::WrongLast(last)) if job.has_fresh_id() => {
                Step::Done(Settled::Before(handle(last)))
            }
            Ok(Published::WrongLast(_)) => return Err(not_ours_to_see(job)),
            Ok(Published::InFlight) => Step::SendBlindly,
            Err(error) => {
                rest.unless_lost(job, error)?;
                Step::SendBlindly
            }
        })
    }

    async fn publish_expecting(&self, job: &Ready, sequence: u64) -> Result<Published> {
        let guard = guard_subject(&self.namespace, &job.queue, &job.kind, &job.id);
        self.publish(job, Expect::LastOf { guard: &guard, sequence }).await
    }

    /// What is to be done about a unique job that the message at `sequence` keeps out.
    async fn taken_by(&self, job: &Ready, sequence: u64) -> Result<Step> {
        match self.run_at(job, sequence).await {
            Ok(Some(run)) if run == job.run => Ok(Step::Look),
            Ok(Some(run)) => {
                let key = RecordKey { run, ..job.key() };
                Ok(match self.end_of(&key).await {
                    // It has ended and makes room at any moment.
                    Ok(Some(_)) => Step::SendAgain,
                    Ok(None) => {
                        let handle = JobHandle::duplicate(self.clone(), key, sequence);
                        Step::Done(Settled::Duplicate(handle))
                    }
                    Err(error) => may_not_see(job, error).map(|()| Step::SendAgain)?,
                })
            }
            Ok(None) => Ok(Step::SendAgain),
            Err(error) => may_not_see(job, error).map(|()| Step::SendAgain),
        }
    }

    /// The run of a message of a job's id on the lanes.
    async fn run_at(&self, job: &Ready, sequence: u64) -> Result<Option<RunId>> {
        // What was expected has gone meanwhile.
        if sequence == 0 {
            return Ok(None);
        }
        let stream = self.streams(&job.queue).jobs;
        let there = self.conn.by_sequence(&stream, sequence).await?;
        Ok(there.map(|there| job.run_of(&there)))
    }
}

/// The pauses between steps, until it has taken too long.
struct Rest {
    deadline: Instant,
    pause: Duration,
    /// What it was last that kept it from its end.
    last: Option<Error>,
    sent: Sent,
}

/// Whether the broker has told of each time that a job was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Answered,
    Unanswered,
}

impl Rest {
    fn new(at_most: Duration, sent: Sent) -> Self {
        Self { deadline: Instant::now() + at_most, pause: FIRST_PAUSE, last: None, sent }
    }

    /// Passes on an error that tells what became of the job; after any other it may be stored. A refusal
    /// tells nothing of a time before, the answer to which is missing.
    fn unless_lost(&mut self, job: &mut Ready, error: Error) -> Result<()> {
        if error.is_unknown() || error.is_unavailable() {
            self.sent = Sent::Unanswered;
            job.may_be_stored();
        } else if self.sent == Sent::Answered {
            return Err(error);
        }
        tracing::debug!(%error, "an enqueue is still unknown");
        self.because_of(error);
        Ok(())
    }

    fn because_of(&mut self, error: Error) {
        self.last = Some(error);
    }

    async fn take(&mut self, job: &Ready) -> Result<()> {
        if Instant::now() >= self.deadline {
            return Err(still_unknown(job, self.last.take()));
        }
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Ok(())
    }
}

/// Passes on that these credentials may not look; another look-up that failed may go better.
fn may_not_see(job: &Ready, error: Error) -> Result<()> {
    if error.is_permission() {
        return Err(not_ours_to_see(job));
    }
    tracing::debug!(%error, "what keeps an enqueue out cannot be looked at yet");
    Ok(())
}

fn still_unknown(job: &Ready, last: Option<Error>) -> Error {
    let Ready { id, queue, .. } = job;
    let why = match last {
        None => String::new(),
        Some(error) if error.kind() == ErrorKind::NoResponders => {
            format!(" (the stream of queue {queue} takes no jobs, as where it has no leader)")
        }
        Some(error) if error.is_unknown() => {
            format!(" (the stream of queue {queue} does not answer)")
        }
        Some(error) => format!(" ({error})"),
    };
    let message = format!(
        "the broker does not say whether it has job {id}{why}: look for that id when it answers \
         again, before you enqueue it anew"
    );
    Error::new(ErrorKind::Unknown, message)
}

fn not_ours_to_see(job: &Ready) -> Error {
    Error::new(
        ErrorKind::Duplicate,
        format!(
            "a job with id {} is in queue {} already; these credentials may not see whether it is \
             this one",
            job.id, job.queue
        ),
    )
}

impl Ready {
    pub(crate) fn key(&self) -> RecordKey {
        RecordKey {
            queue: self.queue.clone(),
            kind: self.kind.clone(),
            id: self.id.clone(),
            run: self.run.clone(),
        }
    }

    pub(super) fn is_unique(&self) -> bool {
        self.headers.get(name::UNIQUE).is_some()
    }

    /// Makes the worker look for a completion of this run before it runs it.
    pub(super) fn may_be_stored(&mut self) {
        if self.headers.get(name::ATTEMPTS_USED).is_none() {
            self.headers.set(name::ATTEMPTS_USED, "0");
        }
    }

    pub(crate) fn has_fresh_id(&self) -> bool {
        self.id.as_str() == self.run.as_str()
    }

    /// The run of a message of the same id.
    pub(super) fn run_of(&self, there: &Stored) -> RunId {
        let run = JobHeaders::parse(&there.headers).ok().and_then(|headers| headers.run);
        run.unwrap_or_else(|| self.id.default_run(there.sequence))
    }
}
