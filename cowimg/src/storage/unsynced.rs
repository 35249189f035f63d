//! A storage whose syncs do nothing: for images that nobody needs after a power cut, such as a conversion's target
//! before it has its name.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;

use super::{Storage, StorageExtent};
use crate::range::ByteRange;

/// Decorator that answers [`Storage::sync`] at once. Everything else is the inner storage's.
#[derive(Debug)]
pub struct UnsyncedStorage<S> {
    inner: S,
}

impl<S: Storage> UnsyncedStorage<S> {
    /// `inner` without its syncs.
    pub fn new(inner: S) -> UnsyncedStorage<S> {
        UnsyncedStorage { inner }
    }
}

impl<S: Storage> Storage for UnsyncedStorage<S> {
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.inner.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        self.inner.write_at(buf, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn is_read_only(&self) -> bool {
        self.inner.is_read_only()
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
        self.inner.read_vectored_at(bufs, offset)
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        self.inner.write_vectored_at(bufs, offset)
    }

    fn write_zeroes(&self, range: ByteRange) -> io::Result<()> {
        self.inner.write_zeroes(range)
    }

    fn punch_hole(&self, range: ByteRange) -> io::Result<bool> {
        self.inner.punch_hole(range)
    }

    fn allocate(&self, range: ByteRange) -> io::Result<()> {
        self.inner.allocate(range)
    }

    fn extent_at(&self, offset: u64) -> io::Result<Option<StorageExtent>> {
        self.inner.extent_at(offset)
    }

    fn copy_from(&self, source: &dyn Storage, from: u64, to: ByteRange) -> io::Result<()> {
        self.inner.copy_from(source, from, to)
    }

    fn host_file(&self) -> Option<BorrowedFd<'_>> {
        self.inner.host_file()
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        self.inner.allocated_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{MemoryStorage, conformance};

    #[test]
    fn it_conforms() {
        conformance::run(&mut || Box::new(UnsyncedStorage::new(MemoryStorage::new())));
    }
}
