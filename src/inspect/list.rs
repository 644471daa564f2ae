//! The unfinished jobs of a queue, a page at a time.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::future::{Either, ready, try_join_all};
use futures_util::stream::{self, Stream, TryStreamExt};
use tokio::time::Instant;

use super::find::{ON_LANES, ON_TIMERS};
use super::state::{Moment, Stand};
use super::{Found, JobInfo};
use crate::broker::Start;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::priority::Priority;
use crate::token::{Kind, Queue};
use crate::wire::Status;

/// Messages read at once.
const PAGE: usize = 1000;

/// How long what the workers say is running is taken for so. They are not asked for each page, which
/// would take longer than the page.
const MOMENT: Duration = Duration::from_secs(2);

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
    /// Only in this state, by its word: see [`JobState::as_str`](super::JobState::as_str). Without one,
    /// all that are unfinished. `failed` is for those that back off because their last attempt
    /// failed; with `done`, `dead`, `cancelled` or `expired`, those that ended so and are still on
    /// record, without their payloads, headers and tags.
    pub state: Option<String>,
    /// Only those behind this one, by its [`JobInfo::cursor`], in the order of the list.
    pub after: Option<String>,
}

impl JobFilter {
    /// All unfinished jobs of a queue.
    pub fn queue(queue: Queue) -> Self {
        Self { queue, ..Self::default() }
    }
}

impl Client {
    /// The unfinished jobs of a queue, in the order of their arrival, timers last; or those that ended in
    /// one way, in the order of their ends. Read a page at a time, in bounded memory.
    ///
    /// # Errors
    /// The stream yields `is_not_found` where the queue does not exist, `is_permission` where these
    /// credentials may not look, `is_invalid` for a cursor or a state that is none.
    pub fn jobs(&self, filter: JobFilter) -> impl Stream<Item = Result<JobInfo>> + Send + use<> {
        if let Ok(Wanted::Ended(status)) = Wanted::by(&filter) {
            return Either::Left(self.ended_jobs(filter, status));
        }
        let clock = self.clock().clone();
        Either::Right(self.stands(filter).map_ok(move |stand| stand.into_info(clock.now())))
    }

    /// Unfinished jobs, as messages that hold them.
    pub(crate) fn stands(
        &self,
        filter: JobFilter,
    ) -> impl Stream<Item = Result<Stand>> + Send + use<> {
        let walk = Walk::new(self.clone(), filter);
        let walked = |walk| {
            stream::try_unfold(walk, |mut walk: Walk| async move {
                Ok(walk.next().await?.map(|job| (job, walk)))
            })
        };
        stream::once(ready(walk)).map_ok(walked).try_flatten()
    }
}

/// The states of which jobs are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wanted {
    Unfinished,
    /// Those of [`JobState::as_str`](super::JobState::as_str) that are no end.
    InState(&'static str),
    /// Those that back off because they failed, not because they snoozed.
    Failed,
    Ended(Status),
}

impl Wanted {
    fn by(filter: &JobFilter) -> Result<Self> {
        const UNFINISHED: [&str; 4] = ["scheduled", "waiting", "running", "backing_off"];
        let Some(word) = filter.state.as_deref() else { return Ok(Self::Unfinished) };
        if let Some(state) = UNFINISHED.into_iter().find(|state| *state == word) {
            return Ok(Self::InState(state));
        }
        match (word, word.parse()) {
            ("failed", _) => Ok(Self::Failed),
            (_, Ok(status)) => Ok(Self::Ended(status)),
            (_, Err(_)) => Err(Error::invalid(format!(
                "{word:?} is no state of a job: use {}, failed, done, dead, cancelled or expired",
                UNFINISHED.join(", ")
            ))),
        }
    }

    fn takes(&self, job: &Stand) -> bool {
        match self {
            Self::Unfinished => true,
            Self::InState(state) => *state == job.state.as_str(),
            Self::Failed => job.has_failed(),
            Self::Ended(_) => false,
        }
    }
}

/// What is read next.
enum Stretch {
    Lanes(u64),
    Timers(u64),
    Over,
}

impl Stretch {
    fn behind(cursor: &str) -> Result<Self> {
        let sequence = |part: char| cursor.strip_prefix(part)?.parse::<u64>().ok()?.checked_add(1);
        match (sequence(ON_LANES), sequence(ON_TIMERS)) {
            (Some(next), _) => Ok(Self::Lanes(next)),
            (_, Some(next)) => Ok(Self::Timers(next)),
            (None, None) => {
                let rule = "use one that a list has told";
                Err(Error::invalid(format!("{cursor:?} is no place in a list: {rule}")))
            }
        }
    }
}

struct Walk {
    client: Client,
    filter: JobFilter,
    wanted: Wanted,
    /// Asked anew when it is too old.
    moment: Option<(Instant, Moment)>,
    page: VecDeque<Stand>,
    next: Stretch,
}

impl Walk {
    fn new(client: Client, filter: JobFilter) -> Result<Self> {
        let next = match &filter.after {
            None => Stretch::Lanes(1),
            Some(cursor) => Stretch::behind(cursor)?,
        };
        let wanted = Wanted::by(&filter)?;
        if let Wanted::Ended(status) = wanted {
            let message = format!("jobs that are {status} have ended: nothing can be done to them");
            return Err(Error::invalid(message));
        }
        Ok(Self { client, filter, wanted, moment: None, page: VecDeque::new(), next })
    }

    async fn next(&mut self) -> Result<Option<Stand>> {
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
        let (asked, moment) = match self.moment.take() {
            Some((asked, moment)) if asked.elapsed() < MOMENT => (asked, moment),
            Some(_) | None => (Instant::now(), self.client.moment(&self.filter.queue).await?),
        };
        let found = self.read_page().await?;
        let matching = found.into_iter().filter(|found| self.matches(found));
        let jobs = try_join_all(matching.map(|found| self.client.stand_of(found, &moment))).await?;
        self.page.extend(jobs.into_iter().filter(|job| self.wanted.takes(job)));
        self.moment = Some((asked, moment));
        Ok(())
    }

    async fn read_page(&mut self) -> Result<Vec<Found>> {
        let JobFilter { queue, priority, .. } = &self.filter;
        let (ns, streams) = (self.client.namespace(), self.client.streams(queue));
        // For each page the broker counts what is still to come, which takes no time where all the
        // stream's subjects are asked for.
        let within = |what: &str| match priority {
            None => ">".to_owned(),
            Some(lane) => format!("{ns}.{what}.{queue}.{lane}.>"),
        };
        let (stream, subjects, start) = match self.next {
            Stretch::Lanes(from) => (&streams.jobs, within("jobs"), from),
            Stretch::Timers(from) => (&streams.timers, within("*"), from),
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
