//! What is on record of a run: looked up where a delivery may not be the first.

use crate::broker::{Connection, Start, Stored};
use crate::error::{Error, ErrorKind, Result};
use crate::token::Namespace;
use crate::topology::StreamNames;
use crate::wire::time::Time;
use crate::wire::{
    AttemptEvent, AttemptRecord, Completion, ErrorInfo, RecordKey, RecordKind, Status,
    parse_record, record_filter, record_subject,
};

/// The ledger keeps this many entries of a run at most.
const MAX_ENTRIES: usize = 50;

/// What is on record of a run.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// It has ended already.
    pub(crate) has_ended: bool,
    /// Another run of its id was done so lately that this one is not to run.
    pub(crate) is_duplicate: bool,
    /// Attempts that count.
    pub(crate) used: u32,
    /// Snoozes so far.
    pub(crate) snoozes: u32,
    /// Not to be run before, and the sequence for which that was said.
    pub(crate) retry_at: Option<(u64, Time)>,
    /// Whether the last attempt was begun and never heard of again.
    pub(crate) was_lost: bool,
    /// It was to be buried, for this reason.
    pub(crate) to_bury: Option<String>,
    /// The last error.
    pub(crate) error: Option<ErrorInfo>,
    /// The sequence of its ledger's last entry, or 0.
    pub(crate) ledger: u64,
}

impl History {
    /// What the ledger of a run says by its last entry: each entry repeats what still counts of
    /// those before it.
    pub(super) fn of(last: AttemptRecord) -> Self {
        Self {
            has_ended: false,
            is_duplicate: false,
            used: last.used(),
            snoozes: last.snoozes,
            retry_at: last.retry_at.map(|time| (last.seq, time)),
            was_lost: last.event == AttemptEvent::Started,
            to_bury: last.reason,
            error: last.error,
            ledger: 0,
        }
    }
}

/// Looks up a run: whether it has ended, and its ledger.
///
/// The streams' leaders are asked, since the job may have been given back just after its last entry
/// was stored, and a replica may not have that yet.
pub(crate) async fn look_up(
    conn: &Connection,
    ns: &Namespace,
    streams: &StreamNames,
    key: &RecordKey,
) -> Result<History> {
    let ended = record_subject(ns, RecordKind::Result, key);
    let ledger = record_subject(ns, RecordKind::Attempt, key);
    let (ended, last) = tokio::try_join!(
        conn.last_of_leader(&streams.results, &ended),
        conn.last_of_leader(&streams.attempts, &ledger),
    )?;
    let has_ended =
        ended.and_then(|record| parse_record::<Completion>(key, &record.payload)).is_some();
    let sequence = last.as_ref().map_or(0, |last| last.sequence);
    let last = match last {
        Some(last) => match parse_record(key, &last.payload) {
            Some(entry) => Some(entry),
            None => last_genuine(conn, streams, &ledger, key, last.sequence).await?,
        },
        None => None,
    };
    let of_ledger = last.map_or_else(History::default, History::of);
    Ok(History { has_ended, ledger: sequence, ..of_ledger })
}

/// The last entry of a ledger whose very last message, of this sequence, is none.
async fn last_genuine(
    conn: &Connection,
    streams: &StreamNames,
    ledger: &str,
    key: &RecordKey,
    last: u64,
) -> Result<Option<AttemptRecord>> {
    let entries = conn.batch(&streams.attempts, ledger, Start::Sequence(1), MAX_ENTRIES).await?;
    if entries.messages.last().is_none_or(|newest| newest.sequence < last) {
        let message = format!("a replica of {} lags behind its leader", streams.attempts);
        return Err(Error::new(ErrorKind::Unavailable, message));
    }
    Ok(entries.messages.iter().rev().find_map(|entry| parse_record(key, &entry.payload)))
}

