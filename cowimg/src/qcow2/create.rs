//! Writing a fresh image: what [`layout`] says, piece by piece.

use crate::error::{Error, Result};
use crate::format::qcow2::layout::{self, FreshParams, Preallocation};
use crate::storage::{Storage, StorageExt};
use crate::zero_scan;

/// What of a fresh image's tables is written, or left out for being zeroes, at once: a block of most file systems.
const BLOCK: usize = 4096;

/// Writes a fresh image to `storage`, whose content is of no more use. Nothing is synced.
///
/// A fresh table is zeroes but for its first entries, which takes a file no space: of an empty overlay 184 of 192 KiB. Where
/// space is asked for, or something may be there already, every byte is written.
pub(crate) fn create(storage: &dyn Storage, params: &FreshParams) -> Result<()> {
    let image = layout::plan(params).map_err(|error| Error::invalid(error.to_string()))?;
    if let Some(data) = image.data_area() {
        match params.preallocation {
            Preallocation::Full => storage.write_every_byte(data),
            _ => storage.allocate(data),
        }
        .map_err(|error| Error::io("preallocate the image", error))?;
    }
    let with_holes = matches!(params.preallocation, Preallocation::Off | Preallocation::Metadata)
        && storage.is_empty().map_err(|error| Error::io("look at the target", error))?;
    for piece in image.pieces() {
        let write = |bytes: &[u8], offset| {
            storage.write_all_at(bytes, offset).map_err(|error| Error::io("write the image", error))
        };
        let start = piece.offset.get();
        if !with_holes {
            write(&piece.bytes, start)?;
            continue;
        }
        for part in zero_scan::parts(&piece.bytes, BLOCK).filter(|part| !part.is_zero) {
            write(&piece.bytes[part.range.clone()], start + part.range.start as u64)?;
        }
    }
    storage.set_len(image.file_len()).map_err(|error| Error::io("set the length of the image", error))
}
