//! Worker.
pub(crate) mod pick;
