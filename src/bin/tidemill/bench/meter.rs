//! What processes use: processor time, and memory over a while.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use sysinfo::{Pid, Process, ProcessRefreshKind, ProcessesToUpdate, System};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;

use super::figures::Figures;

/// How often memory is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Looks at what processes use.
#[derive(Clone)]
pub(super) struct Meter {
    /// This one and its workers'.
    ours: Vec<Pid>,
    /// Known where the broker is ours.
    broker: Option<Pid>,
}

/// A measurement under way.
pub(super) struct Measuring {
    meter: Meter,
    since: Instant,
    before: Usage,
    memory: Arc<Mutex<Memory>>,
    _looking: AbortOnDropHandle<()>,
}

/// What processes used up meanwhile.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Usage {
    pub(super) cpu_seconds: f64,
    /// The most memory at any time.
    pub(super) rss_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) broker_cpu_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) broker_rss_bytes: Option<u64>,
}

/// Memory as it was seen time after time.
#[derive(Default)]
struct Memory {
    ours: Vec<u64>,
    broker: Option<u64>,
}

impl Meter {
    pub(super) fn new(broker: Option<u32>) -> Self {
        let ours = vec![Pid::from_u32(std::process::id())];
        Self { ours, broker: broker.map(Pid::from_u32) }
    }

    /// With the processes of workers.
    pub(super) fn and(&self, workers: impl IntoIterator<Item = u32>) -> Self {
        let workers = workers.into_iter().map(Pid::from_u32);
        Self { ours: self.ours.iter().copied().chain(workers).collect(), broker: self.broker }
    }

    pub(super) fn start(&self) -> Measuring {
        let memory = Arc::<Mutex<Memory>>::default();
        let (meter, seen) = (self.clone(), memory.clone());
        let looking = tokio::spawn(async move {
            let mut ticks = interval(LOOK_EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let usage = meter.usage();
                seen.lock().unwrap_or_else(PoisonError::into_inner).saw(usage);
            }
        });
        Measuring {
            meter: self.clone(),
            since: Instant::now(),
            before: self.usage(),
            memory,
            _looking: AbortOnDropHandle::new(looking),
        }
    }

    /// Up to now, since processes began.
    fn usage(&self) -> Usage {
        let pids: Vec<Pid> = self.ours.iter().copied().chain(self.broker).collect();
        let mut system = System::new();
        let wanted = ProcessRefreshKind::nothing().with_cpu().with_memory();
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&pids), false, wanted);
        let cpu = |process: &Process| process.accumulated_cpu_time() as f64 / 1000.0;
        let ours = || self.ours.iter().filter_map(|pid| system.process(*pid));
        let broker = self.broker.and_then(|pid| system.process(pid));
        Usage {
            cpu_seconds: ours().map(cpu).sum(),
            rss_bytes: ours().map(Process::memory).sum(),
            broker_cpu_seconds: broker.map(cpu),
            broker_rss_bytes: broker.map(Process::memory),
        }
    }
}

impl Measuring {
    /// Ends the measurement, in which that many jobs were done.
    pub(super) fn end(self, scenario: &'static str, of: impl Into<String>, jobs: u64) -> Figures {
        let seconds = self.since.elapsed().as_secs_f64();
        let now = self.meter.usage();
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.saw(now);
        let broker_cpu = now.broker_cpu_seconds.zip(self.before.broker_cpu_seconds);
        let usage = Usage {
            cpu_seconds: now.cpu_seconds - self.before.cpu_seconds,
            rss_bytes: memory.ours.iter().copied().max().unwrap_or_default(),
            broker_cpu_seconds: broker_cpu.map(|(now, before)| now - before),
            broker_rss_bytes: memory.broker,
        };
        Figures::new(scenario, of, jobs, seconds, usage, memory.growth())
    }
}

impl Memory {
    fn saw(&mut self, usage: Usage) {
        self.ours.push(usage.rss_bytes);
        self.broker = self.broker.max(usage.broker_rss_bytes);
    }

    /// By how much the last quarter's mean is above the second's. (In the first, buffers grow to what
    /// the load needs.)
    fn growth(&self) -> i64 {
        let quarter = self.ours.len() / 4;
        let mean = |of: &[u64]| of.iter().sum::<u64>() as i64 / of.len().max(1) as i64;
        let second = self.ours.get(quarter..2 * quarter).unwrap_or_default();
        let last = self.ours.get(self.ours.len() - quarter..).unwrap_or_default();
        mean(last) - mean(second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_grows_is_told_from_memory_that_is_taken_at_the_start() {
        let of = |ours: Vec<u64>| Memory { ours, broker: None }.growth();
        assert_eq!(of((0..100).map(|n| if n < 20 { n } else { 50 }).collect()), 0);
        assert_eq!(of((0..100).collect()), 50);
        assert_eq!(of(vec![7]), 0);
        assert_eq!(of(Vec::new()), 0);
    }
}
