//! Holes and preallocation: calls that one system has and another has not, and one file system and not the next.
//!
//! Each function answers "done" or "cannot"; what to do in the second case is the caller's. A call that the host does
//! not know for a file is not tried on it again.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use rustix::io::{Errno, retry_on_intr};

use super::{StorageExtent, StorageExtentKind};
use crate::range::ByteRange;

const ZERO: u8 = 1;
const PUNCH: u8 = 2;
const ALLOCATE: u8 = 4;
const SEEK: u8 = 8;
const COPY: u8 = 16;
const RESERVE: u8 = 32;

/// The calls of one open file, less those that the host is known to refuse.
#[derive(Debug, Default)]
pub(super) struct HostCalls {
    refused: AtomicU8,
}

impl HostCalls {
    /// As on a host that has none of the calls.
    #[cfg(test)]
    pub(super) fn none() -> HostCalls {
        HostCalls { refused: AtomicU8::new(u8::MAX) }
    }

    /// Makes `range` zero and the file at least that long. `false`, and nothing changed, where the host cannot.
    pub(super) fn zero_range(&self, file: &File, range: ByteRange) -> io::Result<bool> {
        self.attempt(ZERO, || host::zero_range(file, range))
    }

    /// Releases the space of `range`, which then reads as zeroes; the length stays. `false`, and nothing changed,
    /// where the host cannot.
    pub(super) fn punch_hole(&self, file: &File, range: ByteRange) -> io::Result<bool> {
        self.attempt(PUNCH, || host::punch_hole(file, range))
    }

    /// Takes space for `range` and makes the file at least that long; bytes that are there stay. `false` where the
    /// host cannot.
    pub(super) fn allocate(&self, file: &File, range: ByteRange) -> io::Result<bool> {
        self.attempt(ALLOCATE, || host::allocate(file, range))
    }

    /// Takes space for `range`, all of it a hole so far; the length stays. What the host says of it is for the write that
    /// follows to meet again.
    pub(super) fn reserve_hole(&self, file: &File, range: ByteRange) {
        if !self.may(RESERVE) {
            return;
        }
        let is_hole = match host::next_data(file, range.start()) {
            Ok(data) => data >= range.end(),
            Err(error) => error == Errno::NXIO,
        };
        if is_hole {
            // Only that the host cannot do it at all is worth knowing.
            let _reserved = self.attempt(RESERVE, || host::reserve(file, range));
        }
    }

    /// Copies `from` of `source` to `to` of `file`, and gives the bytes that were copied: fewer where the source ends, or
    /// where the host cannot.
    pub(super) fn copy(
        &self,
        source: BorrowedFd<'_>,
        from: u64,
        file: &File,
        to: ByteRange,
    ) -> io::Result<u64> {
        let mut done = 0;
        while done < to.len() && self.may(COPY) {
            let copied = retry_on_intr(|| {
                host::copy(source, from + done, file.as_fd(), to.start() + done, to.len() - done)
            });
            match copied {
                // The end, another file system, or a pair of files that the host does not copy between.
                Ok(0) | Err(Errno::XDEV | Errno::BADF | Errno::PERM | Errno::TXTBSY | Errno::INVAL) => break,
                Ok(n) => done += n,
                Err(error) => self.note_refusal(COPY, error)?,
            }
        }
        Ok(done)
    }

    /// Whether punching has not been refused yet.
    pub(super) fn may_punch(&self) -> bool {
        self.may(PUNCH)
    }

    /// The extent that starts `rest`, which is not empty and ends where the file ends. All of it is data where the
    /// host cannot tell.
    pub(super) fn extent(&self, file: &File, rest: ByteRange) -> io::Result<StorageExtent> {
        use StorageExtentKind::{Data, Hole};
        let extent = |kind, end: u64| {
            // Another thread may change the file between the calls; an answer is never empty and never past the end.
            let end = if end > rest.start() { end.min(rest.end()) } else { rest.end() };
            StorageExtent { range: ByteRange::between(rest.start(), end), kind }
        };
        if !self.may(SEEK) {
            return Ok(extent(Data, rest.end()));
        }
        match host::next_data(file, rest.start()) {
            Ok(data) if data > rest.start() => return Ok(extent(Hole, data)),
            Ok(_) => {}
            // No data from here to the end.
            Err(Errno::NXIO) => return Ok(extent(Hole, rest.end())),
            Err(error) => {
                self.note_refusal(SEEK, error)?;
                return Ok(extent(Data, rest.end()));
            }
        }
        match host::next_hole(file, rest.start()) {
            Ok(hole) => Ok(extent(Data, hole)),
            // Cut since the call above.
            Err(Errno::NXIO) => Ok(extent(Data, rest.end())),
            Err(error) => {
                self.note_refusal(SEEK, error)?;
                Ok(extent(Data, rest.end()))
            }
        }
    }

    fn may(&self, call: u8) -> bool {
        self.refused.load(Relaxed) & call == 0
    }

    fn attempt(&self, call: u8, run: impl FnMut() -> rustix::io::Result<()>) -> io::Result<bool> {
        if !self.may(call) {
            return Ok(false);
        }
        match retry_on_intr(run) {
            Ok(()) => Ok(true),
            Err(error) => self.note_refusal(call, error).map(|()| false),
        }
    }

