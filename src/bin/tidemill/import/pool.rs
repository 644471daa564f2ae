//! The file of an agent runtime's job pool, taken over.

use std::path::Path;

use serde_json::json;
use tidemill::Queue;
use tidemill::agent::{PoolFile, PoolImport};

use crate::cli::Global;
use crate::exit::Exit;
use crate::output;

/// Whether a file is one: it begins as a list.
pub(super) fn is_one(path: &Path) -> bool {
    use std::io::Read;
    let Ok(file) = std::fs::File::open(path) else { return false };
    let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
    let mut bytes = std::io::BufReader::new(file).bytes().map_while(Result::ok);
    is_file && bytes.find(|byte| !byte.is_ascii_whitespace()) == Some(b'[')
}

pub(super) async fn run(
    global: &Global,
    path: &Path,
    queue: &Queue,
    dry_run: bool,
) -> anyhow::Result<Exit> {
    let file = PoolFile::read(path, queue)?;
    let count = file.len();
    let done = match dry_run {
        true => {
            let mut would = PoolImport::default();
            would.broken = file.broken().to_vec();
            would
        }
        false => file.import(&global.client().await?).await?,
    };
    let is_whole = done.broken.is_empty();
    let renamed = if is_whole && !dry_run { Some(PoolFile::put_aside(path)?) } else { None };
    if global.json {
        let broken: Vec<_> =
            done.broken.iter().map(|(at, error)| json!({ "entry": at, "error": error })).collect();
        output::json(&json!({
            "queue": queue, "entries": count + broken.len(), "added": done.added,
            "there": done.there, "broken": broken, "renamed": renamed, "dry_run": dry_run,
        }))?;
    } else {
        for (at, error) in &done.broken {
            output::error(&format!("entry {at} was left out: {error}"));
        }
        let mut line = match dry_run {
            true => format!("would be imported: {count} jobs into queue {queue}"),
            false => format!("imported {} jobs into queue {queue}", done.added.len()),
        };
        if !done.there.is_empty() {
            line.push_str(&format!(", {} were there already", done.there.len()));
        }
        match &renamed {
            Some(renamed) => line.push_str(&format!("; the file is {} now", renamed.display())),
            None if !dry_run => line.push_str("; the file stays as it is"),
            None => {}
        }
        output::line(&line)?;
    }
    Ok(if is_whole { Exit::Ok } else { Exit::Error })
}
