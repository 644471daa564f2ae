//! Whether cron entries fired as often as they should have, and each firing ended once.

use super::super::report::Report;
use super::books::Books;
use super::job::{Entries, Job};

/// How long the timers stream may be without a leader once a fault of the broker is over: an election takes
/// nine seconds at most, and what was put out has to be made a job of by some worker.
const STANDS_STILL_US: u64 = 12_000_000;

pub(super) fn firings(books: &Books, report: &mut Report) {
    let mut endless = Vec::new();
    for entries in &books.cron {
        let firings: Vec<(&String, &Job)> =
            books.jobs.iter().filter(|(id, _)| entries.is_firing(id)).collect();
        report.cron.firings += firings.len() as u64;
        // One that is on record in any way was put out.
        let without_end = firings.iter().filter(|(_, job)| job.completions.is_empty());
        endless.extend(without_end.map(|(id, _)| (*id).clone()));
        count(books, entries, firings.len() as u64, report);
        if let Some(healed_us) = books.all_healed_us.filter(|_| books.cron_removed_us.is_some()) {
            let goes_on = firings.iter().flat_map(|(_, job)| &job.starts);
            if !goes_on.into_iter().any(|start| start.at_us > healed_us) {
                report.violated(format!("entry {} fires no more after the faults", entries.name));
            }
        }
    }
    report.cron.endless = endless.len() as u64;
    report.violated_by("fired by a cron entry, but without an end", &endless);
}

/// At most it fires at each of its times, once more for both ends of the time, and once for each time that
/// the broker was broken: what fell due then is put out once, and an interval may count anew from there. At
/// least it fires at its times when nothing was broken and the streams had a leader, with one lost on either
/// side of each fault.
fn count(books: &Books, entries: &Entries, seen: u64, report: &mut Report) {
    let Some(removed_us) = books.cron_removed_us else { return };
    let faults = books.faults.iter().filter(|fault| !fault.is_of_worker());
    let (mut broken, mut still_us, mut up_to_us) = (0, 0, entries.from_us);
    for fault in faults {
        broken += 1;
        let until_us = fault.until_us.unwrap_or(removed_us) + STANDS_STILL_US;
        let (from_us, until_us) = (fault.from_us.max(up_to_us), until_us.min(removed_us));
        still_us += until_us.saturating_sub(from_us);
        up_to_us = up_to_us.max(until_us);
    }
    let span_us = removed_us.saturating_sub(entries.from_us);
    // Each server that is restarted in turn may put out what fell due.
    let most = span_us / entries.every_us + 2 + SERVERS * broken;
    let least = (span_us.saturating_sub(still_us) / entries.every_us).saturating_sub(2 + broken);
    if !(least..=most).contains(&seen) {
        let name = &entries.name;
        report.cron.wrong_counts += 1;
        report
            .violated(format!("entry {name} fired {seen} times, and not {least} to {most} times"));
    }
}

/// How many servers one fault may restart.
const SERVERS: u64 = 3;
