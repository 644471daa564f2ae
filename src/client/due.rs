//! What a timer or a cron entry has put out, and how it gets to its lane: by any worker of the queue,
//! see `worker::promote`, or by who finds that no worker will get it, see `stuck`.

use super::resolve::{Copied, Settled};
use super::{Client, Ready};
use crate::broker::{Expect, Stored};
use crate::error::Result;
use crate::wire::time::Time;
use crate::wire::{Fired, Firing, Headers, RecordKey, fired_subject, name, parse_due};

/// What a timer or a cron entry has put out.
#[derive(Debug)]
pub(crate) struct Due {
    pub(crate) job: Ready,
    /// Where it is of a cron entry.
    firing: Option<Firing>,
    at: Time,
    sequence: u64,
}

/// What became of what was due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Promotion {
    /// It is on its lane, or further.
    Done,
    /// What its timer was set from is still on a lane.
    BeingMoved,
    /// Another run of its unique id is there.
    KeptOut,
}

impl Due {
    /// Whether it is a job whose time has come, and not a firing of a cron entry.
    pub(crate) fn is_of_timer(&self) -> bool {
        self.firing.is_none()
    }
}

impl Client {
    /// The job in what has come out; `None` if there is none.
    pub(crate) fn read_due(&self, stored: Stored) -> Option<Due> {
        let Stored { subject, sequence, headers, payload, stored } = stored;
        let (priority, timer) = parse_due(&self.namespace, &subject)?;
        let at = stored.unwrap_or_else(|| self.clock.now());
        let firing = Firing::read(&self.namespace, &headers, sequence, at);
        let (key, headers) = match &firing {
            Some(firing) => (firing.run.clone(), firing.headers.clone()),
            None => {
                let mut headers = headers.for_copy();
                headers.set(name::RUN, timer.run.as_str());
                (timer, headers)
            }
        };
        let RecordKey { queue, kind, id, run } = key;
        let job = Ready { queue, priority, kind, id, run, headers, payload };
        Some(Due { job, firing, at, sequence })
    }

    /// Puts what is due on its lane, once. The message that it came out as stays, and is the caller's
    /// to take away when this is done.
    pub(crate) async fn promote(&self, due: Due, copied: Copied) -> Result<Promotion> {
        let Due { job, firing, at, sequence } = due;
        if let Some(firing) = firing {
            let stored = self.store_once(job).await?;
            self.note_fired(&firing, at, stored.is_duplicate()).await?;
            return Ok(Promotion::Done);
        }
        Ok(match self.store_promoted(job, sequence, copied).await? {
            Settled::Stored(_) | Settled::Before(_) => Promotion::Done,
            Settled::Duplicate(_) => Promotion::KeptOut,
            Settled::BeingMoved => Promotion::BeingMoved,
        })
    }

    /// Notes the last firing of a cron entry: for people to see, and for who makes up for missed ones.
    pub(crate) async fn note_fired(&self, firing: &Firing, at: Time, skipped: bool) -> Result<()> {
        if skipped {
            tracing::info!(cron = %firing.name, "left out: an earlier job of it is unfinished");
        }
        let subject = fired_subject(&self.namespace, &firing.run.queue, Some(&firing.name));
        let headers: Headers = [(name::ROLLUP, "sub")].into_iter().collect();
        let fired = Fired::new(firing, at, skipped);
        let body = serde_json::to_vec(&fired).unwrap_or_default().into();
        self.conn.store(subject, &headers, body, Expect::Anything).await.map(drop)
    }
}
