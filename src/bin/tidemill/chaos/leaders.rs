//! Who leads what in a cluster, and whether all copies are there, by the servers' monitoring pages.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use serde::Deserialize;
use tidemill::embedded::Broker;
use tokio::time::timeout;

use crate::http;

/// How long a server may take to answer; one that is frozen never does.
const PATIENCE: Duration = Duration::from_secs(1);

/// How one server sees the cluster.
#[derive(Debug, Default)]
pub(super) struct Leaders {
    pub(super) meta: Option<String>,
    /// By the name of the stream.
    streams: BTreeMap<String, Group>,
    /// By the names of stream and consumer.
    consumers: BTreeMap<(String, String), Group>,
    /// What its own copy of each stream has in it, by the name of the stream.
    copies: BTreeMap<String, Contents>,
}

/// What a copy of a stream has in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
struct Contents {
    messages: u64,
    bytes: u64,
    first_seq: u64,
    last_seq: u64,
    /// Between first and last.
    #[serde(default)]
    num_deleted: u64,
}

/// A stream's or a consumer's servers.
#[derive(Clone, Debug, Default, Deserialize)]
struct Group {
    #[serde(default)]
    leader: Option<String>,
    #[serde(default)]
    replicas: Vec<Replica>,
}

#[derive(Clone, Debug, Deserialize)]
struct Replica {
    name: String,
    #[serde(default)]
    current: bool,
    #[serde(default)]
    offline: bool,
}

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    meta_cluster: Option<Group>,
    #[serde(default)]
    account_details: Vec<Account>,
}

#[derive(Deserialize)]
struct Account {
    #[serde(default)]
    stream_detail: Vec<Stream>,
}

#[derive(Deserialize)]
struct Stream {
    name: String,
    #[serde(default)]
    cluster: Option<Group>,
    #[serde(default)]
    state: Contents,
    #[serde(default)]
    consumer_detail: Vec<Consumer>,
}

#[derive(Deserialize)]
struct Consumer {
    name: String,
    #[serde(default)]
    cluster: Option<Group>,
}

impl Leaders {
    fn parse(page: &[u8]) -> serde_json::Result<Self> {
        let page: Page = serde_json::from_slice(page)?;
        let mut leaders = Self {
            meta: page.meta_cluster.and_then(|group| group.leader).filter(|name| !name.is_empty()),
            ..Self::default()
        };
        let streams = page.account_details.into_iter().flat_map(|account| account.stream_detail);
        for Stream { name, cluster, state, consumer_detail } in streams {
            leaders.copies.insert(name.clone(), state);
            for consumer in consumer_detail {
                let group = consumer.cluster.unwrap_or_default();
                leaders.consumers.insert((name.clone(), consumer.name), group);
            }
            leaders.streams.insert(name, cluster.unwrap_or_default());
        }
        Ok(leaders)
    }

    pub(super) fn of_stream(&self, stream: &str) -> Option<&str> {
        self.streams.get(stream)?.leader.as_deref().filter(|name| !name.is_empty())
    }

    pub(super) fn of_consumer(&self, stream: &str, consumer: &str) -> Option<&str> {
        let key = (stream.to_owned(), consumer.to_owned());
        self.consumers.get(&key)?.leader.as_deref().filter(|name| !name.is_empty())
    }

    /// Why a stream or consumer is not whole; asked of the server called `name`, which knows it of those
    /// that it leads.
    fn not_whole(&self, name: &str) -> Option<String> {
        let streams = self.streams.iter().map(|(stream, group)| (stream.clone(), group));
        let consumers = self.consumers.iter();
        let consumers =
            consumers.map(|((stream, name), group)| (format!("{stream} {name}"), group));
        for (what, group) in streams.chain(consumers) {
            let Some(leader) = group.leader.as_deref().filter(|leader| !leader.is_empty()) else {
                return Some(format!("{what} has no leader, as {name} sees it"));
            };
            let behind = group.replicas.iter().find(|copy| copy.offline || !copy.current);
            if let Some(copy) = behind.filter(|_| leader == name) {
                return Some(format!("{what} has a copy on {} that lags", copy.name));
            }
        }
        None
    }
}

/// Asks servers for what they know of the cluster.
pub(super) struct Monitor(reqwest::Client);

impl Monitor {
    pub(super) fn new() -> anyhow::Result<Self> {
        http::client().map(Self)
    }

    /// How the servers see the cluster, each that answers.
    pub(super) async fn ask(&self, nodes: &[Broker]) -> Vec<Option<Leaders>> {
        let answers = nodes.iter().map(|node| async {
            node.pid()?;
            timeout(PATIENCE, self.ask_one(&node.monitor_url())).await.ok()?
        });
        join_all(answers).await
    }

    async fn ask_one(&self, monitor_url: &str) -> Option<Leaders> {
        let page = format!("{monitor_url}/jsz?accounts=true&streams=true&consumers=true");
        let page = self.0.get(page).send().await.ok()?.bytes().await.ok()?;
        Leaders::parse(&page).ok()
    }
}

