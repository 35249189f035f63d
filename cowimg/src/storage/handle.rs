//! A storage in several hands: an [`Arc`] of one is one, so that a decorator and its owner can both have it.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::{Storage, StorageExtent};
use crate::range::ByteRange;

impl<S: Storage + ?Sized> Storage for Arc<S> {
    fn len(&self) -> io::Result<u64> {
        S::len(self)
    }

    fn is_empty(&self) -> io::Result<bool> {
        S::is_empty(self)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        S::read_at(self, buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        S::write_at(self, buf, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        S::set_len(self, len)
    }

    fn sync(&self) -> io::Result<()> {
        S::sync(self)
    }

    fn is_read_only(&self) -> bool {
        S::is_read_only(self)
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
        S::read_vectored_at(self, bufs, offset)
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        S::write_vectored_at(self, bufs, offset)
    }

    fn write_zeroes(&self, range: ByteRange) -> io::Result<()> {
        S::write_zeroes(self, range)
    }

    fn punch_hole(&self, range: ByteRange) -> io::Result<bool> {
        S::punch_hole(self, range)
    }

    fn allocate(&self, range: ByteRange) -> io::Result<()> {
        S::allocate(self, range)
    }

    fn extent_at(&self, offset: u64) -> io::Result<Option<StorageExtent>> {
        S::extent_at(self, offset)
    }

    fn copy_from(&self, source: &dyn Storage, from: u64, to: ByteRange) -> io::Result<()> {
        (**self).copy_from(source, from, to)
    }

    fn host_file(&self) -> Option<BorrowedFd<'_>> {
        (**self).host_file()
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        S::allocated_bytes(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{MemoryStorage, conformance};

    #[test]
    fn a_handle_conforms() {
        conformance::run(&mut || Box::new(Arc::new(MemoryStorage::new())));
    }
}
