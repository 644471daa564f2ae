//! Work that goes on while things break, and the look at what became of it: nothing lost, one
//! completion for each job, every enqueue told honestly and in time.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tidemill::{
    Backoff, Client, Handler, Job, JobContext, JobError, JobHandle, JobId, NewJob, Queue,
    RetryPolicy, Running, Status, Worker,
};
use tokio::task::JoinHandle;
use tokio::time::{interval, timeout};

use super::{ACK_WAIT, Numbered, PATIENCE, RECOVERY, Seen, api, eventually, stream_messages};

/// The queue of `tidemill chaos`.
pub(crate) const QUEUE: &str = "default";

/// How long an enqueue may take at most: it asks for twice the lease, then gives up; each question of a
/// look that is under way then takes a second more, as does looking whether the queue is there.
const LONGEST_ENQUEUE: Duration = Duration::from_secs(2 * ACK_WAIT.as_secs() + 12);

/// How much later than the last completion the queue may be empty: acks that a crash has swallowed are
/// made up for when their jobs are handed out again.
const SETTLING: Duration = Duration::from_secs(6);

/// What handlers saw: which job, which attempt, when.
pub(crate) type Runs = Seen<(u64, u32, Instant)>;

/// Starts a worker whose every fifth job fails once.
pub(crate) async fn work(client: &Client, runs: &Runs) -> Running {
    work_for(client, runs, Duration::from_millis(5)).await
}

