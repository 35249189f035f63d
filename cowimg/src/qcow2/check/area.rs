//! What a repair writes behind the end of the file: copies of clusters, tables, and refcounts for the whole image.
//!
//! ```text
//!   | file as it is ... | copies | snapshot table | new refcount blocks | new refcount table |      -- sync --
//!   header: refcount table and snapshot table, in one write within its first sector (W5)        -- sync --
//! ```
//!
//! The new refcounts count all that was found to be referred to, and the new clusters; no longer the old refcount table
//! and its blocks. Up to the header's write nothing refers to the area, and a crash leaves the image as it was. After it
//! the old refcounts are free, and copies are counted that nothing refers to yet: leaks at most.
//!
//! Clusters past the end of the file that a damaged entry names are left out: the file's growth must not give such an entry
//! a meaning.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use super::Examined;
use super::entry_walk::fix_table;
use super::mend::Mender;
use super::past_end::PastEnd;
use crate::error::{Error, ErrorKind, Result};
use crate::format::qcow2::{Header, HostCluster, HostOffset, L2Entry, header_fields, refcounts};
use crate::storage::StorageExt;

/// A piece of the area.
#[derive(Debug)]
enum Content {
    /// What this cluster of the file holds.
    CopyOf(u64),
    /// What this cluster holds as an L2 table, its entries mended.
    TableOf(u64),
    /// These bytes, then zeroes.
    Bytes(Vec<u8>),
}

/// Clusters behind the end of the file.
#[derive(Debug)]
pub(super) struct Area {
    next: u64,
    limit: u64,
    avoided: PastEnd,
    pieces: BTreeMap<u64, Content>,
    /// The refcount of each cluster that has been taken.
    counts: BTreeMap<u64, u64>,
}

