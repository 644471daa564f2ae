//! The guide: one page for each topic.

#[doc = include_str!("what_can_be_lost.md")]
pub mod what_can_be_lost {}
