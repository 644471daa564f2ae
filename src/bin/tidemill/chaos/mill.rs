//! The private broker of a run: one server or three, and how each is broken and made whole.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::future::try_join_all;
use tidemill::embedded::{Broker, Cluster};
use tokio::time::{Instant, sleep};

use super::leaders::{Leaders, Monitor, divergence, unsettled};
use crate::output;

/// What all servers are configured with: to leave within seconds when they are told to.
const CONFIG: &str = "lame_duck_grace_period: \"1s\"\nlame_duck_duration: \"30s\"\n";

/// What closes the connections that there are, but for one.
const NO_ROOM: &str = "max_connections: 1\n";

/// How long a server that stutters is stopped, and goes on.
const STOPPED: Duration = Duration::from_millis(700);
const GOES_ON: Duration = Duration::from_millis(150);

/// How long a cluster may take until every copy has caught up.
const CATCH_UP: Duration = Duration::from_secs(60);
/// How long servers may take to hold the same when nothing is under way any more.
const SAME_WITHIN: Duration = Duration::from_secs(10);
const PACE: Duration = Duration::from_millis(100);

pub(super) enum Mill {
    One(Broker),
    Three(Cluster, Monitor),
}

impl Mill {
    pub(super) async fn start(
        nodes: usize,
        jetstream: &str,
        nats_server: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let mut builder =
            Broker::builder().notice(output::to_stderr).config(CONFIG).jetstream_config(jetstream);
        if let Some(server) = nats_server {
            builder = builder.nats_server(server);
        }
        const FAILED: &str = "cannot start a private broker";
        Ok(match nodes {
            1 => Self::One(builder.start().await.context(FAILED)?),
            _ => {
                let cluster = Cluster::start_with(nodes, builder).await.context(FAILED)?;
                Self::Three(cluster, Monitor::new()?)
            }
        })
    }

    pub(super) fn url(&self) -> String {
        match self {
            Self::One(broker) => broker.url().to_owned(),
            Self::Three(cluster, _) => cluster.url(),
        }
    }

    pub(super) fn nodes(&self) -> &[Broker] {
        match self {
            Self::One(broker) => std::slice::from_ref(broker),
            Self::Three(cluster, _) => cluster.nodes(),
        }
    }

    /// Any of the servers.
    pub(super) fn pick(&self, chance: usize) -> usize {
        chance % self.nodes().len()
    }

    /// The processes that run, by name and id.
    pub(super) fn running(&self) -> Vec<(String, u32)> {
        let all = self.nodes().iter().enumerate();
        all.filter_map(|(index, node)| Some((self.name(index), node.pid()?))).collect()
    }

    /// What a server is called.
    pub(super) fn name(&self, index: usize) -> String {
        match self {
            Self::One(_) => "the broker".to_owned(),
            Self::Three(..) => format!("n{}", index + 1),
        }
    }

    /// The index of the server that leads, by the word of those that answer; none where none does.
    pub(super) async fn leader(&self, of: impl Fn(&Leaders) -> Option<&str>) -> Option<usize> {
        let Self::Three(cluster, monitor) = self else { return None };
        for leaders in monitor.ask(cluster.nodes()).await.into_iter().flatten() {
            let Some(name) = of(&leaders) else { continue };
            return (0..self.nodes().len()).find(|index| self.name(*index) == name);
        }
        None
    }

    /// Waits until every server answers and every copy has caught up.
    pub(super) async fn settled(&self) -> anyhow::Result<()> {
        let Self::Three(cluster, monitor) = self else { return Ok(()) };
        let deadline = Instant::now() + CATCH_UP;
        loop {
            let answers = monitor.ask(cluster.nodes()).await;
            match unsettled(&answers) {
                None => return Ok(()),
                Some(why) if Instant::now() > deadline => {
                    bail!("the cluster is not whole again after {} s: {why}", CATCH_UP.as_secs())
                }
                Some(_) => sleep(PACE).await,
            }
        }
    }

    /// Why the servers do not hold the same copies, when nothing is under way any more; they are given a
    /// while for it.
    pub(super) async fn divergence(&self) -> Option<String> {
        let Self::Three(cluster, monitor) = self else { return None };
        let deadline = Instant::now() + SAME_WITHIN;
        loop {
            let why = divergence(&monitor.ask(cluster.nodes()).await)?;
            if Instant::now() > deadline {
                return Some(why);
            }
            sleep(PACE).await;
        }
    }

    /// Closes the connections of all clients, and lets none in for a while.
    pub(super) async fn reset_connections(&self, lasting: Duration) -> anyhow::Result<()> {
        let reload = async |config: String| {
            try_join_all(self.nodes().iter().map(|node| node.reload(config.clone()))).await
        };
        reload(format!("{CONFIG}{NO_ROOM}")).await?;
        sleep(lasting).await;
        reload(CONFIG.to_owned()).await?;
        Ok(())
    }

    /// Stops and continues all servers by turns. Too briefly for another to take the lead, so that all is
    /// answered, and late.
    pub(super) async fn stutter(&self, lasting: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + lasting;
        let in_jerks = async |node: &Broker| {
            while Instant::now() < deadline {
                node.freeze().await?;
                sleep(STOPPED).await;
                node.thaw().await?;
                sleep(GOES_ON).await;
            }
            anyhow::Ok(())
        };
        try_join_all(self.nodes().iter().map(in_jerks)).await?;
        Ok(())
    }

    /// Makes everything whole, whatever was broken.
    pub(super) async fn heal(&self) -> anyhow::Result<()> {
        for node in self.nodes() {
            // One that does not run cannot go on; it is started.
            let _ = node.thaw().await;
        }
        let down = self.nodes().iter().filter(|node| node.pid().is_none());
        try_join_all(down.map(Broker::restart)).await.context("a server does not come back")?;
        try_join_all(self.nodes().iter().map(|node| node.reload(CONFIG)))
            .await
            .context("a server does not take its first configuration again")?;
        self.settled().await
    }

    pub(super) async fn stop(self) -> anyhow::Result<()> {
        match self {
            Self::One(broker) => broker.stop().await?,
            Self::Three(cluster, _) => cluster.stop().await?,
        }
        Ok(())
    }
}
