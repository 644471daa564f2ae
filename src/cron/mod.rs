//! Cron: jobs that the broker enqueues by itself, again and again.
//!
//! An entry is one message on the queue's timers stream. The broker puts out a copy of it whenever it
//! is due, and any worker makes a job of that; there is no scheduler process. Every writer of an entry
//! guards it by its name, whatever its lane and kind, so that changing one is atomic.

mod change;
mod entry;
mod job;
mod reconcile;

pub use change::CronChange;
pub use entry::CronEntry;
pub use job::CronJob;
pub use reconcile::Reconciled;

use crate::client::Client;

/// The cron entries of a namespace: see [`Client::cron`].
///
/// ```no_run
/// # async fn example(client: &tidemill::Client) -> tidemill::Result<()> {
/// # #[derive(serde::Serialize, serde::Deserialize)] struct SendReport {}
/// # impl tidemill::Job for SendReport { const KIND: &'static str = "send_report"; }
/// use tidemill::{CronJob, NewJob, Queue};
///
/// let mornings = "0 9 * * mon-fri".parse::<tidemill::Schedule>()?.in_zone("Europe/Berlin")?;
/// let report = CronJob::new("morning-report", mornings, SendReport {}).skip_overlap();
/// let cleanup = CronJob::new("cleanup", "@hourly".parse()?, NewJob::raw("cleanup", "{}"));
/// // What the code declares is what there is: what it declared before and no longer does is removed.
/// client.cron().reconcile([report, cleanup]).await?;
/// for entry in client.cron().list(&Queue::default()).await? {
///     println!("{} runs next at {:?}", entry.name, entry.next());
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Cron<'a> {
    client: &'a Client,
}

impl Client {
    /// Jobs that the broker enqueues by itself, by cron patterns or at intervals. Needs nats-server
    /// 2.14 or newer.
    pub fn cron(&self) -> Cron<'_> {
        Cron { client: self }
    }
}
