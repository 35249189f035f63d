//! A file of a new image that has no name yet: the image itself, or its data file.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempPath;

use super::create::Overwrite;
use super::file_use::CREATION;
use super::nameless::{NamelessFile, Namesake, folder_of, rename};
use crate::error::{Error, Result};
use crate::storage::{Access, FileOptions, FileStorage, HostAttributes, Storage, UnsyncedStorage, will_sync};

/// What a file is to the new image; errors say so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Image,
    DataFile,
}

impl Role {
    fn creation(self) -> &'static str {
        match self {
            Role::Image => "create the image",
            Role::DataFile => "create the data file",
        }
    }

    fn name_is_taken(self) -> Error {
        let error = io::Error::new(io::ErrorKind::AlreadyExists, "a file of this name exists");
        Error::io(self.creation(), error)
    }
}

/// A new file on its way to its name. Dropping it leaves nothing behind.
#[derive(Debug)]
#[must_use]
pub(super) struct StagedFile {
    role: Role,
    target: PathBuf,
    overwrite: Overwrite,
    place: Place,
    /// The file whose name is taken over: locked, so that nobody begins to use it who would lose what he writes.
    replaced: Option<FileStorage>,
}

#[derive(Debug)]
enum Place {
    /// In the target's folder, without its name.
    Beside(NamelessFile),
    /// The same; the file is not open, and has a name of its own.
    Closed(TempPath),
    /// In the target itself: a device, or a file that is to be written over.
    Target(Target),
}

/// A target that is written in place.
#[derive(Debug)]
enum Target {
    /// It keeps its size.
    Device,
    /// It is emptied first.
    File,
    /// It was made for the image, and goes if the image is not finished.
    New(RemovedUnlessKept),
}

/// A file that is removed when this is dropped, unless it was kept.
#[derive(Debug)]
struct RemovedUnlessKept {
    path: PathBuf,
    keep: bool,
}

impl Drop for RemovedUnlessKept {
    fn drop(&mut self) {
        if !self.keep {
            // What cannot be removed is left behind, as a part of an image.
            let _left = std::fs::remove_file(&self.path);
        }
    }
}

/// A file that has its name.
#[derive(Debug)]
pub(super) struct NamedFile {
    target: PathBuf,
    /// Device and number of the file, by which it is told from another that has taken its name; none of a file that was there.
    made: Option<(u64, u64)>,
    /// Whether the name was another file's.
    pub(super) has_replaced: bool,
}

impl NamedFile {
    /// The folder that the name is in.
    pub(super) fn folder(&self) -> &Path {
        folder_of(&self.target)
    }

    /// Takes the name back, and so the file, unless it is somebody else's by now, or was before.
    pub(super) fn take_back(&self) {
        if !self.has_replaced && self.made.is_some() && identity_of(&self.target) == self.made {
            // What cannot be removed stays, whole.
            let _left = std::fs::remove_file(&self.target);
        }
    }
}

