//! Looking at cron entries.

use std::collections::HashMap;

use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::Cron;
use crate::broker::{Batch, Start, Stored};
use crate::client::{Client, sealed_with};
use crate::error::{Error, ErrorKind, Result};
use crate::priority::Priority;
use crate::schedule::Schedule;
use crate::token::{CronName, JobId, Kind, Queue};
use crate::wire::time::Time;
use crate::wire::{
    CronKey, CronNote, Fired, Firing, Headers, RecordKey, cron_filter, fired_subject, job_headers,
};

/// Messages read at once.
const PAGE: usize = 256;

/// A cron entry as it stands just now.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CronEntry {
    /// What its queue knows it by.
    pub name: CronName,
    /// The queue of its jobs.
    pub queue: Queue,
    /// Their lane.
    pub priority: Priority,
    /// Their kind.
    pub kind: Kind,
    /// The schedule as it was written.
    pub schedule: String,
    /// The time zone; UTC where there is none.
    pub zone: Option<String>,
    /// Whether a firing is left out while the job of an earlier one is unfinished.
    pub skips_overlap: bool,
    /// The declared set that it belongs to; see [`Cron::reconcile`].
    pub set: Option<String>,
    /// Since when it is paused, if it is.
    pub paused_at: Option<DateTime<Utc>>,
    /// When it was written as it is.
    pub changed_at: DateTime<Utc>,
    /// Its jobs' headers.
    pub headers: Headers,
    /// Its jobs' payload.
    pub payload: Bytes,
    /// Its last firing by schedule.
    pub last: Option<Fired>,
    pub(super) sequence: u64,
    #[cfg(feature = "cron")]
    read_at: Time,
}

impl CronEntry {
    pub(super) fn read(found: Found, queue: &Queue, read_at: Time) -> Self {
        let Found { key, stored, last } = found;
        let note = CronNote::of(&stored.headers);
        Self {
            name: key.name,
            queue: queue.clone(),
            priority: key.lane,
            kind: key.kind,
            schedule: note.schedule,
            zone: note.zone,
            skips_overlap: note.skip_overlap,
            set: note.set,
            paused_at: note.paused_at,
            changed_at: stored.stored.unwrap_or(read_at),
            headers: job_headers(&stored.headers),
            payload: stored.payload,
            last,
            sequence: stored.sequence,
            #[cfg(feature = "cron")]
            read_at,
        }
    }

    /// Its schedule.
    ///
    /// # Errors
    /// `is_invalid` where another client wrote one that cannot be read.
    pub fn schedule(&self) -> Result<Schedule> {
        let schedule: Schedule = self.schedule.parse()?;
        match &self.zone {
            Some(zone) => schedule.in_zone(zone),
            None => Ok(schedule),
        }
    }

    /// When it was to fire next by what the broker said at its last firing, or, where it has not fired
    /// yet, by its schedule; `None` where that cannot be told, or it is paused.
    pub(crate) fn expected(&self) -> Option<Time> {
        if self.paused_at.is_some() {
            return None;
        }
        match self.last.as_ref().filter(|last| last.at >= self.changed_at) {
            Some(last) => last.next,
            #[cfg(feature = "cron")]
            None => self.schedule().ok()?.next(self.changed_at, self.changed_at),
            #[cfg(not(feature = "cron"))]
            None => None,
        }
    }

    /// The id of the key that the payload is sealed with, if it is.
    pub fn sealed_with(&self) -> Option<String> {
        sealed_with(&self.headers)
    }

    /// The payload, opened with this client's keys where it is sealed.
    ///
    /// # Errors
    /// `is_invalid` where they do not open it.
    pub fn open(&self, client: &Client) -> Result<Bytes> {
        let Self { queue, kind, headers, payload, .. } = self;
        let id = JobId::of_cron(&self.name);
        let key = RecordKey { run: id.as_run(), queue: queue.clone(), kind: kind.clone(), id };
        client.open_job(&key, headers, payload)
    }

    pub(crate) fn key(&self) -> CronKey {
        let Self { queue, priority, kind, name, .. } = self.clone();
        CronKey { queue, lane: priority, kind, name }
    }

    /// A firing that the broker did not see to.
    pub(crate) fn fire(&self, number: u64, at: Time) -> Firing {
        let next = self.next_after(at);
        Firing::new(&self.key(), &self.headers, number, at, self.skips_overlap, next)
    }

    #[cfg(feature = "cron")]
    fn next_after(&self, at: Time) -> Option<Time> {
        self.schedule().ok()?.next(at, at)
    }

    #[cfg(not(feature = "cron"))]
    fn next_after(&self, _: Time) -> Option<Time> {
        None
    }

    pub(super) fn note(&self) -> CronNote {
        CronNote {
            schedule: self.schedule.clone(),
            zone: self.zone.clone(),
            skip_overlap: self.skips_overlap,
            set: self.set.clone(),
            paused_at: self.paused_at,
        }
    }
}

