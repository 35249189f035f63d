//! An image that has no name yet: written beside its place, and given its name when it is complete.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::{NamedTempFile, TempPath};

use super::Image;
use super::cancellable::CancellableStorage;
use super::create::{CreateOptions, CreatePlan, Overwrite, plan};
use super::file_use::CREATION;
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
    /// Beside the target, under a name of its own.
    Beside(NamedTempFile),
    /// The same; the file is not open.
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
        let mut staged = StagedImage::reserve(path, overwrite).map_err(|error| error.at_path(path))?;
        staged.data_file = plan.make_data_file(overwrite, control)?;
        let storage = CancellableStorage::new(staged.storage(plan.host)?, control, plan.report().size);
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
        let file = tempfile::Builder::new()
            .prefix(".cowimg-")
            .suffix(".part")
            .permissions(Permissions::from_mode(0o644))
            .tempfile_in(folder_of(&target))
            .map_err(|error| Error::io("create the image", error))?;
        Ok(StagedImage { target, overwrite, place: Place::Beside(file), data_file: None, replaced })
    }

    /// Opens the new image for writing. Until it has its name nobody relies on it, so that
    /// [`CacheMode::Unsafe`](super::CacheMode::Unsafe) is the mode to do that in.
    pub fn open(&self, options: &OpenOptions) -> Result<Image> {
        let path = self.path();
        options.clone().access(Access::ReadWrite).open(path)
    }

    /// The same without an open file, for images that wait for their names in great number. A file whose name is taken over
    /// is not locked meanwhile.
    pub(super) fn closed(self) -> StagedImage {
        let place = match self.place {
            Place::Beside(file) => Place::Closed(file.into_temp_path()),
            other => other,
        };
        StagedImage { place, replaced: None, ..self }
    }

    /// Whether another file's name is taken over.
    pub(super) fn replaces_a_file(&self) -> bool {
        self.overwrite != Overwrite::Refuse && self.target.exists()
    }

    /// Where the image is now.
    pub fn path(&self) -> &Path {
        match &self.place {
            Place::Beside(file) => file.path(),
            Place::Closed(path) => path,
            Place::Target(_) => &self.target,
        }
    }

    /// Gives the image its name, durably: what is in it survives a power cut from then on, and there is no moment in which
    /// one would leave the name with less behind it.
    pub fn publish_synced(self) -> Result<()> {
        let sync = |path: &Path| std::fs::File::open(path).and_then(|file| file.sync_all());
        let failed = |path: &Path, error| Err(Error::io("sync the new image", error).at_path(path));
        for path in self.data_file.iter().map(|file| file.path.as_path()).chain([self.path()]) {
            sync(path).or_else(|error| failed(path, error))?;
        }
        let folder = folder_of(&self.target).to_path_buf();
        self.publish()?;
        match sync(&folder) {
            // A folder may be one to make files in and not to look at.
            Err(error) if error.kind() != io::ErrorKind::PermissionDenied => failed(&folder, error),
            _ => Ok(()),
        }
    }

    /// Gives the image its name. Nothing is synced: a power cut soon after it may leave the name with a part of the image.
    pub fn publish(self) -> Result<()> {
        let StagedImage { target, overwrite, place, data_file, mut replaced } = self;
        if matches!(place, Place::Closed(_)) && overwrite != Overwrite::Refuse {
            replaced = lock_replaced(&target).map_err(|error| error.at_path(&target))?;
        }
        let named = match (place, overwrite) {
            (Place::Target(Target::New(mut made)), _) => {
                made.keep = true;
                Ok(())
            }
            (Place::Target(Target::Device | Target::File), _) => Ok(()),
            (Place::Beside(file), Overwrite::Refuse) => {
                file.persist_noclobber(&target).map(drop).map_err(|failed| failed.error)
            }
            (Place::Beside(file), Overwrite::Replace | Overwrite::InPlace) => {
                file.persist(&target).map(drop).map_err(|failed| failed.error)
            }
            (Place::Closed(path), Overwrite::Refuse) => {
                path.persist_noclobber(&target).map_err(|failed| failed.error)
            }
            (Place::Closed(path), Overwrite::Replace | Overwrite::InPlace) => {
                path.persist(&target).map_err(|failed| failed.error)
            }
        };
        // Only now: nobody finds the old file any more.
        drop(replaced);
        if let (Some(mut data_file), Ok(())) = (data_file, &named) {
            data_file.keep = true;
        }
        named.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => name_is_taken().at_path(&target),
            _ => Error::io("give the image its name", error).at_path(&target),
        })
    }

    fn storage(&self, host: HostAttributes) -> Result<Arc<dyn Storage>> {
        let io = |error| Error::io("create the image", error);
        let storage = match &self.place {
            Place::Beside(file) => {
                let file = file.as_file().try_clone().map_err(io)?;
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

/// The folder that a file is in.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
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
