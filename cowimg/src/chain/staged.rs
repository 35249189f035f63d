//! An image that has no name yet: written beside its place, and given its name when it is complete. Its data file goes with it.

use std::path::Path;
use std::sync::Arc;

use super::Image;
use super::cancellable::CancellableStorage;
use super::create::{CreateOptions, CreatePlan, Overwrite, plan};
use super::options::OpenOptions;
use super::publish::{Durability, publish};
use super::staged_file::{NamedFile, Role, StagedFile, sync_folder};
use crate::error::{Error, Result};
use crate::progress::Control;
use crate::storage::{Access, Storage};

/// A new image on its way to its name. [`StagedImage::publish`] gives it the name; dropping it leaves nothing behind.
///
/// A device has no name to wait for: there the image is written in place, and so it is where [`Overwrite::InPlace`] asks
/// for that.
#[derive(Debug)]
#[must_use]
pub struct StagedImage {
    file: StagedFile,
    data_file: Option<StagedFile>,
}

/// What stands between a new image and a storage that it is written to: nothing, but in tests of what fails there.
pub(super) type Between<'a> = &'a dyn Fn(Arc<dyn Storage>) -> Arc<dyn Storage>;

/// An image whose files have their names.
#[derive(Debug)]
pub(super) struct NamedImage {
    file: NamedFile,
    data_file: Option<NamedFile>,
}

impl NamedImage {
    /// The folder that the image's name is in.
    pub(super) fn folder(&self) -> &Path {
        self.file.folder()
    }

    /// Whether the image's name was another file's, which is gone.
    pub(super) fn has_replaced(&self) -> bool {
        self.file.has_replaced
    }

