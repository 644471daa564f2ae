//! A history sorted by job: all that is known of each, and when something was broken.

use std::collections::{BTreeMap, HashMap};

use super::super::history::{Event, Line, Streams};
use super::job::{
    Cancelled, End, Ended, Entries, Entry, Job, Left, Letter, Moved, Outcome, Start, Tried,
};

/// The time within which workers are given up, where the history does not say.
const USUAL_ACK_WAIT_US: u64 = 30_000_000;

/// How long the effects of a fault may last beyond its end, beside `ack_wait`.
const AFTERMATH_US: u64 = 15_000_000;

/// All that a history tells, sorted.
#[derive(Debug, Default)]
pub(super) struct Books {
    pub(super) jobs: BTreeMap<String, Job>,
    pub(super) faults: Vec<Fault>,
    pub(super) all_healed_us: Option<u64>,
    /// When a producer was last told something of a job.
    pub(super) last_enqueue_us: u64,
    pub(super) emptied_us: Option<u64>,
    pub(super) streams: Option<Streams>,
    pub(super) seed: Option<u64>,
    pub(super) footprints: Vec<Footprint>,
    pub(super) cron: Vec<Entries>,
    pub(super) cron_removed_us: Option<u64>,
    ack_wait_us: Option<u64>,
    pub(super) began_us: u64,
    /// By place, which one worker process after the other takes.
    concurrency: BTreeMap<String, u64>,
    /// The delay over which each process sets timers.
    park_over_us: BTreeMap<String, u64>,
    /// The job of each run of those whose id is their key's: the broker's records name that id.
    runs_of_keys: HashMap<String, String>,
}

/// From when to when something was broken.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    pub(super) what: String,
    pub(super) from_us: u64,
    /// `None` where it was never healed.
    pub(super) until_us: Option<u64>,
}

impl Fault {
    /// Whether it was of a worker, and the broker was whole.
    pub(super) fn is_of_worker(&self) -> bool {
        self.what.starts_with("worker")
    }
}

/// What a process took of the machine.
#[derive(Clone, Debug)]
pub(super) struct Footprint {
    pub(super) at_us: u64,
    pub(super) of: String,
    pub(super) rss_kib: u64,
    pub(super) files: u64,
}

impl Footprint {
    /// Whether it is of a worker, and not of a server.
    pub(super) fn is_of_worker(&self) -> bool {
        self.of.starts_with('w')
    }
}

impl Books {
    /// Sorts lines that are in the order of time.
    pub(super) fn of(lines: &[(String, Line)]) -> Self {
        let began_us = lines.first().map_or(0, |(_, line)| line.at_us);
        let mut books = Self { began_us, ..Self::default() };
        for (by, line) in lines {
            books.enter(by, line.at_us, &line.event);
        }
        books
    }

    fn enter(&mut self, by: &str, at_us: u64, event: &Event) {
        match event.clone() {
            Event::Setup { seed, ack_wait_ms } => {
                self.seed = Some(seed);
                self.ack_wait_us = Some(ack_wait_ms.saturating_mul(1000));
            }
            Event::Producing { seed, .. } => self.seed = self.seed.or(Some(seed)),
            Event::Working { concurrency, park_over_ms } => {
                // `w1-3` is the third process in the place of `w1`.
                let place = by.rsplit_once('-').map_or(by, |(place, _)| place);
                self.concurrency.insert(place.to_owned(), concurrency);
                self.park_over_us.insert(by.to_owned(), park_over_ms.saturating_mul(1000));
            }
            Event::Try {
                id,
                fails,
                max_attempts,
                backoff_ms,
                run_after_ms,
                key,
                sealing,
                sum,
                ..
            } => {
                self.job(id).tried = Some(Tried {
                    at_us,
                    fails,
                    max_attempts,
                    backoff_us: backoff_ms.saturating_mul(1000),
                    run_after_us: run_after_ms.map(|ms| ms.saturating_mul(1000)),
                    key,
                    sealing,
                    sum,
                });
            }
            Event::Ok { id, run, .. } => {
                self.know_run(&id, &run);
                self.told(id, at_us, Outcome::Ok { at_us, run });
            }
            Event::Duplicate { id, of } => self.told(id, at_us, Outcome::Duplicate { at_us, of }),
            Event::Unknown { id, .. } => self.told(id, at_us, Outcome::Unknown),
            Event::Refused { id, .. } => self.told(id, at_us, Outcome::Refused),
            Event::Cron { name, every_ms, sealing, sum } => {
                let every_us = every_ms.max(1).saturating_mul(1000);
                self.cron.push(Entries { name, from_us: at_us, every_us, sealing, sum });
            }
            Event::CronRemoved => self.cron_removed_us = Some(at_us),
            Event::Cancel { id } => self.job(id).cancelled = Some(Cancelled::default()),
            Event::Cancelled { id, status } => {
                self.job(id).cancelled = Some(Cancelled { told: Some((at_us, status)) });
            }
            Event::Move { id, to } => {
                self.job(id).moved = Some(Moved { asked_us: at_us, to, done_us: None });
            }
            Event::Moved { id } => {
                if let Some(moved) = &mut self.job(id).moved {
                    moved.done_us = Some(at_us);
                }
            }
            Event::NotDone { .. } => {}
            Event::Start { id, run, lane, attempt, sealing, sum } => {
                self.know_run(&id, &run);
                self.job(id).starts.push(Start { at_us, run, lane, attempt, sealing, sum });
            }
            Event::End { id, run, attempt, said } => {
                self.job(id).ends.push(End { at_us, by: by.to_owned(), run, attempt, said });
            }
            Event::Fault { what } => {
                self.faults.push(Fault { what, from_us: at_us, until_us: None });
            }
            Event::Healed { what } => {
                let is_open = |fault: &&mut Fault| fault.what == what && fault.until_us.is_none();
                if let Some(fault) = self.faults.iter_mut().rev().find(is_open) {
                    fault.until_us = Some(at_us);
                }
            }
            Event::AllHealed => {
                self.all_healed_us = Some(at_us);
                for fault in &mut self.faults {
                    fault.until_us.get_or_insert(at_us);
                }
            }
            Event::Footprint { of, rss_kib, files } => {
                self.footprints.push(Footprint { at_us, of, rss_kib, files });
            }
            Event::Emptied => self.emptied_us = Some(at_us),
            Event::Completion { id, run, status, attempt } => {
                let id = self.of_run(id, &run);
                self.job(id).completions.push(Ended { run, status, attempt });
            }
            Event::Ledger { id, run, attempt, what, worker } => {
                let id = self.of_run(id, &run);
                self.job(id).ledger.push(Entry { attempt, what, worker });
            }
            Event::Letter { id, run, attempts, reason, sealing, sum } => {
                let id = self.of_run(id, &run);
                self.job(id).letters.push(Letter { run, attempts, reason, sealing, sum });
            }
            Event::Left { id, run, stands } => {
                let id = self.of_run(id, &run);
                self.job(id).left.push(Left { at_us, run, stands });
            }
            Event::Streams(streams) => self.streams = Some(streams),
        }
    }

