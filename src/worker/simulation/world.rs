//! Workers that take one step at a time, and the truth about what they did.

use std::time::Duration;

use super::super::admit::{Admission, Candidate, FirstSight, admit, admit_undisturbed};
use super::super::job::Attempt;
use super::super::lease::has_run_out;
use super::super::steps::{Step, fill, steps};
use super::broker::{ACK_WAIT, Broker};
use super::{Entitled, Event, Harm, Said};
use crate::broker::Word;
use crate::outcome::{BuryReason, JobError, Outcome, Settlement, settle};
use crate::retry::{Backoff, RetryPolicy};
use crate::token::{JobId, RunId};
use crate::wire::time::{self, Time};
use crate::wire::{AttemptEvent, AttemptRecord, JobHeaders, Status};

const RUNS: usize = 3;
const WORKERS: usize = 2;
const MAX_RETRIES: u32 = 2;

/// Where there is no room for a dead letter, the job is given back for this long.
const DEAD_FULL_DELAY: Duration = Duration::from_secs(60);

/// More steps than anything can take to come to an end.
const MANY: usize = 5_000;

/// What really happened to a run.
#[derive(Debug, Default)]
struct Truth {
    /// Attempts that count: begun on record, or failed on record, and not given back or put off.
    spent: u32,
    /// First attempts that left no trace.
    untraced: u32,
    /// Attempts that were begun.
    begun: u32,
    /// Attempts that cost nothing.
    free: u32,
}

/// A worker: what it remembers, and the job that it holds.
#[derive(Debug)]
struct Worker {
    remembers_since: Time,
    suspect_up_to: u64,
    highest: u64,
    is_frozen: bool,
    hold: Option<Hold>,
}

/// A job in a worker's hands.
#[derive(Debug)]
struct Hold {
    sequence: u64,
    run: usize,
    options: JobHeaders,
    stored: Time,
    renewed: Time,
    /// Which delivery it is.
    delivered: u64,
    attempt: Attempt,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// It has come in, and this tells whether it may have been touched before.
    Fresh(FirstSight),
    /// It may run.
    Admitted,
    Running {
        started_at: Time,
    },
    /// So many steps of its settlement are on record.
    Recording {
        settlement: Settlement,
        started_at: Option<Time>,
        done: usize,
    },
    /// Everything is on record.
    Recorded(Word),
}

#[derive(Debug)]
pub(super) struct World {
    harm: Harm,
    broker: Broker,
    workers: Vec<Worker>,
    truths: Vec<Truth>,
}

