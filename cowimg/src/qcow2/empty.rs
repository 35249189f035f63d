//! Emptying an overlay: afterwards every cluster shows what is below, and the file has the length of a new one.
//!
//! The caller has made sure that this changes nothing that a guest sees: what is below holds the same bytes, durably.
//! Then the steps may stop anywhere:
//!
//! 1. The L1 table is zeroed. It may be zeroed in part: a cluster is read from here or from below, and is the same.
//! 2. Once that is durable nothing refers to an L2 table or to data (W3). A new refcount table, its one block and a new
//!    L1 table are written to clusters that the old ones do not use, and are durable before the header names them all
//!    in one write (W2, W4, W5). Where they cannot go straight to the start of the file they go there in two moves.
//! 3. The file is cut behind them.
//!
//! An image with snapshots or bitmaps keeps their clusters, so there the references are dropped one by one and the
//! commit does the rest.

use std::ops::Range;
use std::sync::PoisonError;

use super::Qcow2;
use super::metadata::{Freed, Metadata, Space};
use super::sync::MutexGuard;
use super::sync::atomic::Ordering;
use super::table_cache::Slice;
use crate::error::{Error, Result};
use crate::format::qcow2::{
    Extension, GuestCluster, Header, HostCluster, HostOffset, header_fields, refcounts as format_refcounts,
};
use crate::storage::StorageExt;

/// References that are dropped between two commits, so that the list stays short.
const MAX_DROPPED: usize = 1 << 16;

/// The tables of an image without content, in the order in which a new image has them.
struct FreshTables {
    start: u64,
    l1_clusters: u64,
}

impl FreshTables {
    /// The clusters that they take: the refcount table, its block, the L1 table.
    fn clusters(&self) -> Range<u64> {
        self.start..self.start + 2 + self.l1_clusters
    }
}

impl Qcow2 {
    /// Drops every cluster of the active disk.
    pub(crate) fn make_empty(&self) -> Result<()> {
        self.change_whole_disk(|image, meta| {
            // Afterwards memory holds nothing that the file does not.
            image.settle(meta)?;
            image.slices.clear();
            image.forget_decompressed();
            let header = image.header();
            if header.l1_entries == 0 {
                return Ok(());
            }
            match image.moves(&header, meta) {
                Some(moves) => image.start_over(meta, moves).map_err(|error| image.failure.record(error)),
                None => image.drop_every_table(meta),
            }
        })
    }

    /// Where the new tables go, one place after the other; `None` where the file holds more than the active disk, or no
    /// single refcount block could count them.
    fn moves(&self, header: &Header, meta: &Metadata) -> Option<Vec<FreshTables>> {
        let is_harmless = |kind: u32| kind == Extension::BACKING_FORMAT || kind == Extension::FEATURE_NAMES;
        if header.snapshot_count > 0 || !header.extensions.iter().all(|extension| is_harmless(extension.kind))
        {
            return None;
        }
        let l1_clusters = self.geometry.clusters_for(u64::from(header.l1_entries) * 8);
        let limit = self.geometry.refcounts_per_block();
        let place = |start| FreshTables { start, l1_clusters };
        let last = place(1);
        let cluster_of = |offset| self.geometry.host_cluster(offset).get();
        let (table, table_clusters) = meta.refcounts.table_location();
        let l1_start = cluster_of(header.l1_table);
        let mut live: Vec<Range<u64>> = meta
            .refcounts
            .block_offsets()
            .map(|block| cluster_of(block)..cluster_of(block) + 1)
            .chain([cluster_of(table)..cluster_of(table) + table_clusters, l1_start..l1_start + l1_clusters])
            .collect();
        live.sort_by_key(|range| range.start);
        let is_free = |range: Range<u64>| {
            range.end <= limit && live.iter().all(|used| used.end <= range.start || range.end <= used.start)
        };
        if is_free(last.clusters()) {
            return Some(vec![last]);
        }
        let candidates = std::iter::once(last.clusters().end).chain(live.iter().map(|used| used.end));
        let first = candidates
            .filter(|&start| start >= last.clusters().end)
            .map(place)
            .find(|tables| is_free(tables.clusters()))?;
        Some(vec![first, last])
    }

