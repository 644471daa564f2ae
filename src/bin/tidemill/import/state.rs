//! How far an import of a file has come, kept beside the file, so that the same command goes on where
//! it was broken off.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::exit::UsageError;

/// Lines that were left out and are told one by one.
const MAX_TOLD: usize = 20;

/// A place in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    /// Lines before it.
    pub(super) line: u64,
    /// Bytes before it.
    pub(super) offset: u64,
}

/// The first line of the file: which import of what.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    import: String,
    size: u64,
}

/// A line for each chunk that is about to be put in: from where on, to where, and what was left out
/// before it, which whoever goes on has to tell at the end.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Step {
    pub(super) from: Place,
    pub(super) to: Place,
    #[serde(default)]
    pub(super) left_out: LeftOut,
}

/// Lines that became no jobs.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct LeftOut {
    /// How many there are.
    pub(super) count: u64,
    /// The first of them, with the reason.
    pub(super) first: Vec<(u64, String)>,
}

impl LeftOut {
    pub(super) fn add(&mut self, line: u64, error: &tidemill::Error) {
        self.count += 1;
        if self.first.len() < MAX_TOLD {
            self.first.push((line, error.to_string()));
        }
    }
}

/// The state of an import, open and locked.
#[derive(Debug)]
pub(super) struct State {
    path: PathBuf,
    file: File,
    /// The import's name.
    pub(super) import: String,
    /// The chunk that may be put in already, where the import was broken off.
    pub(super) resumed: Option<Step>,
}

impl State {
    /// Opens the state of the import of a file of that size, or begins one.
    pub(super) fn open(path: PathBuf, size: u64) -> anyhow::Result<Self> {
        let open = OpenOptions::new().read(true).append(true).create(true).open(&path);
        let mut file = open.with_context(|| {
            format!(
                "cannot keep how far the import has come in {}: name another file with --state",
                path.display()
            )
        })?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let message = format!("another import holds {}", path.display());
                return Err(UsageError(message).into());
            }
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        let mut text = String::new();
        file.seek(SeekFrom::Start(0))?;
        file.read_to_string(&mut text).with_context(|| not_ours(&path))?;
        if let Some((import, resumed)) = read(&text, size, &path)? {
            return Ok(Self { path, file, import, resumed });
        }
        file.set_len(0)?;
        let import = uuid::Uuid::now_v7().simple().to_string();
        let head = Head { import: import.clone(), size };
        let mut state = Self { path, file, import, resumed: None };
        state.append(&head)?;
        Ok(state)
    }

    /// Notes that a chunk is about to be put in.
    pub(super) fn note(&mut self, step: &Step) -> anyhow::Result<()> {
        self.append(step)
    }

    /// The import is whole: nothing is left to go on with.
    pub(super) fn finish(self) -> anyhow::Result<()> {
        std::fs::remove_file(&self.path)
            .with_context(|| format!("the import is whole, but {} stays", self.path.display()))
    }

    fn append(&mut self, line: &impl Serialize) -> anyhow::Result<()> {
        let line = serde_json::to_string(line)? + "\n";
        self.file
            .write_all(line.as_bytes())
            .with_context(|| format!("cannot write to {}", self.path.display()))
    }
}

fn not_ours(path: &Path) -> String {
    format!("{} does not tell how far an import has come: move it away", path.display())
}

/// Reads a state; `None` where there is none yet. A last line that was cut off does not count.
fn read(text: &str, size: u64, path: &Path) -> anyhow::Result<Option<(String, Option<Step>)>> {
    let mut lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    let Some(head) = lines.next() else {
        return if text.is_empty() || text.starts_with("{\"import\"") {
            Ok(None)
        } else {
            Err(UsageError(not_ours(path)).into())
        };
    };
    let head: Head = serde_json::from_str(head).map_err(|_| UsageError(not_ours(path)))?;
    if head.size != size {
        let message = format!(
            "the file has changed since its import was broken off: it had {} bytes and has {size}; \
             delete {} to import it from the start",
            head.size,
            path.display()
        );
        return Err(UsageError(message).into());
    }
    let last = lines.next_back().map(serde_json::from_str).transpose();
    let last = last.map_err(|_| UsageError(not_ours(path)))?;
    Ok(Some((head.import, last)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(line: u64) -> Place {
        Place { line, offset: line * 10 }
    }

    #[test]
    fn what_was_broken_off_goes_on_with_the_chunk_that_is_uncertain() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("jobs.ndjson.import");
        let mut state = State::open(path.clone(), 100).expect("begins");
        assert!(state.resumed.is_none());
        for from in [0, 1000] {
            let mut step = Step { from: place(from), to: place(from + 1000), ..Step::default() };
            step.left_out.count = from;
            state.note(&step).expect("writes");
        }
        let import = state.import.clone();
        let beside = State::open(path.clone(), 100).expect_err("held").to_string();
        assert!(beside.contains("another import holds"), "{beside}");
        drop(state);
        // Killed in the midst of a line.
        std::fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(b"{\"from\":{\"li"))
            .expect("writes");
        let state = State::open(path.clone(), 100).expect("goes on");
        assert_eq!(state.import, import);
        let step = state.resumed.clone().expect("a step");
        assert_eq!((step.from, step.left_out.count), (place(1000), 1000));
        drop(state);
        let changed = State::open(path.clone(), 101).expect_err("changed").to_string();
        assert!(changed.contains("has changed"), "{changed}");
        State::open(path.clone(), 100).expect("goes on").finish().expect("removes");
        assert!(!path.exists());
    }

    #[test]
    fn what_is_no_state_is_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notes.txt");
        std::fs::write(&path, "my notes\n").expect("writes");
        let error = State::open(path.clone(), 100).expect_err("not ours").to_string();
        assert!(error.contains("move it away"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).expect("reads"), "my notes\n");
    }
}
