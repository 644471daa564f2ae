//! Looking, now and then, for messages that no consumer hands out any more, so that none stays where it
//! is by itself; see [`crate::stuck`] for how they come about. It takes none but a worker's rights.
//!
//! Only an outlet that has nothing to hand out is looked at, and only what has been stuck for longer
//! than `ack_wait` is touched. That several workers look is harmless, and costs each a few requests.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Shared;
use super::health::{Part, TroubleKind};
use crate::error::Result;
use crate::stuck::{Fate, Outlet, Proof, Revived, StuckJob, Taking, fate, strands};

/// The bounds of the pause between looks, which is two `ack_wait` and up to half as much more, so that
/// workers do not all look at once.
const SHORTEST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(300);

/// How many jobs of an outlet are looked at, the oldest.
const AT_MOST: usize = 1000;

/// Looks until the worker stops fetching.
pub(super) async fn run(shared: Arc<Shared>, queue: usize, ack_wait: Duration) {
    let mut seen = HashMap::new();
    loop {
        let pause = pause(ack_wait, fastrand::f64());
        tokio::select! {
            () = shared.stop_fetching.cancelled() => return,
            () = shared.look_after(pause, queue, &mut seen) => {}
        }
    }
}

fn pause(ack_wait: Duration, chance: f64) -> Duration {
    (2 * ack_wait).clamp(SHORTEST, LONGEST).mul_f64(1.0 + chance / 2.0)
}

/// What a look came to.
enum Look {
    /// There are messages to be handed out: whether others are stuck is seen when there are none.
    Busy,
    /// Nothing is stuck, or nothing is any more.
    Well,
    /// This is, and stays so.
    Left(String),
}

impl Shared {
    async fn look_after(
        &self,
        pause: Duration,
        queue: usize,
        seen: &mut HashMap<Outlet, Sightings>,
    ) {
        sleep(pause).await;
        for outlet in Outlet::ALL {
            let part = Part::Stuck(queue, outlet);
            match self.look_for_stuck(queue, outlet, seen.entry(outlet).or_default()).await {
                Ok(Look::Busy) => {}
                Ok(Look::Well) => self.supervision.clear(part),
                Ok(Look::Left(what)) => {
                    self.supervision.report_kind(part, TroubleKind::JobsStuck, None, what);
                }
                Err(error) if error.is_permission() => self.supervision.report(part, &error),
                Err(error) => tracing::debug!(%error, "it was not seen whether jobs are stuck"),
            }
        }
    }

    async fn look_for_stuck(
        &self,
        queue: usize,
        outlet: Outlet,
        seen: &mut Sightings,
    ) -> Result<Look> {
        let (client, name, streams) =
            (&self.client, &self.queues[queue].name, &self.queues[queue].streams);
        let (stream, consumer) = (outlet.stream(streams), outlet.consumer());
        let facts = self.conn.consumer_facts(stream, consumer).await?;
        if facts.is_none_or(|facts| facts.waiting > 0) {
            return Ok(Look::Busy);
        }
        let Some(reach) = client.reach(name, outlet).await? else { return Ok(Look::Busy) };
        let mut found = Vec::new();
        if reach.stuck() > 0 {
            let running = self.leases.running(queue, &self.recorder.worker);
            let proof = Proof::Consumer;
            found = client.surely_stuck(name, outlet, &reach, proof, &running, AT_MOST).await?;
        }
        // Those behind so many are looked at when these are gone.
        let untold = match found.len() {
            AT_MOST.. => 0,
            told => reach.stuck().saturating_sub(told as u64),
        };
        let ack_wait = reach.consumer.ack_wait();
        let Still { jobs, untold } = seen.look(Instant::now(), found, untold, ack_wait);
        let strands = match outlet {
            Outlet::Lane(_) => {
                strands(&reach.consumer.config, &outlet.subjects(&self.namespace, name))
            }
            // What is due is put on a lane, not back.
            Outlet::Due => None,
        };
        let left = self.unstick(outlet, jobs, strands).await?;
        Ok(told(left, untold, strands).map_or(Look::Well, Look::Left))
    }

    /// Does for each stuck job what is to be done; how many stay.
    async fn unstick(
        &self,
        outlet: Outlet,
        jobs: Vec<StuckJob>,
        strands: Option<&'static str>,
    ) -> Result<u64> {
        let (mut moved, mut cleared, mut left) = (0_u64, 0_u64, 0_u64);
        for job in jobs {
            match fate(self.client.end_of_stuck(&job.key()).await?, strands) {
                Fate::Leave => left += 1,
                Fate::Clear | Fate::BringBack => {
                    match self.client.bring_back(&job, Taking::Ack).await? {
                        Revived::Moved => moved += 1,
                        Revived::Cleared => cleared += 1,
                        Revived::Gone => {}
                        Revived::KeptOut | Revived::BeingMoved => left += 1,
                    }
                }
            }
        }
        if moved + cleared > 0 {
            let consumer = outlet.consumer();
            tracing::warn!(
                target: "tidemill::health", consumer, moved, cleared,
                "jobs that the broker would not have handed out any more: brought back, or cleared \
                 away where they had ended"
            );
        }
        Ok(left)
    }
}

