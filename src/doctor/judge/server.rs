//! The server, the account, and this machine beside them.

use super::fullness;
use crate::broker::AccountFacts;
use crate::doctor::{Finding, Severity};
use crate::topology::LEVEL_CRON;

/// Clocks that are further apart are told.
const CLOCK_MS: i64 = 2_000;

/// The server by its version, and the account.
pub(in crate::doctor) fn server(version: (u32, u32, u32), account: &AccountFacts) -> Vec<Finding> {
    let (major, minor, patch) = version;
    let name = format!("nats-server {major}.{minor}.{patch}");
    let mut found = Vec::new();
    let has_old_bugs = version < (2, 12, 9) || ((2, 13, 0)..(2, 14, 1)).contains(&version);
    if has_old_bugs {
        found.push(Finding::new(
            Severity::Warning,
            "server_has_known_bugs",
            name.clone(),
            "work queues of this version can lose track of what was settled, in clusters above all",
            "upgrade nats-server to 2.12.9, 2.14.1 or newer",
        ));
    }
    if account.api.level < LEVEL_CRON {
        found.push(Finding::new(
            Severity::Note,
            "server_lacks",
            name.clone(),
            format!(
                "API level {}: no cron, and completions and jobs are not stored in batches",
                account.api.level
            ),
            "upgrade nats-server to 2.14 or newer",
        ));
    }
    found.extend(limits(account));
    found.push(Finding::new(
        Severity::Note,
        "sync_interval_unknown",
        name,
        "a server does not tell its clients how often it syncs to disk; unless it is `always`, a \
         power cut loses what is younger, on 3 replicas too where all lose power or one lags",
        "see `curl -s http://SERVER:8222/jsz?config=true | grep sync`, and set `jetstream { \
         sync_interval: always }`",
    ));
    found
}

fn limits(account: &AccountFacts) -> Vec<Finding> {
    let AccountFacts { storage, reserved_storage, streams, consumers, limits, .. } = *account;
    let table = [
        ("storage in bytes", storage.max(reserved_storage), limits.max_storage, "max_file"),
        ("streams", streams, limits.max_streams, "max_streams"),
        ("consumers", consumers, limits.max_consumers, "max_consumers"),
    ];
    let mut found = Vec::new();
    for (what, used, limit, option) in table {
        let Some(severity) = fullness(used, limit) else { continue };
        // What is reserved is no loss of jobs; it only keeps new queues out.
        found.push(Finding::new(
            severity.min(Severity::Warning),
            "account_nearly_full",
            "account",
            format!("{used} of {limit} {what} are used or reserved"),
            format!("raise the account's `{option}`, or remove queues that are not used"),
        ));
    }
    found
}

/// This machine's clock beside the broker's.
pub(in crate::doctor) fn clock(ahead_ms: i64) -> Option<Finding> {
    (ahead_ms.abs() > CLOCK_MS).then(|| {
        let direction = if ahead_ms > 0 { "ahead of" } else { "behind" };
        Finding::new(
            Severity::Warning,
            "clock_differs",
            "this machine",
            format!("its clock is {} ms {direction} the broker's", ahead_ms.abs()),
            "workers go by the broker's clock, other programs may not: run an NTP client (chrony) on \
             both",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::codes;
    use super::*;

    #[test]
    fn servers_as_a_table() {
        use Severity::{Note, Warning};
        let bugs = ("server_has_known_bugs", Warning);
        let (old, sync) = (("server_lacks", Note), ("sync_interval_unknown", Note));
        for (version, level, expected) in [
            ((2, 12, 8), 2, vec![bugs, old, sync]),
            ((2, 12, 9), 2, vec![old, sync]),
            ((2, 14, 0), 4, vec![bugs, sync]),
            ((2, 14, 1), 4, vec![sync]),
            ((2, 15, 1), 5, vec![sync]),
        ] {
            let mut account = AccountFacts::default();
            account.api.level = level;
            assert_eq!(codes(&server(version, &account)), expected, "{version:?}");
        }
        let mut full = AccountFacts { streams: 9, ..AccountFacts::default() };
        full.api.level = 5;
        full.limits.max_streams = 10;
        let expected = [("account_nearly_full", Warning), sync];
        assert_eq!(codes(&server((2, 15, 1), &full)), expected);
    }

    #[test]
    fn clocks_may_differ_a_little() {
        assert!(clock(1_900).is_none() && clock(-1_900).is_none());
        assert!(clock(-5_000).expect("differs").what.contains("5000 ms behind"));
    }
}
