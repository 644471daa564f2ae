//! The jobs of a run: what each does follows from the seed and its number alone.

mod soak;

use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tidemill::{Backoff, NewJob, Priority};

use super::history::{Event, Sealing};

/// What the jobs of a run are called.
pub(super) const KIND: &str = "chaos";

/// Attempts of a job that succeeds in the end: so many that faults do not use them up.
pub(super) const PLENTY: u32 = 40;

/// Attempts of a job that always fails.
const FEW: u32 = 3;

/// Between a failed attempt and the next, as a rule, in milliseconds.
const BACKOFF_MS: u64 = 1500;

/// What is among the jobs of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Load {
    /// Jobs that are over soon: most succeed at once, some fail once or twice, some always, some are delayed
    #[default]
    Plain,
    /// The same, and jobs that run for seconds or wait 20 s for their next attempt, are unique, scheduled,
    /// cancelled or moved
    Soak,
}

/// A job, as its payload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Piece {
    pub(super) id: String,
    pub(super) lane: Priority,
    /// In how many attempts it fails.
    pub(super) fails: u32,
    pub(super) max_attempts: u32,
    pub(super) takes_ms: u64,
    /// Between a failed attempt and the next.
    pub(super) backoff_ms: u64,
    pub(super) run_after_ms: Option<u64>,
    pub(super) entry: Entry,
    /// What it shares with others, of which one at a time is unfinished.
    pub(super) key: Option<String>,
    pub(super) later: Later,
    /// To make payloads differ in size.
    pub(super) padding: String,
}

/// How a job gets into its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Entry {
    /// By an awaited enqueue of its own.
    Single,
    /// With others by one call.
    Many,
    /// With others, all or none.
    All,
}

/// What its producer does to a job once it is enqueued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Later {
    Nothing,
    Cancel { after_ms: u64 },
    Move { after_ms: u64, to: Priority },
    RunNow { after_ms: u64 },
}

impl Piece {
    /// The job of this number.
    pub(super) fn of(load: Load, name: &str, seed: u64, n: u64) -> Self {
        let plain = Self::plain(name, seed, n);
        match load {
            Load::Plain => plain,
            Load::Soak => soak::of(plain, seed, n),
        }
    }

    fn plain(name: &str, seed: u64, n: u64) -> Self {
        let mut chance = chance_of(seed, n);
        let (fails, max_attempts) = match chance.u32(0..100) {
            0..5 => (1, PLENTY),
            5..8 => (2, PLENTY),
            8..10 => (FEW, FEW),
            _ => (0, PLENTY),
        };
        let takes_ms = match chance.u32(0..100) {
            0..2 => chance.u64(500..2000), // to be caught in the middle
            2..30 => chance.u64(10..60),
            _ => chance.u64(0..10),
        };
        let run_after_ms = (chance.u32(0..100) < 5).then(|| chance.u64(200..2000));
        // By tens, so that those beside each other go together.
        let mut of_ten =
            fastrand::Rng::with_seed(seed ^ (n / 10).wrapping_mul(0x2545_f491_4f6c_dd1d));
        let entry = match of_ten.u32(0..10) {
            0 => Entry::All,
            1..3 => Entry::Many,
            _ => Entry::Single,
        };
        Self {
            id: format!("{name}-{n}"),
            lane: Priority::ALL[chance.usize(0..Priority::ALL.len())],
            fails,
            max_attempts,
            takes_ms,
            backoff_ms: BACKOFF_MS,
            run_after_ms,
            entry,
            key: None,
            later: Later::Nothing,
            padding: "x".repeat(chance.usize(0..200)),
        }
    }

    /// The same among jobs that fill all lanes alike, and succeed at once after a while.
    pub(super) fn of_filling(name: &str, seed: u64, n: u64) -> Self {
        let lanes = Priority::ALL;
        Self {
            lane: lanes[usize::try_from(n % lanes.len() as u64).unwrap_or_default()],
            fails: 0,
            max_attempts: PLENTY,
            takes_ms: 20 + n % 20,
            run_after_ms: None,
            entry: Entry::Many,
            ..Self::plain(name, seed, n)
        }
    }

    /// What all firings of a cron entry do: they take a while, and succeed.
    pub(super) fn of_cron(name: &str, seed: u64) -> Self {
        Self { lane: Priority::High, takes_ms: 20, ..Self::of_filling(name, seed, 0) }
    }

    /// The job of a cron entry, whose firings get ids of their own.
    pub(super) fn firing(&self, queue: &str, payload: &[u8]) -> NewJob {
        let backoff = Backoff::fixed(Duration::from_millis(self.backoff_ms));
        NewJob::raw(KIND, payload.to_vec())
            .queue(queue)
            .priority(self.lane)
            .max_retries(self.max_attempts - 1)
            .backoff(&backoff)
    }

    pub(super) fn payload(&self) -> anyhow::Result<Vec<u8>> {
        Ok(serde_json::to_vec(self)?)
    }

