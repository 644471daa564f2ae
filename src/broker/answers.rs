//! The answers to a request that has many.

use std::time::{Duration, Instant};

use async_nats::{Message, Subject};
use futures_util::StreamExt;
use tokio::time::timeout;

use super::connection::{Connection, Messages};
use crate::error::Result;

/// Answers as they come. Who asked knows which is the last.
pub(super) struct Answers {
    conn: Connection,
    subject: Subject,
    asked: Instant,
    messages: Messages,
}

impl Answers {
    pub(super) fn new(
        conn: Connection,
        subject: Subject,
        asked: Instant,
        messages: Messages,
    ) -> Self {
        Self { conn, subject, asked, messages }
    }

    /// The next answer; `None` if none comes within `patience`.
    ///
    /// Fails with `Permission` as soon as the server refuses the request or its answers.
    pub(super) async fn next(&mut self, patience: Duration) -> Result<Option<Message>> {
        tokio::select! {
            biased;
            answer = timeout(patience, self.messages.next()) => Ok(answer.ok().flatten()),
            error = self.conn.denied(&self.subject, self.asked) => Err(error),
        }
    }
}
