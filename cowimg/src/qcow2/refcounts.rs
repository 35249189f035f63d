//! The refcounts of an open image: the whole table in memory, its blocks in a bounded cache.
//!
//! Everything here happens in memory, under the metadata lock; what has changed is collected by
//! [`Refcounts::take_dirty`] for the commit, which writes it in the order of [`super::write_order`]. A block that is
//! missing is made *inside* the region that it counts, and counts itself, so that making one needs no other.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;

use foldhash::HashMap;

use crate::corruption::Corruption;
use crate::error::{Error, ErrorKind, Result};
use crate::format::qcow2::{
    Geometry, HostCluster, HostOffset, decode_refcount_table_entry, encode_words,
    refcounts::{self as format_refcounts, Changed},
};
use crate::storage::{Storage, StorageExt};

/// QEMU's and our limit on the refcount table: 8 MiB.
pub(super) const MAX_TABLE_BYTES: u64 = 8 << 20;

/// Writes are whole sectors, so that no sector holds half of one.
const SECTOR: usize = 512;

#[derive(Debug)]
struct Block {
    bytes: Box<[u8]>,
    /// Bytes that the file does not have yet.
    dirty: Option<Range<usize>>,
    used: bool,
}

impl Block {
    /// Says that the sectors with these refcounts, of which there are some, have changed.
    fn touch(&mut self, indexes: Range<u64>, order: u32) {
        let byte = |index: u64| (index as usize) << order >> 3;
        let sector = byte(indexes.start) / SECTOR * SECTOR;
        let touched = sector..(byte(indexes.end - 1) / SECTOR + 1) * SECTOR;
        self.dirty = Some(match self.dirty.take() {
            None => touched,
            Some(dirty) => dirty.start.min(touched.start)..dirty.end.max(touched.end),
        });
    }
}

/// Bytes to be written for refcounts: `blocks` first and durably, then the pointers to them.
#[derive(Debug, Default)]
pub(super) struct DirtyRefcounts {
    /// Parts of refcount blocks: where, and what.
    pub(super) blocks: Vec<(HostOffset, Vec<u8>)>,
    /// Sectors of the refcount table: where, and what.
    pub(super) table: Vec<(HostOffset, Vec<u8>)>,
}

/// All refcounts of one image.
#[derive(Debug)]
pub(super) struct Refcounts {
    geometry: Geometry,
    /// Offsets of the blocks, 0 for none. May be longer than the table in the file has room for, until
    /// [`Refcounts::table_needs_room`] is dealt with.
    table: Vec<u64>,
    table_offset: HostOffset,
    table_clusters: u64,
    dirty_table_sectors: BTreeSet<usize>,
    blocks: HashMap<u64, Block>,
    clock: VecDeque<u64>,
    max_blocks: usize,
}

impl Refcounts {
    /// Reads the table at `offset`, and keeps blocks in at most `cache_bytes` (and never fewer than two).
    pub(super) fn load(
        storage: &dyn Storage,
        geometry: Geometry,
        (table_offset, table_clusters): (HostOffset, u64),
        cache_bytes: u64,
    ) -> Result<Refcounts> {
        let bytes = table_clusters.saturating_mul(geometry.cluster_size());
        if bytes > MAX_TABLE_BYTES {
            let what = "the refcount table";
            return Err(Error::new(ErrorKind::LimitExceeded { what, bytes, limit: MAX_TABLE_BYTES }));
        }
        let mut raw = vec![0; bytes as usize];
        storage
            .read_padded_at(&mut raw, table_offset.get())
            .map_err(|error| Error::io("read the refcount table", error))?;
        let mut table = vec![0; raw.len() / 8];
        <byteorder::BigEndian as byteorder::ByteOrder>::read_u64_into(&raw, &mut table);
        Ok(Refcounts {
            geometry,
            table,
            table_offset,
            table_clusters,
            dirty_table_sectors: BTreeSet::new(),
            blocks: HashMap::default(),
            clock: VecDeque::new(),
            max_blocks: ((cache_bytes / geometry.cluster_size()) as usize).max(2),
        })
    }

