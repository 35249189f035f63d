//! Rule W8: after an I/O error that may leave memory and file different, the image takes no more writes.
//!
//! Reads go on: they are answered from what memory holds, which is what was acknowledged.

use std::sync::OnceLock;

use crate::error::{Error, ErrorKind, Result};

/// The first such error of an image, kept for as long as the image is open.
#[derive(Debug, Default)]
pub(super) struct Failure {
    first: OnceLock<String>,
}

impl Failure {
    /// Refuses when an error has been recorded.
    pub(super) fn check(&self) -> Result<()> {
        match self.first.get() {
            None => Ok(()),
            Some(first) => Err(Error::new(ErrorKind::Failed { first: first.clone() })),
        }
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
