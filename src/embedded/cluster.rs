//! Several servers on loopback that form one JetStream cluster; for tests of what clusters do.

use std::net::TcpListener;
use std::time::Duration;

use futures_util::future::try_join_all;
use tokio::time::{Instant, sleep};

use super::Broker;
use crate::error::{Error, ErrorKind, Result};

/// How long the servers may take to agree on a leader.
const LEADER_PATIENCE: Duration = Duration::from_secs(30);

/// A cluster of servers, each with its own temporary folder.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Broker>,
    url: String,
}

impl Cluster {
    /// Starts `size` servers and waits until they have a leader.
    ///
    /// # Errors
    /// Where a server does not start, or they do not agree in time.
    pub async fn start(size: usize) -> Result<Self> {
        let routes = free_ports(size)?;
        let list: Vec<String> =
            routes.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect();
        let list = list.join(", ");
        let starts = routes.iter().enumerate().map(|(index, port)| {
            Broker::builder()
                .server_name(format!("node-{index}"))
                .config(format!(
                    "cluster {{ name: tidemill, listen: \"127.0.0.1:{port}\", routes: [{list}] }}"
                ))
                .start()
        });
        let nodes = try_join_all(starts).await?;
        let urls: Vec<&str> = nodes.iter().map(Broker::url).collect();
        let cluster = Self { url: urls.join(","), nodes };
        cluster.wait_for_leader().await?;
        Ok(cluster)
    }

    /// Where clients connect: all servers, with commas between.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// One of the servers.
    ///
    /// # Panics
    /// Where there is no such server.
    pub fn node(&self, index: usize) -> &Broker {
        &self.nodes[index]
    }

    /// All servers.
    pub fn nodes(&self) -> &[Broker] {
        &self.nodes
    }

    /// Until a stream with a copy on each server can be made.
    async fn wait_for_leader(&self) -> Result<()> {
        let deadline = Instant::now() + LEADER_PATIENCE;
        loop {
            let problem = match crate::broker::probe_replicas(&self.url, self.nodes.len()).await {
                Ok(()) => return Ok(()),
                Err(problem) => problem,
            };
            if Instant::now() >= deadline {
                return Err(Error::new(ErrorKind::Local, "the servers did not form a cluster")
                    .because(problem));
            }
            sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Ports that were free a moment ago. They are let go only after all were found.
fn free_ports(count: usize) -> Result<Vec<u16>> {
    let listeners: Vec<TcpListener> = (0..count)
        .map(|_| TcpListener::bind(("127.0.0.1", 0)))
        .collect::<std::io::Result<_>>()
        .map_err(|error| Error::new(ErrorKind::Local, "there is no free port").because(error))?;
    listeners
        .iter()
        .map(|listener| listener.local_addr().map(|address| address.port()))
        .collect::<std::io::Result<_>>()
        .map_err(|error| Error::new(ErrorKind::Local, "a port cannot be told").because(error))
}