    /// The refcounts of the same image after its tables were replaced by the one at `location`.
    pub(super) fn loaded_anew(
        &self,
        storage: &dyn Storage,
        location: (HostOffset, u64),
    ) -> Result<Refcounts> {
        let anew = Refcounts::load(storage, self.geometry, location, 0)?;
        Ok(Refcounts { max_blocks: self.max_blocks, ..anew })
    }

    /// The refcounts of the same image after they were stored in another width.
    pub(super) fn loaded_with_width(
        &self,
        storage: &dyn Storage,
        geometry: Geometry,
        location: (HostOffset, u64),
    ) -> Result<Refcounts> {
        let anew = Refcounts::load(storage, geometry, location, 0)?;
        Ok(Refcounts { max_blocks: self.max_blocks, ..anew })
    }

    /// Where the table stands in the file, and its length in clusters.
    pub(super) fn table_location(&self) -> (HostOffset, u64) {
        (self.table_offset, self.table_clusters)
    }

    /// The refcount of a cluster; 0 where nothing counts it.
    pub(super) fn get(&mut self, storage: &dyn Storage, cluster: HostCluster) -> Result<u64> {
        let order = self.geometry.refcount_order();
        let index = self.geometry.refcount_index(cluster);
        let Some(block) = self.block(storage, self.geometry.refcount_table_index(cluster))? else {
            return Ok(0);
        };
        Ok(format_refcounts::get(&block.bytes, order, index).unwrap_or(0))
    }

    /// Sets the refcount of a cluster whose block exists.
    fn set(&mut self, storage: &dyn Storage, cluster: HostCluster, value: u64) -> Result<()> {
        let geometry = self.geometry;
        let index = geometry.refcount_index(cluster);
        let refused = Corruption::Refcount { host: geometry.host_offset(cluster).get(), refcount: value };
        let Some(block) = self.block(storage, geometry.refcount_table_index(cluster))? else {
            return Err(refused.into());
        };
        if !format_refcounts::set(&mut block.bytes, geometry.refcount_order(), index, value) {
            return Err(refused.into());
        }
        block.touch(index..index + 1, geometry.refcount_order());
        Ok(())
    }

    /// Sets `count` clusters from `first` on, whose blocks exist and whose refcounts are 0, to 1.
    pub(super) fn take_run(&mut self, storage: &dyn Storage, first: HostCluster, count: u64) -> Result<()> {
        for cluster in first.get()..first.get() + count {
            self.set(storage, HostCluster(cluster), 1)?;
        }
        Ok(())
    }

    /// One reference more to a cluster that has some. Fails when the width of refcounts does not allow it.
    pub(super) fn increment(&mut self, storage: &dyn Storage, cluster: HostCluster) -> Result<()> {
        let refcount = self.get(storage, cluster)?;
        self.set(storage, cluster, refcount.saturating_add(1))
    }

    /// One reference fewer; returns what is left.
    pub(super) fn decrement(&mut self, storage: &dyn Storage, cluster: HostCluster) -> Result<u64> {
        let refcount = self.get(storage, cluster)?;
        let Some(left) = refcount.checked_sub(1) else {
            let host = self.geometry.host_offset(cluster).get();
            return Err(Corruption::Refcount { host, refcount }.into());
        };
        self.set(storage, cluster, left)?;
        Ok(left)
    }

    /// Changes the refcounts of `count` clusters from `first` on, whose blocks exist and none of which is free. Whether
    /// any of them is free now.
    pub(super) fn change_run(
        &mut self,
        storage: &dyn Storage,
        (first, count): (HostCluster, u64),
        change: Change,
    ) -> Result<bool> {
        let geometry = self.geometry;
        let table_index = geometry.refcount_table_index(first);
        let host = |index| {
            geometry.host_offset(HostCluster(geometry.first_counted(table_index).get() + index)).get()
        };
        let free = |index| Corruption::Refcount { host: host(index), refcount: 0 };
        let index = geometry.refcount_index(first);
        let Some(block) = self.block(storage, table_index)? else { return Err(free(index).into()) };
        let more = change == Change::OneMore;
        match format_refcounts::change_all(&mut block.bytes, geometry.refcount_order(), (index, count), more)
        {
            Changed::All { frees } => {
                block.touch(index..index + count, geometry.refcount_order());
                Ok(frees)
            }
            Changed::Zero(index) => Err(free(index).into()),
            Changed::Full(index) => Err(self.full(host(index))),
        }
    }

