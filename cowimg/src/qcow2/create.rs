//! Writing a fresh image: what [`layout`] says, piece by piece.

use crate::error::{Error, Result};
use crate::format::qcow2::layout::{self, FreshParams, Preallocation};
use crate::range::ByteRange;
use crate::storage::{Storage, StorageExt};

/// Zeroes are written in steps of this many bytes.
const ZERO_STEP: u64 = 1 << 20;

/// Writes a fresh image to `storage`, which must be empty. Nothing is synced.
pub(crate) fn create(storage: &dyn Storage, params: &FreshParams) -> Result<()> {
    let image = layout::plan(params).map_err(|error| Error::invalid(error.to_string()))?;
    if let Some(data) = image.data_area() {
        match params.preallocation {
            Preallocation::Full => write_every_byte(storage, data),
            _ => storage.allocate(data),
        }
        .map_err(|error| Error::io("preallocate the image", error))?;
    }
    for piece in image.pieces() {
        storage
            .write_all_at(&piece.bytes, piece.offset.get())
            .map_err(|error| Error::io("write the image", error))?;
    }
    storage.set_len(image.file_len()).map_err(|error| Error::io("set the length of the image", error))
}

/// `preallocation=full` means that every byte has been written, not that the host has promised it.
pub(crate) fn write_every_byte(storage: &dyn Storage, range: ByteRange) -> std::io::Result<()> {
    let zeroes = vec![0; ZERO_STEP.min(range.len()) as usize];
    let mut at = range.start();
    while at < range.end() {
        let len = ZERO_STEP.min(range.end() - at) as usize;
        storage.write_all_at(&zeroes[..len], at)?;
        at += len as u64;
    }
    Ok(())
}
