//! `tidemill chaos producer`: enqueues jobs at a rate and notes what it was told of each.
//!
//! The rate is kept whatever happens to the jobs before. What is not known of an enqueue is noted as
//! unknown, and nobody enqueues that job again.

mod later;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use futures_util::future::join_all;
use tidemill::{Client, Error, JobHandle, NewJob, Priority, Queue};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::history::{Event, Journal, Sealing};
use super::piece::{Entry, Load, Piece};
use super::{RoleArgs, number_of, told_to_end};
use crate::cli::Global;
use crate::exit::Exit;
use crate::login::Given;
use crate::output;
use crate::signals::StopSignals;

/// Calls under way at once; beyond, the producer waits.
const UNDER_WAY: usize = 4000;

/// The most jobs of one call.
const TOGETHER: usize = 10;

/// Enqueue jobs at a rate: on all lanes, some that fail once or twice, some that always fail, some with
/// a delay; and note what became of every enqueue. With --seal-keys their payloads are sealed.
#[derive(Debug, Args)]
pub(crate) struct ProducerArgs {
    #[command(flatten)]
    role: RoleArgs,
    /// How many jobs
    #[arg(long, required_unless_present = "fill", default_value_t = 0)]
    jobs: u64,
    /// Instead of such, put as many as this on each lane, all at once, that succeed in some 30 ms
    #[arg(long, value_name = "JOBS", conflicts_with_all = ["jobs", "rate"])]
    fill: Option<u64>,
    /// What the jobs are
    #[arg(long, value_enum, default_value_t = Load::Plain, conflicts_with = "fill")]
    load: Load,
    /// Jobs in a second
    #[arg(long, default_value_t = 100.0)]
    rate: f64,
    /// What the jobs follow from; 1 unless set
    #[arg(long, value_name = "NUMBER")]
    seed: Option<Given>,
}

pub(super) async fn run(global: &Global, args: ProducerArgs) -> anyhow::Result<Exit> {
    anyhow::ensure!(args.rate > 0.0, "rate is {}: use more than 0 jobs a second", args.rate);
    let mut signals = StopSignals::new()?;
    let journal = Arc::new(Journal::open(&args.role.history, &args.role.name)?);
    let sealing = if global.keys.seals() { Sealing::Sealed } else { Sealing::Open };
    let (client, queue) = (global.client().await?, args.role.queue.clone());
    let producer = Producer { client, queue, journal, sealing };
    let seed = number_of(args.seed.as_ref())?.unwrap_or(1);
    let ProducerArgs { jobs, rate, .. } = args;
    producer.journal.note(Event::Producing { seed, jobs, rate })?;
    output::line("ready")?;
    if let Some(each) = args.fill {
        producer.fill(&args.role.name, seed, each).await?;
        output::line("done")?;
        return Ok(Exit::Ok);
    }
    let mut under_way = JoinSet::new();
    tokio::select! {
        produced = producer.produce(&args, seed, &mut under_way) => produced?,
        () = told_to_end(&args.role, &mut signals) => {}
    }
    // Each of them ends by itself, known or unknown.
    while let Some(ended) = under_way.join_next().await {
        ended??;
    }
    output::line("done")?;
    Ok(Exit::Ok)
}

#[derive(Clone)]
struct Producer {
    client: Client,
    queue: Queue,
    journal: Arc<Journal>,
    sealing: Sealing,
}

impl Producer {
    async fn produce(
        &self,
        args: &ProducerArgs,
        seed: u64,
        under_way: &mut JoinSet<anyhow::Result<()>>,
    ) -> anyhow::Result<()> {
        let began = Instant::now();
        let mut n = 0;
        while n < args.jobs {
            let pieces = together(args.load, &args.role.name, seed, n..args.jobs);
            n += pieces.len() as u64;
            sleep_until(began + Duration::from_secs_f64(n as f64 / args.rate)).await;
            while under_way.len() >= UNDER_WAY {
                under_way.join_next().await.context("one ends")???;
            }
            under_way.spawn(self.clone().enqueue(pieces));
            while let Some(ended) = under_way.try_join_next() {
                ended??;
            }
        }
        Ok(())
    }

