//! Zeroing and discarding: whole clusters by their mapping alone, the rest by writing zeroes.

use super::Qcow2;
use super::metadata::Space;
use crate::disk::{Disk, ZeroMode};
use crate::error::Result;
use crate::format::qcow2::{Autoclear, GuestCluster, GuestOffset, L2Entry, Version};
use crate::range::ByteRange;

/// What is asked for a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    Zero(ZeroMode),
    Discard,
    /// Zeroes, whatever is below now or later.
    Mask,
    /// The cluster lies past the end of the disk: nothing is to be known of it, whatever is below.
    Forget,
}

impl Wish {
    fn space(self) -> Space {
        match self {
            Wish::Zero(ZeroMode::KeepSpace) => Space::Keep,
            Wish::Zero(ZeroMode::Unmap) | Wish::Discard | Wish::Mask | Wish::Forget => Space::Release,
        }
    }
}

impl Qcow2 {
    /// Makes the range read as zeroes; it lies within the disk.
    pub(super) fn zero(&self, range: ByteRange, mode: ZeroMode) -> Result<()> {
        self.begin_change()?;
        let whole = self.whole_clusters(range);
        self.zero_parts(ByteRange::between(range.start(), whole.start().min(range.end())))?;
        match (self.version, mode) {
            (Version::V3, _) => self.remap(whole, Wish::Zero(mode))?,
            (Version::V2, ZeroMode::Unmap) => {
                // Version 2 has no zero clusters: where nothing shows from below, an unallocated cluster is one.
                let below = self.backing.as_ref().map_or(0, |backing| backing.size());
                let boundary = self.cluster_start_above(below).clamp(whole.start(), whole.end());
                self.write_zero_bytes(ByteRange::between(whole.start(), boundary))?;
                self.remap(ByteRange::between(boundary, whole.end()), Wish::Discard)?;
            }
            (Version::V2, ZeroMode::KeepSpace) => self.write_zero_bytes(whole)?,
        }
        self.zero_parts(ByteRange::between(whole.end().max(range.start()), range.end()))
    }

    /// Makes the range read as zeroes even when another disk takes the backing disk's place: nothing is left to it.
    pub(crate) fn mask(&self, range: ByteRange) -> Result<()> {
        let _change = self.lock_change();
        self.check_bounds(range.start(), range.len())?;
        self.begin_change()?;
        let whole = match self.version {
            Version::V3 => self.whole_clusters(range),
            // Version 2 has no zero clusters.
            Version::V2 => ByteRange::between(range.end(), range.end()),
        };
        self.store_zeroes(ByteRange::between(range.start(), whole.start()))?;
        self.remap(whole, Wish::Mask)?;
        self.store_zeroes(ByteRange::between(whole.end(), range.end()))
    }

    /// Writes zeroes as data.
    fn store_zeroes(&self, range: ByteRange) -> Result<()> {
        const STEP: u64 = 1 << 20;
        let zeroes = vec![0; STEP.min(range.len()) as usize];
        let mut at = range;
        while !at.is_empty() {
            let len = STEP.min(at.len());
            self.write(&zeroes[..len as usize], at.start())?;
            at = ByteRange::between(at.start() + len, at.end());
        }
        Ok(())
    }

    /// Drops whole clusters of the range; what is left of it stays as it is.
    pub(super) fn discard_range(&self, range: ByteRange) -> Result<()> {
        self.begin_change()?;
        self.remap(self.whole_clusters(range), Wish::Discard)
    }

    /// The whole clusters of a range; the last cluster of the disk is whole when the range reaches the end.
    fn whole_clusters(&self, range: ByteRange) -> ByteRange {
        let start = self.cluster_start_above(range.start());
        let end =
            if range.end() == self.size() { range.end() } else { self.geometry.align_down(range.end()) };
        // Nothing whole: an empty range at the range's own end, so that all of it counts as the part before.
        if start >= end {
            ByteRange::between(range.end(), range.end())
        } else {
            ByteRange::between(start, end)
        }
    }

    fn cluster_start_above(&self, offset: u64) -> u64 {
        self.geometry.clusters_for(offset) << self.geometry.cluster_bits()
    }

