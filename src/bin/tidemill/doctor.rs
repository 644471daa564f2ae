//! `tidemill doctor`: what is not as it should be, and what to do about it.

use anstyle::{AnsiColor, Style};
use clap::Args;
use serde_json::json;
use tidemill::{Client, Finding, Queue, Revived, Severity, StuckJob};

use crate::cli::Global;
use crate::exit::{Exit, NotFound};
use crate::output;

const AFTER_HELP: &str = "\
Each finding is a note, a warning or an error, with the line that mends it. Nothing is changed without
--revive. The exit code is 1 where there is an error.

Jobs are stuck that no consumer reaches any more, as after its filter or max_deliver was changed by
hand; running workers bring most of them back by themselves. --revive mends such options and puts stuck
jobs, those that have come due among them, on their lanes again, with the attempts that they have used;
where workers may have some of them, the lane is paused for a few seconds to be certain.

With --json, `code` is one word for each kind of finding, and `done` what became of a stuck job: moved,
cleared (it had ended or been copied), gone, kept_out (another job of its unique key is there) or
being_moved (what its timer was set from is still on a lane); null with --dry-run.";

/// Find what is not as it should be with the broker and its queues, and what to do about it.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct DoctorArgs {
    /// Queues to look at; default: all of the namespace
    queues: Vec<Queue>,
    /// Bring stuck jobs back, after mending what strands them
    #[arg(long)]
    revive: bool,
    /// Only tell which jobs would be brought back
    #[arg(long, requires = "revive")]
    dry_run: bool,
}

pub(crate) async fn run(global: &Global, args: DoctorArgs) -> anyhow::Result<Exit> {
    let client = global.client().await?;
    let queues = match args.queues.is_empty() {
        true => client.queues().await?,
        false => args.queues,
    };
    match (args.revive, args.dry_run) {
        (false, _) => examine(global, &client, &queues).await,
        (true, true) => would_revive(global, &client, &queues).await,
        (true, false) => revive(global, &client, &queues).await,
    }
}

async fn examine(global: &Global, client: &Client, queues: &[Queue]) -> anyhow::Result<Exit> {
    let of_broker = client.examine_broker().await?;
    let mut of_queues = Vec::new();
    for queue in queues {
        of_queues.push((queue, client.examine_queue(queue).await?));
    }
    let all: Vec<&Finding> =
        of_broker.iter().chain(of_queues.iter().flat_map(|(_, found)| found)).collect();
    let worst = all.iter().map(|finding| finding.severity).max();
    if global.json {
        output::json(&json!({ "findings": all, "worst": worst }))?;
    } else {
        tell("broker", &of_broker)?;
        for (queue, found) in &of_queues {
            tell(&format!("queue {queue}"), found)?;
        }
        if queues.is_empty() {
            output::to_stderr("no queues; `tidemill setup` makes one");
        }
    }
    Ok(if worst == Some(Severity::Error) { Exit::Error } else { Exit::Ok })
}

fn tell(title: &str, found: &[Finding]) -> anyhow::Result<()> {
    if found.is_empty() {
        output::line(&format!("{}  all is well", output::bold(title)))?;
        return Ok(());
    }
    output::line(&output::bold(title))?;
    for Finding { severity, place, what, fix, .. } in found {
        let style = style_of(*severity);
        output::line(&format!("  {style}{severity:7}{style:#}  {place}: {what}"))?;
        output::line(&format!("           {} {fix}", output::dim("->")))?;
    }
    Ok(())
}

fn style_of(severity: Severity) -> Style {
    let style = Style::new();
    match severity {
        Severity::Note => style,
        Severity::Warning => style.fg_color(Some(AnsiColor::Yellow.into())),
        Severity::Error => style.bold().fg_color(Some(AnsiColor::Red.into())),
    }
}

async fn would_revive(global: &Global, client: &Client, queues: &[Queue]) -> anyhow::Result<Exit> {
    for queue in queues {
        must_exist(client, queue).await?;
        let stuck = client.stuck_jobs(queue).await?;
        for job in &stuck.jobs {
            show(global, job, None)?;
        }
        if stuck.untold > 0 {
            output::to_stderr(&format!(
                "{} more of queue {queue} cannot be told yet from those that workers have or that \
                 back off: --revive pauses their lane for some seconds to find out",
                stuck.untold
            ));
        }
    }
    Ok(Exit::Ok)
}

async fn revive(global: &Global, client: &Client, queues: &[Queue]) -> anyhow::Result<Exit> {
    let mut moved = 0;
    for queue in queues {
        must_exist(client, queue).await?;
        for (job, revived) in client.revive_stuck(queue).await? {
            moved += usize::from(revived == Revived::Moved);
            show(global, &job, Some(revived))?;
        }
    }
    if !global.json {
        output::to_stderr(&format!("{moved} jobs are on their lanes again"));
    }
    Ok(Exit::Ok)
}

async fn must_exist(client: &Client, queue: &Queue) -> anyhow::Result<()> {
    match client.queues().await?.contains(queue) {
        true => Ok(()),
        false => Err(NotFound(format!("there is no queue {queue}")).into()),
    }
}

fn told(revived: Revived) -> &'static str {
    match revived {
        Revived::Moved => "brought back",
        Revived::Cleared => "had ended or been copied: cleared away",
        Revived::Gone => "had gone",
        Revived::KeptOut => "stays: another job of its unique key is there",
        Revived::BeingMoved => "stays: what its timer was set from is still on a lane",
        other => other.as_str(),
    }
}

/// Shows a job and what became of it; `None` where that was not asked for.
fn show(global: &Global, job: &StuckJob, revived: Option<Revived>) -> anyhow::Result<()> {
    let StuckJob { queue, kind, id, run, priority, stream, sequence, .. } = job;
    if global.json {
        return output::json(&json!({
            "queue": queue, "kind": kind, "id": id, "run": run, "priority": priority,
            "stream": stream, "seq": sequence, "done": revived,
        }));
    }
    let told = revived.map_or("would be brought back", told);
    Ok(output::line(&format!("{told}: {id} ({kind}, {priority}, sequence {sequence})"))?)
}
