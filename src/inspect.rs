//! Looking at jobs: where one stands, which there are, what is running. Nothing is written for it:
//! streams are read, and workers are asked.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::future::try_join_all;
use futures_util::stream::{self, Stream};

use crate::broker::{Start, Stored, consumer_state};
use crate::client::{Client, JobEvent};
use crate::error::{Error, ErrorKind, Result};
use crate::priority::Priority;
use crate::token::{JobId, Kind, Queue, RunId};
use crate::wire::time::{self, Time};
use crate::wire::{
    AttemptEvent, AttemptRecord, Completion, Firing, Headers, JobHeaders, Reading, RecordKey,
    RecordKind, RunningAnswer, RunningJob, Verb, control_subject, name, parse_record, parse_timed,
    read_job, record_subject, timed_filter,
};

/// How long to wait for one more worker's answer.
const STALL: Duration = Duration::from_millis(300);

/// The most workers that are listened to in one asking.
const MAX_WORKERS: usize = 10_000;

/// Messages read at once.
const PAGE: usize = 256;

/// Messages of one id that are looked at.
const MAX_OF_ID: usize = 256;

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

/// A job as it stands just now.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct JobInfo {
    /// Its queue.
    pub queue: Queue,
    /// Its kind.
    pub kind: Kind,
    /// Its id.
    pub id: JobId,
    /// Which enqueue of the id this is.
    pub run: RunId,
    /// Its lane.
    pub priority: Priority,
    /// Where it stands.
    pub state: JobState,
    /// When it was enqueued.
    pub enqueued_at: DateTime<Utc>,
    /// Its tags.
    pub tags: Vec<String>,
    /// Its headers, but for the broker's own; empty where only the completion is left.
    pub headers: Headers,
    /// Its payload; empty where only the completion is left.
    pub payload: Bytes,
    /// What is on record of its attempts, in order.
    pub attempts: Vec<AttemptRecord>,
}

/// Which jobs of a queue to list.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct JobFilter {
    /// The queue; `default` unless set.
    pub queue: Queue,
    /// Only this lane.
    pub priority: Option<Priority>,
    /// Only this kind.
    pub kind: Option<Kind>,
    /// Only with this tag.
    pub tag: Option<String>,
    /// Only in this state, by its word: see [`JobState::as_str`].
    pub state: Option<String>,
}

impl JobFilter {
    /// All unfinished jobs of a queue.
    pub fn queue(queue: Queue) -> Self {
        Self { queue, ..Self::default() }
    }
}

/// An unfinished job, as a message that holds it.
#[derive(Debug)]
pub(crate) struct Found {
    /// The stream in which the message is.
    pub(crate) stream: String,
    pub(crate) sequence: u64,
    pub(crate) key: RecordKey,
    pub(crate) priority: Priority,
    pub(crate) place: Place,
    pub(crate) options: JobHeaders,
    pub(crate) headers: Headers,
    pub(crate) payload: Bytes,
    pub(crate) stored: Option<Time>,
}

/// Where the message is that holds an unfinished job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// On its lane.
    Lane,
    /// On its lane, under an id that is derived from its sequence and stands in no subject.
    LaneWithoutId,
    /// On a timer, until then.
    Timer(Time),
    /// Put out by the broker, and on its way to its lane.
    Due,
}

impl Found {
    pub(crate) fn enqueued_at(&self) -> Option<Time> {
        self.options.created_at.or(self.stored)
    }
}

impl Client {
    /// What is running in a queue just now, by the workers' own word.
    ///
    /// # Errors
    /// `is_permission` where these credentials may not ask the workers.
    pub async fn running(&self, queue: &Queue) -> Result<Vec<RunningJob>> {
        let subject = control_subject(self.namespace(), queue, Verb::Running);
        let answers = self.conn().gather(subject, Bytes::new(), STALL, MAX_WORKERS).await?;
        let read = |answer: &Bytes| serde_json::from_slice::<RunningAnswer>(answer).ok();
        let answers: Vec<RunningAnswer> = answers.iter().filter_map(read).collect();
        if answers.iter().any(|answer| answer.is_cut) {
            tracing::warn!(%queue, "some workers run more jobs than they told of");
        }
        Ok(answers.into_iter().flat_map(|answer| answer.jobs).collect())
    }

