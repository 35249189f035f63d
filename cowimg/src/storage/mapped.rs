//! A file through the host's memory mapping: for raw bases that nobody changes.
//!
//! Memory that its file no longer has ends the process that reads it. So the file is locked against everyone who would
//! write or cut it, as far as they lock files as QEMU does, and each read asks for its length first. What is left is
//! said at [`MappedStorage::open`]; [`FileStorage`] is the default everywhere.

use std::io;
use std::path::Path;

use memmap2::{MmapOptions, MmapRaw};

use super::{
    FileOptions, FileStorage, FileUse, Permissions, Storage, StorageExtent, StorageExtentKind,
    read_only_error,
};
use crate::range::ByteRange;

/// Nobody writes to a mapped file or changes its length.
const MAPPED: FileUse = FileUse {
    takes: Permissions::READ,
    bears: Permissions::ALL.without(Permissions::WRITE).without(Permissions::RESIZE),
};

/// A file that was mapped into memory as it was when opened, for reading.
#[derive(Debug)]
pub struct MappedStorage {
    file: FileStorage,
    /// `None` for a file of no bytes, which hosts do not map.
    map: Option<MmapRaw>,
}

impl MappedStorage {
    /// Opens and maps `path`; what [`FileStorage::open`] refuses is refused here too.
    ///
    /// A file that others have open for writing is refused, and so are they while this is open, if they lock files as
    /// QEMU and this library do. A file that somebody cuts all the same is an error of the next read that needs what is
    /// gone. The caller sees to it that nobody cuts it *during* a read, and that the host can read it: such a read ends
    /// the process with `SIGBUS`. Bytes that others change may read as old or new; those that they append are not seen.
    pub fn open(path: impl AsRef<Path>) -> io::Result<MappedStorage> {
        MappedStorage::new(FileStorage::open(path, &FileOptions::read_only())?)
    }

    /// Maps a file that is open already, under the terms of [`MappedStorage::open`].
    pub fn new(file: FileStorage) -> io::Result<MappedStorage> {
        file.lock(MAPPED).map_err(io::Error::other)?;
        let len = usize::try_from(file.len()?).map_err(|_| {
            io::Error::new(io::ErrorKind::FileTooLarge, "the file is larger than the address space")
        })?;
        let map = match len {
            0 => None,
            _ => Some(MmapOptions::new().len(len).map_raw_read_only(file.file())?),
        };
        Ok(MappedStorage { file, map })
    }

    /// The open file that is mapped.
    pub fn file(&self) -> &FileStorage {
        &self.file
    }

    /// Fails where the file ends before `end`, which it did not when it was mapped.
    fn still_has(&self, end: u64) -> io::Result<()> {
        let len = self.file.len()?;
        if len < end {
            let said = format!("the file was cut to {len} bytes while it was mapped");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, said));
        }
        Ok(())
    }

    fn mapped_len(&self) -> usize {
        self.map.as_ref().map_or(0, MmapRaw::len)
    }
}

impl Storage for MappedStorage {
    fn len(&self) -> io::Result<u64> {
        Ok(self.mapped_len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let (Some(map), Ok(start)) = (&self.map, usize::try_from(offset)) else { return Ok(0) };
        let n = buf.len().min(map.len().saturating_sub(start));
        if n > 0 {
            self.still_has((start + n) as u64)?;
            // SAFETY: n > 0, so `start + n <= map.len()`: the source lies in the mapping, which lives as long as
            // `self`. `buf` is exclusively ours and not part of the mapping, which is read-only and whose pointer is
            // handed to nobody: no reference into it exists, so bytes that another process changes break no promise
            // to the compiler but mix old and new. The file had all of it a moment ago; a page that it lost since ends
            // the process (`open` says so) and does not yield a wrong value.
            #[allow(unsafe_code, reason = "the one place that reads mapped memory")]
            unsafe {
                std::ptr::copy_nonoverlapping(map.as_ptr().add(start), buf.as_mut_ptr(), n);
            }
        }
        Ok(n)
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<usize> {
        Err(read_only_error())
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(read_only_error())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn write_zeroes(&self, _: ByteRange) -> io::Result<()> {
        Err(read_only_error())
    }

    fn punch_hole(&self, _: ByteRange) -> io::Result<bool> {
        Err(read_only_error())
    }

    fn allocate(&self, _: ByteRange) -> io::Result<()> {
        Err(read_only_error())
    }

    fn extent_at(&self, offset: u64) -> io::Result<Option<StorageExtent>> {
        let rest = ByteRange::between(offset, self.mapped_len() as u64);
        if rest.is_empty() {
            return Ok(None);
        }
        // The file may have grown since it was mapped.
        let extent = self.file.extent_at(offset)?;
        Ok(Some(extent.map_or(StorageExtent { range: rest, kind: StorageExtentKind::Data }, |extent| {
            StorageExtent { range: extent.range.intersection(rest), kind: extent.kind }
        })))
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        self.file.allocated_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{StorageExt, conformance};

    #[test]
    fn mapped_files_conform_and_refuse_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        for len in [0_usize, 1, 4095, 4096, 100_000] {
            let expected: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            std::fs::write(&path, &expected).unwrap();
            conformance::run_read_only(&MappedStorage::open(&path).unwrap(), &expected);
        }
    }

    #[test]
    fn holes_of_the_file_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let file = FileStorage::open(&path, &FileOptions::create_new()).unwrap();
        file.write_all_at(&[1; 4096], 1 << 20).unwrap();
        file.set_len(4 << 20).unwrap();
        let mapped = MappedStorage::open(&path).unwrap();
        let first = mapped.extent_at(0).unwrap().unwrap();
        assert_eq!(first.kind, StorageExtentKind::Hole);
        assert_eq!(first.range, ByteRange::between(0, 1 << 20));
    }

    #[test]
    fn bytes_appended_after_mapping_are_not_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let file = FileStorage::open(&path, &FileOptions::create_new()).unwrap();
        file.write_all_at(&[1; 5000], 0).unwrap();
        let mapped = MappedStorage::open(&path).unwrap();
        file.write_all_at(&vec![2; 50_000], 5000).unwrap();
        conformance::run_read_only(&mapped, &[1; 5000]);
    }

    #[test]
    fn a_file_that_is_cut_is_an_error_and_no_signal() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, vec![7; 100_000]).unwrap();
        let mapped = MappedStorage::open(&path).unwrap();
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(10_000).unwrap();
        let mut bytes = [0; 4096];
        assert_eq!(mapped.read_at(&mut bytes, 5904).unwrap(), 4096);
        for offset in [5905, 50_000, 99_000] {
            let error = mapped.read_at(&mut bytes, offset).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{error}");
        }
        assert_eq!(mapped.read_at(&mut bytes, 200_000).unwrap(), 0);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn whoever_locks_files_neither_writes_nor_cuts_a_mapped_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, [7; 1000]).unwrap();
        let mapped = MappedStorage::open(&path).unwrap();
        let other = FileStorage::open(&path, &FileOptions::read_write()).unwrap();
        let writing = FileUse { takes: Permissions::WRITE, bears: Permissions::ALL };
        assert!(other.lock(writing).is_err());
        drop(mapped);
        other.lock(writing).unwrap();
        assert!(MappedStorage::open(&path).is_err());
    }

    #[test]
    fn what_a_file_storage_refuses_is_refused() {
        let error = MappedStorage::open(std::env::temp_dir()).unwrap_err();
        assert_eq!(error.to_string(), "is a directory, not an image file");
    }
}
