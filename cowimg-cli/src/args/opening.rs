//! Opening the images that a command line names, where it names several or says more than [`Source`](super::Source) does.

use std::ffi::OsStr;

use cowimg::{CacheMode, Image, SnapshotSelector, SnapshotSize};

use super::image::parse_format;
use super::image_name::{ImageForm, ImageName};
use crate::failure::Failure;

/// What the options around a name say of the image.
#[derive(Debug, Clone, Default)]
pub(crate) struct Opening {
    /// Its format's name, if it is stated.
    pub(crate) format: Option<String>,
    /// Whether the name is a list of options (`--image-opts`).
    pub(crate) image_opts: bool,
    /// Whether other processes may write it meanwhile (`-U`).
    pub(crate) force_share: bool,
    /// How the host caches it.
    pub(crate) cache: Option<CacheMode>,
    /// Which of its snapshots is meant, and how large that is said to be.
    pub(crate) snapshot: Option<(SnapshotSelector, SnapshotSize)>,
}

impl Opening {
    /// Opens the image of this name with its whole backing chain, for reading.
    pub(crate) fn read(&self, name: &OsStr) -> Result<Image, Failure> {
        self.name(name)?.open()
    }

    /// Opens the image of this name with its whole backing chain, for writing. A file that is raw only because it looks
    /// like nothing else is opened with a warning.
    pub(crate) fn write(&self, name: &OsStr) -> Result<Image, Failure> {
        self.name(name)?.open_to_write()
    }

    /// What the name means.
    pub(crate) fn name(&self, name: &OsStr) -> Result<ImageName, Failure> {
        let format = self.format.as_deref().map(parse_format).transpose().map_err(Failure::usage)?;
        let form = ImageForm { format, image_opts: self.image_opts, force_share: self.force_share };
        let mut image = ImageName::parse(name, form)?;
        if let Some(cache) = self.cache {
            image = image.cached(cache);
        }
        if let Some((snapshot, size)) = &self.snapshot {
            image.options = image.options.snapshot(snapshot.clone()).snapshot_size(*size);
        }
        Ok(image)
    }
}
