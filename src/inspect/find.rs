//! Finding the messages that hold unfinished jobs.

use bytes::Bytes;

use crate::broker::{Start, Stored};
use crate::client::{Age, Client};
use crate::error::{Error, Result};
use crate::priority::Priority;
use crate::token::{JobId, Kind, Queue};
use crate::wire::time::{self, Time};
use crate::wire::{
    Firing, Headers, JobOptions, Reading, RecordKey, name, parse_timed, read_job, timed_filter,
};

/// The first letters of places in a list.
pub(super) const ON_LANES: char = 'j';
pub(super) const ON_TIMERS: char = 't';

/// Messages of one id that are read at once, and in all.
const PAGE: usize = 256;
const MAX_OF_ID: usize = 10_000;

/// An unfinished job, as a message that holds it.
#[derive(Debug)]
pub(crate) struct Found {
    /// The stream in which the message is.
    pub(crate) stream: String,
    pub(crate) sequence: u64,
    pub(crate) key: RecordKey,
    pub(crate) priority: Priority,
    pub(crate) place: Place,
    pub(crate) options: JobOptions,
    pub(crate) headers: Headers,
    pub(crate) payload: Bytes,
    pub(crate) stored: Option<Time>,
    /// Why no worker can take it, where none can.
    pub(crate) problem: Option<String>,
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

    /// Whether it is on the timers stream.
    pub(crate) fn is_timed(&self) -> bool {
        match self.place {
            Place::Timer(_) | Place::Due => true,
            Place::Lane | Place::LaneWithoutId => false,
        }
    }

    /// How old it is beside other messages of its run.
    pub(crate) fn age(&self) -> Age {
        match self.place {
            Place::Lane | Place::LaneWithoutId => {
                Age::on_lane(self.options.promoted, self.sequence)
            }
            Place::Timer(_) | Place::Due => Age::timed(self.sequence),
        }
    }

    /// Its place in a list, as text.
    pub(super) fn cursor(&self) -> String {
        let part = match self.place {
            Place::Lane | Place::LaneWithoutId => ON_LANES,
            Place::Timer(_) | Place::Due => ON_TIMERS,
        };
        format!("{part}{}", self.sequence)
    }
}

impl Client {
    /// The messages that hold unfinished runs of an id.
    pub(crate) async fn find(
        &self,
        queue: &Queue,
        kind: Option<&Kind>,
        id: &JobId,
    ) -> Result<Vec<Found>> {
        let mut found = self.find_on_lanes(queue, kind, id).await?;
        found.extend(self.find_timed(queue, kind, id).await?);
        if found.is_empty() {
            // It may have been put on its lane between the two looks.
            found = self.find_on_lanes(queue, kind, id).await?;
        }
        if found.is_empty() {
            found = self.find_at_leaders(queue, kind, id).await?;
        }
        found.retain(|found| kind.is_none_or(|kind| found.key.kind == *kind));
        Ok(found)
    }

    async fn find_on_lanes(
        &self,
        queue: &Queue,
        kind: Option<&Kind>,
        id: &JobId,
    ) -> Result<Vec<Found>> {
        let (ns, stream, conn) = (self.namespace(), self.streams(queue).jobs, self.conn());
        let mut found = Vec::new();
        if let Some(sequence) = id.as_sequence()
            && let Some(stored) = conn.by_sequence(&stream, sequence).await?
        {
            found.extend(self.read_waiting(queue, stored));
        }
        let kind = kind.map_or("*", Kind::as_str);
        let lanes = format!("{ns}.jobs.{queue}.*.{kind}.{id}");
        let messages = self.all_of(id, &stream, &lanes).await?;
        found.extend(messages.into_iter().filter_map(|stored| self.read_waiting(queue, stored)));
        Ok(found)
    }

