//! `tidemill import`: jobs from a file, each line one.

mod pool;
mod state;

use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tidemill::{Import, NewJob, Queue};

use self::state::{LeftOut, Place, State, Step};
use crate::cli::Global;
use crate::exit::Exit;
use crate::output;
use crate::signals::StopSignals;

/// Lines that are put in at once.
const CHUNK: usize = 1000;

/// After that long without an answer it is said that the broker is waited for.
const SILENCE: Duration = Duration::from_secs(5);

const AFTER_HELP: &str = "\
Each line is a JSON object:
  {\"kind\":\"send_email\",\"payload\":{\"to\":\"a@example.com\"},\"priority\":\"high\"}
It may also have queue, id, unique (a key), unique_for_ms, max_retries, backoff (fixed:500), timeout_ms,
run_at and expires_at (RFC 3339), delay_ms, tags (a list) and headers (an object).

While the broker is away or the queue is full, the import waits. How far it has come is kept in
FILE.import until it is whole: broken off, the same command goes on from there, and doubles none.

A file that is one JSON list is taken for the pending jobs of the agent runtime `behest`: ids, priorities,
attempts and times are kept, and once all are in, the file is renamed to FILE.imported. The same file again
adds nothing for as long as the queue keeps results. An entry that is broken, or too large for the broker, is
told by its position in the list, counted from 0; the others go in, and the file stays as it is.";

/// Put in jobs from a file, each line one; broken off, the same command goes on.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct ImportArgs {
    /// The file, or - for standard input, which cannot be gone on with
    file: PathBuf,
    /// The queue of the jobs of an agent runtime's pool; other files name queues line by line
    #[arg(long, default_value = "default")]
    queue: Queue,
    /// Where to keep how far it has come; FILE.import unless given
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Only check the lines or entries and tell how many there are
    #[arg(long)]
    dry_run: bool,
}

/// What came of the lines.
#[derive(Default)]
struct Tally {
    stored: u64,
    duplicates: u64,
    left_out: LeftOut,
}

/// A line that is a job, with its number.
type Numbered = (u64, NewJob);

pub(crate) async fn run(global: &Global, args: ImportArgs) -> anyhow::Result<Exit> {
    if pool::is_one(&args.file) {
        return pool::run(global, &args).await;
    }
    let mut lines = Lines::open(&args.file)?;
    let started = Instant::now();
    let mut tally = Tally::default();
    if args.dry_run {
        loop {
            let (chunk, _) = lines.chunk(&mut tally)?;
            if chunk.is_empty() && lines.is_over {
                break;
            }
            tally.stored += chunk.len() as u64;
        }
        return tell(global, &tally, None, started.elapsed(), true);
    }
    let mut state = match lines.size {
        Some(size) => Some(State::open(args.state_file(), size)?),
        None => None,
    };
    let resumed = state.as_ref().and_then(|state| state.resumed.clone());
    let name = match &state {
        Some(state) => state.import.clone(),
        None => uuid::Uuid::now_v7().simple().to_string(),
    };
    let client = global.client().await?;
    let mut import = client.import(name)?;
    if let Some(Step { from, to, left_out }) = resumed.clone() {
        tally.left_out = left_out;
        lines.go_to(from)?;
        import = import.uncertain_below(to.line);
        output::to_stderr(&format!("goes on at line {}", from.line + 1));
    }
    let bar = progress(global, &lines);
    let mut signals = StopSignals::new()?;
    loop {
        let before = tally.left_out.clone();
        let (chunk, step) = lines.chunk(&mut tally)?;
        if chunk.is_empty() && lines.is_over {
            break;
        }
        let step = Step { left_out: before, ..step };
        if let Some(state) = &mut state {
            state.note(&step)?;
        }
        tokio::select! {
            () = put(&import, chunk, &mut tally, global) => {}
            () = signals.told() => {
                bar.finish_and_clear();
                let line = step.from.line + 1;
                output::to_stderr(&match state {
                    Some(_) => format!("stopped at line {line}; the same command goes on from there"),
                    None => format!("stopped at line {line}; all before it are imported"),
                });
                return Ok(Exit::Interrupted);
            }
        }
        bar.set_position(step.to.offset);
        bar.set_message(format!("{} jobs", tally.stored));
    }
    bar.finish_and_clear();
    client.flush().await?;
    if let Some(state) = state {
        state.finish()?;
    }
    tell(global, &tally, resumed, started.elapsed(), false)
}

impl ImportArgs {
    fn state_file(&self) -> PathBuf {
        self.state.clone().unwrap_or_else(|| {
            let mut name = self.file.clone().into_os_string();
            name.push(".import");
            name.into()
        })
    }
}

