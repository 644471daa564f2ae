//! The fence around completions: of all who ever end a run, one wins.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::sleep;

use crate::broker::{Connection, Expect, Published};
use crate::error::{Error, ErrorKind, Result};
use crate::token::Namespace;
use crate::wire::{
    Completion, Headers, RecordKey, RecordKind, Status, parse_record, record_subject,
};

/// How often a publish is tried again because others are at it.
const TRIES: usize = 20;
const PAUSE: Duration = Duration::from_millis(20);

/// What the fence said.
#[derive(Debug)]
pub(crate) enum Fence {
    /// Our record stands.
    Ours,
    /// Another record of this run stands, or ours from before.
    Ended(Status),
}

/// Stores a completion, as JSON in `body`, unless the run has one.
pub(crate) async fn fence(
    conn: &Connection,
    ns: &Namespace,
    stream: &str,
    key: &RecordKey,
    body: Bytes,
) -> Result<Fence> {
    let subject = record_subject(ns, RecordKind::Result, key);
    let none = Headers::new();
    let mut expected = 0;
    for _ in 0..TRIES {
        let expect = Expect::Last(expected);
        match conn.store(subject.clone(), &none, body.clone(), expect).await? {
            Published::Stored(_) => return Ok(Fence::Ours),
            Published::InFlight => sleep(PAUSE).await,
            Published::WrongLast(last) => {
                let there = conn.last_of_leader(stream, &subject).await?;
                match there.and_then(|there| parse_record::<Completion>(key, &there.payload)) {
                    Some(completion) => return Ok(Fence::Ended(completion.status)),
                    // What stands there is no record of this run: go over it.
                    None => expected = last,
                }
            }
        }
    }
    Err(Error::new(ErrorKind::Unknown, format!("cannot store a completion on {subject}")))
}
