//! What seals and signatures are bound to, and the bytes in which it is told to the algorithms.

use crate::token::{CronName, JobId};

/// How a scope begins that is a cron entry.
const CRON: &str = "cron:";

/// Which jobs a seal or a signature is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// One, by its id.
    Job,
    /// All that a cron entry puts out, by its name: their ids are made when it fires.
    Cron(CronName),
}

impl Scope {
    /// Reads what stands at the end of a header; nothing there means the job.
    pub(super) fn read<'a>(mut rest: impl Iterator<Item = &'a str>) -> Option<Self> {
        let scope = match rest.next() {
            None => Self::Job,
            Some(text) => Self::Cron(CronName::new(text.strip_prefix(CRON)?).ok()?),
        };
        rest.next().is_none().then_some(scope)
    }

    /// How it is written at the end of a header.
    pub(super) fn suffix(&self) -> String {
        match self {
            Self::Job => String::new(),
            Self::Cron(name) => format!(";{CRON}{name}"),
        }
    }

    pub(super) const fn word(&self) -> &'static str {
        match self {
            Self::Job => "job",
            Self::Cron(_) => "cron",
        }
    }

    /// What stands for a job of this id: the id, or the entry's name. `None` where the job is not one
    /// that the entry has put out.
    pub(super) fn name_of<'a>(&'a self, id: &'a JobId) -> Option<&'a str> {
        match self {
            Self::Job => Some(id.as_str()),
            Self::Cron(name) => id.is_of_cron(name).then(|| name.as_str()),
        }
    }
}

/// Fields, each behind its length in four bytes, the highest first: no two lists of fields are the same
/// bytes.
pub(super) struct Fields(Vec<u8>);

impl Fields {
    pub(super) fn new(label: &str) -> Self {
        let mut fields = Self(Vec::new());
        fields.add(label);
        fields
    }

    pub(super) fn add(&mut self, field: impl AsRef<[u8]>) {
        let field = field.as_ref();
        self.count(field.len());
        self.0.extend_from_slice(field);
    }

    pub(super) fn count(&mut self, count: usize) {
        // No message is that large.
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.0.extend_from_slice(&count.to_be_bytes());
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_is_the_job_or_a_cron_entry() {
        let read = |text: &str| Scope::read(text.split(';').filter(|part| !part.is_empty()));
        let nightly = Scope::Cron(CronName::new("nightly").expect("valid"));
        assert_eq!(read(""), Some(Scope::Job));
        assert_eq!(read("cron:nightly"), Some(nightly.clone()));
        for other in ["nightly", "cron:", "cron:a.b", "cron:a;cron:b", "job"] {
            assert_eq!(read(other), None, "{other}");
        }
        let id = |text: &str| JobId::new(text).expect("valid");
        for (of, name) in [
            ("c-nightly", Some("nightly")),
            ("c-nightly-1764576000000000", Some("nightly")),
            ("c-nightly-", None),
            ("c-nightly-7-7", None),
            ("c-nightlyx", None),
            ("nightly", None),
        ] {
            assert_eq!(nightly.name_of(&id(of)), name, "{of}");
        }
        assert_eq!(Scope::Job.name_of(&id("order-17")), Some("order-17"));
    }
}
