//! When to look for a record again. A message on the record's subject only wakes: it comes before
//! the record can be read, and may be lost; the stored record alone counts.

use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::timeout;

use crate::broker::Messages;
use crate::error::{Error, ErrorKind, Result};

/// How soon to look again after being woken. In a cluster a replica was seen to lag by 52 ms, so it
/// takes a few looks with growing pauses.
const FIRST_PAUSE: Duration = Duration::from_millis(5);

/// How often to look without being woken, in case the waking is what is broken.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Messages that say when to look.
pub(super) struct Wakes {
    messages: Messages,
    pause: Duration,
}

impl Wakes {
    pub(super) fn new(messages: Messages) -> Self {
        Self { messages, pause: FIRST_PAUSE }
    }

    /// Waits until it is time to look again: at once when woken, ever more rarely otherwise. Cancel
    /// safe.
    ///
    /// # Errors
    /// `Unavailable` where the connection is closed for good.
    pub(super) async fn wait(&mut self) -> Result<()> {
        match timeout(self.pause, self.messages.next()).await {
            Ok(Some(_)) => self.pause = FIRST_PAUSE,
            Ok(None) => {
                return Err(Error::new(ErrorKind::Unavailable, "the connection is closed"));
            }
            Err(_) => self.pause = (self.pause * 2).min(LONGEST_PAUSE),
        }
        Ok(())
    }

    /// Takes all that came in so far: the look that follows answers it.
    pub(super) fn take_queued(&mut self) {
        while let Some(Some(_)) = self.messages.next().now_or_never() {
            self.pause = FIRST_PAUSE;
        }
    }
}
