//! Requests that come to us.

use bytes::Bytes;

use super::connection::Connection;
use crate::error::Result;

/// A message that somebody sent, and perhaps awaits an answer to.
pub(crate) struct Told(async_nats::Message);

impl From<async_nats::Message> for Told {
    fn from(message: async_nats::Message) -> Self {
        Self(message)
    }
}

impl Told {
    pub(crate) fn subject(&self) -> &str {
        &self.0.subject
    }

    pub(crate) fn payload(&self) -> &[u8] {
        &self.0.payload
    }

    /// Answers, if an answer is awaited.
    pub(crate) async fn answer(self, conn: &Connection, answer: Bytes) -> Result<()> {
        match self.0.reply {
            Some(reply) => conn.publish(reply, answer).await,
            None => Ok(()),
        }
    }
}
