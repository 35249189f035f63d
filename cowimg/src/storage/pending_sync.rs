//! Whether a file has changed since it was last synced: a sync that finds nothing to write may still make a disk empty its
//! cache, and a commit of metadata asks for several.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError};

/// Whether a sync has anything to do.
#[derive(Debug)]
pub(super) struct PendingSync {
    flag: AtomicBool,
    /// Held by the sync that runs. One that is asked for meanwhile waits for it, as it may be what makes the caller's
    /// writes durable.
    syncing: Mutex<()>,
}

impl Default for PendingSync {
    /// What others have written before may not be durable.
    fn default() -> PendingSync {
        PendingSync { flag: AtomicBool::new(true), syncing: Mutex::new(()) }
    }
}

impl PendingSync {
    /// To be held over a change of the file.
    pub(super) fn change(&self) -> Change<'_> {
        Change { pending: self }
    }

    /// Calls `sync`, unless nothing has changed since that last succeeded.
    pub(super) fn sync(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let _syncing = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.flag.swap(false, SeqCst) {
            return Ok(());
        }
        sync().inspect_err(|_| self.flag.store(true, SeqCst))
    }
}

/// A change that is under way; once it has ended, however it did, there is something to sync.
#[must_use]
pub(super) struct Change<'a> {
    pending: &'a PendingSync,
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        // A flag that is up covers this change: it is taken down before a sync begins.
        if !self.pending.flag.load(SeqCst) {
            self.pending.flag.store(true, SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a sync reaches the host.
    fn reaches(pending: &PendingSync) -> bool {
        let mut called = false;
        pending
            .sync(|| {
                called = true;
                Ok(())
            })
            .unwrap();
        called
    }

    #[test]
    fn what_has_changed_is_synced_once() {
        let pending = PendingSync::default();
        assert!(reaches(&pending), "what was there before may not be durable");
        assert!(!reaches(&pending));
        drop(pending.change());
        assert!(reaches(&pending));
        assert!(!reaches(&pending));
    }

    #[test]
    fn a_change_that_ends_during_a_sync_is_left_to_the_next() {
        let pending = PendingSync::default();
        let change = pending.change();
        let ends_meanwhile = || {
            drop(change);
            Ok(())
        };
        pending.sync(ends_meanwhile).unwrap();
        assert!(reaches(&pending));
    }

    #[test]
    fn a_sync_that_failed_is_to_be_done_still() {
        let pending = PendingSync::default();
        assert!(pending.sync(|| Err(io::Error::other("no disk"))).is_err());
        assert!(reaches(&pending));
    }

    #[test]
    fn a_sync_waits_for_the_one_that_runs() {
        let (pending, done) = (PendingSync::default(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let (started, wait) = std::sync::mpsc::channel();
            let (pending, done) = (&pending, &done);
            scope.spawn(move || {
                let slow = || {
                    started.send(()).unwrap();
                    std::thread::sleep(std::time::Duration::from_millis(50));
                    done.store(true, SeqCst);
                    Ok(())
                };
                pending.sync(slow).unwrap();
            });
            wait.recv().unwrap();
            assert!(!reaches(pending));
            assert!(done.load(SeqCst), "the second returned while the first was at work");
        });
    }
}
