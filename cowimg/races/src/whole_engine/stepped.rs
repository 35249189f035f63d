//! A storage in which every call is a step of its thread, and which can fail guest data on request.

use std::io::{self, IoSlice, IoSliceMut};

use cowimg::ByteRange;
use cowimg::storage::{FaultyStorage, MemoryStorage, Storage, StorageExtent};
use shuttle::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// A buffer that begins with this is written, and then the call fails: the worst that a disk does.
pub(super) const POISON: u8 = 0xee;

/// Memory that remembers what a power cut could leave of it. Whoever is about to use it may have to wait for others.
#[derive(Debug)]
pub(super) struct SteppedStorage {
    inner: FaultyStorage,
    steps: AtomicU64,
}

impl SteppedStorage {
    pub(super) fn new(bytes: &[u8]) -> SteppedStorage {
        let inner = FaultyStorage::new(MemoryStorage::with_bytes(bytes));
        SteppedStorage { inner, steps: AtomicU64::new(0) }
    }

    pub(super) fn recorded(&self) -> &FaultyStorage {
        &self.inner
    }

    fn step(&self) {
        self.steps.fetch_add(1, SeqCst);
    }
}

impl Storage for SteppedStorage {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.step();
        self.inner.read_at(buf, offset)
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
        self.step();
        self.inner.read_vectored_at(bufs, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        self.write_vectored_at(&[IoSlice::new(buf)], offset)
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        self.step();
        let written = self.inner.write_vectored_at(bufs, offset)?;
        let is_poisoned = bufs.iter().find_map(|buf| buf.first()) == Some(&POISON);
        if is_poisoned { Err(io::Error::from(io::ErrorKind::StorageFull)) } else { Ok(written) }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.step();
        self.inner.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.step();
        self.inner.sync()
    }

    fn is_read_only(&self) -> bool {
        self.inner.is_read_only()
    }

    fn write_zeroes(&self, range: ByteRange) -> io::Result<()> {
        self.step();
        self.inner.write_zeroes(range)
    }

    fn punch_hole(&self, range: ByteRange) -> io::Result<bool> {
        self.step();
        self.inner.punch_hole(range)
    }

    fn allocate(&self, range: ByteRange) -> io::Result<()> {
        self.step();
        self.inner.allocate(range)
    }

    fn extent_at(&self, offset: u64) -> io::Result<Option<StorageExtent>> {
        self.inner.extent_at(offset)
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        self.inner.allocated_bytes()
    }
}
