//! An image that has no name yet: written beside its place, and given its name when it is complete.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempPath;

use super::Image;
use super::cancellable::CancellableStorage;
use super::create::{CreateOptions, CreatePlan, Overwrite, plan};
use super::file_use::CREATION;
use super::nameless::{NamelessFile, Namesake, folder_of, rename};
use super::options::OpenOptions;
use crate::error::{Error, Result};
use crate::progress::Control;
use crate::storage::{Access, FileOptions, FileStorage, HostAttributes, Storage, UnsyncedStorage};

/// A new image on its way to its name. [`StagedImage::publish`] gives it the name; dropping it leaves nothing behind.
///
/// A device has no name to wait for: there the image is written in place, and so it is where [`Overwrite::InPlace`] asks
/// for that.
#[derive(Debug)]
#[must_use]
pub struct StagedImage {
    target: PathBuf,
    overwrite: Overwrite,
    place: Place,
    /// The image's data file, which goes with it.
    data_file: Option<RemovedUnlessKept>,
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

/// What stands between a new image and a storage that it is written to: nothing, but in tests of what fails there.
pub(super) type Between<'a> = &'a dyn Fn(Arc<dyn Storage>) -> Arc<dyn Storage>;

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
pub(super) struct RemovedUnlessKept {
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

impl StagedImage {
    /// Creates the image that `options` ask for, to be named `path` later.
    pub fn create(path: impl AsRef<Path>, options: &CreateOptions) -> Result<StagedImage> {
        let path = path.as_ref();
        let plan = plan(path, options).map_err(|error| error.at_path(path))?;
        StagedImage::write(path, options.overwrite, &plan)
    }

    /// Writes what was planned.
    pub fn write(path: &Path, overwrite: Overwrite, plan: &CreatePlan) -> Result<StagedImage> {
        StagedImage::write_with(path, overwrite, plan, &Control::default())
    }

    /// Writes what was planned, tells how far it is, and stops when it is asked to: then with
    /// [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled), and nothing is left behind but a file that was to be
    /// written over.
    pub fn write_with(
        path: &Path,
        overwrite: Overwrite,
        plan: &CreatePlan,
        control: &Control<'_>,
    ) -> Result<StagedImage> {
        StagedImage::write_through(path, overwrite, plan, (control, &|storage| storage))
    }

    /// The same through what `between` makes of the storages of the image's files.
    pub(super) fn write_through(
        path: &Path,
        overwrite: Overwrite,
        plan: &CreatePlan,
        (control, between): (&Control<'_>, Between<'_>),
    ) -> Result<StagedImage> {
        let mut staged = StagedImage::reserve(path, overwrite).map_err(|error| error.at_path(path))?;
        staged.data_file = plan.make_data_file(overwrite, (control, between))?;
        let storage = staged.storage(plan.host).map_err(|error| error.at_path(path))?;
        let storage = CancellableStorage::new(between(storage), control, plan.report().size);
        storage.outcome(plan.write_to(&storage)).map_err(|error| error.at_path(path))?;
        Ok(staged)
    }

    fn reserve(path: &Path, overwrite: Overwrite) -> Result<StagedImage> {
        let in_place = |place| StagedImage {
            target: path.to_path_buf(),
            overwrite,
            place: Place::Target(place),
            data_file: None,
            replaced: None,
        };
        let target = match std::fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && overwrite == Overwrite::InPlace => {
                return make_target(path).map(in_place);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // A link that leads nowhere is a name that is taken, too.
                if path.is_symlink() && overwrite == Overwrite::Refuse {
                    return Err(name_is_taken());
                }
                path.to_path_buf()
            }
            Err(error) => return Err(Error::io("look at the target", error)),
            Ok(_) if overwrite == Overwrite::Refuse => return Err(name_is_taken()),
            Ok(metadata) if metadata.is_dir() => {
                return Err(Error::io("create the image", io::ErrorKind::IsADirectory.into()));
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
        let replaced = lock_replaced(&target)?;
        let file = NamelessFile::beside(&target).map_err(|error| Error::io("create the image", error))?;
        Ok(StagedImage { target, overwrite, place: Place::Beside(file), data_file: None, replaced })
    }

    /// Opens the new image for writing. Until it has its name nobody relies on it, so that
    /// [`CacheMode::Unsafe`](super::CacheMode::Unsafe) is the mode to do that in.
    pub fn open(&self, options: &OpenOptions) -> Result<Image> {
        let options = options.clone().access(Access::ReadWrite);
        match &self.place {
            Place::Beside(file) => Image::open_nameless(self.path(), &file.path(), &options),
            Place::Closed(path) => Image::open_nameless(self.path(), path, &options),
            Place::Target(_) => options.open(self.path()),
        }
    }

    /// The same without an open file, for images that wait for their names in great number.
    pub(super) fn closed(self) -> Result<StagedImage> {
        let place = match self.place {
            Place::Beside(file) => {
                let closed = file.close(&self.target);
                Place::Closed(closed.map_err(|error| naming_failed(error, &self.target))?)
            }
            other => other,
        };
        Ok(StagedImage { place, ..self })
    }

    /// The same without a lock on the file whose name is taken over, which is locked again for that.
    pub(super) fn unlocked(self) -> StagedImage {
        StagedImage { replaced: None, ..self }
    }

    /// Whether another file's name is taken over.
    pub(super) fn replaces_a_file(&self) -> bool {
        self.overwrite != Overwrite::Refuse && self.target.exists()
    }

    /// The name that the image will have, by which errors call it already.
    pub fn path(&self) -> &Path {
        &self.target
    }

    /// Device and number of the image's file, by which it is told from another that has taken its name.
    pub(super) fn identity(&self) -> Option<(u64, u64)> {
        match &self.place {
            Place::Beside(file) => {
                file.file().metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()))
            }
            Place::Closed(path) => identity_of(path),
            Place::Target(_) => None,
        }
    }

