//! The jobs of a soak: among plain ones such as stay under way for long, share keys, wait for their time, or
//! are cancelled or moved by their producer.

use tidemill::Priority;

use super::{Entry, Later, PLENTY, Piece, chance_of};

/// Between a failed attempt and the next, of jobs that are to be under way while a server leaves, stays away
/// and comes back; so long that they outlast that, and so short that lanes hold them, and not timers.
pub(super) const LONG_BACKOFF_MS: std::ops::Range<u64> = 15_000..28_000;

/// How long a long handler takes, in milliseconds.
pub(super) const LONG_RUN_MS: std::ops::Range<u64> = 2000..6000;

/// Keys of unique jobs: so few that producers meet at them all the time.
const KEYS: usize = 50;

/// How long a job waits for its time that is on a timer at every other worker.
const SCHEDULED_MS: std::ops::Range<u64> = 3000..10_000;

/// When its producer cancels or moves a job, after it was told that it is enqueued.
const LATER_MS: std::ops::Range<u64> = 0..2500;

/// What becomes of the plain job of this number in a soak.
pub(super) fn of(plain: Piece, seed: u64, n: u64) -> Piece {
    let mut chance = chance_of(seed.rotate_left(17), n);
    let share = chance.u32(0..1000);
    match share {
        0..80 => {
            let backoff_ms = chance.u64(LONG_BACKOFF_MS);
            Piece { fails: 1, max_attempts: PLENTY, backoff_ms, ..plain }
        }
        80..84 => succeeds(Piece { takes_ms: chance.u64(LONG_RUN_MS), ..plain }),
        84..134 => unique(plain, &mut chance),
        134..174 => scheduled(plain, &mut chance),
        174..204 => cancelled(plain, &mut chance),
        204..224 => moved(plain, &mut chance),
        _ => plain,
    }
}

fn succeeds(piece: Piece) -> Piece {
    Piece { fails: 0, max_attempts: PLENTY, ..piece }
}

/// One that contends with others for its key, by a call of its own: in a call of many, one refusal would say
/// nothing of the others.
fn unique(plain: Piece, chance: &mut fastrand::Rng) -> Piece {
    let key = Some(format!("key-{}", chance.usize(0..KEYS)));
    let takes_ms = chance.u64(0..400);
    Piece { key, takes_ms, run_after_ms: None, entry: Entry::Single, ..plain }
}

fn scheduled(plain: Piece, chance: &mut fastrand::Rng) -> Piece {
    Piece { run_after_ms: Some(chance.u64(SCHEDULED_MS)), ..plain }
}

/// One that is cancelled while it waits for its time, runs, or backs off.
fn cancelled(plain: Piece, chance: &mut fastrand::Rng) -> Piece {
    let later = Later::Cancel { after_ms: chance.u64(LATER_MS) };
    let piece = Piece { later, entry: Entry::Single, ..plain };
    match chance.u32(0..3) {
        0 => scheduled(piece, chance),
        1 => succeeds(Piece { takes_ms: chance.u64(LATER_MS), run_after_ms: None, ..piece }),
        _ => Piece { fails: 1, max_attempts: PLENTY, backoff_ms: 3000, ..piece },
    }
}

/// One that is put on another lane, or let run now, before its time.
fn moved(plain: Piece, chance: &mut fastrand::Rng) -> Piece {
    let after_ms = chance.u64(LATER_MS);
    let others: Vec<Priority> =
        Priority::ALL.into_iter().filter(|lane| *lane != plain.lane).collect();
    let later = match chance.usize(0..=others.len()) {
        n if n < others.len() => Later::Move { after_ms, to: others[n] },
        _ => Later::RunNow { after_ms },
    };
    scheduled(Piece { later, entry: Entry::Single, ..plain }, chance)
}