    /// Where the runs of an id stand, each that is unfinished or still on record; the newest last.
    ///
    /// # Errors
    /// `is_not_found` where the queue knows no such job, `is_permission` where these credentials may
    /// not look.
    pub async fn job(
        &self,
        queue: &Queue,
        kind: Option<&Kind>,
        id: &JobId,
    ) -> Result<Vec<JobInfo>> {
        let found = self.find(queue, kind, id).await?;
        let moment = match found.is_empty() {
            true => Moment::default(),
            false => self.moment(queue).await?,
        };
        let mut jobs: Vec<JobInfo> = Vec::new();
        for completion in self.completions_of(queue, kind, id).await? {
            jobs.push(self.ended(completion).await?);
        }
        for found in found {
            // One that has ended may still wait for its ack.
            if jobs.iter().all(|ended| ended.run != found.key.run) {
                jobs.push(self.stand_of(found, &moment).await?);
            }
        }
        if jobs.is_empty() {
            let message = format!("queue {queue} knows no job {id}");
            return Err(Error::new(ErrorKind::NotFound, message));
        }
        Ok(jobs)
    }

    /// The unfinished jobs of a queue, in the order of their arrival, timers last; read a page at a
    /// time, in bounded memory.
    ///
    /// # Errors
    /// The stream yields `is_not_found` where the queue does not exist, `is_permission` where these
    /// credentials may not look.
    pub fn jobs(&self, filter: JobFilter) -> impl Stream<Item = Result<JobInfo>> + Send + use<> {
        let walk = Walk::new(self.clone(), filter);
        stream::try_unfold(
            walk,
            |mut walk| async move { Ok(walk.next().await?.map(|job| (job, walk))) },
        )
    }

    /// What a job's handler tells of it from now on, its progress and its log, ending with its
    /// completion. What was told before is gone: events are not stored.
    ///
    /// # Errors
    /// `is_permission` where these credentials may not subscribe or read completions.
    pub async fn watch(
        &self,
        job: &JobInfo,
    ) -> Result<impl Stream<Item = Result<JobEvent>> + Send + use<>> {
        let JobInfo { queue, kind, id, run, .. } = job.clone();
        self.watch_run(RecordKey { queue, kind, id, run }).await
    }

    /// The messages that hold unfinished runs of an id.
    pub(crate) async fn find(
        &self,
        queue: &Queue,
        kind: Option<&Kind>,
        id: &JobId,
    ) -> Result<Vec<Found>> {
        let (ns, streams, conn) = (self.namespace(), self.streams(queue), self.conn());
        let mut found = Vec::new();
        if let Some(sequence) = id.as_sequence()
            && let Some(stored) = conn.by_sequence(&streams.jobs, sequence).await?
        {
            found.extend(self.read_waiting(queue, stored));
        }
        let kind_token = kind.map_or("*", Kind::as_str);
        let lanes = format!("{ns}.jobs.{queue}.*.{kind_token}.{id}");
        let start = Start::Sequence(1);
        for stored in conn.batch(&streams.jobs, &lanes, start, MAX_OF_ID).await?.messages {
            found.extend(self.read_waiting(queue, stored));
        }
        for what in ["timers", "due"] {
            let timers = timed_filter(what, ns, queue, kind, Some(id));
            for stored in conn.batch(&streams.timers, &timers, start, MAX_OF_ID).await?.messages {
                found.extend(self.read_timer(queue, stored));
            }
        }
        found.retain(|found| kind.is_none_or(|kind| found.key.kind == *kind));
        Ok(found)
    }

