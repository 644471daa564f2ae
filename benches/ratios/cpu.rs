//! Processor time, of this process and the broker's.

use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};
use tidemill::embedded::Broker;

/// Seconds since the processes began.
pub(crate) struct Cpu {
    pid: u32,
    pub(crate) ours: f64,
    pub(crate) brokers: f64,
}

impl Cpu {
    pub(crate) fn of(broker: &Broker) -> Self {
        let pid = broker.pid().unwrap_or_default();
        let pids = [std::process::id(), pid].map(Pid::from_u32);
        let mut system = System::new();
        let wanted = ProcessRefreshKind::nothing().with_cpu();
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&pids), false, wanted);
        let [ours, brokers] = pids.map(|pid| {
            let process = system.process(pid);
            process.map_or(0.0, |process| process.accumulated_cpu_time() as f64 / 1000.0)
        });
        Self { pid, ours, brokers }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    pub(crate) fn until_now(&self, broker: &Broker) -> Self {
        let now = Self::of(broker);
        Self { pid: self.pid, ours: now.ours - self.ours, brokers: now.brokers - self.brokers }
    }
}
