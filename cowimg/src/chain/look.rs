//! What one look at a disk tells, in the portions in which QEMU's tools look.
//!
//! `compare` in strict mode says where two images look different, and `-p` prints a line per portion: both depend on how
//! far one look goes. A look at a qcow2 layer ends with the 4 KiB of the L2 table that hold the entry, mapped or not,
//! and a look through several layers ends where the look at any of them does.

use super::image::{Image, Layer};
use super::walk::Kind;
use crate::error::Result;
use crate::extent::{Extent, ExtentKind};
use crate::range::ByteRange;

/// Bytes of an L2 table that one look takes in.
const SLICE_BYTES: u64 = 4096;

/// What a look told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Look {
    /// What stands there, as far as the look goes.
    pub(crate) extent: Extent,
    /// Whether a layer answers for the range. One that is shorter than the layer above answers for all that lies past
    /// its end.
    pub(crate) is_allocated: bool,
    /// Whether nobody answers, and the range goes to the end of the lowest layer, which is shorter than the disk or not.
    ends_lowest: bool,
}

/// The part of a look that tells two mappings apart, whatever the places in the files are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LookKind {
    kind: ExtentKind,
    is_zero: bool,
    has_place: bool,
    ends_disk: bool,
}

impl Look {
    /// What the look told, apart from places; `size` is the disk's.
    pub(crate) fn kind(&self, size: u64) -> LookKind {
        let Extent { range, kind, host, .. } = self.extent;
        LookKind {
            // What lies past the end of a shorter layer is that layer's zeroes.
            kind: if kind == ExtentKind::Unallocated && self.is_allocated { ExtentKind::Zero } else { kind },
            is_zero: self.extent.is_zero(),
            has_place: host.is_some(),
            ends_disk: range.end() == size || self.ends_lowest,
        }
    }
}

impl Image {
    /// The look at `offset`, which lies within the disk, at most `max_len` (above 0) long.
    pub(crate) fn look_at(&self, offset: u64, max_len: u64) -> Result<Look> {
        let extent = self.extent_at(offset, max_len)?;
        let silent = extent.kind == ExtentKind::Unallocated;
        let below = self.layers().get(extent.depth + 1);
        // All layers down to the one that answers have been asked.
        let asked = self.layers().iter().take(extent.depth + 1);
        let end =
            asked.filter_map(slice_coverage).map(|coverage| offset / coverage * coverage + coverage).min();
        let window = ByteRange::between(offset, end.unwrap_or(u64::MAX));
        let extent = extent.clipped_to(window);
        let is_allocated = !silent || below.is_some();
        let lowest_size = self.layers().get(extent.depth).and_then(qcow2_size);
        let ends_lowest = !is_allocated && lowest_size == Some(extent.range.end());
        Ok(Look { extent, is_allocated, ends_lowest })
    }
}

/// Guest bytes that one slice of a layer's L2 table maps; none for a raw layer.
fn slice_coverage(layer: &Layer) -> Option<u64> {
    match layer.kind() {
        Kind::Raw => None,
        Kind::Qcow2(header) => {
            let geometry = header.geometry();
            let slices = geometry.cluster_size() / geometry.cluster_size().min(SLICE_BYTES);
            Some(geometry.l2_coverage() / slices)
        }
    }
}

/// Size of a qcow2 layer's disk in bytes, as it was when the layer was opened.
fn qcow2_size(layer: &Layer) -> Option<u64> {
    match layer.kind() {
        Kind::Raw => None,
        Kind::Qcow2(header) => Some(header.size),
    }
}
