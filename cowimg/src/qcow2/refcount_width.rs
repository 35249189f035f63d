//! Another width of refcounts: all of them are stored anew, beside the old ones.
//!
//! ```text
//!   | file as it is ... | new refcount table | new blocks |      -- sync --      nothing refers to the new part yet
//!   header: width, place and length of the table, in one write                  the old table and blocks are free (W5)
//! ```
//!
//! The new refcounts count themselves and no longer the old table and blocks, so that there is no leak on either
//! side of the header's write.

use std::collections::{BTreeSet, HashSet};

use super::Qcow2;
use super::amend::Steps;
use super::metadata::Metadata;
use super::refcounts::{MAX_TABLE_BYTES, Refcounts};
use super::sync::MutexGuard;
use crate::corruption::Corruption;
use crate::error::{Error, ErrorKind, Result};
use crate::format::qcow2::{Geometry, Header, HostCluster, L2Entry, refcounts as format_refcounts};
use crate::storage::StorageExt;

/// Where the new refcounts go.
#[derive(Debug)]
struct Place {
    geometry: Geometry,
    /// The first cluster of the table; the blocks follow it.
    start: u64,
    table_clusters: u64,
    table_entries: u64,
    /// The regions that have a block, by their place in the table.
    blocks: BTreeSet<u64>,
    /// The clusters of the old table and its blocks.
    old: HashSet<u64>,
}

impl Place {
    fn end(&self) -> u64 {
        self.start + self.table_clusters + self.blocks.len() as u64
    }
}

impl Qcow2 {
    /// Refuses a width that the refcounts as they are do not fit.
    pub(super) fn check_refcount_width(&self, order: u32) -> Result<()> {
        let geometry = self.with_width(order)?;
        let mut meta = self.lock_meta();
        self.place_refcounts(&mut meta.refcounts, geometry, &|_, _| Ok(())).map(drop)
    }

    /// Stores every refcount in 2^`order` bits.
    pub(super) fn change_refcount_width(&mut self, order: u32, steps: &Steps<'_>) -> Result<()> {
        let geometry = self.with_width(order)?;
        self.change_whole_disk(|image, meta| {
            image.settle(meta)?;
            image.store_refcounts_anew(meta, geometry, steps)
        })?;
        self.geometry = geometry;
        Ok(())
    }

    fn with_width(&self, order: u32) -> Result<Geometry> {
        let geometry = Geometry::new(self.geometry.cluster_bits(), order)
            .map_err(|error| Error::invalid(error.to_string()))?;
        Ok(geometry.with_extended_l2(self.geometry.has_subclusters()))
    }

    fn store_refcounts_anew(
        &self,
        meta: &mut MutexGuard<'_, Metadata>,
        geometry: Geometry,
        steps: &Steps<'_>,
    ) -> Result<()> {
        // The one half of the way.
        let looked = |done, total: u64| steps.report(done, total.saturating_mul(2));
        let place = self.place_refcounts(&mut meta.refcounts, geometry, &looked)?;
        // Also when it fails: what lies past the old end of the file may have been written.
        meta.fresh_from = meta.fresh_from.max(place.end());
        self.write_refcounts(&mut meta.refcounts, &place, steps)?;
        let table = geometry.host_offset(HostCluster(place.start));
        let location = (table, place.table_clusters);
        let refcounts = meta.refcounts.loaded_with_width(&*self.storage, geometry, location)?;
        self.rewrite_header(Header {
            refcount_order: geometry.refcount_order(),
            refcount_table: table,
            refcount_table_clusters: place.table_clusters as u32,
            ..self.header()
        })?;
        meta.refcounts = refcounts;
        meta.next_free = 0;
        meta.compressed_cursor = None;
        self.metadata_map.mark(place.start, place.end() - place.start);
        for cluster in place.old {
            if meta.refcounts.get(&*self.storage, HostCluster(cluster))? == 0 {
                self.metadata_map.unmark(cluster);
            }
        }
        Ok(())
    }