/// Whether a run of this id was done at `from` or later.
pub(crate) async fn done_since(
    conn: &Connection,
    ns: &Namespace,
    streams: &StreamNames,
    key: &RecordKey,
    from: Time,
) -> Result<bool> {
    const AT_ONCE: usize = 256;
    let filter = record_filter(ns, RecordKind::Result, &key.queue, Some(&key.kind), Some(&key.id));
    let is_done = |record: &Stored| {
        RecordKey::parse(ns, RecordKind::Result, &record.subject)
            .and_then(|key| parse_record::<Completion>(&key, &record.payload))
            .is_some_and(|completion| {
                completion.status == Status::Done && completion.finished_at >= from
            })
    };
    // The last one is asked of the leader: a replica may not have it yet.
    let Some(last) = conn.last_of_leader(&streams.results, &filter).await? else {
        return Ok(false);
    };
    if is_done(&last) {
        return Ok(true);
    }
    let mut start = Start::Time(from);
    loop {
        let batch = conn.batch(&streams.results, &filter, start, AT_ONCE).await?;
        if batch.messages.iter().any(is_done) {
            return Ok(true);
        }
        match batch.messages.last() {
            Some(last) if !batch.is_last => start = Start::Sequence(last.sequence + 1),
            Some(_) | None => return Ok(false),
        }
    }
}

/// The highest job sequence that the ledger's newest entries name. A broker that crashed may have
/// forgotten that it ever handed out a job up to there, and call its next delivery the first.
pub(crate) async fn highest_in_ledger(conn: &Connection, streams: &StreamNames) -> Result<u64> {
    const NEWEST: u64 = 1000;
    let last = conn.last_sequence(&streams.attempts).await?;
    let start = Start::Sequence(last.saturating_sub(NEWEST) + 1);
    let newest = conn.batch(&streams.attempts, ">", start, NEWEST as usize).await?;
    #[derive(serde::Deserialize)]
    struct Sequence {
        seq: u64,
    }
    let sequences = newest.messages.iter().filter_map(|entry| {
        serde_json::from_slice::<Sequence>(&entry.payload).ok().map(|entry| entry.seq)
    });
    Ok(sequences.max().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::{JobId, RunId};
    use crate::wire::time;

    fn entry(event: AttemptEvent, attempt: u32) -> AttemptRecord {
        AttemptRecord {
            v: AttemptRecord::V,
            id: JobId::new("a").expect("valid"),
            run: RunId::new("r").expect("valid"),
            seq: 9,
            attempt,
            event,
            at: time::from_nanos(0),
            retry_at: None,
            snoozes: 0,
            worker: "w".into(),
            error: None,
            reason: None,
        }
    }

    #[test]
    fn the_last_entry_as_a_table() {
        use AttemptEvent::{Failed, Released, Snoozed, Started, ToBury};
        let table: [(AttemptEvent, u32, bool); 5] = [
            (Failed, 3, false),
            (Started, 3, true),
            (Released, 2, false),
            (Snoozed, 2, false),
            (ToBury, 3, false),
        ];
        for (event, used, was_lost) in table {
            let history = History::of(entry(event, 3));
            assert_eq!((history.used, history.was_lost), (used, was_lost), "{event:?}");
        }
        assert_eq!(History::of(entry(Released, 0)).used, 0);
    }

    #[test]
    fn what_an_entry_orders_is_taken_over() {
        let history = History::of(AttemptRecord {
            retry_at: Some(time::from_nanos(5)),
            snoozes: 7,
            reason: Some("discarded".to_owned()),
            error: Some(ErrorInfo::new("failed", "no")),
            ..entry(AttemptEvent::Failed, 1)
        });
        assert_eq!(history.retry_at, Some((9, time::from_nanos(5))));
        assert_eq!(history.snoozes, 7);
        assert_eq!(history.to_bury.as_deref(), Some("discarded"));
        assert_eq!(history.error.expect("kept").message, "no");
    }
}
