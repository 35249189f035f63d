//! Writing: in place where the cluster is ours alone, otherwise into clusters that are taken, filled and published.
//!
//! A cluster is filled whole before anything refers to it (W1): the part that the guest did not write is copied
//! from where it was. A failure on the way leaves the old mapping and gives the clusters back.

use std::io::IoSlice;

use super::allocator::{Content, Reservation, Run};
use super::metadata::{Freed, Space};
use super::plan::{MAX_WRITTEN, WritePlan};
use super::{Mode, Qcow2};
use crate::corruption::Corruption;
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::format::qcow2::{Allocated, GuestCluster, HostCluster, HostOffset, L2Entry};
use crate::range::ByteRange;

impl Qcow2 {
    /// Writes `buf` at `offset`; the range lies within the disk.
    pub(super) fn write(&self, mut buf: &[u8], mut offset: u64) -> Result<()> {
        self.begin_change()?;
        while !buf.is_empty() {
            self.commit_if_due()?;
            let done = self.write_some(buf, offset)?;
            buf = &buf[done as usize..];
            offset += done;
        }
        Ok(())
    }

    /// Refuses what cannot be changed, and prepares the image for its first change (W7).
    pub(super) fn begin_change(&self) -> Result<()> {
        if self.mode == Mode::ReadOnly {
            return Err(Error::new(ErrorKind::ReadOnly));
        }
        self.failure.check_for_change()?;
        self.prepare_for_change()
    }

    /// Writes the first part of `buf` that one plan covers, and returns its length.
    fn write_some(&self, buf: &[u8], offset: u64) -> Result<u64> {
        let _in_flight = self.epochs.enter();
        let range = ByteRange::between(offset, offset + buf.len() as u64);
        let (first, count) = match self.plan_write(range, MAX_WRITTEN)? {
            WritePlan::InPlace { host, len } => return self.write_in_place((buf, offset), host, len),
            WritePlan::Revive { first, count, .. } | WritePlan::Allocate { first, count } => (first, count),
            WritePlan::Divide { cluster } => (cluster, 1),
        };
        let _ours = self.cluster_locks.lock(first.get(), first.get() + count);
        // Whoever held the clusters before us may have mapped them: look again, at these clusters only.
        let end = self.geometry.guest_offset(GuestCluster(first.get() + count)).get();
        match self.plan_write(range.intersection(ByteRange::between(0, end)), MAX_WRITTEN)? {
            WritePlan::InPlace { host, len } => self.write_in_place((buf, offset), host, len),
            WritePlan::Revive { first, count, host } => {
                self.refuse_metadata(offset, host, count * self.cluster_size())?;
                let run = Run { first: self.geometry.host_cluster(host), count, content: Content::Stale };
                let done = self.fill(run, first, (buf, offset))?;
                self.publish_data(first, run)?;
                Ok(done)
            }
            WritePlan::Allocate { first, count } => self.write_new(first, count, (buf, offset)),
            WritePlan::Divide { cluster } => self.write_divided(cluster, (buf, offset)),
        }
    }

    fn write_in_place(&self, (buf, offset): (&[u8], u64), host: HostOffset, len: u64) -> Result<u64> {
        self.refuse_metadata(offset, host, len)?;
        self.data.write(&mut [IoSlice::new(&buf[..len as usize])], host, offset)?;
        Ok(len)
    }

    /// Refuses to touch a table on the guest's behalf.
    pub(super) fn refuse_metadata(&self, guest: u64, host: HostOffset, len: u64) -> Result<()> {
        if self.data.external().is_some() {
            return Ok(());
        }
        let first = self.geometry.host_cluster(host).get();
        let count = self.geometry.clusters_for(self.geometry.offset_in_cluster(host.get()) + len);
        match self.metadata_map.first_marked(first, count) {
            None => Ok(()),
            Some(cluster) => {
                let host = self.geometry.host_offset(HostCluster(cluster)).get();
                Err(Corruption::OverlapsMetadata { guest, host }.into())
            }
        }
    }

    /// Writes to `count` clusters from `first` on, or to as many as are found in one run.
    pub(super) fn write_new(&self, first: GuestCluster, count: u64, from: (&[u8], u64)) -> Result<u64> {
        let reservation = self.reserve(first, count)?;
        let done = self.fill(reservation.run(), first, from)?;
        self.publish_data(first, reservation.run())?;
        reservation.keep();
        Ok(done)
    }

