//! How data comes from where it is stored into the target.

use super::pieces::Place;
use super::{Compression, ConvertOptions, Copying, Part, ReadErrors, TargetContent};
use crate::chain::Image;
use crate::storage::{SHARED_BLOCK, Storage, may_share};

/// How the data of a piece comes into the target.
#[derive(Debug, Clone, Copy)]
pub(super) enum Way<'a> {
    /// It is read, looked at and written.
    Here,
    /// The host copies it.
    Host(Stored<'a>),
    /// The target shares the space that it is in.
    Shared(Stored<'a>),
}

/// A place that the host knows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stored<'a> {
    pub(super) storage: &'a dyn Storage,
    /// Offset of the first byte in it, in bytes.
    pub(super) offset: u64,
}

/// What decides on the way.
#[derive(Debug)]
pub(super) struct Ways<'a> {
    parts: &'a [Part<'a>],
    target: &'a Image,
    copying: Copying,
}

impl<'a> Ways<'a> {
    pub(super) fn new(parts: &'a [Part<'a>], target: &'a Image, options: &ConvertOptions) -> Ways<'a> {
        // What cannot be read is shared as it is, and would not become zeroes.
        let may_be_shared = options.read_errors == ReadErrors::Fail
            && options.target_content == TargetContent::Zeroes
            && options.sparse_size.is_multiple_of(SHARED_BLOCK)
            && options.sparse_size > 0;
        let copying = match options.copying {
            _ if options.compression == Compression::On => Copying::Here,
            Copying::Shared if !may_be_shared => Copying::Here,
            copying => copying,
        };
        Ways { parts, target, copying }
    }

    /// The way of what is stored at `place`, to `to` in the target.
    pub(super) fn of(&self, place: Place, to: u64) -> Way<'a> {
        let Some(stored) = self.stored(place) else { return Way::Here };
        match self.copying {
            Copying::Host => Way::Host(stored),
            Copying::Shared if self.is_shareable(&stored, to) == Some(true) => Way::Shared(stored),
            Copying::Here | Copying::Shared => Way::Here,
        }
    }

    /// Where a layer keeps guest data as it is.
    fn stored(&self, place: Place) -> Option<Stored<'a>> {
        let part: &'a Part<'a> = self.parts.get(place.part).filter(|_| self.copying != Copying::Here)?;
        let storage = part.image.layers().get(place.depth)?.guest_storage()?;
        Some(Stored { storage, offset: place.host })
    }

    /// Whether it lies in its block as in the target's, on a file system whose files share blocks.
    fn is_shareable(&self, stored: &Stored<'a>, to: u64) -> Option<bool> {
        let target = self.target.layers().first()?.guest_storage()?.host_file()?;
        let is_aligned = stored.offset % SHARED_BLOCK == to % SHARED_BLOCK;
        Some(is_aligned && may_share(target, stored.storage.host_file()?))
    }
}
