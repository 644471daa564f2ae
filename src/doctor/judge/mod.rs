//! What is found, judged. Pure.

mod lane;
mod server;
mod stream;

pub(super) use self::lane::{consumer, lacks, memory, stuck, uncovered, unknown_kinds};
pub(super) use self::server::{clock, server};
pub(super) use self::stream::{Role, drifted, missing, stream};
use super::Severity;

/// Whether findings of this code at one place are all about one option.
pub(super) fn is_of_one_option(code: &str) -> bool {
    matches!(code, "backoff" | "filter_subject" | "max_ack_pending" | "max_deliver")
}

/// From this share of a limit on it is told.
const NEARLY_PERCENT: u64 = 80;

/// How bad it is that so much of a limit is used; a limit of 0 or less is none.
fn fullness(used: u64, limit: i64) -> Option<Severity> {
    let limit = u64::try_from(limit).ok().filter(|limit| *limit > 0)?;
    if used >= limit {
        Some(Severity::Error)
    } else if used.saturating_mul(100) >= limit.saturating_mul(NEARLY_PERCENT) {
        Some(Severity::Warning)
    } else {
        None
    }
}

#[cfg(test)]
fn codes(found: &[super::Finding]) -> Vec<(&'static str, Severity)> {
    found.iter().map(|finding| (finding.code, finding.severity)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fullness_as_a_table() {
        for (used, limit, expected) in [
            (79, 100, None),
            (80, 100, Some(Severity::Warning)),
            (100, 100, Some(Severity::Error)),
            (u64::MAX, 100, Some(Severity::Error)),
            (100, 0, None),
            (100, -1, None),
        ] {
            assert_eq!(fullness(used, limit), expected, "{used} of {limit}");
        }
    }
}
