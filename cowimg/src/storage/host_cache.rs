//! What the host's cache has of a file, what it should have soon, and what it should write soon.

pub(crate) use host::{read_cached, will_read, will_sync};

#[cfg(any(target_os = "linux", target_os = "android"))]
mod host {
    use std::io::IoSliceMut;
    use std::num::NonZeroU64;
    use std::os::fd::BorrowedFd;

    use rustix::fs::{Advice, fadvise};
    use rustix::io::{ReadWriteFlags, preadv2};

    use crate::range::ByteRange;
    use crate::storage::file_system::writes_in_place;

    /// Fills `buf` from `offset` on if the cache has all of it; `false` where it has not, and where the host cannot tell.
    pub(crate) fn read_cached(file: BorrowedFd<'_>, buf: &mut [u8], offset: u64) -> bool {
        let wanted = buf.len();
        let read = preadv2(file, &mut [IoSliceMut::new(buf)], offset, ReadWriteFlags::NOWAIT);
        read == Ok(wanted)
    }

    /// Says that a range will be read, so that the host begins. It need not.
    pub(crate) fn will_read(file: BorrowedFd<'_>, range: ByteRange) {
        let _begun = fadvise(file, range.start(), NonZeroU64::new(range.len()), Advice::WillNeed);
    }

    /// Says that the file will be synced, so that the host begins to write what it has of it: it does for a file that it is
    /// to forget. On Btrfs each file whose writing has begun alone is waited for alone, and the sync takes longer.
    pub(crate) fn will_sync(file: BorrowedFd<'_>) {
        if writes_in_place(file) {
            let _begun = fadvise(file, 0, None, Advice::DontNeed);
        }
    }
}

/// Other hosts are not asked.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod host {
    use std::os::fd::BorrowedFd;

    use crate::range::ByteRange;

    pub(crate) fn read_cached(_: BorrowedFd<'_>, _: &mut [u8], _: u64) -> bool {
        false
    }

    pub(crate) fn will_read(_: BorrowedFd<'_>, _: ByteRange) {}

    pub(crate) fn will_sync(_: BorrowedFd<'_>) {}
}
