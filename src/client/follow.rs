//! Following a stream of records: everything in order, nothing missed, no consumer needed.
//!
//! The records are read from the stream by sequence; a plain subscription to their subjects only
//! wakes the reader. A lost connection or a missed wake-up therefore delays records and loses none.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::TryStreamExt;
use futures_util::stream::{self, Stream};

use super::Client;
use super::wakes::Wakes;
use crate::broker::{Start, Stored};
use crate::error::Result;
use crate::token::{JobId, Kind, Queue};
use crate::wire::time::Time;
use crate::wire::{
    AttemptRecord, Completion, Record, RecordKey, RecordKind, parse_record, record_filter,
};

/// Records read at once.
const BATCH: usize = 256;

/// Which records of a queue to follow.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct RecordFilter {
    /// The queue; `default` unless set.
    pub queue: Queue,
    /// Only this kind.
    pub kind: Option<Kind>,
    /// Only this id, over all its runs.
    pub id: Option<JobId>,
    /// From when on.
    pub since: Since,
}

impl RecordFilter {
    /// All records of a queue, from now on.
    pub fn queue(queue: Queue) -> Self {
        Self { queue, ..Self::default() }
    }

    /// Only records of this kind.
    #[must_use]
    pub fn kind(mut self, kind: Kind) -> Self {
        self.kind = Some(kind);
        self
    }

    /// Only records of this id.
    #[must_use]
    pub fn id(mut self, id: JobId) -> Self {
        self.id = Some(id);
        self
    }

    /// From when on.
    #[must_use]
    pub fn since(mut self, since: Since) -> Self {
        self.since = since;
        self
    }
}

/// From when on records are followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Since {
    /// Those that are stored from now on.
    #[default]
    Now,
    /// Those that were stored at this time or later, as far as they are still kept.
    Time(Time),
    /// All that are still kept.
    Start,
}

impl Client {
    /// Follows the completions of a queue, without end.
    ///
    /// # Errors
    /// `is_not_found` where the queue does not exist, `is_permission` where these credentials may
    /// not read it. The stream yields an error and ends where reading fails later for good.
    pub async fn completions(
        &self,
        filter: RecordFilter,
    ) -> Result<impl Stream<Item = Result<Completion>> + Send + use<>> {
        let records = self.follow(RecordKind::Result, filter, Bookmark::default()).await?;
        let client = self.clone();
        Ok(records.map_ok(move |(_, completion)| client.opened(completion)))
    }

    /// Follows the ledger of attempts of a queue, without end: failed ones above all. (A run that
    /// succeeds at once leaves nothing there, only its completion.)
    ///
    /// # Errors
    /// As [`Client::completions`].
    pub async fn attempts(
        &self,
        filter: RecordFilter,
    ) -> Result<impl Stream<Item = Result<AttemptRecord>> + Send + use<>> {
        let records = self.follow(RecordKind::Attempt, filter, Bookmark::default()).await?;
        Ok(records.map_ok(|(_, record)| record))
    }

    /// Follows records of a queue, each with whose it is, from where a bookmark is.
    pub(crate) async fn follow<R: Record + Send>(
        &self,
        record: RecordKind,
        filter: RecordFilter,
        bookmark: Bookmark,
    ) -> Result<impl Stream<Item = Result<(RecordKey, R)>> + Send + use<R>> {
        let follower = Follower::new(self.clone(), record, filter, bookmark).await?;
        Ok(stream::try_unfold(follower, |mut follower| async move {
            let record = follower.next().await?;
            Ok(Some((record, follower)))
        }))
    }
}

/// How far records were followed: with it, whoever follows again after an error misses none.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bookmark(Arc<AtomicU64>);

impl Bookmark {
    /// The sequence of the next record; `None` where nobody has begun to follow.
    fn next(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|next| *next > 0)
    }

    fn put(&self, next: u64) {
        self.0.store(next, Ordering::Relaxed);
    }
}

struct Follower {
    client: Client,
    record: RecordKind,
    stream: String,
    subjects: String,
    wakes: Wakes,
    position: Start,
    bookmark: Bookmark,
    read: VecDeque<Stored>,
}

impl Follower {
    async fn new(
        client: Client,
        record: RecordKind,
        filter: RecordFilter,
        bookmark: Bookmark,
    ) -> Result<Self> {
        let RecordFilter { queue, kind, id, since } = filter;
        let subjects = record_filter(&client.namespace, record, &queue, kind.as_ref(), id.as_ref());
        let stream = client.streams(&queue).of(record).to_owned();
        // Subscribed before the position is taken, so that nothing falls between.
        let wakes = Wakes::new(client.conn.subscribe(subjects.clone()).await?);
        let position = match (bookmark.next(), since) {
            (Some(next), _) => {
                let is_made_anew = next > client.conn.last_sequence(&stream).await? + 1;
                Start::Sequence(if is_made_anew { 1 } else { next })
            }
            (None, Since::Now) => {
                let next = client.conn.last_sequence(&stream).await? + 1;
                bookmark.put(next);
                Start::Sequence(next)
            }
            (None, Since::Time(from)) => Start::Time(from),
            (None, Since::Start) => Start::Sequence(1),
        };
        let read = VecDeque::new();
        Ok(Self { client, record, stream, subjects, wakes, position, bookmark, read })
    }

    async fn next<R: Record>(&mut self) -> Result<(RecordKey, R)> {
        loop {
            while let Some(stored) = self.read.pop_front() {
                self.position = Start::Sequence(stored.sequence + 1);
                self.bookmark.put(stored.sequence + 1);
                let key = RecordKey::parse(&self.client.namespace, self.record, &stored.subject);
                let Some(key) = key else { continue };
                if let Some(record) = parse_record(&key, &stored.payload) {
                    return Ok((key, record));
                }
            }
            self.refill().await?;
        }
    }

    async fn refill(&mut self) -> Result<()> {
        loop {
            self.wakes.take_queued();
            let conn = &self.client.conn;
            match conn.batch(&self.stream, &self.subjects, self.position, BATCH).await {
                Ok(batch) if !batch.messages.is_empty() => {
                    self.read.extend(batch.messages);
                    return Ok(());
                }
                Ok(_) => {}
                Err(error) if error.is_unknown() || error.is_unavailable() => {}
                Err(error) => return Err(error),
            }
            self.wakes.wait().await?;
        }
    }
}
