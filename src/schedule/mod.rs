//! When something that recurs is to run: cron patterns and intervals, as people write them and as the
//! broker takes them. Pure.
//!
//! The broker does the firing (ADR-51). What it cannot do is refused here with the reason, and what it
//! will do is told beforehand by its own rules: see [`Pattern::next`].

mod field;
mod interval;
mod pattern;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use self::pattern::Pattern;
use crate::error::{Error, Result};
#[cfg(feature = "cron")]
use crate::wire::time::Time;

/// When a cron entry fires.
///
/// - `0 9 * * mon-fri`: minute, hour, day of month, month, day of week. Numbers, names, `*`, `?`,
///   ranges `1-5`, steps `*/10` and lists `1,15`; Sunday is 0 or 7. Where both days are restricted,
///   either will do.
/// - `30 0 9 * * *`: the same with seconds first.
/// - `@yearly`, `@annually`, `@monthly`, `@weekly`, `@daily`, `@midnight`, `@hourly`.
/// - `@every 30s`, `@every 1h30m`: at intervals of whole seconds, counted from when it was added.
///
/// Patterns are of a time zone, UTC unless [`Schedule::in_zone`] says otherwise. When a clock goes
/// forward, what falls into the missing hour does not run that day; when it goes back, what falls into
/// the hour that comes twice runs twice. That is the broker's way.
///
/// ```
/// # fn main() -> tidemill::Result<()> {
/// use tidemill::Schedule;
///
/// let mornings: Schedule = "0 9 * * mon-fri".parse()?;
/// let there = mornings.in_zone("Europe/Berlin")?;
/// assert_eq!(there.to_string(), "0 9 * * mon-fri");
/// let refused = "0 9 L * *".parse::<Schedule>().unwrap_err();
/// assert!(refused.to_string().contains("nats-server knows no L"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    text: String,
    zone: Option<String>,
    rule: Rule,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Rule {
    Every(Duration),
    Pattern(Box<Pattern>),
}

impl Schedule {
    /// The same pattern in a time zone by its IANA name, such as `Europe/Berlin`.
    ///
    /// # Errors
    /// `is_invalid` for an interval, which is of no time zone, and for a name that is none. With the
    /// feature `cron` names are checked here, else by the broker.
    pub fn in_zone(mut self, zone: impl Into<String>) -> Result<Self> {
        let zone = zone.into();
        if let Rule::Every(_) = self.rule {
            return Err(Error::invalid(format!(
                "schedule {:?} is an interval, which is of no time zone: leave {zone} out",
                self.text
            )));
        }
        check_zone(&zone)?;
        self.zone = Some(zone);
        Ok(self)
    }

    /// The time zone; UTC where there is none.
    pub fn zone(&self) -> Option<&str> {
        self.zone.as_deref()
    }

    /// As the broker takes it.
    pub(crate) fn to_wire(&self) -> String {
        match &self.rule {
            Rule::Every(interval) => format!("@every {}s", interval.as_secs()),
            Rule::Pattern(pattern) => pattern.to_string(),
        }
    }

    /// The runs after a moment, without end, by the broker's rules for patterns and time zones; an
    /// interval counts from that moment. See [`CronEntry::upcoming`](crate::CronEntry::upcoming) for an
    /// entry that is there.
    #[cfg(feature = "cron")]
    pub fn upcoming(
        &self,
        after: chrono::DateTime<chrono::Utc>,
    ) -> impl Iterator<Item = chrono::DateTime<chrono::Utc>> + use<> {
        let schedule = self.clone();
        let first = schedule.next(after, after);
        std::iter::successors(first, move |at| schedule.next(*at, *at))
    }

    /// The first run after `after` by the broker's rules; `None` if there is none within five years.
    /// An interval counts from `since`.
    #[cfg(feature = "cron")]
    pub(crate) fn next(&self, since: Time, after: Time) -> Option<Time> {
        match &self.rule {
            Rule::Every(interval) => Some(interval::next(*interval, since, after)),
            Rule::Pattern(pattern) => match &self.zone {
                None => pattern.next(&chrono::Utc, after),
                Some(zone) => pattern.next(&zone.parse::<chrono_tz::Tz>().ok()?, after),
            },
        }
    }
}

#[cfg(feature = "cron")]
fn check_zone(zone: &str) -> Result<()> {
    zone.parse::<chrono_tz::Tz>().map(drop).map_err(|_| {
        Error::invalid(format!(
            "time zone {zone:?} is not known: use an IANA name such as Europe/Berlin"
        ))
    })
}

