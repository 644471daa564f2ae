//! tidemill beside plain loops of the client library: on the same broker, in the same run, taking
//! turns. What counts is the ratio; the rates are of this machine at this moment.
//!
//!     cargo bench --bench ratios                       all, 200 000 jobs, three rounds
//!     cargo bench --bench ratios -- --jobs 500000 --rounds 5
//!     cargo bench --bench ratios -- drain              rows whose name has this in it
//!     cargo bench --bench ratios -- --sync-always      with a broker that writes through

mod cpu;
mod raw;

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clap::Parser;
use serde_json::Value;
use tidemill::embedded::Broker;

use crate::cpu::Cpu;
use crate::raw::{Raw, Record};

/// The allocator of the `tidemill` program, so that the loops have no worse one.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PAYLOAD_BYTES: usize = 256;

/// Jobs that run at once, on tidemill's side.
const CONCURRENCY: &str = "50";

/// Messages of a latency measurement: one at a time, they take their time.
const MOST_FOR_LATENCY: u64 = 2_000;

#[derive(Parser)]
struct Args {
    /// Only rows whose name has this in it
    rows: Vec<String>,
    /// How many jobs; of much fewer, the broker collects its garbage on one side only
    #[arg(long, default_value_t = 200_000)]
    jobs: u64,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Let the broker write every message through to the disk
    #[arg(long)]
    sync_always: bool,
    /// What cargo adds
    #[arg(long, hide = true)]
    bench: bool,
    /// Be the process of a loop: which, at this server
    #[arg(long, hide = true, num_args = 2)]
    as_loop: Option<Vec<String>>,
}

/// What is compared, and what the ratio should be.
struct Row {
    what: &'static str,
    /// Arguments of `tidemill bench`, and which of its figures counts.
    tidemill: &'static [&'static str],
    of: &'static str,
    beside: Beside,
    target: Target,
}

/// What tidemill's figure is set beside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Beside {
    /// The rate of a loop.
    Drain(Record),
    PublishOneByOne,
    Publish,
    /// The median time from publish to receive.
    Latency,
    /// Another figure of tidemill's own, which it tells itself.
    Itself,
}

#[derive(Clone, Copy)]
enum Target {
    AtLeast(f64),
    AtMost(f64),
}

const ROWS: [Row; 11] = [
    Row {
        what: "drain / fenced completion, then ack",
        tidemill: &["drain"],
        of: "",
        beside: Beside::Drain(Record::Fenced),
        target: Target::AtLeast(1.3),
    },
    Row {
        what: "drain / completion, then ack",
        tidemill: &["drain"],
        of: "",
        beside: Beside::Drain(Record::Completion),
        target: Target::AtLeast(1.1),
    },
    Row {
        what: "drain / fenced completions in batches, then ack",
        tidemill: &["drain"],
        of: "",
        beside: Beside::Drain(Record::FencedTogether),
        target: Target::AtLeast(0.9),
    },
    Row {
        what: "drain without completions / ack",
        tidemill: &["drain", "--no-completions"],
        of: "",
        beside: Beside::Drain(Record::Nothing),
        target: Target::AtLeast(0.9),
    },
    Row {
        what: "bulk enqueue / publish",
        tidemill: &["enqueue"],
        of: "bulk",
        beside: Beside::Publish,
        target: Target::AtLeast(1.2),
    },
    Row {
        what: "bulk enqueue / publish one by one",
        tidemill: &["enqueue"],
        of: "bulk",
        beside: Beside::PublishOneByOne,
        target: Target::AtLeast(1.0),
    },
    Row {
        what: "one awaited enqueue / publish one by one",
        tidemill: &["enqueue"],
        of: "one by one",
        beside: Beside::PublishOneByOne,
        target: Target::AtLeast(0.95),
    },
    Row {
        what: "latency: enqueue to start / publish to receive",
        tidemill: &["latency"],
        of: "to start",
        beside: Beside::Latency,
        target: Target::AtMost(1.25),
    },
    Row {
        what: "priority: critical p99 in a flood / idle",
        tidemill: &["priority"],
        of: "critical, under a flood of low",
        beside: Beside::Itself,
        target: Target::AtMost(3.0),
    },
    Row {
        what: "backlog: drain with 1M waiting / 10k",
        tidemill: &["backlog", "--waiting", "10000,1000000"],
        of: "1000000 waiting",
        beside: Beside::Itself,
        target: Target::AtLeast(0.9),
    },
    Row {
        what: "scale: 2 workers / twice one",
        tidemill: &["scale", "--processes", "1,2"],
        of: "2 processes",
        beside: Beside::Itself,
        target: Target::AtLeast(0.9),
    },
];

/// A figure, and the processor time in microseconds that each job cost: tidemill's or the loop's, and
/// the broker's.
#[derive(Clone, Copy)]
struct Measured {
    figure: f64,
    cpu_us: f64,
    broker_cpu_us: f64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    if let Some([name, url]) = args.as_loop.as_deref() {
        let (name, url) = (name.clone(), url.clone());
        // A task, as tidemill's is.
        return tokio::spawn(async move { be_loop(&name, &url, args.jobs).await }).await?;
    }
    let mut broker = Broker::builder();
    if args.sync_always {
        broker = broker.jetstream_config("sync_interval: always");
    }
    let broker = broker.start().await?;
    println!(
        "nats-server {}, {} jobs of {PAYLOAD_BYTES} bytes, {} rounds in turn, the median",
        broker.version(),
        args.jobs,
        args.rounds
    );
    println!("{:>47}  ratio  target  tidemill        loop   CPU+broker's a job", "");
    for row in ROWS {
        let wanted = |part: &String| row.what.contains(part.as_str());
        if args.rows.is_empty() || args.rows.iter().any(wanted) {
            compare(&broker, &row, &args)?;
        }
    }
    broker.stop().await.context("cannot stop the broker")
}

