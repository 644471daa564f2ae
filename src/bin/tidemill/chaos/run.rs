//! `tidemill chaos`: a private broker, producers and workers as processes, a nemesis, and the checker.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use tidemill::{Client, ConnectOptions, Queue, QueueConfig, SealKey, SealKeys};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::check::Asked;
use super::clockwork;
use super::collect::{check_folder, collect};
use super::crew::{Crew, Program, Role};
use super::footprint;
use super::history::{Event, Journal};
use super::mill::Mill;
use super::nemesis::Nemesis;
use super::plan::{Wish, plan};
use super::report::{self, Report};
use super::run_args::RunArgs;
use super::stage::Stage;
use super::{DEFAULT_QUEUE, exit_of, number_of};
use crate::cli::Global;
use crate::exit::Exit;
use crate::output;
use crate::signals::StopSignals;

/// The parts of the rate that producers have, and which of them seals what it enqueues.
const SHARES: [f64; 3] = [0.45, 0.45, 0.1];
const SEALS: u64 = 2;

/// How long producers may take beyond the run: what is unknown they ask for this long.
const PRODUCERS_END: Duration = Duration::from_secs(90);

/// Further queues on several servers, as there are where a team works with them. A server that comes back
/// brings up all its streams before their consumers, and what goes wrong meanwhile takes a while to.
const IDLE_QUEUES: u32 = 3;

/// How many jobs each lane is filled with in the beginning, for each that all workers run at once; and the
/// most.
const FILLED: u64 = 13;
const MOST_FILLED: u64 = 4000;

/// Whether a run has come to its end or was told to stop before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    InTime,
    Told,
}

pub(super) async fn run(global: &Global, args: RunArgs) -> anyhow::Result<Exit> {
    let seed = number_of(args.seed.as_ref())?.unwrap_or_else(|| fastrand::u64(0..1_000_000_000));
    let wish = args.wish(seed);
    args.check(&wish)?;
    let mut signals = StopSignals::new()?;
    let history = match &args.history {
        Some(folder) => folder.clone(),
        None => fresh_folder(seed),
    };
    let journal = Journal::open(&history, "nemesis")?;
    let history = std::path::absolute(history)?;
    let stage = Stage::new(global, Duration::from_millis(wish.duration_ms));
    stage.say(&format!("seed {seed}; history in {}", history.display()));
    let run =
        Run { global, args: &args, wish, history: &history, journal: &journal, stage: &stage };
    let again = args.again(seed);
    let (report, ending) = run
        .whole(&mut signals)
        .await
        .with_context(|| format!("the run was not checked; the same again: {again}"))?;
    report::tell(global, &report, Some(&again))?;
    if report.holds && args.history.is_none() {
        std::fs::remove_dir_all(&history).context("cannot remove the history")?;
    } else if !global.quiet {
        output::to_stderr(&format!("the history is in {}", history.display()));
    }
    Ok(match (report.holds, ending) {
        (true, Ending::Told) => Exit::Interrupted,
        (true, Ending::InTime) | (false, Ending::InTime | Ending::Told) => exit_of(&report),
    })
}

/// A folder of its own for the history of a run.
fn fresh_folder(seed: u64) -> PathBuf {
    std::env::temp_dir().join(format!("tidemill-chaos-{seed}-{}", std::process::id()))
}

struct Run<'a> {
    global: &'a Global,
    args: &'a RunArgs,
    wish: Wish,
    history: &'a Path,
    journal: &'a Journal,
    stage: &'a Stage,
}

