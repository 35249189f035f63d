//! Checking an image file by itself, without opening what it names.

use std::path::Path;

use super::file_use::Purpose;
use super::options::OpenOptions;
use super::walk::{Found, Kind};
use crate::error::{Error, Result};
use crate::qcow2::check::{CheckReport, Repair, RepairReport, check_storage, repair_storage};

/// Checks the metadata of the image at `path`; its backing file is not opened. Only for formats that have metadata: for
/// a raw image it fails with [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported).
pub fn check_file(path: impl AsRef<Path>, options: &OpenOptions) -> Result<CheckReport> {
    let path = path.as_ref();
    let found = Found::open(path, options, Purpose::Read)?;
    match found.kind {
        Kind::Raw => Err(Error::unsupported("a raw image has nothing to check").at_path(path)),
        Kind::Qcow2(_) => check_storage(&*found.storage).map_err(|error| error.at_path(path)),
    }
}

/// Checks the image at `path` and repairs what can be repaired safely: see [`repair_storage`]. Takes the locks of a
/// writer. The backing file is not opened. Fails as [`check_file`] does, and where the file cannot be written.
pub fn repair_file(path: impl AsRef<Path>, options: &OpenOptions, repair: Repair) -> Result<RepairReport> {
    let path = path.as_ref();
    let found = Found::open(path, options, Purpose::Write)?;
    match found.kind {
        Kind::Raw => Err(Error::unsupported("a raw image has nothing to repair").at_path(path)),
        Kind::Qcow2(_) => repair_storage(&*found.storage, repair).map_err(|error| error.at_path(path)),
    }
}
