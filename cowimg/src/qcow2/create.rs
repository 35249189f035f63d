//! Writing a fresh image: what [`layout`] says, piece by piece.

use crate::error::{Error, Result};
use crate::format::qcow2::layout::{self, FreshParams, Preallocation};
use crate::storage::{Storage, StorageExt};

/// Writes a fresh image to `storage`, which must be empty. Nothing is synced.
pub(crate) fn create(storage: &dyn Storage, params: &FreshParams) -> Result<()> {
    let image = layout::plan(params).map_err(|error| Error::invalid(error.to_string()))?;
    if let Some(data) = image.data_area() {
        match params.preallocation {
            Preallocation::Full => storage.write_every_byte(data),
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
