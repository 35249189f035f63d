//! A new file that has no name yet.
//!
//! Where the file system can do that it has none at all (`O_TMPFILE`): whatever ends the program, the host takes its space
//! back. It gets its name by a link, which fails where the name is taken; taking a name over needs a second, temporary one
//! for a moment, since a link replaces nothing. Elsewhere the file is `.cowimg-*.part` beside its place from the beginning,
//! and stays if the program is killed.

use std::fs::{File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use tempfile::{Builder, TempPath};

/// A file, and the name that it has for the time being, if it needs one.
#[derive(Debug)]
pub(super) struct NamelessFile {
    file: File,
    temporary: Option<TempPath>,
}

/// What becomes of a file that has the name already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Namesake {
    /// It keeps the name.
    Stays,
    /// The name is taken over at once: whoever opens it finds the old file or the new one.
    Goes,
}

impl NamelessFile {
    /// A new, empty file in the folder in which it is to be `target`.
    pub(super) fn beside(target: &Path) -> io::Result<NamelessFile> {
        let folder = folder_of(target);
        if let Some(file) = without_name(folder) {
            return Ok(NamelessFile { file, temporary: None });
        }
        NamelessFile::with_temporary_name(folder)
    }

    fn with_temporary_name(folder: &Path) -> io::Result<NamelessFile> {
        let permissions = Permissions::from_mode(MODE);
        let (file, path) = part_name().permissions(permissions).tempfile_in(folder)?.into_parts();
        Ok(NamelessFile { file, temporary: Some(path) })
    }

    /// The file, open for reading and writing.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// A path that opens the file again, as long as it is open here.
    pub(super) fn path(&self) -> PathBuf {
        match &self.temporary {
            Some(path) => path.to_path_buf(),
            None => descriptor(&self.file),
        }
    }

    /// Gives the file its name.
    pub(super) fn give_name(self, target: &Path, namesake: Namesake) -> io::Result<()> {
        match self.temporary {
            Some(path) => rename(path, target, namesake),
            None => match link(&self.file, target) {
                Err(error) if namesake == Namesake::Goes && error.kind() == io::ErrorKind::AlreadyExists => {
                    rename(temporary_link(&self.file, folder_of(target))?, target, namesake)
                }
                named => named,
            },
        }
    }

    /// The file without a descriptor, which needs a temporary name: for files in great number.
    pub(super) fn close(self, target: &Path) -> io::Result<TempPath> {
        match self.temporary {
            Some(path) => Ok(path),
            None => temporary_link(&self.file, folder_of(target)),
        }
    }
}

/// Permissions of a new file, before the process's umask.
const MODE: u32 = 0o644;

/// Gives a file that has a temporary name its own.
pub(super) fn rename(path: TempPath, target: &Path, namesake: Namesake) -> io::Result<()> {
    let renamed = match namesake {
        Namesake::Stays => path.persist_noclobber(target),
        Namesake::Goes => path.persist(target),
    };
    renamed.map_err(|failed| failed.error)
}

/// The folder that a file is in.
pub(super) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A file without a name, where the file system has such and the host can name it later.
fn without_name(folder: &Path) -> Option<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(folder, flags, Mode::from_raw_mode(MODE)).ok()?);
    let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    let here = file.metadata().ok().map(identity)?;
    let there = std::fs::metadata(descriptor(&file)).ok().map(identity)?;
    (here == there).then_some(file)
}

/// A path by which the host leads to an open file, whether it has a name or not.
fn descriptor(file: &File) -> PathBuf {
    Path::new("/proc/self/fd").join(file.as_raw_fd().to_string())
}

fn link(file: &File, target: &Path) -> io::Result<()> {
    Ok(rustix::fs::linkat(CWD, descriptor(file), CWD, target, AtFlags::SYMLINK_FOLLOW)?)
}

fn temporary_link(file: &File, folder: &Path) -> io::Result<TempPath> {
    Ok(part_name().make_in(folder, |path| link(file, path))?.into_temp_path())
}

/// Names by which what is left of a killed program is known.
fn part_name() -> Builder<'static, 'static> {
    let mut builder = Builder::new();
    builder.prefix(".cowimg-").suffix(".part");
    builder
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// A new file of either kind, and the folder that it is in. The first is no other than the second where the file
    /// system knows no better.
    fn both() -> Vec<(tempfile::TempDir, NamelessFile)> {
        let make: [fn(&Path) -> io::Result<NamelessFile>; 2] =
            [NamelessFile::beside, |target| NamelessFile::with_temporary_name(folder_of(target))];
        let with_folder = |make: fn(&Path) -> io::Result<NamelessFile>| {
            let folder = tempfile::tempdir().unwrap();
            let file = make(&folder.path().join("new")).unwrap();
            file.file().write_all(b"new").unwrap();
            (folder, file)
        };
        make.into_iter().map(with_folder).collect()
    }

    #[test]
    fn a_name_is_given_once_the_file_is_complete_and_not_twice() {
        for (folder, file) in both() {
            let target = folder.path().join("new");
            assert!(!target.exists());
            assert_eq!(std::fs::read(file.path()).unwrap(), b"new");
            file.give_name(&target, Namesake::Stays).unwrap();
            assert_eq!(std::fs::read(&target).unwrap(), b"new");
            assert_eq!(names(folder.path()), ["new"]);
        }
        for (folder, file) in both() {
            let target = folder.path().join("new");
            std::fs::write(&target, "old").unwrap();
            let error = file.give_name(&target, Namesake::Stays).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
            assert_eq!(std::fs::read(&target).unwrap(), b"old");
            assert_eq!(names(folder.path()), ["new"]);
        }
    }

    #[test]
    fn a_name_is_taken_over_where_that_is_asked_for() {
        for (folder, file) in both() {
            let target = folder.path().join("new");
            std::fs::write(&target, "old").unwrap();
            file.give_name(&target, Namesake::Goes).unwrap();
            assert_eq!(std::fs::read(&target).unwrap(), b"new");
            assert_eq!(names(folder.path()), ["new"]);
        }
    }

    #[test]
    fn a_file_that_is_closed_has_a_name_that_goes_with_it() {
        for (folder, file) in both() {
            let target = folder.path().join("new");
            let closed = file.close(&target).unwrap();
            assert_eq!(std::fs::read(&closed).unwrap(), b"new");
            assert!(names(folder.path())[0].starts_with(".cowimg-"), "{:?}", names(folder.path()));
            drop(closed);
            assert_eq!(names(folder.path()), [""; 0]);
        }
        for (folder, file) in both() {
            let target = folder.path().join("new");
            rename(file.close(&target).unwrap(), &target, Namesake::Stays).unwrap();
            assert_eq!(names(folder.path()), ["new"]);
        }
    }

    #[test]
    fn nothing_is_left_of_a_file_that_is_not_wanted() {
        for (folder, file) in both() {
            drop(file);
            assert_eq!(names(folder.path()), [""; 0]);
        }
    }

    #[test]
    fn permissions_are_those_of_any_new_file() {
        for (folder, file) in both() {
            let plain = folder.path().join("plain");
            std::fs::write(&plain, "").unwrap();
            let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
            let target = folder.path().join("new");
            file.give_name(&target, Namesake::Stays).unwrap();
            assert_eq!(mode(&target), mode(&plain) & MODE);
        }
    }
}
