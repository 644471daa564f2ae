//! Carries a plan out: breaks, waits, makes whole, and writes down each.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::try_join;
use tidemill::Priority;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, sleep_until};

use super::crew::Crew;
use super::footprint;
use super::history::{Event, Journal};
use super::mill::Mill;
use super::plan::{Fault, Plan, Step};
use super::stage::Stage;

pub(super) struct Nemesis<'a> {
    pub(super) mill: &'a Mill,
    pub(super) crew: &'a Mutex<Crew>,
    pub(super) journal: &'a Journal,
    pub(super) stage: &'a Stage,
    /// The stream whose leaders are hunted.
    pub(super) jobs_stream: String,
}

impl Nemesis<'_> {
    /// Carries out both rows. A step is late where the one before took longer than planned; one that
    /// could not even begin before the end is left out.
    pub(super) async fn run(&self, plan: &Plan, end: Instant) -> anyhow::Result<()> {
        let began = Instant::now();
        try_join(self.row(&plan.workers, began, end), self.row(&plan.broker, began, end)).await?;
        Ok(())
    }

    async fn row(&self, steps: &[Step], began: Instant, end: Instant) -> anyhow::Result<()> {
        for step in steps {
            sleep_until(began + Duration::from_millis(step.at_ms)).await;
            if Instant::now() >= end {
                return Ok(());
            }
            let what = step.fault.name();
            self.journal.note(Event::Fault { what: what.clone() })?;
            self.inflict(step).await.with_context(|| format!("fault {what}"))?;
            self.journal.note(Event::Healed { what: what.clone() })?;
            self.stage.healed(&what);
            self.look()?;
        }
        Ok(())
    }

    /// Writes down what each process takes of the machine; of workers only where none is broken just now.
    pub(super) fn look(&self) -> anyhow::Result<()> {
        let workers = self.crew.try_lock().map(|crew| crew.running()).unwrap_or_default();
        let all = workers.into_iter().chain(self.mill.running());
        let seen: Vec<Event> = all.filter_map(|(name, pid)| footprint::of(name, pid)).collect();
        self.journal.write(&seen)
    }

    async fn inflict(&self, step: &Step) -> anyhow::Result<()> {
        let lasting = Duration::from_millis(step.for_ms);
        let any = self.mill.pick(step.chance);
        match step.fault {
            Fault::WorkerKilled | Fault::WorkerFrozen => self.hit_worker(step, lasting).await,
            Fault::BrokerKilled | Fault::NodeKilled => self.kill(step, any, lasting).await,
            Fault::BrokerFrozen | Fault::NodeFrozen => self.freeze(step, any, lasting).await,
            Fault::StreamLeaderKilled => {
                let leader = self.stream_leader().await.unwrap_or(any);
                self.kill(step, leader, lasting).await
            }
            Fault::StreamLeaderFrozen => {
                let leader = self.stream_leader().await.unwrap_or(any);
                self.freeze(step, leader, lasting).await
            }
            Fault::ConsumerLeaderKilled => {
                let lane = Priority::ALL[step.chance % Priority::ALL.len()].as_str();
                let of_lane = self.mill.leader(|seen| seen.of_consumer(&self.jobs_stream, lane));
                let leader = of_lane.await.unwrap_or(any);
                self.kill(step, leader, lasting).await
            }
            Fault::MetaLeaderKilled => {
                let leader = self.mill.leader(|seen| seen.meta.as_deref()).await.unwrap_or(any);
                self.kill(step, leader, lasting).await
            }
            Fault::QuorumLost => self.lose_quorum(step, any, lasting).await,
            Fault::RollingRestart => self.restart_all(step).await,
            Fault::RollingUpgradeUnderLoad => self.upgrade(step, any, lasting).await,
            Fault::NodeWiped => {
                self.stage.broken(step, &self.mill.name(any));
                self.mill.nodes()[any].wipe().await?;
                self.bring_back(any, lasting).await
            }
            Fault::LameDuck => {
                self.stage.broken(step, &self.mill.name(any));
                self.mill.nodes()[any].lame_duck().await?;
                self.bring_back(any, lasting).await
            }
            Fault::ServersStutter => {
                self.stage.broken(step, "all");
                self.mill.stutter(lasting).await?;
                self.mill.settled().await
            }
            Fault::ConnectionsReset => {
                self.stage.broken(step, "all");
                self.mill.reset_connections(lasting).await
            }
        }
    }

    async fn hit_worker(&self, step: &Step, lasting: Duration) -> anyhow::Result<()> {
        let mut crew = self.crew.lock().await;
        let index = crew.pick(step.chance);
        self.stage.broken(step, &crew.name(index));
        if step.fault == Fault::WorkerFrozen {
            crew.freeze(index)?;
            sleep(lasting).await;
            return crew.thaw(index);
        }
        crew.kill(index).await?;
        sleep(lasting).await;
        crew.start_one(index).await
    }

    async fn stream_leader(&self) -> Option<usize> {
        self.mill.leader(|seen| seen.of_stream(&self.jobs_stream)).await
    }

    async fn kill(&self, step: &Step, index: usize, lasting: Duration) -> anyhow::Result<()> {
        self.stage.broken(step, &self.mill.name(index));
        self.mill.nodes()[index].kill().await?;
        self.bring_back(index, lasting).await
    }

    async fn bring_back(&self, index: usize, after: Duration) -> anyhow::Result<()> {
        sleep(after).await;
        self.mill.nodes()[index].restart().await?;
        self.mill.settled().await
    }

    async fn freeze(&self, step: &Step, index: usize, lasting: Duration) -> anyhow::Result<()> {
        self.stage.broken(step, &self.mill.name(index));
        let node = &self.mill.nodes()[index];
        node.freeze().await?;
        sleep(lasting).await;
        node.thaw().await?;
        self.mill.settled().await
    }

    async fn lose_quorum(
        &self,
        step: &Step,
        index: usize,
        lasting: Duration,
    ) -> anyhow::Result<()> {
        let nodes = self.mill.nodes();
        let other = (index + 1) % nodes.len();
        let both = format!("{} and {}", self.mill.name(index), self.mill.name(other));
        self.stage.broken(step, &both);
        try_join(nodes[index].kill(), nodes[other].kill()).await?;
        sleep(lasting).await;
        try_join(nodes[index].restart(), nodes[other].restart()).await?;
        self.mill.settled().await
    }

    async fn restart_all(&self, step: &Step) -> anyhow::Result<()> {
        self.stage.broken(step, "one after the other");
        for node in self.mill.nodes() {
            node.restart().await?;
            self.mill.settled().await?;
        }
        Ok(())
    }

    /// Ends each server in turn for its part of the time. A server that comes back gets what it missed as a
    /// snapshot, and only when it leads does it show whether it made sense of it: so the first is one that does
    /// not lead, and then whoever leads is the next.
    async fn upgrade(&self, step: &Step, first: usize, lasting: Duration) -> anyhow::Result<()> {
        self.stage.broken(step, "one after the other");
        let nodes = self.mill.nodes();
        let away = lasting / u32::try_from(nodes.len()).unwrap_or(1);
        let mut left: Vec<usize> = (first..first + nodes.len()).map(|n| n % nodes.len()).collect();
        let mut have_led = BTreeSet::new();
        while !left.is_empty() {
            let leader = self.stream_leader().await;
            let is_next = |index: &usize| (Some(*index) == leader) == (left.len() < nodes.len());
            let index = left.remove(left.iter().position(is_next).unwrap_or_default());
            nodes[index].terminate().await?;
            have_led.remove(&index);
            sleep(away).await;
            have_led.extend(self.stream_leader().await.filter(|leader| !left.contains(leader)));
            nodes[index].restart().await?;
            self.mill.settled().await?;
        }
        self.let_all_lead(have_led).await
    }

    /// Ends whoever leads the jobs stream, until all have led it that were away, or it has gone round.
    async fn let_all_lead(&self, mut have_led: BTreeSet<usize>) -> anyhow::Result<()> {
        let nodes = self.mill.nodes();
        for _ in 0..2 * nodes.len() {
            have_led.extend(self.stream_leader().await);
            if have_led.len() == nodes.len() {
                return Ok(());
            }
            if let Some(leader) = self.stream_leader().await {
                nodes[leader].restart().await?;
                self.mill.settled().await?;
            }
        }
        Ok(())
    }
}
