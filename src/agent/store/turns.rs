//! Who writes to one run at once: one after the other within a process, and by pauses that grow where
//! other processes write to it too.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};

use crate::agent::run::RunId;

/// Locks in all. Runs that share one wait for each other now and then, and no run needs one of its own.
const LOCKS: usize = 256;

/// The first pause before what others kept out is tried again; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(4);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// Turns at writing to runs, among all who share them.
#[derive(Clone)]
pub(super) struct Turns(Arc<[Mutex<()>]>);

impl fmt::Debug for Turns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Turns").finish_non_exhaustive()
    }
}

impl Turns {
    pub(super) fn new() -> Self {
        Self((0..LOCKS).map(|_| Mutex::new(())).collect())
    }

    /// Waits for the turn at a run, in the order of asking.
    pub(super) async fn take(&self, id: RunId) -> MutexGuard<'_, ()> {
        let lock = id.as_uuid().as_u128() % LOCKS as u128;
        self.0[lock as usize].lock().await
    }
}

/// How long to pause after being kept out for the `times`th time, from 1. `chance` in 0 to 1 keeps those
/// apart who were kept out together.
pub(super) fn pause(times: u32, chance: f64) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(1 << times.saturating_sub(1).min(16));
    doubled.min(LONGEST_PAUSE).mul_f64(chance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit() {
        let millis = |times| pause(times, 1.0).as_millis();
        assert_eq!([1, 2, 3, 7, 8, u32::MAX].map(millis), [4, 8, 16, 250, 250, 250]);
        assert_eq!(pause(3, 0.5), Duration::from_millis(8));
    }

    #[tokio::test]
    async fn one_writes_to_a_run_at_once() {
        let (turns, run) = (Turns::new(), RunId::new());
        let turn = turns.take(run).await;
        let shared = turns.clone();
        let mut next = Box::pin(shared.take(run));
        assert!(futures_util::poll!(&mut next).is_pending());
        drop(turn);
        drop(next.await);
    }
}
