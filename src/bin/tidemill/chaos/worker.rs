//! `tidemill chaos worker`: works the queue and notes each start and end.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use tidemill::{Handler, HandlerResult, JobContext, JobError, Worker};

use super::history::{Event, Journal, Said, Sealing};
use super::piece::{KIND, Piece, sum};
use super::{RoleArgs, told_to_end};
use crate::cli::{Global, duration};
use crate::exit::Exit;
use crate::output;
use crate::signals::StopSignals;

/// Work a queue whose jobs a chaos producer enqueues, and note every start and end.
#[derive(Debug, Args)]
pub(crate) struct WorkerArgs {
    #[command(flatten)]
    role: RoleArgs,
    /// How many jobs run at once
    #[arg(short, long, default_value_t = 20)]
    concurrency: usize,
    /// The delay over which jobs wait on a timer and not on their lane
    #[arg(long, value_parser = duration, default_value = "60s")]
    park_over: Duration,
}

pub(super) async fn run(global: &Global, args: WorkerArgs) -> anyhow::Result<Exit> {
    let mut signals = StopSignals::new()?;
    let journal = Arc::new(Journal::open(&args.role.history, &args.role.name)?);
    let client = global.client().await?;
    let park_over_ms = u64::try_from(args.park_over.as_millis()).unwrap_or(u64::MAX);
    journal.note(Event::Working { concurrency: args.concurrency as u64, park_over_ms })?;
    let handler =
        Handler::raw(KIND, move |payload, context| handle(journal.clone(), payload, context));
    let running = Worker::builder(&client)
        .name(&args.role.name)
        .queue(args.role.queue.as_str())
        .concurrency(args.concurrency)
        .park_over(args.park_over)
        .handler(handler)
        .build()?
        .start()
        .await?;
    output::line("ready")?;
    told_to_end(&args.role, &mut signals).await;
    Ok(match signals.unless_told_again(running.drain()).await {
        Ok(_) => Exit::Ok,
        Err(exit) => exit,
    })
}

async fn handle(journal: Arc<Journal>, payload: Bytes, context: JobContext) -> HandlerResult {
    let note = |event| {
        journal.note(event).map_err(|error| {
            tracing::error!("the history is not whole: {error:#}");
            JobError::failed(format!("{error:#}"))
        })
    };
    let (run, attempt) = (context.run().to_string(), context.attempt());
    let piece: Piece = serde_json::from_slice(&payload)?;
    // Runs of one key have one id, of which the history knows each by its own.
    let id = match piece.key {
        Some(_) => piece.id.clone(),
        None => context.id().to_string(),
    };
    note(Event::Start {
        id: id.clone(),
        run: run.clone(),
        lane: context.priority(),
        attempt,
        sealing: if context.is_sealed() { Sealing::Sealed } else { Sealing::Open },
        sum: sum(&payload),
    })?;
    let said = tokio::select! {
        () = tokio::time::sleep(Duration::from_millis(piece.takes_ms)) => {
            if attempt <= piece.fails { Said::Failed } else { Said::Done }
        }
        () = context.cancellation().cancelled() => Said::Stopped,
    };
    note(Event::End { id, run, attempt, said })?;
    match said {
        Said::Done => Ok(None),
        Said::Failed => Err(JobError::failed("this attempt was to fail")),
        Said::Stopped => Err(JobError::failed("told to stop")),
    }
}
