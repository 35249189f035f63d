//! Making the disk smaller.
//!
//! ```text
//!   1. discard      what lies past the new end reads as zeroes, durably, also in the last cluster that stays
//!   2. size         one write of the header (W5)
//!   3. drop tables  L1 entries past the end go, then (W3) what they led to is free
//!   4. cut          refcount blocks at the end that count nothing go, and the file ends after its last cluster
//! ```
//!
//! A crash after 1 leaves the old size and zeroes in the part that was to go; after 2 the new size and, past the end of
//! the disk, tables that say "zero" or nothing. In no case does older content come to light when the disk grows again.

use std::io;
use std::sync::PoisonError;

use super::Qcow2;
use super::metadata::{Freed, Metadata, Space};
use super::sync::MutexGuard;
use super::sync::atomic::Ordering;
use super::zero::Wish;
use crate::corruption::Corruption;
use crate::error::{Error, Result};
use crate::format::qcow2::{GuestCluster, HostCluster, L2Entry};
use crate::range::ByteRange;

/// References that may wait for a commit while tables are dropped.
const MAX_WAITING: usize = 1 << 16;

impl Qcow2 {
    /// Makes the disk `new_size` bytes long, which is less than `old_size`.
    pub(super) fn shrink(&self, old_size: u64, new_size: u64) -> Result<()> {
        let coverage = self.geometry.l2_coverage();
        let below = self.backing.as_ref().map_or(0, |backing| backing.size());
        // Tables of which nothing below would show go as they are; what is in the others is discarded first.
        let kept_tables = self.geometry.l1_entries_for(new_size);
        let first_silent = self.geometry.l1_entries_for(below).max(kept_tables);
        self.drop_tables(first_silent)?;
        let start = self.end_of_last_cluster(new_size);
        self.zero_tail(ByteRange::between(new_size, start.min(old_size)))?;
        let end = self.end_of_last_cluster(old_size).min(first_silent.saturating_mul(coverage));
        self.remap(ByteRange::between(start, end.max(start)), Wish::Discard)?;
        self.commit()?;
        self.write_size(new_size)?;
        self.drop_tables(kept_tables)?;
        let table_end = kept_tables.saturating_mul(coverage);
        self.remap(ByteRange::between(start.min(table_end), table_end), Wish::Forget)?;
        self.cut_file()
    }

    /// Zeroes what goes of the last cluster that stays: QEMU does not when it grows the disk, and would show it.
    fn zero_tail(&self, tail: ByteRange) -> Result<()> {
        match self.write_zero_bytes(tail) {
            // What is shared or compressed takes space to change, of which a full disk may have none, and the disk is to get
            // smaller; growing it here zeroes the tail, too.
            Err(error) if error.io_kind() == Some(io::ErrorKind::StorageFull) => Ok(()),
            done => done,
        }
    }

    /// Removes the L2 tables from this L1 index on, with all that they refer to.
    pub(super) fn drop_tables(&self, from: u64) -> Result<()> {
        let _one_at_a_time = self.lock_commit();
        let _nothing_in_flight = self.epochs.close();
        let mut meta = self.lock_meta();
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        let tables: Vec<(usize, u64)> = {
            let l1 = self.read_l1();
            l1.entries.iter().copied().enumerate().skip(from).filter(|&(_, raw)| raw != 0).collect()
        };
        if tables.is_empty() {
            return Ok(());
        }
        // From here on the file has all that memory has: tables are read from there.
        self.settle(&mut meta)?;
        // Before the first table goes: should the next fail to be read, nobody may find the entries of one that is gone and
        // free what they refer to once more.
        self.slices.clear();
        for (index, raw) in tables {
            self.drop_table(&mut meta, index, raw)?;
            if meta.unreferenced.len() > MAX_WAITING {
                self.settle(&mut meta)?;
            }
        }
        self.settle(&mut meta)
    }

    fn drop_table(&self, meta: &mut Metadata, index: usize, raw: u64) -> Result<()> {
        let geometry = self.geometry;
        let mut freed = Vec::new();
        if let Some((host, entries)) = self.table_of(raw)? {
            let first = index as u64 * geometry.l2_entries();
            for (nth, raw) in entries.into_iter().enumerate().filter(|(_, raw)| raw.descriptor != 0) {
                let entry = self.decode(raw, GuestCluster(first + nth as u64))?;
                self.check_freeable(&entry, GuestCluster(first + nth as u64))?;
                freed.extend(self.freed_by(&entry, Space::Release));
            }
            freed.push(Freed::one(geometry.host_cluster(host), Space::Release));
        }
        let mut l1 = self.l1.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = l1.entries.get_mut(index) {
            *slot = 0;
            meta.dirty_l1.insert(index);
            meta.unreferenced.extend(freed);
        }
        Ok(())
    }

    /// Refuses to free a table for an entry that points at one.
    fn check_freeable(&self, entry: &L2Entry, cluster: GuestCluster) -> Result<()> {
        let Some(freed) = self.freed_by(entry, Space::Keep) else { return Ok(()) };
        let count = freed.clusters.end - freed.clusters.start;
        match self.metadata_map.first_marked(freed.clusters.start, count) {
            None => Ok(()),
            Some(marked) => {
                let guest = self.geometry.guest_offset(cluster).get();
                let host = self.geometry.host_offset(HostCluster(marked)).get();
                Err(Corruption::OverlapsMetadata { guest, host }.into())
            }
        }
    }

    /// Ends the file after its last cluster in use.
    fn cut_file(&self) -> Result<()> {
        let _one_at_a_time = self.lock_commit();
        let _nothing_in_flight = self.epochs.close();
        let mut meta = self.lock_meta();
        self.settle(&mut meta)?;
        self.drop_empty_blocks(&mut meta)?;
        let end = meta.refcounts.end(&*self.storage)?;
        meta.refcounts.evict();
        let io = |error| Error::io("shorten the file", error);
        let len = self.geometry.host_offset(HostCluster(end)).get();
        if len >= self.storage.len().map_err(io)? {
            return Ok(());
        }
        // Nothing refers to what lies there: where the host cannot cut it off, it costs space alone.
        if self.storage.set_len(len).is_ok() {
            meta.fresh_from = end;
            self.known_len.store(0, Ordering::Relaxed);
        }
        self.sync()
    }

    fn drop_empty_blocks(&self, meta: &mut MutexGuard<'_, Metadata>) -> Result<()> {
        let geometry = self.geometry;
        let dropped = meta.refcounts.drop_empty_tail(&*self.storage)?;
        if dropped.is_empty() {
            return Ok(());
        }
        for cluster in dropped {
            if meta.refcounts.get(&*self.storage, cluster)? > 0 {
                meta.unreferenced.push(Freed::one(cluster, Space::Release));
            } else {
                // It counted itself, and went with its count.
                self.metadata_map.unmark(cluster.get());
            }
            meta.next_free = meta.next_free.min(cluster.get());
        }
        debug_assert!(meta.refcounts.entries() <= u64::MAX / geometry.cluster_size());
        self.settle(meta)
    }
}
