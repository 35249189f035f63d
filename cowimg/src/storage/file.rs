//! A host file or block device: the storage that images live in unless a caller says otherwise.
//!
//! Positional reads and writes on one descriptor, no buffer of our own, no shared file position. What a host does
//! beyond that (holes, preallocation) is in [`super::sparse`], with its fallbacks.

use std::fs::{File, FileType, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::fs::OFlags;
use rustix::io::{Errno, retry_on_intr};

use super::direct;
use super::pending_sync::{Change, PendingSync};
use super::sparse::HostCalls;
use super::{
    FileUse, Storage, StorageExt, StorageExtent, StorageExtentKind, check_len, ext, file_system,
    read_only_error, write_range,
};
use crate::range::ByteRange;

/// Zeroes up to this many bytes are written rather than asked for: measured on ext4, the host's call costs as much as
/// writing this much, and bytes that are written later then cost more.
const SMALL_ZEROES: u64 = 16 << 10;

/// Writes into holes from this many bytes on have their space taken before, where that pays. Below it the call costs more
/// than it saves.
const LARGE_WRITE: u64 = 256 << 10;

/// What the storage may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Access {
    /// Reads only; the file is opened so that the host refuses writes too.
    #[default]
    ReadOnly,
    /// Reads and writes.
    ReadWrite,
}

/// Whether opening may make the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Creation {
    /// The file must be there.
    #[default]
    Never,
    /// The file must not be there, not even as a dangling link; it is made.
    New,
    /// The file is made, or emptied where it is there. A device keeps its bytes.
    Truncate,
}

/// Whether the host keeps the file's bytes in memory of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum HostCache {
    /// It does.
    #[default]
    Used,
    /// It does not; hosts differ in how strictly they keep to that. On Linux every read and write must be aligned
    /// then: [`AlignedStorage::direct`](super::AlignedStorage::direct) sees to that. File systems may refuse it.
    Bypassed,
}

/// How to open a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileOptions {
    /// What the file may be used for.
    pub access: Access,
    /// Whether opening may make it. Anything but [`Creation::Never`] wants [`Access::ReadWrite`].
    pub creation: Creation,
    /// Permission bits of a file that is made, before the process's umask.
    pub mode: u32,
    /// Whether the host's cache is used.
    pub host_cache: HostCache,
}

impl Default for FileOptions {
    fn default() -> FileOptions {
        FileOptions {
            access: Access::ReadOnly,
            creation: Creation::Never,
            mode: 0o644,
            host_cache: HostCache::Used,
        }
    }
}

impl FileOptions {
    /// To read a file that is there.
    pub fn read_only() -> FileOptions {
        FileOptions::default()
    }

    /// To read and write a file that is there.
    pub fn read_write() -> FileOptions {
        FileOptions { access: Access::ReadWrite, ..FileOptions::default() }
    }

    /// The same past the host's cache.
    #[must_use]
    pub fn host_cache(self, host_cache: HostCache) -> FileOptions {
        FileOptions { host_cache, ..self }
    }

    /// To make a file that is not there, and read and write it.
    pub fn create_new() -> FileOptions {
        FileOptions { creation: Creation::New, ..FileOptions::read_write() }
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(self.access == Access::ReadWrite).mode(self.mode);
        match self.creation {
            Creation::Never => {}
            Creation::New => _ = options.create_new(true),
            // Emptied later, when it is known to be a plain file.
            Creation::Truncate => _ = options.create(true).truncate(false),
        }
        // NONBLOCK: a FIFO that took the file's place a moment ago must not hold the open until it has a writer.
        // NOCTTY: a terminal must not become ours.
        let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
        match self.host_cache {
            HostCache::Used => options.custom_flags(flags.bits().cast_signed()).open(path),
            HostCache::Bypassed => {
                let flags = flags | direct::OPEN_FLAGS;
                direct::finish(options.custom_flags(flags.bits().cast_signed()).open(path))
            }
        }
    }
}

/// What a storage can be made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    File,
    Device,
}

