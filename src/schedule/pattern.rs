//! Cron patterns, and when the broker runs them.

use std::fmt;

use chrono::{DateTime, Datelike, Months, NaiveDate, NaiveDateTime, Offset, TimeDelta};
use chrono::{SubsecRound, TimeZone, Timelike, Utc};

use super::field::{DAY, Field, HOUR, MINUTE, MONTH, SECOND, WEEKDAY};
use crate::wire::time::Time;

/// How far ahead the broker looks for a run.
const YEARS: i32 = 5;

/// A cron pattern with seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pattern {
    second: Field,
    minute: Field,
    hour: Field,
    day: Field,
    month: Field,
    weekday: Field,
}

impl Pattern {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let text = match text {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            at if at.starts_with("@at") => {
                return Err("one time is no schedule: enqueue the job with that time".to_owned());
            }
            unknown if unknown.starts_with('@') => {
                return Err(format!(
                    "{unknown} is not known: use @yearly, @monthly, @weekly, @daily, @hourly or \
                     @every"
                ));
            }
            pattern => pattern,
        };
        let fields: Vec<&str> = text.split_whitespace().collect();
        let (second, [minute, hour, day, month, weekday]) = match fields[..] {
            [minute, hour, day, month, weekday] => ("0", [minute, hour, day, month, weekday]),
            [second, minute, hour, day, month, weekday] => {
                (second, [minute, hour, day, month, weekday])
            }
            [_, _, _, _, _, _, _] => {
                return Err("it has 7 fields: nats-server knows no field for a year".to_owned());
            }
            _ => {
                return Err(format!(
                    "it has {} fields: use 5 (minute, hour, day of month, month, day of week), or 6 \
                     with seconds first",
                    fields.len()
                ));
            }
        };
        let pattern = Self {
            second: Field::parse(&SECOND, second)?,
            minute: Field::parse(&MINUTE, minute)?,
            hour: Field::parse(&HOUR, hour)?,
            day: Field::parse(&DAY, day)?,
            month: Field::parse(&MONTH, month)?,
            weekday: Field::parse(&WEEKDAY, weekday)?,
        };
        match pattern.next(&Utc, Utc::now()) {
            Some(_) => Ok(pattern),
            None => Err(format!("it never runs within the next {YEARS} years")),
        }
    }

    /// The first run after `after`, found as nats-server finds it (`parseCron` in its
    /// `server/cron.go`, which goes back to robfig/cron): each field is advanced until it fits, from
    /// the month down, in absolute time from the hour down. Cron libraries differ where clocks
    /// change, and what is told here has to be what the broker will do, its oddities included: a day
    /// that begins without a midnight, and those after it, can be missed where the search has to
    /// pass it.
    pub(super) fn next<Z: TimeZone>(&self, zone: &Z, after: Time) -> Option<Time> {
        let at = |time: Time| time.with_timezone(zone);
        let mut next = at(after.round_subsecs(0) + TimeDelta::seconds(1));
        let last_year = next.year() + YEARS;
        let mut is_truncated = false;
        'again: loop {
            if next.year() > last_year {
                return None;
            }
            while !self.month.has(next.month()) {
                if !std::mem::replace(&mut is_truncated, true) {
                    next = instant(zone, midnight(next.date_naive().with_day(1)?)?)?;
                }
                next = instant(zone, next.naive_local().checked_add_months(Months::new(1))?)?;
                if next.month() == 1 {
                    continue 'again;
                }
            }
            while !self.fits_day(&next) {
                if !std::mem::replace(&mut is_truncated, true) {
                    next = instant(zone, midnight(next.date_naive())?)?;
                }
                next = instant(zone, next.naive_local() + TimeDelta::days(1))?;
                if next.day() == 1 {
                    continue 'again;
                }
            }
            while !self.hour.has(next.hour()) {
                if !std::mem::replace(&mut is_truncated, true) {
                    next = instant(zone, next.date_naive().and_hms_opt(next.hour(), 0, 0)?)?;
                }
                next += TimeDelta::hours(1);
                if next.hour() == 0 {
                    continue 'again;
                }
            }
            while !self.minute.has(next.minute()) {
                if !std::mem::replace(&mut is_truncated, true) {
                    next -= TimeDelta::seconds(next.timestamp().rem_euclid(60));
                }
                next += TimeDelta::minutes(1);
                if next.minute() == 0 {
                    continue 'again;
                }
            }
            while !self.second.has(next.second()) {
                is_truncated = true;
                next += TimeDelta::seconds(1);
                if next.second() == 0 {
                    continue 'again;
                }
            }
            return Some(next.to_utc());
        }
    }

    /// Both kinds of days have to fit, unless both are restricted: then either will do.
    fn fits_day<Z: TimeZone>(&self, time: &DateTime<Z>) -> bool {
        let day = self.day.has(time.day());
        let weekday = self.weekday.has(time.weekday().num_days_from_sunday());
        if self.day.is_star() || self.weekday.is_star() { day && weekday } else { day || weekday }
    }
}

