//! The flag "in use" in the file, and saving bitmaps at the close.
//!
//! ```text
//!   1. clusters of bits, tables of new length, a new directory          nobody trusts a bitmap in use
//!      -- commit --     they are durable, and counted (W2, W4)
//!   2. tables in their place                                            entries name counted clusters
//!      -- sync --
//!   3. the flags in the directory, each within a sector; or, where bitmaps came, went or got a table of another
//!      length, the header, which names the new directory (W5)
//!      -- sync --
//!   4. what nothing names any more is freed (W3)
//! ```
//!
//! A crash before step 3 leaves bitmaps in use; within it, some in use and some saved whole.

use super::{Bitmap, Standing, State};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::format::qcow2::{
    Autoclear, BitmapEntry, BitmapTableEntry, BitmapsExtension, Extension, HostCluster, HostOffset,
    TABLE_ENTRY_SIZE,
};
use crate::qcow2::Qcow2;
use crate::qcow2::metadata::{Freed, Metadata};
use crate::qcow2::sync::MutexGuard;
use crate::qcow2::sync::atomic::Ordering;
use crate::storage::StorageExt;

/// What has been stored and is not in force yet.
#[derive(Debug, Default)]
struct Draft {
    bitmaps: Vec<DraftBitmap>,
    /// Clusters that were taken, to be given back should the rest fail: first and number.
    taken: Vec<(HostCluster, u64)>,
    freed: Vec<Freed>,
    /// Where the new directory is, its size, and where in it the flags of each bitmap are.
    directory: Option<(HostOffset, u64)>,
}

/// A bitmap as it is to stand in the file.
#[derive(Debug)]
struct DraftBitmap {
    index: usize,
    table_at: HostOffset,
    table: Vec<BitmapTableEntry>,
    /// The table stands where the old one stood, and is written in step 2.
    in_place: bool,
}

impl Qcow2 {
    /// Writes "in use" for the bitmaps that `wanted` picks. Durable when it returns. Callers hold the commit lock.
    ///
    /// One that was in use at the opening is written again: where the flag was read from the host's cache after a sync
    /// that failed, the disk may not have it.
    pub(super) fn mark_in_use(&self, state: &mut State, wanted: impl Fn(&Bitmap) -> bool) -> Result<()> {
        let unmarked = |bitmap: &Bitmap| wanted(bitmap) && !bitmap.marked && bitmap.flags_at.is_some();
        let picked: Vec<usize> =
            (0..state.list.len()).filter(|&index| unmarked(&state.list[index])).collect();
        if picked.is_empty() {
            return Ok(());
        }
        let written = picked.iter().try_for_each(|&index| {
            let bitmap = &state.list[index];
            self.write_flags(bitmap, bitmap.entry.flags | BitmapEntry::IN_USE)
        });
        written.and_then(|()| self.sync()).map_err(|error| self.failure.record(error))?;
        for index in picked {
            let bitmap = &mut state.list[index];
            match bitmap.standing {
                Standing::Usable => bitmap.marked = true,
                // Nobody keeps it up to date: so it stays.
                _ => bitmap.entry.flags |= BitmapEntry::IN_USE,
            }
        }
        Ok(())
    }

    /// The same for every bitmap that would have to record the first change of the disk (W7).
    pub(in crate::qcow2) fn mark_recording_in_use(&self) -> Result<()> {
        let mut state = self.lock_bitmaps();
        let records = |bitmap: &Bitmap| {
            bitmap.entry.flags & BitmapEntry::AUTO != 0 || bitmap.entry.kind != BitmapEntry::DIRTY_TRACKING
        };
        self.mark_in_use(&mut state, records)
    }

    /// One write within one sector.
    fn write_flags(&self, bitmap: &Bitmap, flags: u32) -> Result<()> {
        let Some(at) = bitmap.flags_at else { return Ok(()) };
        self.storage
            .write_all_at(&flags.to_be_bytes(), at)
            .map_err(|error| Error::io("write the bitmap directory", error))
    }

    /// Saves every bitmap that is in use here. Nothing else runs.
    pub(in crate::qcow2) fn save_bitmaps(&self) -> Result<()> {
        let _one_at_a_time = self.lock_commit();
        let mut state = self.lock_bitmaps();
        if !state.relisted && !state.list.iter().any(|bitmap| bitmap.marked) {
            return Ok(());
        }
        self.failure.check()?;
        let mut meta = self.lock_meta();
        let mut draft = Draft::default();
        if let Err(error) = self.draft(&state, &mut meta, &mut draft) {
            for (first, count) in draft.taken {
                // Failing here leaks the clusters, which harms nobody.
                let _leaked = meta.allocator(self).release_run(first, count);
            }
            return Err(error);
        }
        self.commit_locked(&mut meta)?;
        self.put_in_force(&mut state, &draft).map_err(|error| self.failure.record(error))?;
        self.take_over(&mut state, &mut meta, draft);
        Ok(())
    }

