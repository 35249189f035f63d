//! What stands behind a range of the disk, for `map` and for every job.

use super::Qcow2;
use super::plan::Source;
use super::refcounts::Refcounts;
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::extent::{Extent, ExtentKind};
use crate::format::qcow2::{Geometry, Header, HostCluster, HostOffset};
use crate::range::ByteRange;
use crate::storage::{Storage, StorageExtent, StorageExtentKind};

impl Qcow2 {
    /// The extent at `offset`, at most `max_len` long.
    pub(super) fn extent(&self, offset: u64, max_len: u64) -> Result<Extent> {
        let _in_flight = self.epochs.enter();
        // The size is looked at once and here: the disk may shrink at any time, and no extent is empty.
        let size = self.size();
        if offset >= size {
            return Err(
                Error::new(ErrorKind::OutOfBounds { size }).at_range(ByteRange::between(offset, offset))
            );
        }
        let end = offset.saturating_add(max_len).min(size);
        let segment = self.next_segment(ByteRange::between(offset, end))?;
        // What is encrypted is nowhere in a form that the guest would know.
        let own = |kind, host: Option<HostOffset>| Extent {
            range: segment.range,
            kind,
            depth: 0,
            host: host.filter(|_| !self.data.is_encrypted()).map(HostOffset::get),
            reads_zero: false,
        };
        match segment.source {
            Source::Zero(space) => Ok(own(ExtentKind::Zero, space)),
            Source::Compressed(_) => Ok(own(ExtentKind::Compressed, None)),
            Source::Host(host) => self.with_holes(own(ExtentKind::Data, Some(host)), host),
            Source::Below(space) => {
                // Space that is kept under a backing disk tells nothing about the bytes.
                let space = space.filter(|_| self.backing.is_none());
                self.extent_below(segment.range, own(ExtentKind::Unallocated, space))
            }
        }
    }

    /// What the backing disk says of a range of which this image says nothing.
    fn extent_below(&self, range: ByteRange, silent: Extent) -> Result<Extent> {
        let Some(backing) = &self.backing else { return Ok(silent) };
        let covered = range.intersection(ByteRange::between(0, backing.size()));
        if covered.is_empty() {
            // Past the end of a shorter backing disk there is nothing to ask.
            return Ok(silent);
        }
        let below = backing.extent_at(covered.start(), covered.len()).map_err(Error::of_below)?;
        Ok(Extent { depth: below.depth + 1, ..below })
    }

    /// A data extent, cut where the file beneath turns from data to hole or back, if holes tell anything here.
    fn with_holes(&self, extent: Extent, host: HostOffset) -> Result<Extent> {
        let counted = self.data.external().is_none() && !self.data.is_encrypted();
        if !counted || !self.is_preallocated()? {
            return Ok(extent);
        }
        let found = self.data.extent_at(host).map_err(|error| Error::io("look for holes", error))?;
        let Some(StorageExtent { range, kind }) = found else { return Ok(extent) };
        let len = range.len().min(extent.range.len());
        Ok(Extent {
            range: ByteRange::between(extent.range.start(), extent.range.start() + len),
            reads_zero: kind == StorageExtentKind::Hole,
            ..extent
        })
    }

    /// Whether many more clusters are counted than the host has given space to: then clusters were preallocated,
    /// and looking for holes beneath data is worth its while.
    fn is_preallocated(&self) -> Result<bool> {
        if let Some(&known) = self.preallocated.get() {
            return Ok(known);
        }
        let found = count_exceeds_space(&*self.storage, &self.lock_header(), self.geometry)?;
        Ok(*self.preallocated.get_or_init(|| found))
    }
}

/// QEMU's measure of the same: counted clusters against 10/9 of the clusters that have space.
fn count_exceeds_space(storage: &dyn Storage, header: &Header, geometry: Geometry) -> Result<bool> {
    let io = |error| Error::io("read the size of the file", error);
    let with_space = storage.allocated_bytes().map_err(io)? / geometry.cluster_size();
    let threshold = (with_space.saturating_mul(10) / 9).max(with_space.saturating_add(2));
    let end = geometry.clusters_for(storage.len().map_err(io)?);
    let location = (header.refcount_table, u64::from(header.refcount_table_clusters));
    let mut refcounts = Refcounts::load(storage, geometry, location, 0)?;
    let mut counted = 0;
    let mut at = HostCluster(0);
    // Runs of free clusters are found quickly; what lies between them is counted.
    while at.get() < end && counted < threshold {
        let (free, len, _) = refcounts.find_free_run(storage, at, u64::MAX)?;
        counted += free.get().min(end).saturating_sub(at.get());
        at = HostCluster(free.get() + len);
        refcounts.evict();
    }
    Ok(counted >= threshold)
}
