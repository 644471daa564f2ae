//! What was measured, and how it is shown.

use std::time::Duration;

use comfy_table::CellAlignment;
use hdrhistogram::Histogram;
use serde::Serialize;

use super::meter::Usage;
use crate::output;

/// The figures of one measurement.
#[derive(Debug, Serialize)]
pub(super) struct Figures {
    scenario: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    of: String,
    jobs: u64,
    seconds: f64,
    pub(super) jobs_per_second: f64,
    #[serde(flatten)]
    usage: Usage,
    /// By how much memory grew, once under load.
    rss_growth_bytes: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency: Option<Latency>,
    /// Of something that this was compared with.
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<f64>,
    /// What the ratio is of, for people.
    #[serde(skip)]
    ratio_to: &'static str,
}

/// Percentiles, in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Latency {
    pub(super) p50_us: u64,
    p90_us: u64,
    pub(super) p99_us: u64,
    p999_us: u64,
    max_us: u64,
}

/// Collects durations, to the microsecond.
pub(super) struct Durations(Histogram<u64>);

impl Figures {
    pub(super) fn new(
        scenario: &'static str,
        of: impl Into<String>,
        jobs: u64,
        seconds: f64,
        usage: Usage,
        rss_growth_bytes: i64,
    ) -> Self {
        let (of, jobs_per_second) = (of.into(), jobs as f64 / seconds);
        let (latency, ratio, ratio_to) = (None, None, "");
        Self {
            scenario,
            of,
            jobs,
            seconds,
            jobs_per_second,
            usage,
            rss_growth_bytes,
            latency,
            ratio,
            ratio_to,
        }
    }

    /// With percentiles.
    pub(super) fn latency(mut self, latency: Latency) -> Self {
        self.latency = Some(latency);
        self
    }

    /// With its ratio to something else.
    pub(super) fn ratio(mut self, ratio: f64, to: &'static str) -> Self {
        (self.ratio, self.ratio_to) = (Some(ratio), to);
        self
    }

    fn title(&self) -> String {
        let title = format!("{} {}", self.scenario, self.of);
        match self.ratio {
            Some(ratio) => format!("{}\n{ratio:.2} × {}", title.trim_end(), self.ratio_to),
            None => title,
        }
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

    pub(super) fn percentiles(&self) -> Latency {
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
            figures.title(),
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
