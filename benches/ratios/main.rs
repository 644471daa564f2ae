//! tidemill beside plain loops of the client library: on the same broker, in the same run, taking
//! turns. What counts is the ratio; the rates are of this machine at this moment.
//!
//!     cargo bench --bench ratios                     100 000 jobs, three rounds
//!     cargo bench --bench ratios -- 300000 5         so many, so often

mod raw;

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use serde_json::Value;
use tidemill::embedded::Broker;

use crate::raw::{Raw, Record};

const PAYLOAD_BYTES: usize = 256;

/// Jobs that run at once, on tidemill's side.
const CONCURRENCY: &str = "50";

/// What is compared: tidemill's figure, and the loop's.
struct Ratio {
    what: &'static str,
    /// The scenario of `tidemill bench`, and which of its figures.
    scenario: [&'static str; 2],
    raw: Loop,
}

#[derive(Clone, Copy)]
enum Loop {
    Drain(Record),
    PublishOneByOne,
    Publish,
}

const RATIOS: [Ratio; 4] = [
    Ratio {
        what: "drain / fenced completion, then ack",
        scenario: ["drain", ""],
        raw: Loop::Drain(Record::Fenced),
    },
    Ratio {
        what: "drain / completion, then ack",
        scenario: ["drain", ""],
        raw: Loop::Drain(Record::Completion),
    },
    Ratio {
        what: "one awaited enqueue / publish",
        scenario: ["enqueue", "one by one"],
        raw: Loop::PublishOneByOne,
    },
    Ratio { what: "many enqueued / published", scenario: ["enqueue", "bulk"], raw: Loop::Publish },
];

#[tokio::main]
async fn main() -> Result<()> {
    // Cargo adds a flag of its own.
    let mut numbers = std::env::args().skip(1).filter_map(|argument| argument.parse().ok());
    let jobs: u64 = numbers.next().unwrap_or(100_000);
    let rounds = numbers.next().unwrap_or(3);
    let broker = Broker::start().await?;
    let raw = Raw::connect(broker.url()).await?;
    println!("nats-server {}, {jobs} jobs of {PAYLOAD_BYTES} bytes", broker.version());
    println!("{:>38} {:>10} {:>10} {:>7}", "", "tidemill/s", "loop/s", "ratio");
    for Ratio { what, scenario, raw: of } in RATIOS {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            ours.push(tidemill(broker.url(), scenario, jobs)?);
            theirs.push(plain(&raw, of, jobs).await?);
        }
        let (ours, theirs) = (median(ours), median(theirs));
        println!("{what:>38} {ours:>10.0} {theirs:>10.0} {:>7.2}", ours / theirs);
    }
    broker.stop().await.context("cannot stop the broker")
}

/// Jobs per second by `tidemill bench`, a process of its own.
fn tidemill(url: &str, [scenario, of]: [&str; 2], jobs: u64) -> Result<f64> {
    let output = Command::new(env!("CARGO_BIN_EXE_tidemill"))
        .args(["bench", scenario, "--connected", "--json", "--concurrency", CONCURRENCY])
        .args(["--jobs", &jobs.to_string(), "--payload", &PAYLOAD_BYTES.to_string()])
        .env("NATS_URL", url)
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for line in String::from_utf8(output.stdout)?.lines() {
        let figures: Value = serde_json::from_str(line)?;
        if figures["of"].as_str().unwrap_or_default() == of {
            return figures["jobs_per_second"].as_f64().context("a rate");
        }
    }
    anyhow::bail!("tidemill bench {scenario} has no figures of {of:?}")
}

/// Jobs per second by a loop.
async fn plain(raw: &Raw, of: Loop, jobs: u64) -> Result<f64> {
    raw.anew().await?;
    let payload = Bytes::from(vec![b'x'; PAYLOAD_BYTES]);
    let rate = |jobs: u64, took: Duration| jobs as f64 / took.as_secs_f64();
    Ok(match of {
        Loop::Drain(record) => {
            raw.publish(jobs, payload).await?;
            rate(jobs, raw.drain(jobs, record).await?)
        }
        Loop::PublishOneByOne => rate(jobs / 10, raw.publish_one_by_one(jobs / 10, payload).await?),
        Loop::Publish => rate(jobs, raw.publish(jobs, payload).await?),
    })
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
