//! The one word for mappings: what stands behind a range of guest bytes, and where.
//!
//! `map`, `convert`, `measure`, `compare` and `check` are small programs over a sequence of extents.

use crate::range::ByteRange;

/// What stands behind a range of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExtentKind {
    /// Bytes are stored as they are, at `host`.
    Data,
    /// The range reads as zeroes, and a layer says so: a zero cluster, or a hole in a raw file.
    Zero,
    /// No layer says anything: the range reads as zeroes because nothing is there.
    Unallocated,
    /// Stored compressed; `host` is `None`, because no byte of the guest has a place of its own.
    Compressed,
}

/// A range of the disk that one layer answers for in one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Extent {
    /// Where on the guest's disk, in bytes.
    pub range: ByteRange,
    /// What stands there.
    pub kind: ExtentKind,
    /// Which layer answers: 0 is the image itself, 1 its backing file, and so on.
    pub depth: usize,
    /// File offset, in bytes, within the layer's file of the first byte, where the layer has one place for it. A
    /// [`ExtentKind::Zero`] extent has one too when space is kept for it.
    pub host: Option<u64>,
    /// Only for [`ExtentKind::Data`]: the storage beneath is known to hold a hole there (preallocated, never
    /// written), so that the range reads as zeroes.
    pub reads_zero: bool,
}

impl Extent {
    /// Whether the range is known to read as zeroes.
    pub fn is_zero(&self) -> bool {
        self.reads_zero || matches!(self.kind, ExtentKind::Zero | ExtentKind::Unallocated)
    }

    /// The extent that continues `self` into `next` without a seam, if the two are alike and touch.
    pub fn merged_with(&self, next: &Extent) -> Option<Extent> {
        let host_continues = match (self.host, next.host) {
            (None, None) => true,
            (Some(here), Some(there)) => here.checked_add(self.range.len()) == Some(there),
            _ => false,
        };
        let alike = self.kind == next.kind && self.depth == next.depth && self.reads_zero == next.reads_zero;
        if !(alike && host_continues && self.range.end() == next.range.start()) {
            return None;
        }
        Some(Extent { range: ByteRange::between(self.range.start(), next.range.end()), ..*self })
    }

    /// The part of the extent that lies within `window`, with `host` moved along.
    #[must_use]
    pub fn clipped_to(&self, window: ByteRange) -> Extent {
        let range = self.range.intersection(window);
        let skipped = range.start().saturating_sub(self.range.start());
        Extent { range, host: self.host.map(|host| host + skipped), ..*self }
    }
}
