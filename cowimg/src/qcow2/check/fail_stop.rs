//! The storage of a repair: once the host has failed to read from it, it takes no more changes. What could not be read is
//! not damaged, and a repair that took it for that would let go of what it refers to.

use std::io;
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::range::ByteRange;
use crate::storage::{Storage, StorageExtent};

/// Decorator that refuses changes after a look at the inner storage that failed. A storage that ends early has not failed.
#[derive(Debug)]
pub(super) struct FailStop<'a> {
    inner: &'a dyn Storage,
    first_failure: Mutex<Option<io::Error>>,
}

impl<'a> FailStop<'a> {
    pub(super) fn new(inner: &'a dyn Storage) -> FailStop<'a> {
        FailStop { inner, first_failure: Mutex::new(None) }
    }

    /// What has come of the work: the look that failed, if one did.
    pub(super) fn outcome<T>(self, done: Result<T>) -> Result<T> {
        match self.first_failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(Error::io("read the image", error)),
            None => done,
        }
    }

    fn looked<T>(&self, looked: io::Result<T>) -> io::Result<T> {
        looked.map_err(|error| {
            let again = io::Error::new(error.kind(), error.to_string());
            let mut first = self.first_failure.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert(error);
            again
        })
    }

    /// The inner storage, to be changed.
    fn changeable(&self) -> io::Result<&dyn Storage> {
        let first = self.first_failure.lock().unwrap_or_else(PoisonError::into_inner);
        match &*first {
            Some(error) => Err(io::Error::new(error.kind(), "not changed after a read that failed")),
            None => Ok(self.inner),
        }
    }
}

impl Storage for FailStop<'_> {
    fn len(&self) -> io::Result<u64> {
        self.looked(self.inner.len())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.looked(self.inner.read_at(buf, offset))
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        self.changeable()?.write_at(buf, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.changeable()?.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }

    fn is_read_only(&self) -> bool {
        self.inner.is_read_only()
    }

    fn write_zeroes(&self, range: ByteRange) -> io::Result<()> {
        self.changeable()?.write_zeroes(range)
    }

    fn punch_hole(&self, range: ByteRange) -> io::Result<bool> {
        self.changeable()?.punch_hole(range)
    }

    fn allocate(&self, range: ByteRange) -> io::Result<()> {
        self.changeable()?.allocate(range)
    }

    fn extent_at(&self, offset: u64) -> io::Result<Option<StorageExtent>> {
        self.looked(self.inner.extent_at(offset))
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        self.inner.allocated_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{Fault, FaultyStorage, MemoryStorage, OperationKind, StorageExt};

    #[test]
    fn nothing_changes_after_a_read_that_failed() {
        let faulty = FaultyStorage::new(MemoryStorage::with_bytes([7; 512]));
        let storage = FailStop::new(&faulty);
        storage.write_all_at(&[8; 8], 0).unwrap();
        // The end is no failure.
        assert_eq!(storage.read_at(&mut [0; 8], 1000).unwrap(), 0);
        storage.write_all_at(&[8; 8], 8).unwrap();
        faulty.inject(Fault::error(io::ErrorKind::Other).on(&[OperationKind::Read]));
        assert!(storage.read_at(&mut [0; 8], 0).is_err());
        assert_eq!(storage.read_at(&mut [0; 8], 0).unwrap(), 8);
        assert!(storage.write_all_at(&[9; 8], 0).is_err());
        assert!(storage.set_len(0).is_err());
        assert!(storage.outcome(Ok(())).is_err());
        let mut bytes = [0; 17];
        faulty.inner().read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes[..16], [8; 16]);
        assert_eq!(bytes[16], 7);
    }
}