    async fn find_timed(
        &self,
        queue: &Queue,
        kind: Option<&Kind>,
        id: &JobId,
    ) -> Result<Vec<Found>> {
        let stream = self.streams(queue).timers;
        let mut found = Vec::new();
        for what in ["timers", "due"] {
            let subjects = timed_filter(what, self.namespace(), queue, kind, Some(id));
            let messages = self.all_of(id, &stream, &subjects).await?;
            found.extend(messages.into_iter().filter_map(|stored| self.read_timer(queue, stored)));
        }
        Ok(found)
    }

    /// The messages of an id in one stream.
    async fn all_of(&self, id: &JobId, stream: &str, subjects: &str) -> Result<Vec<Stored>> {
        let (mut all, mut from) = (Vec::new(), 1);
        loop {
            let page = self.conn().batch(stream, subjects, Start::Sequence(from), PAGE).await?;
            let Some(last) = page.messages.last() else { return Ok(all) };
            from = last.sequence + 1;
            all.extend(page.messages);
            if page.is_last {
                return Ok(all);
            }
            if all.len() >= MAX_OF_ID {
                return Err(Error::invalid(format!(
                    "more than {MAX_OF_ID} unfinished jobs have the id {id}: choose them by a filter"
                )));
            }
        }
    }

    /// The last message of an id, as the streams' leaders have it: nothing is missing before they say
    /// so, since a replica may lag behind them.
    async fn find_at_leaders(
        &self,
        queue: &Queue,
        kind: Option<&Kind>,
        id: &JobId,
    ) -> Result<Vec<Found>> {
        let (ns, streams, conn) = (self.namespace(), self.streams(queue), self.conn());
        let lanes = format!("{ns}.jobs.{queue}.*.{}.{id}", kind.map_or("*", Kind::as_str));
        let timed = |what| (&streams.timers, timed_filter(what, ns, queue, kind, Some(id)));
        let on_lanes = (&streams.jobs, lanes);
        // The lanes again at last, where it may have been put meanwhile.
        for (stream, subjects) in [on_lanes.clone(), timed("timers"), timed("due"), on_lanes] {
            let Some(stored) = conn.last_of_leader(stream, &subjects).await? else { continue };
            let found = match *stream == streams.jobs {
                true => self.read_waiting(queue, stored),
                false => self.read_timer(queue, stored),
            };
            if found.is_some() {
                return Ok(found.into_iter().collect());
            }
        }
        Ok(Vec::new())
    }

    /// A message of the jobs stream; one that no worker could take is told by what can be read.
    pub(crate) fn read_waiting(&self, queue: &Queue, stored: Stored) -> Option<Found> {
        let ns = self.namespace();
        let lane =
            stored.subject.strip_prefix(&format!("{ns}.jobs.{queue}."))?.split('.').next()?;
        let priority: Priority = lane.parse().ok()?;
        let Stored { subject, sequence, headers, payload, stored } = stored;
        let reading = read_job(ns, queue, priority, &subject, &headers, sequence);
        let (key, options, problem) = match reading {
            Reading::Job { key, options } => (key, options, None),
            Reading::BadHeader { key, problem } | Reading::BadSubject { key, problem } => {
                (key, JobOptions::default(), Some(problem))
            }
            Reading::NewerProtocol => return None,
        };
        let place = match subject.ends_with(&format!(".{}", key.id)) {
            true => Place::Lane,
            false => Place::LaneWithoutId,
        };
        let (stream, headers) = (self.streams(queue).jobs, headers.for_copy());
        Some(Found {
            stream,
            sequence,
            key,
            priority,
            place,
            options,
            headers,
            payload,
            stored,
            problem,
        })
    }

    /// A message of the timers stream.
    pub(crate) fn read_timer(&self, queue: &Queue, stored: Stored) -> Option<Found> {
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
        let (options, problem) = match JobOptions::parse(&headers) {
            Ok(options) => (options, None),
            Err(error) => (JobOptions::default(), Some(error.to_string())),
        };
        let (stream, headers) = (self.streams(queue).timers, headers.for_copy());
        Some(Found {
            stream,
            sequence,
            key,
            priority,
            place,
            options,
            headers,
            payload,
            stored,
            problem,
        })
    }
}
