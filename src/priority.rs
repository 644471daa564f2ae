//! The four priorities and the weights by which their lanes are served.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How urgent a job is. Each priority of a queue is a lane of its own.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// First in line; weight 8 by default.
    Critical,
    /// Weight 4 by default.
    High,
    /// What a job has if it names nothing; weight 2 by default.
    #[default]
    Normal,
    /// Last in line, but never starved; weight 1 by default.
    Low,
}

impl Priority {
    /// All priorities, the most urgent first.
    pub const ALL: [Self; 4] = [Self::Critical, Self::High, Self::Normal, Self::Low];

    /// The name used in subjects, consumers and records.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
        }
    }

    /// The position in [`Priority::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Priority {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|priority| priority.as_str() == text).ok_or_else(|| {
            Error::invalid(format!(
                "priority {text:?} is not known: use critical, high, normal or low"
            ))
        })
    }
}

/// The largest weight a lane or a queue can have.
pub const MAX_WEIGHT: u32 = 100;

/// How often each lane of a queue is served while all have jobs, as whole-number shares.
///
/// The default is 8:4:2:1. See [`Weights::bound`] for what a lane can count on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weights([u32; 4]);

impl Weights {
    /// Weights in the order critical, high, normal, low.
    ///
    /// # Errors
    /// [`Error::is_invalid`] where one is not in 1 to [`MAX_WEIGHT`].
    pub fn new(weights: [u32; 4]) -> Result<Self> {
        match weights.iter().find(|weight| !(1..=MAX_WEIGHT).contains(*weight)) {
            None => Ok(Self(weights)),
            Some(weight) => {
                Err(Error::invalid(format!("weight {weight} is not in 1 to {MAX_WEIGHT}")))
            }
        }
    }

    /// The weight of one lane.
    pub fn of(&self, priority: Priority) -> u32 {
        self.0[priority.index()]
    }

    pub(crate) fn as_array(&self) -> &[u32; 4] {
        &self.0
    }
}

impl Default for Weights {
    /// 8:4:2:1.
    fn default() -> Self {
        Self([8, 4, 2, 1])
    }
}
