//! Reports: one file each, for people and as JSON. Keys of JSON objects live in here and nowhere else.
//!
//! Reports go to the writer that they are given; nothing here knows of standard output, colours or exit codes.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub(crate) mod bitmaps;
pub(crate) mod check;
pub(crate) mod compare;
pub(crate) mod create;
pub(crate) mod header;
pub(crate) mod hex;
pub(crate) mod human_size;
pub(crate) mod info;
pub(crate) mod json;
pub(crate) mod map;
pub(crate) mod measure;
pub(crate) mod repair_plan;
pub(crate) mod snapshots;

/// A path as the bytes that it is: reports repeat names as they were given, whatever their encoding.
pub(crate) fn path_bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}