impl Node {
    fn of(file_type: FileType) -> io::Result<Node> {
        let what = if file_type.is_file() {
            return Ok(Node::File);
        } else if file_type.is_block_device() || file_type.is_char_device() {
            return Ok(Node::Device);
        } else if file_type.is_dir() {
            return Err(io::Error::new(io::ErrorKind::IsADirectory, "is a directory, not an image file"));
        } else if file_type.is_fifo() {
            "is a FIFO, not an image file"
        } else if file_type.is_socket() {
            "is a socket, not an image file"
        } else {
            "is neither a file nor a device"
        };
        Err(io::Error::new(io::ErrorKind::InvalidInput, what))
    }
}

/// A regular file, or a device that has a size, as [`Storage`].
///
/// Nothing is locked until [`FileStorage::lock`] is called.
#[derive(Debug)]
pub struct FileStorage {
    file: File,
    node: Node,
    access: Access,
    calls: HostCalls,
    /// Whether to take the space of large writes before them; asked for at the first one.
    takes_space_first: OnceLock<bool>,
    /// The data extent that was found last, less what was done to it since. Some file systems look at every page of an
    /// extent to find its end; who walks a file in steps must not pay for that at each of them.
    known_data: Mutex<ByteRange>,
    pending_sync: PendingSync,
    /// What the file is locked for.
    pub(super) locked: Mutex<FileUse>,
}

impl FileStorage {
    /// Opens `path`. Directories, FIFOs, sockets and devices without a size are refused by name, and are not opened
    /// in passing: opening one of them can have effects of its own.
    pub fn open(path: impl AsRef<Path>, options: &FileOptions) -> io::Result<FileStorage> {
        let path = path.as_ref();
        if options.creation != Creation::Never && options.access == Access::ReadOnly {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a new file must be opened for writing"));
        }
        if options.creation != Creation::New
            && let Ok(metadata) = std::fs::metadata(path)
        {
            Node::of(metadata.file_type())?;
        }
        let file = options.open(path)?;
        FileStorage::opened(file, options).inspect_err(|_| {
            if options.creation == Creation::New {
                // It was made a moment ago, for nobody now. What cannot be removed stays, empty.
                let _left = std::fs::remove_file(path);
            }
        })
    }

    fn opened(file: File, options: &FileOptions) -> io::Result<FileStorage> {
        let flags = rustix::fs::fcntl_getfl(&file)?;
        let storage = FileStorage::from_file_open_with(file, flags, options.access)?;
        rustix::fs::fcntl_setfl(&storage.file, flags - OFlags::NONBLOCK)?;
        if options.creation == Creation::Truncate && storage.node == Node::File {
            storage.file.set_len(0)?;
        }
        Ok(storage)
    }

    /// Takes a file that is open already. It must be open for what `access` says, and not for appending, where the
    /// host would write at the end whatever the offset.
    pub fn from_file(file: File, access: Access) -> io::Result<FileStorage> {
        let flags = rustix::fs::fcntl_getfl(&file)?;
        FileStorage::from_file_open_with(file, flags, access)
    }

