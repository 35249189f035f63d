//! A change of many tables that happens whole or not at all.
//!
//! Some changes touch every refcount and every copied flag of an image: a snapshot that is taken makes all of them wrong
//! at once. No order of writes in place gets from one consistent state to the next, for a flag and the refcount that
//! it must agree with lie in different sectors. So the new tables are written *beside* the old ones, into clusters
//! that are free:
//!
//! ```text
//!   1. settle     everything that memory has is committed: file and memory agree
//!   2. draft      refcount blocks that change, tables that change: written to free clusters
//!      -- sync --   nothing in the file refers to any of it: a crash leaves the old state, with no leak even
//!   3. publish    one write within the header's first sector names the new L1, refcount and snapshot tables (W5)
//!      -- sync --   the new state. What was replaced is free in the new refcounts (W2, W3 hold by construction)
//! ```
//!
//! The caller holds the commit lock and the metadata lock, and has closed the epochs: nobody else looks at a table.
//!
//! The draft takes clusters that are free in the *present* refcounts, and each only once, so that nothing which the
//! file still refers to is written over. The cost is in proportion to the tables that change.

use std::borrow::Cow;
use std::sync::PoisonError;

use foldhash::HashSet;

use super::Qcow2;
use super::l1_table::L1Table;
use super::metadata::Metadata;
use super::metadata_map::MetadataMap;
use super::refcounts::{Change, MAX_TABLE_BYTES, Refcounts};
use super::sync::MutexGuard;
use super::sync::atomic::Ordering;
use crate::corruption::Corruption;
use crate::error::{Error, Result};
use crate::format::qcow2::{Header, HostCluster, HostOffset, L2Entry, header_fields};
use crate::storage::StorageExt;

/// Rounds of commits after which an image that nobody works on must have come to rest.
const MAX_ROUNDS: usize = 8;

/// The next state of an image's tables, beside the present one.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    image: &'a Qcow2,
    present: &'a mut Refcounts,
    next: Refcounts,
    map: MetadataMap,
    /// Nothing that the draft has taken lies at or after this cluster.
    cursor: u64,
    /// Refcount blocks that have their new place.
    moved: HashSet<u64>,
    /// Where those blocks are in the file; free once all else is done.
    replaced: Vec<HostCluster>,
    lowest_freed: u64,
}

/// What the header is to name.
#[derive(Debug)]
pub(super) struct NextState {
    /// The header with size, active L1 table and snapshot table as they are to be.
    pub(super) header: Header,
    /// The entries of the active L1 table.
    pub(super) l1: Vec<u64>,
}

impl Qcow2 {
    /// Carries out what `change` makes of a draft, whole or not at all. When it fails, nothing has happened, unless the
    /// failure is recorded (W8): then the file may be in either state.
    pub(super) fn redraft(
        &self,
        meta: &mut MutexGuard<'_, Metadata>,
        change: impl FnOnce(&mut Draft<'_>) -> Result<NextState>,
    ) -> Result<()> {
        self.settle(meta)?;
        let start = meta.next_free;
        let next = meta.refcounts.fork();
        let mut draft = Draft {
            image: self,
            present: &mut meta.refcounts,
            next,
            map: self.metadata_map.fork(),
            cursor: start,
            moved: HashSet::default(),
            replaced: Vec::new(),
            lowest_freed: start,
        };
        let drafted = change(&mut draft).and_then(|state| draft.finish(state));
        let Draft { next, map, cursor, lowest_freed, .. } = draft;
        // Also when it failed: what lies past the old end of the file may have been written.
        meta.fresh_from = meta.fresh_from.max(cursor);
        meta.refcounts.evict();
        let NextState { header, l1 } = drafted?;
        self.write_header_field(header_fields::size_and_tables(&header))?;
        meta.refcounts = next;
        meta.next_free = lowest_freed.min(start);
        meta.compressed_cursor = None;
        self.metadata_map.replace(map);
        self.adopt(header, l1);
        Ok(())
    }

    /// Brings memory and file to rest: all is committed, and nothing waits for its refcount to fall.
    pub(super) fn settle(&self, meta: &mut MutexGuard<'_, Metadata>) -> Result<()> {
        for _ in 0..MAX_ROUNDS {
            self.commit_locked(meta)?;
            if meta.is_clean() {
                return Ok(());
            }
        }
        Err(Error::unsupported("the image's metadata does not come to rest while it is in use"))
    }

    fn adopt(&self, header: Header, entries: Vec<u64>) {
        let mut l1 = self.l1.write().unwrap_or_else(PoisonError::into_inner);
        *l1 = L1Table { offset: header.l1_table, entries };
        drop(l1);
        self.slices.clear();
        self.forget_decompressed();
        self.size.store(header.size, Ordering::Release);
        *self.lock_header() = header;
    }
}

impl Draft<'_> {
    /// The image that is being changed.
    pub(super) fn image(&self) -> &Qcow2 {
        self.image
    }

