//! Queues as a whole: looked at, paused, emptied, removed.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::json;

use super::empty::Timers;
use crate::broker::{ConsumerState, StreamState, consumer_state};
use crate::client::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::priority::Priority;
use crate::token::Queue;
use crate::wire::time::{self, Time};

/// A queue as it stands just now.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct QueueInfo {
    /// Its name.
    pub name: Queue,
    /// Its lanes, the most urgent first.
    pub lanes: Vec<LaneInfo>,
    /// Unfinished jobs on its lanes.
    pub jobs: u64,
    /// Bytes of unfinished jobs.
    pub bytes: u64,
    /// Jobs that the broker holds until they are due.
    pub timers: u64,
    /// Cron entries.
    pub cron: u64,
    /// Completions that are kept.
    pub results: u64,
    /// Entries of the ledger of attempts.
    pub ledger: u64,
    /// Dead letters.
    pub dead: u64,
}

/// A lane as it stands just now.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LaneInfo {
    /// Its priority.
    pub priority: Priority,
    /// Jobs that no worker has been given yet.
    pub waiting: u64,
    /// Jobs that a worker has, or that wait for their next attempt.
    pub unsettled: u64,
    /// Until when it is paused, if it is.
    pub paused_until: Option<DateTime<Utc>>,
}

impl Client {
    /// A queue in figures.
    ///
    /// # Errors
    /// `is_not_found` where the queue does not exist, `is_permission` where these credentials may
    /// not look at its streams.
    pub async fn queue_info(&self, queue: &Queue) -> Result<QueueInfo> {
        let (streams, conn) = (self.streams(queue), self.conn());
        let mut lanes = Vec::new();
        for priority in Priority::ALL {
            let lane = priority.as_str();
            let state = consumer_state(conn, self.clock(), &streams.jobs, lane).await?;
            let ConsumerState { waiting, unsettled, paused_until, .. } = state;
            lanes.push(LaneInfo { priority, waiting, unsettled, paused_until });
        }
        let StreamState { messages: jobs, bytes, .. } =
            conn.stream_state(&streams.jobs, None).await?;
        let Timers { jobs: timers, cron, .. } = self.timers_and_cron(queue).await?;
        Ok(QueueInfo {
            name: queue.clone(),
            lanes,
            jobs,
            bytes,
            timers,
            cron,
            results: conn.stream_state(&streams.results, None).await?.messages,
            ledger: conn.stream_state(&streams.attempts, None).await?.messages,
            dead: conn.stream_state(&streams.dead, None).await?.messages,
        })
    }

    /// Stops handing out jobs of a queue, or of one of its lanes, to all workers: until a time, or
    /// until [`Client::resume`]. Running jobs go on; jobs go on coming in. It outlives restarts of
    /// workers and of the broker.
    ///
    /// # Errors
    /// `is_not_found` where the queue does not exist, `is_invalid` for a time that has passed,
    /// `is_permission` where these credentials may not pause consumers.
    pub async fn pause(
        &self,
        queue: &Queue,
        lane: Option<Priority>,
        until: Option<DateTime<Utc>>,
    ) -> Result<()> {
        let until = self.end_of_pause(queue, until).await?;
        self.set_pause(queue, lane, Some(until)).await
    }

    /// Whether [`Client::pause`] would be refused; nothing is paused.
    ///
    /// # Errors
    /// As [`Client::pause`], but for the right to pause, which only pausing shows.
    pub async fn plan_pause(&self, queue: &Queue, until: Option<DateTime<Utc>>) -> Result<()> {
        self.queue_info(queue).await?;
        self.end_of_pause(queue, until).await.map(drop)
    }

    async fn end_of_pause(&self, queue: &Queue, until: Option<Time>) -> Result<Time> {
        let now = self.now(queue).await;
        match until {
            Some(until) if until <= now => {
                let until = time::to_text(&until);
                Err(Error::invalid(format!("{until} has passed: pause until a later time")))
            }
            Some(until) => Ok(until),
            // The broker knows no pause without end.
            None => Ok(time::after(now, FOR_GOOD)),
        }
    }

