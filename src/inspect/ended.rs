//! The jobs of a queue that have ended, a page at a time, by their completions.

use std::collections::VecDeque;

use futures_util::future::try_join_all;
use futures_util::stream::{self, Stream};

use super::{JobFilter, JobInfo};
use crate::broker::Start;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::wire::{Completion, RecordKey, RecordKind, Status, parse_record, record_filter};

/// The first letter of places in such a list.
const AMONG_RESULTS: char = 'r';

/// Completions read at once.
const PAGE: usize = 1000;

impl Client {
    /// The jobs of a queue that ended like this and are still on record, in the order of their ends.
    pub(super) fn ended_jobs(
        &self,
        filter: JobFilter,
        status: Status,
    ) -> impl Stream<Item = Result<JobInfo>> + Send + use<> {
        let walk = Walk {
            client: self.clone(),
            filter,
            status,
            page: VecDeque::new(),
            next: Next::Unknown,
        };
        stream::try_unfold(
            walk,
            |mut walk| async move { Ok(walk.next().await?.map(|job| (job, walk))) },
        )
    }
}

/// From where on is read.
enum Next {
    /// Still to be told by the filter.
    Unknown,
    From(u64),
    Over,
}

struct Walk {
    client: Client,
    filter: JobFilter,
    status: Status,
    page: VecDeque<JobInfo>,
    next: Next,
}

impl Walk {
    async fn next(&mut self) -> Result<Option<JobInfo>> {
        loop {
            if let Some(job) = self.page.pop_front() {
                return Ok(Some(job));
            }
            match self.next {
                Next::Unknown => self.next = Next::From(self.start()?),
                Next::From(sequence) => self.turn_page(sequence).await?,
                Next::Over => return Ok(None),
            }
        }
    }

    fn start(&self) -> Result<u64> {
        if self.filter.tag.is_some() {
            let message = "jobs that have ended keep no tags: leave the tag out";
            return Err(Error::invalid(message));
        }
        let Some(cursor) = &self.filter.after else { return Ok(1) };
        let sequence = cursor.strip_prefix(AMONG_RESULTS).and_then(|text| text.parse::<u64>().ok());
        sequence.and_then(|sequence| sequence.checked_add(1)).ok_or_else(|| {
            let rule = "use one that a list of the same state has told";
            Error::invalid(format!("{cursor:?} is no place in a list of ended jobs: {rule}"))
        })
    }

    async fn turn_page(&mut self, from: u64) -> Result<()> {
        let JobFilter { queue, kind, .. } = &self.filter;
        let (ns, stream) = (self.client.namespace(), self.client.streams(queue).results);
        let subjects = record_filter(ns, RecordKind::Result, queue, kind.as_ref(), None);
        let batch =
            self.client.conn().batch(&stream, &subjects, Start::Sequence(from), PAGE).await?;
        self.next = match batch.messages.last() {
            Some(last) if !batch.is_last => Next::From(last.sequence + 1),
            Some(_) | None => Next::Over,
        };
        let read = batch.messages.iter().filter_map(|record| {
            let key = RecordKey::parse(ns, RecordKind::Result, &record.subject)?;
            let completion: Completion = parse_record(&key, &record.payload)?;
            Some((record.sequence, completion))
        });
        let wanted = read.filter(|(_, completion)| self.is_wanted(completion));
        let jobs =
            try_join_all(wanted.map(|(sequence, completion)| self.told(sequence, completion)));
        self.page = jobs.await?.into();
        Ok(())
    }

    fn is_wanted(&self, completion: &Completion) -> bool {
        completion.status == self.status
            && self.filter.priority.is_none_or(|lane| lane == completion.priority)
    }

    async fn told(&self, sequence: u64, completion: Completion) -> Result<JobInfo> {
        let job = self.client.ended(self.client.opened(completion)).await?;
        Ok(JobInfo { cursor: Some(format!("{AMONG_RESULTS}{sequence}")), ..job })
    }
}