    /// The refcount of a cluster in the next state.
    pub(super) fn refcount(&mut self, cluster: HostCluster) -> Result<u64> {
        self.next.get(&*self.image.storage, cluster)
    }

    /// Tells `look` the refcounts of `count` clusters from `first` on in the next state.
    pub(super) fn refcounts(&mut self, first: HostCluster, count: u64, look: impl FnMut(u64)) -> Result<()> {
        self.next.each_of(&*self.image.storage, (first, count), look)
    }

    /// Counts one reference more or fewer to each of `count` clusters from `first` on.
    pub(super) fn change(&mut self, first: HostCluster, count: u64, change: Change) -> Result<()> {
        let geometry = self.image.geometry;
        let end = first.get().saturating_add(count);
        let mut at = first.get();
        while at < end {
            let index = geometry.refcount_table_index(HostCluster(at));
            let block_end = geometry.first_counted(index + 1).get().min(end);
            if !self.next.has_block(index) {
                let host = geometry.host_offset(HostCluster(at)).get();
                return Err(Corruption::Refcount { host, refcount: 0 }.into());
            }
            self.own_block(index)?;
            let run = (HostCluster(at), block_end - at);
            if self.next.change_run(&*self.image.storage, run, change)? {
                self.lowest_freed = self.lowest_freed.min(at);
            }
            at = block_end;
        }
        Ok(())
    }

    /// The same for the clusters of an L2 entry, none of which may hold a table.
    pub(super) fn change_entry(&mut self, entry: &L2Entry, guest: u64, change: Change) -> Result<()> {
        match entry.clusters(&self.image.geometry) {
            Some((first, count)) => self.change_data(first, (count, guest), change),
            None => Ok(()),
        }
    }

    /// The same for `count` clusters of guest data, none of which may hold a table; the first of them belongs to what the
    /// disk has at `guest`.
    pub(super) fn change_data(
        &mut self,
        first: HostCluster,
        (count, guest): (u64, u64),
        change: Change,
    ) -> Result<()> {
        let geometry = self.image.geometry;
        if let Some(cluster) = self.map.first_marked(first.get(), count) {
            let host = geometry.host_offset(HostCluster(cluster)).get();
            let guest = guest.saturating_add(host - geometry.host_offset(first).get());
            return Err(Corruption::OverlapsMetadata { guest, host }.into());
        }
        self.change(first, count, change)
    }

    /// Counts one reference fewer to the clusters of a table, which may go with it.
    pub(super) fn release_table(&mut self, host: HostOffset, bytes: u64) -> Result<()> {
        let geometry = self.image.geometry;
        let first = geometry.host_cluster(host);
        for cluster in first.get()..first.get() + geometry.clusters_for(bytes) {
            self.change(HostCluster(cluster), 1, Change::OneFewer)?;
            if self.refcount(HostCluster(cluster))? == 0 {
                self.map.unmark(cluster);
            }
        }
        Ok(())
    }

    /// Stores a table where nothing is; an empty one is nowhere.
    pub(super) fn store_table(&mut self, bytes: &[u8], action: &'static str) -> Result<HostOffset> {
        if bytes.is_empty() {
            return Ok(HostOffset(0));
        }
        let geometry = self.image.geometry;
        let clusters = geometry.clusters_for(bytes.len() as u64);
        let first = self.take(clusters)?;
        let host = geometry.host_offset(first);
        let whole = (clusters * geometry.cluster_size()) as usize;
        // Most tables fill their clusters.
        let mut padded = Cow::Borrowed(bytes);
        if bytes.len() < whole {
            padded.to_mut().resize(whole, 0);
        }
        self.image.storage.write_all_at(&padded, host.get()).map_err(|error| Error::io(action, error))?;
        self.keep_within_limits()?;
        Ok(host)
    }

    /// Takes a cluster for guest data.
    pub(super) fn take_data(&mut self) -> Result<HostOffset> {
        let first = self.take(1)?;
        self.map.unmark(first.get());
        Ok(self.image.geometry.host_offset(first))
    }

    /// Lets go of refcount blocks when there are many: those of the draft have a place in the file to go to.
    pub(super) fn keep_within_limits(&mut self) -> Result<()> {
        self.present.evict();
        if self.next.is_over_limit() {
            let blocks = self.next.take_dirty_blocks();
            self.write(blocks, "write refcount blocks")?;
            self.next.evict();
        }
        Ok(())
    }

