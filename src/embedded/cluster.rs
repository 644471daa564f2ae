//! Several private servers that form one JetStream cluster on loopback.

use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::Broker;
use super::builder::BrokerBuilder;
use super::config;
use super::port;
use super::ready::Readiness;
use crate::broker::ask;
use crate::error::{Error, ErrorKind, Result};

/// The most replicas a stream of a probe has.
const REPLICAS: usize = 3;

/// How often to ask whether the cluster is ready.
const PACE: Duration = Duration::from_millis(50);

/// How often a cluster is tried on other ports when somebody was faster to take some.
const PORT_TRIES: u32 = 3;

/// A running cluster of nats-servers of our own.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Broker>,
    has_jetstream: bool,
    readiness: Readiness,
}

impl Cluster {
    /// Starts `size` servers in temporary folders, and waits until streams can be created that are
    /// replicated over all (over three of them at most).
    ///
    /// # Errors
    ///
    /// Those of [`BrokerBuilder::start`], and that the cluster elects no leader in time.
    pub async fn start(size: usize) -> Result<Self> {
        Self::start_with(size, Broker::builder()).await
    }

    /// Starts a cluster of such servers. A port is not preferred, and a data folder gets one folder
    /// for each node in it.
    ///
    /// # Errors
    ///
    /// Those of [`start`](Self::start).
    pub async fn start_with(size: usize, template: BrokerBuilder) -> Result<Self> {
        let template = template.found().await?;
        let mut tries = PORT_TRIES;
        let nodes = loop {
            tries -= 1;
            let ports = port::pick_many(size)?;
            match start_nodes(&template, &ports).await {
                Err(_) if tries > 0 && !ports.iter().all(|port| port::is_free(*port)) => {}
                started => break started?,
            }
        };
        let cluster = Self {
            nodes,
            has_jetstream: template.has_jetstream(),
            readiness: template.readiness(),
        };
        cluster.ready().await?;
        Ok(cluster)
    }

    /// Where clients connect: the URLs of all nodes, separated by commas.
    pub fn url(&self) -> String {
        self.nodes.iter().map(Broker::url).collect::<Vec<_>>().join(",")
    }

    /// The nodes, called `n1`, `n2` and so on.
    pub fn nodes(&self) -> &[Broker] {
        &self.nodes
    }

    /// One node, counted from 0.
    ///
    /// # Panics
    ///
    /// When there is none of this index.
    pub fn node(&self, index: usize) -> &Broker {
        &self.nodes[index]
    }

    /// Kills one node, as [`Broker::kill`] does.
    ///
    /// # Errors
    ///
    /// Those of [`Broker::kill`].
    ///
    /// # Panics
    ///
    /// When there is none of this index.
    pub async fn kill(&self, index: usize) -> Result<()> {
        self.node(index).kill().await
    }

    /// Starts one node again, and waits until it takes connections; for the whole cluster see
    /// [`ready`](Self::ready).
    ///
    /// # Errors
    ///
    /// Those of [`Broker::restart`].
    ///
    /// # Panics
    ///
    /// When there is none of this index.
    pub async fn restart(&self, index: usize) -> Result<()> {
        self.node(index).restart().await
    }

    /// Waits until the cluster has a leader and all its nodes, by creating a replicated stream.
    ///
    /// # Errors
    ///
    /// When that takes longer than [`BrokerBuilder::ready_within`].
    pub async fn ready(&self) -> Result<()> {
        if !self.has_jetstream {
            return Ok(());
        }
        let deadline = Instant::now() + self.readiness.within;
        while let Err(problem) = self.probe().await {
            if Instant::now() > deadline {
                let message = format!(
                    "the cluster at {} was not ready in {} s; the log of its first node ends:\n{}",
                    self.url(),
                    self.readiness.within.as_secs(),
                    self.nodes.first().map(|node| node.log_tail(15)).unwrap_or_default(),
                );
                return Err(Error::new(ErrorKind::Timeout, message).because(problem));
            }
            sleep(PACE).await;
        }
        Ok(())
    }

    /// Stops all nodes, as [`Broker::stop`] does.
    ///
    /// # Errors
    ///
    /// The first of [`Broker::stop`].
    pub async fn stop(self) -> Result<()> {
        join_all(self.nodes.into_iter().map(Broker::stop)).await.into_iter().collect()
    }

    async fn probe(&self) -> Result<()> {
        let conn = self.readiness.connect(&self.url()).await?;
        let stream = json!({
            "name": "TIDEMILL_PROBE", "subjects": ["tidemill-probe"], "storage": "memory",
            "retention": "limits", "discard": "old",
            "num_replicas": self.nodes.len().min(REPLICAS),
        });
        ask(&conn, "STREAM.CREATE.TIDEMILL_PROBE", Some(&stream)).await?;
        ask(&conn, "STREAM.DELETE.TIDEMILL_PROBE", None).await
    }
}

/// All at once: a server needs the others to be ready.
async fn start_nodes(template: &BrokerBuilder, ports: &[u16]) -> Result<Vec<Broker>> {
    let nodes = ports.iter().enumerate().map(|(index, port)| {
        let name = format!("n{}", index + 1);
        let routes = config::Cluster { port: *port, routes: ports.to_vec() };
        template.clone().node(&name, routes).start()
    });
    try_join_all(nodes).await
}
