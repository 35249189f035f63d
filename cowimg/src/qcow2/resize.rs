//! Changing the size of the disk: what is refused, and growing. Shrinking is in `shrink`.
//!
//! The order is that of any new table: the L1 table that the new size needs, a new one or more of its last cluster, is
//! whole and durable before the header names it (W4), and the header changes in one write (W5). What the backing disk
//! has in the new part must not show through, so that part is zeroed before the new size is written; and what the tables
//! have past the old end (the state of a machine, or what a resize left that a crash met) must not either, so that goes
//! first.

use std::sync::PoisonError;

use super::Qcow2;
use super::metadata::{Freed, Metadata, Space};
use super::sync::atomic::Ordering;
use super::zero::Wish;
use crate::disk::{Disk, ResizeOptions, ZeroMode};
use crate::error::{Error, Result};
use crate::format::qcow2::layout::Preallocation;
use crate::format::qcow2::{Header, HostOffset, Version, encode_words, header_fields};
use crate::progress::Control;
use crate::range::ByteRange;
use crate::storage::StorageExt;

/// QEMU's and our limit on an L1 table: 32 MiB.
pub(super) const MAX_L1_BYTES: u64 = 32 << 20;

impl Qcow2 {
    /// Changes the size of the disk to `new_size` bytes, a multiple of 512. What is new reads as zeroes.
    pub(crate) fn resize(&self, new_size: u64, options: ResizeOptions, control: &Control<'_>) -> Result<()> {
        let _no_other = self.lock_all_changes();
        let old_size = self.size();
        self.check_resize((old_size, new_size), options, self.version)?;
        self.begin_bitmap_resize()?;
        self.begin_change()?;
        let resized = if new_size < old_size {
            self.shrink(old_size, new_size)
        } else {
            self.grow((old_size, new_size), options.preallocation, control)
        };
        // Whatever failed: the bitmaps are those of the disk as it is.
        self.resize_bitmaps(self.size());
        let resized = resized.and_then(|()| self.data.resize_external(new_size));
        if resized.is_err() && new_size < self.size() {
            drop(self.recorded(ByteRange::between(new_size, self.size())));
        }
        resized
    }

    /// Refuses a new size, for the image as it is or as it will be in another version.
    pub(super) fn check_resize(
        &self,
        (old_size, new_size): (u64, u64),
        options: ResizeOptions,
        version: Version,
    ) -> Result<()> {
        self.check_writable()?;
        options.check(old_size, new_size)?;
        if !new_size.is_multiple_of(512) {
            return Err(Error::invalid(format!("the size {new_size} is not a multiple of 512 bytes")));
        }
        if version == Version::V2 && self.lock_header().snapshot_count > 0 {
            return Err(Error::unsupported(
                "a version 2 image with snapshots cannot be resized: its snapshots do not record their own size",
            ));
        }
        if new_size > ByteRange::MAX_END || self.geometry.l1_entries_for(new_size) * 8 > MAX_L1_BYTES {
            return Err(Error::invalid(format!(
                "the size {new_size} is too large for clusters of {} bytes",
                self.cluster_size()
            )));
        }
        Ok(())
    }

    fn grow(
        &self,
        (old_size, new_size): (u64, u64),
        preallocation: Preallocation,
        control: &Control<'_>,
    ) -> Result<()> {
        self.forget_beyond(old_size, new_size)?;
        self.grow_l1_table(new_size)?;
        let below = self.backing.as_ref().map_or(0, |backing| backing.size());
        let cluster_end = self.end_of_last_cluster(old_size).min(new_size);
        // While this runs the size is the old one for everybody else; the new part is nobody's yet.
        self.write_zero_bytes(ByteRange::between(old_size, cluster_end))?;
        if preallocation == Preallocation::Off {
            self.zero_beyond(cluster_end, new_size, below)?;
        } else {
            let new = ByteRange::between(cluster_end, new_size);
            self.preallocate(new, preallocation, control).inspect_err(|_| {
                // Space that was taken on the way is of no use to anybody; failing to free it costs no more than that.
                let _taken_all_the_same = self.forget_beyond(old_size, new_size);
            })?;
        }
        self.commit()?;
        self.write_size(new_size)
    }

    /// Makes `new_size` the size of the disk, durably.
    pub(super) fn write_size(&self, new_size: u64) -> Result<()> {
        let _one_at_a_time = self.lock_commit();
        let mut header = self.lock_header();
        let resized = Header { size: new_size, ..header.clone() };
        self.write_header_field(header_fields::size_and_l1_table(&resized))?;
        *header = resized;
        self.size.store(new_size, Ordering::Release);
        Ok(())
    }

