//! The checks of each kind of job: unique, cancelled, moved, sealed, fired by cron.

use super::*;

/// A run of a key: enqueued, and worked when it is told to be.
fn unique(n: u64) -> Piece {
    Piece { key: Some("key-1".into()), ..piece(n) }
}

fn refused(told: &mut Told, n: u64, of: Option<&Piece>) {
    let piece = unique(n);
    let payload = piece.payload().expect("serializes");
    told.at(1000, "p", piece.attempted(&payload, Sealing::Open));
    let of = of.map(run_of);
    told.at(1000, "p", Event::Duplicate { id: piece.id, of });
}

fn run_to_its_end(told: &mut Told, piece: &Piece) {
    told.start(piece, 1, "w1");
    told.end(piece, 1, Said::Done, "w1");
    told.complete(piece, Status::Done, 1);
}

#[test]
fn runs_of_a_key_follow_each_other_and_refusals_have_a_cause() {
    let mut told = Told::default();
    let (first, second) = (unique(0), unique(2));
    told.enqueue(&first);
    refused(&mut told, 1, Some(&first));
    run_to_its_end(&mut told, &first);
    told.enqueue(&second);
    run_to_its_end(&mut told, &second);
    let sound = told.clone().emptied().check();
    assert!(sound.holds, "{:?}", sound.violations);
    assert_eq!((sound.unique.runs, sound.unique.refused), (2, 1));

    let mut without_cause = told.clone();
    without_cause.now_us += 10 * SECOND;
    refused(&mut without_cause, 3, Some(&second));
    assert_eq!(without_cause.emptied().check().unique.wrongly_refused, 1);
    // Of a run that was over by then, though another is there.
    let mut of_another = told;
    of_another.now_us += 10 * SECOND;
    let third = unique(4);
    of_another.enqueue(&third);
    refused(&mut of_another, 5, Some(&first));
    run_to_its_end(&mut of_another, &third);
    assert_eq!(of_another.emptied().check().unique.wrongly_refused, 1);
}

#[test]
fn two_unfinished_runs_of_a_key_are_found() {
    let mut told = Told::default();
    let (first, second) = (unique(0), unique(1));
    told.enqueue(&first);
    told.enqueue(&second);
    run_to_its_end(&mut told, &first);
    run_to_its_end(&mut told, &second);
    let report = told.emptied().check();
    assert_eq!(report.unique.overlapping, 1);
    let all = report.violations.join("\n");
    assert!(all.contains("unfinished beside another of its key: p-1"), "{all}");
}

#[test]
fn records_of_a_key_are_of_the_run_that_they_name() {
    let mut told = Told::default();
    let piece = unique(0);
    told.enqueue(&piece);
    told.start(&piece, 1, "w1");
    told.end(&piece, 1, Said::Done, "w1");
    let (id, run, status) = ("of-the-key".to_owned(), run_of(&piece), Status::Done);
    told.at(0, "collected", Event::Completion { id, run, status, attempt: 1 });
    let report = told.emptied().check();
    assert!(report.holds, "{:?}", report.violations);
}

fn cancelled(status: Status) -> Told {
    let mut told = Told::default();
    let piece = piece(0);
    told.enqueue(&piece);
    told.at(1000, "p", Event::Cancel { id: piece.id.clone() });
    told.at(1000, "p", Event::Cancelled { id: piece.id, status });
    told
}

#[test]
fn what_is_cancelled_ends_so_and_does_not_start() {
    let sound = |told: &mut Told| told.complete(&piece(0), Status::Cancelled, 0);
    let mut told = cancelled(Status::Cancelled);
    sound(&mut told);
    let report = told.emptied().check();
    assert!(report.holds, "{:?}", report.violations);
    assert_eq!((report.cancelled.asked, report.cancelled.confirmed), (1, 1));

    let mut otherwise = cancelled(Status::Cancelled);
    run_to_its_end(&mut otherwise, &piece(0));
    assert_eq!(otherwise.emptied().check().cancelled.ended_otherwise, 1);

    let late = |fault: Option<&str>| {
        let mut told = cancelled(Status::Cancelled);
        if let Some(what) = fault {
            told.at(0, "nemesis", Event::Fault { what: what.into() });
        }
        told.at(4 * SECOND, "nemesis", Event::AllHealed);
        told.start(&piece(0), 1, "w1");
        told.complete(&piece(0), Status::Cancelled, 0);
        told.emptied().check().cancelled.started
    };
    assert_eq!((late(None), late(Some("worker-frozen"))), (1, 0));

    let mut by_nobody = Told::default();
    by_nobody.enqueue(&piece(0));
    by_nobody.complete(&piece(0), Status::Cancelled, 0);
    assert_eq!(by_nobody.emptied().check().wrong_ends, 1);
}

