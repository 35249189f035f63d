//! Finding clusters for new data and tables, and giving them back.
//!
//! Allocation is next-fit from a hint. It happens in memory, under the metadata lock. A cluster that has been
//! taken and is not yet referred to is held by a [`Reservation`]: dropping it gives the clusters back.

use std::sync::PoisonError;

use super::Qcow2;
use super::metadata::Metadata;
use super::metadata_map::MetadataMap;
use super::refcounts::BlockState;
use crate::corruption::Corruption;
use crate::error::{Error, Result};
use crate::format::qcow2::{CompressedRun, Geometry, HostCluster, HostOffset};
use crate::storage::Storage;

/// What a cluster held before it was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// Nothing was ever written there: it lies past the end of the file and reads as zeroes.
    Fresh,
    /// Unknown bytes.
    Stale,
}

/// Consecutive clusters, all of one content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) first: HostCluster,
    pub(super) count: u64,
    pub(super) content: Content,
}

/// Clusters that are taken and that nothing refers to yet. Dropping it gives them back; [`Reservation::keep`] says
/// that something refers to them now. It takes the metadata lock when it is dropped: never drop it inside.
#[derive(Debug)]
#[must_use]
pub(super) struct Reservation<'a> {
    image: &'a Qcow2,
    run: Run,
    counted: bool,
}

impl<'a> Reservation<'a> {
    /// Holds `run`, which has been taken from the allocator of `image`.
    pub(super) fn new(image: &'a Qcow2, run: Run) -> Reservation<'a> {
        Reservation { image, run, counted: true }
    }

    /// Stands for `run` where clusters are not counted.
    pub(super) fn uncounted(image: &'a Qcow2, run: Run) -> Reservation<'a> {
        Reservation { image, run, counted: false }
    }

    /// What is held.
    pub(super) fn run(&self) -> Run {
        self.run
    }

    /// The clusters are referred to from now on.
    pub(super) fn keep(mut self) {
        self.run.count = 0;
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if self.run.count == 0 || !self.counted {
            return;
        }
        let mut meta = self.image.meta.lock().unwrap_or_else(PoisonError::into_inner);
        // Failing here leaks the clusters, which harms nobody; the cause will be met again by whoever needs space.
        let _leaked = meta.allocator(self.image).release_run(self.run.first, self.run.count);
    }
}

/// The allocator's hands: the metadata that it changes and the storage that it reads blocks from.
pub(super) struct Allocator<'a> {
    pub(super) meta: &'a mut Metadata,
    pub(super) storage: &'a dyn Storage,
    pub(super) geometry: Geometry,
    pub(super) map: &'a MetadataMap,
}

impl Allocator<'_> {
    /// Takes between 1 and `max` consecutive clusters.
    pub(super) fn take_run(&mut self, max: u64) -> Result<Run> {
        loop {
            let from = HostCluster(self.meta.next_free);
            let (first, len, block) = self.meta.refcounts.find_free_run(self.storage, from, max)?;
            self.check_bounds(first, 1)?;
            if block == BlockState::Missing {
                self.refuse_metadata(first, 1)?;
                let index = self.geometry.refcount_table_index(first);
                self.meta.refcounts.create_block(self.storage, index, first)?;
                self.map.mark(first.get(), 1);
                self.note_used(first, 1);
                continue;
            }
            let fresh_from = self.meta.fresh_from;
            let (content, limit) = if first.get() >= fresh_from {
                (Content::Fresh, len)
            } else {
                (Content::Stale, len.min(fresh_from - first.get()))
            };
            let count = limit.min(max);
            self.check_bounds(first, count)?;
            self.refuse_metadata(first, count)?;
            self.meta.refcounts.take_run(self.storage, first, count)?;
            self.note_used(first, count);
            return Ok(Run { first, count, content });
        }
    }

    /// Takes exactly `count` consecutive clusters, for a table.
    pub(super) fn take_contiguous(&mut self, count: u64) -> Result<HostCluster> {
        let first = self.find_contiguous(count)?;
        self.check_bounds(first, count)?;
        self.refuse_metadata(first, count)?;
        let geometry = self.geometry;
        let last = HostCluster(first.get() + count.max(1) - 1);
        for index in geometry.refcount_table_index(first)..=geometry.refcount_table_index(last) {
            self.ensure_block_beside(index, first.get() + count)?;
        }
        self.meta.refcounts.take_run(self.storage, first, count)?;
        self.meta.fresh_from = self.meta.fresh_from.max(first.get() + count);
        Ok(first)
    }

