//! Writing what the host copies: whole clusters take it over without a detour through memory, parts of clusters are
//! written as any other bytes.

use super::Qcow2;
use super::allocator::{Content, Run};
use super::plan::{MAX_COPIED, MAX_WRITTEN, WritePlan};
use crate::error::{Error, Result};
use crate::format::qcow2::{GuestCluster, HostOffset};
use crate::range::ByteRange;
use crate::storage::{Storage, StorageExt};

/// Bytes of a storage that are to be written.
#[derive(Clone, Copy)]
struct Stored<'a> {
    storage: &'a dyn Storage,
    from: u64,
}

impl Qcow2 {
    /// Writes to `range` what `source` has from `from` on; what lies past its end is zeroes.
    pub(crate) fn copy_from(&self, source: &dyn Storage, from: u64, range: ByteRange) -> Result<()> {
        let _change = self.lock_change();
        self.check_bounds(range.start(), range.len())?;
        self.begin_change()?;
        let _recorded = self.recorded(range);
        let mut at = range.start();
        while at < range.end() {
            self.commit_if_due()?;
            let stored = Stored { storage: source, from: from + (at - range.start()) };
            at += self.copy_some(stored, ByteRange::between(at, range.end()))?;
        }
        Ok(())
    }

    /// Copies the first part of `range` that one plan covers, and gives its length.
    fn copy_some(&self, stored: Stored<'_>, range: ByteRange) -> Result<u64> {
        let whole = range.shrink_to(self.cluster_size());
        if whole.start() != range.start() || whole.is_empty() {
            let end = if whole.is_empty() { range.end() } else { whole.start() };
            return self.copy_through_memory(stored, ByteRange::between(range.start(), end));
        }
        match self.copy_whole(stored, whole)? {
            0 => {
                let cluster = ByteRange::between(whole.start(), whole.start() + self.cluster_size());
                self.copy_through_memory(stored, cluster)
            }
            len => Ok(len),
        }
    }

    /// Copies the first of these whole clusters, and gives the length of that; 0 where a cluster is in parts.
    fn copy_whole(&self, stored: Stored<'_>, whole: ByteRange) -> Result<u64> {
        let _in_flight = self.epochs.enter();
        // What is encrypted on the way is held in memory.
        let most_new = if self.data.is_encrypted() { MAX_WRITTEN } else { MAX_COPIED };
        let (first, count) = match self.plan_write(whole, most_new)? {
            WritePlan::InPlace { host, len } => return self.copy_in_place(stored, whole.start(), host, len),
            WritePlan::Revive { first, count, .. } | WritePlan::Allocate { first, count } => (first, count),
            WritePlan::Divide { .. } => return Ok(0),
        };
        let _ours = self.cluster_locks.lock(first.get(), first.get() + count);
        let end = self.geometry.guest_offset(GuestCluster(first.get() + count)).get();
        // Whoever held the clusters before us may have mapped them: look again, at these clusters only.
        match self.plan_write(whole.intersection(ByteRange::between(0, end)), most_new)? {
            WritePlan::InPlace { host, len } => self.copy_in_place(stored, whole.start(), host, len),
            WritePlan::Revive { first, count, host } => {
                let len = count * self.cluster_size();
                self.refuse_metadata(whole.start(), host, len)?;
                self.copy_to(stored, host, (whole.start(), len))?;
                let run = Run { first: self.geometry.host_cluster(host), count, content: Content::Stale };
                self.publish_data(first, run)?;
                Ok(len)
            }
            WritePlan::Allocate { first, count } => {
                let reservation = self.reserve(first, count)?;
                let run = reservation.run();
                let len = run.count * self.cluster_size();
                self.copy_to(stored, self.geometry.host_offset(run.first), (whole.start(), len))?;
                self.publish_data(first, run)?;
                reservation.keep();
                Ok(len)
            }
            WritePlan::Divide { .. } => Ok(0),
        }
    }

    fn copy_in_place(&self, stored: Stored<'_>, guest: u64, host: HostOffset, len: u64) -> Result<u64> {
        self.refuse_metadata(guest, host, len)?;
        self.copy_to(stored, host, (guest, len))?;
        Ok(len)
    }

    fn copy_to(&self, stored: Stored<'_>, host: HostOffset, (guest, len): (u64, u64)) -> Result<()> {
        let to = ByteRange::between(host.get(), host.get() + len);
        self.data.copy_from((stored.storage, stored.from), to, guest)
    }

    /// Parts of clusters: what is around them is filled in by the usual way of writing.
    fn copy_through_memory(&self, stored: Stored<'_>, range: ByteRange) -> Result<u64> {
        let mut buf = vec![0; range.len() as usize];
        stored
            .storage
            .read_padded_at(&mut buf, stored.from)
            .map_err(|error| Error::io("read guest data to copy", error))?;
        self.write(&buf, range.start())?;
        Ok(range.len())
    }
}