impl StagedFile {
    /// A new file that is to be `path`, or what is there already where that is to be written over.
    pub(super) fn reserve(path: &Path, overwrite: Overwrite, role: Role) -> Result<StagedFile> {
        let creation = role.creation();
        let staged = |target: &Path, place, replaced| StagedFile {
            role,
            target: target.to_path_buf(),
            overwrite,
            place,
            replaced,
        };
        let in_place = |target| staged(path, Place::Target(target), None);
        let beside = |target: &Path, replaced| {
            let file = NamelessFile::beside(target).map_err(|error| Error::io(creation, error))?;
            Ok(staged(target, Place::Beside(file), replaced))
        };
        let target = match std::fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && overwrite == Overwrite::InPlace => {
                return make_target(path, role).map(in_place);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // A link that leads nowhere is a name that is taken, too.
                if path.is_symlink() && overwrite == Overwrite::Refuse {
                    return Err(role.name_is_taken());
                }
                return beside(path, None);
            }
            Err(error) => return Err(Error::io("look at the target", error)),
            Ok(_) if overwrite == Overwrite::Refuse => return Err(role.name_is_taken()),
            Ok(metadata) if metadata.is_dir() => {
                return Err(Error::io(creation, io::ErrorKind::IsADirectory.into()));
            }
            Ok(metadata) if metadata.file_type().is_block_device() => {
                return Ok(in_place(Target::Device));
            }
            Ok(metadata) if !metadata.is_file() => {
                return Err(Error::invalid("the target is neither a file nor a block device"));
            }
            Ok(_) if overwrite == Overwrite::InPlace => return Ok(in_place(Target::File)),
            // A link keeps its place; what it leads to is replaced.
            Ok(_) => path.canonicalize().map_err(|error| Error::io("resolve the target", error))?,
        };
        beside(&target, lock_replaced(&target)?)
    }

    /// The name that the file will have, by which errors call it already.
    pub(super) fn target(&self) -> &Path {
        &self.target
    }

    /// Where the file is until it has its name; none where it is written in place.
    pub(super) fn place(&self) -> Option<PathBuf> {
        match &self.place {
            Place::Beside(file) => Some(file.path()),
            Place::Closed(path) => Some(path.to_path_buf()),
            Place::Target(_) => None,
        }
    }

    /// Whether both are to have one name.
    pub(super) fn is_to_be(&self, other: &StagedFile) -> bool {
        let place = |file: &StagedFile| {
            Some((folder_of(&file.target).canonicalize().ok()?, file.target.file_name()?.to_os_string()))
        };
        let own = place(self);
        own.is_some() && own == place(other)
    }

    /// The file, to be written. Nothing is synced.
    pub(super) fn storage(&self, host: HostAttributes) -> Result<Arc<dyn Storage>> {
        let io = |error| Error::io(self.role.creation(), error);
        let storage = match &self.place {
            Place::Beside(file) => {
                let file = file.file().try_clone().map_err(io)?;
                let storage = FileStorage::from_file(file, Access::ReadWrite).map_err(io)?;
                storage.set_attributes(host);
                storage
            }
            Place::Closed(path) => FileStorage::open(path, &FileOptions::read_write()).map_err(io)?,
            Place::Target(target) => {
                let storage = FileStorage::open(&self.target, &FileOptions::read_write()).map_err(io)?;
                storage.lock(CREATION)?;
                if !matches!(target, Target::Device) {
                    storage.set_len(0).map_err(io)?;
                    storage.set_attributes(host);
                }
                storage
            }
        };
        Ok(Arc::new(UnsyncedStorage::new(storage)))
    }

    /// The same without an open file.
    pub(super) fn closed(self) -> Result<StagedFile> {
        let place = match self.place {
            Place::Beside(file) => {
                let closed = file.close(&self.target);
                Place::Closed(closed.map_err(|error| naming_failed(error, self.role, &self.target))?)
            }
            other => other,
        };
        Ok(StagedFile { place, ..self })
    }

    /// The same without a lock on the file whose name is taken over, which is locked again for that.
    pub(super) fn unlocked(self) -> StagedFile {
        StagedFile { replaced: None, ..self }
    }

    /// Lets the host begin with what [`StagedFile::sync`] will wait for.
    pub(super) fn will_be_synced(&self) {
        if let Place::Beside(file) = &self.place {
            will_sync(file.file().as_fd());
        }
    }

    /// Returns when what is in the file survives a power cut.
    pub(super) fn sync(&self) -> Result<()> {
        let synced = match &self.place {
            Place::Beside(file) => file.file().sync_all(),
            Place::Closed(path) => File::open(path).and_then(|file| file.sync_all()),
            Place::Target(_) => File::open(&self.target).and_then(|file| file.sync_all()),
        };
        synced.map_err(|error| sync_failed(error, &self.target))
    }

    /// Gives the file its name.
    pub(super) fn give_name(self) -> Result<NamedFile> {
        let StagedFile { role, target, overwrite, place, mut replaced } = self;
        let has_replaced = overwrite != Overwrite::Refuse && place.is_beside() && target.exists();
        let namesake = match overwrite {
            Overwrite::Refuse => Namesake::Stays,
            Overwrite::Replace | Overwrite::InPlace => Namesake::Goes,
        };
        if replaced.is_none() && namesake == Namesake::Goes && place.is_beside() {
            replaced = lock_replaced(&target).map_err(|error| error.at_path(&target))?;
        }
        let made = place.identity();
        let named = match place {
            Place::Target(Target::New(mut file)) => {
                file.keep = true;
                Ok(())
            }
            Place::Target(Target::Device | Target::File) => Ok(()),
            Place::Beside(file) => file.give_name(&target, namesake),
            Place::Closed(path) => rename(path, &target, namesake),
        };
        // Only now: nobody finds the old file any more.
        drop(replaced);
        named.map_err(|error| naming_failed(error, role, &target))?;
        Ok(NamedFile { target, made, has_replaced })
    }
}

impl Place {
    fn is_beside(&self) -> bool {
        !matches!(self, Place::Target(_))
    }

    /// Device and number of a file that is new.
    fn identity(&self) -> Option<(u64, u64)> {
        match self {
            Place::Beside(file) => {
                file.file().metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()))
            }
            Place::Closed(path) => identity_of(path),
            Place::Target(Target::New(file)) => identity_of(&file.path),
            Place::Target(Target::Device | Target::File) => None,
        }
    }
}

/// Makes the file that is to be written in.
fn make_target(path: &Path, role: Role) -> Result<Target> {
    FileStorage::open(path, &FileOptions::create_new()).map_err(|error| Error::io(role.creation(), error))?;
    Ok(Target::New(RemovedUnlessKept { path: path.to_path_buf(), keep: false }))
}

/// Returns when the names in `folder` survive a power cut.
pub(super) fn sync_folder(folder: &Path) -> Result<()> {
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        // A folder may be one to make files in and not to look at.
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => Err(sync_failed(error, folder)),
        _ => Ok(()),
    }
}

fn sync_failed(error: io::Error, path: &Path) -> Error {
    Error::io("sync the new image", error).at_path(path)
}

/// Device and number of the file that has this name.
fn identity_of(path: &Path) -> Option<(u64, u64)> {
    path.symlink_metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

fn naming_failed(error: io::Error, role: Role, target: &Path) -> Error {
    let error = match error.kind() {
        io::ErrorKind::AlreadyExists => role.name_is_taken(),
        _ if role == Role::DataFile => Error::io("give the data file its name", error),
        _ => Error::io("give the image its name", error),
    };
    error.at_path(target)
}

/// Locks the file at `target`, if there is one, as if it were to be written over. One that may not be opened cannot be
/// locked, and its owner's name may be taken over all the same.
fn lock_replaced(target: &Path) -> Result<Option<FileStorage>> {
    let file = match FileStorage::open(target, &FileOptions::read_only()) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {
            return Ok(None);
        }
        Err(error) => return Err(Error::io("open the file to be replaced", error)),
    };
    file.lock(CREATION)?;
    Ok(Some(file))
}
