//! What there is to judge, gathered from the broker and the workers.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use tokio::time::sleep;

use super::judge::{self, Role};
use super::{Finding, Severity};
use crate::broker::{AckSubject, Expect, Start, announced_kinds};
use crate::client::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::priority::Priority;
use crate::stuck::Outlet;
use crate::token::{Kind, Queue};
use crate::topology::StreamNames;
use crate::wire::{Headers, RecordKind};

/// How many of the oldest jobs are looked at for their kinds.
const KINDS_OF: usize = 256;

/// How often it is looked at until nothing moves meanwhile, and the pause before.
const LOOKS: usize = 10;
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// A sequence that no subject's last message has.
const NEVER: u64 = i64::MAX as u64;

impl Client {
    /// What is not as it should be with the broker, or is good to know of it.
    ///
    /// # Errors
    /// `is_unsupported` where JetStream is off, `is_permission` where these credentials may not look
    /// at their account.
    pub async fn examine_broker(&self) -> Result<Vec<Finding>> {
        let account = self.conn().account_facts().await?;
        Ok(judge::server(self.server_version(), &account))
    }

    /// What is not as it should be with a queue, the worst first; empty where all is well. Nothing is
    /// changed.
    ///
    /// # Errors
    /// `is_not_found` where nothing is there of such a queue, `is_unavailable` where the broker cannot
    /// be asked. What these credentials may not look at is a finding.
    pub async fn examine_queue(&self, queue: &Queue) -> Result<Vec<Finding>> {
        let examined = self.examine(queue).await;
        let mut found = match examined {
            Ok(found) => found,
            Err(error) if error.is_permission() => {
                let subject = error.place().unwrap_or("$JS.API.>");
                vec![judge::lacks(subject, "the queue cannot be looked at", Severity::Error)]
            }
            Err(error) => return Err(error),
        };
        for finding in &mut found {
            finding.queue = Some(queue.clone());
        }
        found.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        Ok(found)
    }

    async fn examine(&self, queue: &Queue) -> Result<Vec<Finding>> {
        let streams = self.streams(queue);
        let report = self.plan_queue(queue).await?;
        let all = roles(&streams).map(|(name, _)| name);
        if all.iter().all(|name| report.created.iter().any(|missing| missing.as_str() == *name)) {
            let message = format!("there is no queue {queue}: `tidemill setup {queue}` makes it");
            return Err(Error::new(ErrorKind::NotFound, message));
        }
        let mut found: Vec<Finding> =
            report.created.iter().map(|place| judge::missing(queue, place)).collect();
        for drift in &report.drift {
            let stream = drift.place.split('/').next().unwrap_or_default();
            if let Some(role) = role_of(&streams, stream) {
                found.extend(judge::drifted(queue, role, drift));
            }
        }
        found.extend(self.examine_streams(&streams).await?);
        found.extend(self.examine_consumers(queue, &streams).await?);
        found.extend(self.examine_kinds(queue, &streams).await?);
        found.extend(self.examine_rights(queue, &streams).await);
        found.extend(self.examine_reach(queue, &streams).await?);
        // One option may be told of by what is wanted and by what is bad in itself.
        let mut told = HashSet::new();
        found.retain(|finding| {
            !judge::is_of_one_option(finding.code)
                || told.insert((finding.code, finding.place.clone()))
        });
        Ok(found)
    }

    async fn examine_streams(&self, streams: &StreamNames) -> Result<Vec<Finding>> {
        let mut found = Vec::new();
        for (name, role) in roles(streams) {
            let Some(facts) = self.conn().stream_facts(name).await? else { continue };
            found.extend(judge::stream(name, role, &facts));
            if role == Role::Jobs {
                found.extend(facts.clock_ahead_ms.and_then(judge::clock));
            }
        }
        Ok(found)
    }

    async fn examine_consumers(
        &self,
        queue: &Queue,
        streams: &StreamNames,
    ) -> Result<Vec<Finding>> {
        let mut found = Vec::new();
        let mut ack_wait = Duration::ZERO;
        for (stream, consumer) in consumers(streams) {
            let Some(facts) = self.conn().consumer_facts(stream, consumer).await? else { continue };
            found.extend(judge::consumer(queue, &format!("{stream}/{consumer}"), &facts));
            ack_wait = ack_wait.max(facts.ack_wait());
        }
        if let Some(results) = self.conn().stream_facts(&streams.results).await? {
            let max_age = results.config["max_age"].as_u64().unwrap_or_default();
            let max_age = Duration::from_nanos(max_age);
            found.extend(judge::memory(&streams.results, max_age, ack_wait));
        }
        Ok(found)
    }

