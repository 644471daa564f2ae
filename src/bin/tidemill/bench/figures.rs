//! What was measured, and how it is shown.

use std::time::{Duration, Instant};

use comfy_table::CellAlignment;
use hdrhistogram::Histogram;
use serde::Serialize;
use sysinfo::{Pid, Process, ProcessRefreshKind, ProcessesToUpdate, System};

use crate::output;

/// The figures of one measurement.
#[derive(Debug, Serialize)]
pub(super) struct Figures {
    scenario: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    of: String,
    jobs: u64,
    seconds: f64,
    jobs_per_second: f64,
    #[serde(flatten)]
    usage: Usage,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency: Option<Latency>,
}

/// What processes used up meanwhile. The broker's is known where it is ours.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Usage {
    cpu_seconds: f64,
    rss_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    broker_cpu_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    broker_rss_bytes: Option<u64>,
}

/// Percentiles, in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Latency {
    p50_us: u64,
    p90_us: u64,
    p99_us: u64,
    p999_us: u64,
    max_us: u64,
}

/// Collects durations, to the microsecond.
pub(super) struct Durations(Histogram<u64>);

/// Looks at what processes use.
pub(super) struct Meter {
    broker: Option<Pid>,
}

/// A measurement under way.
pub(super) struct Measuring<'a> {
    meter: &'a Meter,
    since: Instant,
    before: Usage,
}

impl Figures {
    /// With percentiles.
    pub(super) fn latency(mut self, durations: &Durations) -> Self {
        self.latency = Some(durations.percentiles());
        self
    }
}

impl Durations {
    pub(super) fn new() -> anyhow::Result<Self> {
        const LONGEST_US: u64 = 3_600_000_000;
        Ok(Self(Histogram::new_with_bounds(1, LONGEST_US, 3)?))
    }

    pub(super) fn add(&mut self, duration: Duration) {
        self.0.saturating_record(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
    }

    fn percentiles(&self) -> Latency {
        let at = |quantile| self.0.value_at_quantile(quantile);
        Latency {
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: self.0.max(),
        }
    }
}

impl Meter {
    pub(super) fn new(broker: Option<u32>) -> Self {
        Self { broker: broker.map(Pid::from_u32) }
    }

    pub(super) fn start(&self) -> Measuring<'_> {
        Measuring { meter: self, since: Instant::now(), before: self.usage() }
    }

    /// Up to now, since processes began.
    fn usage(&self) -> Usage {
        let ours = Pid::from_u32(std::process::id());
        let pids: Vec<Pid> = [ours].into_iter().chain(self.broker).collect();
        let mut system = System::new();
        let wanted = ProcessRefreshKind::nothing().with_cpu().with_memory();
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&pids), false, wanted);
        let cpu = |process: &Process| process.accumulated_cpu_time() as f64 / 1000.0;
        let (ours, broker) =
            (system.process(ours), self.broker.and_then(|pid| system.process(pid)));
        Usage {
            cpu_seconds: ours.map(cpu).unwrap_or_default(),
            rss_bytes: ours.map(Process::memory).unwrap_or_default(),
            broker_cpu_seconds: broker.map(cpu),
            broker_rss_bytes: broker.map(Process::memory),
        }
    }
}

impl Measuring<'_> {
    /// Ends the measurement, in which that many jobs were done.
    pub(super) fn end(self, scenario: &'static str, of: impl Into<String>, jobs: u64) -> Figures {
        let seconds = self.since.elapsed().as_secs_f64();
        let now = self.meter.usage();
        let broker_cpu = now.broker_cpu_seconds.zip(self.before.broker_cpu_seconds);
        let usage = Usage {
            cpu_seconds: now.cpu_seconds - self.before.cpu_seconds,
            broker_cpu_seconds: broker_cpu.map(|(now, before)| now - before),
            ..now
        };
        let (of, jobs_per_second) = (of.into(), jobs as f64 / seconds);
        Figures { scenario, of, jobs, seconds, jobs_per_second, usage, latency: None }
    }
}

/// All figures, for people.
pub(super) fn table(all: &[Figures]) -> String {
    let header =
        ["", "jobs", "jobs/s", "p50", "p99", "p99.9", "max", "CPU", "RSS", "broker CPU", "RSS"];
    let mut table = output::table(&header);
    for figures in all {
        let latency = |of: fn(&Latency) -> u64| {
            figures.latency.as_ref().map(|latency| millis(of(latency))).unwrap_or_default()
        };
        let Usage { cpu_seconds, rss_bytes, broker_cpu_seconds, broker_rss_bytes } = figures.usage;
        table.add_row([
            format!("{} {}", figures.scenario, figures.of),
            figures.jobs.to_string(),
            format!("{:.0}", figures.jobs_per_second),
            latency(|latency| latency.p50_us),
            latency(|latency| latency.p99_us),
            latency(|latency| latency.p999_us),
            latency(|latency| latency.max_us),
            format!("{cpu_seconds:.2} s"),
            mebibytes(rss_bytes),
            broker_cpu_seconds.map(|seconds| format!("{seconds:.2} s")).unwrap_or_default(),
            broker_rss_bytes.map(mebibytes).unwrap_or_default(),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

fn millis(micros: u64) -> String {
    match micros {
        0..10_000 => format!("{:.2} ms", micros as f64 / 1e3),
        _ => format!("{:.0} ms", micros as f64 / 1e3),
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes / (1024 * 1024))
}
