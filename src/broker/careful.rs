//! Reading streams that hold what the client library cannot read. A direct look-up of such a message costs
//! the connection, so after a loss it is read one by one, over the API, which has all bytes in base64. What
//! broke a connection is remembered, and costs no other.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::json;
use tokio::sync::watch;

use super::connection::Connection;
use super::read::{Batch, Start, Stored};
use crate::error::Result;

/// Messages that are looked through at most for the last of each subject.
const MAX_LOOKED_THROUGH: usize = 10_000;

/// So many readable ones in a row behind one that is not, and the rest is looked up directly again.
const READABLE_IN_A_ROW: usize = 64;

/// Messages that break direct look-ups: of each stream the last that is known.
#[derive(Default)]
pub(super) struct Breakers(Mutex<HashMap<String, u64>>);

impl Breakers {
    fn all(&self) -> MutexGuard<'_, HashMap<String, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether any are known in a stream from this sequence on.
    pub(super) fn are_from(&self, stream: &str, first: u64) -> bool {
        self.last(stream).is_some_and(|last| last >= first)
    }

    fn last(&self, stream: &str) -> Option<u64> {
        self.all().get(stream).copied()
    }

    fn add(&self, stream: &str, sequence: u64) {
        let mut all = self.all();
        let last = all.entry(stream.to_owned()).or_default();
        *last = sequence.max(*last);
    }

    /// It is there no more. If others are before it, they are learnt anew.
    fn remove(&self, stream: &str, sequence: u64) {
        self.all().retain(|of, last| of != stream || *last != sequence);
    }
}

/// That the connection is lost from a moment on, and with it answers that were on their way.
pub(super) struct Loss {
    epochs: watch::Receiver<u64>,
}

impl Loss {
    pub(super) fn of(conn: &Connection) -> Self {
        Self { epochs: conn.epochs() }
    }

    /// Waits until it has been lost and is there again.
    pub(super) async fn happened(&self) {
        let mut epochs = self.epochs.clone();
        let before = *self.epochs.borrow();
        // The first connect loses nothing.
        if before == 0 || epochs.wait_for(|epoch| *epoch > before).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Connection {
    /// As [`Connection::batch`], without harm whatever is there. Ends early behind what breaks look-ups.
    pub(super) async fn batch_with_care(
        &self,
        stream: &str,
        filter: &str,
        start: Start,
        count: usize,
    ) -> Result<Batch> {
        let mut messages: Vec<Stored> = Vec::new();
        let mut readable = None;
        let mut request = json!({ "next_by_subj": filter });
        start.write(&mut request);
        while messages.len() < count {
            let Some(raw) = self.raw_message(stream, &request).await? else {
                self.look_for_last_breaker(stream).await?;
                return Ok(Batch { messages, is_last: true, left: 0 });
            };
            if raw.breaks_look_ups() {
                self.breakers().add(stream, raw.seq);
                readable = Some(0);
            } else {
                readable = readable.map(|readable| readable + 1);
            }
            let next = raw.seq + 1;
            request = json!({ "next_by_subj": filter, "seq": next });
            messages.push(raw.read(stream)?);
            if readable == Some(READABLE_IN_A_ROW) && !self.breakers().are_from(stream, next) {
                break;
            }
        }
        self.look_for_last_breaker(stream).await?;
        let left = match start {
            Start::Sequence(..=1) => {
                let matching = self.stream_state(stream, Some(filter)).await?.matching;
                matching.saturating_sub(messages.len() as u64)
            }
            Start::Sequence(_) | Start::Time(_) => 1,
        };
        Ok(Batch { messages, is_last: false, left })
    }

    /// Looks whether what breaks look-ups is still there: else nothing has to be read with care.
    async fn look_for_last_breaker(&self, stream: &str) -> Result<()> {
        let Some(last) = self.breakers().last(stream) else { return Ok(()) };
        if self.raw_message(stream, &json!({ "seq": last })).await?.is_none() {
            self.breakers().remove(stream, last);
        }
        Ok(())
    }

    /// As [`Connection::last_of_each`], without harm whatever is there.
    pub(super) async fn last_of_each_with_care(
        &self,
        stream: &str,
        filter: &str,
        count: usize,
    ) -> Result<Batch> {
        let mut last: BTreeMap<String, Stored> = BTreeMap::new();
        let mut next = 1;
        for _ in 0..MAX_LOOKED_THROUGH {
            let batch = self.batch_with_care(stream, filter, Start::Sequence(next), 1).await?;
            let Some(message) = batch.messages.into_iter().next() else { break };
            next = message.sequence + 1;
            last.insert(message.subject.clone(), message);
        }
        let mut messages: Vec<Stored> = last.into_values().collect();
        messages.sort_by_key(|message| message.sequence);
        messages.truncate(count);
        Ok(Batch { messages, is_last: true, left: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_that_breaks_look_ups_is_remembered() {
        let breakers = Breakers::default();
        for sequence in [7, 9, 8] {
            breakers.add("a", sequence);
        }
        assert!(breakers.are_from("a", 1) && breakers.are_from("a", 9));
        assert!(!breakers.are_from("a", 10) && !breakers.are_from("b", 1));
        breakers.remove("a", 8);
        assert!(breakers.are_from("a", 9));
        breakers.remove("a", 9);
        assert!(!breakers.are_from("a", 1));
    }
}