    /// Takes the names back, the image's first, and so the files: those that were new.
    pub(super) fn take_back(&self) {
        self.file.take_back();
        if let Some(data_file) = &self.data_file {
            data_file.take_back();
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
        let here = |error: Error| error.at_path(path);
        let file = StagedFile::reserve(path, overwrite, Role::Image).map_err(here)?;
        let data_file = plan.make_data_file(overwrite, (control, between))?;
        if data_file.as_ref().is_some_and(|data_file| data_file.is_to_be(&file)) {
            return Err(here(Error::invalid("the image cannot be its own data file")));
        }
        let storage = file.storage(plan.host).map_err(here)?;
        let storage = CancellableStorage::new(between(storage), control, plan.report().size);
        storage.outcome(plan.write_to(&storage)).map_err(here)?;
        Ok(StagedImage { file, data_file })
    }

    /// Opens the new image for writing. Until it has its name nobody relies on it, so that
    /// [`CacheMode::Unsafe`](super::CacheMode::Unsafe) is the mode to do that in.
    pub fn open(&self, options: &OpenOptions) -> Result<Image> {
        let mut options = options.clone().access(Access::ReadWrite);
        if let Some((data_file, place)) = self.data_file.as_ref().and_then(|file| Some((file, file.place()?)))
        {
            options = options.data_file(data_file.target());
            options.data_place = Some(place);
        }
        match self.file.place() {
            Some(place) => Image::open_nameless(self.path(), &place, &options),
            None => options.open(self.path()),
        }
    }

    /// The same without an open file, for images that wait for their names in great number.
    pub(super) fn closed(self) -> Result<StagedImage> {
        Ok(StagedImage { file: self.file.closed()?, ..self })
    }

    /// The same without a lock on the file whose name is taken over, which is locked again for that.
    pub(super) fn unlocked(self) -> StagedImage {
        StagedImage { file: self.file.unlocked(), ..self }
    }

    /// The name that the image will have, by which errors call it already.
    pub fn path(&self) -> &Path {
        self.file.target()
    }

    /// Lets the host begin with what [`StagedImage::sync`] will wait for.
    pub(super) fn will_be_synced(&self) {
        if let Some(data_file) = &self.data_file {
            data_file.will_be_synced();
        }
        self.file.will_be_synced();
    }

    /// Returns when what is in the image's files survives a power cut.
    pub(super) fn sync(&self) -> Result<()> {
        if let Some(data_file) = &self.data_file {
            data_file.sync()?;
        }
        self.file.sync()
    }

    /// Gives the data file its name, durably if that is asked for, and then the image: one that names a data file which is not
    /// there would be worse than a data file alone. Where the image cannot have its name, a new data file goes, too.
    pub(super) fn give_names(self, durability: Durability) -> Result<NamedImage> {
        let data_file = self.data_file.map(StagedFile::give_name).transpose()?;
        let take_back = |error| {
            if let Some(data_file) = &data_file {
                data_file.take_back();
            }
            error
        };
        if let (Some(data_file), Durability::Synced) = (&data_file, durability) {
            sync_folder(data_file.folder()).map_err(take_back)?;
        }
        let file = self.file.give_name().map_err(take_back)?;
        Ok(NamedImage { file, data_file })
    }

    /// Gives the image its name, durably: what is in it survives a power cut from then on, and there is no moment in which
    /// one would leave the name with less behind it.
    pub fn publish_synced(self) -> Result<()> {
        publish(vec![self], Durability::Synced, &Control::default())
    }

    /// Gives the image its name. Nothing is synced: a power cut soon after it may leave the name with a part of the image.
    pub fn publish(self) -> Result<()> {
        publish(vec![self], Durability::LeftToTheHost, &Control::default())
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::Qcow2CreateOptions;

    const SIZE: u64 = 1 << 20;

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// A folder, and an image with a data file in it on its way to its name.
    fn staged(overwrite: Overwrite, before: &[&str]) -> (tempfile::TempDir, PathBuf, Result<StagedImage>) {
        let folder = tempfile::tempdir().unwrap();
        for name in before {
            std::fs::write(folder.path().join(name), "old").unwrap();
        }
        let data_file = Some(folder.path().join("data").into_os_string());
        let qcow2 = Qcow2CreateOptions { data_file, ..Qcow2CreateOptions::default() };
        let image = folder.path().join("image");
        let staged =
            StagedImage::create(&image, &CreateOptions { overwrite, qcow2, ..CreateOptions::qcow2(SIZE) });
        (folder, image, staged)
    }

    fn unsynced() -> OpenOptions {
        Image::options().cache_mode(crate::CacheMode::Unsafe)
    }

    #[test]
    fn neither_file_has_a_name_before_both_are_complete() {
        let publishing: [fn(StagedImage) -> Result<()>; 2] =
            [StagedImage::publish, StagedImage::publish_synced];
        for publish in publishing {
            let (folder, path, staged) = staged(Overwrite::Refuse, &[]);
            let staged = staged.unwrap();
            let written = staged.open(&unsynced()).unwrap();
            written.write_at(b"before they have names", 5000).unwrap();
            written.close().unwrap();
            // Where files without names are unknown they have names of their own.
            assert!(names(folder.path()).iter().all(|name| name.starts_with(".cowimg-")));
            publish(staged).unwrap();
            assert_eq!(names(folder.path()), ["data", "image"]);
            let image = Image::options().open(&path).unwrap();
            let mut read = [0; 22];
            image.read_at(&mut read, 5000).unwrap();
            assert_eq!(&read, b"before they have names");
            assert_eq!(std::fs::metadata(folder.path().join("data")).unwrap().len(), SIZE);
        }
    }

    #[test]
    fn a_name_that_is_taken_in_the_end_leaves_its_owner_and_nothing_else() {
        for taken in ["data", "image"] {
            let (folder, path, staged) = staged(Overwrite::Refuse, &[]);
            std::fs::write(folder.path().join(taken), "mine").unwrap();
            let error = staged.unwrap().publish_synced().unwrap_err();
            assert!(error.to_string().contains("a file of this name exists"), "{error}");
            assert_eq!(names(folder.path()), [taken]);
            assert_eq!(std::fs::read(folder.path().join(taken)).unwrap(), b"mine");
            assert_eq!(path.exists(), taken == "image");
        }
    }

    #[test]
    fn a_data_file_that_is_there_stays_until_the_new_one_is_complete() {
        let (_folder, _, refused) = staged(Overwrite::Refuse, &["data"]);
        assert!(refused.unwrap_err().to_string().contains("a file of this name exists"));
        let (folder, _, staged) = staged(Overwrite::Replace, &["data", "image"]);
        let staged = staged.unwrap();
        for name in ["data", "image"] {
            assert_eq!(std::fs::read(folder.path().join(name)).unwrap(), b"old");
        }
        staged.publish_synced().unwrap();
        assert_eq!(names(folder.path()), ["data", "image"]);
        assert_eq!(std::fs::metadata(folder.path().join("data")).unwrap().len(), SIZE);
    }

    #[test]
    fn an_image_is_not_its_own_data_file() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        let qcow2 = Qcow2CreateOptions {
            data_file: Some(folder.path().join("./image").into_os_string()),
            ..Qcow2CreateOptions::default()
        };
        for overwrite in [Overwrite::Refuse, Overwrite::Replace, Overwrite::InPlace] {
            let options = CreateOptions { qcow2: qcow2.clone(), overwrite, ..CreateOptions::qcow2(SIZE) };
            let error = StagedImage::create(&image, &options).unwrap_err();
            assert!(error.to_string().contains("its own data file"), "{error}");
            assert_eq!(names(folder.path()), [""; 0]);
        }
    }

    #[test]
    fn written_in_place_both_are_there_at_once_and_go_unless_published() {
        let (folder, _, made) = staged(Overwrite::InPlace, &[]);
        assert_eq!(names(folder.path()), ["data", "image"]);
        drop(made.unwrap());
        assert_eq!(names(folder.path()), [""; 0]);
        let (folder, path, made) = staged(Overwrite::InPlace, &["data"]);
        made.unwrap().publish().unwrap();
        assert_eq!(names(folder.path()), ["data", "image"]);
        assert_eq!(Image::options().open(path).unwrap().size(), SIZE);
    }
}