    /// Step 1.
    fn draft(&self, state: &State, meta: &mut MutexGuard<'_, Metadata>, draft: &mut Draft) -> Result<()> {
        let mut relist = state.relisted;
        for (index, bitmap) in state.list.iter().enumerate().filter(|(_, bitmap)| bitmap.marked) {
            let stored = self.draft_bitmap(bitmap, meta, draft)?;
            relist |= !stored.in_place;
            draft.bitmaps.push(DraftBitmap { index, ..stored });
        }
        if relist && !state.list.is_empty() {
            let mut entries: Vec<BitmapEntry> =
                state.list.iter().map(|bitmap| bitmap.entry.clone()).collect();
            for stored in &draft.bitmaps {
                let entry = &mut entries[stored.index];
                entry.table = stored.table_at;
                entry.table_entries = stored.table.len() as u32;
            }
            let bytes = BitmapEntry::encode_directory(&entries)
                .map_err(|error| Error::unsupported(error.to_string()))?;
            let at = self.store_table(meta, draft, &bytes)?;
            draft.directory = Some((at, bytes.len() as u64));
        }
        Ok(())
    }

    /// Stores the bits of a bitmap, and its table where that cannot stay in its place.
    fn draft_bitmap(
        &self,
        bitmap: &Bitmap,
        meta: &mut MutexGuard<'_, Metadata>,
        draft: &mut Draft,
    ) -> Result<DraftBitmap> {
        let bytes = BitmapEntry::bytes_for(self.size(), bitmap.entry.granularity_bits);
        let count = self.geometry.clusters_for(bytes).max(1);
        let old = bitmap.table.as_deref().unwrap_or_default();
        let mut table = Vec::with_capacity(count as usize);
        let mut cluster = vec![0; self.cluster_size() as usize];
        for index in 0..count {
            let before = old.get(index as usize).copied().unwrap_or(BitmapTableEntry::Zeroes);
            let after = if self.is_unchanged(bitmap, index) {
                before
            } else {
                self.draft_cluster((bitmap, index), before, &mut cluster, (meta, draft))?
            };
            if after != before {
                draft.freed.extend(self.freed_cluster(before));
            }
            table.push(after);
        }
        draft.freed.extend(old.iter().skip(count as usize).filter_map(|beyond| self.freed_cluster(*beyond)));
        let old_place = (bitmap.entry.table, old.len() as u64 * TABLE_ENTRY_SIZE);
        let in_place = old.len() == table.len() && !self.is_shared(meta, old_place)?;
        let table_at = if in_place {
            bitmap.entry.table
        } else {
            if !old.is_empty() {
                draft.freed.push(self.freed_table(old_place.0, old_place.1));
            }
            self.store_table(meta, draft, &table_bytes(&table))?
        };
        Ok(DraftBitmap { index: 0, table_at, table, in_place })
    }

    /// Whether the stored bits of a cluster are all that there is to say.
    fn is_unchanged(&self, bitmap: &Bitmap, index: u64) -> bool {
        let bytes = index * self.cluster_size()..(index + 1) * self.cluster_size();
        let all_count = bytes.end * 8 <= bitmap.stored_bits;
        let same_size = !bitmap.resized && bitmap.stored_bits == bitmap.bits_for(self.size());
        !bitmap.recorded.touches(bytes) && (all_count || same_size)
    }

