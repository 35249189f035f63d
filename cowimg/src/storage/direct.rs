//! Files that bypass the host's cache: opening them, and finding out how their reads and writes must be aligned.
//!
//! Systems differ: Linux has `O_DIRECT`, with conditions that depend on the file system and the device below it; macOS
//! has a mode of the open file, without conditions.

use std::fs::File;
use std::io;

use super::aligned::{AlignedStorage, Alignment};
use super::buffer::PageBuffer;
use super::{FileStorage, Storage};

/// The alignment that every disk takes, where the host does not tell.
const SAFE: u64 = 4096;

impl<S: Storage + AsRef<FileStorage>> AlignedStorage<S> {
    /// Aligns for a file that was opened past the host's cache.
    pub fn direct(file: S) -> io::Result<AlignedStorage<S>> {
        let alignment = alignment_of(file.as_ref().file())?;
        AlignedStorage::new(file, alignment)
    }
}

impl AsRef<FileStorage> for FileStorage {
    fn as_ref(&self) -> &FileStorage {
        self
    }
}

/// The flags to open a file with.
pub(super) use host::OPEN_FLAGS;

/// What is left to be done with a file that was opened with [`OPEN_FLAGS`], or what is to be said of why it was not.
pub(super) fn finish(opened: io::Result<File>) -> io::Result<File> {
    match opened {
        Ok(file) => host::bypass(&file).map(|()| file),
        // Linux says EINVAL, which says nothing to a person.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Err(cannot_bypass()),
        Err(error) => Err(error),
    }
}

fn cannot_bypass() -> io::Error {
    let why = "the file system does not let files bypass the host's cache, as the cache modes none and directsync want";
    io::Error::new(io::ErrorKind::Unsupported, why)
}

/// What the host wants of reads and writes of `file`.
fn alignment_of(file: &File) -> io::Result<Alignment> {
    match host::stated_alignment(file) {
        Some(Alignment { block: 0, .. }) => Err(cannot_bypass()),
        Some(alignment) => Ok(alignment),
        None => probe(file),
    }
}

/// Tries reads of growing lengths. One byte is taken where nothing is there to be read, which tells nothing.
fn probe(file: &File) -> io::Result<Alignment> {
    let mut buffer = PageBuffer::new(SAFE as usize);
    for block in [1, 512, 1024, 2048, SAFE] {
        match rustix::io::pread(file, &mut buffer[..block as usize], 0) {
            Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
            Ok(_) => {
                let block = if block == 1 { SAFE } else { block };
                return Ok(Alignment { block, memory: SAFE as usize });
            }
        }
    }
    Err(cannot_bypass())
}

#[cfg(any(target_os = "linux", target_os = "android"))]
mod host {
    use std::fs::File;
    use std::io;

    use rustix::fs::{AtFlags, OFlags, StatxFlags, statx};

    use crate::storage::aligned::Alignment;

    pub(in crate::storage) const OPEN_FLAGS: OFlags = OFlags::DIRECT;

    #[allow(clippy::unnecessary_wraps, reason = "other systems may refuse")]
    pub(super) fn bypass(_: &File) -> io::Result<()> {
        Ok(())
    }

    /// Zeroes where the file cannot be read past the cache; `None` where the kernel does not say.
    pub(super) fn stated_alignment(file: &File) -> Option<Alignment> {
        let found = statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
        let is_stated = StatxFlags::from_bits_retain(found.stx_mask).contains(StatxFlags::DIOALIGN);
        let (block, memory) = (found.stx_dio_offset_align, found.stx_dio_mem_align as usize);
        is_stated.then_some(Alignment { block: block.into(), memory })
    }
}

#[cfg(target_vendor = "apple")]
mod host {
    use std::fs::File;
    use std::io;

    use rustix::fs::{OFlags, fcntl_nocache};

    use crate::storage::aligned::Alignment;

    pub(in crate::storage) const OPEN_FLAGS: OFlags = OFlags::empty();

    pub(super) fn bypass(file: &File) -> io::Result<()> {
        Ok(fcntl_nocache(file, true)?)
    }

    #[allow(clippy::unnecessary_wraps, reason = "other systems may not know")]
    pub(super) fn stated_alignment(_: &File) -> Option<Alignment> {
        Some(Alignment { block: 1, memory: 1 })
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
mod host {
    use std::fs::File;
    use std::io;

    use rustix::fs::OFlags;

    use crate::storage::aligned::Alignment;

    pub(in crate::storage) const OPEN_FLAGS: OFlags = OFlags::empty();

    pub(super) fn bypass(_: &File) -> io::Result<()> {
        Err(super::cannot_bypass())
    }

    pub(super) fn stated_alignment(_: &File) -> Option<Alignment> {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::range::ByteRange;
    use crate::storage::{FileOptions, HostCache, StorageExt, conformance};

    fn directories() -> Vec<PathBuf> {
        let memory = PathBuf::from("/dev/shm");
        [std::env::temp_dir(), memory].into_iter().filter(|dir| dir.is_dir()).collect()
    }

    /// `None`, with the reason checked, where the file system refuses.
    fn open_direct(path: &Path) -> Option<AlignedStorage<FileStorage>> {
        let options = FileOptions::create_new().host_cache(HostCache::Bypassed);
        match FileStorage::open(path, &options).and_then(AlignedStorage::direct) {
            Ok(storage) => Some(storage),
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::Unsupported, "{error}");
                None
            }
        }
    }

    #[test]
    fn files_past_the_hosts_cache_conform() {
        for directory in directories() {
            let dir = tempfile::tempdir_in(directory).unwrap();
            if open_direct(&dir.path().join("first")).is_none() {
                continue;
            }
            let mut count = 0;
            conformance::run(&mut || {
                count += 1;
                Box::new(open_direct(&dir.path().join(count.to_string())).unwrap())
            });
        }
    }

    #[test]
    fn what_is_written_past_the_cache_is_read_through_it_and_the_other_way_round() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let Some(direct) = open_direct(&path) else { return };
        let cached = FileStorage::open(&path, &FileOptions::read_write()).unwrap();
        let bytes: Vec<u8> = (0..300_001_u32).map(|i| (i % 251) as u8).collect();
        direct.write_all_at(&bytes, 0).unwrap();
        let mut seen = vec![0; bytes.len()];
        cached.read_exact_at(&mut seen, 0).unwrap();
        assert!(seen == bytes);
        cached.write_all_at(b"through the cache", 100_001).unwrap();
        direct.write_zeroes(ByteRange::between(100_010, 100_011)).unwrap();
        let mut seen = [0; 17];
        direct.read_exact_at(&mut seen, 100_001).unwrap();
        assert_eq!(&seen, b"through t\0e cache");
        assert_eq!(direct.len().unwrap(), 300_001);
    }

    #[test]
    fn probing_finds_an_alignment_that_works() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, vec![1; 10_000]).unwrap();
        let options = FileOptions::read_only().host_cache(HostCache::Bypassed);
        let Ok(file) = FileStorage::open(&path, &options) else { return };
        let alignment = probe(file.file()).unwrap();
        conformance::run_read_only(&AlignedStorage::new(file, alignment).unwrap(), &[1; 10_000]);
    }

    #[test]
    fn a_file_system_that_refuses_is_named_as_the_reason() {
        let refused = cannot_bypass();
        assert_eq!(refused.kind(), io::ErrorKind::Unsupported);
        assert!(refused.to_string().contains("cache modes none and directsync"));
    }
}
