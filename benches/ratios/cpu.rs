//! Processor time, of this process and the broker's.

use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};

/// Seconds since the processes began.
pub(crate) struct Cpu {
    broker: Option<u32>,
    pub(crate) ours: f64,
    pub(crate) brokers: f64,
}

impl Cpu {
    pub(crate) fn of(broker: Option<u32>) -> Self {
        let ours = Pid::from_u32(std::process::id());
        let pids: Vec<Pid> = [ours].into_iter().chain(broker.map(Pid::from_u32)).collect();
        let mut system = System::new();
        let wanted = ProcessRefreshKind::nothing().with_cpu();
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&pids), false, wanted);
        let seconds = |pid| {
            let process = system.process(pid);
            process.map_or(0.0, |process| process.accumulated_cpu_time() as f64 / 1000.0)
        };
        let brokers = broker.map(Pid::from_u32).map(seconds).unwrap_or_default();
        Self { broker, ours: seconds(ours), brokers }
    }

    pub(crate) fn until_now(&self) -> Self {
        let now = Self::of(self.broker);
        let (ours, brokers) = (now.ours - self.ours, now.brokers - self.brokers);
        Self { ours, brokers, ..now }
    }
}