    /// Hands out jobs of a queue, or of one of its lanes, again.
    ///
    /// # Errors
    /// As [`Client::pause`].
    pub async fn resume(&self, queue: &Queue, lane: Option<Priority>) -> Result<()> {
        self.set_pause(queue, lane, None).await
    }

    async fn set_pause(
        &self,
        queue: &Queue,
        lane: Option<Priority>,
        until: Option<Time>,
    ) -> Result<()> {
        let stream = self.streams(queue).jobs;
        let request = match until {
            Some(until) => json!({ "pause_until": time::to_text(&until) }),
            None => json!({}),
        };
        for priority in lanes(lane) {
            let verb = format!("CONSUMER.PAUSE.{stream}.{priority}");
            let attempted = format!("pause or resume lane {priority} of queue {queue}");
            self.conn().command(&verb, &request, &attempted).await.map_err(|error| match error
                .is_not_found()
            {
                true => Error::new(
                    ErrorKind::NotFound,
                    format!("there is no queue {queue}: it has not been set up"),
                ),
                false => error,
            })?;
        }
        Ok(())
    }

    /// Deletes all unfinished jobs of a queue, or of one of its lanes, its timers included; how many
    /// there were. Cron entries stay. Nothing is recorded of them: to end jobs with a completion, cancel them. What is
    /// running goes on to its end.
    ///
    /// # Errors
    /// `is_not_found` where the queue does not exist, `is_permission` where these credentials may
    /// not purge its streams.
    pub async fn purge(&self, queue: &Queue, lane: Option<Priority>) -> Result<u64> {
        let (ns, streams) = (self.namespace(), self.streams(queue));
        let token = lane.map_or("*", Priority::as_str);
        let [timers, due] = self.timed_subjects(queue, lane);
        let mut purged = 0;
        for (stream, subjects) in [
            (&streams.timers, timers),
            (&streams.timers, due),
            (&streams.jobs, format!("{ns}.jobs.{queue}.{token}.>")),
        ] {
            purged += self.conn().purge(stream, &subjects).await?;
        }
        Ok(purged)
    }

    /// Deletes a queue with all that it holds: jobs, completions, ledger, dead letters, timers.
    ///
    /// # Errors
    /// `is_not_found` where the queue does not exist, `is_permission` where these credentials may
    /// not delete streams.
    pub async fn remove_queue(&self, queue: &Queue) -> Result<()> {
        let streams = self.streams(queue);
        // The jobs first, so that none comes in for a queue that is half gone.
        for stream in
            [&streams.jobs, &streams.timers, &streams.results, &streams.attempts, &streams.dead]
        {
            let attempted = format!("delete stream {stream}");
            let deleted = self
                .conn()
                .command(&format!("STREAM.DELETE.{stream}"), &json!({}), &attempted)
                .await;
            match deleted {
                // Repeating it after a crash goes on where it stopped.
                Err(error) if error.is_not_found() && *stream != streams.jobs => {}
                done => done?,
            }
        }
        self.forget_queue(queue);
        Ok(())
    }
}

/// A pause without a time: a hundred years.
const FOR_GOOD: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

fn lanes(lane: Option<Priority>) -> Vec<Priority> {
    lane.map_or_else(|| Priority::ALL.to_vec(), |lane| vec![lane])
}

impl LaneInfo {
    /// Whether it is paused without a time at which it resumes by itself.
    pub fn is_paused_for_good(&self, now: DateTime<Utc>) -> bool {
        self.paused_until.is_some_and(|until| until > time::after(now, FOR_GOOD / 2))
    }
}

impl QueueInfo {
    /// Whether nothing is unfinished on its lanes.
    pub fn is_empty(&self) -> bool {
        self.jobs == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_without_a_time_is_told_from_one_with() {
        let now = Utc::now();
        let paused = |until: Option<Time>| LaneInfo {
            priority: Priority::High,
            waiting: 0,
            unsettled: 0,
            paused_until: until,
        };
        assert!(paused(Some(time::after(now, FOR_GOOD))).is_paused_for_good(now));
        assert!(!paused(Some(time::after(now, Duration::from_secs(60)))).is_paused_for_good(now));
        assert!(!paused(None).is_paused_for_good(now));
    }
}
