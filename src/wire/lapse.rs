//! What workers note for each other when a consumer has forgotten what it handed out.

use serde::{Deserialize, Serialize};

use super::records::VERSION;
use super::time::{Time, rfc3339};
use crate::token::{Namespace, Queue};

/// That a consumer's memory began anew: what was stored before may have been handed out before,
/// whatever the consumer says. Noted in the ledger of attempts before anything is handed out anew, for
/// workers that start later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lapse {
    v: u32,
    event: Lapsed,
    /// The consumer's name.
    consumer: String,
    /// What was stored later has not been handed out before.
    #[serde(with = "rfc3339")]
    pub(crate) before: Time,
    /// The worker that noted it.
    worker: String,
}

/// Tells the note from entries of the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Lapsed {
    Lapsed,
}

impl Lapse {
    pub(crate) fn new(consumer: &str, before: Time, worker: &str) -> Self {
        let (consumer, worker) = (consumer.to_owned(), worker.to_owned());
        Self { v: VERSION, event: Lapsed::Lapsed, consumer, before, worker }
    }

    /// Reads the last note about a consumer; `None` if it is none.
    pub(crate) fn read(body: &[u8], consumer: &str) -> Option<Self> {
        serde_json::from_slice::<Self>(body).ok().filter(|lapse| lapse.consumer == consumer)
    }
}

/// Where lapses of a consumer are noted, among the records of attempts: it is the subject of no run that
/// the library makes, and what else may stand there is no lapse.
pub(crate) fn lapse_subject(ns: &Namespace, queue: &Queue, consumer: &str) -> String {
    format!("{ns}.attempts.{queue}._.{consumer}.lapse")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::time;

    #[test]
    fn a_note_reads_as_it_was_written_and_nothing_else_does() {
        let before = time::parse("2026-12-01T10:00:00.5Z").expect("a time");
        let lapse = Lapse::new("low", before, "w");
        let text = serde_json::to_string(&lapse).expect("serializes");
        assert_eq!(text, crate::wire::protocol_block("json,lapse"));
        assert_eq!(Lapse::read(text.as_bytes(), "low"), Some(lapse));
        assert_eq!(Lapse::read(text.as_bytes(), "high"), None);
        for other in ["", "{}", &text.replace("lapsed", "failed")] {
            assert_eq!(Lapse::read(other.as_bytes(), "low"), None, "{other}");
        }
    }
}
