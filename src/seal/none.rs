//! In place of keys, where the feature `seal` is off: there are none, so nothing is sealed, and what is
//! sealed is not opened.

use crate::error::Result;

#[derive(Clone, Debug)]
pub(crate) enum SealKeys {}

impl SealKeys {
    pub(crate) fn current(&self) -> &str {
        match *self {}
    }

    pub(super) fn has(&self, _: &str) -> bool {
        match *self {}
    }

    pub(super) fn ids(&self) -> Vec<&str> {
        match *self {}
    }

    pub(super) fn seal(&self, _: &[u8], _: &[u8]) -> Result<Vec<u8>> {
        match *self {}
    }

    pub(super) fn open(&self, _: &str, _: &[u8], _: &[u8]) -> Option<Vec<u8>> {
        match *self {}
    }
}
