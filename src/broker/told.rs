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

    /// Answers, if an answer is awaited, by as many messages as it takes.
    pub(crate) async fn answer(&self, conn: &Connection, answers: Vec<Bytes>) -> Result<()> {
        let Some(reply) = &self.0.reply else { return Ok(()) };
        for answer in answers {
            conn.publish(reply.clone(), answer).await?;
        }
        Ok(())
    }
}
