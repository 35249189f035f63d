//! Writing a fresh image: what [`layout`] says, piece by piece.

use crate::error::{Error, Result};
use crate::format::qcow2::layout::{self, FreshParams, Piece, Preallocation};
use crate::range::ByteRange;
use crate::storage::{Storage, StorageExt};
use crate::zero_scan;

/// What of a table is written, or left as the zeroes that it is, at once: a block of most file systems, in bytes.
const BLOCK: usize = 4096;

/// Writes a fresh image to `storage`, whose content is of no more use. Nothing is synced.
pub(crate) fn create(storage: &dyn Storage, params: &FreshParams) -> Result<()> {
    let image = layout::plan(params).map_err(|error| Error::invalid(error.to_string()))?;
    let was_empty = storage.is_empty().map_err(|error| Error::io("look at the target", error))?;
    if let Some(data) = image.data_area() {
        match params.preallocation {
            Preallocation::Full => storage.write_every_byte(data),
            _ => storage.allocate(data),
        }
        .map_err(|error| Error::io("preallocate the image", error))?;
    }
    for piece in image.pieces() {
        let written =
            if was_empty { write_into_zeroes(storage, &piece) } else { write_whole(storage, &piece) };
        written.map_err(|error| Error::io("write the image", error))?;
    }
    storage.set_len(image.file_len()).map_err(|error| Error::io("set the length of the image", error))
}

fn write_whole(storage: &dyn Storage, piece: &Piece) -> std::io::Result<()> {
    storage.write_all_at(&piece.bytes, piece.offset.get())
}

/// Writes what is not zeroes, where there is nothing yet: of the 192 KiB of an empty image 16 KiB. The rest is space that the
/// host has taken and knows to hold zeroes. Without it QEMU, which compares a file's space with the clusters that it counts,
/// would think that a small image is preallocated.
fn write_into_zeroes(storage: &dyn Storage, piece: &Piece) -> std::io::Result<()> {
    let start = piece.offset.get();
    let parts: Vec<_> = zero_scan::parts(&piece.bytes, BLOCK).collect();
    if !parts.iter().any(|part| part.is_zero) {
        return write_whole(storage, piece);
    }
    storage.allocate(ByteRange::between(start, start + piece.bytes.len() as u64))?;
    for part in parts.iter().filter(|part| !part.is_zero) {
        storage.write_all_at(&piece.bytes[part.range.clone()], start + part.range.start as u64)?;
    }
    Ok(())
}
