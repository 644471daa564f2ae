//! What a process takes of the machine, as the system tells it.

use std::fs;

/// What is taken at a moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Footprint {
    pub(crate) rss_kib: u64,
    /// The most it ever was.
    pub(crate) peak_kib: u64,
    pub(crate) files: usize,
    pub(crate) threads: u64,
}

impl Footprint {
    pub(crate) fn of(pid: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
            number.unwrap_or_else(|| panic!("no {name} in {status}"))
        };
        Self {
            rss_kib: number("VmRSS:"),
            peak_kib: number("VmHWM:"),
            files: fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").count(),
            threads: number("Threads:"),
        }
    }

    /// Whether this is not more than was taken before, but for what any process may.
    pub(crate) fn is_back_at(&self, before: &Self) -> bool {
        self.files <= before.files + 1
            && self.threads <= before.threads + 2
            && self.rss_kib <= before.rss_kib + before.rss_kib / 2 + 16 * 1024
    }
}
