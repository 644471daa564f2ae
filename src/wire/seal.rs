//! Sealed payloads on the wire: the header that names the key, and what a seal is bound to.

use super::scope::{Fields, Scope};
use super::subject::RecordKey;
use crate::token::is_token;

const VERSION: &str = "v1";
const LABEL: &str = "tidemill.seal.v1";

/// The longest header that is looked at.
const MAX_BYTES: usize = 192;

/// By which key a body is sealed, and for which jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SealHeader {
    pub(crate) key: String,
    pub(crate) scope: Scope,
}

impl SealHeader {
    /// Reads `v1;<key id>` or `v1;<key id>;cron:<name>`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text.len() > MAX_BYTES {
            return None;
        }
        let mut parts = text.split(';');
        let version = parts.next()?;
        let key = parts.next().filter(|key| is_token(key))?.to_owned();
        let scope = Scope::read(parts)?;
        (version == VERSION).then_some(Self { key, scope })
    }

    pub(crate) fn to_text(&self) -> String {
        format!("{VERSION};{}{}", self.key, self.scope.suffix())
    }

    /// The associated data of a job's payload: where it belongs, whatever its lane and run, which copies
    /// change. `None` where the seal cannot be for this job.
    pub(crate) fn bound_to(&self, job: &RecordKey) -> Option<Vec<u8>> {
        let mut fields = Fields::new(LABEL);
        for field in
            [self.scope.word(), job.queue.as_str(), job.kind.as_str(), self.scope.name_of(&job.id)?]
        {
            fields.add(field);
        }
        Some(fields.into_bytes())
    }
}

/// The associated data of a result, which never leaves its run.
pub(crate) fn result_bound_to(run: &RecordKey) -> Vec<u8> {
    let RecordKey { queue, kind, id, run } = run;
    let mut fields = Fields::new(LABEL);
    for field in ["result", queue.as_str(), kind.as_str(), id.as_str(), run.as_str()] {
        fields.add(field);
    }
    fields.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_written_as_they_are_read() {
        for text in ["v1;k1", "v1;k-2_x;cron:nightly"] {
            assert_eq!(SealHeader::parse(text).expect(text).to_text(), text);
        }
        let long = format!("v1;{}", "k".repeat(65));
        for bad in ["", "v1", "v1;", "v2;k1", "v1;k 1", "v1;k1;nightly", "v1;k1;cron:a;b", &long] {
            assert_eq!(SealHeader::parse(bad), None, "{bad}");
        }
    }
}
