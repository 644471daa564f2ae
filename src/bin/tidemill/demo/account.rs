//! Bookkeeping of the demo: what should become of each job, and what did.

use std::collections::HashMap;
use std::fmt;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use futures_util::TryStreamExt;
use tidemill::{
    Client, Completion, DeadFilter, DeadLetter, JobContext, JobId, Priority, Queue, RecordFilter,
    Since, Status,
};
use tokio::time::timeout;

/// How long no further completion is to come before there is none.
const NO_MORE: Duration = Duration::from_millis(500);

/// What should become of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    Done,
    Buried,
}

/// A first start of a job.
#[derive(Clone, Copy, Debug)]
pub(super) struct Start {
    pub(super) priority: Priority,
    pub(super) waited_ms: u64,
}

/// The books.
#[derive(Default)]
pub(super) struct Account(Mutex<Books>);

#[derive(Default)]
struct Books {
    expected: HashMap<JobId, Expected>,
    starts: Vec<Start>,
    tally: Tally,
}

/// Counts for the progress line.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) done: u64,
    pub(super) buried: u64,
    pub(super) retried: u64,
}

impl Tally {
    pub(super) fn ended(self) -> u64 {
        self.done + self.buried
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} done, {} retried, {} buried", self.done, self.retried, self.buried)
    }
}

/// Whether the books balance.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Verdict {
    /// Jobs without an end.
    pub(super) missing: usize,
    /// Jobs with more than one.
    pub(super) doubled: usize,
    /// Jobs that ended as they should not have.
    pub(super) astray: usize,
    /// Dead letters.
    pub(super) letters: usize,
    /// Dead letters that there should be.
    pub(super) letters_expected: usize,
}

impl Verdict {
    pub(super) fn is_sound(self) -> bool {
        let Self { missing, doubled, astray, letters, letters_expected } = self;
        missing + doubled + astray == 0 && letters == letters_expected
    }
}

impl Account {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(super) fn expect(&self, id: JobId, expected: Expected) {
        self.books().expected.insert(id, expected);
    }

    /// An attempt has started.
    pub(super) fn started(&self, context: &JobContext) {
        let mut books = self.books();
        if context.attempt() > 1 {
            books.tally.retried += 1;
            return;
        }
        let waited = context.started_at() - context.enqueued_at();
        let waited_ms = u64::try_from(waited.num_milliseconds()).unwrap_or_default();
        books.starts.push(Start { priority: context.priority(), waited_ms });
    }

    fn ended(&self, completion: &Completion) {
        let mut books = self.books();
        match completion.status {
            Status::Done => books.tally.done += 1,
            Status::Dead | Status::Cancelled | Status::Expired => books.tally.buried += 1,
        }
    }

    pub(super) fn tally(&self) -> Tally {
        self.books().tally
    }

    pub(super) fn starts(&self) -> Vec<Start> {
        self.books().starts.clone()
    }

    /// Balances the books against the completions and the dead letters that the broker has now.
    pub(super) async fn check(&self, client: &Client, queue: &Queue) -> anyhow::Result<Verdict> {
        let ended = ends(client, queue).await?;
        let letters: Vec<DeadLetter> =
            client.dead_letters(DeadFilter::queue(queue.clone())).try_collect().await?;
        let mut verdict = Verdict { letters: letters.len(), ..Verdict::default() };
        for (id, expected) in &self.books().expected {
            verdict.letters_expected += usize::from(*expected == Expected::Buried);
            match (ended.get(id).map(Vec::as_slice), expected) {
                (None | Some([]), _) => verdict.missing += 1,
                (Some([Status::Done]), Expected::Done)
                | (Some([Status::Dead]), Expected::Buried) => {}
                (Some([_]), _) => verdict.astray += 1,
                (Some([_, _, ..]), _) => verdict.doubled += 1,
            }
        }
        Ok(verdict)
    }
}

/// How often, and how, each job has ended.
async fn ends(client: &Client, queue: &Queue) -> anyhow::Result<HashMap<JobId, Vec<Status>>> {
    let mut ended: HashMap<JobId, Vec<Status>> = HashMap::new();
    let mut completions = pin!(client.completions(all(queue)).await?);
    while let Ok(next) = timeout(NO_MORE, completions.try_next()).await {
        let Some(completion) = next? else { break };
        ended.entry(completion.id).or_default().push(completion.status);
    }
    Ok(ended)
}

/// Counts completions as they come, without end.
pub(super) async fn follow(
    client: &Client,
    queue: &Queue,
    account: &Account,
) -> tidemill::Result<()> {
    let mut completions = pin!(client.completions(all(queue)).await?);
    while let Some(completion) = completions.try_next().await? {
        account.ended(&completion);
    }
    Ok(())
}

fn all(queue: &Queue) -> RecordFilter {
    RecordFilter::queue(queue.clone()).since(Since::Start)
}
