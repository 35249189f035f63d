//! Locks on a file's use, as QEMU takes them: who has the file open for what, and what others may do meanwhile.
//!
//! There are four [`Permissions`]. Each has two bytes of the file (the file need not be that long): one is locked by
//! those who *take* the permission, the other by those who cannot *bear* that others take it. All these locks are read
//! locks, which many may hold; the conflict is looked for afterwards, with the question whether a write lock on the
//! opposite byte would be refused.
//!
//! | permission | taken: byte | not borne: byte |
//! |---|---|---|
//! | read consistent content | 100 | 200 |
//! | write | 101 | 201 |
//! | write what is there already | 102 | 202 |
//! | resize | 103 | 203 |
//!
//! The locks belong to the open file (`F_OFD_SETLK`), not to the process: two opens in one process conflict as two
//! processes do, and closing some other descriptor of the file releases nothing. Hosts without such locks have none:
//! there [`FileStorage::lock`] succeeds and does nothing, as QEMU does by default.

use std::fmt;
use std::fs::File;
use std::io;
use std::sync::PoisonError;

use super::FileStorage;
use super::lock_holder::{self, LockOwner};
use crate::error::{Error, ErrorKind, LockConflict, Result};

/// First of the bytes that those lock who take a permission.
const TAKEN: u8 = 100;
/// First of the bytes that those lock who cannot bear that others take a permission.
const NOT_BORNE: u8 = 200;
/// How many permissions there are.
const COUNT: u8 = 4;

/// A set of things that a user of a file may do with it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Permissions(u8);

impl Permissions {
    /// Nothing.
    pub const NONE: Permissions = Permissions(0);
    /// Read, and rely on the content making sense.
    pub const READ: Permissions = Permissions(1);
    /// Write.
    pub const WRITE: Permissions = Permissions(2);
    /// Write what the file reads as already.
    pub const WRITE_UNCHANGED: Permissions = Permissions(4);
    /// Change the length.
    pub const RESIZE: Permissions = Permissions(8);
    /// Everything.
    pub const ALL: Permissions = Permissions(15);

    /// This set and `other` together.
    #[must_use]
    pub const fn with(self, other: Permissions) -> Permissions {
        Permissions(self.0 | other.0)
    }

    /// This set less what is in `other`.
    #[must_use]
    pub const fn without(self, other: Permissions) -> Permissions {
        Permissions(self.0 & !other.0)
    }

    /// Whether all of `other` is in this set.
    pub fn contains(self, other: Permissions) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether `index`, below [`COUNT`], is in this set.
    fn has(self, index: u8) -> bool {
        self.0 >> index & 1 == 1
    }
}

impl fmt::Debug for Permissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = ["read", "write", "write-unchanged", "resize"];
        f.debug_set()
            .entries((0..COUNT).zip(names).filter(|(i, _)| self.has(*i)).map(|(_, name)| name))
            .finish()
    }
}

/// What a user does with a file, and what others may do with it meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileUse {
    /// What the user does.
    pub takes: Permissions,
    /// What others may do.
    pub bears: Permissions,
}

impl FileUse {
    /// Takes nothing and bears everything: no lock at all.
    pub const NONE: FileUse = FileUse { takes: Permissions::NONE, bears: Permissions::ALL };

    /// The bytes that are locked for this use.
    fn bytes(self) -> impl Iterator<Item = u8> {
        let taken = (0..COUNT).filter(move |i| self.takes.has(*i)).map(|i| TAKEN + i);
        let not_borne = (0..COUNT).filter(move |i| !self.bears.has(*i)).map(|i| NOT_BORNE + i);
        taken.chain(not_borne)
    }

