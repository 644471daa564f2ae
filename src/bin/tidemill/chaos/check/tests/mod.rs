//! The checker against histories that are right, and against the same ones tampered with.

mod kinds;

use proptest::prelude::*;
use tidemill::{AttemptEvent, Priority, Status};

use super::super::figures::LastSeen;
use super::super::history::{Event, Line, Said, Sealing, Streams};
use super::super::piece::{Load, Piece, sum};
use super::super::report::{Enqueued, Lost, Report};
use super::{Asked, check};

/// A history as it is written, in the order of time.
#[derive(Clone, Default)]
struct Told {
    now_us: u64,
    lines: Vec<(String, Line)>,
}

const SECOND: u64 = 1_000_000;

impl Told {
    fn at(&mut self, later_us: u64, by: &str, event: Event) {
        self.now_us += later_us;
        self.lines.push((by.to_owned(), Line { at_us: self.now_us, event }));
    }

    /// A job that is enqueued and worked as it should be, one attempt after the other.
    fn job(&mut self, piece: &Piece) {
        let payload = piece.payload().expect("serializes");
        self.enqueue(piece);
        self.now_us += piece.run_after_ms.unwrap_or_default() * 1000;
        let mut attempt = 1;
        loop {
            self.start(piece, attempt, "w1");
            let said = if attempt <= piece.fails { Said::Failed } else { Said::Done };
            self.end(piece, attempt, said, "w1");
            if said == Said::Done {
                return self.complete(piece, Status::Done, attempt);
            }
            self.ledger(piece, attempt, AttemptEvent::Failed, "w1");
            if attempt == piece.max_attempts {
                return self.bury(piece, attempt, &payload);
            }
            self.now_us += piece.backoff_ms * 1000;
            attempt += 1;
            self.ledger(piece, attempt, AttemptEvent::Started, "w1");
        }
    }

    fn enqueue(&mut self, piece: &Piece) {
        let payload = piece.payload().expect("serializes");
        self.at(1000, "p", piece.attempted(&payload, Sealing::Open));
        let id = piece.id.clone();
        self.at(1000, "p", Event::Ok { id, run: run_of(piece), sequence: None });
    }

    fn start(&mut self, piece: &Piece, attempt: u32, by: &str) {
        let sum = sum(&piece.payload().expect("serializes"));
        let (id, run, lane) = (piece.id.clone(), run_of(piece), piece.lane);
        let sealing = Sealing::Open;
        self.at(1000, by, Event::Start { id, run, lane, attempt, sealing, sum });
    }

    fn end(&mut self, piece: &Piece, attempt: u32, said: Said, by: &str) {
        self.at(1000, by, Event::End { id: piece.id.clone(), run: run_of(piece), attempt, said });
    }

    fn ledger(&mut self, piece: &Piece, attempt: u32, what: AttemptEvent, by: &str) {
        let (id, run, worker) = (piece.id.clone(), run_of(piece), by.to_owned());
        self.at(0, "collected", Event::Ledger { id, run, attempt, what, worker });
    }

    fn complete(&mut self, piece: &Piece, status: Status, attempt: u32) {
        let (id, run) = (piece.id.clone(), run_of(piece));
        self.at(0, "collected", Event::Completion { id, run, status, attempt });
    }

    fn bury(&mut self, piece: &Piece, attempts: u32, payload: &[u8]) {
        self.complete(piece, Status::Dead, attempts);
        let (id, run, sum) = (piece.id.clone(), run_of(piece), sum(payload));
        let reason = "attempts_exhausted".to_owned();
        let sealing = Sealing::Open;
        self.at(0, "collected", Event::Letter { id, run, attempts, reason, sealing, sum });
    }

    fn emptied(mut self) -> Self {
        self.at(SECOND, "collected", Event::Emptied);
        self.at(0, "collected", Event::Streams(Streams::default()));
        self
    }

    fn check(&self) -> Report {
        check(&self.lines, Asked::default())
    }

    fn without(&self, is_such: impl Fn(&Event) -> bool) -> Self {
        let mut told = self.clone();
        let at =
            told.lines.iter().position(|(_, line)| is_such(&line.event)).expect("there is one");
        told.lines.remove(at);
        told
    }
}

fn run_of(piece: &Piece) -> String {
    format!("run-of-{}", piece.id)
}