    /// A message of the jobs stream; one that no worker could take is told by what can be read.
    fn read_waiting(&self, queue: &Queue, stored: Stored) -> Option<Found> {
        let ns = self.namespace();
        let lane =
            stored.subject.strip_prefix(&format!("{ns}.jobs.{queue}."))?.split('.').next()?;
        let priority: Priority = lane.parse().ok()?;
        let Stored { subject, sequence, headers, payload, stored } = stored;
        let (key, options) = match read_job(ns, queue, priority, &subject, &headers, sequence) {
            Reading::Job { key, options } => (key, *options),
            Reading::BadHeader { key, .. } | Reading::BadSubject { key, .. } => {
                (key, JobHeaders::default())
            }
            Reading::NewerProtocol => return None,
        };
        let place = match subject.ends_with(&format!(".{}", key.id)) {
            true => Place::Lane,
            false => Place::LaneWithoutId,
        };
        let (stream, headers) = (self.streams(queue).jobs, headers.for_copy());
        Some(Found { stream, sequence, key, priority, place, options, headers, payload, stored })
    }

    fn read_timer(&self, queue: &Queue, stored: Stored) -> Option<Found> {
        let ns = self.namespace();
        let Stored { subject, sequence, headers, payload, stored } = stored;
        let timer = parse_timed("timers", ns, &subject);
        let at = headers.get(name::SCHEDULE).and_then(|at| time::parse(at.strip_prefix("@at ")?));
        let place = match &timer {
            Some(_) => Place::Timer(at?),
            None => Place::Due,
        };
        let (priority, mut key) = timer.or_else(|| parse_timed("due", ns, &subject))?;
        if let Some(firing) = Firing::read(ns, &headers, sequence, stored.unwrap_or_default()) {
            key = firing.run;
        }
        let options = JobHeaders::parse(&headers).unwrap_or_default();
        let (stream, headers) = (self.streams(queue).timers, headers.for_copy());
        Some(Found { stream, sequence, key, priority, place, options, headers, payload, stored })
    }

    async fn ended(&self, completion: Completion) -> Result<JobInfo> {
        let Completion { queue, kind, id, run, .. } = completion.clone();
        let attempts = self.ledger(&RecordKey { queue, kind, id, run }).await?;
        let Completion { queue, kind, id, run, priority, enqueued_at, .. } = completion.clone();
        Ok(JobInfo {
            queue,
            kind,
            id,
            run,
            priority,
            enqueued_at,
            state: JobState::Ended(Box::new(completion)),
            tags: Vec::new(),
            headers: Headers::new(),
            payload: Bytes::new(),
            attempts,
        })
    }

    async fn stand_of(&self, found: Found, moment: &Moment) -> Result<JobInfo> {
        let attempts = match moment.may_have_run(&found) {
            true => self.ledger(&found.key).await?,
            false => Vec::new(),
        };
        let state = state_of(&found, &attempts, &moment.running, self.clock().now());
        let enqueued_at = found.enqueued_at().unwrap_or_else(|| self.clock().now());
        let Found { key: RecordKey { queue, kind, id, run }, priority, options, .. } = found;
        Ok(JobInfo {
            queue,
            kind,
            id,
            run,
            priority,
            state,
            enqueued_at,
            tags: options.tags,
            headers: found.headers,
            payload: found.payload,
            attempts,
        })
    }

    async fn moment(&self, queue: &Queue) -> Result<Moment> {
        let stream = self.streams(queue).jobs;
        let mut handed_out = [0; Priority::ALL.len()];
        for lane in Priority::ALL {
            let state = consumer_state(self.conn(), &stream, lane.as_str()).await?;
            handed_out[lane.index()] = state.handed_out;
        }
        Ok(Moment { running: self.running(queue).await?, handed_out })
    }

