//! Times on the wire: RFC 3339 in UTC with milliseconds.

use std::time::Duration;

use chrono::{DateTime, Datelike, TimeDelta, Timelike, Utc};

/// A moment as the broker counts it.
pub(crate) type Time = DateTime<Utc>;

/// A moment as it is written.
#[derive(Clone, Copy)]
struct Text([u8; 24]);

/// The first and the last moment that can be written: RFC 3339 has years of four digits.
const BEGINNING: Text = Text(*b"0000-01-01T00:00:00.000Z");
const END: Text = Text(*b"9999-12-31T23:59:59.999Z");

impl Text {
    /// A completion has three of these, for which a general formatter takes half the time of all the rest.
    fn of(time: &Time) -> Self {
        // Asked of the moment itself, each part would be counted from it anew.
        let time = time.naive_utc();
        let year = match time.year() {
            ..0 => return BEGINNING,
            year @ 0..=9999 => year.unsigned_abs(),
            10_000.. => return END,
        };
        // A leap second is the one before it with too many nanoseconds.
        let (second, millis) = match time.nanosecond() / 1_000_000 {
            millis @ ..1000 => (time.second(), millis),
            millis => (time.second() + 1, millis - 1000),
        };
        let mut text = BEGINNING;
        for (at, number) in [
            (0..4, year),
            (5..7, time.month()),
            (8..10, time.day()),
            (11..13, time.hour()),
            (14..16, time.minute()),
            (17..19, second),
            (20..23, millis),
        ] {
            let mut left = number;
            for digit in text.0[at].iter_mut().rev() {
                *digit = b'0' + (left % 10) as u8;
                left /= 10;
            }
        }
        text
    }

    fn as_str(&self) -> &str {
        // It is ASCII.
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// A moment, cut to whole milliseconds.
pub(crate) fn to_text(time: &Time) -> String {
    Text::of(time).as_str().to_owned()
}

/// The first whole millisecond that is not before a moment, for what must not happen earlier.
pub(crate) fn to_text_not_before(time: &Time) -> String {
    const JUST_BELOW: TimeDelta = TimeDelta::nanoseconds(999_999);
    to_text(&time.checked_add_signed(JUST_BELOW).unwrap_or(Time::MAX_UTC))
}

pub(crate) fn parse(text: &str) -> Option<Time> {
    DateTime::parse_from_rfc3339(text).ok().map(|time| time.with_timezone(&Utc))
}

/// The moment that many nanoseconds after the Unix epoch; `None` outside of what can be told.
pub(crate) fn from_nanos(nanos: i64) -> Time {
    DateTime::from_timestamp_nanos(nanos)
}

/// `time + delay`, at most the end of time.
pub(crate) fn after(time: Time, delay: Duration) -> Time {
    chrono::TimeDelta::from_std(delay)
        .ok()
        .and_then(|delay| time.checked_add_signed(delay))
        .unwrap_or(Time::MAX_UTC)
}

/// `time - period`, at least the beginning of time.
pub(crate) fn before(time: Time, period: Duration) -> Time {
    chrono::TimeDelta::from_std(period)
        .ok()
        .and_then(|period| time.checked_sub_signed(period))
        .unwrap_or(Time::MIN_UTC)
}

/// How long until `time`; zero if it has passed.
pub(crate) fn until(time: Time, now: Time) -> Duration {
    (time - now).to_std().unwrap_or(Duration::ZERO)
}

/// `#[serde(with = …)]` for a moment.
pub(crate) mod rfc3339 {
    use serde::{Deserialize, Deserializer, Serializer, de};

    use super::{Text, Time};

    pub(crate) fn serialize<S: Serializer>(time: &Time, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(Text::of(time).as_str())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Time, D::Error> {
        let text = String::deserialize(input)?;
        super::parse(&text).ok_or_else(|| de::Error::custom("not an RFC 3339 time"))
    }
}

/// `#[serde(with = …)]` for a moment that may be missing.
pub(crate) mod rfc3339_option {
    use serde::{Deserialize, Deserializer, Serializer, de};

    use super::{Text, Time};

    pub(crate) fn serialize<S: Serializer>(time: &Option<Time>, out: S) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => out.serialize_str(Text::of(time).as_str()),
            None => out.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        input: D,
    ) -> Result<Option<Time>, D::Error> {
        Option::<String>::deserialize(input)?
            .map(|text| {
                super::parse(&text).ok_or_else(|| de::Error::custom("not an RFC 3339 time"))
            })
            .transpose()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn moments_round_trip_to_the_millisecond(nanos in any::<i64>()) {
            let time = from_nanos(nanos);
            let cut = parse(&to_text(&time)).expect("parses");
            prop_assert!(cut <= time && time - cut < TimeDelta::milliseconds(1));
            let later = parse(&to_text_not_before(&time)).expect("parses");
            prop_assert!(time <= later && later - time < TimeDelta::milliseconds(1));
            prop_assert_eq!(to_text(&cut), to_text(&time));
        }

        #[test]
        fn moments_are_written_as_the_calendar_has_them(
            seconds in -62_167_219_200_i64..253_402_300_800, nanos in 0..1_000_000_000_u32
        ) {
            let time = Time::from_timestamp(seconds, nanos).expect("of four digits");
            let text = time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
            prop_assert_eq!(to_text(&time), text);
        }

        #[test]
        fn a_delay_is_what_is_left_until_it_is_over(nanos in any::<i64>(), millis in any::<u32>()) {
            let (now, delay) = (from_nanos(nanos), Duration::from_millis(millis.into()));
            prop_assert_eq!(until(after(now, delay), now), delay);
            prop_assert_eq!(before(after(now, delay), delay), now);
            prop_assert_eq!(until(now, after(now, delay)), Duration::ZERO);
        }
    }

    #[test]
    fn a_leap_second_is_written_as_it_was_read() {
        let leap = "2016-12-31T23:59:60.500Z";
        assert_eq!(to_text(&parse(leap).expect("parses")), leap);
    }

    #[test]
    fn what_cannot_be_told_is_cut_to_what_can() {
        for time in [Time::MIN_UTC, Time::MAX_UTC] {
            assert!(parse(&to_text(&time)).is_some());
            assert!(parse(&to_text_not_before(&time)).is_some());
        }
        assert_eq!(after(Time::MAX_UTC, Duration::MAX), Time::MAX_UTC);
        assert_eq!(before(Time::MIN_UTC, Duration::MAX), Time::MIN_UTC);
    }
}
