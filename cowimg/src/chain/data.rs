//! What an image's guest data is kept in and encrypted with: its external data file, its cipher.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use super::FilePolicy;
use super::file_use::{Part, Purpose, file_use};
use super::names;
use super::options::OpenOptions;
use super::walk::Found;
use crate::error::{Error, ErrorKind, Result};
use crate::format::qcow2::{Header, Incompatible};
use crate::qcow2::{DataOptions, unlock};
use crate::storage::{Access, FileOptions, FileStorage, Storage};

/// Opens and unlocks what the image in `found` needs for its data.
pub(super) fn data_options(
    found: &Found,
    header: &Header,
    access: Access,
    options: &OpenOptions,
) -> Result<DataOptions> {
    let file = data_file_of(found, header, access, options)?;
    let cipher = unlock(&*found.storage, header, (options.passphrase.as_ref(), &options.limits))?;
    Ok(DataOptions { file, cipher })
}

/// Opens and locks the data file of the image, if it has one.
pub(super) fn data_file_of(
    found: &Found,
    header: &Header,
    access: Access,
    options: &OpenOptions,
) -> Result<Option<Arc<dyn Storage>>> {
    let has_one = header.incompatible.contains(Incompatible::DATA_FILE);
    has_one.then(|| open_data_file(found, header, access, options)).transpose()
}

/// The data file that the image names, if the policy allows it; or the one that the caller named instead.
fn open_data_file(
    found: &Found,
    header: &Header,
    access: Access,
    options: &OpenOptions,
) -> Result<Arc<dyn Storage>> {
    if let Some(storage) = &options.data_storage {
        return Ok(Arc::clone(storage));
    }
    let path = match &options.data_file {
        Some(path) => path.clone(),
        None => named_data_file(found, header, options)?,
    };
    let file_options = match access {
        Access::ReadOnly => FileOptions::read_only(),
        Access::ReadWrite => FileOptions::read_write(),
    };
    let file_options = file_options.host_cache(options.cache_mode.host_cache());
    let place = options.data_place.as_ref().unwrap_or(&path);
    let opened = FileStorage::open(place, &file_options)
        .map_err(|error| Error::io("open the data file", error).at_path(&path))?;
    if options.data_file.is_none() {
        let checked = options.backing.check_opened(&opened, &path, found.path.as_deref());
        checked.map_err(|why| refused(header, why))?;
    }
    refuse_own_file(found, &opened).map_err(|error| error.at_path(&path))?;
    let opened = Arc::new(opened);
    opened
        .lock(file_use(Part::DataFile, Purpose::of(access), options.lock)?)
        .map_err(|error| error.at_path(&path))?;
    options.cache_mode.storage(&opened).map_err(|error| error.at_path(&path))
}

/// An image that were its own data file would lose its tables to its guest.
fn refuse_own_file(found: &Found, data: &FileStorage) -> Result<()> {
    let identity = |file: &FileStorage| {
        let metadata = file.file().metadata().map_err(|error| Error::io("look at the data file", error))?;
        Ok::<_, Error>((metadata.dev(), metadata.ino()))
    };
    match &found.file {
        Some(own) if identity(own)? == identity(data)? => {
            Err(Error::invalid("the image names itself as its data file"))
        }
        _ => Ok(()),
    }
}

/// The name in the image: it starts at the process's folder, not at the image's, as QEMU has it.
fn named_data_file(found: &Found, header: &Header, options: &OpenOptions) -> Result<PathBuf> {
    let Some(name) = header.data_file_name() else {
        return Err(Error::invalid(
            "the image has an external data file and does not name it: name it to open it",
        ));
    };
    if options.backing == FilePolicy::DenyAll {
        return Err(refused(header, "no other file may be named"));
    }
    let path = data_file_path(name)?;
    options.backing.check(&path, found.path.as_deref()).map_err(|why| refused(header, why))?;
    Ok(path)
}

/// That the image may not have the data file that it names.
fn refused(header: &Header, why: &'static str) -> Error {
    let name = String::from_utf8_lossy(header.data_file_name().unwrap_or_default()).into_owned();
    Error::new(ErrorKind::Refused { name, role: "data file", why })
}

/// The path that the name of a data file means.
pub(super) fn data_file_path(name: &[u8]) -> Result<PathBuf> {
    names::resolve(name, None)
}