    /// Takes `count` clusters in a row for a table.
    fn take(&mut self, count: u64) -> Result<HostCluster> {
        let first = self.find(count)?;
        for cluster in first.get()..first.get() + count {
            self.count_taken(HostCluster(cluster))?;
        }
        Ok(first)
    }

    /// Finds `count` clusters in a row that are free in the present state and that the draft has not taken.
    fn find(&mut self, count: u64) -> Result<HostCluster> {
        let mut start = HostCluster(self.cursor);
        let mut found = 0;
        while found < count {
            let next = HostCluster(start.get() + found);
            let (first, len, _) = self.present.find_free_run(&*self.image.storage, next, count - found)?;
            if first != next {
                start = first;
                found = 0;
            }
            found += len;
            self.present.evict();
        }
        let geometry = self.image.geometry;
        let end = start.get().saturating_add(count);
        if end.saturating_mul(geometry.cluster_size()) > L2Entry::OFFSET_LIMIT {
            return Err(Error::unsupported("the image file would pass 64 PiB, the limit of the format"));
        }
        if let Some(cluster) = self.image.metadata_map.first_marked(start.get(), count) {
            let host = geometry.host_offset(HostCluster(cluster)).get();
            return Err(Corruption::TableIsFree { host }.into());
        }
        self.cursor = end;
        Ok(start)
    }

    /// Sets the refcount of a cluster that was found to 1, and marks it.
    fn count_taken(&mut self, cluster: HostCluster) -> Result<()> {
        self.own_block(self.image.geometry.refcount_table_index(cluster))?;
        self.next.take_run(&*self.image.storage, cluster, 1)?;
        self.map.mark(cluster.get(), 1);
        Ok(())
    }

    /// Gives the refcount block at `index` its new place, if it does not have it. The place is counted by a block too,
    /// which may have to move for that: until all have.
    fn own_block(&mut self, index: u64) -> Result<()> {
        let mut to_move = vec![index];
        let mut places = Vec::new();
        while let Some(index) = to_move.pop() {
            if !self.moved.insert(index) {
                continue;
            }
            let at = self.find(1)?;
            if let Some(old) = self.next.move_block(&*self.image.storage, index, at)? {
                self.replaced.push(self.image.geometry.host_cluster(old));
            }
            places.push(at);
            to_move.push(self.image.geometry.refcount_table_index(at));
        }
        for at in places {
            self.next.take_run(&*self.image.storage, at, 1)?;
            self.map.mark(at.get(), 1);
        }
        Ok(())
    }

    /// Frees what was replaced, stores the refcounts, and brings all of the draft into the file.
    fn finish(&mut self, mut state: NextState) -> Result<NextState> {
        let geometry = self.image.geometry;
        let (old_table, old_clusters) = self.next.table_location();
        self.release_table(old_table, old_clusters * geometry.cluster_size())?;
        self.release_replaced()?;
        let (offset, clusters) = self.place_refcount_table(old_clusters)?;
        self.next.move_table(offset, clusters);
        let dirty = self.next.take_dirty();
        self.write(dirty.blocks, "write refcount blocks")?;
        self.write(dirty.table, "write the refcount table")?;
        self.image.sync()?;
        state.header.refcount_table = offset;
        state.header.refcount_table_clusters = clusters as u32;
        Ok(state)
    }

    /// Finds a place for the refcount table. Taking it can take a block more, which needs room in the table.
    fn place_refcount_table(&mut self, old_clusters: u64) -> Result<(HostOffset, u64)> {
        let geometry = self.image.geometry;
        let mut clusters = old_clusters.max(1);
        loop {
            if let Some(needed) = self.next.table_needs_room() {
                let generous = (needed + needed / 2).min(MAX_TABLE_BYTES / 8).max(needed);
                clusters = clusters.max(geometry.clusters_for(generous * 8));
            }
            let first = self.take(clusters)?;
            self.release_replaced()?;
            let offset = geometry.host_offset(first);
            if self.next.entries() * 8 <= clusters * geometry.cluster_size() {
                return Ok((offset, clusters));
            }
            self.release_table(offset, clusters * geometry.cluster_size())?;
        }
    }

    /// Frees the old places of refcount blocks, which can make others move.
    fn release_replaced(&mut self) -> Result<()> {
        while let Some(cluster) = self.replaced.pop() {
            self.release_table(self.image.geometry.host_offset(cluster), 1)?;
        }
        Ok(())
    }

    fn write(&self, pieces: Vec<(HostOffset, Vec<u8>)>, action: &'static str) -> Result<()> {
        for (offset, bytes) in pieces {
            self.image
                .storage
                .write_all_at(&bytes, offset.get())
                .map_err(|error| Error::io(action, error))?;
        }
        Ok(())
    }
}
