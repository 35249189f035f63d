//! What a guest sees: a row of bytes of fixed size that can be read and, perhaps, written.
//!
//! Image engines implement [`Disk`] and receive their backing file as one; no engine opens anything.

use std::fmt;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::extent::Extent;
use crate::format::qcow2::layout::Preallocation;
use crate::range::ByteRange;
use crate::storage::Storage;

/// What may become of the space behind a range that is to read as zeroes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ZeroMode {
    /// Keep the space that is there, so that later writes need none.
    KeepSpace,
    /// Give the space back where that is possible.
    Unmap,
}

/// Whether a resize may take bytes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Shrink {
    /// It may not: a smaller size is refused.
    #[default]
    Refuse,
    /// It may: what lies beyond the new end is lost.
    Allow,
}

/// How a disk gets another size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ResizeOptions {
    /// How space is taken for what is new; anything but off wants a larger size.
    pub preallocation: Preallocation,
    /// Whether the disk may become smaller.
    pub shrink: Shrink,
}

impl ResizeOptions {
    /// Refuses what makes no sense for any format.
    pub(crate) fn check(self, old_size: u64, new_size: u64) -> Result<()> {
        if new_size <= old_size && self.preallocation != Preallocation::Off {
            return Err(Error::invalid(
                "only an image that grows can be preallocated: there is no new space",
            ));
        }
        if new_size < old_size && self.shrink == Shrink::Refuse {
            return Err(Error::invalid(format!(
                "the disk has {old_size} bytes and would lose all beyond {new_size}, which was not allowed"
            )));
        }
        Ok(())
    }
}

/// A guest's disk. One that can only be read leaves writing and flushing to the bodies given here.
///
/// Positional and thread-safe. A write that has returned is seen by every later read; it survives a power cut
/// after the next [`Disk::flush`] that has returned.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Size in bytes.
    fn size(&self) -> u64;

    /// Fills `buf` with the bytes at `offset`; the range must lie within the disk.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()>;

    /// Writes `buf` at `offset`; the range must lie within the disk.
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        let _: (&[u8], u64) = (buf, offset);
        Err(Error::new(ErrorKind::ReadOnly))
    }

    /// Makes the range read as zeroes.
    fn write_zeroes(&self, range: ByteRange, mode: ZeroMode) -> Result<()> {
        let _: (ByteRange, ZeroMode) = (range, mode);
        Err(Error::new(ErrorKind::ReadOnly))
    }

    /// Says that the guest no longer needs the range. What it reads as afterwards is zeroes where the format can say
    /// so without exposing older data, and its former content elsewhere.
    fn discard(&self, range: ByteRange) -> Result<()> {
        let _: ByteRange = range;
        Err(Error::new(ErrorKind::ReadOnly))
    }

    /// Returns when everything acknowledged before the call survives a power cut (rule W9).
    fn flush(&self) -> Result<()> {
        Ok(())
    }

    /// The extent that starts at `offset`, as far as one look tells and at most to `offset + max_len`; `offset` must
    /// lie within the disk and `max_len` be above 0. Backing layers are asked where this one is silent; extents that
    /// touch and are alike may come in pieces.
    fn extent_at(&self, offset: u64, max_len: u64) -> Result<Extent>;

    /// Who answers for the start of `range`, which is not empty and lies within the disk: this disk, or a backing disk that
    /// it asks. A disk without one answers for everything.
    fn own_part(&self, range: ByteRange) -> Result<OwnPart> {
        Ok(OwnPart { answers: true, end: range.end(), stored: None })
    }

    /// What holds bytes of this disk in the form in which they are read, at the places that [`OwnPart::stored`] tells; bytes
    /// that it does not have read as zeroes. None where they are always unpacked or decrypted.
    fn plain_storage(&self) -> Option<Arc<dyn Storage>> {
        None
    }
}

/// What a disk says of the start of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnPart {
    /// Whether it answers itself. Otherwise a backing disk does, or zeroes do where there is none.
    pub answers: bool,
    /// The offset on the disk in bytes where that ends.
    pub end: u64,
    /// Where all of it is in one piece in [`Disk::plain_storage`], in bytes from its start, for as long as nobody writes.
    pub stored: Option<u64>,
}
