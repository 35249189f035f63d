//! The active L1 table, whole in memory: at most 32 MiB, 16 KiB for a disk of 1 TiB.

use super::Qcow2;
use super::metadata::{Freed, Metadata, Space};
use crate::corruption::Corruption;
use crate::error::{Error, ErrorKind, Result};
use crate::format::qcow2::{Allocated, GuestCluster, Header, HostOffset, L1Entry};
use crate::storage::{Storage, StorageExt};

/// The table and its place in the file.
#[derive(Debug)]
pub(super) struct L1Table {
    pub(super) offset: HostOffset,
    /// The entries as the 64-bit numbers that the file holds.
    pub(super) entries: Vec<u64>,
}

impl L1Table {
    /// Reads the active table that the header names.
    pub(super) fn load(storage: &dyn Storage, header: &Header) -> Result<L1Table> {
        let file_len = storage.len().map_err(|error| Error::io("read the length of the file", error))?;
        let offset = header.l1_table;
        let bytes = u64::from(header.l1_entries) * 8;
        if header.l1_entries > 0 && offset.get().saturating_add(bytes) > file_len.next_multiple_of(512) {
            return Err(Corruption::PastEnd { what: "the L1 table", host: offset.get(), file_len }.into());
        }
        let mut raw = vec![0; bytes as usize];
        storage
            .read_padded_at(&mut raw, offset.get())
            .map_err(|error| Error::io("read the L1 table", error))?;
        let mut entries = vec![0; header.l1_entries as usize];
        <byteorder::BigEndian as byteorder::ByteOrder>::read_u64_into(&raw, &mut entries);
        Ok(L1Table { offset, entries })
    }
}

impl Qcow2 {
    /// The decoded entry at `index`; one that is damaged counts as absent here and is reported by whoever loads from
    /// it.
    pub(super) fn l1_entry(&self, index: u64) -> L1Entry {
        self.checked_l1_entry(index).unwrap_or(L1Entry { table: None })
    }

    /// The decoded entry at `index`.
    pub(super) fn checked_l1_entry(&self, index: u64) -> Result<L1Entry> {
        let l1 = self.read_l1();
        let raw = usize::try_from(index).ok().and_then(|index| l1.entries.get(index)).copied().unwrap_or(0);
        L1Entry::decode(raw, &self.geometry).map_err(|_| {
            Corruption::Unaligned { what: "the L2 table", host: raw & 0x00ff_ffff_ffff_fe00 }.into()
        })
    }

    /// Makes sure that the L2 table for `cluster` exists and is ours alone, so that entries in it may be changed.
    pub(super) fn own_l2_table(&self, meta: &mut Metadata, cluster: GuestCluster) -> Result<()> {
        let index = self.geometry.l1_index(cluster);
        match self.checked_l1_entry(index)?.table {
            Some(Allocated { copied: true, .. }) => Ok(()),
            Some(Allocated { host, copied: false }) => self.copy_l2_table(meta, index, host),
            None => self.new_l2_table(meta, index),
        }
    }

    fn new_l2_table(&self, meta: &mut Metadata, index: u64) -> Result<()> {
        let zeroes = vec![0; self.geometry.cluster_size() as usize];
        self.place_l2_table(meta, index, &zeroes)
    }

    /// A table that a snapshot shares is copied before it changes. The clusters in it are already counted once for
    /// each table that names them.
    fn copy_l2_table(&self, meta: &mut Metadata, index: u64, shared: HostOffset) -> Result<()> {
        let mut table = vec![0; self.geometry.cluster_size() as usize];
        self.storage
            .read_padded_at(&mut table, shared.get())
            .map_err(|error| Error::io("read an L2 table", error))?;
        self.place_l2_table(meta, index, &table)?;
        meta.unreferenced.push(Freed::one(self.geometry.host_cluster(shared), Space::Keep));
        Ok(())
    }

    /// Writes a table that nothing in the file points at yet (W4), and points the L1 entry in memory at it.
    fn place_l2_table(&self, meta: &mut Metadata, index: u64, table: &[u8]) -> Result<()> {
        let run = meta.allocator(self).take_run(1)?;
        let host = self.geometry.host_offset(run.first);
        if let Err(error) = self.storage.write_all_at(table, host.get()) {
            let _leaked = meta.allocator(self).release_run(run.first, 1);
            return Err(Error::io("write an L2 table", error));
        }
        self.metadata_map.mark(run.first.get(), 1);
        let entry = L1Entry { table: Some(Allocated { host, copied: true }) };
        let mut l1 = self.l1.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let at = index as usize;
        let Some(slot) = l1.entries.get_mut(at) else {
            let size = self.geometry.l2_coverage().saturating_mul(l1.entries.len() as u64);
            return Err(Error::new(ErrorKind::OutOfBounds { size }));
        };
        *slot = entry.encode();
        meta.dirty_l1.insert(at);
        meta.new_tables.insert(at);
        Ok(())
    }
}