    /// Takes up to `count` clusters in a row for guest clusters from `first` on. In a data file each guest cluster has its
    /// place: nothing is taken there, or counted.
    pub(super) fn reserve(&self, first: GuestCluster, count: u64) -> Result<Reservation<'_>> {
        if self.data.external().is_some() {
            let run = Run { first: HostCluster(first.get()), count, content: Content::Stale };
            return Ok(Reservation::uncounted(self, run));
        }
        let mut meta = self.lock_meta();
        self.reap(&mut meta).map_err(|error| self.failure.record(error))?;
        let run = meta.allocator(self).take_run(count)?;
        drop(meta);
        Ok(Reservation::new(self, run))
    }

    /// Fills the clusters of `run`, which are to hold the guest clusters from `first` on, with the part of `buf` (which
    /// starts at `offset`) that belongs there and, around it, with what the guest sees there now. Returns how
    /// many bytes of `buf` that took.
    fn fill(&self, run: Run, first: GuestCluster, (buf, offset): (&[u8], u64)) -> Result<u64> {
        let start = self.geometry.guest_offset(first).get();
        let end = self.fill_end(self.geometry.guest_offset(GuestCluster(first.get() + run.count)).get());
        let data = &buf[..(end - offset).min(buf.len() as u64) as usize];
        let data_end = offset + data.len() as u64;
        let head = self.edge(ByteRange::between(start, offset), run.content)?;
        let tail = self.edge(ByteRange::between(data_end, end), run.content)?;
        let skipped = if head.is_empty() { offset - start } else { 0 };
        let host = HostOffset(self.geometry.host_offset(run.first).get() + skipped);
        let mut parts = [IoSlice::new(&head), IoSlice::new(data), IoSlice::new(&tail)];
        self.data.write(&mut parts, host, start + skipped)?;
        Ok(data.len() as u64)
    }

    /// How far clusters are filled that end at `end`: a data file ends where the disk does.
    pub(super) fn fill_end(&self, end: u64) -> u64 {
        if self.data.external().is_some() { end.min(self.size()) } else { end }
    }

    /// What must be written for a part of a cluster that the guest does not write: nothing if the space reads as the
    /// guest expects already.
    pub(super) fn edge(&self, range: ByteRange, content: Content) -> Result<Vec<u8>> {
        let within = range.intersection(ByteRange::between(0, self.size()));
        let reads_zero = content == Content::Fresh && !self.data.is_encrypted();
        if range.is_empty() || (reads_zero && self.is_known_zero(within)?) {
            return Ok(Vec::new());
        }
        // Past the end of the disk there are zeroes, whatever a larger backing disk has there.
        let mut bytes = vec![0; range.len() as usize];
        self.read_in_epoch(&mut bytes[..within.len() as usize], range.start())?;
        Ok(bytes)
    }

    pub(super) fn publish_data(&self, first: GuestCluster, run: Run) -> Result<()> {
        self.publish(first, run.count, Space::Keep, |nth, _| {
            let host = self.geometry.host_offset(HostCluster(run.first.get() + nth));
            L2Entry::Standard(Allocated { host, copied: true })
        })
    }

    /// Changes the entries of `count` clusters from `first` on, all in one slice and locked by the caller, to what
    /// `change` makes of the old ones. What the old entries referred to and the new ones do not is freed.
    pub(super) fn publish(
        &self,
        first: GuestCluster,
        count: u64,
        space: Space,
        change: impl Fn(u64, &L2Entry) -> L2Entry,
    ) -> Result<()> {
        let (key, index) = self.slice_index(first);
        let mut meta = self.lock_meta();
        self.failure.check()?;
        self.own_l2_table(&mut meta, first)?;
        let Some(slice) = self.slice(key)? else {
            let host = 0;
            return Err(Corruption::PastEnd { what: "the L2 table", host, file_len: 0 }.into());
        };
        let mut changes = Vec::with_capacity(count as usize);
        for nth in 0..count {
            let cluster = GuestCluster(first.get() + nth);
            let old = self.decode(slice.get(index + nth as usize), cluster)?;
            let new = change(nth, &old);
            if new != old {
                self.refuse_freeing_metadata(cluster, &old)?;
                changes.push((index + nth as usize, old, new));
            }
        }
        if changes.is_empty() {
            return Ok(());
        }
        for (at, old, new) in changes {
            slice.set(at, new.encode(&self.geometry));
            if !refers_to_the_same(&old, &new) {
                let freed = self.freed_by(&old, space);
                meta.unreferenced.extend(freed);
            }
        }
        meta.dirty_slices.insert(key, slice);
        Ok(())
    }
}

impl Qcow2 {
    /// The clusters that lose a reference when an entry goes. What is in a data file is not counted.
    pub(super) fn freed_by(&self, entry: &L2Entry, space: Space) -> Option<Freed> {
        match self.data.external() {
            Some(_) => None,
            None => Freed::of_entry(entry, self.geometry, space),
        }
    }

    /// An entry that points at a table must not take the table with it when it goes.
    pub(super) fn refuse_freeing_metadata(&self, cluster: GuestCluster, old: &L2Entry) -> Result<()> {
        let Some(freed) = self.freed_by(old, Space::Keep) else { return Ok(()) };
        let guest = self.geometry.guest_offset(cluster).get();
        let host = self.geometry.host_offset(HostCluster(freed.clusters.start));
        let len = (freed.clusters.end - freed.clusters.start) * self.cluster_size();
        self.refuse_metadata(guest, host, len)
    }
}

/// Whether both entries hold the same cluster of the file, so that its reference only moves.
fn refers_to_the_same(old: &L2Entry, new: &L2Entry) -> bool {
    matches!((old.space(), new.space()), (Some(a), Some(b)) if a.host == b.host)
}