#[cfg(not(feature = "cron"))]
fn check_zone(zone: &str) -> Result<()> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"/_+-".contains(&byte);
    if !zone.is_empty() && zone.bytes().all(fits) && zone != "Local" {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "time zone {zone:?} is not valid: use an IANA name such as Europe/Berlin"
    )))
}

impl FromStr for Schedule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        let rule = match text.strip_prefix("@every") {
            Some(interval) => interval::parse(interval).map(Rule::Every),
            None => Pattern::parse(text).map(|pattern| Rule::Pattern(Box::new(pattern))),
        };
        match rule {
            Ok(rule) => Ok(Self { text: text.to_owned(), zone: None, rule }),
            Err(problem) => Err(Error::invalid(format!("schedule {text:?}: {problem}"))),
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(text: &str) -> String {
        text.parse::<Schedule>().expect(text).to_wire()
    }

    #[test]
    fn what_people_write_becomes_what_the_broker_takes() {
        let table = [
            ("0 9 * * mon-fri", "0 0 9 * * 1-5"),
            ("30 0 9 * * *", "30 0 9 * * *"),
            ("  */15 * ? * SUN ", "0 */15 * * * 0"),
            ("0 9 * jan,MAR-may 7", "0 0 9 * 1,3-5 0"),
            ("0 9 * * 5-7", "0 0 9 * * 0,5-6"),
            ("0 9 * * */3,7", "0 0 9 * * 0,3,6"),
            ("0 9 * * *,7", "0 0 9 * * *"),
            ("0 9 1-7 * */2", "0 0 9 1-7 * */2"),
            ("5/20 0-10/2 * * *", "0 5/20 0-10/2 * * *"),
            ("@hourly", "0 0 * * * *"),
            ("@midnight", "0 0 0 * * *"),
            ("@daily", "0 0 0 * * *"),
            ("@weekly", "0 0 0 * * 0"),
            ("@monthly", "0 0 0 1 * *"),
            ("@annually", "0 0 0 1 1 *"),
            ("@yearly", "0 0 0 1 1 *"),
            ("@every 30s", "@every 30s"),
            ("@every 1h30m", "@every 5400s"),
            ("@every 1d", "@every 86400s"),
        ];
        for (text, expected) in table {
            assert_eq!(wire(text), expected, "{text}");
        }
    }

    #[test]
    fn what_the_broker_cannot_do_is_refused_with_the_reason() {
        let table = [
            ("", "has 0 fields"),
            ("0 9 * *", "has 4 fields"),
            ("0 0 9 * * * 2027", "a year"),
            ("0 9 L * *", "knows no L"),
            ("0 9 15W * *", "knows no W"),
            ("0 9 * * mon#1", "knows no #"),
            ("0 9 * * 5L", "knows no L"),
            ("0 24 * * *", "hour 24 is not within 0-23"),
            ("60 9 * * *", "minute 60 is not within 0-59"),
            ("0 9 0 * *", "day of month 0 is not within 1-31"),
            ("0 9 * 13 *", "month 13 is not within 1-12"),
            ("0 9 * * 8", "day of week 8 is not within 0-7"),
            ("0 9 * * monday", "\"monday\" is no day of week"),
            ("0 9 * * fri-mon", "backwards"),
            ("*/0 9 * * *", "step"),
            ("0,,5 9 * * *", "empty"),
            ("1-2-3 9 * * *", "minute \"1-2-3\""),
            ("0 0 31 2 *", "never runs"),
            ("@every 500ms", "at least 1 s"),
            ("@every 1.5s", "whole seconds"),
            ("@every", "interval is missing"),
            ("@every soon", "\"soon\""),
            ("@every 0s", "at least 1 s"),
            ("@every 999999999999999999999s", "too long"),
            ("@reboot", "@reboot is not known"),
            ("@at 2027-01-01T00:00:00Z", "enqueue the job"),
        ];
        for (text, reason) in table {
            let error = text.parse::<Schedule>().expect_err(text);
            assert!(error.is_invalid());
            assert!(error.to_string().contains(reason), "{text:?}: {error}");
        }
    }

    #[test]
    fn intervals_are_of_no_zone_and_zones_are_checked() {
        let every: Schedule = "@every 1m".parse().expect("valid");
        assert!(every.in_zone("UTC").expect_err("refused").to_string().contains("interval"));
        for bad in ["", "Local", "Mars/Olympus Mons"] {
            let daily: Schedule = "@daily".parse().expect("valid");
            assert!(daily.in_zone(bad).is_err(), "{bad:?}");
        }
    }
}