    /// Returns when what is in the image's files survives a power cut.
    pub(super) fn sync(&self) -> Result<()> {
        if let Some(data_file) = &self.data_file {
            // It has its name already.
            sync_path(&data_file.path)?;
            sync_folder(&data_file.path)?;
        }
        match &self.place {
            Place::Beside(file) => file.file().sync_all().map_err(|error| sync_failed(error, &self.target)),
            Place::Closed(path) => sync_path(path),
            Place::Target(_) => sync_path(&self.target),
        }
    }

    /// Whether a failure can be made undone by taking the name back: nobody had it before.
    pub(super) fn is_new(&self) -> bool {
        matches!(self.place, Place::Beside(_) | Place::Closed(_)) && !self.replaces_a_file()
    }

    /// Gives the image its name, durably: what is in it survives a power cut from then on, and there is no moment in which
    /// one would leave the name with less behind it.
    pub fn publish_synced(self) -> Result<()> {
        self.sync()?;
        let (target, is_new) = (self.target.clone(), self.is_new());
        let data_file = self.data_file.as_ref().map(|file| file.path.clone());
        let data_file = data_file.map(|path| (identity_of(&path), path));
        let made = self.identity();
        self.publish()?;
        sync_folder(&target).inspect_err(|_| {
            if is_new {
                take_back(&target, made);
                if let Some((made, path)) = &data_file {
                    take_back(path, *made);
                }
            }
        })
    }

    /// Gives the image its name. Nothing is synced: a power cut soon after it may leave the name with a part of the image.
    pub fn publish(self) -> Result<()> {
        let StagedImage { target, overwrite, place, data_file, mut replaced } = self;
        let namesake = match overwrite {
            Overwrite::Refuse => Namesake::Stays,
            Overwrite::Replace | Overwrite::InPlace => Namesake::Goes,
        };
        if replaced.is_none() && namesake == Namesake::Goes && !matches!(place, Place::Target(_)) {
            replaced = lock_replaced(&target).map_err(|error| error.at_path(&target))?;
        }
        let named = match place {
            Place::Target(Target::New(mut made)) => {
                made.keep = true;
                Ok(())
            }
            Place::Target(Target::Device | Target::File) => Ok(()),
            Place::Beside(file) => file.give_name(&target, namesake),
            Place::Closed(path) => rename(path, &target, namesake),
        };
        // Only now: nobody finds the old file any more.
        drop(replaced);
        if let (Some(mut data_file), Ok(())) = (data_file, &named) {
            data_file.keep = true;
        }
        named.map_err(|error| naming_failed(error, &target))
    }

    fn storage(&self, host: HostAttributes) -> Result<Arc<dyn Storage>> {
        let io = |error| Error::io("create the image", error);
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
}

/// Makes the data file of an image that is to be created, empty. One that is there is emptied, if it may be.
pub(super) fn make_data_file(
    path: &Path,
    overwrite: Overwrite,
) -> Result<(FileStorage, Option<RemovedUnlessKept>)> {
    let io = |error| Error::io("create the data file", error);
    match FileStorage::open(path, &FileOptions::create_new()) {
        Ok(storage) => Ok((storage, Some(RemovedUnlessKept { path: path.to_path_buf(), keep: false }))),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && overwrite != Overwrite::Refuse => {
            let storage = FileStorage::open(path, &FileOptions::read_write()).map_err(io)?;
            storage.lock(CREATION)?;
            storage.set_len(0).map_err(io)?;
            Ok((storage, None))
        }
        Err(error) => Err(io(error)),
    }
}

/// Makes the file that an image is to be written in.
fn make_target(path: &Path) -> Result<Target> {
    FileStorage::open(path, &FileOptions::create_new())
        .map_err(|error| Error::io("create the image", error))?;
    Ok(Target::New(RemovedUnlessKept { path: path.to_path_buf(), keep: false }))
}

/// Returns when the names in the folder of `target` survive a power cut.
pub(super) fn sync_folder(target: &Path) -> Result<()> {
    let folder = folder_of(target);
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        // A folder may be one to make files in and not to look at.
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => Err(sync_failed(error, folder)),
        _ => Ok(()),
    }
}

fn sync_path(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).map_err(|error| sync_failed(error, path))
}

fn sync_failed(error: io::Error, path: &Path) -> Error {
    Error::io("sync the new image", error).at_path(path)
}

/// Device and number of the file that has this name.
fn identity_of(path: &Path) -> Option<(u64, u64)> {
    path.symlink_metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Removes an image that got its name a moment ago, unless the name is somebody else's by now.
pub(super) fn take_back(target: &Path, made: Option<(u64, u64)>) {
    if made.is_some() && identity_of(target) == made {
        // What cannot be removed stays, whole.
        let _left = std::fs::remove_file(target);
    }
}

fn naming_failed(error: io::Error, target: &Path) -> Error {
    let error = match error.kind() {
        io::ErrorKind::AlreadyExists => name_is_taken(),
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

fn name_is_taken() -> Error {
    Error::io("create the image", io::Error::new(io::ErrorKind::AlreadyExists, "a file of this name exists"))
}
