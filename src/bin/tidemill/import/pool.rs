//! The file of an agent runtime's job pool, taken over.

use std::path::{Path, PathBuf};

use anyhow::Context;
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
    let cannot = || format!("cannot read {}", path.display());
    let text = std::fs::read_to_string(path).with_context(cannot)?;
    let file = PoolFile::parse(&text, queue)?;
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
    let renamed = if is_whole && !dry_run { Some(put_aside(path)?) } else { None };
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

/// Renames a file that was taken over, beside those that were before.
fn put_aside(path: &Path) -> anyhow::Result<PathBuf> {
    let named = |ending: String| {
        let mut name = path.as_os_str().to_owned();
        name.push(ending);
        PathBuf::from(name)
    };
    let mut aside = named(".imported".to_owned());
    let mut number = 1;
    while aside.exists() {
        aside = named(format!(".imported.{number}"));
        number += 1;
    }
    std::fs::rename(path, &aside)
        .with_context(|| format!("all is imported, but {} cannot be renamed", path.display()))?;
    Ok(aside)
}
