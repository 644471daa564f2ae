//! A subject that is handed over.

use std::cell::Cell;

use async_nats::{Subject, ToSubject};

/// The client library takes a copy of a subject for each message; of this it takes the subject itself. Only
/// for what asks for it once, as publishing does: after that it is empty, and refused.
pub(super) struct Given(Cell<Option<Subject>>);

impl Given {
    pub(super) fn new(subject: impl Into<Subject>) -> Self {
        Self(Cell::new(Some(subject.into())))
    }
}

impl ToSubject for Given {
    fn to_subject(&self) -> Subject {
        self.0.take().unwrap_or(Subject::from_static(""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_given_once_and_not_copied() {
        let text = String::from("tm.results.q");
        let at = text.as_ptr();
        let given = Given::new(text.into_boxed_str().into_string());
        let subject = given.to_subject();
        assert_eq!((&*subject, subject.as_ptr()), ("tm.results.q", at));
        assert_eq!(&*given.to_subject(), "");
    }
}
