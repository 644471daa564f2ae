//! The worker registry: each worker is a NATS service (ADR-32), found by asking all at once.
//! `nats micro ls` and `nats micro info tidemill-worker` show the same.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::time::Duration;

use async_nats::service::{Service, ServiceExt};
use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::connection::Connection;
use crate::error::{Error, ErrorKind, Result};
use crate::token::{Kind, Namespace, Queue};

/// The name of the service that every worker is.
const SERVICE: &str = "tidemill-worker";

/// How long to wait for one more worker's answer.
const STALL: Duration = Duration::from_millis(300);

const NAMESPACE: &str = "namespace";
const WORKER: &str = "worker";
const QUEUES: &str = "queues";
const KINDS: &str = "kinds";

/// What a worker tells the others of itself.
#[derive(Clone, Debug)]
pub(crate) struct Announcement {
    pub(crate) worker: String,
    pub(crate) namespace: Namespace,
    pub(crate) queues: Vec<Queue>,
    pub(crate) kinds: Vec<Kind>,
    pub(crate) concurrency: usize,
}

/// A worker's entry in the registry, as long as the connection lasts.
pub(crate) struct Registration {
    /// Cancelled to end it, and when it is dropped.
    end: DropGuard,
    kept: JoinHandle<()>,
}

impl Registration {
    pub(crate) async fn new(conn: &Connection, announcement: &Announcement) -> Result<Self> {
        let renewals = conn.renewals();
        let service = register(conn, announcement).await?;
        let end = CancellationToken::new();
        let keeping = keep(service, renewals, conn.clone(), announcement.clone(), end.clone());
        Ok(Self { end: end.drop_guard(), kept: tokio::spawn(keeping) })
    }

    pub(crate) async fn end(self) {
        drop(self.end);
        let _ = self.kept.await;
    }
}

async fn register(conn: &Connection, announcement: &Announcement) -> Result<Service> {
    conn.living_client()
        .await
        .service_builder()
        .description("works tidemill jobs")
        .metadata(metadata(announcement))
        .start(SERVICE, env!("CARGO_PKG_VERSION"))
        .await
        .map_err(|error| {
            Error::new(ErrorKind::Broker, "cannot register the worker as a NATS service")
                .because(error)
        })
}

/// Registers again with each client that takes the place of one that has died, until `end`.
async fn keep(
    mut service: Service,
    mut renewals: watch::Receiver<Option<u64>>,
    conn: Connection,
    announcement: Announcement,
    end: CancellationToken,
) {
    loop {
        tokio::select! {
            () = end.cancelled() => break,
            changed = renewals.changed() => if changed.is_err() { break },
        }
        match register(&conn, &announcement).await {
            Ok(again) => service = again,
            // That client has died too.
            Err(error) => tracing::debug!(%error, "the worker is not registered"),
        }
    }
    if let Err(error) = service.stop().await {
        tracing::debug!(%error, "the worker's registration did not end cleanly");
    }
}

fn metadata(announcement: &Announcement) -> HashMap<String, String> {
    let join = |tokens: Vec<&str>| tokens.join(",");
    let Announcement { worker, namespace, queues, kinds, concurrency } = announcement;
    HashMap::from([
        (NAMESPACE.into(), namespace.to_string()),
        (WORKER.into(), worker.clone()),
        (QUEUES.into(), join(queues.iter().map(Queue::as_str).collect())),
        (KINDS.into(), join(kinds.iter().map(Kind::as_str).collect())),
        ("concurrency".into(), concurrency.to_string()),
    ])
}

/// The kinds that live workers of a queue announce.
pub(crate) async fn announced_kinds(
    conn: &Connection,
    ns: &Namespace,
    queue: &Queue,
) -> Result<HashSet<Kind>> {
    let subject = format!("$SRV.INFO.{SERVICE}");
    let mut kinds = HashSet::new();
    let hear = |answer: &[u8]| {
        kinds.extend(kinds_of(answer, ns, queue));
        ControlFlow::Continue(())
    };
    conn.gather(subject, Bytes::new(), STALL, hear).await?;
    Ok(kinds)
}

/// The kinds in one worker's answer, if it works that queue.
fn kinds_of(answer: &[u8], ns: &Namespace, queue: &Queue) -> Vec<Kind> {
    #[derive(Deserialize)]
    struct Info {
        #[serde(default)]
        metadata: HashMap<String, String>,
    }
    let Ok(Info { metadata }) = serde_json::from_slice(answer) else { return Vec::new() };
    let list = |name: &str| metadata.get(name).map_or("", String::as_str).split(',');
    let works_it = metadata.get(NAMESPACE).is_some_and(|known| known == ns.as_str())
        && list(QUEUES).any(|known| queue == known);
    if !works_it {
        return Vec::new();
    }
    list(KINDS).filter_map(|kind| Kind::new(kind).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_is_read_back_by_queue() {
        let kind = |text| Kind::new(text).expect("valid");
        let queue = |text| Queue::new(text).expect("valid");
        let told = metadata(&Announcement {
            worker: "w".into(),
            namespace: Namespace::default(),
            queues: vec![queue("mail"), queue("images")],
            kinds: vec![kind("send"), kind("resize")],
            concurrency: 4,
        });
        let answer = serde_json::json!({ "name": SERVICE, "metadata": told }).to_string();
        let heard = |ns: &str, name| {
            kinds_of(answer.as_bytes(), &Namespace::new(ns).expect("valid"), &queue(name))
        };
        assert_eq!(heard("tidemill", "images"), [kind("send"), kind("resize")]);
        assert!(heard("tidemill", "other").is_empty());
        assert!(heard("shop", "images").is_empty());
        assert!(kinds_of(b"rubbish", &Namespace::default(), &queue("mail")).is_empty());
    }
}
