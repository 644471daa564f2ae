//! Jobs of kinds that this worker does not know: another may. They are given back for as long as a
//! live worker announces the kind, and buried when nobody has for long enough.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use super::Shared;
use super::job::Work;
use crate::broker::announced_kinds;
use crate::outcome::{BuryReason, Settlement};
use crate::token::Kind;
use crate::wire::ErrorInfo;

/// How long after its first release a job is buried, if by then no live worker knows its kind.
pub const DEFAULT_UNKNOWN_KIND_GRACE: Duration = Duration::from_secs(600);

/// A job of an unknown kind is given back for this long, and up to half of it more.
const RELEASE_DELAY: Duration = Duration::from_secs(5);

/// How long the answer to "who knows what" is good for.
const ANNOUNCED_FOR: Duration = Duration::from_secs(5);

/// How many jobs' first releases are remembered; others are given back without end.
const MAX_REMEMBERED: usize = 10_000;

/// What one queue's worker remembers of unknown kinds.
#[derive(Debug, Default)]
pub(super) struct UnknownKinds {
    first_released: Mutex<HashMap<u64, Instant>>,
    announced: tokio::sync::Mutex<Option<(Instant, HashSet<Kind>)>>,
}

/// The delay of one release; `chance` in 0 to 1 spreads it.
fn release_delay(grace: Duration, chance: f64) -> Duration {
    RELEASE_DELAY.min(grace).mul_f64(1.0 + chance / 2.0)
}

impl UnknownKinds {
    /// How long ago a job was released first; remembers it if this is the first time.
    fn known_for(&self, sequence: u64, now: Instant, grace: Duration) -> Duration {
        let mut first = self.first_released.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if first.len() >= MAX_REMEMBERED && !first.contains_key(&sequence) {
            // What has not come back for so long went to another worker.
            first.retain(|_, since| now.saturating_duration_since(*since) < 2 * grace);
            if first.len() >= MAX_REMEMBERED {
                return Duration::ZERO;
            }
        }
        now.saturating_duration_since(*first.entry(sequence).or_insert(now))
    }

    fn forget(&self, sequence: u64) {
        self.first_released
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .remove(&sequence);
    }
}

impl Shared {
    /// Gives back or buries a job of a kind that is not registered here.
    pub(super) async fn turn_away(&self, work: Work) {
        let unknown = &self.queues[work.lane.queue].unknown;
        let waited = unknown.known_for(work.sequence, Instant::now(), self.unknown_kind_grace);
        let settlement = if waited >= self.unknown_kind_grace && !self.is_announced(&work).await {
            unknown.forget(work.sequence);
            let message = format!(
                "no live worker of the queue has known kind {} for {waited:?}",
                work.key.kind
            );
            Settlement::Bury {
                reason: BuryReason::UnknownKind,
                error: Box::new(ErrorInfo::new("unknown_kind", message)),
            }
        } else {
            let delay = release_delay(self.unknown_kind_grace, fastrand::f64());
            Settlement::Release { delay }
        };
        self.settle(work, settlement).await;
    }

    /// Whether a live worker says that it knows the kind. Who cannot ask buries nothing.
    async fn is_announced(&self, work: &Work) -> bool {
        let queue = &self.queues[work.lane.queue];
        let mut announced = queue.unknown.announced.lock().await;
        if let Some((asked, kinds)) = &*announced
            && asked.elapsed() < ANNOUNCED_FOR.min(self.unknown_kind_grace)
        {
            return kinds.contains(&work.key.kind);
        }
        match announced_kinds(&self.conn, &self.namespace, &queue.name).await {
            Ok(kinds) => {
                let is_announced = kinds.contains(&work.key.kind);
                *announced = Some((Instant::now(), kinds));
                is_announced
            }
            Err(error) => {
                tracing::warn!(%error, "cannot ask which kinds the live workers know");
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_and_freed_of_what_went_elsewhere() {
        const GRACE: Duration = Duration::from_secs(60);
        let unknown = UnknownKinds::default();
        let start = Instant::now();
        for sequence in 0..MAX_REMEMBERED as u64 {
            assert_eq!(unknown.known_for(sequence, start, GRACE), Duration::ZERO);
        }
        let later = start + GRACE;
        assert_eq!(unknown.known_for(7, later, GRACE), GRACE);
        // Full: one more is not remembered, until the old ones have gone elsewhere.
        let one_more = MAX_REMEMBERED as u64;
        assert_eq!(unknown.known_for(one_more, later, GRACE), Duration::ZERO);
        assert_eq!(unknown.known_for(one_more, later + GRACE / 2, GRACE), Duration::ZERO);
        let much_later = start + 3 * GRACE;
        assert_eq!(unknown.known_for(one_more, much_later, GRACE), Duration::ZERO);
        assert_eq!(unknown.known_for(one_more, much_later + GRACE, GRACE), GRACE);
    }
}
