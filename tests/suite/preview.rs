//! What is told of the next runs of cron entries, held against what the broker does.

use std::time::{Duration, Instant};

use chrono::{DateTime, Datelike, SubsecRound, TimeDelta, Timelike, Utc};
use chrono_tz::Tz;
use futures_util::future::join_all;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use tidemill::{CronEntry, CronJob, NewJob, Queue, Schedule};

use crate::support::{Mill, Numbered, eventually, numbered, until};

const ENTRIES: usize = 250;

/// Zones with and without summer time, on both sides of the equator, and off the full hour.
const ZONES: [Tz; 12] = [
    Tz::UTC,
    Tz::Europe__Berlin,
    Tz::Europe__London,
    Tz::America__New_York,
    Tz::America__Sao_Paulo,
    Tz::America__Santiago,
    Tz::Africa__Cairo,
    Tz::Asia__Kolkata,
    Tz::Asia__Tokyo,
    Tz::Australia__Lord_Howe,
    Tz::Pacific__Auckland,
    Tz::Pacific__Chatham,
];

/// A field that `value` fits, out of `min..=max`.
fn field(value: u32, min: u32, max: u32) -> BoxedStrategy<String> {
    prop_oneof![
        2 => Just("*".to_owned()),
        3 => Just(value.to_string()),
        1 => (min..=value, value..=max).prop_map(|(from, to)| format!("{from}-{to}")),
        2 => (min..=max).prop_map(move |other| format!("{value},{other}")),
        1 => (1..=max).prop_map(move |step| {
            let start = min + (value - min) % step;
            format!("{start}/{step}")
        }),
        1 => (1..=4u32).prop_map(move |step| match (value - min) % step {
            0 => format!("*/{step}"),
            _ => format!("{value}/{step}"),
        }),
    ]
    .boxed()
}

/// A pattern that fits a moment, and a zone.
fn pattern(at: DateTime<Utc>) -> impl Strategy<Value = (String, Tz)> {
    proptest::sample::select(&ZONES[..]).prop_flat_map(move |zone| {
        let there = at.with_timezone(&zone);
        let day = (field(there.day(), 1, 31), field(1, 1, 31), any::<bool>());
        let weekday = there.weekday().num_days_from_sunday();
        // Of two restricted days either will do; a star leaves the other to decide.
        let days = day.prop_map(|(fits, other, may_differ)| (fits, other, may_differ));
        (
            // Not every second, so that a next run is somewhere else.
            Just(there.second().to_string()),
            field(there.minute(), 0, 59),
            field(there.hour(), 0, 23),
            days,
            field(there.month(), 1, 12),
            field(weekday, 0, 6),
        )
            .prop_map(
                move |(second, minute, hour, (day, other, may_differ), month, weekday)| {
                    let is_star = |field: &str| field.starts_with('*');
                    let differs = may_differ && !is_star(&other) && !is_star(&weekday);
                    let day = if differs { other } else { day };
                    (format!("{second} {minute} {hour} {day} {month} {weekday}"), zone)
                },
            )
    })
}

/// Entries that all fire at one moment, and what is told of their first two runs.
async fn add(mill: &Mill, at: DateTime<Utc>) -> Vec<CronEntry> {
    let mut runner = TestRunner::default();
    let patterns = pattern(at);
    let drawn = (0..ENTRIES).map(|_| patterns.new_tree(&mut runner).expect("a pattern").current());
    let adding = drawn.enumerate().map(|(n, (text, zone))| async move {
        let schedule: Schedule = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
        let schedule = schedule.in_zone(zone.name()).expect("a zone");
        let job = CronJob::new(format!("entry-{n}"), schedule, NewJob::new(&numbered(n as u64)));
        mill.client.cron().add(job).await.unwrap_or_else(|error| panic!("{text} {zone}: {error}"));
    });
    join_all(adding).await;
    mill.client.cron().list(&Queue::default()).await.expect("lists")
}

#[tokio::test]
async fn what_is_told_is_what_the_broker_does() {
    let mill = Mill::start().await;
    let handler = |_: Numbered, _: tidemill::JobContext| async { Ok::<_, tidemill::JobError>(()) };
    let worker = mill.worker().handle(handler).build().expect("valid");
    let running = worker.start().await.expect("starts");
    // On a slow machine it takes longer to add them all.
    let mut lead = TimeDelta::seconds(4);
    let (at, told) = loop {
        let at = Utc::now().trunc_subsecs(0) + lead;
        let told = add(&mill, at).await;
        if Utc::now() + TimeDelta::seconds(1) < at {
            break (at, told);
        }
        for entry in told {
            mill.client.cron().remove(&entry.queue, &entry.name).await.expect("removed");
        }
        lead = lead * 2;
    };
    assert_eq!(told.len(), ENTRIES);
    until(Instant::now() + (at - Utc::now()).to_std().expect("ahead")).await;
    let fired = eventually("all have fired", || async {
        let list = mill.client.cron().list(&Queue::default()).await.expect("lists");
        list.iter().all(|entry| entry.last.is_some()).then_some(list)
    })
    .await;
    for (told, fired) in told.iter().zip(&fired) {
        let what = format!("{} in {}", told.schedule, told.zone.as_deref().unwrap_or_default());
        let upcoming = told.upcoming(2);
        let last = fired.last.as_ref().expect("fired");
        assert_eq!(upcoming[0], at, "{what}");
        let late = last.at - at;
        assert!(TimeDelta::zero() <= late && late < TimeDelta::seconds(5), "{what}: {}", last.at);
        assert_eq!(last.next, upcoming.get(1).copied(), "{what}: the run after {at}");
    }
    tokio::time::timeout(Duration::from_secs(30), running.drain()).await.expect("drains");
}
