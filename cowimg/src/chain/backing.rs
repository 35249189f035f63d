//! The name that an image has of its backing file, changed; and whether two chains have a file in common.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use super::create::Verification;
use super::image::{Image, Layer};
use super::names;
use super::options::OpenOptions;
use crate::error::{Error, ErrorKind, Result};
use crate::format::qcow2::layout::BackingName;

/// What images of other formats than qcow2 are refused with.
const NO_NEW_BACKING: &str = "cannot be given a backing file";

impl Image {
    /// Writes another name of the backing file to the image, or none, and nothing else: what the image reads as is the
    /// caller's care ([`crate::job::rebase`] sees to it). With [`Verification::Verify`] the new backing file is opened first, with
    /// all that is below it. This image goes on to read what it was opened over: open it anew to see the other.
    pub fn set_backing(&self, backing: Option<&BackingName>, verification: Verification) -> Result<()> {
        let qcow2 = self.named(self.top.qcow2_or(NO_NEW_BACKING))?;
        if let (Some(backing), Verification::Verify | Verification::VerifyChain) = (backing, verification) {
            self.refuse_loop(&self.open_backing(backing, &OpenOptions::default())?)?;
        }
        self.named(qcow2.set_backing(backing))
    }

    /// Refuses a backing file that [`Image::set_backing`] would refuse, without a change.
    pub(crate) fn check_backing_name(&self, backing: Option<&BackingName>) -> Result<()> {
        let engine = self.top.qcow2_or(NO_NEW_BACKING);
        self.named(engine.and_then(|qcow2| qcow2.check_backing_name(backing)))
    }

    /// Where the file of this name is, seen from this image.
    pub fn resolve_backing(&self, name: &OsStr) -> Result<PathBuf> {
        let own = self.layers().first().and_then(Layer::path);
        self.named(names::resolve(name.as_bytes(), own))
    }

    /// Opens the file that `backing` names, seen from this image, for reading; `options` say how, its format aside.
    pub fn open_backing(&self, backing: &BackingName, options: &OpenOptions) -> Result<Image> {
        let shown = String::from_utf8_lossy(&backing.name).into_owned();
        let open = || {
            let path = self.resolve_backing(OsStr::from_bytes(&backing.name))?;
            let format = backing.format.as_deref().map(String::from_utf8_lossy);
            let mut options = options.clone();
            if let Some(format) = format {
                options = options.format(format.parse().map_err(|_| {
                    Error::unsupported(format!("{format:?} is not a format that is supported"))
                })?);
            }
            options.open(path)
        };
        self.named(
            open().map_err(|error| Error::new(ErrorKind::Backing { name: shown, source: Box::new(error) })),
        )
    }

    /// Refuses a chain that this image is a part of.
    pub(crate) fn refuse_loop(&self, below: &Image) -> Result<()> {
        let Some(own) = self.layers().first() else { return Ok(()) };
        if below.layers().iter().any(|layer| layer.is_same_file(own)) {
            return self.named(Err(Error::new(ErrorKind::BackingLoop)));
        }
        Ok(())
    }
}

impl Layer {
    /// Whether both are the same file, read in the same way.
    pub(crate) fn is_same_file(&self, other: &Layer) -> bool {
        let identity = |layer: &Layer| {
            let metadata = std::fs::metadata(layer.path()?).ok()?;
            Some((metadata.dev(), metadata.ino()))
        };
        let same = match (identity(self), identity(other)) {
            (Some(this), Some(that)) => this == that,
            (None, None) => Arc::ptr_eq(self.shared_storage(), other.shared_storage()),
            _ => false,
        };
        same && self.format() == other.format() && self.start() == other.start()
    }
}
