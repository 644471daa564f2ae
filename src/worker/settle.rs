//! Settling: record, then ack. The order is what makes killing a worker between any two steps
//! harmless: what is recorded and not acked is found on the next delivery and only acked.
//!
//! Settlements are taken in groups. Within a group records are published side by side and each is
//! waited for; then the acks go out, the last of each lane as a request, which the broker answers
//! only after it has seen those before it.

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _, poll};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Mutex, mpsc};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Shared;
use super::health::Part;
use super::job::Work;
use super::lanes::LaneId;
use super::lease::Stop;
use super::pause::Pause;
use super::record::Entered;
use super::steps::{Step, fill, steps};
use super::together::{Completed, complete};
use super::unsettled::{Tried, has_no_place};
use crate::broker::{AckSubject, MAX_INGEST, Word, say_each};
use crate::client::Fence;
use crate::error::Result;
use crate::outcome::Settlement;
use crate::wire::time::Time;
use crate::wire::{AttemptEvent, AttemptRecord, Completion, RecordKind, Status};

/// Settlements that wait at most; a worker that cannot settle stops starting jobs.
const QUEUE: usize = 1024;

/// The largest group, and how many groups are under way at once.
const GROUP: usize = MAX_INGEST;
const GROUPS_AT_ONCE: usize = 16;

/// Groups that are not full set out this far apart, so that what a group costs is shared by more jobs;
/// one that ends alone is settled at once.
const APART: Duration = Duration::from_millis(1);

/// A job whose dead letter finds no room is given back for this long.
const DEAD_FULL_DELAY: Duration = Duration::from_secs(60);

/// A job to be settled.
#[derive(Debug)]
pub(super) struct ToSettle {
    pub(super) work: Work,
    pub(super) settlement: Settlement,
    /// When the attempt started; `None` if there was none.
    pub(super) started_at: Option<Time>,
}

/// What the broker is told of a delivery.
pub(super) type Told = (LaneId, AckSubject, Word);

/// Of a job whose lease is lost nothing is said, whatever the word.
const NOT_SAID: Word = Word::Ack;

/// Where settlements go.
#[derive(Debug)]
pub(super) struct Settler {
    items: mpsc::Sender<ToSettle>,
    /// Held while the acks of a group are sent.
    turn: Mutex<()>,
    closed: CancellationToken,
}

impl Settler {
    pub(super) fn new() -> (Self, mpsc::Receiver<ToSettle>) {
        let (items, receiver) = mpsc::channel(QUEUE);
        (Self { items, turn: Mutex::new(()), closed: CancellationToken::new() }, receiver)
    }

    /// Nothing more is to come: what is queued is settled, and then settling ends.
    pub(super) fn close(&self) {
        self.closed.cancel();
    }

    /// Queues a settlement; waits while too many wait already.
    pub(super) async fn settle(&self, item: ToSettle) {
        // As a rule there is room.
        let Err(TrySendError::Full(item)) = self.items.try_send(item) else { return };
        // It fails only when the worker was told to stop at once: the broker hands the job out anew.
        let _ = self.items.send(item).await;
    }
}

/// Settles what comes until nothing more is to come, and then what is still under way.
///
/// All groups are driven by this one task: each as a task of its own had them, and the jobs in them,
/// wander from one processor to the other.
pub(super) async fn run(shared: Arc<Shared>, items: mpsc::Receiver<ToSettle>) {
    let tasks = TaskTracker::new();
    let mut groups = Groups::new(items);
    let mut under_way = FuturesUnordered::new();
    loop {
        let has_room = under_way.len() < GROUPS_AT_ONCE;
        tokio::select! {
            biased;
            Some(ended) = under_way.next() => note_panic(ended),
            group = groups.next(&shared.settler.closed), if has_room => match group {
                // What fails in one group must not end the others.
                Some(group) => under_way.push(
                    AssertUnwindSafe(settle_group(&shared, group, &tasks)).catch_unwind(),
                ),
                None => break,
            },
        }
    }
    under_way.for_each(async |ended| note_panic(ended)).await;
    tasks.close();
    tasks.wait().await;
}

fn note_panic(ended: thread::Result<()>) {
    if ended.is_err() {
        tracing::error!("settling panicked: some jobs stay with this worker until it ends");
    }
}

/// What is to be settled, in groups.
struct Groups {
    items: mpsc::Receiver<ToSettle>,
    /// Gathered so far.
    group: Vec<ToSettle>,
    /// When the next may set out, if it is not full.
    next_at: Instant,
}

impl Groups {
    fn new(items: mpsc::Receiver<ToSettle>) -> Self {
        Self { items, group: Vec::with_capacity(GROUP), next_at: Instant::now() }
    }