impl Area {
    /// An empty area behind the end of the file that was examined.
    pub(super) fn new(examined: &Examined<'_>) -> Area {
        let (ledger, geometry) = (&examined.ledger, examined.subject.geometry);
        Area {
            next: ledger.references.clusters().max(geometry.clusters_for(examined.subject.file_len)),
            limit: L2Entry::OFFSET_LIMIT >> geometry.cluster_bits(),
            avoided: ledger.past_end.clone(),
            pieces: BTreeMap::new(),
            counts: BTreeMap::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// Takes a cluster for a copy of `cluster`, which `refcount` L2 entries are to refer to.
    pub(super) fn copy_of_data(&mut self, cluster: u64, refcount: u64) -> Option<u64> {
        self.copy(Content::CopyOf(cluster), refcount)
    }

    /// Takes a cluster for a copy of the L2 table `cluster`, which `refcount` L1 entries are to refer to.
    pub(super) fn copy_of_table(&mut self, cluster: u64, refcount: u64) -> Option<u64> {
        self.copy(Content::TableOf(cluster), refcount)
    }

    fn copy(&mut self, content: Content, refcount: u64) -> Option<u64> {
        let place = self.take(1)?;
        self.pieces.insert(place, content);
        self.counts.insert(place, refcount);
        Some(place)
    }

    /// Takes clusters in a row for a table, which one reference is to name.
    pub(super) fn table(&mut self, bytes: Vec<u8>, cluster_size: u64) -> Option<u64> {
        let place = self.take((bytes.len() as u64).div_ceil(cluster_size).max(1))?;
        self.pieces.insert(place, Content::Bytes(bytes));
        Some(place)
    }

    fn take(&mut self, count: u64) -> Option<u64> {
        let place = self.avoided.gap(self.next, count, self.limit)?;
        self.next = place + count;
        self.counts.extend((place..self.next).map(|cluster| (cluster, 1)));
        Some(place)
    }

    /// Writes the area and the refcounts, and makes the header name them, with the snapshot table as `next` has it.
    pub(super) fn publish(
        mut self,
        mender: &mut Mender<'_>,
        stored: Kept,
        mut next: Header,
    ) -> Result<Header> {
        let examined = mender.examined;
        let geometry = examined.subject.geometry;
        let placed = PlacedRefcounts::place(&mut self, examined, stored)?;
        self.write_pieces(mender)?;
        self.write_blocks(examined, &placed, stored)?;
        sync(examined)?;
        next.refcount_table = geometry.host_offset(HostCluster(placed.table));
        next.refcount_table_clusters = placed.table_clusters as u32;
        let (at, bytes) = header_fields::size_and_tables(&next);
        write(examined, at, &bytes)?;
        sync(examined)?;
        Ok(next)
    }

    fn write_pieces(&self, mender: &mut Mender<'_>) -> Result<()> {
        let examined = mender.examined;
        let subject = &examined.subject;
        let cluster_size = subject.geometry.cluster_size() as usize;
        for (&place, content) in &self.pieces {
            let bytes = match content {
                Content::CopyOf(cluster) => read_cluster(examined, *cluster)?,
                Content::TableOf(cluster) => {
                    // Mended before anything leads to it: an entry may refer to what is about to change.
                    let mut bytes = read_cluster(examined, *cluster)?;
                    fix_table(subject, &mut bytes, mender);
                    bytes
                }
                Content::Bytes(bytes) => {
                    let mut bytes = bytes.clone();
                    bytes.resize(bytes.len().next_multiple_of(cluster_size), 0);
                    bytes
                }
            };
            write(examined, subject.geometry.host_offset(HostCluster(place)).get(), &bytes)?;
        }
        Ok(())
    }

    fn write_blocks(&self, examined: &Examined<'_>, placed: &PlacedRefcounts, stored: Kept) -> Result<()> {
        let geometry = examined.subject.geometry;
        let order = geometry.refcount_order();
        let mut old = examined.stored.again();
        let mut table = vec![0_u8; (placed.table_clusters * geometry.cluster_size()) as usize];
        let mut block = vec![0_u8; geometry.cluster_size() as usize];
        for (&index, &place) in &placed.blocks {
            block.fill(0);
            let first = geometry.first_counted(index).get();
            let end = first.saturating_add(geometry.refcounts_per_block());
            let mut set = |cluster: u64, count: u64| {
                let _ =
                    refcounts::set(&mut block, order, cluster - first, count.min(geometry.refcount_max()));
            };
            let known = first..end.min(examined.ledger.references.clusters());
            if stored == Kept::AsStored {
                known.clone().for_each(|cluster| set(cluster, old.get(cluster).unwrap_or(0)));
            }
            for cluster in examined.ledger.references.counted(known) {
                let kept = if stored == Kept::AsStored { old.get(cluster).unwrap_or(0) } else { 0 };
                set(cluster, without_refcounts(examined, cluster).max(kept));
            }
            self.counts.range(first..end).for_each(|(&cluster, &count)| set(cluster, count));
            let host = geometry.host_offset(HostCluster(place)).get();
            write(examined, host, &block)?;
            table[index as usize * 8..][..8].copy_from_slice(&host.to_be_bytes());
        }
        write(examined, geometry.host_offset(HostCluster(placed.table)).get(), &table)
    }
}

/// What becomes of refcounts that are higher than the references that were found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    /// They become what was found.
    AsFound,
    /// They stay: a structure is about to be found again whose references have not been counted.
    AsStored,
}

/// Where the new refcounts go.
#[derive(Debug)]
struct PlacedRefcounts {
    table: u64,
    table_clusters: u64,
    /// The cluster of each block, by its place in the table.
    blocks: BTreeMap<u64, u64>,
}

impl PlacedRefcounts {
    fn place(area: &mut Area, examined: &Examined<'_>, stored: Kept) -> Result<PlacedRefcounts> {
        let geometry = examined.subject.geometry;
        let index_of = |cluster: u64| geometry.refcount_table_index(HostCluster(cluster));
        let mut missing = used_regions(examined, stored);
        missing.extend(area.counts.keys().map(|&cluster| index_of(cluster)));
        let mut placed = PlacedRefcounts { table: 0, table_clusters: 0, blocks: BTreeMap::new() };
        loop {
            while let Some(index) = missing.pop_first() {
                if let Entry::Vacant(block) = placed.blocks.entry(index) {
                    let place = *block.insert(area.take(1).ok_or_else(no_room)?);
                    missing.insert(index_of(place));
                }
            }
            let entries = placed.blocks.last_key_value().map_or(0, |(&last, _)| last + 1);
            let bytes = entries.saturating_mul(8);
            let limit = Header::MAX_REFCOUNT_TABLE_BYTES;
            if bytes > limit {
                let what = "the refcount table built anew";
                return Err(Error::new(ErrorKind::LimitExceeded { what, bytes, limit }));
            }
            examined.subject.limits.check_table("the refcount table built anew", bytes)?;
            let needed = geometry.clusters_for(bytes).max(1);
            if needed <= placed.table_clusters {
                return Ok(placed);
            }
            // A place that has become too small stays free.
            for cluster in placed.table..placed.table + placed.table_clusters {
                area.counts.remove(&cluster);
            }
            placed.table = area.take(needed).ok_or_else(no_room)?;
            placed.table_clusters = needed;
            missing.extend((placed.table..placed.table + needed).map(index_of));
        }
    }
}

/// The regions, each counted by a block of its own, that have anything to count.
fn used_regions(examined: &Examined<'_>, stored: Kept) -> BTreeSet<u64> {
    let geometry = examined.subject.geometry;
    let references = &examined.ledger.references;
    let per_block = geometry.refcounts_per_block();
    let regions = 0..references.clusters().div_ceil(per_block);
    let is_used = |&index: &u64| {
        let clusters = index * per_block..((index + 1) * per_block).min(references.clusters());
        stored == Kept::AsStored
            || references.counted(clusters).any(|cluster| without_refcounts(examined, cluster) > 0)
    };
    regions.filter(is_used).collect()
}

/// References to a cluster once nothing refers to the old refcounts.
fn without_refcounts(examined: &Examined<'_>, cluster: u64) -> u64 {
    let ledger = &examined.ledger;
    ledger.references.get(cluster).saturating_sub(ledger.refcounts.get(cluster))
}

fn read_cluster(examined: &Examined<'_>, cluster: u64) -> Result<Vec<u8>> {
    let geometry = examined.subject.geometry;
    let mut bytes = vec![0; geometry.cluster_size() as usize];
    let read = examined.subject.read(&mut bytes, geometry.host_offset(HostCluster(cluster)).get());
    read.map_err(|error| Error::io("read a cluster with two owners", error))?;
    Ok(bytes)
}

fn no_room() -> Error {
    Error::unsupported("the image file has no room behind its end that nothing refers to")
}

fn write(examined: &Examined<'_>, at: u64, bytes: &[u8]) -> Result<()> {
    let written = examined.subject.storage.write_all_at(bytes, at);
    written.map_err(|error| Error::io("write the repaired metadata", error))
}

fn sync(examined: &Examined<'_>) -> Result<()> {
    examined.subject.storage.sync().map_err(|error| Error::io("sync the repaired metadata", error))
}

/// Where the structures of the area are, for who has to name one.
pub(super) fn host_of(examined: &Examined<'_>, cluster: u64) -> HostOffset {
    examined.subject.geometry.host_offset(HostCluster(cluster))
}
