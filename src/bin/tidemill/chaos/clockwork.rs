//! Jobs that the broker enqueues by itself while things are broken: a cron entry by interval, one by pattern.

use std::time::Duration;

use tidemill::{Client, CronJob, CronName, Queue};

use super::history::{Event, Journal, Sealing};
use super::piece::{Piece, sum};

/// The entries: their names, schedules, and how often they fire.
const ENTRIES: [(&str, &str, Duration); 2] = [
    ("interval", "@every 2s", Duration::from_secs(2)),
    ("pattern", "*/3 * * * * *", Duration::from_secs(3)),
];

/// How long entries are watched once everything is whole: each is to fire meanwhile.
pub(super) const WATCHED: Duration = Duration::from_secs(5);

/// The oldest server that has cron.
const SINCE: (u32, u32, u32) = (2, 14, 0);

/// Adds the entries, where the server knows of such.
pub(super) async fn start(
    client: &Client,
    queue: &Queue,
    seed: u64,
    journal: &Journal,
) -> anyhow::Result<()> {
    if client.server_version() < SINCE {
        return Ok(());
    }
    for (name, schedule, every) in ENTRIES {
        let piece = Piece::of_cron(name, seed);
        let payload = piece.payload()?;
        let job = CronJob::new(name, schedule.parse()?, piece.firing(queue.as_str(), &payload));
        let every_ms = u64::try_from(every.as_millis()).unwrap_or(u64::MAX);
        let (name, sum) = (name.to_owned(), sum(&payload));
        journal.note(Event::Cron { name, every_ms, sealing: Sealing::Sealed, sum })?;
        client.cron().add(job).await?;
    }
    Ok(())
}

/// Removes the entries, where there are any.
pub(super) async fn stop(client: &Client, queue: &Queue, journal: &Journal) -> anyhow::Result<()> {
    if client.server_version() < SINCE {
        return Ok(());
    }
    for (name, ..) in ENTRIES {
        client.cron().remove(queue, &CronName::new(name)?).await?;
    }
    journal.note(Event::CronRemoved)
}