fn midnight(date: NaiveDate) -> Option<NaiveDateTime> {
    date.and_hms_opt(0, 0, 0)
}

/// The moment at which clocks show `wall`, as Go's `time.Date` has it: where they never do, an hour
/// to one side of it, and where they do twice, one of the two.
fn instant<Z: TimeZone>(zone: &Z, wall: NaiveDateTime) -> Option<DateTime<Z>> {
    let offset = |utc: &NaiveDateTime| {
        let seconds = zone.offset_from_utc_datetime(utc).fix().local_minus_utc();
        TimeDelta::seconds(seconds.into())
    };
    let guess = wall.checked_sub_signed(offset(&wall))?;
    Some(zone.from_utc_datetime(&wall.checked_sub_signed(offset(&guess))?))
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { second, minute, hour, day, month, weekday } = self;
        write!(f, "{second} {minute} {hour} {day} {month} {weekday}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::time;

    fn at(text: &str) -> Time {
        time::parse(text).expect("a time")
    }

    #[test]
    fn the_next_run_as_a_table() {
        let table = [
            ("0 9 * * mon-fri", "2026-11-27T09:00:00Z", "2026-11-30T09:00:00Z"),
            ("*/10 * * * * *", "2026-12-31T23:59:50Z", "2027-01-01T00:00:00Z"),
            ("0 0 29 2 *", "2026-12-01T00:00:00Z", "2028-02-29T00:00:00Z"),
            // Both days restricted: either will do.
            ("0 0 13 * 5", "2026-11-23T00:00:00Z", "2026-11-27T00:00:00Z"),
            // A step is a restriction, except one of 1.
            ("0 0 13 * */1", "2026-11-23T00:00:00Z", "2026-12-13T00:00:00Z"),
            ("0 0 * * 7", "2026-11-23T00:00:00Z", "2026-11-29T00:00:00Z"),
            // The broker rounds to a second before it looks.
            ("* * * * * *", "2026-11-23T00:00:00.600Z", "2026-11-23T00:00:02Z"),
        ];
        for (pattern, after, expected) in table {
            let next = Pattern::parse(pattern).expect(pattern).next(&Utc, at(after));
            assert_eq!(next, Some(at(expected)), "{pattern} after {after}");
        }
    }

    /// What nats-server 2.15.1 said of the run after the one that it had just fired.
    #[cfg(feature = "cron")]
    #[test]
    fn clock_changes_as_the_broker_has_them() {
        let table = [
            ("America/Santiago", "50 53 19 23,5 11,9 *", "2027-09-23T22:53:50Z"),
            ("America/Santiago", "50 53 19 23,6 11,9 *", "2027-09-23T22:53:50Z"),
            ("America/Santiago", "50 53 19 23,4 11,9 *", "2027-09-04T23:53:50Z"),
            ("America/New_York", "50 53 17,2 23,14 11,3 *", "2027-03-14T21:53:50Z"),
            ("America/New_York", "50 53 17,2,3 23,14 11,3 *", "2027-03-14T07:53:50Z"),
            ("America/Havana", "50 53 17,0 23,14 11,3 *", "2027-03-23T04:53:50Z"),
            ("America/Havana", "50 53 17,0,1 23,14 11,3 *", "2027-03-23T04:53:50Z"),
            ("Australia/Lord_Howe", "50 53 9,2 24,4 11,10 *", "2027-10-03T15:53:50Z"),
        ];
        for (zone, pattern, expected) in table {
            let zone: chrono_tz::Tz = zone.parse().expect("a zone");
            let fired = at("2026-11-23T22:53:50Z");
            let next = Pattern::parse(pattern).expect(pattern).next(&zone, fired);
            assert_eq!(next, Some(at(expected)), "{pattern} in {zone}");
        }
        let berlin = chrono_tz::Europe::Berlin;
        let twice = Pattern::parse("30 2 * * *").expect("valid");
        let first = twice.next(&berlin, at("2026-10-24T12:00:00Z"));
        assert_eq!(first, Some(at("2026-10-25T00:30:00Z")));
        assert_eq!(twice.next(&berlin, first.expect("a run")), Some(at("2026-10-25T01:30:00Z")));
    }
}