    /// Whether somebody else has a part of this place, too: a bitmap that two entries of the directory name, a guest's data.
    /// No image that anybody makes is so, but its refcounts can say so and be right. What is shared is not changed.
    fn is_shared(&self, meta: &mut Metadata, (at, bytes): (HostOffset, u64)) -> Result<bool> {
        let first = self.geometry.host_cluster(at).get();
        for cluster in first..first + self.geometry.clusters_for(bytes) {
            if meta.refcounts.get(&*self.storage, HostCluster(cluster))? > 1 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Stores a cluster of bits: in its place where it has one, for nobody trusts a bitmap in use.
    fn draft_cluster(
        &self,
        (bitmap, index): (&Bitmap, u64),
        before: BitmapTableEntry,
        bytes: &mut [u8],
        (meta, draft): (&mut MutexGuard<'_, Metadata>, &mut Draft),
    ) -> Result<BitmapTableEntry> {
        self.read_bitmap_cluster(bitmap, index, bytes)?;
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(BitmapTableEntry::Zeroes);
        }
        if let BitmapTableEntry::Cluster(at) = before
            && !self.is_shared(meta, (at, self.cluster_size()))?
        {
            self.write_bitmap_bytes(bytes, at)?;
            return Ok(before);
        }
        self.store_table(meta, draft, bytes).map(BitmapTableEntry::Cluster)
    }

    /// Writes `bytes` to clusters of their own, zeroes behind them.
    fn store_table(
        &self,
        meta: &mut MutexGuard<'_, Metadata>,
        draft: &mut Draft,
        bytes: &[u8],
    ) -> Result<HostOffset> {
        let clusters = self.geometry.clusters_for(bytes.len() as u64).max(1);
        let first = meta.allocator(self).take_contiguous(clusters)?;
        draft.taken.push((first, clusters));
        self.metadata_map.mark(first.get(), clusters);
        let at = self.geometry.host_offset(first);
        let mut padded = bytes.to_vec();
        padded.resize((clusters * self.cluster_size()) as usize, 0);
        self.write_bitmap_bytes(&padded, at)?;
        Ok(at)
    }

    fn write_bitmap_bytes(&self, bytes: &[u8], at: HostOffset) -> Result<()> {
        self.storage.write_all_at(bytes, at.get()).map_err(|error| Error::io("write a bitmap", error))
    }

    /// Steps 2 and 3.
    fn put_in_force(&self, state: &mut State, draft: &Draft) -> Result<()> {
        let mut in_place = draft.bitmaps.iter().filter(|stored| stored.in_place).peekable();
        if in_place.peek().is_some() {
            for stored in in_place {
                self.write_bitmap_bytes(&table_bytes(&stored.table), stored.table_at)?;
            }
            self.sync()?;
        }
        if draft.directory.is_some() || state.list.is_empty() {
            return self.name_directory(draft.directory, state.list.len() as u32);
        }
        for stored in &draft.bitmaps {
            let bitmap = &state.list[stored.index];
            self.write_flags(bitmap, bitmap.entry.flags)?;
        }
        self.sync()
    }

    /// Makes the header name another directory, or none.
    fn name_directory(&self, directory: Option<(HostOffset, u64)>, count: u32) -> Result<()> {
        let mut header = self.header();
        let place = header.extensions.iter().position(|extension| extension.kind == Extension::BITMAPS);
        match (directory, place) {
            (Some((directory, directory_size)), place) => {
                let extension = BitmapsExtension { count, directory_size, directory }.to_extension();
                header.autoclear = header.autoclear.with(Autoclear::BITMAPS);
                match place {
                    Some(place) => header.extensions[place] = extension,
                    None => header.extensions.push(extension),
                }
            }
            (None, place) => {
                header.autoclear = header.autoclear.without(Autoclear::BITMAPS);
                if let Some(place) = place {
                    header.extensions.remove(place);
                }
            }
        }
        self.rewrite_header(header)
    }

    /// Step 4, and memory says what the file says.
    fn take_over(&self, state: &mut State, meta: &mut MutexGuard<'_, Metadata>, draft: Draft) {
        meta.unreferenced.extend(draft.freed);
        meta.unreferenced.append(&mut state.removed);
        let size = self.size();
        let State { list, budget, .. } = state;
        for stored in draft.bitmaps {
            let bitmap = &mut list[stored.index];
            bitmap.entry.table = stored.table_at;
            bitmap.entry.table_entries = stored.table.len() as u32;
            bitmap.table = Some(stored.table);
            bitmap.recorded.clear(budget);
            bitmap.stored_bits = bitmap.bits_for(size);
            bitmap.resized = false;
            bitmap.marked = false;
        }
        if draft.directory.is_some() || state.list.is_empty() {
            if let Some((offset, size)) = state.directory {
                meta.unreferenced.push(self.freed_table(offset, size));
            }
            state.directory = draft.directory;
            let mut at = draft.directory.map_or(0, |(offset, _)| offset.get()) + BitmapEntry::FLAGS_OFFSET;
            for bitmap in &mut state.list {
                bitmap.flags_at = Some(at);
                at += bitmap.entry.stored_len();
            }
        }
        state.relisted = false;
        // The next change marks them again.
        self.prepared_for_change.store(false, Ordering::Release);
    }
}

fn table_bytes(table: &[BitmapTableEntry]) -> Vec<u8> {
    table.iter().flat_map(|entry| entry.encode().to_be_bytes()).collect()
}
