//! How a long job tells its caller how far it is, and how the caller stops it.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, ErrorKind, Result};
use crate::range::ByteRange;

/// Told how much of a job is done. Called often, from any of the job's threads: it must be quick.
pub trait Progress: Send + Sync {
    /// `done` of `total` bytes of work are finished.
    fn advanced(&self, done: u64, total: u64);

    /// `range` of a source's disk could not be read, for this reason, and is taken for zeroes. Only jobs that were told to go
    /// on over errors say so.
    fn unreadable(&self, range: ByteRange, error: &Error) {
        let _ = (range, error);
    }
}

/// What a caller can do with a running job: hear of its progress, and cancel it.
#[derive(Default)]
pub struct Control<'a> {
    /// Told of progress, if anybody wants to know.
    pub progress: Option<&'a dyn Progress>,
    /// Set to `true` by the caller, at any time, to stop the job at its next step.
    pub cancel: Option<&'a AtomicBool>,
}

impl std::fmt::Debug for Control<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("cancel", &self.cancel).finish_non_exhaustive()
    }
}

impl Control<'_> {
    /// Tells the listener, if there is one.
    pub(crate) fn report(&self, done: u64, total: u64) {
        if let Some(progress) = self.progress {
            progress.advanced(done, total);
        }
    }

    /// [`ErrorKind::Cancelled`] once the caller has asked for it.
    pub(crate) fn check(&self) -> Result<()> {
        match self.cancel {
            Some(flag) if flag.load(Ordering::Relaxed) => Err(Error::new(ErrorKind::Cancelled)),
            _ => Ok(()),
        }
    }
}