/// What is told of jobs that stay stuck, if any do.
fn told(left: u64, untold: u64, strands: Option<&'static str>) -> Option<String> {
    let count = left + untold;
    let why = match strands {
        Some(option) => format!("its {option} is not as it should be"),
        None if left > 0 => "others of their ids keep them from being moved".to_owned(),
        None => "which ones cannot be told beside those that back off".to_owned(),
    };
    (count > 0).then(|| format!("{count} jobs are beyond the reach of its consumer: {why}"))
}

/// What was seen stuck at an outlet, and since when.
#[derive(Debug, Default)]
struct Sightings {
    jobs: HashMap<u64, Instant>,
    /// How many more there were at least, which could not be told.
    untold: Option<(Instant, u64)>,
}

/// What has been stuck for long enough.
#[derive(Debug)]
struct Still {
    jobs: Vec<StuckJob>,
    untold: u64,
}

impl Sightings {
    /// Takes in what is seen now; what was seen as long ago as `ack_wait`, and ever since, is told.
    fn look(
        &mut self,
        now: Instant,
        found: Vec<StuckJob>,
        untold: u64,
        ack_wait: Duration,
    ) -> Still {
        let before = std::mem::take(&mut self.jobs);
        let mut jobs = Vec::new();
        for job in found {
            let since = before.get(&job.sequence).copied().unwrap_or(now);
            self.jobs.insert(job.sequence, since);
            if now.saturating_duration_since(since) > ack_wait {
                jobs.push(job);
            }
        }
        self.untold = match (self.untold, untold) {
            (_, 0) => None,
            (None, untold) => Some((now, untold)),
            (Some((since, before)), untold) => Some((since, untold.min(before))),
        };
        let is_old = |since: Instant| now.saturating_duration_since(since) > ack_wait;
        let untold = self.untold.filter(|(since, _)| is_old(*since)).map_or(0, |(_, count)| count);
        Still { jobs, untold }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::priority::Priority;
    use crate::token::{JobId, Kind, Queue, RunId};

    fn job(sequence: u64) -> StuckJob {
        StuckJob {
            queue: Queue::default(),
            kind: Kind::new("any").expect("valid"),
            id: JobId::new("a").expect("valid"),
            run: RunId::new("r").expect("valid"),
            priority: Priority::Low,
            stream: "J".to_owned(),
            sequence,
            outlet: Outlet::Lane(Priority::Low),
        }
    }

    #[test]
    fn what_is_seen_for_longer_than_ack_wait_is_stuck_as_a_table() {
        let (mut seen, start, ack_wait) =
            (Sightings::default(), Instant::now(), Duration::from_secs(30));
        // After so many seconds, the sequences seen and how many more; what is told of them.
        type Step = (u64, &'static [u64], u64, &'static [u64], u64);
        let steps: [Step; 7] = [
            (0, &[1, 2], 3, &[], 0),
            (20, &[1, 2, 4], 2, &[], 0),
            // Seen all the time, and another that came later.
            (40, &[1, 4], 5, &[1], 2),
            (60, &[1, 2, 4], 0, &[1, 4], 0),
            // What was gone in between counts anew, the untold as well.
            (80, &[2], 1, &[], 0),
            (100, &[2], 1, &[2], 0),
            (120, &[], 1, &[], 1),
        ];
        for (seconds, found, more, expected, untold) in steps {
            let now = start + Duration::from_secs(seconds);
            let found = found.iter().map(|sequence| job(*sequence)).collect();
            let still = seen.look(now, found, more, ack_wait);
            let told: Vec<u64> = still.jobs.iter().map(|job| job.sequence).collect();
            assert_eq!((told.as_slice(), still.untold), (expected, untold), "after {seconds} s");
        }
    }

    #[test]
    fn pauses_are_bounded_and_spread() {
        let second = Duration::from_secs(1);
        assert_eq!(pause(second, 0.0), SHORTEST);
        assert_eq!(pause(30 * second, 0.5), 75 * second);
        assert_eq!(pause(3600 * second, 1.0), LONGEST.mul_f64(1.5));
    }

    #[test]
    fn what_stays_stuck_is_told_with_its_reason() {
        assert_eq!(told(0, 0, Some("max_deliver")), None);
        let table = [
            (told(2, 0, Some("max_deliver")), "2 jobs", "its max_deliver"),
            (told(1, 0, None), "1 jobs", "others of their ids"),
            (told(0, 3, None), "3 jobs", "cannot be told"),
        ];
        for (told, count, why) in table {
            let told = told.expect("some stay");
            assert!(told.starts_with(count) && told.contains(why), "{told}");
        }
    }
}