    /// Finds out which blocks are needed, and a place for them behind all that is counted or written.
    fn place_refcounts(
        &self,
        refcounts: &mut Refcounts,
        geometry: Geometry,
        looked: &dyn Fn(u64, u64) -> Result<()>,
    ) -> Result<Place> {
        let old: HashSet<u64> = self.old_clusters(refcounts);
        let file_len = self.storage.len().map_err(|error| Error::io("read the length of the file", error))?;
        let mut start = geometry.clusters_for(file_len);
        let end = refcounts.end(&*self.storage)?;
        let mut blocks = BTreeSet::new();
        for index in 0..refcounts.entries() {
            looked(index, refcounts.entries())?;
            let counted = self.counted_by(refcounts, index);
            for cluster in counted.start..counted.end.min(end) {
                let refcount = self.next_refcount(refcounts, cluster, &old)?;
                if refcount > geometry.refcount_max() {
                    return Err(too_narrow(geometry, cluster, refcount));
                }
                if refcount > 0 {
                    blocks.insert(geometry.refcount_table_index(HostCluster(cluster)));
                    start = start.max(cluster + 1);
                }
            }
            refcounts.evict();
        }
        let mut place = Place { geometry, start, table_clusters: 0, table_entries: 0, blocks, old };
        loop {
            let last = place.blocks.last().copied().unwrap_or(0);
            place.table_entries = last + 1;
            place.table_clusters = geometry.clusters_for(place.table_entries.saturating_mul(8));
            let own = place.start..place.end();
            let before = place.blocks.len();
            let first_own = geometry.refcount_table_index(HostCluster(own.start));
            place.blocks.extend(first_own..=geometry.refcount_table_index(HostCluster(own.end - 1)));
            if place.blocks.len() == before {
                break;
            }
        }
        check_limits(&place)?;
        Ok(place)
    }

    fn write_refcounts(&self, old: &mut Refcounts, place: &Place, steps: &Steps<'_>) -> Result<()> {
        let geometry = place.geometry;
        let own = place.start..place.end();
        let mut table = vec![0_u8; (place.table_clusters * self.cluster_size()) as usize];
        let mut block = vec![0_u8; self.cluster_size() as usize];
        let total = table.len() as u64 / 8 * 2;
        let mut at = place.start + place.table_clusters;
        for index in 0..total / 2 {
            steps.report(total / 2 + index, total)?;
            if !place.blocks.contains(&index) {
                continue;
            }
            block.fill(0);
            let first = geometry.first_counted(index).get();
            let end = first.saturating_add(geometry.refcounts_per_block()).min(place.end());
            for cluster in first..end {
                let refcount =
                    if own.contains(&cluster) { 1 } else { self.next_refcount(old, cluster, &place.old)? };
                if refcount > 0
                    && !format_refcounts::set(
                        &mut block,
                        geometry.refcount_order(),
                        cluster - first,
                        refcount,
                    )
                {
                    return Err(too_narrow(geometry, cluster, refcount));
                }
            }
            old.evict();
            let host = geometry.host_offset(HostCluster(at)).get();
            self.storage
                .write_all_at(&block, host)
                .map_err(|error| Error::io("write refcount blocks", error))?;
            table[index as usize * 8..][..8].copy_from_slice(&host.to_be_bytes());
            at += 1;
        }
        let host = geometry.host_offset(HostCluster(place.start)).get();
        self.storage
            .write_all_at(&table, host)
            .map_err(|error| Error::io("write the refcount table", error))?;
        self.sync()?;
        steps.report(total, total)
    }

    /// The clusters of the table and of the blocks as they are.
    fn old_clusters(&self, refcounts: &Refcounts) -> HashSet<u64> {
        let (table, clusters) = refcounts.table_location();
        let first = self.geometry.host_cluster(table).get();
        let blocks = refcounts.block_offsets().map(|block| self.geometry.host_cluster(block).get());
        blocks.chain(first..first + clusters).collect()
    }

    /// The clusters that the block at `index` of the present table counts.
    fn counted_by(&self, refcounts: &Refcounts, index: u64) -> std::ops::Range<u64> {
        let first = self.geometry.first_counted(index).get();
        if refcounts.has_block(index) { first..first + self.geometry.refcounts_per_block() } else { 0..0 }
    }

    /// The refcount of a cluster once nothing refers to the old table and blocks.
    fn next_refcount(&self, refcounts: &mut Refcounts, cluster: u64, old: &HashSet<u64>) -> Result<u64> {
        let refcount = refcounts.get(&*self.storage, HostCluster(cluster))?;
        if !old.contains(&cluster) {
            return Ok(refcount);
        }
        refcount.checked_sub(1).ok_or_else(|| {
            let host = self.geometry.host_offset(HostCluster(cluster)).get();
            Corruption::Refcount { host, refcount }.into()
        })
    }
}

fn check_limits(place: &Place) -> Result<()> {
    let bytes = place.table_entries.saturating_mul(8);
    if bytes > MAX_TABLE_BYTES {
        let what = "the refcount table with refcounts of that width";
        return Err(Error::new(ErrorKind::LimitExceeded { what, bytes, limit: MAX_TABLE_BYTES }));
    }
    if place.end().saturating_mul(place.geometry.cluster_size()) > L2Entry::OFFSET_LIMIT {
        return Err(Error::unsupported("the image file would pass 64 PiB, the limit of the format"));
    }
    Ok(())
}

fn too_narrow(geometry: Geometry, cluster: u64, refcount: u64) -> Error {
    Error::invalid(format!(
        "the cluster at file offset {:#x} has {refcount} references, and refcount_bits={} counts up to {}",
        geometry.host_offset(HostCluster(cluster)).get(),
        geometry.refcount_bits(),
        geometry.refcount_max()
    ))
}