    fn start_over(&self, meta: &mut Metadata, moves: Vec<FreshTables>) -> Result<()> {
        {
            let mut l1 = self.l1.write().unwrap_or_else(PoisonError::into_inner);
            self.storage
                .write_all_at(&vec![0; l1.entries.len() * 8], l1.offset.get())
                .map_err(|error| Error::io("clear the L1 table", error))?;
            l1.entries.fill(0);
        }
        self.sync()?;
        let mut end = 0;
        for tables in moves {
            self.move_tables(&tables)?;
            end = tables.clusters().end;
        }
        let wanted = end * self.cluster_size();
        // A device keeps its length; nothing refers to what is behind.
        let _kept = self.storage.set_len(wanted);
        let len = self.storage.len().map_err(|error| Error::io("read the length of the file", error))?;
        let header = self.header();
        let location = (header.refcount_table, u64::from(header.refcount_table_clusters));
        let refcounts = meta.refcounts.loaded_anew(&*self.storage, location)?;
        *meta = Metadata::new(refcounts, self.geometry.clusters_for(len));
        self.metadata_map.clear();
        self.metadata_map.mark(0, end);
        self.known_len.store(len, Ordering::Release);
        Ok(())
    }

    /// Writes empty tables to a place that nothing uses, and makes the header name them.
    fn move_tables(&self, tables: &FreshTables) -> Result<()> {
        let cluster_size = self.cluster_size() as usize;
        let clusters = tables.clusters();
        let offset = |cluster: u64| self.geometry.host_offset(HostCluster(cluster));
        let mut bytes = vec![0; (clusters.end - clusters.start) as usize * cluster_size];
        bytes[..8].copy_from_slice(&offset(tables.start + 1).get().to_be_bytes());
        let block = &mut bytes[cluster_size..2 * cluster_size];
        for cluster in std::iter::once(0).chain(clusters) {
            if !format_refcounts::set(block, self.geometry.refcount_order(), cluster, 1) {
                return Err(Error::invalid("a refcount block counts its own tables"));
            }
        }
        self.storage
            .write_all_at(&bytes, offset(tables.start).get())
            .map_err(|error| Error::io("write empty tables", error))?;
        self.sync()?;
        let mut header = self.lock_header();
        let moved = Header {
            refcount_table: offset(tables.start),
            refcount_table_clusters: 1,
            l1_table: offset(tables.start + 2),
            ..header.clone()
        };
        self.write_header_field(header_fields::size_and_tables(&moved))?;
        self.l1.write().unwrap_or_else(PoisonError::into_inner).offset = moved.l1_table;
        *header = moved;
        Ok(())
    }

    /// Drops the references of every L2 table of the active disk, and the tables.
    fn drop_every_table(&self, meta: &mut MutexGuard<'_, Metadata>) -> Result<()> {
        let tables = self.read_l1().entries.len();
        for index in 0..tables {
            let Some(table) = self.checked_l1_entry(index as u64)?.table else { continue };
            let mut freed = self.references_of(index as u64, table.host)?;
            freed.push(Freed::one(self.geometry.host_cluster(table.host), Space::Release));
            self.l1.write().unwrap_or_else(PoisonError::into_inner).entries[index] = 0;
            meta.dirty_l1.insert(index);
            meta.unreferenced.append(&mut freed);
            if meta.unreferenced.len() > MAX_DROPPED {
                self.commit_locked(meta)?;
            }
        }
        // The first makes the references go, the second brings the refcounts that fall into the file.
        self.commit_locked(meta)?;
        self.commit_locked(meta)
    }

    /// What the entries of an L2 table refer to.
    fn references_of(&self, l1_index: u64, table: HostOffset) -> Result<Vec<Freed>> {
        let mut raw = vec![0; self.cluster_size() as usize];
        self.storage
            .read_padded_at(&mut raw, table.get())
            .map_err(|error| Error::io("read an L2 table", error))?;
        let words = raw.as_chunks::<8>().0.iter().map(|bytes| u64::from_be_bytes(*bytes));
        let entries = Slice::new(words, (self.geometry.l2_entry_size() / 8) as usize);
        let first = l1_index << self.geometry.l2_bits();
        let mut freed = Vec::new();
        for index in 0..self.geometry.l2_entries() {
            let cluster = GuestCluster(first + index);
            let entry = self.decode(entries.get(index as usize), cluster)?;
            self.refuse_freeing_metadata(cluster, &entry)?;
            freed.extend(self.freed_by(&entry, Space::Release));
        }
        Ok(freed)
    }
}