    /// Puts so many jobs on each lane.
    async fn fill(&self, name: &str, seed: u64, each: u64) -> anyhow::Result<()> {
        let lanes = Priority::ALL.len() as u64;
        let pieces: Vec<Piece> =
            (0..each * lanes).map(|n| Piece::of_filling(name, seed, n)).collect();
        for some in pieces.chunks(UNDER_WAY) {
            self.clone().enqueue(some.to_vec()).await?;
        }
        Ok(())
    }

    async fn enqueue(self, pieces: Vec<Piece>) -> anyhow::Result<()> {
        let (mut jobs, mut attempted) = (Vec::new(), Vec::new());
        for piece in &pieces {
            let payload = piece.payload()?;
            attempted.push(piece.attempted(&payload, self.sealing));
            jobs.push(piece.job(self.queue.as_str(), payload));
        }
        self.journal.write(&attempted)?;
        let outcomes = self.send(pieces[0].entry, jobs).await;
        let (mut noted, mut stored) = (Vec::new(), Vec::new());
        for (piece, outcome) in pieces.into_iter().zip(outcomes) {
            let event = outcome_of(piece.id.clone(), outcome);
            if matches!(event, Event::Ok { .. }) {
                stored.push(piece);
            }
            noted.push(event);
        }
        self.journal.write(&noted)?;
        for piece in stored {
            self.do_later(&piece).await?;
        }
        Ok(())
    }

    async fn send(&self, entry: Entry, jobs: Vec<NewJob>) -> Vec<Result<JobHandle, Failure>> {
        let count = jobs.len();
        let each = |stored: Vec<tidemill::Result<JobHandle>>| {
            stored.into_iter().map(|stored| stored.map_err(|error| failure(&error))).collect()
        };
        match entry {
            Entry::Single => each(
                join_all(jobs.into_iter().map(|job| self.client.enqueue(job).into_future())).await,
            ),
            Entry::Many => each(self.client.enqueue_many(jobs).await),
            Entry::All => match self.client.enqueue_all(jobs).await {
                Ok(handles) => handles.into_iter().map(Ok).collect(),
                Err(error) => {
                    let failure = failure(&error);
                    (0..count).map(|_| Err(failure.clone())).collect()
                }
            },
        }
    }
}

/// The next jobs, which go by one call.
fn together(load: Load, name: &str, seed: u64, numbers: std::ops::Range<u64>) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    for n in numbers {
        let piece = Piece::of(load, name, seed, n);
        let goes_along = match pieces.first() {
            None => true,
            Some(first) => first.entry == piece.entry && piece.entry != Entry::Single,
        };
        if !goes_along || pieces.len() == TOGETHER {
            break;
        }
        pieces.push(piece);
    }
    pieces
}

/// What an enqueue failed with.
#[derive(Clone, Debug)]
enum Failure {
    Unknown(String),
    Refused(String),
}

fn failure(error: &Error) -> Failure {
    match error.is_unknown() {
        true => Failure::Unknown(error.to_string()),
        false => Failure::Refused(error.to_string()),
    }
}

fn outcome_of(id: String, outcome: Result<JobHandle, Failure>) -> Event {
    match outcome {
        Ok(handle) if handle.is_duplicate() => {
            Event::Duplicate { id, of: Some(handle.run().to_string()) }
        }
        Ok(handle) => Event::Ok { id, run: handle.run().to_string(), sequence: handle.sequence() },
        Err(Failure::Unknown(error)) => Event::Unknown { id, error },
        Err(Failure::Refused(error)) => Event::Refused { id, error },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_together_is_of_one_manner_and_nothing_is_left_out() {
        let mut n = 0;
        let mut calls = Vec::new();
        while n < 500 {
            let pieces = together(Load::Soak, "p", 3, n..500);
            assert!((1..=TOGETHER).contains(&pieces.len()));
            for piece in &pieces {
                assert_eq!(piece.id, format!("p-{n}"));
                assert_eq!(piece.entry, pieces[0].entry);
                n += 1;
            }
            calls.push((pieces[0].entry, pieces.len()));
        }
        for entry in [Entry::Many, Entry::All] {
            assert!(calls.iter().any(|(of, count)| *of == entry && *count > 1), "{entry:?}");
        }
        assert!(calls.iter().all(|(of, count)| *of != Entry::Single || *count == 1));
    }
}