/// Puts a chunk in, however long the broker is away.
async fn put(import: &Import, chunk: Vec<Numbered>, tally: &mut Tally, global: &Global) {
    let numbers: Vec<u64> = chunk.iter().map(|(line, _)| *line).collect();
    let putting = import.put(chunk);
    tokio::pin!(putting);
    let outcomes = tokio::select! {
        outcomes = &mut putting => outcomes,
        () = tokio::time::sleep(SILENCE) => {
            if !global.quiet {
                say_waiting();
            }
            putting.await
        }
    };
    for (line, outcome) in numbers.into_iter().zip(outcomes) {
        match outcome {
            Ok(job) if job.is_duplicate() => tally.duplicates += 1,
            Ok(_) => tally.stored += 1,
            Err(error) => tally.left_out.add(line + 1, &error),
        }
    }
}

fn say_waiting() {
    output::to_stderr("the broker is away, or the queue is full: waiting");
}

/// The lines of the input, in chunks.
struct Lines {
    reader: Box<dyn BufRead + Send>,
    file: Option<File>,
    size: Option<u64>,
    at: Place,
    is_over: bool,
}

impl Lines {
    fn open(path: &Path) -> anyhow::Result<Self> {
        if path == Path::new("-") {
            let reader = Box::new(BufReader::new(std::io::stdin()));
            return Ok(Self {
                reader,
                file: None,
                size: None,
                at: Place::default(),
                is_over: false,
            });
        }
        let cannot = || format!("cannot read {}", path.display());
        let file = File::open(path).with_context(cannot)?;
        let metadata = file.metadata().with_context(cannot)?;
        let reader = Box::new(BufReader::new(file.try_clone().with_context(cannot)?));
        // What is no file, such as a pipe, cannot be gone on with.
        let size = metadata.is_file().then_some(metadata.len());
        Ok(Self { reader, file: Some(file), size, at: Place::default(), is_over: false })
    }

    fn go_to(&mut self, place: Place) -> anyhow::Result<()> {
        if let Some(file) = &mut self.file {
            file.seek(SeekFrom::Start(place.offset))?;
            self.reader = Box::new(BufReader::new(file.try_clone()?));
        }
        self.at = place;
        Ok(())
    }

    /// The next lines that are jobs, and from where to where they were read.
    fn chunk(&mut self, tally: &mut Tally) -> anyhow::Result<(Vec<Numbered>, Step)> {
        let from = self.at;
        let mut jobs = Vec::with_capacity(CHUNK);
        let mut line = Vec::new();
        while jobs.len() < CHUNK {
            line.clear();
            let length =
                self.reader.read_until(b'\n', &mut line).context("cannot read the input")?;
            if length == 0 {
                self.is_over = true;
                break;
            }
            let number = self.at.line;
            self.at.line += 1;
            self.at.offset += length as u64;
            if line.trim_ascii().is_empty() {
                continue;
            }
            match NewJob::from_json(&line) {
                Ok(job) => jobs.push((number, job)),
                Err(error) => tally.left_out.add(number + 1, &error),
            }
        }
        Ok((jobs, Step { from, to: self.at, ..Step::default() }))
    }
}

fn progress(global: &Global, lines: &Lines) -> ProgressBar {
    if global.quiet || !output::is_watched() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match lines.size {
        Some(size) => (ProgressBar::new(size), "{bar:30} {bytes}/{total_bytes}, {msg}, {eta} left"),
        None => (ProgressBar::new_spinner(), "{spinner} {bytes}, {msg}"),
    };
    let bar = bar.with_position(lines.at.offset);
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn tell(
    global: &Global,
    tally: &Tally,
    resumed: Option<Step>,
    took: Duration,
    dry_run: bool,
) -> anyhow::Result<Exit> {
    let Tally { stored, duplicates, left_out: LeftOut { count: left_out, first: refused } } = tally;
    let seconds = took.as_secs_f64();
    if global.json {
        let refused: Vec<_> =
            refused.iter().map(|(line, error)| json!({ "line": line, "error": error })).collect();
        output::json(&json!({
            "imported": stored, "duplicates": duplicates, "left_out": left_out, "refused": refused,
            "seconds": seconds, "resumed_at": resumed.map(|step| step.from.line + 1), "dry_run": dry_run,
        }))?;
    } else {
        for (line, error) in refused {
            output::error(&format!("line {line} was left out: {error}"));
        }
        let untold = left_out - refused.len() as u64;
        if untold > 0 {
            output::error(&format!("{untold} more lines were left out"));
        }
        let mut line = match dry_run {
            true => format!("would be imported: {stored} jobs"),
            false => format!("imported {stored} jobs in {seconds:.2} s"),
        };
        if *duplicates > 0 {
            line.push_str(&format!(", {duplicates} were there already"));
        }
        if *left_out > 0 {
            line.push_str(&format!(", {left_out} lines left out"));
        }
        output::line(&line)?;
        if *left_out > 0 && !dry_run {
            output::to_stderr(
                "put the lines that were left out into a file of their own: this one, imported \
                 again, would add all the others again",
            );
        }
    }
    Ok(if refused.is_empty() { Exit::Ok } else { Exit::Error })
}
