//! Writing a fresh image: what [`layout`] says, piece by piece.

use std::sync::OnceLock;

use crate::error::{Error, Result};
use crate::format::qcow2::layout::{self, FreshImage, FreshParams, Piece, Preallocation};
use crate::range::ByteRange;
use crate::storage::{Storage, StorageExt};
use crate::zero_scan;

/// What of a table is written, or left as the zeroes that it is, at once: a block of most file systems, in bytes.
const BLOCK: usize = 4096;
/// What is written of images up to this length is kept, for the next one of the same plan.
const SMALL: u64 = 1 << 20;

/// A fresh image, to be written once or many times.
#[derive(Debug, Clone)]
pub(crate) struct Fresh {
    image: FreshImage,
    preallocation: Preallocation,
    /// All of a small image.
    kept: OnceLock<Vec<Sparse>>,
}

impl Fresh {
    /// Lays out an image.
    pub(crate) fn plan(params: &FreshParams) -> Result<Fresh> {
        let image = layout::plan(params).map_err(|error| Error::invalid(error.to_string()))?;
        Ok(Fresh { image, preallocation: params.preallocation, kept: OnceLock::new() })
    }

    /// Writes the image to `storage`, whose content is of no more use. Nothing is synced.
    pub(crate) fn write_to(&self, storage: &dyn Storage) -> Result<()> {
        let was_empty = storage.is_empty().map_err(|error| Error::io("look at the target", error))?;
        if let Some(data) = self.image.data_area() {
            match self.preallocation {
                Preallocation::Full => storage.write_every_byte(data),
                _ => storage.allocate(data),
            }
            .map_err(|error| Error::io("preallocate the image", error))?;
        }
        let written = if !was_empty {
            self.image.pieces().try_for_each(|piece| write_whole(storage, &piece))
        } else if self.image.file_len() <= SMALL {
            let kept = self.kept.get_or_init(|| self.image.pieces().map(Sparse::of).collect());
            kept.iter().try_for_each(|piece| piece.write_to(storage))
        } else {
            self.image.pieces().try_for_each(|piece| Sparse::of(piece).write_to(storage))
        };
        written.map_err(|error| Error::io("write the image", error))?;
        let len = self.image.file_len();
        storage.set_len(len).map_err(|error| Error::io("set the length of the image", error))
    }
}

fn write_whole(storage: &dyn Storage, piece: &Piece) -> std::io::Result<()> {
    storage.write_all_at(&piece.bytes, piece.offset.get())
}

/// A piece without its zeroes, for a place where there is nothing yet: of the 192 KiB of an empty image 16 KiB are left. The
/// rest is space that the host has taken and knows to hold zeroes. Without it QEMU, which compares a file's space with the
/// clusters that it counts, would think that a small image is preallocated.
#[derive(Debug, Clone)]
struct Sparse {
    range: ByteRange,
    has_zeroes: bool,
    /// Where in the file, and what.
    parts: Vec<(u64, Vec<u8>)>,
}

impl Sparse {
    fn of(piece: Piece) -> Sparse {
        let start = piece.offset.get();
        let range = ByteRange::between(start, start + piece.bytes.len() as u64);
        let parts: Vec<_> = zero_scan::parts(&piece.bytes, BLOCK).collect();
        if !parts.iter().any(|part| part.is_zero) {
            return Sparse { range, has_zeroes: false, parts: vec![(start, piece.bytes)] };
        }
        let data = parts.into_iter().filter(|part| !part.is_zero).map(|part| part.range);
        let parts = data.map(|range| (start + range.start as u64, piece.bytes[range].to_vec())).collect();
        Sparse { range, has_zeroes: true, parts }
    }

    fn write_to(&self, storage: &dyn Storage) -> std::io::Result<()> {
        if self.has_zeroes {
            storage.allocate(self.range)?;
        }
        self.parts.iter().try_for_each(|(at, bytes)| storage.write_all_at(bytes, *at))
    }
}