    /// The first place with `count` free clusters in a row; a region without a block is free.
    fn find_contiguous(&mut self, count: u64) -> Result<HostCluster> {
        let mut start = HostCluster(self.meta.next_free);
        let mut found = 0;
        while found < count {
            let next = HostCluster(start.get() + found);
            let (first, len, _) = self.meta.refcounts.find_free_run(self.storage, next, count - found)?;
            if first != next {
                start = first;
                found = 0;
            }
            found += len;
        }
        Ok(start)
    }

    /// Makes the block at `table_index` if it is missing, and stores it at or after cluster `from`.
    fn ensure_block_beside(&mut self, table_index: u64, from: u64) -> Result<()> {
        if self.meta.refcounts.has_block(table_index) {
            return Ok(());
        }
        let hint = std::mem::replace(&mut self.meta.next_free, from);
        let run = self.take_run(1);
        self.meta.next_free = hint;
        let at = run?.first;
        // `take_run` makes this very block when it finds its place in that region.
        if self.meta.refcounts.has_block(table_index) {
            return self.release_run(at, 1);
        }
        self.map.mark(at.get(), 1);
        self.meta.refcounts.create_block(self.storage, table_index, at)
    }

    /// Gives back clusters that nothing refers to, neither in memory nor in the file.
    pub(super) fn release_run(&mut self, first: HostCluster, count: u64) -> Result<()> {
        for cluster in first.get()..first.get() + count {
            if self.meta.refcounts.decrement(self.storage, HostCluster(cluster))? == 0 {
                self.meta.next_free = self.meta.next_free.min(cluster);
                self.drop_cursor_in(HostCluster(cluster));
                self.map.unmark(cluster);
            }
        }
        Ok(())
    }

    /// Takes room for `len` bytes of compressed data, at most a cluster, which may share its clusters with other such
    /// data as far as the width of refcounts allows. Returns where the bytes go.
    pub(super) fn take_bytes(&mut self, len: u64) -> Result<HostOffset> {
        let geometry = self.geometry;
        let limit = CompressedRun::offset_limit(&geometry) - geometry.cluster_size();
        if self.meta.next_free.saturating_mul(geometry.cluster_size()) > limit {
            return Err(Error::unsupported("compressed clusters cannot be stored this far into the file"));
        }
        loop {
            let Some(cursor) = self.meta.compressed_cursor else {
                let run = self.take_run(1)?;
                self.advance_cursor(geometry.host_offset(run.first).get(), len);
                return Ok(geometry.host_offset(run.first));
            };
            let cluster = geometry.host_cluster(HostOffset(cursor));
            let room = geometry.cluster_size() - geometry.offset_in_cluster(cursor);
            let sharable = self.meta.refcounts.get(self.storage, cluster)? < geometry.refcount_max();
            self.meta.compressed_cursor = None;
            if !sharable {
                continue;
            }
            if len > room {
                let next = self.take_run(1)?;
                if next.first.get() != cluster.get() + 1 {
                    let offset = geometry.host_offset(next.first);
                    self.advance_cursor(offset.get(), len);
                    return Ok(offset);
                }
            }
            self.meta.refcounts.increment(self.storage, cluster)?;
            self.advance_cursor(cursor, len);
            return Ok(HostOffset(cursor));
        }
    }

    /// A cluster that is free again is nobody's to append to.
    fn drop_cursor_in(&mut self, cluster: HostCluster) {
        let geometry = self.geometry;
        let within = |cursor: &u64| geometry.host_cluster(HostOffset(*cursor)) == cluster;
        if self.meta.compressed_cursor.as_ref().is_some_and(within) {
            self.meta.compressed_cursor = None;
        }
    }

    fn advance_cursor(&mut self, offset: u64, len: u64) {
        let end = offset + len;
        self.meta.compressed_cursor = (!self.geometry.is_aligned(end)).then_some(end);
    }

    fn note_used(&mut self, first: HostCluster, count: u64) {
        let end = first.get() + count;
        self.meta.next_free = end;
        self.meta.fresh_from = self.meta.fresh_from.max(end);
    }

    /// A refcount of 0 for a cluster that holds a table is damage, not space.
    fn refuse_metadata(&self, first: HostCluster, count: u64) -> Result<()> {
        match self.map.first_marked(first.get(), count) {
            None => Ok(()),
            Some(cluster) => {
                let host = self.geometry.host_offset(HostCluster(cluster)).get();
                Err(Corruption::TableIsFree { host }.into())
            }
        }
    }

    /// The format holds host offsets of 56 bits.
    fn check_bounds(&self, first: HostCluster, count: u64) -> Result<()> {
        let end = first.get().saturating_add(count).saturating_mul(self.geometry.cluster_size());
        if end > 1 << 56 {
            return Err(Error::unsupported("the image file would pass 64 PiB, the limit of the format"));
        }
        Ok(())
    }
}
