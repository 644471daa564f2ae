//! What JetStream does with a lane and with records, as far as settling rests on it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::history::History;
use crate::wire::time::{self, Time};
use crate::wire::{AttemptRecord, Status};

pub(super) const ACK_WAIT: Duration = Duration::from_secs(30);

/// A message of the jobs stream, and what the lane's consumer knows of it.
#[derive(Debug)]
pub(super) struct Message {
    /// Which of the runs it holds.
    pub(super) run: usize,
    /// Whether it says how many attempts were used, as one that was sent again does.
    pub(super) is_resent: bool,
    pub(super) stored: Time,
    /// How often the consumer says that it handed it out.
    pub(super) delivered: u64,
    /// Not to be handed out before; `None` where nobody has it.
    until: Option<Time>,
}

/// All that is on record of a run.
#[derive(Debug, Default)]
pub(super) struct Records {
    pub(super) ended: Option<Status>,
    pub(super) ledger: Vec<AttemptRecord>,
    pub(super) has_letter: bool,
}

impl Records {
    /// What a worker that looks finds.
    pub(super) fn history(&self) -> History {
        let history = self.ledger.last().cloned().map_or_else(History::default, History::of);
        History { has_ended: self.ended.is_some(), ..history }
    }
}

#[derive(Debug)]
pub(super) struct Broker {
    pub(super) now: Time,
    pub(super) remembers_since: Time,
    pub(super) messages: BTreeMap<u64, Message>,
    next: u64,
    pub(super) records: Vec<Records>,
    pub(super) is_dead_full: bool,
    /// Whether it has ever forgotten deliveries.
    pub(super) has_forgotten: bool,
}

impl Broker {
    pub(super) fn new(runs: usize) -> Self {
        let now = time::from_nanos(1_800_000_000_000_000_000);
        let mut broker = Self {
            now,
            remembers_since: time::before(now, Duration::from_secs(60)),
            messages: BTreeMap::new(),
            next: 1,
            records: (0..runs).map(|_| Records::default()).collect(),
            is_dead_full: false,
            has_forgotten: false,
        };
        for run in 0..runs {
            broker.store(run, false);
        }
        broker
    }

    fn store(&mut self, run: usize, is_resent: bool) {
        let message = Message { run, is_resent, stored: self.now, delivered: 0, until: None };
        self.messages.insert(self.next, message);
        self.next += 1;
    }

    /// The guard lets a run in again only where no message of its id is there.
    pub(super) fn resend(&mut self, run: usize) {
        if self.messages.values().all(|message| message.run != run) {
            self.store(run, true);
        }
    }

    /// Hands out the first message that nobody has; which it is.
    pub(super) fn hand_out(&mut self) -> Option<u64> {
        let now = self.now;
        let is_free = |message: &Message| message.until.is_none_or(|until| until <= now);
        let (sequence, message) = self.messages.iter_mut().find(|(_, message)| is_free(message))?;
        message.delivered += 1;
        message.until = Some(time::after(now, ACK_WAIT));
        Some(*sequence)
    }

    /// A word about a message, from whoever had it at any time: the broker does not ask.
    pub(super) fn ack(&mut self, sequence: u64) {
        self.messages.remove(&sequence);
    }

    pub(super) fn nak(&mut self, sequence: u64, delay: Duration) {
        self.put_off(sequence, delay);
    }

    pub(super) fn in_progress(&mut self, sequence: u64) {
        self.put_off(sequence, ACK_WAIT);
    }

    fn put_off(&mut self, sequence: u64, delay: Duration) {
        let until = time::after(self.now, delay);
        if let Some(message) = self.messages.get_mut(&sequence) {
            message.until = Some(until);
        }
    }

    /// Forgets for how long a message was put off.
    pub(super) fn forget_delay(&mut self, sequence: u64) {
        if let Some(message) = self.messages.get_mut(&sequence) {
            message.until = None;
        }
    }

    /// Forgets that anything was ever handed out.
    pub(super) fn forget_deliveries(&mut self) {
        self.has_forgotten = true;
        for message in self.messages.values_mut() {
            message.delivered = 0;
            message.until = None;
        }
    }

    /// Forgets all deliveries together with those who had them, and tells since when it remembers.
    pub(super) fn forget_all(&mut self) {
        let had_forgotten = self.has_forgotten;
        self.forget_deliveries();
        self.has_forgotten = had_forgotten;
        self.remembers_since = self.now;
    }

    /// The highest sequence that the ledger names.
    pub(super) fn highest_in_ledger(&self) -> u64 {
        let entries = self.records.iter().flat_map(|records| &records.ledger);
        entries.map(|entry| entry.seq).max().unwrap_or(0)
    }

    /// The first completion of a run stands; which that is.
    pub(super) fn fence(&mut self, run: usize, status: Status) -> Status {
        *self.records[run].ended.get_or_insert(status)
    }
}
