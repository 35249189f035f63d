//! The commit: how what memory has gets into the file so that a crash at any point loses nothing (rules W1-W5, W9).
//!
//! ```text
//!                                                        nothing in the file refers to these yet,
//!   1. groundwork          refcount blocks, new L2       or they only make refcounts higher or
//!                          tables, a moved refcount      lower than needed by nobody
//!                          table
//!      -- sync --          guest data written before is durable with it (W1), refcounts too (W2), tables too (W4)
//!   2. refcount pointers   refcount table entries, or the header's pointer to a moved table (W4, W5)
//!      -- sync --          every cluster that step 3 refers to is now counted (W2)
//!   3. references          L2 entries in tables that the file knows, L1 entries
//!      -- sync --          references that went are gone (W3), references that came are there (W9)
//!   4. in memory           refcounts of what lost its reference fall, and the clusters may be used again once
//!                          no reader is left (W3)
//! ```
//!
//! A [`Commit`] is a value: planned under the metadata lock, carried out without it. One commit runs at a time.
//! Refcounts that fall in step 4 reach the file with the next commit; until then the file leaks at most.

use std::collections::BTreeMap;

use super::Qcow2;
use super::metadata::{Freed, Metadata, Space};
use super::refcounts::MAX_TABLE_BYTES;
use super::sync::{Arc, MutexGuard};
use super::table_cache::Slice;
use crate::error::{Error, Result};
use crate::format::qcow2::{HostCluster, HostOffset, encode_words, header_fields};
use crate::range::ByteRange;
use crate::storage::StorageExt;

/// Sectors of the L1 table are written whole.
const SECTOR: usize = 512;

/// Entries waiting for a commit after which one is due, so that the lists stay short.
const MAX_UNREFERENCED: usize = 1 << 16;

/// Bytes that are to stand at an offset of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) offset: HostOffset,
    pub(super) bytes: Vec<u8>,
    /// What is being written, as the `action` of an error.
    pub(super) action: &'static str,
}

/// Everything that one commit writes, in the order in which it does.
#[derive(Debug, Default)]
pub(super) struct Commit {
    groundwork: Vec<Piece>,
    refcount_pointers: Vec<Piece>,
    references: Vec<Piece>,
    unreferenced: Vec<Freed>,
    /// Held so that the cache does not drop, and load again from the file, what is only on its way there.
    slices: BTreeMap<u64, Arc<Slice>>,
}

impl Qcow2 {
    /// Brings the file up to everything that was acknowledged before the call, durably (W9).
    pub(super) fn commit(&self) -> Result<()> {
        let _one_at_a_time = self.lock_commit();
        self.failure.check()?;
        let plan = {
            let mut meta = self.lock_meta();
            self.plan_commit(&mut meta)
        };
        let carried_out = plan.and_then(|plan| match self.carry_out(&plan) {
            Ok(()) => Ok(plan),
            Err(error) => {
                self.keep_in_memory(plan);
                Err(error)
            }
        });
        let plan = carried_out.map_err(|error| self.failure.record(error))?;
        let mut meta = self.lock_meta();
        self.finish_commit(&mut meta, plan).map_err(|error| self.failure.record(error))
    }

    /// The same for a caller that holds both locks, for changes that nothing else may come between.
    pub(super) fn commit_locked(&self, meta: &mut MutexGuard<'_, Metadata>) -> Result<()> {
        let run = |meta: &mut Metadata| {
            let plan = self.plan_commit(meta)?;
            self.carry_out(&plan)?;
            self.finish_commit(meta, plan)
        };
        run(meta).map_err(|error| self.failure.record(error))
    }

    /// A commit, if enough has gathered that memory would otherwise grow.
    pub(super) fn commit_if_due(&self) -> Result<()> {
        let due = {
            let meta = self.lock_meta();
            meta.dirty_slices.len() > self.slices.capacity() / 2
                || meta.unreferenced.len() > MAX_UNREFERENCED
                || meta.refcounts.is_over_limit()
        };
        if due { self.commit() } else { Ok(()) }
    }

    fn plan_commit(&self, meta: &mut Metadata) -> Result<Commit> {
        let mut commit = Commit::default();
        let table_moved = self.place_refcount_table(meta, &mut commit)?;
        let dirty = meta.refcounts.take_dirty();
        let piece = |action| move |(offset, bytes)| Piece { offset, bytes, action };
        commit.groundwork.extend(dirty.blocks.into_iter().map(piece("write refcount blocks")));
        // W4: a table that has moved is written whole before the header points at it; one that has not is pointers.
        let table = if table_moved { &mut commit.groundwork } else { &mut commit.refcount_pointers };
        table.extend(dirty.table.into_iter().map(piece("write the refcount table")));
        self.plan_slices(meta, &mut commit);
        self.plan_l1(meta, &mut commit);
        commit.unreferenced = std::mem::take(&mut meta.unreferenced);
        Ok(commit)
    }

