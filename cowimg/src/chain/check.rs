//! Checking and repairing image files.

use std::path::Path;

use super::data::data_file_of;
use super::file_use::Purpose;
use super::options::OpenOptions;
use super::walk::{Found, Kind, walk};
use crate::error::{Error, Result};
use crate::format::probe::Format;
use crate::progress::Control;
use crate::qcow2::check::{
    CheckReport, Repair, RepairPlan, RepairReport, check_header, check_storage_with, plan_storage_with,
    repair_storage_with,
};
use crate::storage::{Access, Storage};

/// A file that is open to be checked or repaired. Its tables are looked at by the check alone, so that an image can be
/// opened so which is too damaged to be used.
#[derive(Debug)]
pub struct CheckedFile {
    top: Found,
    options: OpenOptions,
    purpose: Purpose,
    /// Files that are held, with their locks, while the image is worked on.
    held: Vec<Found>,
}

impl CheckedFile {
    /// Opens the file at `path`, and nothing that it names. To repair it, it takes the locks of a writer. `options` say how
    /// much the image may ask for, here and in what is done to it: see [`Limits`](crate::Limits).
    pub fn open(path: impl AsRef<Path>, options: &OpenOptions, access: Access) -> Result<CheckedFile> {
        let purpose = Purpose::of(access);
        let top = Found::open_damaged(path.as_ref(), options, purpose)?;
        if let Kind::Qcow2(header) = &top.kind {
            check_header(header, &options.limits).map_err(|error| error.at_path(path.as_ref()))?;
        }
        Ok(CheckedFile { top, options: options.clone(), purpose, held: Vec::new() })
    }

    /// The format of the file.
    pub fn format(&self) -> Format {
        self.top.kind.format()
    }

    /// Opens the files that the image is of no use without as a user of the image would: its backing chain and its data
    /// file. What they hold is not checked; they stay locked until this value is dropped. Fails where one of them cannot be
    /// opened or is in use.
    pub fn open_dependencies(&mut self) -> Result<()> {
        self.held = walk(self.top.clone(), &self.options, self.purpose)?;
        if let Kind::Qcow2(header) = &self.top.kind {
            data_file_of(&self.top, header, self.purpose.access(), &self.options)?;
        }
        Ok(())
    }

    /// Checks the image's metadata. Fails with [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) for a raw image,
    /// which has none, and with [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled) when `control` says so.
    pub fn check(&self, control: &Control<'_>) -> Result<CheckReport> {
        self.with_storage(|storage| check_storage_with(storage, &self.options.limits, control))
    }

    /// What [`CheckedFile::repair`] would do; see [`plan_storage`](crate::check::plan_storage).
    pub fn plan(&self, repair: Repair, control: &Control<'_>) -> Result<RepairPlan> {
        self.with_storage(|storage| plan_storage_with(storage, repair, &self.options.limits, control))
    }

    /// Checks the image and repairs what can be repaired: see [`repair_storage`](crate::check::repair_storage). It can be
    /// cancelled before the first change, and not after it.
    pub fn repair(&mut self, repair: Repair, control: &Control<'_>) -> Result<RepairReport> {
        self.with_storage(|storage| repair_storage_with(storage, repair, &self.options.limits, control))
    }

    fn with_storage<T>(&self, work: impl FnOnce(&dyn Storage) -> Result<T>) -> Result<T> {
        let result = match self.top.kind {
            Kind::Qcow2(_) => work(&*self.top.storage),
            _ => Err(Error::unsupported(format!("a {} image has nothing to check", self.format()))),
        };
        result.map_err(|error| match &self.top.path {
            Some(path) => error.at_path(path),
            None => error,
        })
    }
}

/// Checks the metadata of the image at `path`; its backing file is not opened. Only for formats that have metadata: for
/// a raw image it fails with [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported).
pub fn check_file(path: impl AsRef<Path>, options: &OpenOptions) -> Result<CheckReport> {
    CheckedFile::open(path, options, Access::ReadOnly)?.check(&Control::default())
}

/// Checks the image at `path` and repairs what can be repaired: see
/// [`repair_storage`](crate::check::repair_storage). Takes the locks of a writer.
/// The backing file is not opened. Fails as [`check_file`] does, and where the file cannot be written.
pub fn repair_file(path: impl AsRef<Path>, options: &OpenOptions, repair: Repair) -> Result<RepairReport> {
    CheckedFile::open(path, options, Access::ReadWrite)?.repair(repair, &Control::default())
}
