//! `tidemill job watch`.

use std::pin::pin;

use futures_util::TryStreamExt;
use serde_json::json;
use tidemill::{AttemptEvent, AttemptRecord, Client, JobEvent, JobState, RecordFilter, Status};

use super::{GetArgs, describe};
use crate::cli::Global;
use crate::exit::Exit;
use crate::signals::StopSignals;
use crate::{dead, output, results};

/// Follows the newest run of a job: where it stands, what its handler tells, how attempts fail, and how
/// it ends.
pub(super) async fn run(global: &Global, client: &Client, args: &GetArgs) -> anyhow::Result<Exit> {
    let mut signals = StopSignals::new()?;
    // From before it is looked at, so that nothing falls between.
    let of_job = RecordFilter::queue(args.queue.clone()).id(args.id.clone());
    let mut attempts = pin!(client.attempts(of_job).await?);
    let job = client.job(&args.queue, args.kind.as_ref(), &args.id).await?.pop();
    let Some(job) = job else { return Ok(Exit::NotFound) };
    if !matches!(job.state, JobState::Ended(_)) {
        if global.json {
            output::json(&json!({ "event": "state", "state": job.state.as_str() }))?;
        } else {
            output::line(&format!("        {}", describe(&job.state)))?;
        }
    }
    let mut events = pin!(client.watch(&job).await?);
    loop {
        let event = tokio::select! {
            event = events.try_next() => event?,
            attempt = attempts.try_next() => {
                let attempt = attempt?;
                if let Some(attempt) = attempt.filter(|attempt| attempt.run == job.run) {
                    tell_attempt(global, &attempt)?;
                }
                continue;
            }
            () = signals.told() => return Ok(Exit::Ok),
        };
        match event {
            Some(JobEvent::Ended(completion)) => {
                results::tell(global, &completion)?;
                let is_well = completion.status == Status::Done;
                return Ok(if is_well { Exit::Ok } else { Exit::JobFailed });
            }
            Some(event) if global.json => output::json(&event)?,
            Some(JobEvent::Progress { progress, message, attempt }) => {
                let percent = progress * 100.0;
                output::line(&format!("{percent:>4.0} %  {message} (attempt {attempt})"))?;
            }
            Some(JobEvent::Log { message, .. }) => output::line(&format!("        {message}"))?,
            Some(_) => {}
            None => return Ok(Exit::Ok),
        }
    }
}

/// Tells of an attempt that did not end the job.
fn tell_attempt(global: &Global, attempt: &AttemptRecord) -> anyhow::Result<()> {
    if attempt.event == AttemptEvent::Started {
        return Ok(());
    }
    if global.json {
        return output::json(&json!({ "event": "attempt", "record": attempt }));
    }
    Ok(output::line(&format!("        attempt {}", dead::describe(attempt)))?)
}
