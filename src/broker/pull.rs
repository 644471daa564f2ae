//! Fetching: one lane's durable consumer, one bounded pull at a time.
//!
//! A pull asks for a number of messages and stays open until it has them or expires. The broker
//! forgets pulls when a connection or a leader goes, and does not always say so; a pull that should
//! have ended and has not is therefore given up and asked anew.

use std::fmt;
use std::time::Duration;

use async_nats::Subject;
use bytes::Bytes;
use serde_json::json;
use tokio::time::{Instant, sleep_until};

use super::ack::{self, AckInfo, AckSubject};
use super::connection::Connection;
use super::failure;
use super::publish::from_header_map;
use super::read::Stored;
use super::renew::Messages;
use crate::error::{Error, Result};
use crate::wire::Headers;
use crate::wire::time::Time;

/// How long a pull stays open without being filled. It bounds the silence after a leader's loss.
const PULL_EXPIRES: Duration = Duration::from_secs(5);

/// How much later than that the broker's word may come before the pull is given up.
const PULL_GRACE: Duration = Duration::from_secs(2);

/// A job as the broker handed it over.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) subject: Subject,
    pub(crate) headers: Headers,
    pub(crate) payload: Bytes,
    pub(crate) ack: AckSubject,
    pub(crate) sequence: u64,
    /// How often the broker has handed it over; never an attempt number.
    pub(crate) delivered: u64,
    /// How many the consumer had handed out with this one.
    pub(crate) handed_out: u64,
    /// When the broker stored it.
    pub(crate) stored: Time,
    /// When it came in here.
    pub(crate) received: Instant,
}

impl Delivery {
    /// One that could not come in here, and was looked up.
    pub(crate) fn unread(message: Stored, ack: AckSubject, now: Time) -> Self {
        let Stored { subject, sequence, headers, payload, stored } = message;
        Self {
            subject: subject.into(),
            headers,
            payload,
            ack,
            sequence,
            // It may have been handed out any number of times.
            delivered: 2,
            handed_out: 0,
            stored: stored.unwrap_or(now),
            received: Instant::now(),
        }
    }
}

/// What came of waiting on a pull.
#[derive(Debug)]
pub(crate) enum Pulled {
    Job(Delivery),
    /// The pull has expired, this many short.
    Over {
        unfilled: usize,
    },
    /// The pull is over, this many short, and something is the matter.
    Broken {
        unfilled: usize,
        why: Broken,
    },
    /// The subscription has ended; nothing more will come.
    Closed,
}

/// What ended a pull before its time.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The consumer's leader, or its server, is another from now on.
    LeaderChanged,
    /// The consumer was deleted, or its stream.
    Deleted,
    /// Nobody serves the consumer: it is not there, or has no leader.
    NobodyThere,
    /// These credentials may not pull, or not hear the answer.
    Denied(Error),
    /// No word came in time.
    Silent,
    /// The pull could not be sent.
    Unsent(Error),
    /// The broker says no for another reason.
    Refused(String),
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LeaderChanged => f.write_str("the consumer's leader has changed"),
            Self::Deleted => f.write_str("the consumer was deleted"),
            Self::NobodyThere => f.write_str("nobody serves the consumer"),
            Self::Silent => f.write_str("a pull was not answered in time"),
            Self::Denied(error) | Self::Unsent(error) => error.fmt(f),
            Self::Refused(why) => write!(f, "the broker refuses a pull: {why}"),
        }
    }
}

impl Broken {
    /// Reads the status by which the broker ends a pull.
    fn read(status: u16, description: Option<&str>) -> Self {
        let said = description.unwrap_or_default();
        // The broker tells these apart by their words alone.
        match (status, said) {
            (503, _) => Self::NobodyThere,
            (409, "Leadership Change" | "Server Shutdown") => Self::LeaderChanged,
            (409, "Consumer Deleted") => Self::Deleted,
            (_, "") => Self::Refused(format!("status {status}")),
            (_, said) => Self::Refused(said.to_owned()),
        }
    }
}

/// The fetching end of one lane.
pub(crate) struct Puller {
    conn: Connection,
    api_subject: Subject,
    inbox: String,
    answers: Messages,
    /// Numbers the pulls, so that the end of an old one is not taken for the end of this one.
    serial: u64,
    outstanding: usize,
    asked: Instant,
}

impl Puller {
    pub(crate) async fn open(conn: &Connection, stream: &str, consumer: &str) -> Result<Self> {
        let inbox = conn.client().new_inbox();
        let answers = conn.subscribe(format!("{inbox}.*")).await?;
        Ok(Self {
            conn: conn.clone(),
            api_subject: conn.api_subject(&format!("CONSUMER.MSG.NEXT.{stream}.{consumer}")).into(),
            inbox,
            answers,
            serial: 0,
            outstanding: 0,
            asked: Instant::now(),
        })
    }

