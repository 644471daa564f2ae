//! The checker: a history in, a report out. Pure.
//!
//! Each question is a function over the books that fills its figures in and tells what is violated.

mod attempts;
mod books;
mod cron;
mod crowds;
mod ends;
mod footprints;
mod job;
mod last_seen;
mod later;
mod runs;
mod shares;
#[cfg(test)]
mod tests;
mod unique;

use self::books::Books;
use super::history::Line;
use super::report::Report;

/// How many ids a violation names.
const NAMED: usize = 5;

/// What the history does not tell.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Asked {
    /// Faults that nobody noted.
    pub(super) faults: u64,
}

/// Checks a history, whose lines are in the order of time, each with the process that wrote it.
pub(super) fn check(lines: &[(String, Line)], asked: Asked) -> Report {
    let books = Books::of(lines);
    let mut report = Report { seed: books.seed, ..Report::default() };
    for fault in &books.faults {
        *report.faults.entry(fault.what.clone()).or_default() += 1;
    }
    ends::enqueued(&books, &mut report);
    ends::lost(&books, &mut report);
    ends::phantoms(&books, &mut report);
    ends::completions(&books, &mut report);
    ends::wrong_ends(&books, &mut report);
    runs::count(&books, asked, &mut report);
    shares::weighted(&books, &mut report);
    attempts::numbers(&books, asked, &mut report);
    attempts::times(&books, asked, &mut report);
    cron::firings(&books, &mut report);
    unique::keys(&books, &mut report);
    later::cancelled(&books, &mut report);
    later::moved(&books, &mut report);
    footprints::flat(&books, &mut report);
    emptied(&books, &mut report);
    report.holds = report.violations.is_empty();
    report
}

/// Whether the queue was empty in the end, and how soon.
fn emptied(books: &Books, report: &mut Report) {
    let last_healed = books.faults.iter().filter_map(|fault| fault.until_us).max();
    let healed = books.all_healed_us.max(last_healed);
    report.recovered_ms = healed
        .zip(books.emptied_us)
        .map(|(healed, emptied)| emptied.saturating_sub(healed.max(books.last_enqueue_us)) / 1000);
    if books.emptied_us.is_none() {
        report.violated("the queue was not seen empty in time".to_owned());
    }
    let Some(streams) = books.streams else {
        report.violated("it is not on record how the streams stand in the end".to_owned());
        return;
    };
    report.streams = streams;
    // As where a broker was stopped between an ack and the deletion that follows it.
    let is_beyond_reach = streams.waiting + streams.unsettled == 0;
    let on_lanes = match is_beyond_reach {
        true => "messages on its lanes that none of its consumers will ever hand out",
        false => "messages on its lanes",
    };
    for (count, of_what) in [
        (streams.jobs, on_lanes),
        (streams.waiting, "messages that its consumers have not handed out"),
        (streams.unsettled, "messages that its consumers wait to be settled"),
        (streams.timers, "timers"),
    ] {
        if count > 0 {
            report.violated(format!("in the end the queue has {count} {of_what}"));
        }
    }
}

impl Report {
    fn violated(&mut self, violation: String) {
        self.violations.push(violation);
    }

    /// Tells of jobs by their number and the ids of a few; of none it tells nothing.
    fn violated_by(&mut self, what: &str, ids: &[String]) {
        if ids.is_empty() {
            return;
        }
        let more = if ids.len() > NAMED { ", …" } else { "" };
        let named = ids[..ids.len().min(NAMED)].join(", ");
        self.violated(format!("{} × {what}: {named}{more}", ids.len()));
    }
}
