//! From the image that was named to all its layers, without reading more than their headers.
//!
//! This is the only place that follows names from image to image, and so the place of every rule about it: relative
//! names, stated formats, loops, depth, policy.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::names;
use super::options::OpenOptions;
use crate::error::{Error, ErrorKind, Result};
use crate::format::probe::{self, Format, Probed};
use crate::format::qcow2::Header;
use crate::qcow2::Qcow2;
use crate::storage::{Access, FileOptions, FileStorage, Storage, StorageExt, UnsyncedStorage};

/// A file that was found to be a layer.
#[derive(Debug)]
pub(super) struct Found {
    /// The name by which it was opened; none for a storage that the caller brought.
    pub(super) path: Option<PathBuf>,
    pub(super) storage: Arc<dyn Storage>,
    pub(super) kind: Kind,
}

/// What a layer is.
#[derive(Debug)]
pub(super) enum Kind {
    Raw,
    Qcow2(Box<Header>),
}

impl Kind {
    pub(super) fn format(&self) -> Format {
        match self {
            Kind::Raw => Format::Raw,
            Kind::Qcow2(_) => Format::Qcow2,
        }
    }
}

impl Found {
    /// Opens the file at `path` and reads what it is.
    pub(super) fn open(path: &Path, options: &OpenOptions, access: Access) -> Result<Found> {
        let storage = open_file(path, options, access)?;
        Found::new(Some(path.to_path_buf()), storage, options.format).map_err(|error| error.at_path(path))
    }

    /// Reads what `storage` is: the stated format, or what its first bytes look like.
    pub(super) fn new(
        path: Option<PathBuf>,
        storage: Arc<dyn Storage>,
        format: Option<Format>,
    ) -> Result<Found> {
        let format = match format {
            Some(format) => format,
            None => probe_format(&*storage)?,
        };
        let kind = match format {
            Format::Raw => Kind::Raw,
            Format::Qcow2 => Kind::Qcow2(Box::new(Qcow2::read_header(&*storage)?)),
        };
        Ok(Found { path, storage, kind })
    }

    /// Name and stated format of the backing file, if there is one.
    pub(super) fn backing(&self) -> Option<(&[u8], Option<&[u8]>)> {
        match &self.kind {
            Kind::Raw => None,
            Kind::Qcow2(header) => {
                let name = header.backing_file.as_deref()?;
                Some((name, header.backing_format()))
            }
        }
    }

    /// Where the backing file is.
    pub(super) fn backing_path(&self) -> Option<Result<PathBuf>> {
        let (name, _) = self.backing()?;
        Some(names::resolve(name, self.path.as_deref()))
    }
}

fn open_file(path: &Path, options: &OpenOptions, access: Access) -> Result<Arc<dyn Storage>> {
    let file = match access {
        Access::ReadOnly => FileOptions::read_only(),
        Access::ReadWrite => FileOptions::read_write(),
    };
    let storage =
        FileStorage::open(path, &file).map_err(|error| Error::io("open the image", error).at_path(path))?;
    Ok(match options.sync {
        super::SyncMode::Always => Arc::new(storage),
        super::SyncMode::Never => Arc::new(UnsyncedStorage::new(storage)),
    })
}

/// The format that a file's first bytes look like; one that is known by name only is refused by name.
fn probe_format(storage: &dyn Storage) -> Result<Format> {
    let io = |error| Error::io("read the start of the file", error);
    let mut start = vec![0; storage.len().map_err(io)?.min(probe::PROBE_LEN as u64) as usize];
    storage.read_exact_at(&mut start, 0).map_err(io)?;
    match probe::probe(&start) {
        Probed::Raw => Ok(Format::Raw),
        Probed::Qcow2 => Ok(Format::Qcow2),
        Probed::Other(name) => Err(Error::unsupported(format!(
            "the file looks like a {name} image, a format that is not supported; if it is a raw disk, say so \
             (format raw)"
        ))),
    }
}

/// All layers from `top` down. Backing files are opened for reading only.
pub(super) fn walk(top: Found, options: &OpenOptions) -> Result<Vec<Found>> {
    let mut seen = Vec::new();
    remember(&top, &mut seen)?;
    let mut layers = vec![top];
    while let Some(next) = layers.last().map(|above| step_down(above, options)).transpose()?.flatten() {
        if layers.len() >= options.max_depth {
            let deep = Error::new(ErrorKind::ChainTooDeep { limit: options.max_depth });
            return Err(with_path(deep, layers.first()));
        }
        remember(&next, &mut seen).map_err(|error| with_path(error, layers.last()))?;
        layers.push(next);
    }
    Ok(layers)
}

/// The layer below `above`, if it names one.
fn step_down(above: &Found, options: &OpenOptions) -> Result<Option<Found>> {
    let Some((name, format)) = above.backing() else { return Ok(None) };
    let shown = String::from_utf8_lossy(name).into_owned();
    let refused = |why| ErrorKind::Refused { name: shown.clone(), role: "backing file", why };
    let context = |error: Error| {
        let kind = match error.kind() {
            ErrorKind::Refused { .. } => return with_path(error, Some(above)),
            _ => ErrorKind::Backing { name: shown.clone(), source: Box::new(error) },
        };
        with_path(Error::new(kind), Some(above))
    };
    if options.backing == super::FilePolicy::DenyAll {
        return Err(context(Error::new(refused("no other file may be named"))));
    }
    let path = names::resolve(name, above.path.as_deref()).map_err(context)?;
    let below = OpenOptions { format: stated_format(format).map_err(context)?, ..options.clone() };
    // Opened first, checked second: what is checked is then known to exist. Nothing has been read from it.
    let storage = open_file(&path, &below, Access::ReadOnly).map_err(context)?;
    options.backing.check(&path, above.path.as_deref()).map_err(|why| context(Error::new(refused(why))))?;
    Found::new(Some(path.clone()), storage, below.format)
        .map(Some)
        .map_err(|error| context(error.at_path(path)))
}

/// The format that an image states for its backing file. A stated format is never second-guessed.
fn stated_format(stated: Option<&[u8]>) -> Result<Option<Format>> {
    let Some(stated) = stated.filter(|name| !name.is_empty()) else { return Ok(None) };
    let name = String::from_utf8_lossy(stated);
    match &*name {
        // QEMU's names for a file and a device that are used as they are.
        "file" | "host_device" => Ok(Some(Format::Raw)),
        name => name.parse().map(Some).map_err(|_| {
            Error::unsupported(format!("its format is said to be {name:?}, which is not supported"))
        }),
    }
}

/// Refuses a file that has been met before in the chain.
fn remember(found: &Found, seen: &mut Vec<(u64, u64)>) -> Result<()> {
    let Some(path) = &found.path else { return Ok(()) };
    let metadata =
        std::fs::metadata(path).map_err(|error| Error::io("look at the image", error).at_path(path))?;
    let identity = (metadata.dev(), metadata.ino());
    if seen.contains(&identity) {
        return Err(Error::new(ErrorKind::BackingLoop));
    }
    seen.push(identity);
    Ok(())
}

fn with_path(error: Error, found: Option<&Found>) -> Error {
    match found.and_then(|found| found.path.as_ref()) {
        Some(path) => error.at_path(path),
        None => error,
    }
}
