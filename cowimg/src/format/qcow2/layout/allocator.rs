//! Hands out host clusters of an image that is being laid out, and places the refcount structures that count them.
//!
//! The places are those that QEMU's allocator picks, as its result is what a fresh image is measured against:
//!
//! - A search starts where the last one ended and takes the first gap that is long enough.
//! - Counting a range goes block by block. A block that is missing is placed by the same search, after which the
//!   range is released and the caller searches again, because the block may sit where the range was to go.
//! - A block that does not count itself is counted first, which may place yet another block.
//! - A refcount table that is too short is replaced by one half as long again, behind everything else, together with
//!   the blocks that count it; the clusters of the old one become free, its bytes stay.

use std::ops::Range;

use super::LayoutError;
use super::cluster_set::ClusterSet;
use super::refcount_space::{Headroom, RefcountSpace};
use crate::format::qcow2::{Geometry, HostCluster, TABLE_ENTRY_SIZE};

/// First file offset that an entry of an L2 table cannot hold.
const MAX_OFFSET: u64 = 1 << 56;
/// Longest refcount table that readers accept.
const MAX_TABLE_BYTES: u64 = 8 << 20;

/// Whether a range was counted, or the refcount structures changed and the search for a place starts anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Counted {
    Done,
    Again,
}

/// A refcount table: where it is, and the block of each index.
#[derive(Debug, Clone, Default)]
pub(super) struct RefcountTable {
    /// First host cluster of the table.
    pub(super) first: u64,
    /// Clusters of the table.
    pub(super) clusters: u64,
    /// Host clusters of the blocks by index; the table goes on with empty entries.
    pub(super) blocks: Vec<Option<u64>>,
}

impl RefcountTable {
    fn block(&self, index: u64) -> Option<u64> {
        usize::try_from(index).ok().and_then(|index| self.blocks.get(index).copied().flatten())
    }

    fn set_block(&mut self, index: u64, cluster: u64) {
        let Ok(index) = usize::try_from(index) else { return };
        if index >= self.blocks.len() {
            self.blocks.resize(index.saturating_add(1), None);
        }
        if let Some(entry) = self.blocks.get_mut(index) {
            *entry = Some(cluster);
        }
    }

    fn entries(&self, geometry: Geometry) -> u64 {
        self.clusters.saturating_mul(geometry.cluster_size() / TABLE_ENTRY_SIZE)
    }
}

/// The clusters of an image that is being laid out.
#[derive(Debug, Clone)]
pub(super) struct Allocator {
    geometry: Geometry,
    /// Clusters whose refcount is one; no cluster of a fresh image has more.
    used: ClusterSet,
    table: RefcountTable,
    /// Tables that were replaced.
    old_tables: Vec<RefcountTable>,
    /// Where the next search starts.
    next: u64,
    /// One past the last byte that was written.
    written: u64,
}

#[allow(
    clippy::arithmetic_side_effects,
    reason = "cluster numbers are below 2^55, as their offsets fit in 63 bits"
)]
impl Allocator {
    /// An image of three clusters: header, refcount table, first refcount block.
    pub(super) fn new(geometry: Geometry) -> Allocator {
        let mut used = ClusterSet::default();
        used.insert(0..3);
        let table = RefcountTable { first: 1, clusters: 1, blocks: vec![Some(2)] };
        let written = 3 * geometry.cluster_size();
        Allocator { geometry, used, table, old_tables: Vec::new(), next: 3, written }
    }

    /// Takes `count` clusters in a row and returns the first.
    pub(super) fn allocate(&mut self, count: u64) -> Result<u64, LayoutError> {
        loop {
            let first = self.search(count);
            if self.count(first..first + count)? == Counted::Done {
                return Ok(first);
            }
        }
    }

    /// Takes as many clusters from `first` on as are free, at most `count`, and returns how many.
    pub(super) fn allocate_at(&mut self, first: u64, count: u64) -> Result<u64, LayoutError> {
        loop {
            let free = self.used.gap_at(first, count);
            if self.count(first..first + free)? == Counted::Done {
                return Ok(free);
            }
        }
    }

    /// Puts a new refcount table at `start`, behind everything in use, preceded by the blocks that count it and
    /// `additional` clusters behind it. Returns the cluster after the table. `block` is a block that was placed
    /// but had no room in the old table, with its index.
    pub(super) fn replace_table(
        &mut self,
        start: u64,
        additional: u64,
        headroom: Headroom,
        block: Option<(u64, u64)>,
    ) -> Result<u64, LayoutError> {
        let space = RefcountSpace::for_clusters(self.geometry, start + additional, headroom);
        let entries_per_cluster = self.geometry.cluster_size() / TABLE_ENTRY_SIZE;
        let entries = match headroom {
            Headroom::Exact => space.blocks,
            Headroom::Generous => space.blocks + space.blocks.div_ceil(2),
        };
        let clusters = entries.div_ceil(entries_per_cluster);
        if clusters * self.geometry.cluster_size() > MAX_TABLE_BYTES {
            return Err(LayoutError::RefcountTableTooLarge { clusters, max_bytes: MAX_TABLE_BYTES });
        }
        let mut table = RefcountTable { clusters, ..self.table.clone() };
        if let Some((index, cluster)) = block {
            table.set_block(index, cluster);
        }
        table.first = start;
        for index in start / self.geometry.refcounts_per_block()..space.blocks {
            if table.block(index).is_none() {
                table.set_block(index, table.first);
                table.first += 1;
            }
        }
        let end = table.first + clusters;
        self.used.insert(start..end);
        self.note_written(end);
        let old = std::mem::replace(&mut self.table, table);
        self.used.remove(old.first..old.first + old.clusters);
        self.next = self.next.min(old.first);
        self.old_tables.push(old);
        Ok(end)
    }