    fn from_file_open_with(file: File, flags: OFlags, access: Access) -> io::Result<FileStorage> {
        let file_type = file.metadata()?.file_type();
        let node = Node::of(file_type)?;
        let mode = flags & OFlags::RWMODE;
        let refused = match access {
            Access::ReadOnly => mode == OFlags::WRONLY,
            Access::ReadWrite => mode != OFlags::RDWR || flags.contains(OFlags::APPEND),
        };
        if refused {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the file is not open for the access asked for, or is open for appending",
            ));
        }
        let storage = FileStorage {
            file,
            node,
            access,
            calls: HostCalls::default(),
            takes_space_first: OnceLock::new(),
            known_data: Mutex::new(ByteRange::between(0, 0)),
            pending_sync: PendingSync::default(),
            locked: Mutex::new(FileUse::NONE),
        };
        if file_type.is_char_device() && !matches!(storage.len(), Ok(1..)) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "is a character device without a size"));
        }
        Ok(storage)
    }

    /// The open file, for calls that work on descriptors. Its position is used by nobody and means nothing; who changes
    /// the file through it syncs it, too.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Whether it is a device, whose length does not change.
    pub fn is_device(&self) -> bool {
        self.node == Node::Device
    }

    /// To be held over a change.
    fn writable(&self) -> io::Result<Change<'_>> {
        match self.access {
            Access::ReadOnly => Err(read_only_error()),
            Access::ReadWrite => Ok(self.pending_sync.change()),
        }
    }

    /// To be called when the host may have made a hole.
    fn forget_extent(&self) {
        *self.known_data.lock().unwrap_or_else(PoisonError::into_inner) = ByteRange::between(0, 0);
    }

    /// Fails where the range would have to grow a device.
    fn room_for(&self, range: ByteRange) -> io::Result<()> {
        if self.is_device() && range.end() > self.len()? {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "cannot grow a device"));
        }
        Ok(())
    }

    /// Takes the space of a large write into a hole, in one call. ext4 else looks for the space of each block by itself: a
    /// GiB in writes of 1 MiB takes 0.25 s then, and 0.18 s so.
    fn take_space(&self, range: ByteRange) {
        if range.len() < LARGE_WRITE {
            return;
        }
        let is_worth_it = || self.node == Node::File && file_system::is_ext4(self.file.as_fd());
        if *self.takes_space_first.get_or_init(is_worth_it) {
            self.calls.reserve_hole(&self.file, range);
        }
    }

    /// Makes the file at least as long as `range.end()`. A length call would cut what another thread writes past it
    /// in the meantime; a zero written to the last byte of a range that is to be zero cannot.
    fn grow_over_zeroes(&self, range: ByteRange) -> io::Result<()> {
        if self.len()? < range.end() {
            self.write_all_at(&[0], range.end() - 1)?;
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn without_host_calls(mut self) -> FileStorage {
        self.calls = HostCalls::none();
        self
    }
}

impl AsFd for FileStorage {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Storage for FileStorage {
    fn len(&self) -> io::Result<u64> {
        match self.node {
            Node::File => Ok(self.file.metadata()?.len()),
            // A device's metadata have no length. The position that this moves is used by nobody.
            Node::Device => (&self.file).seek(SeekFrom::End(0)),
        }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        // The host may stop early without being at the end: a signal, or its limit for one call.
        while done < buf.len() {
            let at = offset.saturating_add(done as u64);
            let room = usize::try_from(ByteRange::MAX_END.saturating_sub(at)).unwrap_or(usize::MAX);
            let end = buf.len().min(done.saturating_add(room));
            if end == done {
                break;
            }
            match retry_on_intr(|| rustix::io::pread(&self.file, &mut buf[done..end], at)) {
                Ok(0) => break,
                Ok(n) => done += n,
                // Past the host's cache, going on from the end of a file that ends within a block is not aligned.
                Err(Errno::INVAL) if done > 0 && at == self.len()? => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(done)
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
        let total: usize = bufs.iter().map(|buf| buf.len()).sum();
        let mut done = match write_range(offset, total) {
            Ok(_) if total > 0 => retry_on_intr(|| rustix::io::preadv(&self.file, bufs, offset))?,
            _ => 0,
        };
        // Goes on where the host stopped: it takes a limited number of buffers, and may stop early as above.
        let mut skip = done;
        for buf in bufs {
            if skip >= buf.len() {
                skip -= buf.len();
                continue;
            }
            let n = self.read_at(&mut buf[skip..], offset.saturating_add(done as u64))?;
            done += n;
            if n < buf.len() - skip {
                break;
            }
            skip = 0;
        }
        Ok(done)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        let _change = self.writable()?;
        let range = write_range(offset, buf.len())?;
        if buf.is_empty() {
            return Ok(0);
        }
        self.take_space(range);
        Ok(retry_on_intr(|| rustix::io::pwrite(&self.file, buf, offset))?)
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        let _change = self.writable()?;
        let total: usize = bufs.iter().map(|buf| buf.len()).sum();
        let range = write_range(offset, total)?;
        // Empty buffers at the front could fill the host's limit of buffers, and the call would write nothing.
        let first = bufs.iter().position(|buf| !buf.is_empty()).unwrap_or(bufs.len());
        if first == bufs.len() {
            return Ok(0);
        }
        self.take_space(range);
        Ok(retry_on_intr(|| rustix::io::pwritev(&self.file, &bufs[first..], offset))?)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let _change = self.writable()?;
        check_len(len)?;
        if self.is_device() {
            return match len.cmp(&self.len()?) {
                std::cmp::Ordering::Less => {
                    Err(io::Error::new(io::ErrorKind::Unsupported, "cannot shrink a device"))
                }
                std::cmp::Ordering::Equal => Ok(()),
                std::cmp::Ordering::Greater => {
                    Err(io::Error::new(io::ErrorKind::StorageFull, "cannot grow a device"))
                }
            };
        }
        self.file.set_len(len)?;
        self.forget_extent();
        Ok(())
    }

    /// `fdatasync` or what the host has in its place. It covers the file's length, and what else is needed to find
    /// the bytes again; it leaves out times. Where nothing has changed since the last one, nothing is asked of the host.
    fn sync(&self) -> io::Result<()> {
        match self.access {
            Access::ReadOnly => Ok(()),
            Access::ReadWrite => self.pending_sync.sync(|| self.file.sync_data()),
        }
    }

    fn is_read_only(&self) -> bool {
        self.access == Access::ReadOnly
    }

    /// A few KiB are written. Emulation of more, where the host cannot: a hole is punched, or else zeroes are written up
    /// to the end of the file, and the file is grown by its last byte.
    fn write_zeroes(&self, range: ByteRange) -> io::Result<()> {
        let _change = self.writable()?;
        if range.is_empty() {
            return Ok(());
        }
        self.room_for(range)?;
        if range.len() <= SMALL_ZEROES {
            return ext::write_zero_bytes(self, range);
        }
        let zeroed = self.calls.zero_range(&self.file, range)?;
        self.forget_extent();
        if zeroed {
            return Ok(());
        }
        if !self.punch_hole(range)? {
            let end = range.end().min(self.len()?);
            ext::write_zero_bytes(self, ByteRange::between(range.start(), end))?;
        }
        self.grow_over_zeroes(range)
    }

    fn punch_hole(&self, range: ByteRange) -> io::Result<bool> {
        let _change = self.writable()?;
        let range = range.intersection(ByteRange::between(0, self.len()?));
        if range.is_empty() {
            return Ok(self.calls.may_punch());
        }
        let punched = self.calls.punch_hole(&self.file, range);
        self.forget_extent();
        punched
    }

    /// Emulation, where the host cannot: as [`Storage::allocate`] says.
    fn allocate(&self, range: ByteRange) -> io::Result<()> {
        let _change = self.writable()?;
        if range.is_empty() {
            return Ok(());
        }
        self.room_for(range)?;
        // A device has all its space.
        if self.is_device() || self.calls.allocate(&self.file, range)? {
            return Ok(());
        }
        let len = self.len()?;
        ext::write_zero_bytes(self, ByteRange::between(range.start().max(len), range.end()))
    }

    fn extent_at(&self, offset: u64) -> io::Result<Option<StorageExtent>> {
        let rest = ByteRange::between(offset, self.len()?);
        if rest.is_empty() {
            return Ok(None);
        }
        // Held over the host's calls: who makes a hole meanwhile clears what these find.
        let mut known = self.known_data.lock().unwrap_or_else(PoisonError::into_inner);
        if known.start() <= offset && offset < known.end() {
            let range = known.intersection(rest);
            return Ok(Some(StorageExtent { range, kind: StorageExtentKind::Data }));
        }
        let extent = self.calls.extent(&self.file, rest)?;
        if extent.kind == StorageExtentKind::Data {
            *known = extent.range;
        }
        Ok(Some(extent))
    }

    /// Emulation, where the host cannot: read and written.
    fn copy_from(&self, source: &dyn Storage, from: u64, to: ByteRange) -> io::Result<()> {
        let _change = self.writable()?;
        self.room_for(to)?;
        // No host knows offsets that no file has; nothing is there to be copied.
        let is_known = ByteRange::new(from, to.len()).is_some();
        let done = match source.host_file().filter(|_| is_known) {
            Some(file) => self.calls.copy(file, from, &self.file, to)?,
            None => 0,
        };
        let rest = ByteRange::between(to.start() + done, to.end());
        ext::copy_bytes(self, source, from.saturating_add(done), rest)
    }

    fn host_file(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        match self.node {
            Node::File => Ok(self.file.metadata()?.blocks().saturating_mul(512)),
            Node::Device => self.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;
    use std::process::Command;

    use super::*;
    use crate::storage::{StorageExtentKind, conformance};

    fn temporary(dir: &Path) -> FileStorage {
        FileStorage::from_file(tempfile::tempfile_in(dir).unwrap(), Access::ReadWrite).unwrap()
    }

    /// A disk file system and one in memory, which lacks some of the calls.
    fn directories() -> Vec<PathBuf> {
        let memory = PathBuf::from("/dev/shm");
        [std::env::temp_dir(), memory].into_iter().filter(|dir| dir.is_dir()).collect()
    }

    fn refusal(path: &Path, options: &FileOptions) -> String {
        FileStorage::open(path, options).unwrap_err().to_string()
    }

    #[test]
    fn an_extent_that_was_found_before_loses_the_holes_that_were_made_since() {
        let folder = tempfile::tempdir().unwrap();
        let storage = FileStorage::open(folder.path().join("f"), &FileOptions::create_new()).unwrap();
        storage.write_all_at(&vec![1; 4 << 20], 0).unwrap();
        let kind = |at| storage.extent_at(at).unwrap().unwrap().kind;
        assert_eq!([kind(0), kind(1 << 20)], [StorageExtentKind::Data; 2]);
        if !storage.punch_hole(ByteRange::between(1 << 20, 2 << 20)).unwrap() {
            eprintln!("no holes on this file system: the rest is not tested");
            return;
        }
        assert_eq!(kind(1 << 20), StorageExtentKind::Hole);
        assert_eq!(storage.extent_at(0).unwrap().unwrap().range, ByteRange::between(0, 1 << 20));
        assert_eq!(kind(3 << 20), StorageExtentKind::Data);
        storage.set_len(3 << 20).unwrap();
        storage.set_len(4 << 20).unwrap();
        assert_eq!(kind(3 << 20), StorageExtentKind::Hole);
    }

    #[test]
    fn files_conform_on_every_file_system_at_hand() {
        for dir in directories() {
            conformance::run(&mut || Box::new(temporary(&dir)));
        }
    }

    #[test]
    fn files_conform_on_a_host_without_any_of_the_calls() {
        conformance::run(&mut || Box::new(temporary(&std::env::temp_dir()).without_host_calls()));
    }

    #[test]
    fn a_file_opened_for_reading_conforms_and_refuses_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, vec![5; 9000]).unwrap();
        let storage = FileStorage::open(&path, &FileOptions::read_only()).unwrap();
        conformance::run_read_only(&storage, &[5; 9000]);
        assert_eq!(std::fs::read(&path).unwrap(), [5; 9000]);
    }

    #[test]
    fn what_is_no_image_file_is_refused_by_name_and_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let socket = dir.path().join("socket");
        let _listener = UnixListener::bind(&socket).unwrap();
        let truncate = FileOptions { creation: Creation::Truncate, ..FileOptions::read_write() };
        for options in [FileOptions::read_only(), FileOptions::read_write(), truncate] {
            assert_eq!(refusal(dir.path(), &options), "is a directory, not an image file");
            assert_eq!(refusal(&fifo, &options), "is a FIFO, not an image file");
            assert_eq!(refusal(&socket, &options), "is a socket, not an image file");
            for device in ["/dev/null", "/dev/zero", "/dev/tty"] {
                let text = refusal(Path::new(device), &options);
                let no_terminal = device == "/dev/tty" && text.contains("os error");
                assert!(text == "is a character device without a size" || no_terminal, "{device}: {text}");
            }
        }
    }

    #[test]
    fn a_fifo_that_is_open_already_is_refused_too() {
        let (reader, writer) = io::pipe().unwrap();
        let error = FileStorage::from_file(File::from(OwnedFd::from(reader)), Access::ReadOnly).unwrap_err();
        assert_eq!(error.to_string(), "is a FIFO, not an image file");
        drop(writer);
    }

    #[test]
    fn a_file_is_made_only_when_that_was_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let never = FileStorage::open(&path, &FileOptions::read_write()).unwrap_err();
        assert_eq!(never.kind(), io::ErrorKind::NotFound);
        FileStorage::open(&path, &FileOptions::create_new()).unwrap().write_at(b"abc", 0).unwrap();
        let again = FileStorage::open(&path, &FileOptions::create_new()).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"abc");
        let truncate = FileOptions { creation: Creation::Truncate, ..FileOptions::read_write() };
        assert_eq!(FileStorage::open(&path, &truncate).unwrap().len().unwrap(), 0);
        let other = dir.path().join("b");
        assert_eq!(FileStorage::open(&other, &truncate).unwrap().len().unwrap(), 0);
    }

    #[test]
    fn a_dangling_link_is_no_place_for_a_new_file() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path().join("nowhere"), &link).unwrap();
        let error = FileStorage::open(&link, &FileOptions::create_new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert!(!dir.path().join("nowhere").exists());
    }

    #[test]
    fn making_a_file_to_read_it_makes_no_sense() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        for creation in [Creation::New, Creation::Truncate] {
            let options = FileOptions { creation, ..FileOptions::read_only() };
            assert_eq!(FileStorage::open(&path, &options).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
        assert!(!path.exists());
    }

    #[test]
    fn a_descriptor_must_be_open_for_the_access_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, b"abc").unwrap();
        let reader = File::open(&path).unwrap();
        assert!(FileStorage::from_file(reader, Access::ReadWrite).is_err());
        let writer = OpenOptions::new().write(true).open(&path).unwrap();
        assert!(FileStorage::from_file(writer, Access::ReadOnly).is_err());
        let appender = OpenOptions::new().read(true).append(true).open(&path).unwrap();
        assert!(FileStorage::from_file(appender, Access::ReadWrite).is_err());
    }

    #[test]
    fn the_open_file_blocks_reads_again_and_is_closed_in_children() {
        let dir = tempfile::tempdir().unwrap();
        let storage = FileStorage::open(dir.path().join("a"), &FileOptions::create_new()).unwrap();
        assert!(!rustix::fs::fcntl_getfl(&storage).unwrap().contains(OFlags::NONBLOCK));
        let flags = rustix::io::fcntl_getfd(&storage).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }

    #[test]
    fn holes_take_no_space_and_are_told() {
        for dir in directories() {
            let storage = temporary(&dir);
            storage.write_all_at(&vec![1; 1 << 20], 0).unwrap();
            storage.set_len(1 << 30).unwrap();
            assert!(storage.allocated_bytes().unwrap() <= 2 << 20);
            let hole = storage.extent_at(1 << 20).unwrap().unwrap();
            assert_eq!(hole.kind, StorageExtentKind::Hole);
            assert_eq!(hole.range, ByteRange::between(1 << 20, 1 << 30));
            assert!(storage.punch_hole(ByteRange::between(0, 1 << 20)).unwrap());
            assert_eq!(storage.allocated_bytes().unwrap(), 0);
            assert_eq!(storage.len().unwrap(), 1 << 30);
        }
    }

    #[test]
    fn a_large_write_takes_the_space_that_it_fills_and_no_more() {
        const LARGE: u64 = 4 * LARGE_WRITE;
        for dir in directories() {
            let storage = temporary(&dir);
            storage.set_len(10 * LARGE).unwrap();
            // Into a hole, over half of that, past the end, and in part past it.
            let places = [LARGE, LARGE + LARGE / 2, 10 * LARGE, 10 * LARGE + LARGE / 2];
            let mut expected = vec![0; 12 * LARGE as usize];
            for (place, byte) in places.into_iter().zip(1..) {
                let bytes = vec![byte; LARGE as usize];
                storage.write_all_at(&bytes, place).unwrap();
                expected[place as usize..(place + LARGE) as usize].copy_from_slice(&bytes);
            }
            expected.truncate(storage.len().unwrap() as usize);
            assert_eq!(expected.len() as u64, 11 * LARGE + LARGE / 2);
            let mut found = vec![9; expected.len()];
            storage.read_exact_at(&mut found, 0).unwrap();
            assert!(found == expected, "{}", dir.display());
            storage.sync().unwrap();
            // With what the file system notes the places in, or has taken ahead.
            let taken = storage.allocated_bytes().unwrap();
            assert!((3 * LARGE..6 * LARGE).contains(&taken), "{}: {taken}", dir.display());
        }
    }

    #[test]
    fn allocation_takes_the_space() {
        for dir in directories() {
            let storage = temporary(&dir);
            storage.allocate(ByteRange::between(0, 1 << 20)).unwrap();
            assert!(storage.allocated_bytes().unwrap() >= 1 << 20);
        }
    }

    #[test]
    fn a_large_gap_is_zeroed_without_writing_it_where_the_host_has_none_of_the_calls() {
        let storage = temporary(&std::env::temp_dir()).without_host_calls();
        storage.write_all_at(&[1; 100], 0).unwrap();
        storage.write_zeroes(ByteRange::between(50, 8 << 30)).unwrap();
        assert_eq!(storage.len().unwrap(), 8 << 30);
        assert!(storage.allocated_bytes().unwrap() < 1 << 20);
    }

    /// A loop device over a file, detached when dropped.
    struct LoopDevice(String);

    impl LoopDevice {
        /// `None` where this process may not make one.
        fn new(file: &Path) -> Option<LoopDevice> {
            let made = Command::new("losetup").args(["--find", "--show"]).arg(file).output().ok()?;
            let name = String::from_utf8(made.stdout).ok()?.trim().to_owned();
            (made.status.success() && !name.is_empty()).then_some(LoopDevice(name))
        }
    }

    impl Drop for LoopDevice {
        fn drop(&mut self) {
            _ = Command::new("losetup").arg("-d").arg(&self.0).status();
        }
    }

    #[test]
    fn a_block_device_has_the_length_that_it_has() {
        const LEN: u64 = 1 << 20;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, vec![1; LEN as usize]).unwrap();
        let Some(device) = LoopDevice::new(&path) else { return };
        let truncate = FileOptions { creation: Creation::Truncate, ..FileOptions::read_write() };
        let storage = FileStorage::open(&device.0, &truncate).unwrap();
        assert!(storage.is_device());
        assert_eq!(storage.len().unwrap(), LEN);
        assert_eq!(storage.allocated_bytes().unwrap(), LEN);
        storage.set_len(LEN).unwrap();
        assert_eq!(storage.set_len(LEN + 1).unwrap_err().to_string(), "cannot grow a device");
        assert_eq!(storage.set_len(LEN - 1).unwrap_err().to_string(), "cannot shrink a device");
        assert!(storage.write_all_at(&[2; 1024], LEN - 512).is_err());
        assert!(storage.write_zeroes(ByteRange::between(0, LEN + 512)).is_err());
        assert!(storage.allocate(ByteRange::between(0, LEN + 512)).is_err());
        storage.allocate(ByteRange::between(0, LEN)).unwrap();
        let mut expected = vec![1; LEN as usize];
        expected[LEN as usize - 512..].fill(2);
        // Aligned, then not; both past the size that is simply written.
        for (start, end) in [(64 << 10, 128 << 10), (200_001, 300_001)] {
            storage.write_zeroes(ByteRange::between(start, end)).unwrap();
            expected[start as usize..end as usize].fill(0);
        }
        if storage.punch_hole(ByteRange::between(400 << 10, 500 << 10)).unwrap() {
            expected[400 << 10..500 << 10].fill(0);
        }
        assert!(!storage.punch_hole(ByteRange::between(1, 1000)).unwrap());
        storage.sync().unwrap();
        let reader = FileStorage::open(&device.0, &FileOptions::read_only()).unwrap();
        conformance::run_read_only(&reader, &expected);
        conformance::run_read_only(&crate::storage::MappedStorage::new(reader).unwrap(), &expected);
    }
}