/// Why a cluster whose servers answered so is not whole; they are called `n1`, `n2` and so on.
pub(super) fn unsettled(answers: &[Option<Leaders>]) -> Option<String> {
    for (index, answer) in answers.iter().enumerate() {
        let name = format!("n{}", index + 1);
        let Some(leaders) = answer else { return Some(format!("{name} does not answer")) };
        if leaders.meta.is_none() {
            return Some(format!("{name} knows no leader of the cluster"));
        }
        if let Some(why) = leaders.not_whole(&name) {
            return Some(why);
        }
    }
    // A server that has lost its store does not know at first what it is to have copies of.
    let all = || answers.iter().flatten();
    let has_copies = all().any(|seen| seen.streams.values().any(|of| !of.replicas.is_empty()));
    let counts: Vec<usize> = all().map(|seen| seen.streams.len()).collect();
    let all_alike = counts.windows(2).all(|pair| pair[0] == pair[1]);
    (has_copies && !all_alike).then(|| format!("the servers know of {counts:?} streams"))
}

/// Why the servers that answered so do not hold the same: that of a stream which has copies.
pub(super) fn divergence(answers: &[Option<Leaders>]) -> Option<String> {
    let all: Vec<&Leaders> = answers.iter().flatten().collect();
    let has_copies = |name: &str| {
        let groups = all.iter().filter_map(|seen| seen.streams.get(name));
        groups.into_iter().any(|group| !group.replicas.is_empty())
    };
    let names = all.iter().flat_map(|seen| seen.copies.keys()).filter(|name| has_copies(name));
    for name in names {
        let copies: Vec<Option<&Contents>> = all.iter().map(|seen| seen.copies.get(name)).collect();
        if copies.windows(2).any(|pair| pair[0] != pair[1]) {
            return Some(format!("the servers hold different copies of {name}: {copies:?}"));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(leader: &str, is_current: bool) -> Option<Leaders> {
        let page = format!(
            r#"{{"meta_cluster":{{"leader":"n2"}},"account_details":[{{"name":"$G",
            "stream_detail":[{{"name":"J","cluster":{{"leader":"{leader}","replicas":[
            {{"name":"n2","current":{is_current},"active":1}}]}},
            "consumer_detail":[{{"name":"low","cluster":{{"leader":"n3"}}}}]}}]}}]}}"#
        );
        Some(Leaders::parse(page.as_bytes()).expect("reads"))
    }

    #[test]
    fn leaders_are_read() {
        let leaders = page("n1", true).expect("read");
        assert_eq!(leaders.meta.as_deref(), Some("n2"));
        assert_eq!(leaders.of_stream("J"), Some("n1"));
        assert_eq!(leaders.of_consumer("J", "low"), Some("n3"));
        assert_eq!((leaders.of_stream("other"), leaders.of_consumer("J", "high")), (None, None));
        assert!(Leaders::parse(b"{}").expect("reads").meta.is_none(), "a server on its own");
    }

    #[test]
    fn copies_differ_where_any_server_holds_something_else() {
        let holds = |messages: u64, last: u64| {
            let page = format!(
                r#"{{"account_details":[{{"name":"$G","stream_detail":[{{"name":"J",
                "cluster":{{"leader":"n1","replicas":[{{"name":"n2"}}]}},"state":{{
                "messages":{messages},"bytes":10,"first_seq":1,"last_seq":{last}}}}}]}}]}}"#
            );
            Some(Leaders::parse(page.as_bytes()).expect("reads"))
        };
        for (what, answers, is_same) in [
            ("the same", [holds(2, 3), holds(2, 3), holds(2, 3)], true),
            ("one has a message more", [holds(2, 3), holds(3, 3), holds(2, 3)], false),
            ("one went on to the next", [holds(2, 3), holds(2, 3), holds(2, 4)], false),
            ("one has none of it", [holds(2, 3), Some(Leaders::default()), holds(2, 3)], false),
        ] {
            let found = divergence(&answers);
            assert_eq!(found.is_none(), is_same, "{what}: {found:?}");
        }
        // Without copies there is nothing to compare.
        let alone = || Leaders { streams: BTreeMap::new(), ..holds(2, 3).expect("read") };
        assert_eq!(divergence(&[Some(alone()), Some(Leaders::default())]), None);
    }

    #[test]
    fn a_cluster_is_whole_when_all_say_so() {
        let whole = || page("n1", true);
        assert_eq!(unsettled(&[whole(), whole()]), None);
        let why = |answers: &[Option<Leaders>]| unsettled(answers).expect("not whole");
        assert_eq!(why(&[whole(), None]), "n2 does not answer");
        assert!(why(&[page("", true)]).contains("J has no leader"));
        assert!(why(&[page("n1", false)]).contains("a copy on n2 that lags"));
        // Who does not lead does not know.
        assert_eq!(unsettled(&[whole(), page("n1", false)]), None);
        let wiped = Leaders { meta: Some("n1".into()), ..Leaders::default() };
        assert_eq!(why(&[whole(), Some(wiped)]), "the servers know of [1, 0] streams");
        assert!(why(&[Some(Leaders::default())]).contains("no leader of the cluster"));
    }
}