    /// The kinds of the oldest jobs, beside what the workers know.
    async fn examine_kinds(&self, queue: &Queue, streams: &StreamNames) -> Result<Vec<Finding>> {
        let oldest = self.conn().batch(&streams.jobs, ">", Start::Sequence(1), KINDS_OF).await;
        let oldest = match oldest {
            Ok(oldest) => oldest.messages,
            Err(error) if error.is_not_found() => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let looked_at = oldest.len();
        let mut kinds = BTreeMap::<Kind, usize>::new();
        for found in oldest.into_iter().filter_map(|stored| self.read_waiting(queue, stored)) {
            *kinds.entry(found.key.kind).or_default() += 1;
        }
        if kinds.is_empty() {
            return Ok(Vec::new());
        }
        let announced = announced_kinds(self.conn(), self.namespace(), queue).await?;
        Ok(judge::unknown_kinds(queue, &kinds, &announced, looked_at))
    }

    /// The rights that workers need, each tried by a request that changes nothing.
    async fn examine_rights(&self, queue: &Queue, streams: &StreamNames) -> Vec<Finding> {
        let (ns, conn) = (self.namespace(), self.conn());
        let mut found = Vec::new();
        let mut lacks = |tried: Result<()>, subject: String, what_for: &str| match tried {
            Err(error) if error.is_permission() => {
                found.push(judge::lacks(&subject, what_for, Severity::Warning));
            }
            // What is missing is told elsewhere.
            Ok(()) | Err(_) => {}
        };
        let records = [
            (RecordKind::Result, "a worker could not store completions"),
            (RecordKind::Attempt, "a worker could not keep count of attempts"),
            (RecordKind::Dead, "a worker could not bury jobs"),
        ];
        for (record, what_for) in records {
            let token = record.token();
            let tried = self.try_publish(format!("{ns}.{token}.{queue}._._._")).await;
            lacks(tried, format!("{ns}.{token}.{queue}.>"), what_for);
        }
        let tried = self.try_publish(format!("{ns}.timers.{queue}.normal._._._")).await;
        let what_for = "a worker could not put jobs off for long";
        lacks(tried, format!("{ns}.timers.{queue}.>"), what_for);
        let tried = self.try_publish(format!("{ns}.jobs.{queue}.normal._._")).await;
        let what_for = "a worker could not bring jobs back whose time has come";
        lacks(tried, format!("{ns}.jobs.{queue}.>"), what_for);
        for stream in [&streams.jobs, &streams.timers, &streams.results, &streams.attempts] {
            let what_for = "a worker could not look up what became of a job";
            let tried = conn.last_of_leader(stream, "_").await.map(drop);
            lacks(tried, format!("$JS.API.STREAM.MSG.GET.{stream}"), what_for);
            let tried = conn.batch(stream, "_", Start::Sequence(1), 1).await.map(drop);
            lacks(tried, format!("$JS.API.DIRECT.GET.{stream}"), what_for);
        }
        for (stream, consumer) in consumers(streams) {
            let place = format!("{stream}.{consumer}");
            let tried = conn.try_pull(stream, consumer).await;
            let what_for = "a worker could not fetch from it";
            lacks(tried, format!("$JS.API.CONSUMER.MSG.NEXT.{place}"), what_for);
            let tried = AckSubject::of_nothing(stream, consumer).in_progress(conn).await;
            lacks(tried, format!("$JS.ACK.{place}.>"), "a worker could not settle jobs");
        }
        found
    }

    /// Publishes what the broker takes in under no circumstances.
    async fn try_publish(&self, subject: String) -> Result<()> {
        let nothing = Headers::new();
        self.conn().store(subject, &nothing, "".into(), Expect::Last(NEVER)).await.map(drop)
    }

    async fn examine_reach(&self, queue: &Queue, streams: &StreamNames) -> Result<Vec<Finding>> {
        let counts = self.count_stuck(queue).await?;
        let stuck = counts.into_iter().filter(|(_, count)| *count > 0).map(|(outlet, count)| {
            let place = format!("{}/{}", outlet.stream(streams), outlet.consumer());
            judge::stuck(queue, &place, count)
        });
        let uncovered = match self.uncovered(queue, &streams.jobs).await {
            Ok(uncovered) => uncovered,
            Err(error) if error.is_not_found() => 0,
            Err(error) => return Err(error),
        };
        let uncovered = (uncovered > 0).then(|| judge::uncovered(&streams.jobs, uncovered));
        Ok(stuck.chain(uncovered).collect())
    }

    /// How many messages are on subjects of no lane, at a moment at which nothing came or went: jobs
    /// that end while they are counted are none of them. Where it never stands still, none are told.
    async fn uncovered(&self, queue: &Queue, jobs: &str) -> Result<u64> {
        for _ in 0..LOOKS {
            let before = self.conn().stream_state(jobs, None).await?;
            let mut on_lanes = 0;
            for lane in Priority::ALL {
                on_lanes += self.messages_on(queue, Outlet::Lane(lane)).await?;
            }
            let uncovered = before.messages.saturating_sub(on_lanes);
            if uncovered == 0 || before.is_as(&self.conn().stream_state(jobs, None).await?) {
                return Ok(uncovered);
            }
            sleep(LOOK_AGAIN).await;
        }
        Ok(0)
    }
}

fn roles(streams: &StreamNames) -> [(&str, Role); 5] {
    [
        (&streams.jobs, Role::Jobs),
        (&streams.timers, Role::Timers),
        (&streams.results, Role::Results),
        (&streams.attempts, Role::Attempts),
        (&streams.dead, Role::Dead),
    ]
}

fn role_of(streams: &StreamNames, name: &str) -> Option<Role> {
    roles(streams).into_iter().find(|(known, _)| *known == name).map(|(_, role)| role)
}

fn consumers(streams: &StreamNames) -> impl Iterator<Item = (&str, &str)> {
    Outlet::ALL.into_iter().map(|outlet| (outlet.stream(streams), outlet.consumer()))
}