    /// The next group; `None` once all is taken and nothing more is to come. Nothing is lost where it is
    /// dropped before its end.
    async fn next(&mut self, closed: &CancellationToken) -> Option<Vec<ToSettle>> {
        let Self { items, group, next_at } = self;
        while group.is_empty() {
            tokio::select! {
                biased;
                count = items.recv_many(group, GROUP) => if count == 0 { return None },
                () = closed.cancelled() => items.close(),
            }
        }
        while group.len() < GROUP && Instant::now() < *next_at {
            tokio::select! {
                biased;
                count = items.recv_many(group, GROUP - group.len()) => if count == 0 { break },
                () = sleep_until(*next_at) => break,
            }
        }
        *next_at = Instant::now() + APART;
        Some(std::mem::replace(group, Vec::with_capacity(GROUP)))
    }
}

async fn settle_group(shared: &Arc<Shared>, group: Vec<ToSettle>, later: &TaskTracker) {
    let Completed { stored, rest } = complete(&shared.recorder, group).await;
    let tries = rest.into_iter().map(|item| async {
        match shared.record(&item).await {
            Ok(word) => {
                shared.note_recorded(&item);
                Some((item, word))
            }
            Err(error) => {
                shared.note_unrecorded(&item, &error, Tried::Once);
                later.spawn(settle_stubborn(shared.clone(), item));
                None
            }
        }
    });
    let mut recorded: Vec<(ToSettle, Word)> = join_all(tries).await.into_iter().flatten().collect();
    for item in &stored {
        shared.note_recorded(item);
    }
    recorded.extend(stored.into_iter().map(|item| (item, Word::Ack)));
    shared.say(&mut recorded).await;
}

/// Tries again, for as long as the job is ours.
async fn settle_stubborn(shared: Arc<Shared>, item: ToSettle) {
    let unsettled = &shared.queues[item.work.lane.queue].unsettled;
    unsettled.begin();
    let word = shared.record_at_last(&item).await;
    unsettled.end();
    match word {
        Some(word) => shared.say(&mut [(item, word)]).await,
        None => {
            tracing::warn!(job = %item.work.key.id, "the lease is lost before the outcome was recorded");
            shared.release(&item.work);
        }
    }
}

impl Shared {
    /// Settles a job that was not started here.
    pub(super) async fn settle(&self, work: Work, settlement: Settlement) {
        self.settler.settle(ToSettle { work, settlement, started_at: None }).await;
    }

    /// Tries again to put on record what became of a job, while it is ours.
    async fn record_at_last(&self, item: &ToSettle) -> Option<Word> {
        let mut pause = Pause::default();
        while !item.work.lease.is_lost_at(Instant::now()) {
            sleep(pause.next()).await;
            match self.record(item).await {
                Ok(word) => {
                    self.note_recorded(item);
                    return Some(word);
                }
                Err(error) => self.note_unrecorded(item, &error, Tried::Again),
            }
        }
        None
    }

    /// Puts on record what became of a job.
    async fn record(&self, item: &ToSettle) -> Result<Word> {
        let ToSettle { work, settlement, started_at } = item;
        let recorder = &self.recorder;
        let letters = Part::Records(work.lane.queue, RecordKind::Dead);
        let (mut letter, mut after) = (None, work.attempt.ledger);
        for step in steps(settlement, *started_at) {
            match step {
                Step::Entry(event) => {
                    match self.enter_ledger(work, after, settlement, *event).await? {
                        Some(entry) => after = entry,
                        None => return Ok(NOT_SAID),
                    }
                }
                Step::Letter => match self.dead_letter(work, settlement).await {
                    Ok(stored) => {
                        self.supervision.clear(letters);
                        letter = stored;
                    }
                    Err(why) if has_no_place(&why) => {
                        tracing::debug!(job = %work.key.id, %why, "no place for a dead letter");
                        self.supervision.report(letters, &why);
                        self.enter_ledger(work, after, settlement, AttemptEvent::ToBury).await?;
                        return Ok(Word::Nak(DEAD_FULL_DELAY));
                    }
                    Err(error) => return Err(error),
                },
                Step::Completion(status) => {
                    let ended = recorder.fence(work, self.completion_of(item, *status)).await?;
                    if let (Some(letter), Fence::Ended(other)) = (letter, ended)
                        && other != Status::Dead
                    {
                        recorder.withdraw(work, letter).await?;
                    }
                }
            }
        }
        self.last_word(work, settlement).await
    }

    async fn enter_ledger(
        &self,
        work: &Work,
        after: u64,
        settlement: &Settlement,
        event: AttemptEvent,
    ) -> Result<Option<u64>> {
        // What is put off is put off for that long at least.
        let now = self.clock.latest();
        self.write_down(work, after, event, |entry| fill(entry, settlement, now)).await
    }