fn piece(n: u64) -> Piece {
    Piece {
        fails: 0,
        max_attempts: 40,
        run_after_ms: None,
        backoff_ms: 1500,
        ..Piece::of(Load::Soak, "p", 1, n)
    }
}

/// Three jobs: one that succeeds at once, one at the second try, one never.
fn sound() -> Told {
    let mut told = Told::default();
    told.at(0, "w1", Event::Working { concurrency: 20, park_over_ms: 60_000 });
    told.job(&piece(0));
    told.job(&Piece { fails: 1, ..piece(1) });
    told.job(&Piece { fails: 3, max_attempts: 3, ..piece(2) });
    told.emptied()
}

#[test]
fn a_sound_history_holds_with_these_figures() {
    let report = sound().check();
    assert_eq!(report.violations, Vec::<String>::new());
    assert!(report.holds);
    assert_eq!(report.enqueued, Enqueued { ok: 3, ..Enqueued::default() });
    assert_eq!(report.runs_per_job, [(1, 1), (2, 1), (3, 1)].into());
    assert_eq!((report.extra_runs, report.recovered_ms), (0, None));
    assert_eq!(report.lane_starts.values().sum::<u64>(), 6);
}

/// What is done to the sound history, and what is to be said of it.
type Tampering = (&'static str, fn(Told) -> Told, fn(&Report) -> u64, &'static str);

#[test]
fn what_is_tampered_with_is_found() {
    let cases: [Tampering; 16] = [
        (
            "a completion is gone",
            |told| told.without(|event| matches!(event, Event::Completion { .. })),
            |report| report.lost.prefix,
            "1 × confirmed, but without an end: p-0",
        ),
        (
            "a completion is doubled",
            |mut told| {
                told.complete(&piece(0), Status::Done, 1);
                told
            },
            |report| report.second_completions,
            "completed more than once: p-0",
        ),
        (
            "a start is doubled",
            |mut told| {
                told.start(&piece(0), 1, "w2");
                told
            },
            |report| report.extra_runs,
            "run once more without a fault",
        ),
        (
            "somebody ran what nobody enqueued",
            |mut told| {
                told.start(&piece(9), 1, "w1");
                told
            },
            |report| report.phantoms,
            "nobody enqueued it: p-9",
        ),
        (
            "somebody recorded what nobody enqueued",
            |mut told| {
                told.complete(&piece(9), Status::Done, 1);
                told
            },
            |report| report.phantoms,
            "nobody enqueued it: p-9",
        ),
        (
            "a payload is another",
            |mut told| {
                for (_, line) in &mut told.lines {
                    if let Event::Start { sum, .. } = &mut line.event {
                        *sum = "0".into();
                        break;
                    }
                }
                told
            },
            |report| report.phantoms,
            "another payload",
        ),
        (
            "a handler's word is gone",
            |told| told.without(|event| matches!(event, Event::End { said: Said::Done, .. })),
            |report| report.phantoms,
            "done by no handler's word: p-0",
        ),
        (
            "a run is another",
            |mut told| {
                for (_, line) in &mut told.lines {
                    if let Event::Start { run, .. } = &mut line.event {
                        *run = "other".into();
                        break;
                    }
                }
                told
            },
            |report| report.phantoms,
            "of a run that nobody enqueued: p-0",
        ),
        (
            "it was refused",
            |mut told| {
                let (id, error) = ("p-0".into(), "full".into());
                told.at(0, "p", Event::Refused { id, error });
                told
            },
            |report| report.phantoms,
            "and yet it was there: p-0",
        ),
        (
            "a letter is gone",
            |told| told.without(|event| matches!(event, Event::Letter { .. })),
            |report| report.wrong_ends,
            "p-2 was buried without a dead letter",
        ),
        (
            "an attempt number is skipped",
            |mut told| {
                for (_, line) in &mut told.lines {
                    if let Event::Start { attempt, .. } = &mut line.event {
                        *attempt += u32::from(*attempt == 2);
                    }
                }
                told
            },
            |report| report.wrong_attempts,
            "wrong attempt number",
        ),
        (
            "an attempt number is given twice",
            |mut told| {
                told.ledger(&piece(1), 2, AttemptEvent::Started, "w2");
                told
            },
            |report| report.wrong_attempts,
            "p-1 began attempt 2 2 times",
        ),
        (
            "a retry is early",
            |mut told| {
                let is_second = |event: &Event| matches!(event, Event::Start { attempt: 2.., .. });
                for (_, line) in &mut told.lines {
                    line.at_us -= if is_second(&line.event) { 20_000 } else { 0 };
                }
                told
            },
            |report| report.early_retries,
            "started before it was due",
        ),
        (
            "a retry is late",
            |mut told| {
                let is_second = |line: &&(String, Line)| {
                    matches!(line.1.event, Event::Start { attempt: 2, .. })
                };
                let from = told.lines.iter().find(is_second).expect("one").1.at_us;
                for (_, line) in &mut told.lines {
                    line.at_us += if line.at_us >= from { 60 * SECOND } else { 0 };
                }
                told
            },
            |report| report.late_retries,
            "with nothing broken: p-1 attempt 2",
        ),
        (
            "it was not empty",
            |told| told.without(|event| matches!(event, Event::Emptied)),
            |report| u64::from(report.recovered_ms.is_none()),
            "not seen empty",
        ),
        (
            "a message is left",
            |mut told| {
                let streams = Streams { jobs: 1, unsettled: 1, ..Streams::default() };
                told.at(0, "collected", Event::Streams(streams));
                told
            },
            |report| report.streams.jobs,
            "in the end the queue has 1 messages on its lanes",
        ),
    ];
    for (what, tamper, figure, text) in cases {
        let report = tamper(sound()).check();
        assert!(!report.holds, "{what}");
        assert!(figure(&report) > 0, "{what}: {report:?}");
        let all = report.violations.join("\n");
        assert!(all.contains(text), "{what}: {all}");
    }
}

