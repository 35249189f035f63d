//! The extents of a range, merged and lazy.

use std::path::Path;

use crate::disk::Disk;
use crate::error::Result;
use crate::extent::Extent;
use crate::range::ByteRange;

/// Iterator over the extents of a range of the disk, in order and without gaps. Extents that touch and are alike come
/// as one. Ends after the first error.
pub struct Extents<'a> {
    disk: &'a dyn Disk,
    /// The image's file, for errors.
    path: Option<&'a Path>,
    left: ByteRange,
    pending: Option<Extent>,
}

impl std::fmt::Debug for Extents<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Extents").field("left", &self.left).finish_non_exhaustive()
    }
}

impl<'a> Extents<'a> {
    /// The extents of `range`, clipped to the disk; errors name `path`.
    pub(crate) fn new(disk: &'a dyn Disk, path: Option<&'a Path>, range: ByteRange) -> Extents<'a> {
        let left = range.intersection(ByteRange::between(0, disk.size()));
        Extents { disk, path, left, pending: None }
    }
}

impl Iterator for Extents<'_> {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Result<Extent>> {
        while !self.left.is_empty() {
            let extent = match self.disk.extent_at(self.left.start(), self.left.len()) {
                Ok(extent) => extent.clipped_to(self.left),
                Err(error) => {
                    self.left = ByteRange::between(0, 0);
                    self.pending = None;
                    return Some(Err(match self.path {
                        Some(path) => error.at_path(path),
                        None => error,
                    }));
                }
            };
            self.left = ByteRange::between(extent.range.end(), self.left.end());
            let Some(before) = self.pending.take() else {
                self.pending = Some(extent);
                continue;
            };
            if let Some(merged) = before.merged_with(&extent) {
                self.pending = Some(merged);
            } else {
                self.pending = Some(extent);
                return Some(Ok(before));
            }
        }
        self.pending.take().map(Ok)
    }
}