fn policy() -> RetryPolicy {
    RetryPolicy::new(MAX_RETRIES, Backoff::linear(Duration::from_secs(10)))
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

impl World {
    pub(super) fn new(harm: Harm) -> Self {
        let mut broker = Broker::new(RUNS);
        broker.now = time::after(broker.now, seconds(1));
        let workers = (0..WORKERS).map(|_| Worker::new(&broker)).collect();
        Self { harm, broker, workers, truths: (0..RUNS).map(|_| Truth::default()).collect() }
    }

    pub(super) fn apply(&mut self, event: Event) {
        match event {
            Event::Step(worker, said) => self.step(worker % WORKERS, said),
            Event::Wait(count) => self.wait(seconds(count.into())),
            Event::Crash(worker) => self.workers[worker % WORKERS] = Worker::new(&self.broker),
            Event::Outage => {
                self.broker.forget_all();
                self.workers = (0..WORKERS).map(|_| Worker::new(&self.broker)).collect();
            }
            Event::LoseWord(worker) => {
                let hold = &mut self.workers[worker % WORKERS].hold;
                if matches!(hold, Some(Hold { stage: Stage::Recorded(_), .. })) {
                    *hold = None;
                }
            }
            Event::Early(which) => {
                let held: Vec<u64> = self.held().collect();
                let put_off: Vec<u64> = self.broker.messages.keys().copied().collect();
                let sequence = put_off.get(which % put_off.len().max(1));
                if let Some(sequence) = sequence.filter(|sequence| !held.contains(sequence)) {
                    self.broker.forget_delay(*sequence);
                }
            }
            Event::Resend(run) => self.broker.resend(run % RUNS),
            Event::Cancel(run) => {
                self.broker.fence(run % RUNS, Status::Cancelled);
            }
            Event::FillDead => self.broker.is_dead_full = true,
            Event::EmptyDead => self.broker.is_dead_full = false,
            Event::Freeze(worker) => self.workers[worker % WORKERS].is_frozen = true,
            Event::Thaw(worker) => {
                let worker = &mut self.workers[worker % WORKERS];
                worker.is_frozen = false;
                worker.take_stock(&self.broker);
            }
            Event::Amnesia => self.forget(),
            Event::Anew => {
                self.broker.remembers_since = self.broker.now;
                self.forget();
            }
        }
    }

    fn held(&self) -> impl Iterator<Item = u64> {
        self.workers.iter().filter_map(|worker| worker.hold.as_ref()).map(|hold| hold.sequence)
    }

    /// The broker forgets deliveries; who is connected notices that it was away.
    fn forget(&mut self) {
        self.broker.forget_deliveries();
        for worker in self.workers.iter_mut().filter(|worker| !worker.is_frozen) {
            worker.take_stock(&self.broker);
        }
    }

    /// Time passes, and the leases of those who live are renewed in time.
    fn wait(&mut self, mut time: Duration) {
        while !time.is_zero() {
            let step = time.min(ACK_WAIT / 3);
            time -= step;
            self.broker.now = time::after(self.broker.now, step);
            let now = self.broker.now;
            for worker in self.workers.iter_mut().filter(|worker| !worker.is_frozen) {
                let Some(hold) = worker.hold.as_mut().filter(|hold| hold.is_ours(now)) else {
                    continue;
                };
                hold.renewed = now;
                self.broker.in_progress(hold.sequence);
            }
        }
    }

    fn step(&mut self, worker: usize, said: Said) {
        if self.workers[worker].is_frozen {
            return;
        }
        let Some(hold) = self.workers[worker].hold.take() else {
            return self.workers[worker].fetch(&mut self.broker);
        };
        self.workers[worker].hold = match hold.stage {
            Stage::Fresh(sight) => Some(self.admit(hold, sight)),
            Stage::Admitted => Some(self.begin(hold)),
            Stage::Running { started_at } => self.end(hold, started_at, said),
            Stage::Recording { .. } => Some(self.record(hold)),
            Stage::Recorded(word) => {
                self.say(&hold, word);
                None
            }
        };
    }

    fn admit(&self, mut hold: Hold, sight: FirstSight) -> Hold {
        let Hold { options, sequence, stored, run, .. } = &hold;
        let job = Candidate { options, sequence: *sequence, stored: *stored };
        let admission = if sight.is_undisturbed(options) {
            admit_undisturbed(job, || self.broker.now)
        } else {
            admit(job, self.broker.records[*run].history(), &policy(), self.broker.now)
        };
        let (attempts, settlement) = match admission {
            Admission::Run(attempt) => {
                return Hold { attempt, stage: Stage::Admitted, ..hold };
            }
            Admission::NotYet { delay, used } => (used, Settlement::PutOff { delay, used }),
            Admission::HasEnded => (0, Settlement::Forget),
            Admission::Duplicate => (0, Settlement::Cancel { reason: "duplicate".into() }),
            Admission::Expired => (0, Settlement::Expire),
            Admission::Bury { reason, error, attempts } => {
                let spent = self.truths[hold.run].spent;
                let is_used_up =
                    matches!(reason, BuryReason::AttemptsExhausted | BuryReason::WorkerLost);
                if is_used_up && self.harm == Harm::Mild {
                    assert_eq!(spent, policy().max_attempts(), "buried by what it used");
                }
                (attempts, Settlement::Bury { reason, error: Box::new(error) })
            }
        };
        hold.attempt.number = attempts;
        hold.stage = Stage::Recording { settlement, started_at: None, done: 0 };
        hold
    }

    fn begin(&mut self, hold: Hold) -> Hold {
        let now = self.broker.now;
        let Attempt { number, announce, .. } = hold.attempt;
        let (records, truth) = (&self.broker.records[hold.run], &mut self.truths[hold.run]);
        assert!((1..=policy().max_attempts()).contains(&number), "attempt {number}");
        if self.harm == Harm::Mild {
            assert_eq!(number, truth.spent + 1, "the number of attempts that count, and one");
            let last = records.ledger.last();
            let bound = last.filter(|entry| entry.seq == hold.sequence);
            let early = bound.and_then(|entry| entry.retry_at).filter(|at| *at > now);
            assert_eq!(early, None, "run before its time");
            // Who cancels tells the workers, and they look before they begin.
            assert!(matches!(records.ended, None | Some(Status::Cancelled)), "run after its end");
            assert!(!records.has_letter, "run after it was buried");
        }
        truth.begun += 1;
        if announce {
            truth.spent = truth.spent.max(number);
            self.enter(&hold, AttemptEvent::Started, |_| {});
        } else {
            truth.untraced += 1;
        }
        Hold { stage: Stage::Running { started_at: now }, ..hold }
    }

    /// The handler has ended; `None` where its worker has nothing more to say.
    fn end(&mut self, hold: Hold, started_at: Time, said: Said) -> Option<Hold> {
        if !hold.is_ours(self.broker.now) {
            return None;
        }
        let Attempt { number, snoozes, .. } = hold.attempt;
        let settle = |outcome: Outcome| settle(outcome, number, snoozes, &policy(), 0.5);
        let settlement = match said {
            Said::Done => settle(Ok(None)),
            Said::Failed => settle(Err(JobError::failed("no"))),
            Said::Snooze => settle(Err(JobError::snooze(seconds(5)))),
            Said::Discard => settle(Err(JobError::discard("never"))),
            Said::Cancelled => settle(Err(JobError::cancelled("not wanted"))),
            Said::Drained => Settlement::Release { delay: Duration::ZERO },
        };
        let stage = Stage::Recording { settlement, started_at: Some(started_at), done: 0 };
        Some(Hold { stage, ..hold })
    }

    /// Puts the next step on record, and finds the last word after all of them.
    fn record(&mut self, mut hold: Hold) -> Hold {
        let Stage::Recording { settlement, started_at, done } = &hold.stage else { return hold };
        let (run, now) = (hold.run, self.broker.now);
        let Some(step) = steps(settlement, *started_at).get(*done) else {
            if self.harm == Harm::Mild {
                self.check_record(&hold, settlement, *started_at);
            }
            hold.stage = Stage::Recorded(last_word(settlement));
            return hold;
        };
        match step {
            Step::Entry(event) => {
                self.account(&hold, *event);
                self.enter(&hold, *event, |entry| fill(entry, settlement, now));
            }
            Step::Letter if self.broker.is_dead_full => {
                self.enter(&hold, AttemptEvent::ToBury, |entry| fill(entry, settlement, now));
                hold.stage = Stage::Recorded(Word::Nak(DEAD_FULL_DELAY));
                return hold;
            }
            Step::Letter => self.broker.records[run].has_letter = true,
            Step::Completion(status) => {
                let is_first = self.broker.records[run].ended.is_none();
                if is_first && *status == Status::Done && self.harm == Harm::Mild {
                    let spent = self.truths[run].spent.max(1);
                    assert_eq!(hold.attempt.number, spent, "the attempt that was done");
                }
                if self.broker.fence(run, *status) != Status::Dead {
                    self.broker.records[run].has_letter = false;
                }
            }
        }
        if let Stage::Recording { done, .. } = &mut hold.stage {
            *done += 1;
        }
        hold
    }

    /// That who looks from now on counts the attempt by what became of it.
    fn check_record(&self, hold: &Hold, settlement: &Settlement, started_at: Option<Time>) {
        let number = hold.attempt.number;
        let counted = match (settlement, started_at) {
            (Settlement::Retry { .. }, _) | (Settlement::Bury { .. }, Some(_)) => number,
            (Settlement::Snooze { .. }, _) | (Settlement::Release { .. }, Some(_)) => number - 1,
            (Settlement::Complete { .. } | Settlement::Cancel { .. } | Settlement::Expire, _)
            | (Settlement::Forget | Settlement::PutOff { .. }, _)
            | (Settlement::Bury { .. } | Settlement::Release { .. }, None) => return,
        };
        assert_eq!(self.broker.records[hold.run].history().used, counted, "{settlement:?}");
    }

    /// Keeps the truth about an attempt whose end goes on record.
    fn account(&mut self, hold: &Hold, event: AttemptEvent) {
        let Attempt { number, announce, .. } = hold.attempt;
        let truth = &mut self.truths[hold.run];
        match event {
            AttemptEvent::Failed => truth.spent = truth.spent.max(number),
            AttemptEvent::Snoozed | AttemptEvent::Released => {
                truth.free += 1;
                if announce {
                    truth.spent = truth.spent.saturating_sub(1);
                }
            }
            AttemptEvent::Started | AttemptEvent::ToBury => {}
        }
        if !announce {
            truth.untraced = truth.untraced.saturating_sub(1);
        }
    }

    fn enter(&mut self, hold: &Hold, event: AttemptEvent, fill: impl FnOnce(&mut AttemptRecord)) {
        let name = format!("run-{}", hold.run);
        let mut entry = AttemptRecord {
            v: AttemptRecord::V,
            id: JobId::new(&name).expect("valid"),
            run: RunId::new(&name).expect("valid"),
            seq: hold.sequence,
            attempt: hold.attempt.number,
            event,
            at: self.broker.now,
            retry_at: None,
            snoozes: hold.attempt.snoozes,
            worker: "w".into(),
            error: None,
            reason: None,
        };
        fill(&mut entry);
        self.broker.records[hold.run].ledger.push(entry);
    }

    fn say(&mut self, hold: &Hold, word: Word) {
        if !hold.is_ours(self.broker.now) {
            return;
        }
        // A broker that has forgotten a delivery gives the same job to two who both have it.
        let there = self.broker.messages.get(&hold.sequence);
        if let Some(there) = there.filter(|_| !self.broker.has_forgotten) {
            assert_eq!(there.delivered, hold.delivered, "a word about another's delivery");
        }
        match word {
            Word::Ack => {
                let ended = self.broker.records[hold.run].ended;
                assert!(ended.is_some(), "acked before its end is on record");
                self.broker.ack(hold.sequence);
            }
            Word::Nak(delay) => self.broker.nak(hold.sequence, delay),
        }
    }

    /// What holds at any time.
    pub(super) fn check(&self, entitled: &Entitled) {
        for (run, (truth, records)) in self.truths.iter().zip(&self.broker.records).enumerate() {
            let is_there = self.broker.messages.values().any(|message| message.run == run);
            assert!(is_there || records.ended.is_some(), "run {run} is lost");
            if self.harm == Harm::Mild {
                assert!(truth.untraced <= 1, "the first attempt is granted again once");
            }
            let harmed = entitled.forgotten + entitled.frozen;
            // Who was taken for lost may write over what is on record, once for each harm.
            let most = (policy().max_attempts() + 1) * (1 + harmed) + truth.free;
            assert!(truth.begun <= most, "run {run} was begun {} times: {truth:?}", truth.begun);
        }
    }

    /// All harm is over: every run comes to its end, and every job off the queue.
    pub(super) fn come_to_an_end(mut self) {
        self.broker.is_dead_full = false;
        for worker in &mut self.workers {
            worker.is_frozen = false;
            worker.take_stock(&self.broker);
        }
        for _ in 0..MANY {
            if self.broker.messages.is_empty() {
                break;
            }
            for worker in 0..WORKERS {
                self.step(worker, Said::Done);
            }
            self.wait(seconds(2));
        }
        assert!(self.broker.messages.is_empty(), "still there: {self:?}");
        for records in &self.broker.records {
            let ended = records.ended.expect("every run has ended");
            assert!(ended != Status::Dead || records.has_letter, "dead without a letter");
        }
    }
}

/// What is left to tell the broker; nothing here is put off for so long that it is parked.
fn last_word(settlement: &Settlement) -> Word {
    match settlement {
        Settlement::Complete { .. }
        | Settlement::Cancel { .. }
        | Settlement::Expire
        | Settlement::Forget
        | Settlement::Bury { .. } => Word::Ack,
        Settlement::Retry { delay, .. }
        | Settlement::Snooze { delay, .. }
        | Settlement::PutOff { delay, .. }
        | Settlement::Release { delay } => Word::Nak(*delay),
    }
}

impl Worker {
    fn new(broker: &Broker) -> Self {
        let mut worker = Self {
            remembers_since: broker.remembers_since,
            suspect_up_to: 0,
            highest: 0,
            is_frozen: false,
            hold: None,
        };
        worker.take_stock(broker);
        worker
    }

    fn take_stock(&mut self, broker: &Broker) {
        self.remembers_since = broker.remembers_since;
        self.suspect_up_to = broker.highest_in_ledger().max(self.highest);
    }

    fn fetch(&mut self, broker: &mut Broker) {
        let Some(sequence) = broker.hand_out() else { return };
        let message = &broker.messages[&sequence];
        let sight = FirstSight {
            delivered: message.delivered,
            sequence,
            stored: message.stored,
            remembers_since: self.remembers_since,
            suspect_up_to: self.suspect_up_to,
        };
        self.highest = self.highest.max(sequence);
        let attempts_used = message.is_resent.then_some(0);
        self.hold = Some(Hold {
            sequence,
            run: message.run,
            options: JobHeaders { attempts_used, ..JobHeaders::default() },
            stored: message.stored,
            renewed: broker.now,
            delivered: message.delivered,
            attempt: Attempt::UNDISTURBED,
            stage: Stage::Fresh(sight),
        });
    }
}

impl Hold {
    fn is_ours(&self, now: Time) -> bool {
        !has_run_out(time::until(now, self.renewed), ACK_WAIT)
    }
}