impl Run<'_> {
    async fn whole(&self, signals: &mut StopSignals) -> anyhow::Result<(Report, Ending)> {
        let Self { args, wish, journal, stage, .. } = self;
        let queue = Queue::new(DEFAULT_QUEUE)?;
        let Wish { seed, ack_wait_ms, .. } = *wish;
        journal.note(Event::Setup { seed, ack_wait_ms })?;
        let jetstream = if args.sync_always { "sync_interval: always" } else { "" };
        let mill = Mill::start(wish.nodes, jetstream, args.nats_server.as_deref()).await?;
        let keys = self.make_seal_keys()?;
        let client = self.client(&mill, &queue, &keys).await?;
        let (major, minor, patch) = client.server_version();
        stage.say(&format!(
            "{} × nats-server {major}.{minor}.{patch}, {} copies of each stream; {} workers, {} \
             jobs a second for {} s",
            wish.nodes,
            wish.replicas,
            wish.workers,
            args.rate(),
            wish.duration_ms / 1000
        ));
        let program = Program {
            url: mill.url(),
            namespace: self.global.namespace.to_string(),
            history: self.history.to_owned(),
            seal_keys: keys,
        };
        self.fill(&program).await?;
        let crew = Crew::start(program.clone(), wish.workers, args.concurrency).await?;
        let crew = Mutex::new(crew);
        stage.say("all lanes are full, and nothing is broken yet");
        self.is_worked_off(&client, &queue).await?;
        clockwork::start(&client, &queue, seed, journal).await?;
        let producers = self.start_producers(&program).await?;
        let ended = {
            let ns = self.global.namespace.as_str().to_uppercase();
            let jobs_stream = format!("{ns}_JOBS_{queue}");
            let nemesis = Nemesis { mill: &mill, crew: &crew, journal, stage, jobs_stream };
            tokio::select! {
                broken = self.break_things(&nemesis) => broken.map(|()| Ending::InTime)?,
                () = stage.watch(&client, &queue) => Ending::InTime,
                () = signals.told() => Ending::Told,
            }
        };
        let checked = async {
            stage.say("making everything whole");
            mill.heal().await?;
            let mut crew = crew.into_inner();
            crew.heal().await?;
            journal.note(Event::AllHealed)?;
            let mut wrong = self.end_producers(producers, ended).await;
            tokio::time::sleep(clockwork::WATCHED).await;
            clockwork::stop(&client, &queue, journal).await?;
            stage.say("waiting for the queue to be empty");
            let within = Duration::from_secs(args.within);
            let collected = tokio::select! {
                collected = collect(&client, &queue, self.history, within) => collected,
                () = stage.watch(&client, &queue) => Ok(()),
            };
            let left = crew.running().into_iter().chain(mill.running());
            let left: Vec<Event> =
                left.filter_map(|(name, pid)| footprint::of(name, pid)).collect();
            journal.write(&left)?;
            wrong.extend(crew.stop().await);
            wrong.extend(mill.divergence().await);
            client.close().await?;
            mill.stop().await?;
            stage.end();
            collected?;
            let mut report = check_folder(self.history, Asked::default())?;
            report.violated_by_processes(wrong);
            anyhow::Ok(report)
        };
        match signals.unless_told_again(checked).await {
            Ok(report) => Ok((report?, ended)),
            Err(_) => anyhow::bail!("stopped before it could be checked"),
        }
    }

    async fn client(&self, mill: &Mill, queue: &Queue, keys: &Path) -> anyhow::Result<Client> {
        let mut config = QueueConfig::default();
        config.replicas = self.wish.replicas;
        config.ack_wait = self.args.ack_wait;
        let options = ConnectOptions::new(mill.url())?.name("tidemill chaos");
        let client = Client::connect(options)
            .await?
            .with_namespace(self.global.namespace.clone())
            .with_queue_config(config)
            .with_seal_keys(SealKeys::from_text(&std::fs::read_to_string(keys)?)?);
        client.ensure_queue(queue).await?;
        if self.wish.nodes > 1 {
            for n in 1..=IDLE_QUEUES {
                client.ensure_queue(&Queue::new(format!("idle-{n}"))?).await?;
            }
        }
        Ok(client)
    }

    /// A file with a key of this run's own.
    fn make_seal_keys(&self) -> anyhow::Result<PathBuf> {
        let path = self.history.join("seal.keys");
        let key = SealKey::generate("chaos")?;
        std::fs::write(&path, key.reveal().as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// Fills all lanes before anybody works them.
    async fn fill(&self, program: &Program) -> anyhow::Result<()> {
        let held = self.wish.workers as u64 * self.args.concurrency as u64;
        let each = (held * FILLED).clamp(1, MOST_FILLED).to_string();
        let seed = self.wish.seed.to_string();
        let more = ["--fill", &each, "--seed", &seed].map(str::to_owned);
        let filling = program.start("producer", "p0", &more).await?;
        filling.end(PRODUCERS_END).await.map_or(Ok(()), |why| anyhow::bail!("producer {why}"))
    }

    /// Waits until what the lanes were filled with is done.
    async fn is_worked_off(&self, client: &Client, queue: &Queue) -> anyhow::Result<()> {
        let within = Duration::from_secs(self.args.within);
        let worked_off = async {
            while client.unfinished(queue).await? > 0 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            anyhow::Ok(())
        };
        let ended = tokio::time::timeout(within, worked_off).await;
        ended.with_context(|| format!("full lanes are not worked off in {} s", within.as_secs()))?
    }

    async fn start_producers(&self, program: &Program) -> anyhow::Result<Vec<Role>> {
        let mut producers = Vec::new();
        for (n, share) in (0..).zip(SHARES) {
            let rate = self.args.rate() as f64 * share;
            let jobs = (rate * self.wish.duration_ms as f64 / 1000.0).ceil() as u64;
            let mut more = [
                ["--jobs".to_owned(), jobs.to_string()],
                ["--rate".to_owned(), rate.to_string()],
                ["--load".to_owned(), self.args.load()],
                ["--seed".to_owned(), self.wish.seed.wrapping_add(n).to_string()],
            ]
            .concat();
            if n == SEALS {
                more.extend(program.sealing());
            }
            producers.push(program.start("producer", &format!("p{}", n + 1), &more).await?);
        }
        Ok(producers)
    }

    async fn break_things(&self, nemesis: &Nemesis<'_>) -> anyhow::Result<()> {
        let end = Instant::now() + Duration::from_millis(self.wish.duration_ms);
        nemesis.look()?;
        nemesis.run(&plan(&self.wish), end).await?;
        tokio::time::sleep_until(end).await;
        Ok(())
    }

    async fn end_producers(&self, producers: Vec<Role>, ending: Ending) -> Vec<String> {
        let mut wrong = Vec::new();
        for mut producer in producers {
            match ending {
                Ending::InTime => {}
                Ending::Told => producer.tell_to_end(),
            }
            wrong.extend(producer.end(PRODUCERS_END).await.map(|why| format!("producer {why}")));
        }
        wrong
    }
}
