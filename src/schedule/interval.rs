//! `@every`: intervals of whole seconds.

use std::time::Duration;

#[cfg(feature = "cron")]
use crate::wire::time::Time;

/// The longest interval: a year.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// Reads an interval such as `30s` or `1h30m`.
pub(super) fn parse(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    if text.is_empty() {
        return Err("the interval is missing: use for example @every 30s".to_owned());
    }
    let mut millis: u64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.');
        let (number, behind) = rest.split_at(digits.unwrap_or(rest.len()));
        let end = behind.find(|letter: char| letter.is_ascii_digit()).unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(end);
        let unit = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(format!("{text:?} is no interval: use for example 30s, 5m, 1h30m")),
        };
        if number.contains('.') {
            return Err(format!("{text:?} has a fraction: use whole seconds"));
        }
        let number: u64 = number.parse().map_err(|_| format!("{text:?} is too long"))?;
        let part = number.checked_mul(unit);
        millis = part
            .and_then(|part| millis.checked_add(part))
            .ok_or_else(|| format!("{text:?} is too long"))?;
        rest = behind;
    }
    let interval = Duration::from_millis(millis);
    if interval < Duration::from_secs(1) {
        return Err(format!("{text:?} is too short: use at least 1 s"));
    }
    if interval.subsec_nanos() > 0 {
        return Err(format!("{text:?} has a fraction: use whole seconds"));
    }
    if interval > LONGEST {
        return Err(format!("{text:?} is too long: use at most 366d"));
    }
    Ok(interval)
}

/// The first firing after `after` where the broker counts from `since`, rounded to a second.
#[cfg(feature = "cron")]
pub(super) fn next(interval: Duration, since: Time, after: Time) -> Time {
    use chrono::{SubsecRound, TimeDelta};

    let since = since.round_subsecs(0);
    let interval = i64::try_from(interval.as_secs()).unwrap_or(i64::MAX).max(1);
    let gone = (after - since).num_seconds().max(0);
    let times = gone / interval + 1;
    since + TimeDelta::try_seconds(times.saturating_mul(interval)).unwrap_or(TimeDelta::MAX)
}

#[cfg(all(test, feature = "cron"))]
mod tests {
    use super::*;
    use crate::wire::time;

    #[test]
    fn intervals_count_from_when_they_were_added() {
        let at = |text: &str| time::parse(text).expect("a time");
        let since = at("2026-12-01T09:00:00.600Z");
        let table = [
            ("2026-12-01T09:00:01Z", "2026-12-01T09:00:31Z"),
            ("2026-12-01T09:00:31Z", "2026-12-01T09:01:01Z"),
            ("2026-12-01T08:00:00Z", "2026-12-01T09:00:31Z"),
        ];
        for (after, expected) in table {
            assert_eq!(next(Duration::from_secs(30), since, at(after)), at(expected), "{after}");
        }
    }
}
