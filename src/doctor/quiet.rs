//! Doing something while a lane is paused, which is so for no longer than it takes, whatever becomes of
//! this program.

use std::convert::Infallible;
use std::time::Duration;

use tokio::time::sleep;

use crate::client::Client;
use crate::error::Result;
use crate::priority::Priority;
use crate::token::Queue;
use crate::wire::time::{self, Time};

/// How long a lane stays paused at most, should this program not end well. While it works, it renews
/// that every third of it.
const PAUSED_FOR: Duration = Duration::from_secs(60);

impl Client {
    /// Does something while nothing of a lane is handed out. The lane is paused afterwards if it was
    /// before.
    pub(super) async fn while_paused<T>(
        &self,
        queue: &Queue,
        lane: Priority,
        act: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let stream = self.streams(queue).jobs;
        let facts = self.conn().consumer_facts(&stream, lane.as_str()).await?;
        let paused_before = facts.and_then(|facts| facts.paused_until);
        self.pause_for_a_while(queue, lane, paused_before).await?;
        let done = tokio::select! {
            done = act => done,
            failed = self.keep_paused(queue, lane, paused_before) => failed.map(|never| match never {}),
        };
        self.set_pause(queue, Some(lane), paused_before).await?;
        done
    }

    /// Keeps a lane paused; ends only where that fails.
    async fn keep_paused(
        &self,
        queue: &Queue,
        lane: Priority,
        paused_before: Option<Time>,
    ) -> Result<Infallible> {
        loop {
            sleep(PAUSED_FOR / 3).await;
            self.pause_for_a_while(queue, lane, paused_before).await?;
        }
    }

    /// Pauses a lane for a while, unless it is for longer.
    async fn pause_for_a_while(
        &self,
        queue: &Queue,
        lane: Priority,
        paused_before: Option<Time>,
    ) -> Result<()> {
        let until = time::after(self.now(queue).await, PAUSED_FOR);
        if paused_before.is_some_and(|before| before >= until) {
            return Ok(());
        }
        self.set_pause(queue, Some(lane), Some(until)).await
    }
}
