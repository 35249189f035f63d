//! Writing a fresh image: what [`layout`] says, piece by piece.

use std::io;

use crate::error::{Error, Result};
use crate::format::qcow2::layout::{self, FreshParams, Preallocation};
use crate::storage::{Storage, StorageExt};

/// What an empty file need not be told: blocks of this many zeroes.
const HOLE: usize = 4096;

/// Writes a fresh image to `storage`: an empty file, whose zeroes stay holes, or a device. Nothing is synced.
pub(crate) fn create(storage: &dyn Storage, params: &FreshParams) -> Result<()> {
    let image = layout::plan(params).map_err(|error| Error::invalid(error.to_string()))?;
    let write = |error| Error::io("write the image", error);
    if let Some(data) = image.data_area() {
        match params.preallocation {
            Preallocation::Full => storage.write_every_byte(data),
            _ => storage.allocate(data),
        }
        .map_err(|error| Error::io("preallocate the image", error))?;
    }
    let is_empty = storage.len().map_err(write)? == 0;
    for piece in image.pieces() {
        let offset = piece.offset.get();
        let written = if is_empty {
            write_around_holes(storage, &piece.bytes, offset)
        } else {
            storage.write_all_at(&piece.bytes, offset)
        };
        written.map_err(write)?;
    }
    storage.set_len(image.file_len()).map_err(|error| Error::io("set the length of the image", error))
}

/// Writes what is not zero.
fn write_around_holes(storage: &dyn Storage, bytes: &[u8], offset: u64) -> io::Result<()> {
    let is_hole = |block: &[u8]| *block == [0; HOLE][..block.len()];
    let mut at = 0;
    for run in bytes.chunks(HOLE).collect::<Vec<_>>().chunk_by(|one, next| is_hole(one) == is_hole(next)) {
        let len: usize = run.iter().map(|block| block.len()).sum();
        if !run.first().is_none_or(|block| is_hole(block)) {
            storage.write_all_at(&bytes[at..at + len], offset + at as u64)?;
        }
        at += len;
    }
    Ok(())
}
