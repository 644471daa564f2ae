//! Where a job stands, by what is on record of it and what the workers say.

use chrono::{DateTime, Utc};

use super::{Found, JobInfo, Place};
use crate::broker::{ConsumerState, consumer_state};
use crate::client::Client;
use crate::error::Result;
use crate::priority::Priority;
use crate::token::Queue;
use crate::wire::time::Time;
use crate::wire::{AttemptEvent, AttemptRecord, Completion, RecordKey, RunningJob};

/// Where a job stands.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum JobState {
    /// Not due before this time.
    Scheduled(DateTime<Utc>),
    /// To be run by the next worker that has room.
    Waiting,
    /// Being run.
    Running(RunningJob),
    /// Failed or snoozed, and to be tried again at this time.
    BackingOff(DateTime<Utc>),
    /// Over.
    Ended(Box<Completion>),
}

impl JobState {
    /// The state in one word: `scheduled`, `waiting`, `running`, `backing_off`, or how it ended.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Scheduled(_) => "scheduled",
            Self::Waiting => "waiting",
            Self::Running(_) => "running",
            Self::BackingOff(_) => "backing_off",
            Self::Ended(completion) => completion.status.as_str(),
        }
    }
}

/// What is known of a queue as a whole, asked once for many jobs.
#[derive(Debug, Default)]
pub(super) struct Moment {
    pub(super) running: Vec<RunningJob>,
    /// By lane: the sequence up to which jobs were handed out.
    handed_out: [u64; 4],
}

impl Moment {
    /// Whether a worker can be running it: it is on its lane, and was handed out.
    fn may_run(&self, found: &Found) -> bool {
        match found.place {
            Place::Lane | Place::LaneWithoutId => {
                found.sequence <= self.handed_out[found.priority.index()]
            }
            Place::Timer(_) | Place::Due => false,
        }
    }

    /// Whether anything can be on record of a job's attempts. Of a million that wait, nothing is.
    fn may_have_run(&self, found: &Found) -> bool {
        found.options.attempts_used.is_some()
            || found.sequence <= self.handed_out[found.priority.index()]
    }
}

/// Where an unfinished job stands.
pub(crate) fn state_of(
    found: &Found,
    attempts: &[AttemptRecord],
    running: &[RunningJob],
    now: Time,
) -> JobState {
    let is_it = |job: &&RunningJob| job.id == found.key.id && job.run == found.key.run;
    if let Some(job) = running.iter().find(is_it) {
        return JobState::Running(job.clone());
    }
    let put_off = attempts.last().filter(|last| {
        matches!(last.event, AttemptEvent::Failed | AttemptEvent::Snoozed) && last.reason.is_none()
    });
    match (found.place, put_off) {
        (Place::Timer(due), Some(_)) => return JobState::BackingOff(due),
        (Place::Timer(due), None) => return JobState::Scheduled(due),
        (Place::Due, _) => return JobState::Waiting,
        (Place::Lane | Place::LaneWithoutId, Some(last)) if last.seq == found.sequence => {
            if let Some(retry_at) = last.retry_at.filter(|retry_at| *retry_at > now) {
                return JobState::BackingOff(retry_at);
            }
        }
        (Place::Lane | Place::LaneWithoutId, _) => {}
    }
    let due = found.stored.and_then(|stored| Some(found.options.run_after?.due(stored)));
    match due.filter(|due| *due > now) {
        Some(due) => JobState::Scheduled(due),
        None => JobState::Waiting,
    }
}

/// An unfinished job and where it stands.
#[derive(Debug)]
pub(crate) struct Stand {
    pub(crate) found: Found,
    pub(crate) state: JobState,
    attempts: Vec<AttemptRecord>,
}

impl Stand {
    /// Whether it backs off because its last attempt failed.
    pub(super) fn has_failed(&self) -> bool {
        let failed = |last: &AttemptRecord| last.event == AttemptEvent::Failed;
        matches!(self.state, JobState::BackingOff(_)) && self.attempts.last().is_some_and(failed)
    }

    /// What is told of it.
    pub(crate) fn into_info(self, now: Time) -> JobInfo {
        let Self { found, state, attempts } = self;
        let enqueued_at = found.enqueued_at().unwrap_or(now);
        let cursor = Some(found.cursor());
        let Found { key: RecordKey { queue, kind, id, run }, priority, options, .. } = found;
        JobInfo {
            queue,
            kind,
            id,
            run,
            priority,
            state,
            enqueued_at,
            tags: options.tags.clone(),
            headers: found.headers,
            payload: found.payload,
            problem: found.problem,
            attempts,
            cursor,
        }
    }
}

impl Client {
    pub(super) async fn stand_of(&self, found: Found, moment: &Moment) -> Result<Stand> {
        let attempts = match moment.may_have_run(&found) {
            true => self.ledger(&found.key).await?,
            false => Vec::new(),
        };
        let state = state_of(&found, &attempts, &moment.running, self.clock().now());
        Ok(Stand { found, state, attempts })
    }

    /// How a queue stands, for a list of all that is in it.
    pub(super) async fn moment(&self, queue: &Queue) -> Result<Moment> {
        let lanes = self.lanes(queue).await?;
        let handed_out = lanes.map(|lane| lane.handed_out);
        let running = match lanes.iter().any(|lane| lane.unsettled > 0) {
            true => self.running(queue).await?,
            // What runs is unsettled: nobody has to be asked, and waited for, about nothing.
            false => Vec::new(),
        };
        Ok(Moment { running, handed_out })
    }

    /// How their queue stands, as far as it concerns these, all of one id.
    pub(super) async fn moment_of(&self, found: &[Found]) -> Result<Moment> {
        let Some(Found { key: RecordKey { queue, id, .. }, .. }) = found.first() else {
            return Ok(Moment::default());
        };
        let handed_out = self.lanes(queue).await?.map(|lane| lane.handed_out);
        let moment = Moment { running: Vec::new(), handed_out };
        let running = match found.iter().filter(|found| moment.may_run(found)).count() {
            0 => Vec::new(),
            count => self.running_of(queue, id, count).await?,
        };
        Ok(Moment { running, ..moment })
    }

    async fn lanes(&self, queue: &Queue) -> Result<[ConsumerState; Priority::ALL.len()]> {
        let (conn, clock, stream) = (self.conn(), self.clock(), self.streams(queue).jobs);
        let [critical, high, normal, low] =
            Priority::ALL.map(|lane| consumer_state(conn, clock, &stream, lane.as_str()));
        let states = tokio::try_join!(critical, high, normal, low)?;
        Ok(states.into())
    }
}