#[cfg(feature = "cron")]
impl CronEntry {
    /// When it runs next; `None` where it is paused.
    pub fn next(&self) -> Option<DateTime<Utc>> {
        self.upcoming(1).pop()
    }

    /// Its next runs, at most `count`, by the broker's rules for patterns and time zones; none where
    /// it is paused.
    pub fn upcoming(&self, count: usize) -> Vec<DateTime<Utc>> {
        let Some(schedule) = self.schedule().ok().filter(|_| self.paused_at.is_none()) else {
            return Vec::new();
        };
        let expected = self.expected();
        let first = match expected {
            Some(next) if next > self.read_at => Some(next),
            since => schedule.next(since.unwrap_or(self.changed_at), self.read_at),
        };
        std::iter::successors(first, |at| schedule.next(*at, *at)).take(count).collect()
    }
}

/// An entry as its messages hold it.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) key: CronKey,
    pub(super) stored: Stored,
    pub(super) last: Option<Fired>,
}

impl Cron<'_> {
    /// The entries of all queues, by queue and name.
    ///
    /// # Errors
    /// As [`Cron::list`]; `is_permission` also where these credentials may not list streams.
    pub async fn list_all(&self) -> Result<Vec<CronEntry>> {
        self.client.require_cron().await?;
        let mut all = Vec::new();
        for queue in self.client.queues().await? {
            all.extend(self.read_entries(&queue).await?);
        }
        Ok(all)
    }

    /// The entries of a queue, by name.
    ///
    /// # Errors
    /// `is_unsupported` on a server before 2.14, `is_not_found` where the queue does not exist,
    /// `is_permission` where these credentials may not read its timers.
    pub async fn list(&self, queue: &Queue) -> Result<Vec<CronEntry>> {
        self.client.require_cron().await?;
        self.read_entries(queue).await
    }

    pub(super) async fn read_entries(&self, queue: &Queue) -> Result<Vec<CronEntry>> {
        let ns = self.client.namespace();
        let mut fired = HashMap::new();
        for stored in self.read_all(queue, &fired_subject(ns, queue, None)).await? {
            if let Ok(last) = serde_json::from_slice::<Fired>(&stored.payload) {
                fired.insert(stored.subject, last);
            }
        }
        let now = self.client.now(queue).await;
        let mut entries: Vec<CronEntry> = Vec::new();
        for stored in self.read_all(queue, &cron_filter(ns, queue, None)).await? {
            if let Some(key) = CronKey::parse(ns, &stored.subject) {
                let last = fired.remove(&fired_subject(ns, queue, Some(&key.name)));
                entries.push(CronEntry::read(Found { key, stored, last }, queue, now));
            }
        }
        // Of a paused one that is being moved there can be two for a moment.
        entries.sort_by(|one, other| (&one.name, other.sequence).cmp(&(&other.name, one.sequence)));
        entries.dedup_by(|one, before| one.name == before.name);
        Ok(entries)
    }

    /// One entry, as the broker's leader has it.
    ///
    /// # Errors
    /// `is_not_found` where there is none of this name; as [`Cron::list`].
    pub async fn get(&self, queue: &Queue, name: &CronName) -> Result<CronEntry> {
        self.client.require_cron().await?;
        self.find(queue, name).await?.ok_or_else(|| {
            let message = format!("queue {queue} has no cron entry {name}");
            Error::new(ErrorKind::NotFound, message)
        })
    }

    pub(super) async fn find(&self, queue: &Queue, name: &CronName) -> Result<Option<CronEntry>> {
        let (ns, stream) = (self.client.namespace(), self.client.streams(queue).timers);
        let filter = cron_filter(ns, queue, Some(name));
        let Some(stored) = self.client.conn().last_of_leader(&stream, &filter).await? else {
            return Ok(None);
        };
        let Some(key) = CronKey::parse(ns, &stored.subject) else { return Ok(None) };
        let fired = fired_subject(ns, queue, Some(name));
        let last = self.client.conn().last_of_leader(&stream, &fired).await?;
        let last = last.and_then(|last| serde_json::from_slice(&last.payload).ok());
        let found = Found { key, stored, last };
        Ok(Some(CronEntry::read(found, queue, self.client.now(queue).await)))
    }

    async fn read_all(&self, queue: &Queue, filter: &str) -> Result<Vec<Stored>> {
        let stream = self.client.streams(queue).timers;
        let (mut all, mut from) = (Vec::new(), 1);
        loop {
            let start = Start::Sequence(from);
            let Batch { messages, is_last, .. } =
                self.client.conn().batch(&stream, filter, start, PAGE).await?;
            from = messages.last().map_or(from, |last| last.sequence + 1);
            all.extend(messages);
            if is_last {
                return Ok(all);
            }
        }
    }
}
