//! What is seen of a run while it goes on.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use tidemill::{Client, Queue};
use tokio::time::{interval, timeout};

use super::plan::Step;
use crate::cli::Global;
use crate::output;

/// How often progress is drawn, and how often it is told where nobody watches a terminal.
const DRAW_EVERY: Duration = Duration::from_millis(250);
const TELL_EVERY: Duration = Duration::from_secs(10);

/// How long the broker may take to say how many jobs there are before it does not answer.
const PATIENCE: Duration = Duration::from_secs(1);

pub(super) struct Stage {
    is_quiet: bool,
    is_watched: bool,
    bar: ProgressBar,
    began: Instant,
}

impl Stage {
    pub(super) fn new(global: &Global, duration: Duration) -> Self {
        let is_quiet = global.quiet;
        let is_watched = output::is_watched() && !is_quiet;
        let bar = match is_watched {
            true => ProgressBar::new(duration.as_secs()),
            false => ProgressBar::hidden(),
        };
        let style = ProgressStyle::with_template("{bar:30.cyan/dim} {pos:>3}/{len} s  {msg}");
        if let Ok(style) = style {
            bar.set_style(style);
        }
        Self { is_quiet, is_watched, bar, began: Instant::now() }
    }

    /// Tells a line, above the progress.
    pub(super) fn say(&self, line: &str) {
        match (self.is_quiet, self.is_watched) {
            (true, _) => {}
            (false, true) => self.bar.suspend(|| output::to_stderr(line)),
            (false, false) => output::to_stderr(line),
        }
    }

    pub(super) fn broken(&self, step: &Step, what: &str) {
        let Step { for_ms, fault, .. } = step;
        let (at, name) = (self.at(), output::bold(&fault.name()));
        self.say(&format!("{at}  {name} {what}, {}.{} s", for_ms / 1000, for_ms % 1000 / 100));
    }

    pub(super) fn healed(&self, what: &str) {
        self.say(&output::dim(&format!("{}  {what}: whole again", self.at())));
    }

    fn at(&self) -> String {
        format!("{:>6.1} s", self.began.elapsed().as_secs_f64())
    }

    /// Shows how many jobs are unfinished, without end.
    pub(super) async fn watch(&self, client: &Client, queue: &Queue) {
        let mut ticks = interval(DRAW_EVERY);
        let mut told = Instant::now();
        loop {
            ticks.tick().await;
            self.bar.set_position(self.began.elapsed().as_secs());
            let jobs = match timeout(PATIENCE, client.unfinished(queue)).await {
                Ok(Ok(jobs)) => format!("{jobs} jobs unfinished"),
                Ok(Err(_)) | Err(_) => "the broker does not answer".to_owned(),
            };
            if !self.is_watched && told.elapsed() >= TELL_EVERY {
                told = Instant::now();
                self.say(&format!("{}  {jobs}", self.at()));
            }
            self.bar.set_message(jobs);
        }
    }

    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }
}
