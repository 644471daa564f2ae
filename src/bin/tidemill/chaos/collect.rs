//! `tidemill chaos check`: waits for the queue to be empty, writes down what the broker has of it, and
//! checks the history.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use clap::Args;
use futures_util::stream::Stream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use tidemill::{
    AttemptRecord, Client, Completion, DeadFilter, DeadLetter, JobFilter, JobInfo, JobState, Kind,
    Queue, RecordFilter, Since,
};
use tokio::time::{Instant, sleep, timeout};

use super::check::{Asked, check};
use super::history::{self, Event, Journal, Sealing, Stands, Streams};
use super::piece::{KIND, sum};
use super::report::{self, Report};
use super::{DEFAULT_QUEUE, exit_of};
use crate::cli::Global;
use crate::exit::Exit;

/// How often to look whether the queue is empty.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How long no further record is to come before there is none, although the broker counts more: not
/// all of them need be of our kind.
const NO_MORE: Duration = Duration::from_secs(2);

/// Unfinished jobs that are written down one by one.
const MOST_LEFT: usize = 10_000;

/// Records written by one call.
const AT_ONCE: usize = 1000;

/// Wait until the queue is empty, collect what is on record of its jobs, and check the history.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// The folder with the files of all workers and producers
    #[arg(long, value_name = "DIR")]
    history: PathBuf,
    /// How many seconds the queue may take to be empty
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    within: u64,
    /// The queue
    #[arg(long, default_value = DEFAULT_QUEUE)]
    queue: Queue,
    /// Faults that were done and that the history does not tell of
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    faults: u64,
    /// Ask no broker: check what an earlier check has collected
    #[arg(long)]
    offline: bool,
}

pub(super) async fn run(global: &Global, args: CheckArgs) -> anyhow::Result<Exit> {
    if !args.offline {
        let client = global.client().await?;
        let within = Duration::from_secs(args.within);
        collect(&client, &args.queue, &args.history, within).await?;
        client.close().await?;
    }
    let report = check_folder(&args.history, Asked { faults: args.faults })?;
    report::tell(global, &report, None)?;
    Ok(exit_of(&report))
}

/// Checks what is in a folder.
pub(super) fn check_folder(folder: &Path, asked: Asked) -> anyhow::Result<Report> {
    Ok(check(&history::read(folder)?, asked))
}

/// Waits until the queue is empty, and writes down what the broker has of it.
pub(super) async fn collect(
    client: &Client,
    queue: &Queue,
    folder: &Path,
    within: Duration,
) -> anyhow::Result<()> {
    let journal = Journal::collected(folder)?;
    if is_emptied(client, queue, within).await {
        journal.note(Event::Emptied)?;
    }
    let info = client.queue_info(queue).await?;
    let filter = RecordFilter::queue(queue.clone()).kind(Kind::new(KIND)?).since(Since::Start);
    let completions = client.completions(filter.clone()).await?;
    let ended = write_all(&journal, completions, info.results, |completion| {
        let Completion { id, run, status, attempt, .. } = completion;
        Event::Completion { id: id.to_string(), run: run.to_string(), status, attempt }
    });
    ended.await?;
    let entries = client.attempts(filter).await?;
    let entered = write_all(&journal, entries, info.ledger, |entry| {
        let AttemptRecord { id, run, attempt, event, worker, .. } = entry;
        Event::Ledger { id: id.to_string(), run: run.to_string(), attempt, what: event, worker }
    });
    entered.await?;
    let letters = client.dead_letters(DeadFilter::queue(queue.clone()).kind(Kind::new(KIND)?));
    let buried = write_all(&journal, letters, info.dead, |letter| {
        let sealing = match letter.sealed_with() {
            Some(_) => Sealing::Sealed,
            None => Sealing::Open,
        };
        // One that does not open has a sum that no job has.
        let payload = letter.open(client).unwrap_or_default();
        let DeadLetter { id, run, info, .. } = letter;
        let (id, run, sum) = (id.to_string(), run.to_string(), sum(&payload));
        Event::Letter { id, run, attempts: info.attempts, reason: info.reason, sealing, sum }
    });
    buried.await?;
    let unfinished = client.jobs(JobFilter::queue(queue.clone()));
    let left = write_all(&journal, unfinished.take(MOST_LEFT), info.jobs + info.timers, |job| {
        let JobInfo { id, run, state, .. } = job;
        Event::Left { id: id.to_string(), run: run.to_string(), stands: stands(&state) }
    });
    left.await?;
    journal.note(Event::Streams(Streams {
        jobs: info.jobs,
        waiting: info.lanes.iter().map(|lane| lane.waiting).sum(),
        unsettled: info.lanes.iter().map(|lane| lane.unsettled).sum(),
        timers: info.timers,
        results: info.results,
        dead: info.dead,
    }))
}

fn stands(state: &JobState) -> Stands {
    match state {
        JobState::Running(_) => Stands::Running,
        JobState::BackingOff(_) => Stands::BackingOff,
        JobState::Scheduled(_) => Stands::Scheduled,
        // A job that has ended is none that is left; whatever comes later waits for somebody who knows it.
        JobState::Waiting | JobState::Ended(_) | _ => Stands::Waiting,
    }
}

/// Whether the queue has no unfinished job before the time is over. A broker that does not answer is
/// asked again.
async fn is_emptied(client: &Client, queue: &Queue, within: Duration) -> bool {
    let deadline = Instant::now() + within;
    let emptied = async {
        loop {
            match client.unfinished(queue).await {
                Ok(0) => match client.wait_empty(queue).await {
                    Ok(()) => return,
                    Err(error) => tracing::debug!(%error, "cannot look at the queue yet"),
                },
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "cannot look at the queue yet"),
            }
            sleep(LOOK_EVERY).await;
        }
    };
    tokio::time::timeout_at(deadline, emptied).await.is_ok()
}

/// Writes down all records that there are; `expected` is how many the broker counts.
async fn write_all<R>(
    journal: &Journal,
    records: impl Stream<Item = tidemill::Result<R>>,
    expected: u64,
    to_event: impl Fn(R) -> Event,
) -> anyhow::Result<()> {
    let mut records = pin!(records);
    let (mut events, mut seen) = (Vec::with_capacity(AT_ONCE), 0);
    while seen < expected {
        let Ok(next) = timeout(NO_MORE, records.try_next()).await else { break };
        let Some(record) = next? else { break };
        seen += 1;
        events.push(to_event(record));
        if events.len() == AT_ONCE {
            journal.write(&std::mem::take(&mut events))?;
        }
    }
    journal.write(&events)
}
