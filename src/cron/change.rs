//! Changing cron entries: added, paused, removed, run at once.

use bytes::Bytes;

use super::job::Entry;
use super::{Cron, CronEntry, CronJob};
use crate::broker::{Expect, Published};
use crate::client::{JobHandle, Ready};
use crate::error::{Error, ErrorKind, Result};
use crate::schedule::Schedule;
use crate::token::{CronName, JobId, Queue};
use crate::wire::time::Time;
use crate::wire::{
    CronKey, CronNote, Firing, Headers, RecordKey, Scope, cron_filter, entry_headers,
    fired_subject, name,
};

/// How often a change is tried while others change the same entry.
const TRIES: usize = 20;

/// What became of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CronChange {
    /// There was none of this name.
    Added,
    /// It took the place of one of this name.
    Updated,
    /// It was there as it is.
    Unchanged,
}

/// An entry to be written.
struct Draft<'a> {
    key: &'a CronKey,
    note: &'a CronNote,
    /// As the broker takes it.
    schedule: &'a str,
    headers: &'a Headers,
    payload: &'a Bytes,
}

impl Cron<'_> {
    /// Adds an entry, or puts it in the place of the one of its name in its queue, in one step. One
    /// that is there already as it is stays untouched, so that repeating this does not start an
    /// interval anew; one that is paused stays paused.
    ///
    /// # Errors
    /// `is_invalid` for a mistake in it, `is_unsupported` on a server before 2.14, `is_too_large` for
    /// its payload, `is_permission` where these credentials may not read or write the queue's timers,
    /// `is_unknown` where the broker does not say whether it has it: add it again.
    pub async fn add(&self, job: CronJob) -> Result<CronChange> {
        self.put(job.finish(None)?).await
    }

    /// What [`Cron::add`] would do; nothing is written.
    ///
    /// # Errors
    /// As [`Cron::add`].
    pub async fn plan(&self, job: CronJob) -> Result<CronChange> {
        let Entry { key, mut note, schedule, job } = job.finish(None)?;
        self.client.require_cron().await?;
        self.client.check_size(&self.protected(&key, &job)?)?;
        let there = match self.find(&key.queue, &key.name).await {
            Err(error) if error.is_not_found() => None,
            found => found?,
        };
        note.paused_at = there.as_ref().and_then(|there| there.paused_at);
        let draft = Draft::new(&key, &note, &schedule, &job);
        Ok(match there {
            None => CronChange::Added,
            Some(there) if self.is_as(&draft, &there) => CronChange::Unchanged,
            Some(_) => CronChange::Updated,
        })
    }

    pub(super) async fn put(&self, entry: Entry) -> Result<CronChange> {
        self.client.require_cron().await?;
        let Entry { key, mut note, schedule, job } = entry;
        let protected = self.protected(&key, &job)?;
        self.client.check_size(&protected)?;
        self.client.ensure_once(&key.queue).await?;
        for _ in 0..TRIES {
            let there = self.find(&key.queue, &key.name).await?;
            note.paused_at = there.as_ref().and_then(|there| there.paused_at);
            let draft = Draft::new(&key, &note, &schedule, &job);
            if there.as_ref().is_some_and(|there| self.is_as(&draft, there)) {
                return Ok(CronChange::Unchanged);
            }
            let draft = Draft::new(&key, &note, &schedule, &protected);
            if self.write(&draft, there.as_ref()).await? {
                let is_new = there.is_none();
                return Ok(if is_new { CronChange::Added } else { CronChange::Updated });
            }
        }
        Err(others_change_it(&key.name))
    }

    /// Stops an entry from firing until it is resumed; `false` where it was paused already. Jobs that
    /// it has put out are not touched.
    ///
    /// # Errors
    /// `is_not_found` where there is none of this name; as [`Cron::add`].
    pub async fn pause(&self, queue: &Queue, name: &CronName) -> Result<bool> {
        self.set_pause(queue, name, Some(self.client.now(queue).await)).await
    }

    /// Lets a paused entry fire again, from now on: what was missed is not made up. `false` where it
    /// was not paused.
    ///
    /// # Errors
    /// As [`Cron::pause`].
    pub async fn resume(&self, queue: &Queue, name: &CronName) -> Result<bool> {
        self.set_pause(queue, name, None).await
    }

    async fn set_pause(
        &self,
        queue: &Queue,
        name: &CronName,
        paused_at: Option<Time>,
    ) -> Result<bool> {
        for _ in 0..TRIES {
            let there = self.get(queue, name).await?;
            if there.paused_at.is_some() == paused_at.is_some() {
                return Ok(false);
            }
            let note = CronNote { paused_at, ..there.note() };
            let schedule: Schedule = there.schedule()?;
            let draft = Draft {
                key: &there.key(),
                note: &note,
                schedule: &schedule.to_wire(),
                headers: &there.headers,
                payload: &there.payload,
            };
            if self.write(&draft, Some(&there)).await? {
                return Ok(true);
            }
        }
        Err(others_change_it(name))
    }

    /// Removes an entry; `false` where there was none. Jobs that it has put out stay.
    ///
    /// # Errors
    /// `is_unsupported` on a server before 2.14, `is_permission` where these credentials may not read or
    /// delete the queue's timers.
    pub async fn remove(&self, queue: &Queue, name: &CronName) -> Result<bool> {
        self.client.require_cron().await?;
        let (conn, stream) = (self.client.conn(), self.client.streams(queue).timers);
        let mut newest = None;
        for _ in 0..TRIES {
            let Some(there) = self.find(queue, name).await? else { break };
            // Somebody has just added it anew.
            if newest.is_some_and(|newest| there.sequence > newest) {
                break;
            }
            if conn.delete(&stream, there.sequence).await? {
                newest.get_or_insert(there.sequence);
            }
        }
        if newest.is_some() {
            let fired = fired_subject(self.client.namespace(), queue, Some(name));
            conn.purge(&stream, &fired).await?;
        }
        Ok(newest.is_some())
    }

    /// Enqueues an entry's job now, once, whether it is paused or not. Where its runs may not overlap
    /// and one is unfinished, that one is told as a duplicate.
    ///
    /// # Errors
    /// `is_not_found` where there is no entry of this name; those of [`Client::enqueue`].
    ///
    /// [`Client::enqueue`]: crate::Client::enqueue
    pub async fn run(&self, queue: &Queue, name: &CronName) -> Result<JobHandle> {
        let there = self.get(queue, name).await?;
        // Firings by schedule count a stream's sequence, which began as such a time and lags behind.
        let now = self.client.now(queue).await;
        let number = u64::try_from(now.timestamp_micros()).unwrap_or(1);
        let CronEntry { priority, payload, .. } = there.clone();
        let firing = there.fire(number, now);
        let Firing { run: RecordKey { queue, kind, id, run }, headers, .. } = firing;
        self.client.store_once(Ready { queue, priority, kind, id, run, headers, payload }).await
    }

    /// An entry's job as it is stored. The ids and runs of its firings are not known yet, so it is sealed
    /// and signed for the entry.
    fn protected(&self, key: &CronKey, job: &Ready) -> Result<Ready> {
        let id = JobId::of_cron(&key.name);
        let job = Ready { run: id.as_run(), id, ..job.clone() };
        self.client.protect(job, Scope::Cron(key.name.clone()))
    }

    /// Whether writing an entry would change nothing. Sealed anew, it would be other bytes; what counts is
    /// what is in them, and by which keys.
    fn is_as(&self, draft: &Draft<'_>, there: &CronEntry) -> bool {
        let sorted = |headers: &Headers| {
            let mut headers = headers.clone();
            headers.sort();
            headers
        };
        let CronEntry { queue, priority, kind, headers, payload, .. } = there.clone();
        let id = JobId::of_cron(&there.name);
        let stored = Ready { run: id.as_run(), queue, priority, kind, id, headers, payload };
        let scope = Scope::Cron(there.name.clone());
        *draft.key == there.key()
            && *draft.note == there.note()
            && self.client.bare(&stored, &scope).is_some_and(|(headers, payload)| {
                sorted(draft.headers) == sorted(&headers) && **draft.payload == *payload
            })
    }

    /// Writes an entry in place of what was found there; `false` where that has changed.
    async fn write(&self, draft: &Draft<'_>, there: Option<&CronEntry>) -> Result<bool> {
        let ns = self.client.namespace();
        let Draft { key, note, schedule, headers, payload } = draft;
        let mut headers = entry_headers(ns, key, headers, note, schedule);
        let subject = key.subject(ns);
        // On another lane or of another kind it has another subject: the old one goes with it, in one
        // step where the broker has it on its wheel, else right after; it does nothing meanwhile.
        let moved = there.filter(|there| there.key().subject(ns) != subject);
        if let Some(old) = moved.filter(|old| old.paused_at.is_none()) {
            headers.set(name::SCHEDULER, old.key().subject(ns));
            headers.set(name::SCHEDULE_NEXT, "purge");
        }
        let guard = cron_filter(ns, &key.queue, Some(&key.name));
        let sequence = there.map_or(0, |there| there.sequence);
        let expect = Expect::LastOf { guard: &guard, sequence };
        let stored = self.client.conn().store(subject, &headers, (*payload).clone(), expect);
        match stored.await? {
            Published::Stored(_) => {}
            Published::WrongLast(_) | Published::InFlight => return Ok(false),
        }
        if let Some(old) = moved.filter(|old| old.paused_at.is_some()) {
            let stream = self.client.streams(&key.queue).timers;
            self.client.conn().delete(&stream, old.sequence).await?;
        }
        Ok(true)
    }
}

impl<'a> Draft<'a> {
    fn new(key: &'a CronKey, note: &'a CronNote, schedule: &'a str, job: &'a Ready) -> Self {
        Self { key, note, schedule, headers: &job.headers, payload: &job.payload }
    }
}

fn others_change_it(name: &CronName) -> Error {
    let message = format!("others change cron entry {name} all the time: try again");
    Error::new(ErrorKind::Unavailable, message)
}