    /// Adds an entry to the ledger behind the one at `after`; its sequence. `None` where another worker
    /// has added one since, and so has the job: the lease is lost, whatever was thought of it.
    pub(super) async fn write_down(
        &self,
        work: &Work,
        after: u64,
        event: AttemptEvent,
        fill: impl FnOnce(&mut AttemptRecord),
    ) -> Result<Option<u64>> {
        match self.recorder.attempt(work, after, event, fill).await? {
            Entered::Stored(sequence) => Ok(Some(sequence)),
            Entered::Overtaken => {
                tracing::warn!(job = %work.key.id, "another worker has gone on with the job");
                work.lease.stop(Stop::LeaseLost);
                Ok(None)
            }
        }
    }

    /// Stores the dead letter of a job that is to be buried, and no other; its sequence.
    async fn dead_letter(&self, work: &Work, settlement: &Settlement) -> Result<Option<u64>> {
        let Settlement::Bury { reason, error } = settlement else { return Ok(None) };
        self.recorder.dead_letter(work, *reason, error).await.map(Some)
    }

    fn completion_of(&self, item: &ToSettle, status: Status) -> Completion {
        let ToSettle { work, settlement, started_at } = item;
        let recorder = &self.recorder;
        let mut completion = recorder.completion(work, status, *started_at);
        match settlement {
            Settlement::Complete { result } => return recorder.done(work, *started_at, result),
            Settlement::Cancel { reason } => completion.reason = Some(reason.clone()),
            Settlement::Expire => {
                completion.attempt = 0;
                completion.reason = Some("not started by its expiry".to_owned());
            }
            Settlement::Bury { reason, error } => {
                completion.reason = Some(reason.as_str().to_owned());
                completion.error = Some((**error).clone());
            }
            Settlement::Retry { .. }
            | Settlement::Snooze { .. }
            | Settlement::Release { .. }
            | Settlement::PutOff { .. }
            | Settlement::Forget => {}
        }
        completion
    }

    /// What is left to tell the broker, now that everything is on record.
    async fn last_word(&self, work: &Work, settlement: &Settlement) -> Result<Word> {
        let number = work.attempt.number;
        match settlement {
            Settlement::Complete { .. }
            | Settlement::Cancel { .. }
            | Settlement::Expire
            | Settlement::Forget => Ok(Word::Ack),
            Settlement::Bury { reason, .. } => {
                let (job, kind, reason) = (&work.key.id, &work.key.kind, reason.as_str());
                tracing::info!(%job, %kind, reason, "buried");
                Ok(Word::Ack)
            }
            Settlement::Retry { delay, .. } => self.put_off(work, *delay, number).await,
            Settlement::Snooze { delay, .. } => {
                self.put_off(work, *delay, number.saturating_sub(1)).await
            }
            Settlement::PutOff { delay, used } => self.put_off(work, *delay, *used).await,
            Settlement::Release { delay } => Ok(Word::Nak(*delay)),
        }
    }

    /// Tells the broker of a group, and returns when it has seen all of it. What it does not see is
    /// handed out again, looked up, and then acked.
    ///
    /// The jobs are let go of first: one that is given back can be here again before the broker's
    /// answer is.
    async fn say(&self, group: &mut [(ToSettle, Word)]) {
        // In the order of the stream, one group after the other: taking the first message off is what costs
        // the broker least.
        group.sort_unstable_by_key(|(item, _)| (item.work.lane, item.work.sequence));
        let mut words = Vec::with_capacity(group.len());
        let now = Instant::now();
        for (item, word) in &*group {
            let ack = item.work.lease.settle_at(now);
            words.extend(ack.map(|ack| (item.work.lane, ack, *word)));
        }
        self.leases.release(group.iter().map(|(item, _)| &item.work.job));
        let turn = self.settler.turn.lock().await;
        let mut barriers = Vec::new();
        for of_lane in words.chunk_by(|(lane, ..), (next, ..)| lane == next) {
            let [plain @ .., last] = of_lane else { continue };
            let before = plain.iter().map(|(_, ack, word)| (ack, *word));
            if let Err(error) = say_each(&self.conn, before).await {
                tracing::debug!(%error, "acks were not sent");
            }
            barriers.push(self.say_last(last, of_lane));
        }
        let mut confirmed = pin!(join_all(barriers));
        // What is asked is sent when it is first polled.
        let is_confirmed = poll!(confirmed.as_mut()).is_ready();
        drop(turn);
        if !is_confirmed {
            confirmed.await;
        }
    }

    /// Says the last word that is told of a lane, and waits until the broker has seen all of them.
    async fn say_last(&self, (lane, ack, word): &Told, told: &[Told]) {
        match ack.say_surely(&self.conn, *word).await {
            Ok(()) => {}
            // That it was refused may have been lost among many refusals.
            Err(error) if error.is_unknown() => {
                let error = self.may_settle(*lane).await.err().unwrap_or(error);
                self.note_unsaid(*lane, told, &error);
            }
            Err(error) => self.note_unsaid(*lane, told, &error),
        }
    }
}
