//! Bytes on a host: the trait that every image engine reads and writes through, and what implements it.
//!
//! A [`Storage`] is a growable row of bytes with positional I/O. It knows nothing of images, guests or paths. The
//! required methods are few; what is provided beyond them has its emulation stated. Every implementation,
//! decorators included, passes the one [`conformance`] suite.
//!
//! Start at [`Storage`]; [`StorageExt`] has the conveniences that engines call.

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;

use crate::range::ByteRange;

mod aligned;
mod buffer;
pub mod conformance;
mod direct;
mod encrypted;
mod ext;
mod faulty;
mod file;
mod file_system;
mod handle;
mod host_attributes;
mod host_cache;
mod lock;
mod lock_holder;
mod mapped;
mod memory;
#[cfg(test)]
mod model_tests;
mod pages;
mod pending_sync;
mod sparse;
mod unsynced;
mod window;

pub use aligned::{AlignedStorage, Alignment};
pub use buffer::PageBuffer;
pub(crate) use encrypted::EncryptedStorage;
pub use ext::StorageExt;
pub use faulty::{CrashChoice, Fault, FaultyStorage, Operation, OperationKind};
pub use file::{Access, Creation, FileOptions, FileStorage, HostCache};
pub(crate) use file_system::{SHARED_BLOCK, may_share};
pub use host_attributes::HostAttributes;
pub(crate) use host_attributes::extent_size_hint;
pub(crate) use host_cache::{read_cached, will_read, will_sync};
pub use lock::{FileUse, Permissions};
pub use mapped::MappedStorage;
pub use memory::MemoryStorage;
pub(crate) use pages::Pages;
pub use unsynced::UnsyncedStorage;
pub use window::WindowStorage;

/// What a piece of the storage holds, as far as the host can tell cheaply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StorageExtentKind {
    /// Bytes are there; they may be zeroes.
    Data,
    /// Nothing is stored; the range reads as zeroes.
    Hole,
}

/// A piece of the storage that is all data or all hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StorageExtent {
    /// Where, in bytes.
    pub range: ByteRange,
    /// What is there.
    pub kind: StorageExtentKind,
}

/// A growable row of bytes with positional, thread-safe I/O.
///
/// All methods take `&self` and may be called from many threads at once. Two writes to the same byte at the same
/// time leave one of the two values, per byte. A read beside a write sees old or new bytes.
///
/// Nothing panics, whatever the offset. No storage is longer than [`ByteRange::MAX_END`]: a write or a length past it
/// is an error that changes nothing. Operations on no bytes change nothing, the length included.
pub trait Storage: Send + Sync + fmt::Debug {
    /// Length in bytes. Never cached across calls of [`Storage::set_len`] or writes past the end.
    fn len(&self) -> io::Result<u64>;

    /// Whether there is no byte.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Reads up to `buf.len()` bytes at `offset`; the number read is short only when the storage ends there (0 at or
    /// past the end, however far). `EINTR` is retried here, never returned.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes up to `buf.len()` bytes at `offset` and returns how many, which may be fewer and is never 0 for a
    /// buffer that is not empty. Writing past the end grows the storage; a gap reads as zeroes. Storage that cannot
    /// grow (a device) fails instead.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize>;

    /// Cuts or grows the storage to `len` bytes; new bytes read as zeroes.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Returns when every write, length change and punched hole that was acknowledged before this call survives a
    /// power cut. Which of the others survive is not said. After a sync that failed, nothing is known of the
    /// changes since the last one that did not: a later success does not cover them.
    fn sync(&self) -> io::Result<()>;

    /// Whether writes are refused by the host or by how the storage was opened.
    fn is_read_only(&self) -> bool;

    /// Reads into several buffers in order, as [`Storage::read_at`].
    ///
    /// Emulation: one `read_at` per buffer, ending at the first short one.
    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        for buf in bufs {
            let n = self.read_at(buf, offset.saturating_add(done as u64))?;
            done += n;
            if n < buf.len() {
                break;
            }
        }
        Ok(done)
    }

    /// Writes several buffers in order, as [`Storage::write_at`].
    ///
    /// Emulation: one `write_at` per buffer, ending at the first that is short or fails. The error of one that fails is
    /// returned where nothing was written before it; else it meets the caller's next try.
    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        write_range(offset, bufs.iter().map(|buf| buf.len()).sum())?;
        let mut done = 0;
        for buf in bufs.iter().filter(|buf| !buf.is_empty()) {
            match self.write_at(buf, offset + done as u64) {
                Ok(n) => {
                    done += n;
                    if n < buf.len() {
                        break;
                    }
                }
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// Makes the range read as zeroes, growing the storage to cover it, and gives the host the chance to do so
    /// without writing. Space may be kept or released.
    ///
    /// Emulation: zeroes are written, 64 KiB at a time.
    fn write_zeroes(&self, range: ByteRange) -> io::Result<()> {
        ext::write_zero_bytes(self, range)
    }

    /// Releases the space of the range, which then reads as zeroes; bytes past the end are left alone. Returns
    /// `false`, and changes nothing, where the host cannot.
    ///
    /// Emulation: `Ok(false)`.
    fn punch_hole(&self, range: ByteRange) -> io::Result<bool> {
        let _ = range;
        Ok(false)
    }

    /// Takes space for the range now, so that later writes to it do not fail for want of space; grows the storage to
    /// cover it and keeps the bytes that are there.
    ///
    /// Emulation: zeroes are written where the range lies past the end, so that no write to that part may run at the
    /// same time; holes before the end stay.
    fn allocate(&self, range: ByteRange) -> io::Result<()> {
        let len = self.len()?;
        ext::write_zero_bytes(self, ByteRange::between(range.start().max(len), range.end()))
    }

    /// The extent that holds the byte at `offset`, clipped to start there; `None` at or past the end.
    ///
    /// Emulation: everything is data.
    fn extent_at(&self, offset: u64) -> io::Result<Option<StorageExtent>> {
        let range = ByteRange::between(offset, self.len()?);
        Ok((!range.is_empty()).then_some(StorageExtent { range, kind: StorageExtentKind::Data }))
    }

    /// Writes to `to` what `source` has from `from` on, growing the storage to cover it; what lies past the end of `source`
    /// is zeroes. The host may let both share the space. The ranges do not overlap where the two are the same file.
    ///
    /// Emulation: read and written, 1 MiB at a time.
    fn copy_from(&self, source: &dyn Storage, from: u64, to: ByteRange) -> io::Result<()> {
        ext::copy_bytes(self, source, from, to)
    }

    /// The open file, where the storage is all of one and nothing stands between: what the host copies from.
    ///
    /// Emulation: none.
    fn host_file(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Bytes of space that the host has given to the storage.
    ///
    /// Emulation: the length.
    fn allocated_bytes(&self) -> io::Result<u64> {
        self.len()
    }
}

/// The range of a write of `len` bytes at `offset`, or the error for one that passes the largest file offset.
fn write_range(offset: u64, len: usize) -> io::Result<ByteRange> {
    ByteRange::new(offset, len as u64).ok_or_else(|| {
        io::Error::new(io::ErrorKind::FileTooLarge, "the write passes the largest file offset")
    })
}

/// Refuses a length that no file can have.
fn check_len(len: u64) -> io::Result<()> {
    write_range(len, 0).map(drop)
}

/// The answer of a storage that is open for reading to every call that would change it.
pub(crate) fn read_only_error() -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, "the storage is open for reading only")
}