/// The same, with jobs that take that long.
pub(crate) async fn work_for(client: &Client, runs: &Runs, takes: Duration) -> Running {
    let worker = || {
        let note = runs.clone();
        let handler = move |job: Numbered, context: JobContext| {
            let attempt = context.attempt();
            note.push((job.n, attempt, Instant::now()));
            let fails = fails_once(job.n) && attempt == 1;
            async move {
                tokio::time::sleep(takes).await;
                if fails { Err(JobError::failed("once")) } else { Ok(()) }
            }
        };
        let policy = RetryPolicy::new(5, Backoff::fixed(Duration::from_millis(200)));
        let worker = Worker::builder(client).handler(Handler::new(handler).retry(policy));
        worker.build().expect("valid")
    };
    // As a supervisor would, where a leader is just being elected.
    let deadline = Instant::now() + 2 * PATIENCE;
    loop {
        match worker().start().await {
            Ok(running) => return running,
            Err(error) => assert!(Instant::now() < deadline, "it does not start: {error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn fails_once(n: u64) -> bool {
    n.is_multiple_of(5)
}

/// A producer at work.
pub(crate) struct Load {
    producing: JoinHandle<Vec<Enqueued>>,
    longest: Duration,
}

/// One enqueue, and what was said of it.
struct Enqueued {
    n: u64,
    said: tidemill::Result<JobHandle>,
    took: Duration,
}

impl Load {
    /// Enqueues jobs numbered from 0, one every so often, whatever becomes of those before.
    pub(crate) fn start(client: &Client, jobs: u64, every: Duration) -> Self {
        Self::from(client, 0, jobs, every)
    }

    /// The same with numbers from `first`.
    pub(crate) fn from(client: &Client, first: u64, jobs: u64, every: Duration) -> Self {
        Self::of_size(client, first, jobs, every, 0)
    }

    /// The same with jobs of some more bytes each.
    pub(crate) fn of_size(
        client: &Client,
        first: u64,
        jobs: u64,
        every: Duration,
        bytes: usize,
    ) -> Self {
        let client = client.clone();
        let padding = "x".repeat(bytes);
        let producing = tokio::spawn(async move {
            let mut ticks = interval(every);
            let mut under_way = Vec::new();
            for n in first..first + jobs {
                ticks.tick().await;
                let client = client.clone();
                let payload = json!({ "n": n, "padding": padding }).to_string();
                under_way.push(tokio::spawn(async move {
                    let asked = Instant::now();
                    let job = NewJob::raw(Numbered::KIND, payload).id(id_of(n));
                    let said = client.enqueue(job).await;
                    Enqueued { n, said, took: asked.elapsed() }
                }));
            }
            join_all(under_way).await.into_iter().map(|ended| ended.expect("no panic")).collect()
        });
        Self { producing, longest: LONGEST_ENQUEUE }
    }

    /// Lets an enqueue take that long.
    pub(crate) fn each_within(self, longest: Duration) -> Self {
        Self { longest, ..self }
    }

    /// What was said of each.
    pub(crate) async fn end(self) -> Said {
        let all = self.producing.await.expect("no panic");
        let mut said = Said::default();
        for Enqueued { n, said: outcome, took } in all {
            assert!(took < self.longest, "enqueueing {n} took {took:?}: {outcome:?}");
            match outcome {
                Ok(job) => said.ok.push((n, job)),
                Err(error) if error.is_unknown() => said.unknown.push(n),
                Err(error) => said.refused.push((n, error)),
            }
        }
        said
    }
}

/// Jobs numbered from `first`, of which all are confirmed; 100 in a second.
pub(crate) async fn confirmed(client: &Client, first: u64, jobs: u64) -> Said {
    let said = Load::from(client, first, jobs, Duration::from_millis(10)).end().await;
    assert_eq!(said.ok.len() as u64, jobs, "{said:?}");
    said
}

/// Enqueues one after the other, numbered from `first`, until one goes through, which it has to in time.
pub(crate) async fn goes_through(client: &Client, first: u64, said: &mut Said) {
    let from = Instant::now();
    for n in first.. {
        said.add(Load::from(client, n, 1, Duration::from_millis(1)).end().await);
        if said.ok.last().is_some_and(|(stored, _)| *stored == n) {
            return;
        }
        assert!(from.elapsed() < RECOVERY, "nothing goes through");
    }
}

fn id_of(n: u64) -> String {
    format!("job-{n}")
}

/// What was said of enqueues.
#[derive(Debug, Default)]
pub(crate) struct Said {
    pub(crate) ok: Vec<(u64, JobHandle)>,
    pub(crate) unknown: Vec<u64>,
    pub(crate) refused: Vec<(u64, tidemill::Error)>,
}

/// What became of a load.
#[derive(Debug)]
pub(crate) struct Became {
    /// Runs beyond those that a job takes without any fault.
    pub(crate) extra_runs: usize,
}

impl Said {
    pub(crate) fn add(&mut self, more: Self) {
        self.ok.extend(more.ok);
        self.unknown.extend(more.unknown);
        self.refused.extend(more.refused);
    }

    /// Waits until all that was confirmed is done, which may take as long as `within`.
    pub(crate) async fn have_ended(&self, within: Duration) {
        let awaited = self.ok.iter().map(|(n, job)| async move {
            let done = job.completion_within(within).await;
            let done = done.unwrap_or_else(|error| panic!("job {n} is lost: {error}"));
            assert_eq!(done.status, Status::Done, "job {n}: {done:?}");
        });
        join_all(awaited).await;
    }

    /// Waits until all is done, which may take as long as `within`, and looks that nothing is lost,
    /// nothing has ended twice, and nothing is left anywhere.
    pub(crate) async fn is_all_done(
        &self,
        client: &Client,
        nats: &async_nats::Client,
        runs: &Runs,
        within: Duration,
    ) -> Became {
        let healed = Instant::now();
        self.have_ended(within).await;
        let left = within.saturating_sub(healed.elapsed()) + SETTLING;
        is_empty_within(nats, QUEUE, left).await;
        let queue = Queue::default();
        let (unknown, refused) = (&self.unknown, self.refused.iter().map(|(n, _)| n));
        for n in unknown.iter().chain(refused) {
            let id = JobId::new(id_of(*n)).expect("valid");
            let ends = client.completions_of(&queue, None, &id).await.expect("reads").len();
            let at_most = usize::from(unknown.contains(n));
            assert!(ends <= at_most, "job {n}, of which nobody knew, ended {ends} times");
        }
        let ended = stream_messages(nats, "TIDEMILL_RESULTS_default").await as usize;
        assert!(
            (self.ok.len()..=self.ok.len() + unknown.len()).contains(&ended),
            "{ended} completions of {} jobs and {} perhaps",
            self.ok.len(),
            unknown.len()
        );
        Became { extra_runs: extra_runs(runs) }
    }
}

/// Runs beyond those that a job takes without any fault.
fn extra_runs(runs: &Runs) -> usize {
    let mut attempts: HashMap<u64, Vec<u32>> = HashMap::new();
    for (n, attempt, _) in runs.all() {
        attempts.entry(n).or_default().push(attempt);
    }
    let mut extra = 0;
    for (n, mut attempts) in attempts {
        let needed = if fails_once(n) { 2 } else { 1 };
        extra += attempts.len().saturating_sub(needed);
        attempts.sort_unstable();
        attempts.dedup();
        // One that was announced and lost its lease before it began counts as well.
        let last = attempts.last().copied().unwrap_or_default() as usize;
        assert!(
            attempts[0] == 1 && last <= attempts.len() + 1,
            "job {n} has attempts {attempts:?}"
        );
    }
    extra
}

/// Waits until the queue holds nothing, not even something unsettled.
pub(crate) async fn is_empty(nats: &async_nats::Client) {
    is_empty_of(nats, QUEUE).await;
}

/// The same of any queue.
pub(crate) async fn is_empty_of(nats: &async_nats::Client, queue: &str) {
    is_empty_within(nats, queue, PATIENCE - Duration::from_secs(1)).await;
}

async fn is_empty_within(nats: &async_nats::Client, queue: &str, within: Duration) {
    let left = Seen::default();
    if timeout(within, look_until_empty(nats, queue, &left)).await.is_err() {
        panic!("something is left: {:#?}", left.all().last());
    }
}

async fn look_until_empty(nats: &async_nats::Client, queue: &str, left: &Seen<Value>) {
    eventually("an empty queue", || async {
        for stream in ["JOBS", "TIMERS"].map(|stream| format!("TIDEMILL_{stream}_{queue}")) {
            let info = api(nats, &format!("STREAM.INFO.{stream}"), Value::Null).await;
            if info["state"]["messages"] != 0 {
                let state = &info["state"];
                let first = json!({ "seq": state["first_seq"], "next_by_subj": "tidemill.>" });
                let first = api(nats, &format!("STREAM.MSG.GET.{stream}"), first).await;
                let subject = first["message"]["subject"].as_str().unwrap_or_default();
                // It may be gone by now.
                let lane = subject.split('.').nth(3)?;
                let lane = api(nats, &format!("CONSUMER.INFO.{stream}.{lane}"), Value::Null).await;
                left.push(json!([state, first["message"], lane]));
                return None;
            }
        }
        for lane in ["critical", "high", "normal", "low"] {
            let verb = format!("CONSUMER.INFO.TIDEMILL_JOBS_{queue}.{lane}");
            let info = api(nats, &verb, Value::Null).await;
            if info["num_pending"] != 0 || info["num_ack_pending"] != 0 {
                left.push(info);
                return None;
            }
        }
        Some(())
    })
    .await;
}

/// The longest time in which nothing was begun, since `from`.
pub(crate) fn longest_gap(runs: &Runs, from: Instant) -> Duration {
    let mut starts: Vec<Instant> =
        runs.all().into_iter().map(|(_, _, at)| at).filter(|at| *at >= from).collect();
    starts.insert(0, from);
    starts.windows(2).map(|two| two[1] - two[0]).max().unwrap_or_default()
}
