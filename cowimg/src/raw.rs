//! The raw format: the guest's disk is the storage itself, byte for byte.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::disk::{Disk, OwnPart, ResizeOptions, ZeroMode};
use crate::error::{Error, ErrorKind, Result};
use crate::extent::{Extent, ExtentKind};
use crate::format::qcow2::layout::Preallocation;
use crate::progress::Control;
use crate::range::ByteRange;
use crate::storage::{Storage, StorageExt, StorageExtentKind};

/// An open raw image. A length that is not a multiple of 512 is rounded up, as a guest's sectors need it; what lies
/// past the end reads as zeroes.
#[derive(Debug)]
pub(crate) struct Raw {
    storage: Arc<dyn Storage>,
    writable: bool,
    size: AtomicU64,
}

impl Raw {
    /// Opens `storage`, to be written only if `writable`.
    pub(crate) fn open(storage: Arc<dyn Storage>, writable: bool) -> Result<Raw> {
        if writable && storage.is_read_only() {
            return Err(Error::new(ErrorKind::ReadOnly));
        }
        let len = storage.len().map_err(|error| Error::io("read the length of the file", error))?;
        Ok(Raw { storage, writable, size: AtomicU64::new(len.next_multiple_of(512)) })
    }

    /// Changes the size to `new_size` bytes. A device has the size that it has.
    pub(crate) fn resize(&self, new_size: u64, options: ResizeOptions, control: &Control<'_>) -> Result<()> {
        self.check_writable()?;
        let old_size = self.size();
        options.check(old_size, new_size)?;
        if options.preallocation == Preallocation::Metadata {
            return Err(Error::unsupported("a raw image has no metadata that could be preallocated"));
        }
        let old_len = self.storage.len().map_err(|error| Error::io("read the length of the file", error))?;
        let new = ByteRange::between(old_len.min(new_size), new_size);
        let resized = self.take_space(new, options.preallocation, control).and_then(|()| {
            self.storage.set_len(new_size).map_err(|error| Error::io("change the length of the file", error))
        });
        resized.inspect_err(|_| {
            // Space that was taken on the way is of no use to anybody.
            let _as_it_was = self.storage.set_len(old_len);
        })?;
        self.size.store(new_size.next_multiple_of(512), Ordering::Release);
        Ok(())
    }

    fn take_space(&self, new: ByteRange, preallocation: Preallocation, control: &Control<'_>) -> Result<()> {
        let step = match preallocation {
            Preallocation::Off | Preallocation::Metadata => return Ok(()),
            Preallocation::Falloc => 1 << 30,
            Preallocation::Full => 16 << 20,
        };
        let mut at = new.start();
        while at < new.end() {
            control.check()?;
            let piece = ByteRange::between(at, new.end().min(at + step));
            let taken = match preallocation {
                Preallocation::Full => self.storage.write_every_byte(piece),
                _ => self.storage.allocate(piece),
            };
            taken.map_err(|error| Error::io("preallocate the image", error))?;
            at = piece.end();
            control.report(at - new.start(), new.len());
        }
        Ok(())
    }

    /// Writes to `range` what `source` has from `from` on.
    pub(crate) fn copy_from(&self, source: &dyn Storage, from: u64, range: ByteRange) -> Result<()> {
        self.check_bounds(range.start(), range.len())?;
        self.check_writable()?;
        self.storage.copy_from(source, from, range).map_err(|error| Error::io("copy guest data", error))
    }

    fn check_writable(&self) -> Result<()> {
        if self.writable { Ok(()) } else { Err(Error::new(ErrorKind::ReadOnly)) }
    }

    fn check_bounds(&self, offset: u64, len: u64) -> Result<ByteRange> {
        let size = self.size();
        let range = ByteRange::new(offset, len).filter(|range| range.end() <= size);
        range.ok_or_else(|| {
            let asked = ByteRange::between(offset, offset.saturating_add(len));
            Error::new(ErrorKind::OutOfBounds { size }).at_range(asked)
        })
    }
}

impl Disk for Raw {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.check_bounds(offset, buf.len() as u64)?;
        self.storage.read_padded_at(buf, offset).map_err(|error| Error::io("read guest data", error))
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.check_bounds(offset, buf.len() as u64)?;
        self.check_writable()?;
        self.storage.write_all_at(buf, offset).map_err(|error| Error::io("write guest data", error))
    }

    fn write_zeroes(&self, range: ByteRange, mode: ZeroMode) -> Result<()> {
        self.check_bounds(range.start(), range.len())?;
        self.check_writable()?;
        let io = |error| Error::io("write zeroes", error);
        let released = mode == ZeroMode::Unmap && self.storage.punch_hole(range).map_err(io)?;
        if released { Ok(()) } else { self.storage.write_zeroes(range).map_err(io) }
    }

    fn discard(&self, range: ByteRange) -> Result<()> {
        self.check_bounds(range.start(), range.len())?;
        self.check_writable()?;
        let _kept_where_the_host_cannot =
            self.storage.punch_hole(range).map_err(|error| Error::io("discard", error))?;
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        if !self.writable {
            return Ok(());
        }
        self.storage.sync().map_err(|error| Error::io("sync the image to disk", error))
    }

    fn own_part(&self, range: ByteRange) -> Result<OwnPart> {
        Ok(OwnPart { answers: true, end: range.end(), stored: Some(range.start()) })
    }

    fn plain_storage(&self) -> Option<Arc<dyn Storage>> {
        Some(Arc::clone(&self.storage))
    }

    fn extent_at(&self, offset: u64, max_len: u64) -> Result<Extent> {
        self.check_bounds(offset, 0)?;
        let window = ByteRange::between(offset, offset.saturating_add(max_len).min(self.size()));
        let found = self.storage.extent_at(offset).map_err(|error| Error::io("look for holes", error))?;
        let (range, kind) = match found {
            // The bytes between the end of the file and the next sector.
            None => (window, ExtentKind::Zero),
            Some(extent) => match extent.kind {
                StorageExtentKind::Data => (extent.range, ExtentKind::Data),
                StorageExtentKind::Hole => (extent.range, ExtentKind::Zero),
            },
        };
        let extent = Extent { range, kind, depth: 0, host: Some(range.start()), reads_zero: false };
        Ok(extent.clipped_to(window))
    }
}