    /// Whether a pull is open.
    pub(crate) fn is_open(&self) -> bool {
        self.outstanding > 0
    }

    /// Opens a pull for `count` jobs.
    pub(crate) async fn pull(&mut self, count: usize) -> Result<()> {
        self.answers.refresh().await;
        self.serial += 1;
        self.asked = Instant::now();
        let request = json!({ "batch": count, "expires": PULL_EXPIRES.as_nanos() as u64 });
        let reply = format!("{}.{}", self.inbox, self.serial);
        let body = Bytes::from(request.to_string());
        self.conn
            .client()
            .publish_with_reply(self.api_subject.clone(), reply, body)
            .await
            .map_err(|error| failure::publish(&self.api_subject, error))?;
        self.outstanding = count;
        Ok(())
    }

    /// Waits for what the open pull brings. Cancel safe. Without an open pull it brings what an
    /// earlier one still had under way, or nothing.
    pub(crate) async fn next(&mut self) -> Pulled {
        loop {
            // Of what is there already nobody has to be watched.
            if let Some(pulled) = self.try_next() {
                return pulled;
            }
            let answer = if self.is_open() {
                let came = tokio::select! {
                    biased;
                    answer = self.answers.next() => Ok(answer),
                    error = self.conn.denied(&self.api_subject, self.asked.into()) => {
                        Err(Broken::Denied(error))
                    }
                    () = sleep_until(self.asked + PULL_EXPIRES + PULL_GRACE) => {
                        Err(Broken::Silent)
                    }
                };
                match came {
                    Ok(answer) => answer,
                    Err(why) => return Pulled::Broken { unfilled: self.forget(), why },
                }
            } else {
                self.answers.next().await
            };
            let Some(answer) = answer else { return Pulled::Closed };
            if let Some(pulled) = self.read(answer) {
                return pulled;
            }
        }
    }

    /// What has come already.
    pub(crate) fn try_next(&mut self) -> Option<Pulled> {
        while let Some(answer) = self.answers.try_next() {
            if let Some(pulled) = self.read(answer) {
                return Some(pulled);
            }
        }
        None
    }

    fn read(&mut self, answer: async_nats::Message) -> Option<Pulled> {
        // Only the broker's own words have a status, but any client can give a job one.
        if let Some(reply) = &answer.reply
            && let Some(info) = ack::parse(reply)
        {
            self.outstanding = self.outstanding.saturating_sub(1);
            return read_delivery(answer, info).map(Pulled::Job);
        }
        // What has neither was written into our inbox by somebody.
        let Some(status) = answer.status else {
            self.outstanding = self.outstanding.saturating_sub(1);
            return None;
        };
        let of_this_pull = answer.subject.rsplit('.').next() == Some(&self.serial.to_string());
        if !of_this_pull || !self.is_open() {
            return None;
        }
        match status.as_u16() {
            100 => None,
            404 | 408 => Some(Pulled::Over { unfilled: self.forget() }),
            status => {
                let why = Broken::read(status, answer.description.as_deref());
                Some(Pulled::Broken { unfilled: self.forget(), why })
            }
        }
    }

    /// Gives up the open pull, as after a reconnect; how many jobs it was short of.
    pub(crate) fn forget(&mut self) -> usize {
        std::mem::take(&mut self.outstanding)
    }

    /// Stops pulling. What the broker has sent until then still comes from [`Puller::next`], which
    /// then ends with [`Pulled::Closed`].
    pub(crate) async fn close(&mut self) -> Result<()> {
        self.answers.drain().await
    }
}

/// Reads a delivery, of which its reply subject has told something already.
fn read_delivery(message: async_nats::Message, info: AckInfo) -> Option<Delivery> {
    Some(Delivery {
        subject: message.subject,
        headers: message.headers.as_ref().map(from_header_map).unwrap_or_default(),
        payload: message.payload,
        ack: AckSubject(message.reply?),
        sequence: info.sequence,
        delivered: info.delivered,
        handed_out: info.handed_out,
        stored: info.stored,
        received: Instant::now(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ended_a_pull_as_a_table() {
        let read = |status, said| format!("{:?}", Broken::read(status, said));
        for (status, said, broken) in [
            (409, Some("Leadership Change"), "LeaderChanged"),
            (409, Some("Server Shutdown"), "LeaderChanged"),
            (409, Some("Consumer Deleted"), "Deleted"),
            (503, None, "NobodyThere"),
            (409, Some("Exceeded MaxWaiting"), "Refused(\"Exceeded MaxWaiting\")"),
            (400, None, "Refused(\"status 400\")"),
        ] {
            assert_eq!(read(status, said), broken, "{status} {said:?}");
        }
    }
}
