//! Slots: each runs one job after the other. Who looks for the next job is called one at a time, and
//! calls the next.

use std::mem;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::poll;
use tokio::task::coop::consume_budget;
use tokio::task::yield_now;
use tokio::time::Instant;

use super::job::Work;
use super::lanes::Call;
use super::{Shared, execute};

/// An attempt that took so long may have kept its thread from others, and so long.
const SLOW: Duration = Duration::from_millis(1);
const LONG: Duration = Duration::from_millis(10);

/// Whether a slot counts as one that runs a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    Free,
    Busy,
}

/// A job that was taken into a slot.
struct Taken {
    work: Work,
    /// Who is to be called to look for another.
    call: Call,
    at: Instant,
}

/// Runs one job after the other in a slot, until fetching stops.
async fn work_in_slot(shared: Arc<Shared>) {
    // Whom this slot wakes may only run when it lets go of its thread. So it does after an attempt that
    // may have kept it, and even before one where the last kept it for long.
    let (mut slot, mut took) = (Slot::Free, Duration::ZERO);
    while let Some(Taken { work, call, at: mut started }) = shared.next_work(slot).await {
        let handler = shared.handlers.get(&work.key.kind);
        // Nobody is woken where this slot is likely to be back before whoever is.
        let is_put_off =
            call == Call::Waiting && handler.is_some_and(|handler| handler.brevity.is_likely());
        if !is_put_off {
            shared.call(call);
        }
        if took >= LONG && call != Call::Nobody {
            yield_now().await;
            started = Instant::now();
        }
        let mut attempt = pin!(execute::attempt(&shared, handler, work, started));
        let ended = match poll!(attempt.as_mut()) {
            Poll::Ready(ended) => ended,
            Poll::Pending => {
                if is_put_off {
                    shared.call(call);
                }
                attempt.await
            }
        };
        (slot, took) = (Slot::Busy, ended.saturating_duration_since(started));
        if let Some(handler) = handler {
            handler.brevity.note(took);
        }
        if took >= SLOW {
            yield_now().await;
        } else {
            // Jobs that are over at once must not keep the rest of the program from running.
            consume_budget().await;
        }
    }
}

impl Shared {
    /// Has somebody look for a job. Each who finds one calls the next, so that no call is lost where
    /// several jobs come in before the first who is called looks.
    pub(super) fn call(self: &Arc<Self>, call: Call) {
        match call {
            Call::Nobody => {}
            Call::Waiting => self.has_work.notify_one(),
            Call::New => drop(self.tasks.spawn(work_in_slot(self.clone()))),
        }
    }

    /// Frees a slot, and waits for the next job in it; `None` when fetching has stopped.
    async fn next_work(&self, mut slot: Slot) -> Option<Taken> {
        loop {
            let at = Instant::now();
            let picked = {
                let mut lanes = self.lanes();
                if mem::replace(&mut slot, Slot::Free) == Slot::Busy {
                    lanes.free_slot(at);
                }
                lanes.pick(at)
            };
            for lane in picked.refill {
                self.room(lane).notify_one();
            }
            if let Some(work) = picked.work {
                // It may have come in since the clock was read, and starts no earlier than that.
                let at = at.max(work.received());
                return Some(Taken { work, call: picked.call, at });
            }
            tokio::select! {
                () = self.stop_fetching.cancelled() => return None,
                () = self.has_work.notified() => {}
            }
        }
    }
}