    /// The end of the last cluster of a disk of `size` bytes.
    pub(super) fn end_of_last_cluster(&self, size: u64) -> u64 {
        self.geometry.clusters_for(size).saturating_mul(self.cluster_size())
    }

    /// Drops what the tables have past the end of a disk of `old_size` bytes, as far as a disk of `new_size` would show it.
    /// The state of a machine is kept where its place in the tables stays beyond the end.
    fn forget_beyond(&self, old_size: u64, new_size: u64) -> Result<()> {
        let (old_tables, new_tables) =
            (self.geometry.l1_entries_for(old_size), self.geometry.l1_entries_for(new_size));
        if new_tables > old_tables {
            self.drop_tables(old_tables)?;
        }
        let table_end = old_tables.saturating_mul(self.geometry.l2_coverage());
        let rest = ByteRange::between(self.end_of_last_cluster(old_size).min(table_end), table_end);
        self.remap(rest, Wish::Forget)
    }

    /// Makes room in the L1 table for a disk of `size`, and writes its place and length to the header. A table that is
    /// longer than the disk needs harms nobody, should the rest of the resize fail.
    fn grow_l1_table(&self, size: u64) -> Result<()> {
        let needed = self.geometry.l1_entries_for(size) as usize;
        let _one_at_a_time = self.lock_commit();
        let mut meta = self.lock_meta();
        let (old_offset, old_len) = {
            let l1 = self.read_l1();
            (l1.offset, l1.entries.len())
        };
        if needed <= old_len {
            return Ok(());
        }
        let clusters = self.geometry.clusters_for(needed as u64 * 8);
        if clusters == self.geometry.clusters_for(old_len as u64 * 8) {
            return self.lengthen_l1_table((old_offset, old_len), needed);
        }
        let first = meta.allocator(self).take_contiguous(clusters)?;
        let offset = self.geometry.host_offset(first);
        self.metadata_map.mark(first.get(), clusters);
        // Brings every entry into the old table, and the new table's refcounts into the file (W2).
        self.commit_locked(&mut meta)?;
        self.write_new_l1(offset, needed, clusters)?;
        let mut header = self.lock_header();
        let grown = Header { l1_table: offset, l1_entries: needed as u32, ..header.clone() };
        self.write_header_field(header_fields::size_and_l1_table(&grown))?;
        *header = grown;
        drop(header);
        let mut l1 = self.l1.write().unwrap_or_else(PoisonError::into_inner);
        l1.offset = offset;
        l1.entries.resize(needed, 0);
        drop(l1);
        self.free_old_l1(&mut meta, old_offset, old_len);
        Ok(())
    }

    /// Takes more entries of the L1 table's last cluster, which are zeroes in the file before its header has them: it gets them
    /// with the new size, which follows a commit. Until then they are an open image's own and no disk's, for the old size needs
    /// none of them.
    fn lengthen_l1_table(&self, (offset, old_len): (HostOffset, usize), needed: usize) -> Result<()> {
        self.storage
            .write_all_at(&vec![0; (needed - old_len) * 8], offset.get() + old_len as u64 * 8)
            .map_err(|error| Error::io("write the L1 table", error))?;
        self.lock_header().l1_entries = needed as u32;
        self.l1.write().unwrap_or_else(PoisonError::into_inner).entries.resize(needed, 0);
        Ok(())
    }

    fn write_new_l1(&self, offset: HostOffset, len: usize, clusters: u64) -> Result<()> {
        let mut bytes = encode_words(self.read_l1().entries.iter().copied());
        bytes.resize((clusters * self.cluster_size()) as usize, 0);
        debug_assert!(len * 8 <= bytes.len());
        self.storage
            .write_all_at(&bytes, offset.get())
            .map_err(|error| Error::io("write the L1 table", error))?;
        self.sync()
    }

    fn free_old_l1(&self, meta: &mut Metadata, offset: HostOffset, len: usize) {
        let clusters = self.geometry.clusters_for(len as u64 * 8);
        let first = self.geometry.host_cluster(offset).get();
        if clusters > 0 {
            meta.unreferenced.push(Freed { clusters: first..first + clusters, space: Space::Keep });
        }
    }

    /// Zeroes the part of the new disk, from a cluster's boundary on, where the backing disk would show.
    fn zero_beyond(&self, start: u64, new_size: u64, below: u64) -> Result<()> {
        let shown = ByteRange::between(start, new_size.min(below).max(start));
        if shown.is_empty() {
            return Ok(());
        }
        // Whole clusters, as far as the new disk goes: what lies past the backing disk in its last cluster too.
        let end = self.end_of_last_cluster(shown.end()).min(new_size);
        self.zero(ByteRange::between(start, end), ZeroMode::Unmap)
    }
}
