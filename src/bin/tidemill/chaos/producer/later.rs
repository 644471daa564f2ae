//! What a producer does to its jobs once they are enqueued: it cancels some, and moves some.

use std::time::Duration;

use tidemill::{JobId, Kind, Priority};
use tokio::time::sleep;

use super::super::history::Event;
use super::super::piece::{KIND, Later, Piece};
use super::Producer;

impl Producer {
    /// Does what is to be done to a job that the broker has, once, and notes what came of it.
    pub(super) async fn do_later(&self, piece: &Piece) -> anyhow::Result<()> {
        let wait = |after_ms| sleep(Duration::from_millis(after_ms));
        let (id, kind) = (JobId::new(&piece.id)?, Kind::new(KIND)?);
        let noted = match piece.later {
            Later::Nothing => return Ok(()),
            Later::Cancel { after_ms } => {
                wait(after_ms).await;
                self.cancel(&id, &kind).await?
            }
            Later::Move { after_ms, to } => {
                wait(after_ms).await;
                self.move_to(&id, &kind, Some(to)).await?
            }
            Later::RunNow { after_ms } => {
                wait(after_ms).await;
                self.move_to(&id, &kind, None).await?
            }
        };
        self.journal.note(noted)
    }

    async fn cancel(&self, id: &JobId, kind: &Kind) -> anyhow::Result<Event> {
        self.journal.note(Event::Cancel { id: id.to_string() })?;
        let cancelled = self.client.cancel(&self.queue, Some(kind), id, "chaos").await;
        let id = id.to_string();
        Ok(match cancelled.as_deref() {
            Ok([only]) => Event::Cancelled { id, status: only.status },
            Ok(runs) => Event::NotDone { id, error: format!("it has {} runs", runs.len()) },
            Err(error) => Event::NotDone { id, error: error.to_string() },
        })
    }

    async fn move_to(
        &self,
        id: &JobId,
        kind: &Kind,
        to: Option<Priority>,
    ) -> anyhow::Result<Event> {
        self.journal.note(Event::Move { id: id.to_string(), to })?;
        let moved = match to {
            Some(lane) => self.client.set_priority(&self.queue, Some(kind), id, lane).await,
            None => self.client.run_now(&self.queue, Some(kind), id).await,
        };
        let id = id.to_string();
        Ok(match moved {
            Ok(1) => Event::Moved { id },
            Ok(runs) => Event::NotDone { id, error: format!("{runs} runs were moved") },
            Err(error) => Event::NotDone { id, error: error.to_string() },
        })
    }
}