    /// The bytes that nobody else may have locked, each with what it means if somebody has; the most telling first.
    fn conflicts(self) -> impl Iterator<Item = (u8, LockConflict)> {
        use LockConflict as Is;
        let others_take = [
            (Permissions::WRITE, Is::Written),
            (Permissions::RESIZE, Is::Resized),
            (Permissions::WRITE_UNCHANGED, Is::Written),
            (Permissions::READ, Is::Read),
        ];
        let others_do_not_bear = [
            (Permissions::WRITE, Is::KeptUnwritten),
            (Permissions::RESIZE, Is::KeptUnresized),
            (Permissions::WRITE_UNCHANGED, Is::KeptUnwritten),
            (Permissions::READ, Is::Inconsistent),
        ];
        let index = |permission: Permissions| permission.0.trailing_zeros() as u8;
        let taken = others_take.into_iter().filter(move |(permission, _)| !self.bears.contains(*permission));
        let not_borne =
            others_do_not_bear.into_iter().filter(move |(permission, _)| self.takes.contains(*permission));
        taken
            .map(move |(permission, conflict)| (TAKEN + index(permission), conflict))
            .chain(not_borne.map(move |(permission, conflict)| (NOT_BORNE + index(permission), conflict)))
    }

    /// Both at once.
    fn and(self, other: FileUse) -> FileUse {
        let neither_bears = Permissions::ALL.without(self.bears).with(Permissions::ALL.without(other.bears));
        FileUse { takes: self.takes.with(other.takes), bears: Permissions::ALL.without(neither_bears) }
    }

    /// Whether who has the locks of `held` has those of this use.
    fn is_covered_by(self, held: FileUse) -> bool {
        held.takes.contains(self.takes) && self.bears.contains(held.bears)
    }
}

impl FileStorage {
    /// Locks the file for `new` in place of what it was locked for before; [`FileUse::NONE`] unlocks it. A use that
    /// conflicts with another's is refused with [`ErrorKind::Locked`], and then the old one stays. The lock ends with
    /// the storage.
    pub fn lock(&self, new: FileUse) -> Result<()> {
        let mut held = self.locked.lock().unwrap_or_else(PoisonError::into_inner);
        let old = *held;
        if !new.is_covered_by(old) {
            // Others must see what is wanted before it is looked at what they want: of two who come at once, one at
            // least is refused.
            let taken = set_bytes(self.file(), FileUse::NONE, old.and(new))
                .and_then(|()| self.look_for_conflict(new));
            if let Err(error) = taken {
                // What cannot be unlocked now is unlocked when the file is closed.
                let _ = set_bytes(self.file(), old.and(new), old);
                return Err(error);
            }
        }
        set_bytes(self.file(), old.and(new), new)?;
        *held = new;
        Ok(())
    }

    /// What the file is locked for now.
    pub fn locked_for(&self) -> FileUse {
        *self.locked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look_for_conflict(&self, new: FileUse) -> Result<()> {
        for (byte, conflict) in new.conflicts() {
            if let Some(owner) = owner(self.file(), byte)? {
                let holder = lock_holder::find(self.file(), byte, owner);
                return Err(Error::new(ErrorKind::Locked { conflict, holder }));
            }
        }
        Ok(())
    }
}

impl Drop for FileStorage {
    /// A child process that was forked a moment ago may have the file open until it starts its program; the lock must
    /// not wait for that.
    fn drop(&mut self) {
        let held = *self.locked.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = set_bytes(self.file(), held, FileUse::NONE);
    }
}

/// Goes from the locks of `old` to those of `new`.
fn set_bytes(file: &File, old: FileUse, new: FileUse) -> Result<()> {
    let not_in = |other: FileUse| move |byte: &u8| !other.bytes().any(|held| held == *byte);
    for byte in new.bytes().filter(not_in(old)) {
        match host::lock(file, byte) {
            Ok(()) => {}
            // A write lock, which is none of QEMU's or ours.
            Err(error)
                if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::PermissionDenied) =>
            {
                let owner = owner(file, byte)?.unwrap_or_default();
                let holder = lock_holder::find(file, byte, owner);
                return Err(Error::new(ErrorKind::Locked { conflict: LockConflict::Exclusive, holder }));
            }
            Err(error) => return Err(lock_error(error)),
        }
    }
    for byte in old.bytes().filter(not_in(new)) {
        host::unlock(file, byte).map_err(lock_error)?;
    }
    Ok(())
}

