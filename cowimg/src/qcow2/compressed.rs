//! Compressed clusters: read whole, written whole, never in place.
//!
//! A few clusters that were decompressed last are kept, so that reading one in small pieces decompresses it once. What is
//! read whole goes by them: threads that read a disk from end to end decompress at the same time, and copy nothing.

use std::sync::PoisonError;

use super::Qcow2;
use super::metadata::{Freed, Space};
use super::sync::{Mutex, MutexGuard};
use crate::codec;
use crate::corruption::Corruption;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::format::qcow2::{CompressedRun, GuestCluster, GuestOffset, HostCluster, L2Entry};
use crate::range::ByteRange;
use crate::storage::StorageExt;

/// Bytes of decompressed clusters that are kept, or one cluster where that is more.
const KEPT: u64 = 512 << 10;

/// The clusters that were decompressed last, each in a place of its own by its number. A place is locked while it is filled:
/// who wants the same cluster waits for it, and nobody else.
#[derive(Debug)]
pub(super) struct Decompressed {
    places: Box<[Mutex<Kept>]>,
}

#[derive(Debug, Default)]
struct Kept {
    run: Option<CompressedRun>,
    bytes: Vec<u8>,
}

impl Decompressed {
    /// Takes no memory until a compressed cluster is read.
    pub(super) fn new(cluster_size: u64) -> Decompressed {
        let places = (KEPT / cluster_size).clamp(1, 16);
        Decompressed { places: (0..places).map(|_| Mutex::default()).collect() }
    }

    fn place(&self, cluster: GuestCluster) -> MutexGuard<'_, Kept> {
        let nth = cluster.get() % self.places.len() as u64;
        self.places[nth as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Qcow2 {
    /// Fills `part`, which lies within one guest cluster, from that cluster's compressed bytes.
    pub(super) fn read_compressed(&self, part: &mut [u8], offset: u64, run: CompressedRun) -> Result<()> {
        if part.len() as u64 == self.cluster_size() {
            return self.decompress(run, offset, part);
        }
        let start = self.geometry.offset_in_cluster(offset) as usize;
        let mut kept = self.decompressed.place(self.geometry.guest_cluster(GuestOffset(offset)));
        if kept.run != Some(run) {
            kept.run = None;
            kept.bytes.resize(self.cluster_size() as usize, 0);
            self.decompress(run, offset, &mut kept.bytes)?;
            kept.run = Some(run);
        }
        part.copy_from_slice(&kept.bytes[start..start + part.len()]);
        Ok(())
    }

    fn decompress(&self, run: CompressedRun, offset: u64, cluster: &mut [u8]) -> Result<()> {
        let mut packed = vec![0; run.max_len() as usize];
        self.storage
            .read_padded_at(&mut packed, run.host.get())
            .map_err(|error| Error::io("read a compressed cluster", error))?;
        codec::decompress(self.compression, &packed, cluster).map_err(|error| {
            if matches!(error, codec::CodecError::NotBuilt { .. }) {
                return Error::unsupported(error.to_string());
            }
            let guest = self.geometry.align_down(offset);
            Corruption::CompressedData { guest, host: run.host.get() }.into()
        })
    }

    /// What was decompressed may be from clusters that are about to hold something else. Called when no reader is left that
    /// has found it there: one that came later would keep it for longer.
    pub(super) fn forget_decompressed(&self) {
        for place in &self.decompressed.places {
            place.lock().unwrap_or_else(PoisonError::into_inner).run = None;
        }
    }

    /// Stores `packed`, the compressed bytes of the whole guest cluster at `offset`. They must be fewer than a cluster.
    pub(crate) fn write_compressed(&self, packed: &[u8], offset: u64) -> Result<()> {
        let cluster_size = self.cluster_size();
        let in_bounds = offset < self.size() && self.geometry.is_aligned(offset);
        if !in_bounds || packed.is_empty() || packed.len() as u64 >= cluster_size {
            return Err(Error::invalid("a compressed cluster is written whole, at a cluster boundary"));
        }
        let _change = self.lock_change();
        self.refuse_compressed()?;
        self.begin_change()?;
        let _recorded = self.recorded(ByteRange::between(offset, (offset + cluster_size).min(self.size())));
        self.commit_if_due()?;
        let _in_flight = self.epochs.enter();
        let first = self.geometry.guest_cluster(GuestOffset(offset));
        let _ours = self.cluster_locks.lock(first.get(), first.get() + 1);
        // The table first, so that the file ends with the bytes: a table behind them would end with its cluster.
        self.own_l2_table(&mut self.lock_meta(), first)?;
        let run = self.reserve_bytes(packed.len() as u64)?;
        let stored = self
            .storage
            .write_all_at(packed, run.host.get())
            .map_err(|error| Error::io("write a compressed cluster", error))
            .and_then(|()| self.publish(first, 1, Space::Keep, |_, _| L2Entry::Compressed(run)));
        if stored.is_err() {
            self.release_bytes(run);
        }
        stored
    }

    /// Refuses compressed clusters where the guest's data is elsewhere, or would be stored in plain text.
    pub(crate) fn refuse_compressed(&self) -> Result<()> {
        if self.data.external().is_some() || self.data.is_encrypted() {
            return Err(Error::unsupported(
                "an image that is encrypted or has an external data file cannot hold compressed clusters",
            ));
        }
        Ok(())
    }

    /// Makes the file end with a sector. Compressed bytes at its end may end within one, and there are programs that read
    /// whole sectors only.
    pub(super) fn fill_last_sector(&self) -> Result<()> {
        let io = |error| Error::io("fill the last sector of the file", error);
        let len = self.storage.len().map_err(io)?;
        if len.is_multiple_of(512) {
            Ok(())
        } else {
            self.storage.set_len(len.next_multiple_of(512)).map_err(io)
        }
    }

    fn reserve_bytes(&self, len: u64) -> Result<CompressedRun> {
        let mut meta = self.lock_meta();
        self.reap(&mut meta).map_err(|error| self.failure.record(error))?;
        let host = meta.allocator(self).take_bytes(len)?;
        Ok(CompressedRun::for_bytes(host, len, &self.geometry))
    }

    fn release_bytes(&self, run: CompressedRun) {
        let entry = L2Entry::Compressed(run);
        let Some(freed) = Freed::of_entry(&entry, self.geometry, Space::Keep) else { return };
        let mut meta = self.lock_meta();
        for cluster in freed.clusters {
            // Failing here leaks the space, which harms nobody.
            let _leaked = meta.allocator(self).release_run(HostCluster(cluster), 1);
        }
    }
}
