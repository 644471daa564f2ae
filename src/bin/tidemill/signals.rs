//! Being told to stop: once drains, twice stops now.

use std::future::Future;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::Exit;
use crate::output;

/// The signals by which a program is told to stop.
pub(crate) struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl StopSignals {
    pub(crate) fn new() -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Waits until the program is told to stop.
    pub(crate) async fn told(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// Lets `work` come to its end, unless told to stop once more.
    pub(crate) async fn unless_told_again<T>(
        &mut self,
        work: impl Future<Output = T>,
    ) -> Result<T, Exit> {
        tokio::select! {
            done = work => Ok(done),
            () = self.told() => {
                output::to_stderr("stopping now; what was running comes back to the queue");
                Err(Exit::Interrupted)
            }
        }
    }
}
