//! What is on record of a run: looked up where a delivery may not be the first.

use crate::broker::{Connection, Start};
use crate::error::Result;
use crate::token::Namespace;
use crate::topology::StreamNames;
use crate::wire::time::Time;
use crate::wire::{
    AttemptEvent, AttemptRecord, Completion, ErrorInfo, RecordKey, RecordKind, parse_record,
    record_subject,
};

/// The ledger keeps this many entries of a run.
const MAX_ENTRIES: usize = 50;

/// What is on record of a run.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// It has ended already.
    pub(crate) has_ended: bool,
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
}

/// Reads the ledger of a run in its order.
pub(crate) fn fold(entries: impl IntoIterator<Item = AttemptRecord>) -> History {
    let mut history = History::default();
    for entry in entries {
        history.used = match entry.event {
            AttemptEvent::Started | AttemptEvent::Failed | AttemptEvent::ToBury => entry.attempt,
            AttemptEvent::Snoozed | AttemptEvent::Released => entry.attempt.saturating_sub(1),
        };
        history.snoozes = history.snoozes.max(entry.snoozes);
        history.was_lost = entry.event == AttemptEvent::Started;
        history.retry_at = entry.retry_at.map(|time| (entry.seq, time));
        history.to_bury = entry.reason;
        if entry.error.is_some() {
            history.error = entry.error;
        }
    }
    history
}

/// Looks up a run: first whether it has ended, then its ledger.
pub(crate) async fn look_up(
    conn: &Connection,
    ns: &Namespace,
    streams: &StreamNames,
    key: &RecordKey,
) -> Result<History> {
    let ended = record_subject(ns, RecordKind::Result, key);
    let ledger = record_subject(ns, RecordKind::Attempt, key);
    let (ended, ledger) = tokio::try_join!(
        conn.last(&streams.results, &ended),
        conn.batch(&streams.attempts, &ledger, Start::Sequence(1), MAX_ENTRIES),
    )?;
    let has_ended =
        ended.and_then(|record| parse_record::<Completion>(key, &record.payload)).is_some();
    let entries = ledger.messages.iter().filter_map(|entry| parse_record(key, &entry.payload));
    Ok(History { has_ended, ..fold(entries) })
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
    fn attempts_used_as_a_table() {
        use AttemptEvent::{Failed, Released, Snoozed, Started, ToBury};
        type Ledger = &'static [(AttemptEvent, u32)];
        let table: [(Ledger, u32, bool); 8] = [
            (&[], 0, false),
            (&[(Failed, 1)], 1, false),
            (&[(Failed, 1), (Started, 2)], 2, true),
            (&[(Failed, 1), (Started, 2), (Released, 2)], 1, false),
            (&[(Snoozed, 1)], 0, false),
            (&[(Failed, 1), (Started, 2), (Snoozed, 2), (Started, 2), (Failed, 2)], 2, false),
            (&[(Started, 1)], 1, true),
            (&[(Failed, 1), (Started, 2), (ToBury, 2)], 2, false),
        ];
        for (events, used, was_lost) in table {
            let history = fold(events.iter().map(|(event, attempt)| entry(*event, *attempt)));
            assert_eq!((history.used, history.was_lost), (used, was_lost), "{events:?}");
        }
    }

    #[test]
    fn only_the_last_word_binds() {
        let failed = AttemptRecord {
            retry_at: Some(time::from_nanos(5)),
            reason: None,
            error: Some(ErrorInfo::new("failed", "no")),
            ..entry(AttemptEvent::Failed, 1)
        };
        let history = fold([failed.clone()]);
        assert_eq!(history.retry_at, Some((9, time::from_nanos(5))));
        let history = fold([failed, entry(AttemptEvent::Started, 2)]);
        assert_eq!(history.retry_at, None);
        assert_eq!(history.error.expect("kept").message, "no");
    }
}