    /// Remembers that the host does not know the call. Errors that say something else come back.
    fn note_refusal(&self, call: u8, error: Errno) -> io::Result<()> {
        match error {
            Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOTTY | Errno::NODEV => {
                self.refused.fetch_or(call, Relaxed);
                Ok(())
            }
            // Says that the host cannot do it to this range; devices want whole sectors.
            Errno::INVAL => Ok(()),
            error => Err(error.into()),
        }
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
mod host {
    use std::fs::File;
    use std::os::fd::BorrowedFd;

    use rustix::fs::{FallocateFlags, copy_file_range, fallocate};
    use rustix::io::Result;

    use crate::range::ByteRange;

    pub(super) fn zero_range(file: &File, range: ByteRange) -> Result<()> {
        fallocate(file, FallocateFlags::ZERO_RANGE, range.start(), range.len())
    }

    pub(super) fn punch_hole(file: &File, range: ByteRange) -> Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(file, flags, range.start(), range.len())
    }

    pub(super) fn allocate(file: &File, range: ByteRange) -> Result<()> {
        fallocate(file, FallocateFlags::empty(), range.start(), range.len())
    }

    pub(super) fn reserve(file: &File, range: ByteRange) -> Result<()> {
        fallocate(file, FallocateFlags::KEEP_SIZE, range.start(), range.len())
    }

    pub(super) fn copy(
        source: BorrowedFd<'_>,
        from: u64,
        target: BorrowedFd<'_>,
        to: u64,
        len: u64,
    ) -> Result<u64> {
        let (mut from, mut to) = (from, to);
        // The host takes a limited number of bytes for one call.
        let len = usize::try_from(len.min(1 << 30)).unwrap_or(usize::MAX);
        copy_file_range(source, Some(&mut from), target, Some(&mut to), len).map(|n| n as u64)
    }

    pub(super) use super::seek::{next_data, next_hole};
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod host {
    use std::fs::File;
    use std::os::fd::BorrowedFd;

    use rustix::io::{Errno, Result};

    use crate::range::ByteRange;

    pub(super) fn zero_range(_: &File, _: ByteRange) -> Result<()> {
        Err(Errno::OPNOTSUPP)
    }

    pub(super) fn reserve(_: &File, _: ByteRange) -> Result<()> {
        Err(Errno::OPNOTSUPP)
    }

    pub(super) fn copy(_: BorrowedFd<'_>, _: u64, _: BorrowedFd<'_>, _: u64, _: u64) -> Result<u64> {
        Err(Errno::OPNOTSUPP)
    }

    pub(super) fn punch_hole(_: &File, _: ByteRange) -> Result<()> {
        Err(Errno::OPNOTSUPP)
    }

    /// What other systems call `posix_fallocate` reads and writes bytes back where a file system cannot, which loses
    /// what another thread writes in between.
    pub(super) fn allocate(_: &File, _: ByteRange) -> Result<()> {
        Err(Errno::OPNOTSUPP)
    }

    pub(super) use super::seek::{next_data, next_hole};
}

#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
mod seek {
    use std::fs::File;

    use rustix::fs::{SeekFrom, seek};
    use rustix::io::Result;

    /// Both move the file's position, which nobody uses.
    pub(super) fn next_data(file: &File, offset: u64) -> Result<u64> {
        seek(file, SeekFrom::Data(offset))
    }

    pub(super) fn next_hole(file: &File, offset: u64) -> Result<u64> {
        seek(file, SeekFrom::Hole(offset))
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
mod seek {
    use std::fs::File;

    use rustix::io::{Errno, Result};

    pub(super) fn next_data(_: &File, _: u64) -> Result<u64> {
        Err(Errno::OPNOTSUPP)
    }

    pub(super) fn next_hole(_: &File, _: u64) -> Result<u64> {
        Err(Errno::OPNOTSUPP)
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_the_host_does_not_know_is_tried_once() {
        let calls = HostCalls::default();
        let mut tried = 0;
        for _ in 0..3 {
            let done = calls.attempt(ZERO, || {
                tried += 1;
                Err(Errno::OPNOTSUPP)
            });
            assert!(!done.unwrap());
        }
        assert_eq!(tried, 1);
        assert!(calls.may_punch());
    }

    #[test]
    fn a_range_that_the_host_refuses_says_nothing_of_the_next() {
        let calls = HostCalls::default();
        assert!(!calls.attempt(PUNCH, || Err(Errno::INVAL)).unwrap());
        assert!(calls.attempt(PUNCH, || Ok(())).unwrap());
    }

    #[test]
    fn interrupted_calls_are_repeated_and_real_errors_come_back() {
        let calls = HostCalls::default();
        let mut answers = [Err(Errno::INTR), Err(Errno::INTR), Ok(())].into_iter();
        assert!(calls.attempt(ALLOCATE, || answers.next().unwrap()).unwrap());
        let full = calls.attempt(ALLOCATE, || Err(Errno::NOSPC)).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    }
}
