//! Wire protocol v1: subjects, headers and records. Pure; the contract is in the crate docs.

mod control;
mod cron;
mod headers;
mod job;
mod lapse;
mod message;
mod records;
mod scope;
mod seal;
mod signature;
mod subject;
pub(crate) mod time;
mod timer;

pub use control::RunningJob;
pub(crate) use control::{
    CancelRequest, RunningAnswer, RunningRequest, Verb, control_filter, control_subject,
};
pub use cron::Fired;
pub(crate) use cron::{
    CronKey, CronNote, Firing, cron_filter, entry_headers, fired_subject, job_headers,
};
pub use headers::Headers;
pub(crate) use headers::name;
pub(crate) use headers::{is_brokers, is_ours};
#[cfg(test)]
pub(crate) use job::RunAfter;
pub(crate) use job::{JobHeaders, JobOptions, Unique};
pub(crate) use lapse::{Lapse, lapse_subject};
pub(crate) use message::{MAX_HEADER_BYTES, Reading, read_job};
pub use records::{
    AttemptEvent, AttemptRecord, Completion, DeadInfo, ErrorInfo, Status, Unvouched,
};
pub(crate) use records::{Record, parse_record};
pub(crate) use scope::Scope;
pub(crate) use seal::{SealHeader, result_bound_to};
pub(crate) use signature::{SignatureHeader, signed_bytes};
pub(crate) use subject::{
    RecordKey, RecordKind, events_subject, guard_subject, job_subject, parse_due, parse_timed,
    record_filter, record_subject, timed_filter, timed_run_filter, timer_subject,
};
pub(crate) use timer::JobCopy;

/// The protocol version that this library writes and reads.
pub const PROTOCOL_VERSION: u32 = 1;

/// A block of test vectors out of the protocol's text, by its info string.
#[cfg(test)]
pub(crate) fn protocol_block(info: &str) -> &'static str {
    const TEXT: &str = include_str!("protocol.md");
    let start = format!("```{info}\n");
    let (_, rest) = TEXT.split_once(&start).expect("there is such a block");
    rest.split_once("\n```").expect("it ends").0
}
