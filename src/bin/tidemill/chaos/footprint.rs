//! What a process takes of the machine, as the system tells it.

use std::fs;

use super::history::Event;

/// What is taken at a moment, as an event; none where the system does not tell, as of a process that has
/// ended.
pub(super) fn of(name: String, pid: u32) -> Option<Event> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let rss_kib = line.split_whitespace().next()?.parse().ok()?;
    let files = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64;
    Some(Event::Footprint { of: name, rss_kib, files })
}