    /// Tells `look` the refcounts of `count` clusters from `first` on, in their order.
    pub(super) fn each_of(
        &mut self,
        storage: &dyn Storage,
        (first, count): (HostCluster, u64),
        mut look: impl FnMut(u64),
    ) -> Result<()> {
        let geometry = self.geometry;
        let end = first.get().saturating_add(count);
        let mut at = first.get();
        while at < end {
            let table_index = geometry.refcount_table_index(HostCluster(at));
            let block_end = geometry.first_counted(table_index + 1).get().min(end);
            let block = self.block(storage, table_index)?;
            for cluster in at..block_end {
                let index = geometry.refcount_index(HostCluster(cluster));
                let refcount = block
                    .as_ref()
                    .and_then(|block| format_refcounts::get(&block.bytes, geometry.refcount_order(), index));
                look(refcount.unwrap_or(0));
            }
            at = block_end;
        }
        Ok(())
    }

    fn full(&self, host: u64) -> Error {
        Error::unsupported(format!(
            "the cluster at file offset {host:#x} has {} references, the most that the image can count with \
             refcount_bits={}",
            self.geometry.refcount_max(),
            self.geometry.refcount_bits()
        ))
    }

    /// The next run of clusters with refcount 0 at or after `from`, `most` or fewer of them within one block's region, and
    /// whether that region has no block yet.
    pub(super) fn find_free_run(
        &mut self,
        storage: &dyn Storage,
        from: HostCluster,
        most: u64,
    ) -> Result<(HostCluster, u64, BlockState)> {
        let geometry = self.geometry;
        let mut from = from;
        loop {
            let table_index = geometry.refcount_table_index(from);
            let index = geometry.refcount_index(from);
            let Some(block) = self.block(storage, table_index)? else {
                let rest = geometry.refcounts_per_block() - index;
                return Ok((from, rest.min(most), BlockState::Missing));
            };
            let first_counted = geometry.first_counted(table_index).get();
            if let Some((start, len)) =
                format_refcounts::find_free_run(&block.bytes, geometry.refcount_order(), index, most)
            {
                return Ok((HostCluster(first_counted + start), len, BlockState::Present));
            }
            from = geometry.first_counted(table_index + 1);
        }
    }