/// Who has a lock of any kind on `byte`, this open file excepted.
fn owner(file: &File, byte: u8) -> Result<Option<LockOwner>> {
    host::pid_of_owner(file, byte).map(|pid| pid.map(LockOwner::of_pid)).map_err(lock_error)
}

fn lock_error(source: io::Error) -> Error {
    Error::io("lock the image", source)
}

#[cfg(any(target_os = "linux", target_os = "android"))]
mod host {
    use std::fs::File;
    use std::io;

    use nix::errno::Errno;
    use nix::fcntl::{FcntlArg, fcntl};
    use nix::libc;

    pub(super) fn lock(file: &File, byte: u8) -> io::Result<()> {
        set(file, libc::F_RDLCK, byte)
    }

    pub(super) fn unlock(file: &File, byte: u8) -> io::Result<()> {
        set(file, libc::F_UNLCK, byte)
    }

    /// The process that has a lock of any kind on `byte`, this open file excepted; -1 for one that belongs to an open
    /// file.
    pub(super) fn pid_of_owner(file: &File, byte: u8) -> io::Result<Option<i32>> {
        let mut found = one_byte(libc::F_WRLCK, byte);
        match fcntl(file, FcntlArg::F_OFD_GETLK(&mut found)) {
            Ok(_) if found.l_type == libc::F_UNLCK as libc::c_short => Ok(None),
            Ok(_) => Ok(Some(found.l_pid)),
            Err(Errno::EINVAL) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn set(file: &File, kind: libc::c_int, byte: u8) -> io::Result<()> {
        match fcntl(file, FcntlArg::F_OFD_SETLK(&one_byte(kind, byte))) {
            // A kernel that has no such locks says that the call is invalid; there nobody has one.
            Ok(_) | Err(Errno::EINVAL) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn one_byte(kind: libc::c_int, byte: u8) -> libc::flock {
        libc::flock {
            l_type: kind as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: libc::off_t::from(byte),
            l_len: 1,
            l_pid: 0,
        }
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod host {
    use std::fs::File;
    use std::io;

    pub(super) fn lock(_: &File, _: u8) -> io::Result<()> {
        Ok(())
    }

    pub(super) fn unlock(_: &File, _: u8) -> io::Result<()> {
        Ok(())
    }

    pub(super) fn pid_of_owner(_: &File, _: u8) -> io::Result<Option<i32>> {
        Ok(None)
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::storage::{FileOptions, FileStorage};

    const WRITER: FileUse = FileUse {
        takes: Permissions::READ.with(Permissions::WRITE).with(Permissions::RESIZE),
        bears: Permissions::READ.with(Permissions::WRITE_UNCHANGED),
    };
    const READER: FileUse = FileUse { takes: Permissions::READ, bears: WRITER.bears };
    const SHARING: FileUse = FileUse { takes: Permissions::READ, bears: Permissions::ALL };

    fn open(path: &Path) -> FileStorage {
        FileStorage::open(path, &FileOptions::read_only()).unwrap()
    }

    fn conflict(result: Result<()>) -> LockConflict {
        match result.unwrap_err().kind() {
            ErrorKind::Locked { conflict, holder } => {
                assert_eq!(holder.as_ref().map(|holder| holder.pid), Some(std::process::id()));
                *conflict
            }
            other => panic!("{other}"),
        }
    }

    /// The bytes that the open file has locked, as the kernel lists them.
    fn locked_bytes(file: &FileStorage) -> Vec<(u64, u64)> {
        use std::os::fd::AsRawFd;
        let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", file.file().as_raw_fd())).unwrap();
        let mut ranges: Vec<_> = text
            .lines()
            .filter(|line| line.starts_with("lock:"))
            .map(|line| {
                assert!(line.contains("OFDLCK") && line.contains("READ"), "{line}");
                let words: Vec<&str> = line.split_whitespace().collect();
                (words[words.len() - 2].parse().unwrap(), words[words.len() - 1].parse().unwrap())
            })
            .collect();
        ranges.sort_unstable();
        ranges
    }

    #[test]
    fn the_bytes_are_qemus() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, "").unwrap();
        let file = open(&path);
        for (wanted, bytes) in [
            (WRITER, vec![(100, 101), (103, 103), (201, 201), (203, 203)]),
            (READER, vec![(100, 100), (201, 201), (203, 203)]),
            (SHARING, vec![(100, 100)]),
            (FileUse { takes: Permissions::ALL, bears: Permissions::NONE }, vec![(100, 103), (200, 203)]),
            (FileUse::NONE, vec![]),
        ] {
            file.lock(wanted).unwrap();
            assert_eq!(locked_bytes(&file), bytes, "{wanted:?}");
            assert_eq!(file.locked_for(), wanted);
        }
    }

    #[test]
    fn a_writer_and_a_reader_refuse_each_other_and_one_that_shares_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, "").unwrap();
        let (first, second) = (open(&path), open(&path));
        first.lock(WRITER).unwrap();
        assert_eq!(conflict(second.lock(READER)), LockConflict::Written);
        assert_eq!(conflict(second.lock(WRITER)), LockConflict::Written);
        assert_eq!(second.locked_for(), FileUse::NONE);
        assert_eq!(locked_bytes(&second), []);
        second.lock(SHARING).unwrap();
        second.lock(FileUse::NONE).unwrap();

        first.lock(READER).unwrap();
        second.lock(READER).unwrap();
        assert_eq!(conflict(second.lock(WRITER)), LockConflict::KeptUnwritten);
        assert_eq!(second.locked_for(), READER, "the old lock stays");
        assert_eq!(locked_bytes(&second), [(100, 100), (201, 201), (203, 203)]);
        drop(first);
        second.lock(WRITER).unwrap();
    }

    #[test]
    fn who_leaves_no_consistent_content_lets_nobody_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, "").unwrap();
        let (first, second) = (open(&path), open(&path));
        first
            .lock(FileUse { takes: Permissions::NONE, bears: Permissions::ALL.without(Permissions::READ) })
            .unwrap();
        assert_eq!(conflict(second.lock(SHARING)), LockConflict::Inconsistent);
        first.lock(FileUse::NONE).unwrap();
        second.lock(SHARING).unwrap();
        let alone = FileUse { takes: Permissions::NONE, bears: Permissions::NONE };
        assert_eq!(conflict(first.lock(alone)), LockConflict::Read);
    }

    #[test]
    fn closing_another_descriptor_of_the_file_unlocks_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, "").unwrap();
        let writer = open(&path);
        writer.lock(WRITER).unwrap();
        drop(open(&path));
        assert_eq!(conflict(open(&path).lock(READER)), LockConflict::Written);
    }

    #[test]
    fn a_lock_ends_with_its_storage_even_if_a_copy_of_the_descriptor_lives_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, "").unwrap();
        let writer = open(&path);
        writer.lock(WRITER).unwrap();
        let copy = writer.file().try_clone().unwrap();
        drop(writer);
        open(&path).lock(WRITER).unwrap();
        drop(copy);
    }

    #[test]
    fn permissions_say_what_they_are() {
        assert_eq!(format!("{:?}", WRITER.takes), r#"{"read", "write", "resize"}"#);
        assert!(WRITER.takes.contains(Permissions::RESIZE));
        assert!(!WRITER.bears.contains(Permissions::RESIZE));
    }
}