    pub(super) fn job(&self, queue: &str, payload: Vec<u8>) -> NewJob {
        let job = NewJob::raw(KIND, payload)
            .queue(queue)
            .priority(self.lane)
            .max_retries(self.max_attempts - 1)
            .backoff(&Backoff::fixed(Duration::from_millis(self.backoff_ms)));
        let job = match &self.key {
            Some(key) => job.unique(key),
            None => job.id(&self.id),
        };
        match self.run_after_ms {
            Some(delay) => job.delay(Duration::from_millis(delay)),
            None => job,
        }
    }

    /// What a producer notes before it enqueues the job.
    pub(super) fn attempted(&self, payload: &[u8], sealing: Sealing) -> Event {
        Event::Try {
            id: self.id.clone(),
            lane: self.lane,
            fails: self.fails,
            max_attempts: self.max_attempts,
            takes_ms: self.takes_ms,
            backoff_ms: self.backoff_ms,
            run_after_ms: self.run_after_ms,
            key: self.key.clone(),
            sealing,
            sum: sum(payload),
        }
    }
}

fn chance_of(seed: u64, n: u64) -> fastrand::Rng {
    fastrand::Rng::with_seed(seed ^ n.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// A checksum of a payload (FNV-1a).
pub(super) fn sum(payload: &[u8]) -> String {
    let hash = payload.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::soak::{LONG_BACKOFF_MS, LONG_RUN_MS};
    use super::*;

    #[test]
    fn a_job_follows_from_seed_and_number() {
        assert_eq!(Piece::of(Load::Soak, "p", 7, 3), Piece::of(Load::Soak, "p", 7, 3));
        let seeds: Vec<Piece> = (0..5).map(|seed| Piece::of(Load::Soak, "p", seed, 3)).collect();
        assert!(seeds.iter().any(|piece| *piece != seeds[0]));
    }

    #[test]
    fn every_manner_comes_up() {
        let pieces: Vec<Piece> = (0..2000).map(|n| Piece::of(Load::Soak, "p", 1, n)).collect();
        for lane in Priority::ALL {
            assert!(pieces.iter().any(|piece| piece.lane == lane), "{lane}");
        }
        for entry in [Entry::Single, Entry::Many, Entry::All] {
            assert!(pieces.iter().any(|piece| piece.entry == entry), "{entry:?}");
        }
        let always = pieces.iter().filter(|piece| piece.fails >= piece.max_attempts).count();
        assert!((20..80).contains(&always), "{always}");
        assert!(pieces.iter().any(|piece| piece.fails == 1 && piece.max_attempts == PLENTY));
        assert!(pieces.iter().any(|piece| piece.run_after_ms.is_some()));
    }

    #[test]
    fn a_soak_always_has_jobs_under_way_for_long() {
        let longs = |load| {
            let pieces = (0..2000).map(|n| Piece::of(load, "p", 1, n));
            let is_long = |piece: &Piece| {
                let waits = piece.fails == 1 && piece.backoff_ms >= LONG_BACKOFF_MS.start;
                (waits, piece.takes_ms >= LONG_RUN_MS.start)
            };
            let each: Vec<(bool, bool)> = pieces.map(|piece| is_long(&piece)).collect();
            let waits = each.iter().filter(|(waits, _)| *waits).count();
            (waits, each.iter().filter(|(_, runs)| *runs).count())
        };
        let (wait, run) = longs(Load::Soak);
        assert!((120..200).contains(&wait) && (3..20).contains(&run), "{wait} {run}");
        assert_eq!(longs(Load::Plain), (0, 0));
    }

    #[test]
    fn a_soak_has_all_kinds_of_jobs() {
        let pieces: Vec<Piece> = (0..2000).map(|n| Piece::of(Load::Soak, "p", 1, n)).collect();
        let count = |is_such: fn(&Piece) -> bool| pieces.iter().filter(|p| is_such(p)).count();
        for (what, count) in [
            ("unique", count(|piece| piece.key.is_some())),
            ("scheduled", count(|piece| piece.run_after_ms >= Some(3000))),
            ("cancelled", count(|piece| matches!(piece.later, Later::Cancel { .. }))),
            ("moved", count(|piece| matches!(piece.later, Later::Move { .. }))),
            ("let run now", count(|piece| matches!(piece.later, Later::RunNow { .. }))),
        ] {
            assert!((3..200).contains(&count), "{count} {what}");
        }
        let alone = |piece: &Piece| piece.key.is_none() && piece.later == Later::Nothing;
        assert!(pieces.iter().all(|piece| alone(piece) || piece.entry == Entry::Single));
    }

    #[test]
    fn lanes_are_filled_alike() {
        let pieces: Vec<Piece> = (0..400).map(|n| Piece::of_filling("p", 1, n)).collect();
        for lane in Priority::ALL {
            assert_eq!(pieces.iter().filter(|piece| piece.lane == lane).count(), 100, "{lane}");
        }
        assert!(pieces.iter().all(|piece| piece.fails == 0 && piece.run_after_ms.is_none()));
    }

    #[test]
    fn sums_differ_where_payloads_do() {
        assert_eq!(sum(b""), "cbf29ce484222325");
        assert_eq!(sum(b"a"), "af63dc4c8601ec8c");
        assert_ne!(sum(b"ab"), sum(b"ba"));
    }
}