#[test]
fn what_is_moved_starts_where_it_was_moved_to() {
    let moved = |lane: Priority| {
        let mut told = Told::default();
        let piece = Piece { lane: Priority::Low, run_after_ms: Some(5000), ..piece(0) };
        told.enqueue(&piece);
        let id = || piece.id.clone();
        told.at(1000, "p", Event::Move { id: id(), to: Some(Priority::High) });
        told.at(1000, "p", Event::Moved { id: id() });
        told.now_us += 6 * SECOND;
        let there = Piece { lane, ..piece.clone() };
        let sum = sum(&piece.payload().expect("serializes"));
        let (run, sealing) = (run_of(&there), Sealing::Open);
        told.at(0, "w1", Event::Start { id: id(), run, lane, attempt: 1, sealing, sum });
        told.end(&piece, 1, Said::Done, "w1");
        told.complete(&piece, Status::Done, 1);
        told.emptied().check()
    };
    let report = moved(Priority::High);
    assert!(report.holds, "{:?}", report.violations);
    assert_eq!((report.moved.asked, report.moved.confirmed), (1, 1));
    assert_eq!(moved(Priority::Low).moved.elsewhere, 1);
}

#[test]
fn what_is_let_run_now_is_not_early() {
    let started = |event: fn(String) -> Event| {
        let mut told = Told::default();
        let piece = Piece { run_after_ms: Some(5000), ..piece(0) };
        told.enqueue(&piece);
        told.at(1000, "p", event(piece.id.clone()));
        run_to_its_end(&mut told, &piece);
        told.emptied().check().early_retries
    };
    assert_eq!(started(|id| Event::Move { id, to: None }), 0);
    assert_eq!(started(|id| Event::Move { id, to: Some(Priority::High) }), 1);
}

#[test]
fn what_is_sealed_is_not_open_anywhere() {
    let as_seen = |seen: Sealing| {
        let mut told = Told::default();
        let piece = piece(0);
        let payload = piece.payload().expect("serializes");
        told.at(1000, "p", piece.attempted(&payload, Sealing::Sealed));
        let (id, run, lane) = (piece.id.clone(), run_of(&piece), piece.lane);
        let sum = sum(&payload);
        told.at(1000, "w1", Event::Start { id, run, lane, attempt: 1, sealing: seen, sum });
        told.end(&piece, 1, Said::Done, "w1");
        told.complete(&piece, Status::Done, 1);
        told.emptied().check().phantoms
    };
    assert_eq!((as_seen(Sealing::Sealed), as_seen(Sealing::Open)), (0, 1));
}

/// An entry that fires each two seconds for so many times, within 21 seconds.
fn fired(times: u64) -> Told {
    let mut told = Told::default();
    let piece = piece(0);
    let sum = sum(&piece.payload().expect("serializes"));
    let name = "beat".to_owned();
    let sealing = Sealing::Open;
    told.at(0, "nemesis", Event::Cron { name, every_ms: 2000, sealing, sum: sum.clone() });
    let began_us = told.now_us;
    for n in 0..times {
        told.now_us = began_us + n * 20 * SECOND / times;
        let (id, run) = (format!("c-beat-{n}"), format!("r{n}"));
        let (lane, sum) = (piece.lane, sum.clone());
        let (id2, run2, id3, run3) = (id.clone(), run.clone(), id.clone(), run.clone());
        told.at(1000, "w1", Event::Start { id, run, lane, attempt: 1, sealing, sum });
        let said = Said::Done;
        told.at(1000, "w1", Event::End { id: id2, run: run2, attempt: 1, said });
        let status = Status::Done;
        told.at(0, "collected", Event::Completion { id: id3, run: run3, status, attempt: 1 });
    }
    told.now_us = began_us;
    told.at(10 * SECOND, "nemesis", Event::AllHealed);
    told.at(11 * SECOND, "nemesis", Event::CronRemoved);
    told.lines.sort_by_key(|(_, line)| line.at_us);
    told.emptied()
}

#[test]
fn entries_fire_as_often_as_time_allows_and_each_firing_ends_once() {
    let sound = fired(10).check();
    assert!(sound.holds, "{:?}", sound.violations);
    assert_eq!((sound.cron.firings, sound.enqueued.ok), (10, 0));
    assert_eq!((fired(4).check().cron.wrong_counts, fired(20).check().cron.wrong_counts), (1, 1));
    let endless = fired(10).without(|event| matches!(event, Event::Completion { .. })).check();
    assert_eq!(endless.cron.endless, 1);
    let mut silent = fired(10);
    let is_late = |line: &Line| line.at_us > 10 * SECOND;
    silent.lines.retain(|(by, line)| !is_late(line) || by == "nemesis");
    let all = silent.emptied().check().violations.join("\n");
    assert!(all.contains("fires no more after the faults"), "{all}");
}