fn compare(broker: &Broker, row: &Row, args: &Args) -> Result<()> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..args.rounds {
        ours.push(tidemill(broker, row, args.jobs)?);
        if row.beside != Beside::Itself {
            theirs.push(plain(broker, row.beside, args.jobs)?);
        }
    }
    let ours = median(ours).context("there is a round")?;
    let theirs = median(theirs);
    let ratio = theirs.map_or(ours.figure, |theirs| ours.figure / theirs.figure);
    let (is_met, target) = match row.target {
        Target::AtLeast(least) => (ratio >= least, format!("≥ {least:.2}")),
        Target::AtMost(most) => (ratio <= most, format!("≤ {most:.2}")),
    };
    let mark = if is_met { ' ' } else { '!' };
    print!("{:>47}  {ratio:>5.2}{mark} {target}", row.what);
    if let Some(theirs) = theirs {
        print!("  {:>8.0}  {:>10.0}", ours.figure, theirs.figure);
        for Measured { cpu_us, broker_cpu_us, .. } in [ours, theirs] {
            print!("   {cpu_us:>4.1} + {broker_cpu_us:.1} µs");
        }
    }
    println!();
    Ok(())
}

/// What `tidemill bench` tells, a process of its own.
fn tidemill(broker: &Broker, row: &Row, jobs: u64) -> Result<Measured> {
    let pid = broker.pid().context("the broker runs")?;
    let output = Command::new(env!("CARGO_BIN_EXE_tidemill"))
        .arg("bench")
        .args(row.tidemill)
        .args(["--connected", "--json", "--concurrency", CONCURRENCY])
        .args(["--jobs", &jobs.to_string(), "--payload", &PAYLOAD_BYTES.to_string()])
        .args(["--broker-pid", &pid.to_string()])
        .env("NATS_URL", broker.url())
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for line in String::from_utf8(output.stdout)?.lines() {
        let figures: Value = serde_json::from_str(line)?;
        if figures["of"].as_str().unwrap_or_default() != row.of {
            continue;
        }
        let figure = match row.beside {
            Beside::Itself => &figures["ratio"],
            Beside::Latency => &figures["latency"]["p50_us"],
            Beside::Drain(_) | Beside::PublishOneByOne | Beside::Publish => {
                &figures["jobs_per_second"]
            }
        };
        let number = |value: &Value| value.as_f64().context("a number");
        let each = 1e6 / number(&figures["jobs"])?;
        return Ok(Measured {
            figure: number(figure)?,
            cpu_us: number(&figures["cpu_seconds"])? * each,
            broker_cpu_us: number(&figures["broker_cpu_seconds"])? * each,
        });
    }
    anyhow::bail!("tidemill bench {:?} has no figures of {:?}", row.tidemill, row.of)
}

/// What a loop comes to, in a process of its own too.
fn plain(broker: &Broker, beside: Beside, jobs: u64) -> Result<Measured> {
    let pid = broker.pid().context("the broker runs")?;
    let output = Command::new(std::env::current_exe()?)
        .args(["--jobs", &jobs.to_string(), "--as-loop", &format!("{beside:?}")])
        .arg(broker.url())
        .env(BROKER_PID, pid.to_string())
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told = String::from_utf8(output.stdout)?;
    let mut figures = told.split_whitespace().map(str::parse);
    let mut next = || anyhow::Ok(figures.next().context("a figure")??);
    Ok(Measured { figure: next()?, cpu_us: next()?, broker_cpu_us: next()? })
}

/// Where a loop is told of the broker's process.
const BROKER_PID: &str = "RATIOS_BROKER_PID";

/// Measures a loop, and tells its figure and the processor time of each job.
async fn be_loop(name: &str, url: &str, jobs: u64) -> Result<()> {
    let beside = ROWS.iter().map(|row| row.beside).find(|beside| format!("{beside:?}") == name);
    let beside = beside.with_context(|| format!("there is no loop {name}"))?;
    let broker = std::env::var(BROKER_PID)?.parse().ok();
    let raw = Raw::connect(url).await?;
    raw.anew().await?;
    let payload = Bytes::from(vec![b'x'; PAYLOAD_BYTES]);
    if let Beside::Drain(_) = beside {
        raw.publish(jobs, payload.clone()).await?;
    }
    let before = Cpu::of(broker);
    let rate = |jobs: u64, took: Duration| (jobs, jobs as f64 / took.as_secs_f64());
    let (jobs, figure) = match beside {
        Beside::Itself => anyhow::bail!("that is no loop"),
        Beside::Drain(record) => rate(jobs, raw.drain(jobs, record).await?),
        Beside::PublishOneByOne => {
            let jobs = jobs / 10;
            rate(jobs, raw.publish_one_by_one(jobs, payload).await?)
        }
        Beside::Publish => rate(jobs, raw.publish(jobs, payload).await?),
        Beside::Latency => {
            let jobs = jobs.min(MOST_FOR_LATENCY);
            (jobs, raw.latency(jobs, payload).await?.as_secs_f64() * 1e6)
        }
    };
    let used = before.until_now();
    let each = |seconds: f64| seconds * 1e6 / jobs as f64;
    println!("{figure} {} {}", each(used.ours), each(used.brokers));
    Ok(())
}

/// The round with the middle figure.
fn median(mut rounds: Vec<Measured>) -> Option<Measured> {
    rounds.sort_by(|one, other| one.figure.total_cmp(&other.figure));
    rounds.get(rounds.len() / 2).copied()
}
