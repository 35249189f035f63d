//! Which kind of file system a file lies on, as far as that decides how it is written best.

pub(super) use host::is_ext4;
pub(crate) use host::may_share;
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(super) use host::writes_in_place;

/// Offsets at which files share space lie at multiples of this, in bytes.
pub(crate) const SHARED_BLOCK: u64 = 4096;

#[cfg(any(target_os = "linux", target_os = "android"))]
mod host {
    use std::os::fd::BorrowedFd;

    /// The kinds as `statfs` names them. ext2 and ext3 have the number of ext4.
    const EXT4: u32 = 0xEF53;
    const XFS: u32 = 0x5846_5342;
    /// With Btrfs and bcachefs.
    const SHARING: [u32; 3] = [XFS, 0x9123_683E, 0xca45_1a4e];

    fn kind(file: BorrowedFd<'_>) -> Option<u32> {
        #[allow(clippy::cast_sign_loss, reason = "the numbers have 32 bits, whatever the type is here")]
        rustix::fs::fstatfs(file).ok().map(|found| found.f_type as u32)
    }

    /// Whether it is ext4, or one of those before it.
    pub(in super::super) fn is_ext4(file: BorrowedFd<'_>) -> bool {
        kind(file) == Some(EXT4)
    }

    /// Whether it is one that writes a new file into space which the file has, and not into new space with each sync.
    pub(in super::super) fn writes_in_place(file: BorrowedFd<'_>) -> bool {
        kind(file).is_some_and(|kind| [EXT4, XFS].contains(&kind))
    }

    /// Whether two files may share space: then a copy of one in the other costs the host a note, and no bytes are written.
    /// Both lie on one file system, of a kind whose files share what is copied between them. A file system of that kind
    /// may have been made without the ability; it copies then.
    pub(crate) fn may_share(a: BorrowedFd<'_>, b: BorrowedFd<'_>) -> bool {
        let (Ok(one), Ok(other)) = (rustix::fs::fstat(a), rustix::fs::fstat(b)) else { return false };
        one.st_dev == other.st_dev && kind(a).is_some_and(|kind| SHARING.contains(&kind))
    }
}

/// Not known of other hosts.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod host {
    use std::os::fd::BorrowedFd;

    pub(in super::super) fn is_ext4(_: BorrowedFd<'_>) -> bool {
        false
    }

    pub(crate) fn may_share(_: BorrowedFd<'_>, _: BorrowedFd<'_>) -> bool {
        false
    }
}