    /// What is on record of a run's attempts, in order.
    pub(crate) async fn ledger(&self, key: &RecordKey) -> Result<Vec<AttemptRecord>> {
        const MAX_ENTRIES: usize = 50;
        let subject = record_subject(self.namespace(), RecordKind::Attempt, key);
        let stream = self.streams(&key.queue).attempts;
        let found = self.conn().batch(&stream, &subject, Start::Sequence(1), MAX_ENTRIES).await?;
        Ok(found.messages.iter().filter_map(|entry| parse_record(key, &entry.payload)).collect())
    }
}

/// What is known of a queue as a whole, asked once for many jobs.
#[derive(Debug, Default)]
struct Moment {
    running: Vec<RunningJob>,
    /// By lane: the sequence up to which jobs were handed out.
    handed_out: [u64; 4],
}

impl Moment {
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

/// What is read next.
enum Stretch {
    Lanes(u64),
    Timers(u64),
    Over,
}

struct Walk {
    client: Client,
    filter: JobFilter,
    /// Asked once: a list is of one moment.
    moment: Option<Moment>,
    page: VecDeque<JobInfo>,
    next: Stretch,
}

impl Walk {
    fn new(client: Client, filter: JobFilter) -> Self {
        Self { client, filter, moment: None, page: VecDeque::new(), next: Stretch::Lanes(1) }
    }

    async fn next(&mut self) -> Result<Option<JobInfo>> {
        loop {
            if let Some(job) = self.page.pop_front() {
                return Ok(Some(job));
            }
            if matches!(self.next, Stretch::Over) {
                return Ok(None);
            }
            self.turn_page().await?;
        }
    }

    async fn turn_page(&mut self) -> Result<()> {
        let moment = match self.moment.take() {
            Some(moment) => moment,
            None => self.client.moment(&self.filter.queue).await?,
        };
        let found = self.read_page().await?;
        let matching = found.into_iter().filter(|found| self.matches(found));
        let jobs = try_join_all(matching.map(|found| self.client.stand_of(found, &moment))).await?;
        let wanted = self.filter.state.as_deref();
        let in_state = |job: &JobInfo| wanted.is_none_or(|state| state == job.state.as_str());
        self.page.extend(jobs.into_iter().filter(in_state));
        self.moment = Some(moment);
        Ok(())
    }

    async fn read_page(&mut self) -> Result<Vec<Found>> {
        let JobFilter { queue, priority, .. } = &self.filter;
        let (ns, streams) = (self.client.namespace(), self.client.streams(queue));
        let lane = priority.map_or("*", Priority::as_str);
        let (stream, subjects, start) = match self.next {
            Stretch::Lanes(from) => (&streams.jobs, format!("{ns}.jobs.{queue}.{lane}.>"), from),
            Stretch::Timers(from) => (&streams.timers, format!("{ns}.*.{queue}.{lane}.>"), from),
            Stretch::Over => return Ok(Vec::new()),
        };
        let start = Start::Sequence(start);
        let batch = self.client.conn().batch(stream, &subjects, start, PAGE).await?;
        let from = batch.messages.last().map_or(1, |last| last.sequence + 1);
        let is_timers = matches!(self.next, Stretch::Timers(_));
        self.next = match (is_timers, batch.is_last) {
            (false, false) => Stretch::Lanes(from),
            (false, true) => Stretch::Timers(1),
            (true, false) => Stretch::Timers(from),
            (true, true) => Stretch::Over,
        };
        let read = |stored| match is_timers {
            true => self.client.read_timer(queue, stored),
            false => self.client.read_waiting(queue, stored),
        };
        Ok(batch.messages.into_iter().filter_map(read).collect())
    }

    fn matches(&self, found: &Found) -> bool {
        let JobFilter { kind, tag, .. } = &self.filter;
        kind.as_ref().is_none_or(|kind| *kind == found.key.kind)
            && tag.as_ref().is_none_or(|tag| found.options.tags.contains(tag))
    }
}
