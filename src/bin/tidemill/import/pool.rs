//! The file of an agent runtime's job pool, taken over.

use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tidemill::Client;
use tidemill::agent::{PoolFile, PoolImport};
use tokio::sync::Notify;
use tokio::time::sleep;

use super::{ImportArgs, SILENCE, say_waiting};
use crate::cli::Global;
use crate::exit::Exit;
use crate::output;
use crate::signals::StopSignals;

/// Whether a file is one: it begins as a list.
pub(super) fn is_one(path: &Path) -> bool {
    use std::io::Read;
    let Ok(file) = std::fs::File::open(path) else { return false };
    let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
    let mut bytes = std::io::BufReader::new(file).bytes().map_while(Result::ok);
    is_file && bytes.find(|byte| !byte.is_ascii_whitespace()) == Some(b'[')
}

pub(super) async fn run(global: &Global, args: &ImportArgs) -> anyhow::Result<Exit> {
    let file = PoolFile::read(&args.file, &args.queue)?;
    let entries = file.len() + file.broken().len();
    if args.dry_run {
        return check(global, args, file, entries).await;
    }
    let client = global.client().await?;
    let Some(done) = import(global, file, &client).await? else {
        output::to_stderr("stopped; the file stays as it is, and the same command goes on with it");
        return Ok(Exit::Interrupted);
    };
    let renamed = match done.broken.is_empty() {
        true => Some(PoolFile::put_aside(&args.file)?),
        false => None,
    };
    if global.json {
        output::json(&json!({
            "queue": args.queue, "entries": entries, "added": done.added, "there": done.there,
            "broken": as_json(&done.broken), "renamed": renamed, "dry_run": false,
        }))?;
    } else {
        name_broken(&done.broken);
        let mut line = format!("imported {} jobs into queue {}", done.added.len(), args.queue);
        if !done.there.is_empty() {
            line.push_str(&format!(", {} were there already", done.there.len()));
        }
        line.push_str(&match &renamed {
            Some(renamed) => format!("; the file is {} now", renamed.display()),
            None => "; the file stays as it is".to_owned(),
        });
        output::line(&line)?;
    }
    Ok(exit(&done.broken))
}

/// Looks what would be imported. The broker is asked how large a job may be, if it is there.
async fn check(
    global: &Global,
    args: &ImportArgs,
    mut file: PoolFile,
    entries: usize,
) -> anyhow::Result<Exit> {
    match global.client().await {
        Ok(client) => file.check_sizes(&client),
        Err(error) if !global.quiet => {
            output::to_stderr(&format!("the jobs' sizes are not checked: {error}"));
        }
        Err(_) => {}
    }
    let broken = file.broken();
    if global.json {
        output::json(&json!({
            "queue": args.queue, "entries": entries, "added": [], "there": [],
            "broken": as_json(broken), "renamed": null, "dry_run": true,
        }))?;
    } else {
        name_broken(broken);
        let count = file.len();
        output::line(&format!("would be imported: {count} jobs into queue {}", args.queue))?;
    }
    Ok(exit(broken))
}

/// Imports, however long it takes; `None` where it is told to stop.
async fn import(
    global: &Global,
    file: PoolFile,
    client: &Client,
) -> anyhow::Result<Option<PoolImport>> {
    let bar = progress(global, file.len());
    let moved = Notify::new();
    let importing = file.import_with_progress(client, |jobs| {
        bar.set_position(jobs as u64);
        moved.notify_one();
    });
    tokio::pin!(importing);
    let mut signals = StopSignals::new()?;
    let mut is_said = global.quiet;
    let done = loop {
        tokio::select! {
            done = &mut importing => break Some(done?),
            () = signals.told() => break None,
            () = moved.notified() => {}
            () = sleep(SILENCE), if !is_said => {
                say_waiting();
                is_said = true;
            }
        }
    };
    bar.finish_and_clear();
    Ok(done)
}

fn progress(global: &Global, jobs: usize) -> ProgressBar {
    if global.quiet || !output::is_watched() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(jobs as u64);
    match ProgressStyle::with_template("{bar:30} {pos}/{len} jobs, {eta} left") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn as_json(broken: &[(usize, String)]) -> Vec<serde_json::Value> {
    broken.iter().map(|(at, error)| json!({ "entry": at, "error": error })).collect()
}

fn name_broken(broken: &[(usize, String)]) {
    for (at, error) in broken {
        output::error(&format!("entry {at} was left out: {error}"));
    }
}

fn exit(broken: &[(usize, String)]) -> Exit {
    if broken.is_empty() { Exit::Ok } else { Exit::Error }
}