    /// Writes zeroes where the range does not read as zeroes already.
    pub(super) fn write_zero_bytes(&self, range: ByteRange) -> Result<()> {
        let mut at = range;
        while !at.is_empty() {
            let step_end = at.end().min(self.geometry.align_down(at.start()) + self.cluster_size());
            let step = ByteRange::between(at.start(), step_end);
            let known_zero = {
                let _in_flight = self.epochs.enter();
                self.is_known_zero(step)?
            };
            if !known_zero {
                self.write(&vec![0; step.len() as usize], step.start())?;
            }
            at = ByteRange::between(step.end(), at.end());
        }
        Ok(())
    }

    /// Changes the mapping of whole clusters, a slice at a time.
    pub(super) fn remap(&self, range: ByteRange, wish: Wish) -> Result<()> {
        let mut at = range;
        while !at.is_empty() {
            self.commit_if_due()?;
            let first = self.geometry.guest_cluster(GuestOffset(at.start()));
            let (_, index) = self.slice_index(first);
            let count = self.geometry.clusters_for(at.len()).min(self.slice_entries() - index as u64);
            let step = self.remap_slice(first, count, wish)?;
            let end = self.geometry.guest_offset(GuestCluster(first.get() + step)).get();
            at = ByteRange::between(end, at.end());
        }
        Ok(())
    }

    /// Changes up to `count` clusters of one slice; returns how many clusters are dealt with, which is more where
    /// there is no L2 table and nothing to do.
    fn remap_slice(&self, first: GuestCluster, count: u64, wish: Wish) -> Result<u64> {
        let _in_flight = self.epochs.enter();
        let _ours = self.cluster_locks.lock(first.get(), first.get() + count);
        let end = self.geometry.guest_offset(GuestCluster(first.get() + count)).get();
        let bytes = ByteRange::between(self.geometry.guest_offset(first).get(), end.min(self.size()));
        self.zero_data_file(bytes, wish.space())?;
        let (key, index) = self.slice_index(first);
        let change = |nth: u64, old: &L2Entry| self.wished(wish, GuestCluster(first.get() + nth), old);
        match self.slice(key)? {
            None => {
                let shows_below =
                    (0..count).any(|nth| change(nth, &L2Entry::Unallocated) != L2Entry::Unallocated);
                if !shows_below {
                    let table_end = (self.geometry.l1_index(first) + 1) << self.geometry.l2_bits();
                    let skips_all = !self.backing_covers(self.cluster_range(first));
                    return Ok(if skips_all { table_end - first.get() } else { count });
                }
            }
            Some(slice) => {
                let mut changes = false;
                for nth in 0..count {
                    let old =
                        self.decode(slice.get(index + nth as usize), GuestCluster(first.get() + nth))?;
                    changes |= change(nth, &old) != old;
                }
                if !changes {
                    return Ok(count);
                }
            }
        }
        self.publish(first, count, wish.space(), change)?;
        Ok(count)
    }

    /// A data file follows what is done to whole clusters: one that is a raw image of the disk always, another where space
    /// is given back. The mapping changes only then, so that data which is gone is not mapped.
    pub(super) fn zero_data_file(&self, range: ByteRange, space: Space) -> Result<()> {
        let is_raw = || self.lock_header().autoclear.contains(Autoclear::DATA_FILE_RAW);
        if self.data.external().is_none() || (space == Space::Keep && !is_raw()) {
            return Ok(());
        }
        self.data.zero_external(range, space == Space::Release)
    }

    fn cluster_range(&self, cluster: GuestCluster) -> ByteRange {
        let start = self.geometry.guest_offset(cluster).get();
        ByteRange::between(start, start + self.cluster_size())
    }

    /// The entry that a cluster gets.
    fn wished(&self, wish: Wish, cluster: GuestCluster, old: &L2Entry) -> L2Entry {
        let shows_below = self.backing_covers(self.cluster_range(cluster));
        match (wish, old) {
            (Wish::Mask, L2Entry::Zero(_)) => *old,
            (Wish::Mask, _) => L2Entry::Zero(None),
            (Wish::Forget, _) => L2Entry::Unallocated,
            (_, L2Entry::Unallocated) if !shows_below => L2Entry::Unallocated,
            // Without zero clusters a discarded cluster would show what is below: older data than the guest's own.
            (Wish::Discard, _) if shows_below && self.version == Version::V2 => *old,
            (Wish::Discard, _) if !shows_below => L2Entry::Unallocated,
            (Wish::Zero(ZeroMode::KeepSpace), L2Entry::Zero(space)) => L2Entry::Zero(*space),
            (Wish::Zero(ZeroMode::KeepSpace), old) => L2Entry::Zero(old.space().filter(|space| space.copied)),
            _ => L2Entry::Zero(None),
        }
    }
}