    /// Cluster size and refcount width.
    pub(super) fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// One past the last cluster in use.
    pub(super) fn used_end(&self) -> u64 {
        self.used.end()
    }

    /// Notes that the file has bytes up to the end of the cluster before `end`.
    pub(super) fn note_written(&mut self, end: u64) {
        self.note_written_bytes(end * self.geometry.cluster_size());
    }

    /// Notes that the file has bytes up to `end`.
    pub(super) fn note_written_bytes(&mut self, end: u64) {
        self.written = self.written.max(end);
    }

    /// What was laid out.
    pub(super) fn finish(self) -> Allocation {
        let Allocator { used, table, old_tables, written, .. } = self;
        Allocation { used, table, old_tables, file_len: written }
    }

    /// Whether clusters up to `end` can be pointed at.
    pub(super) fn check_end(&self, end: u64) -> Result<(), LayoutError> {
        let max = MAX_OFFSET / self.geometry.cluster_size();
        if end > max { Err(LayoutError::FileTooLarge { max_bytes: MAX_OFFSET }) } else { Ok(()) }
    }

    fn search(&mut self, count: u64) -> u64 {
        let first = self.used.find_gap(self.next, count);
        self.next = first + count;
        first
    }

    /// Raises the refcounts of a range, or places one missing block and lowers those that were raised.
    fn count(&mut self, range: Range<u64>) -> Result<Counted, LayoutError> {
        self.check_end(range.end)?;
        let mut at = range.start;
        while at < range.end {
            let index = self.geometry.refcount_table_index(HostCluster(at));
            if self.table.block(index).is_none() {
                self.add_block(at)?;
                self.next = self.next.min(range.start);
                self.used.remove(range.start..at);
                return Ok(Counted::Again);
            }
            let counted_to = range.end.min((index + 1) * self.geometry.refcounts_per_block());
            self.used.insert(at..counted_to);
            at = counted_to;
        }
        Ok(Counted::Done)
    }

    /// Places the block that counts `cluster`, or one that has to be there before it.
    fn add_block(&mut self, cluster: u64) -> Result<(), LayoutError> {
        let index = self.geometry.refcount_table_index(HostCluster(cluster));
        let block = self.search(1);
        if self.geometry.refcount_table_index(HostCluster(block)) == index {
            self.used.insert(block..block + 1);
        } else if self.count(block..block + 1)? == Counted::Again {
            return Ok(());
        }
        self.note_written(block + 1);
        if index < self.table.entries(self.geometry) {
            self.table.set_block(index, block);
            return Ok(());
        }
        let per_block = self.geometry.refcounts_per_block();
        let blocks_in_use = (cluster.max(block) + 1).div_ceil(per_block);
        self.replace_table(blocks_in_use * per_block, 0, Headroom::Generous, Some((index, block)))?;
        Ok(())
    }
}

/// The clusters of an image that has been laid out.
#[derive(Debug, Clone)]
pub(super) struct Allocation {
    /// Clusters whose refcount is one.
    pub(super) used: ClusterSet,
    /// The refcount table and its blocks.
    pub(super) table: RefcountTable,
    /// Tables that were replaced, oldest first. Their bytes are in the file where nothing else was put.
    pub(super) old_tables: Vec<RefcountTable>,
    /// Bytes of the file.
    pub(super) file_len: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sixty-four refcounts per block and sixty-four blocks per table cluster: growth comes soon.
    fn allocator() -> Allocator {
        Allocator::new(Geometry::new(9, 6).unwrap())
    }

    #[test]
    fn a_block_that_counts_itself_is_put_behind_the_range_that_needed_it() {
        let mut allocator = allocator();
        assert_eq!(allocator.allocate(60).unwrap(), 3);
        // 63 is the last cluster that is counted; the block for 64 and on goes behind the two that are asked for.
        assert_eq!(allocator.allocate(2).unwrap(), 63);
        assert_eq!(allocator.finish().table.blocks, [Some(2), Some(65)]);
    }

    #[test]
    fn a_table_that_is_full_is_replaced_by_a_longer_one_behind_everything() {
        let mut allocator = allocator();
        while allocator.old_tables.is_empty() {
            allocator.allocate(50).unwrap();
        }
        let allocation = allocator.finish();
        let end = allocation.used.end();
        assert_eq!(allocation.table.clusters, 2);
        assert!(allocation.table.first > 64 * 64);
        assert!(!allocation.used.contains(1), "the old table's cluster is free");
        assert!(allocation.table.blocks.len() as u64 * 64 >= end);
        for block in allocation.table.blocks.iter().flatten() {
            assert!(allocation.used.contains(*block), "block {block} is counted");
        }
        assert!(allocation.used.contains(allocation.table.first));
    }

    #[test]
    fn a_range_at_a_place_stops_at_the_first_cluster_in_use() {
        let mut allocator = allocator();
        assert_eq!(allocator.allocate_at(10, 5).unwrap(), 5);
        assert_eq!(allocator.allocate_at(8, 5).unwrap(), 2);
        assert_eq!(allocator.allocate_at(8, 5).unwrap(), 0);
        // The search starts where it was: in front.
        assert_eq!(allocator.allocate(1).unwrap(), 3);
    }
}
