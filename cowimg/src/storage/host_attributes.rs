//! What a file system is told of a new file before anything is in it: not to copy it on write, and in which steps to give it
//! space. Where the file system knows no such thing, nothing is lost: these are hints, and refusals go unsaid.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
use rustix::ioctl::{Getter, Opcode, Setter, ioctl, opcode};

use super::FileStorage;

/// Hints for the file of a new image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct HostAttributes {
    /// What is written over goes to its old place, where the file system would copy it elsewhere (Btrfs).
    pub no_cow: bool,
    /// Bytes that the file's space is taken in steps of (XFS); 0 for no such hint. 1 MiB by default, as QEMU has it.
    pub extent_size_hint: Option<u32>,
}

/// What QEMU asks for.
const DEFAULT_EXTENT_SIZE: u32 = 1 << 20;

/// The kernel's `struct fsxattr`.
#[derive(Clone, Copy)]
#[repr(C)]
struct FileAttributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    copy_extent_size: u32,
    padding: [u8; 8],
}

const GET: Opcode = opcode::read::<FileAttributes>(b'X', 31);
const SET: Opcode = opcode::write::<FileAttributes>(b'X', 32);
/// The flag that says that `extent_size` counts.
const HAS_EXTENT_SIZE: u32 = 0x0800;

impl FileStorage {
    /// Passes the hints on. The file must be empty.
    pub(crate) fn set_attributes(&self, wanted: HostAttributes) {
        if wanted.no_cow
            && let Ok(flags) = ioctl_getflags(self.file())
        {
            let _known_to_few = ioctl_setflags(self.file(), flags | IFlags::NOCOW);
        }
        let extent_size = wanted.extent_size_hint.unwrap_or(DEFAULT_EXTENT_SIZE);
        if let Ok(mut attributes) = attributes(self.file().as_fd()) {
            attributes.flags |= HAS_EXTENT_SIZE;
            attributes.extent_size = extent_size;
            // SAFETY: the request takes exactly this structure, which lives until it returns, and changes no memory.
            let _known_to_few = unsafe { ioctl(self.file(), Setter::<SET, FileAttributes>::new(attributes)) };
        }
    }
}

/// The bytes of the steps in which a file is given space, where it has such a hint.
pub(crate) fn extent_size_hint(file: BorrowedFd<'_>) -> Option<u32> {
    attributes(file).ok().map(|attributes| attributes.extent_size).filter(|&size| size != 0)
}

fn attributes(file: BorrowedFd<'_>) -> rustix::io::Result<FileAttributes> {
    // SAFETY: the request fills exactly this structure, of which every pattern of bits is a value.
    unsafe { ioctl(file, Getter::<GET, FileAttributes>::new()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::FileOptions;

    #[test]
    fn no_file_system_minds_the_hints() {
        // Where this test's program is: often another file system than that of temporary files.
        let program = std::env::current_exe().expect("it has a name");
        let target = program.parent().expect("it is in a folder");
        let [first, other] = [(), ()].map(|()| tempfile::tempdir().expect("a folder"));
        let folders = [first, tempfile::tempdir_in(target).unwrap_or(other)];
        for folder in folders {
            let file =
                FileStorage::open(folder.path().join("new"), &FileOptions::create_new()).expect("a file");
            file.set_attributes(HostAttributes { no_cow: true, extent_size_hint: Some(65536) });
            file.set_attributes(HostAttributes { no_cow: false, extent_size_hint: Some(0) });
            file.set_attributes(HostAttributes::default());
        }
        assert_eq!(size_of::<FileAttributes>(), 28);
    }
}