#[test]
fn losses_are_told_by_their_place() {
    let mut told = Told::default();
    for n in 0..10 {
        told.job(&piece(n));
    }
    let mut told = told.emptied();
    for lost in [0, 1, 4, 9] {
        let gone = format!("p-{lost}");
        told = told.without(|event| matches!(event, Event::Completion { id, .. } if *id == gone));
    }
    assert_eq!(told.check().lost, Lost { prefix: 2, middle: 1, suffix: 1 });
}

#[test]
fn a_lost_job_is_told_with_where_it_was_last_seen() {
    let lost = |seen: LastSeen| {
        let mut told = Told::default();
        let park_over_ms = if seen == LastSeen::OnATimer { 1000 } else { 60_000 };
        told.at(0, "w1", Event::Working { concurrency: 20, park_over_ms });
        let piece = Piece { fails: 1, ..piece(0) };
        told.enqueue(&piece);
        if seen != LastSeen::Enqueued {
            told.start(&piece, 1, "w1");
        }
        if matches!(seen, LastSeen::BackingOff | LastSeen::OnATimer) {
            told.end(&piece, 1, Said::Failed, "w1");
        }
        told.at(SECOND, "nemesis", Event::Fault { what: "node-killed".into() });
        told.at(SECOND, "nemesis", Event::AllHealed);
        told.at(60 * SECOND, "nemesis", Event::Fault { what: "much-later".into() });
        let report = told.emptied().check();
        assert_eq!(report.lost.prefix, 1, "{report:?}");
        report.lost_jobs[0].clone()
    };
    for (seen, at_ms) in [
        (LastSeen::Enqueued, 2),
        (LastSeen::Running, 3),
        (LastSeen::BackingOff, 4),
        (LastSeen::OnATimer, 4),
    ] {
        let job = lost(seen);
        assert_eq!((job.last_seen, job.at_ms), (seen, at_ms));
        assert_eq!(job.faults, ["node-killed"]);
        assert_eq!((job.id, job.run), ("p-0".to_owned(), "run-of-p-0".to_owned()));
    }
}

#[test]
fn what_is_unknown_may_be_there_once_or_not_at_all() {
    let unknown = |told: &mut Told, n: u64| {
        let piece = piece(n);
        told.at(1000, "p", piece.attempted(&piece.payload().expect("serializes"), Sealing::Open));
        let (id, error) = (piece.id.clone(), "no answer".to_owned());
        told.at(1000, "p", Event::Unknown { id, error });
        piece
    };
    let mut told = Told::default();
    unknown(&mut told, 0);
    let there = unknown(&mut told, 1);
    told.start(&there, 1, "w1");
    told.end(&there, 1, Said::Done, "w1");
    told.complete(&there, Status::Done, 1);
    let told = told.emptied();
    let report = told.check();
    assert!(report.holds, "{:?}", report.violations);
    assert_eq!(report.enqueued.unknown, 2);
    let mut twice = told;
    let run = "another".to_owned();
    let (id, status) = (there.id, Status::Done);
    twice.at(0, "collected", Event::Completion { id, run, status, attempt: 1 });
    assert_eq!(twice.check().second_completions, 1);
}

