//! Taking space for guest clusters before anything is written to them.
//!
//! Only clusters that were never written are taken: they read as zeroes, and no byte that was deleted elsewhere can
//! come to light in them.

use super::Qcow2;
use super::allocator::Reservation;
use super::metadata::Space;
use crate::error::{Error, Result};
use crate::format::qcow2::layout::Preallocation;
use crate::format::qcow2::{Allocated, GuestCluster, GuestOffset, HostCluster, L2Entry};
use crate::progress::Control;
use crate::range::ByteRange;
use crate::storage::StorageExt;

impl Qcow2 {
    /// Maps the clusters of the range, which starts at a cluster's boundary and of which the tables say nothing, to
    /// clusters of their own that read as zeroes, and takes the host's space for them as `preallocation` says.
    pub(super) fn preallocate(
        &self,
        range: ByteRange,
        preallocation: Preallocation,
        control: &Control<'_>,
    ) -> Result<()> {
        let end = self.geometry.clusters_for(range.end());
        let mut cluster = self.geometry.guest_cluster(GuestOffset(range.start()));
        while cluster.get() < end && !range.is_empty() {
            control.check()?;
            self.commit_if_due()?;
            let (_, index) = self.slice_index(cluster);
            let count = (end - cluster.get()).min(self.slice_entries() - index as u64);
            let _in_flight = self.epochs.enter();
            let _ours = self.cluster_locks.lock(cluster.get(), cluster.get() + count);
            let reservation = self.reserve_fresh(cluster, count)?;
            let run = reservation.run();
            let host = self.geometry.host_offset(run.first).get();
            let host_end = self.geometry.host_offset(HostCluster(run.first.get() + run.count)).get();
            self.take_space(ByteRange::between(host, host_end), preallocation)
                .map_err(|error| Error::io("preallocate the image", error))?;
            if self.data.is_encrypted() {
                // What nobody has encrypted reads as noise, so that the space is only kept.
                self.publish(cluster, run.count, Space::Keep, |nth, _| {
                    let host = self.geometry.host_offset(HostCluster(run.first.get() + nth));
                    L2Entry::Zero(Some(Allocated { host, copied: true }))
                })?;
            } else {
                self.publish_data(cluster, run)?;
            }
            reservation.keep();
            cluster = GuestCluster(cluster.get() + run.count);
            let done = (cluster.get() * self.cluster_size()).saturating_sub(range.start());
            control.report(done.min(range.len()), range.len());
        }
        Ok(())
    }

    /// Takes up to `count` clusters in a row that were never written.
    fn reserve_fresh(&self, first: GuestCluster, count: u64) -> Result<Reservation<'_>> {
        if self.data.external().is_some() {
            return self.reserve(first, count);
        }
        let mut meta = self.lock_meta();
        let fresh_from = meta.fresh_from;
        let hint = std::mem::replace(&mut meta.next_free, fresh_from);
        let run = meta.allocator(self).take_run(count);
        // What is free before is so still.
        meta.next_free = hint.min(meta.next_free);
        let run = run?;
        drop(meta);
        Ok(Reservation::new(self, run))
    }

    fn take_space(&self, range: ByteRange, preallocation: Preallocation) -> std::io::Result<()> {
        let storage = self.data.external().unwrap_or(&*self.storage);
        match preallocation {
            Preallocation::Falloc => storage.allocate(range)?,
            Preallocation::Full => storage.write_every_byte(range)?,
            Preallocation::Off | Preallocation::Metadata => {}
        }
        // A cluster that is mapped lies within the file.
        if storage.len()? < range.end() { storage.set_len(range.end()) } else { Ok(()) }
    }
}
