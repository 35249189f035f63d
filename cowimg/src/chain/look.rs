//! What one look at a disk tells, in the portions in which QEMU's tools look.
//!
//! `compare` in strict mode says where two images look different, and `-p` prints a line per portion: both depend on how
//! far one look goes. A look at a qcow2 layer ends with what one L2 table maps, whether there is a table or not, and
//! is at most 2^31 - 1 bytes long; a look through several layers ends where that at any of them does.

use super::image::{Image, Layer};
use super::walk::Kind;
use crate::error::Result;
use crate::extent::{Extent, ExtentKind};
use crate::range::ByteRange;

/// The most guest bytes of a qcow2 layer that one look takes in.
const LONGEST: u64 = i32::MAX as u64;

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
    /// The look from `offset` on, if it takes in that byte.
    pub(crate) fn rest_from(&self, offset: u64) -> Option<Look> {
        let range = self.extent.range;
        if offset < range.start() || range.end() <= offset {
            return None;
        }
        Some(Look { extent: self.extent.clipped_to(ByteRange::between(offset, range.end())), ..*self })
    }

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
        let first = self.extent_at(offset, max_len)?;
        // All layers down to the one that answers have been asked.
        let asked = self.layers().iter().take(first.depth + 1);
        let ends = asked.filter_map(table_coverage).map(|coverage| {
            let of_table = offset / coverage * coverage + coverage;
            of_table.min(offset + LONGEST)
        });
        let end = ends.min().unwrap_or(u64::MAX).min(offset.saturating_add(max_len)).min(self.size());
        let extent = self.extended(first.clipped_to(ByteRange::between(offset, end)), end)?;
        let silent = extent.kind == ExtentKind::Unallocated;
        let below = self.layers().get(extent.depth + 1);
        let is_allocated = !silent || below.is_some();
        let lowest_size = self.layers().get(extent.depth).and_then(stated_size);
        let ends_lowest = !is_allocated && lowest_size == Some(extent.range.end());
        Ok(Look { extent, is_allocated, ends_lowest })
    }

    /// An extent with those that go on where it ends, up to `end`. Compressed clusters are looked at one by one.
    fn extended(&self, mut extent: Extent, end: u64) -> Result<Extent> {
        while extent.kind != ExtentKind::Compressed && extent.range.end() < end {
            let next = self.extent_at(extent.range.end(), end - extent.range.end())?;
            match extent.merged_with(&next) {
                Some(merged) => extent = merged,
                None => break,
            }
        }
        Ok(extent)
    }
}

/// Guest bytes that one look at the layer takes in at most; no such bound for a raw layer.
fn table_coverage(layer: &Layer) -> Option<u64> {
    match layer.kind() {
        // QEMU looks at clusters of a qcow image one by one, which shows in nothing but the number of lines of progress.
        Kind::Raw | Kind::Luks(_) | Kind::Qcow1(_) => None,
        Kind::Qcow2(header) => Some(header.geometry().l2_coverage()),
    }
}

/// Size of a layer's disk in bytes, where its header tells it, as it was when the layer was opened.
fn stated_size(layer: &Layer) -> Option<u64> {
    layer.kind().stated_size()
}
