//! What the metadata lock protects: refcounts, the allocator's hints, and everything that memory has and the file
//! does not have yet.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use super::Qcow2;
use super::allocator::Allocator;
use super::refcounts::Refcounts;
use super::table_cache::Slice;
use crate::format::qcow2::{Geometry, HostCluster, L2Entry};

/// What is to become of the space of clusters that nothing refers to any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Space {
    /// It stays in the file, to be used again.
    Keep,
    /// The guest asked for it to be given back to the host.
    Release,
}

/// Clusters that lost one reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Freed {
    pub(super) clusters: Range<u64>,
    pub(super) space: Space,
}

impl Freed {
    /// The clusters that an entry which is about to go referred to.
    pub(super) fn of_entry(entry: &L2Entry, geometry: Geometry, space: Space) -> Option<Freed> {
        let (first, count) = entry.clusters(&geometry)?;
        // The clusters of compressed data may hold other such data: their space is never released.
        let space = if matches!(entry, L2Entry::Compressed(_)) { Space::Keep } else { space };
        Some(Freed { clusters: first.get()..first.get() + count, space })
    }

    /// One cluster.
    pub(super) fn one(cluster: HostCluster, space: Space) -> Freed {
        Freed { clusters: cluster.get()..cluster.get() + 1, space }
    }
}

/// The state behind the metadata lock.
#[derive(Debug)]
pub(super) struct Metadata {
    pub(super) refcounts: Refcounts,
    /// Where the allocator looks first: no cluster below it is known to be free.
    pub(super) next_free: u64,
    /// No cluster from here on was ever written.
    pub(super) fresh_from: u64,
    /// Where the next compressed bytes go, if there is a started cluster.
    pub(super) compressed_cursor: Option<u64>,
    /// L1 entries that the file does not have yet.
    pub(super) dirty_l1: BTreeSet<usize>,
    /// L1 indices whose L2 table no pointer in the file names yet.
    pub(super) new_tables: BTreeSet<usize>,
    /// Slices that the file does not have yet; holding them here keeps them in the cache.
    pub(super) dirty_slices: BTreeMap<u64, Arc<Slice>>,
    /// References that are gone in memory and not yet in the file (rule W3).
    pub(super) unreferenced: Vec<Freed>,
    /// References that are gone in the file too, with the epoch in which that was so: readers may still be there.
    pub(super) retired: VecDeque<(u64, Freed)>,
}

impl Metadata {
    /// State of an image that has just been opened, whose file has `file_clusters` clusters.
    pub(super) fn new(refcounts: Refcounts, file_clusters: u64) -> Metadata {
        Metadata {
            refcounts,
            next_free: 0,
            fresh_from: file_clusters,
            compressed_cursor: None,
            dirty_l1: BTreeSet::new(),
            new_tables: BTreeSet::new(),
            dirty_slices: BTreeMap::new(),
            unreferenced: Vec::new(),
            retired: VecDeque::new(),
        }
    }

    /// The allocator, with the storage of `image`.
    pub(super) fn allocator<'a>(&'a mut self, image: &'a Qcow2) -> Allocator<'a> {
        Allocator { meta: self, storage: &*image.storage, geometry: image.geometry, map: &image.metadata_map }
    }

    /// Whether anything is left to be done before the file says all that memory says.
    pub(super) fn is_clean(&self) -> bool {
        self.refcounts.dirty_blocks() == 0
            && self.dirty_l1.is_empty()
            && self.dirty_slices.is_empty()
            && self.unreferenced.is_empty()
            && self.retired.is_empty()
    }
}
