//! A storage that stops when its user asks for it: what a new image is written to.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::Result;
use crate::progress::Control;
use crate::range::ByteRange;
use crate::storage::{Storage, StorageExtent};

/// Bytes that are allocated between two looks at the flag.
const STEP: u64 = 1 << 30;

/// Decorator whose writes fail once the job is cancelled, and count as its progress.
#[derive(Debug)]
pub(super) struct CancellableStorage<'a> {
    inner: Arc<dyn Storage>,
    control: &'a Control<'a>,
    /// Bytes written and allocated.
    done: AtomicU64,
    /// About how many there will be.
    total: u64,
}

impl<'a> CancellableStorage<'a> {
    pub(super) fn new(
        inner: Arc<dyn Storage>,
        control: &'a Control<'a>,
        total: u64,
    ) -> CancellableStorage<'a> {
        CancellableStorage { inner, control, done: AtomicU64::new(0), total }
    }

    /// The result of writing everything: cancelled, if that is why a write failed.
    pub(super) fn outcome(&self, written: Result<()>) -> Result<()> {
        written.or_else(|error| self.control.check().and(Err(error)))
    }

    fn check(&self) -> io::Result<()> {
        self.control.check().map_err(io::Error::other)
    }

    fn advance(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        self.control.report(done.min(self.total), self.total);
    }
}

impl Storage for CancellableStorage<'_> {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.inner.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        self.check()?;
        let written = self.inner.write_at(buf, offset)?;
        self.advance(written as u64);
        Ok(written)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }

    fn is_read_only(&self) -> bool {
        self.inner.is_read_only()
    }

    fn write_zeroes(&self, range: ByteRange) -> io::Result<()> {
        self.check()?;
        self.inner.write_zeroes(range)
    }

    fn punch_hole(&self, range: ByteRange) -> io::Result<bool> {
        self.inner.punch_hole(range)
    }

    fn allocate(&self, range: ByteRange) -> io::Result<()> {
        let mut start = range.start();
        while start < range.end() {
            self.check()?;
            let step = ByteRange::between(start, start.saturating_add(STEP).min(range.end()));
            self.inner.allocate(step)?;
            self.advance(step.len());
            start = step.end();
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> io::Result<Option<StorageExtent>> {
        self.inner.extent_at(offset)
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        self.inner.allocated_bytes()
    }
}