    /// Where the blocks are; entries that cannot be decoded are left out.
    pub(super) fn block_offsets(&self) -> impl Iterator<Item = HostOffset> + '_ {
        self.table.iter().filter_map(|&raw| decode_refcount_table_entry(raw, &self.geometry).ok().flatten())
    }

    /// Whether there is a block at `table_index`.
    pub(super) fn has_block(&self, table_index: u64) -> bool {
        usize::try_from(table_index).ok().and_then(|index| self.table.get(index)).is_some_and(|&raw| raw != 0)
    }

    /// Makes the missing block at `table_index`, to be stored in `at`. When `at` lies in the block's own region, the
    /// block counts itself.
    pub(super) fn create_block(
        &mut self,
        storage: &dyn Storage,
        table_index: u64,
        at: HostCluster,
    ) -> Result<()> {
        let geometry = self.geometry;
        let index = usize::try_from(table_index).unwrap_or(usize::MAX);
        if table_index >= MAX_TABLE_BYTES / 8 {
            return Err(Error::new(ErrorKind::LimitExceeded {
                what: "the refcount table of an image of this length",
                bytes: table_index.saturating_mul(8),
                limit: MAX_TABLE_BYTES,
            }));
        }
        if index >= self.table.len() {
            self.table.resize(index + 1, 0);
        }
        let bytes = vec![0; geometry.cluster_size() as usize].into_boxed_slice();
        self.table[index] = geometry.host_offset(at).get();
        self.dirty_table_sectors.insert(index * 8 / SECTOR);
        let whole = 0..bytes.len();
        self.blocks.insert(table_index, Block { bytes, dirty: Some(whole), used: true });
        self.clock.push_back(table_index);
        if geometry.refcount_table_index(at) == table_index {
            self.set(storage, at, 1)?;
        }
        Ok(())
    }

    /// The same refcounts, read from the file anew: both are right as long as neither has changed anything.
    pub(super) fn fork(&self) -> Refcounts {
        Refcounts {
            geometry: self.geometry,
            table: self.table.clone(),
            table_offset: self.table_offset,
            table_clusters: self.table_clusters,
            dirty_table_sectors: BTreeSet::new(),
            blocks: HashMap::default(),
            clock: VecDeque::new(),
            max_blocks: self.max_blocks,
        }
    }

    /// Says that the block at `table_index` is to be stored in `at`, where nothing counts it yet; makes it if it is
    /// missing. Returns where it was.
    pub(super) fn move_block(
        &mut self,
        storage: &dyn Storage,
        table_index: u64,
        at: HostCluster,
    ) -> Result<Option<HostOffset>> {
        if !self.has_block(table_index) {
            self.create_block(storage, table_index, at)?;
            let own = self.geometry.refcount_table_index(at) == table_index;
            if own {
                self.set(storage, at, 0)?;
            }
            return Ok(None);
        }
        let whole = 0..self.geometry.cluster_size() as usize;
        let Some(block) = self.block(storage, table_index)? else { return Ok(None) };
        block.dirty = Some(whole);
        let index = table_index as usize;
        let old = std::mem::replace(&mut self.table[index], self.geometry.host_offset(at).get());
        self.dirty_table_sectors.insert(index * 8 / SECTOR);
        Ok(Some(HostOffset(old)))
    }

    /// Drops the blocks at the end of the table that count nothing but themselves, and returns where they are. Those that
    /// another block counts are to be freed.
    pub(super) fn drop_empty_tail(&mut self, storage: &dyn Storage) -> Result<Vec<HostCluster>> {
        let geometry = self.geometry;
        let mut dropped = Vec::new();
        for index in (0..self.table.len()).rev().filter(|&index| index > 0) {
            if self.last_used_in(storage, index as u64, Counted::Others)?.is_some() {
                break;
            }
            let own = geometry.host_cluster(HostOffset(self.table[index]));
            if self.table[index] != 0 {
                self.table[index] = 0;
                self.blocks.remove(&(index as u64));
                self.dirty_table_sectors.insert(index * 8 / SECTOR);
                dropped.push(own);
            }
        }
        Ok(dropped)
    }

    /// One past the last cluster that is counted.
    pub(super) fn end(&mut self, storage: &dyn Storage) -> Result<u64> {
        for index in (0..self.table.len() as u64).rev() {
            if let Some(last) = self.last_used_in(storage, index, Counted::All)? {
                return Ok(last.get() + 1);
            }
            self.evict();
        }
        Ok(0)
    }

    fn last_used_in(
        &mut self,
        storage: &dyn Storage,
        table_index: u64,
        which: Counted,
    ) -> Result<Option<HostCluster>> {
        let geometry = self.geometry;
        let own = self.table.get(table_index as usize).map(|&raw| geometry.host_cluster(HostOffset(raw)));
        let first = geometry.first_counted(table_index).get();
        let Some(block) = self.block(storage, table_index)? else { return Ok(None) };
        let counts = |index: &u64| {
            let cluster = Some(HostCluster(first + index));
            (which == Counted::All || cluster != own)
                && format_refcounts::get(&block.bytes, geometry.refcount_order(), *index).unwrap_or(0) > 0
        };
        let last = (0..geometry.refcounts_per_block()).rev().find(counts);
        Ok(last.map(|index| HostCluster(first + index)))
    }

    /// Entries that the table must have room for in the file, when that is more than it has.
    pub(super) fn table_needs_room(&self) -> Option<u64> {
        let room = self.table_clusters * self.geometry.cluster_size() / 8;
        let needed = self.table.len() as u64;
        (needed > room).then_some(needed)
    }

    /// Entries of the table in memory.
    pub(super) fn entries(&self) -> u64 {
        self.table.len() as u64
    }

    /// Says that the table now stands at `offset`, in `clusters` clusters; every part of it is to be written there.
    /// Returns where it stood.
    pub(super) fn move_table(&mut self, offset: HostOffset, clusters: u64) -> (HostOffset, u64) {
        let old = (self.table_offset, self.table_clusters);
        self.table_offset = offset;
        self.table_clusters = clusters;
        self.table.resize((clusters * self.geometry.cluster_size() / 8) as usize, 0);
        self.dirty_table_sectors = (0..self.table.len() * 8 / SECTOR).collect();
        old
    }

    /// Bytes of dirty blocks, roughly.
    pub(super) fn dirty_blocks(&self) -> usize {
        self.blocks.values().filter(|block| block.dirty.is_some()).count()
    }

    /// Whether the cache holds more blocks than it should, so that a commit would let some go.
    pub(super) fn is_over_limit(&self) -> bool {
        self.blocks.len() > self.max_blocks * 2
    }

    /// The parts of blocks that the file does not have yet; from here on they count as clean.
    pub(super) fn take_dirty_blocks(&mut self) -> Vec<(HostOffset, Vec<u8>)> {
        let mut dirty = Vec::new();
        for (&index, block) in &mut self.blocks {
            if let Some(range) = block.dirty.take() {
                let offset = self.table[index as usize] + range.start as u64;
                dirty.push((HostOffset(offset), block.bytes[range].to_vec()));
            }
        }
        dirty.sort_by_key(|(offset, _)| *offset);
        dirty
    }

    /// Everything that the file does not have yet; from here on it counts as clean.
    pub(super) fn take_dirty(&mut self) -> DirtyRefcounts {
        let mut dirty = DirtyRefcounts { blocks: self.take_dirty_blocks(), table: Vec::new() };
        for sector in std::mem::take(&mut self.dirty_table_sectors) {
            let first = sector * SECTOR / 8;
            let entries = &self.table[first..(first + SECTOR / 8).min(self.table.len())];
            let bytes = encode_words(entries.iter().copied());
            let offset = HostOffset(self.table_offset.get() + (sector * SECTOR) as u64);
            match dirty.table.last_mut() {
                Some((start, run)) if start.get() + run.len() as u64 == offset.get() => run.extend(bytes),
                _ => dirty.table.push((offset, bytes)),
            }
        }
        dirty
    }

    /// Drops clean blocks until the cache is within its bound. Called when no commit is writing.
    pub(super) fn evict(&mut self) {
        let mut looks = self.clock.len() * 2;
        while self.blocks.len() > self.max_blocks && looks > 0 {
            looks -= 1;
            let Some(index) = self.clock.pop_front() else { return };
            let Some(block) = self.blocks.get_mut(&index) else { continue };
            if block.used || block.dirty.is_some() {
                block.used = false;
                self.clock.push_back(index);
            } else {
                self.blocks.remove(&index);
            }
        }
    }

    fn block(&mut self, storage: &dyn Storage, table_index: u64) -> Result<Option<&mut Block>> {
        if !self.blocks.contains_key(&table_index) {
            let Some(block) = self.load_block(storage, table_index)? else { return Ok(None) };
            self.blocks.insert(table_index, block);
            self.clock.push_back(table_index);
        }
        let mut block = self.blocks.get_mut(&table_index);
        if let Some(block) = &mut block {
            block.used = true;
        }
        Ok(block)
    }

    fn load_block(&self, storage: &dyn Storage, table_index: u64) -> Result<Option<Block>> {
        let index = usize::try_from(table_index).unwrap_or(usize::MAX);
        let raw = self.table.get(index).copied().unwrap_or(0);
        let what = "the refcount block";
        let offset = decode_refcount_table_entry(raw, &self.geometry)
            .map_err(|_| Corruption::Unaligned { what, host: raw })?;
        let Some(offset) = offset else { return Ok(None) };
        let file_len = storage.len().map_err(|error| Error::io("read the length of the file", error))?;
        if offset.get() >= file_len {
            return Err(Corruption::PastEnd { what, host: offset.get(), file_len }.into());
        }
        let mut bytes = vec![0; self.geometry.cluster_size() as usize].into_boxed_slice();
        storage
            .read_padded_at(&mut bytes, offset.get())
            .map_err(|error| Error::io("read a refcount block", error))?;
        Ok(Some(Block { bytes, dirty: None, used: true }))
    }
}

/// Which clusters of a block's region are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Counted {
    All,
    /// All but the block's own.
    Others,
}

/// What becomes of a refcount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// A reference came.
    OneMore,
    /// A reference went.
    OneFewer,
}

/// Whether the region of a run has a refcount block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BlockState {
    /// It has one.
    Present,
    /// It needs one before anything in it can be counted.
    Missing,
}
