//! What every process of a run attempted and saw: a file each, a line for each event.
//!
//! A line is written by one call and at once, so that a process that is killed has written all that it
//! saw, but for a last line that may be cut. Times are of the machine's monotonic clock, which all its
//! processes share and nobody can set.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use rustix::time::{ClockId, clock_gettime};

pub(super) use super::event::{Event, Line, Said, Sealing, Stands, Streams};

/// How history files are called.
const EXTENSION: &str = "ndjson";

/// The file of what the broker has in the end.
const COLLECTED: &str = "collected";

/// Microseconds of the machine's monotonic clock.
pub(super) fn now_us() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let micros = now.tv_sec * 1_000_000 + now.tv_nsec / 1000;
    u64::try_from(micros).unwrap_or_default()
}

/// Where one process writes what it attempts and sees.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    path: PathBuf,
}

impl Journal {
    /// Opens the file of a process, or goes on with it where an earlier process of its name left off.
    pub(super) fn open(folder: &Path, name: &str) -> anyhow::Result<Self> {
        ensure!(
            tidemill::JobId::new(name).is_ok() && name != COLLECTED,
            "name {name:?} is not valid: use letters, digits, _ and -, and not {COLLECTED:?}"
        );
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        let path = path_of(folder, name);
        let open = || -> io::Result<File> {
            let mut file = File::options().create(true).append(true).read(true).open(&path)?;
            let mut text = Vec::new();
            file.seek(SeekFrom::Start(0))?;
            file.read_to_end(&mut text)?;
            let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
            file.set_len(whole as u64)?; // what an earlier one was cut off in
            Ok(file)
        };
        let file = open().with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self { file, path })
    }

    /// The file of what the broker has in the end, without what an earlier look has found.
    pub(super) fn collected(folder: &Path) -> anyhow::Result<Self> {
        let path = path_of(folder, COLLECTED);
        let file =
            File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self { file, path })
    }

    /// Writes an event of this moment.
    pub(super) fn note(&self, event: Event) -> anyhow::Result<()> {
        self.write(&[event])
    }

    /// Writes events of this moment, all by one call.
    pub(super) fn write(&self, events: &[Event]) -> anyhow::Result<()> {
        let at_us = now_us();
        let mut text = Vec::new();
        for event in events {
            serde_json::to_writer(&mut text, &Line { at_us, event: event.clone() })?;
            text.push(b'\n');
        }
        (&self.file)
            .write_all(&text)
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}

fn path_of(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.{EXTENSION}"))
}

/// All lines of a folder's files, in the order of time, each with the process that wrote it.
pub(super) fn read(folder: &Path) -> anyhow::Result<Vec<(String, Line)>> {
    let mut lines = Vec::new();
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != EXTENSION) {
            continue;
        }
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let text = String::from_utf8_lossy(&bytes); // a line may be cut within a character
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let read = parse(&text).with_context(|| path.display().to_string())?;
        lines.extend(read.into_iter().map(|line| (name.clone(), line)));
    }
    ensure!(
        !lines.is_empty(),
        "there is no history in {}: no line in any file *.{EXTENSION}",
        folder.display()
    );
    lines.sort_by_key(|(_, line)| line.at_us);
    Ok(lines)
}

/// Reads a file's lines. Only the last may be cut, by the end of its process.
fn parse(text: &str) -> anyhow::Result<Vec<Line>> {
    let (whole, _cut) = text.rsplit_once('\n').unwrap_or_default();
    let numbered = whole.lines().enumerate();
    numbered
        .map(|(n, line)| {
            serde_json::from_str(line).with_context(|| format!("line {}: {line:?}", n + 1))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use tidemill::Priority;

    use super::*;

    #[test]
    fn a_line_reads_as_it_was_written() {
        let event = Event::Try {
            id: "p-1".into(),
            lane: Priority::High,
            fails: 1,
            max_attempts: 20,
            takes_ms: 5,
            backoff_ms: 1000,
            run_after_ms: None,
            key: None,
            sealing: Sealing::Open,
            sum: "ff".into(),
        };
        let line = Line { at_us: 7, event };
        let text = serde_json::to_string(&line).expect("serializes");
        assert!(text.starts_with(r#"{"at_us":7,"event":"try","id":"p-1","lane":"high""#), "{text}");
        assert_eq!(serde_json::from_str::<Line>(&text).expect("reads"), line);
        let streams = Line { at_us: 1, event: Event::Streams(Streams::default()) };
        let text = serde_json::to_string(&streams).expect("serializes");
        assert_eq!(serde_json::from_str::<Line>(&text).expect("reads"), streams);
    }

    #[test]
    fn only_a_last_line_may_be_cut() {
        let whole = "{\"at_us\":1,\"event\":\"all_healed\"}\n";
        for cut in 0..whole.len() {
            let text = format!("{whole}{}", &whole[..cut]);
            assert_eq!(parse(&text).expect("forgiven").len(), 1, "cut at {cut}");
        }
        let error = parse(&format!("{{\"at_us\":1\n{whole}")).expect_err("not the last");
        assert!(error.to_string().contains("line 1"), "{error}");
        assert!(parse("").expect("nothing").is_empty());
    }

    #[test]
    fn a_process_of_the_same_name_goes_on_behind_what_was_cut() {
        let folder = tempfile::tempdir().expect("a folder");
        let first = Journal::open(folder.path(), "w1").expect("opens");
        first.note(Event::AllHealed).expect("writes");
        (&first.file).write_all(b"{\"at_us\":").expect("writes");
        let second = Journal::open(folder.path(), "w1").expect("opens");
        second.note(Event::Emptied).expect("writes");
        let read = read(folder.path()).expect("reads");
        let events: Vec<&Event> = read.iter().map(|(_, line)| &line.event).collect();
        assert_eq!(events, [&Event::AllHealed, &Event::Emptied]);
        assert!(read.iter().all(|(name, _)| name == "w1"));
        assert!(Journal::open(folder.path(), "../x").is_err());
        assert!(Journal::open(folder.path(), COLLECTED).is_err());
    }

    #[test]
    fn time_goes_forward() {
        let before = now_us();
        assert!(before > 0 && now_us() >= before);
    }
}