    /// Finds a place for a refcount table that has outgrown its own. Whether it did.
    fn place_refcount_table(&self, meta: &mut Metadata, commit: &mut Commit) -> Result<bool> {
        let mut moved = false;
        // Finding the place can take blocks of its own, which need room in the table: so until it fits.
        while let Some(needed) = meta.refcounts.table_needs_room() {
            let generous = (needed + needed / 2).min(MAX_TABLE_BYTES / 8);
            let clusters = self.geometry.clusters_for(generous.max(needed) * 8);
            let first = meta.allocator(self).take_contiguous(clusters)?;
            let offset = self.geometry.host_offset(first);
            self.metadata_map.mark(first.get(), clusters);
            let (old, old_clusters) = meta.refcounts.move_table(offset, clusters);
            let old_first = self.geometry.host_cluster(old).get();
            meta.unreferenced
                .push(Freed { clusters: old_first..old_first + old_clusters, space: Space::Keep });
            moved = true;
        }
        if moved {
            let (offset, clusters) = meta.refcounts.table_location();
            let mut header = self.lock_header();
            header.refcount_table = offset;
            header.refcount_table_clusters = clusters as u32;
            let (at, bytes) = header_fields::refcount_table(offset, clusters as u32);
            let offset = HostOffset(at);
            let action = "write the header";
            commit.refcount_pointers.push(Piece { offset, bytes, action });
        }
        Ok(moved)
    }

    fn plan_slices(&self, meta: &mut Metadata, commit: &mut Commit) {
        commit.slices = std::mem::take(&mut meta.dirty_slices);
        let new_tables = std::mem::take(&mut meta.new_tables);
        for (&key, slice) in &commit.slices {
            let (l1_index, offset_in_table) = self.slice_place(key);
            let Some(table) = self.l1_entry(l1_index).table else { continue };
            let offset = HostOffset(table.host.get() + offset_in_table);
            let piece = Piece { offset, bytes: slice.to_bytes(), action: "write an L2 table" };
            // W4: no pointer in the file names a new table before step 3.
            if new_tables.contains(&(l1_index as usize)) {
                commit.groundwork.push(piece);
            } else {
                commit.references.push(piece);
            }
        }
    }

    fn plan_l1(&self, meta: &mut Metadata, commit: &mut Commit) {
        let l1 = self.read_l1();
        let mut sectors: Vec<usize> =
            std::mem::take(&mut meta.dirty_l1).into_iter().map(|index| index * 8 / SECTOR).collect();
        sectors.dedup();
        for sector in sectors {
            let first = sector * SECTOR / 8;
            let entries = &l1.entries[first..(first + SECTOR / 8).min(l1.entries.len())];
            let bytes = encode_words(entries.iter().copied());
            let offset = HostOffset(l1.offset.get() + (sector * SECTOR) as u64);
            commit.references.push(Piece { offset, bytes, action: "write the L1 table" });
        }
    }

    fn carry_out(&self, commit: &Commit) -> Result<()> {
        self.write_pieces(&commit.groundwork)?;
        self.data.sync_external()?;
        self.sync()?;
        for step in [&commit.refcount_pointers, &commit.references] {
            if !step.is_empty() {
                self.write_pieces(step)?;
                self.sync()?;
            }
        }
        Ok(())
    }

    fn finish_commit(&self, meta: &mut Metadata, commit: Commit) -> Result<()> {
        let epoch = self.epochs.now();
        meta.retired.extend(commit.unreferenced.into_iter().map(|freed| (epoch, freed)));
        self.reap(meta)?;
        meta.refcounts.evict();
        Ok(())
    }

    /// After a failed commit memory is the only place where acknowledged mappings are: they stay there to be read.
    fn keep_in_memory(&self, commit: Commit) {
        let mut meta = self.lock_meta();
        for (key, slice) in commit.slices {
            meta.dirty_slices.entry(key).or_insert(slice);
        }
    }

    /// Step 4: lets fall the refcounts of clusters that nobody can be reading any more.
    pub(super) fn reap(&self, meta: &mut Metadata) -> Result<()> {
        if meta.retired.is_empty() {
            return Ok(());
        }
        self.epochs.try_advance();
        self.epochs.try_advance();
        if meta.retired.front().is_some_and(|(epoch, _)| self.epochs.has_passed(*epoch)) {
            // Compressed data may be among it, which readers kept for as long as they could find it.
            self.forget_decompressed();
        }
        while let Some((epoch, _)) = meta.retired.front() {
            if !self.epochs.has_passed(*epoch) {
                break;
            }
            let Some((_, freed)) = meta.retired.pop_front() else { break };
            self.drop_references(meta, &freed)?;
        }
        Ok(())
    }

    fn drop_references(&self, meta: &mut Metadata, freed: &Freed) -> Result<()> {
        let mut released: Option<ByteRange> = None;
        for cluster in freed.clusters.clone() {
            meta.allocator(self).release_run(HostCluster(cluster), 1)?;
            if freed.space == Space::Keep || meta.refcounts.get(&*self.storage, HostCluster(cluster))? > 0 {
                continue;
            }
            let start = self.geometry.host_offset(HostCluster(cluster)).get();
            let range = ByteRange::between(start, start + self.geometry.cluster_size());
            released = match released {
                Some(before) if before.end() == range.start() => {
                    Some(ByteRange::between(before.start(), range.end()))
                }
                Some(before) => {
                    self.give_back(before);
                    Some(range)
                }
                None => Some(range),
            };
        }
        if let Some(range) = released {
            self.give_back(range);
        }
        Ok(())
    }

    /// Gives the space of free clusters back to the host. Nothing refers to them, so that a failure costs only space.
    fn give_back(&self, range: ByteRange) {
        let _unsupported_or_failed = self.storage.punch_hole(range);
    }

    fn write_pieces(&self, pieces: &[Piece]) -> Result<()> {
        for piece in pieces {
            self.storage
                .write_all_at(&piece.bytes, piece.offset.get())
                .map_err(|error| Error::io(piece.action, error))?;
        }
        Ok(())
    }

    pub(super) fn sync(&self) -> Result<()> {
        self.storage.sync().map_err(|error| Error::io("sync the image to disk", error))
    }
}