#[test]
fn a_fault_explains_another_run_and_no_fault_does_not() {
    let killed = |what: Option<&str>| {
        let mut told = Told::default();
        let piece = piece(0);
        told.at(1000, "p", piece.attempted(&piece.payload().expect("serializes"), Sealing::Open));
        let (id, run) = (piece.id.clone(), run_of(&piece));
        told.at(1000, "p", Event::Ok { id, run, sequence: Some(1) });
        told.start(&piece, 1, "w1");
        if let Some(what) = what {
            told.at(1000, "nemesis", Event::Fault { what: what.into() });
            told.at(SECOND, "nemesis", Event::Healed { what: what.into() });
        }
        told.now_us += 5 * SECOND;
        told.ledger(&piece, 1, AttemptEvent::Started, "w2");
        told.start(&piece, 1, "w2");
        told.end(&piece, 1, Said::Done, "w2");
        told.complete(&piece, Status::Done, 1);
        told.emptied().check()
    };
    let report = killed(Some("worker-killed"));
    assert!(report.holds, "{:?}", report.violations);
    assert_eq!((report.extra_runs, report.recovered_ms), (1, Some(6_002)));
    assert!(!killed(None).holds);
}

#[test]
fn fifty_milliseconds_are_granted_only_where_the_broker_was_broken() {
    let early = |what: &str, by_us: u64| {
        let mut told = Told::default();
        told.at(0, "nemesis", Event::Fault { what: what.into() });
        told.at(0, "nemesis", Event::Healed { what: what.into() });
        told.job(&Piece { fails: 1, ..piece(1) });
        let is_second = |line: &Line| matches!(line.event, Event::Start { attempt: 2, .. });
        for (_, line) in &mut told.lines {
            line.at_us -= if is_second(line) { by_us } else { 0 };
        }
        told.lines.sort_by_key(|(_, line)| line.at_us);
        told.emptied().check().early_retries
    };
    assert_eq!((early("worker-killed", 3_000), early("worker-killed", 40_000)), (0, 1));
    assert_eq!((early("broker-killed", 40_000), early("broker-killed", 60_000)), (0, 1));
}

proptest! {
    /// Whatever jobs there are: worked as they should be, everything holds, and each line that is taken
    /// away from what the broker has is missed.
    #[test]
    fn any_sound_history_holds_and_no_end_can_be_missing(
        seed in any::<u64>(), jobs in 1u64..40, gone in any::<prop::sample::Index>(),
    ) {
        let mut told = Told::default();
        for n in 0..jobs {
            told.job(&Piece::of(Load::Soak, "p", seed, n));
        }
        let mut told = told.emptied();
        let report = told.check();
        prop_assert!(report.holds, "{:?}", report.violations);
        prop_assert_eq!(report.enqueued.ok, jobs);
        prop_assert_eq!(report.lane_starts.values().sum::<u64>(),
            report.runs_per_job.iter().map(|(runs, jobs)| runs * jobs).sum::<u64>());
        let is_end = |line: &(String, Line)| matches!(
            line.1.event, Event::Completion { .. } | Event::Letter { .. }
        );
        let ends: Vec<usize> = (0..told.lines.len()).filter(|at| is_end(&told.lines[*at])).collect();
        told.lines.remove(ends[gone.index(ends.len())]);
        prop_assert!(!told.check().holds);
    }
}

#[test]
fn lanes_are_counted() {
    let mut told = Told::default();
    for (n, lane) in (0..).zip(Priority::ALL) {
        told.job(&Piece { lane, ..piece(n) });
    }
    let starts = told.emptied().check().lane_starts;
    assert_eq!(
        starts.into_iter().collect::<Vec<_>>(),
        Priority::ALL.map(|lane| (lane, 1)).to_vec()
    );
}