    fn know_run(&mut self, id: &str, run: &str) {
        let tried = self.jobs.get(id).and_then(|job| job.tried.as_ref());
        if tried.is_some_and(|tried| tried.key.is_some()) {
            self.runs_of_keys.insert(run.to_owned(), id.to_owned());
        }
    }

    /// The job that a record of the broker's is of.
    fn of_run(&self, id: String, run: &str) -> String {
        self.runs_of_keys.get(run).cloned().unwrap_or(id)
    }

    fn job(&mut self, id: String) -> &mut Job {
        let cron = &self.cron;
        self.jobs.entry(id).or_insert_with_key(|id| {
            let entry = cron.iter().find(|entry| entry.is_firing(id));
            entry.map(Entries::firing).unwrap_or_default()
        })
    }

    fn told(&mut self, id: String, at_us: u64, outcome: Outcome) {
        self.last_enqueue_us = self.last_enqueue_us.max(at_us);
        self.job(id).outcome = outcome;
    }

    /// Whether this process puts a job off by a timer that is not due for so long.
    pub(super) fn sets_timer(&self, by: &str, delay_us: u64) -> bool {
        self.park_over_us.get(by).is_some_and(|park_over_us| delay_us > *park_over_us)
    }

    pub(super) fn ack_wait_us(&self) -> u64 {
        self.ack_wait_us.unwrap_or(USUAL_ACK_WAIT_US)
    }

    /// For how long after a fault what it has disturbed may still show.
    pub(super) fn aftermath_us(&self) -> u64 {
        self.ack_wait_us() + AFTERMATH_US
    }

    /// How many jobs all workers run at once, as the most that one fault can hit.
    pub(super) fn held(&self) -> u64 {
        self.concurrency.values().sum()
    }

    /// How many worker processes there are at once.
    pub(super) fn workers(&self) -> u64 {
        self.concurrency.len() as u64
    }

    /// The faults that something between two moments can come of. A worker that is whole again disturbs
    /// nothing any more; a broker needs a while.
    pub(super) fn faults_around(
        &self,
        from_us: u64,
        until_us: u64,
    ) -> impl Iterator<Item = &Fault> {
        let aftermath = self.aftermath_us();
        self.faults.iter().filter(move |fault| {
            let lingers = if fault.is_of_worker() { 0 } else { aftermath };
            let over = fault.until_us.unwrap_or(u64::MAX).saturating_add(lingers);
            fault.from_us <= until_us && over >= from_us
        })
    }

    /// Whether the broker was disturbed so that something between two moments can come of it.
    pub(super) fn broker_was_broken(&self, from_us: u64, until_us: u64) -> bool {
        self.faults_around(from_us, until_us).any(|fault| !fault.is_of_worker())
    }

    /// When all is whole again of what is broken around a moment.
    pub(super) fn whole_again_us(&self, at_us: u64) -> u64 {
        let around = self.faults_around(at_us, at_us + self.aftermath_us());
        around.map(|fault| fault.until_us.unwrap_or(u64::MAX / 2)).max().unwrap_or_default()
    }

    /// The last moment, up to this one, at which something was still broken.
    pub(super) fn whole_since_us(&self, at_us: u64) -> u64 {
        let begun = self.faults.iter().filter(|fault| fault.from_us <= at_us);
        begun.map(|fault| fault.until_us.unwrap_or(at_us).min(at_us)).max().unwrap_or_default()
    }
}
