//! Whether two files may share space: then a copy of one in the other costs the host a note, and no bytes are written.

use std::os::fd::BorrowedFd;

/// Offsets at which files share space lie at multiples of this, in bytes.
pub(crate) const SHARED_BLOCK: u64 = 4096;

/// Whether both files lie on one file system, of a kind whose files share what is copied between them. A file system of that
/// kind may have been made without the ability; it copies then.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn may_share(a: BorrowedFd<'_>, b: BorrowedFd<'_>) -> bool {
    /// XFS, Btrfs and bcachefs, as `statfs` names them.
    const KINDS: [u32; 3] = [0x5846_5342, 0x9123_683E, 0xca45_1a4e];
    let (Ok(one), Ok(other)) = (rustix::fs::fstat(a), rustix::fs::fstat(b)) else { return false };
    #[allow(clippy::cast_sign_loss, reason = "the numbers have 32 bits, whatever the type is here")]
    let kind = rustix::fs::fstatfs(a).map(|found| found.f_type as u32);
    one.st_dev == other.st_dev && kind.is_ok_and(|kind| KINDS.contains(&kind))
}

/// Not known of other hosts.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn may_share(_: BorrowedFd<'_>, _: BorrowedFd<'_>) -> bool {
    false
}
