//! Rule W8: after an I/O error that may leave memory and file different, the image takes no more writes; nor does it
//! after damage was met (`damage.rs`), when what was acknowledged can still be committed.
//!
//! Reads go on: they are answered from what memory holds, which is what was acknowledged.

use std::sync::OnceLock;

use crate::corruption::Corruption;
use crate::error::{Error, ErrorKind, Result};

/// The first such error of an image, kept for as long as the image is open.
#[derive(Debug, Default)]
pub(super) struct Failure {
    first: OnceLock<String>,
    damage: OnceLock<Corruption>,
}

impl Failure {
    /// Refuses when an error has been recorded.
    pub(super) fn check(&self) -> Result<()> {
        match self.first.get() {
            None => Ok(()),
            Some(first) => Err(Error::new(ErrorKind::Failed { first: first.clone() })),
        }
    }

    /// The same, also when damage has been recorded: nothing new is to be begun then.
    pub(super) fn check_for_change(&self) -> Result<()> {
        match self.damage.get() {
            None => self.check(),
            Some(met) => Err(Error::new(ErrorKind::MarkedCorrupt { met: Some(met.clone()) })),
        }
    }

    /// Records damage; whether it is the first.
    pub(super) fn record_damage(&self, met: &Corruption) -> bool {
        self.damage.set(met.clone()).is_ok()
    }

    /// Whether damage has been recorded.
    pub(super) fn is_damaged(&self) -> bool {
        self.damage.get().is_some()
    }

    /// Records `error` if it is the first one, and hands it back.
    pub(super) fn record(&self, error: Error) -> Error {
        let _already_set = self.first.set(error.to_string());
        error
    }

    /// Whether an error has been recorded.
    pub(super) fn has_failed(&self) -> bool {
        self.first.get().is_some()
    }
}
