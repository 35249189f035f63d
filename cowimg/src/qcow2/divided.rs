//! Parts of clusters that are divided into subclusters: written and zeroed without touching the other subclusters.

use std::io::IoSlice;
use std::ops::Range;

use super::Qcow2;
use super::allocator::Content;
use super::metadata::Space;
use crate::error::Result;
use crate::format::qcow2::{
    Allocated, GuestCluster, GuestOffset, HostOffset, L2Entry, SUBCLUSTERS, SubclusterState, Subclusters,
};
use crate::range::ByteRange;

/// A cluster's space that is being filled.
#[derive(Debug, Clone, Copy)]
struct Place {
    cluster: GuestCluster,
    host: HostOffset,
    content: Content,
    /// What is in the space already.
    filled: Subclusters,
}

impl Qcow2 {
    /// Writes the first part of `buf`, up to the end of `cluster`, which the caller has locked: the subclusters that it
    /// touches are filled, and the others stay what they are. Returns how many bytes that took.
    pub(super) fn write_divided(&self, cluster: GuestCluster, (buf, offset): (&[u8], u64)) -> Result<u64> {
        let end = self.geometry.guest_offset(cluster).get() + self.cluster_size();
        let buf = &buf[..(end - offset).min(buf.len() as u64) as usize];
        let old = self.entry_of(cluster)?;
        let Some((subclusters, space)) = old.subclusters() else {
            // What was compressed is stored whole from now on.
            return self.write_new(cluster, 1, (buf, offset));
        };
        let written = ByteRange::between(offset, offset + buf.len() as u64);
        let touched = self.touched(cluster, written);
        if let Some(Allocated { host, copied: true }) = space {
            self.refuse_metadata(offset, host, self.cluster_size())?;
            let place = Place { cluster, host, content: Content::Stale, filled: subclusters };
            self.fill_touched(&place, (buf, offset))?;
            self.publish_filled(cluster, host, touched)?;
            return Ok(buf.len() as u64);
        }
        let reservation = self.reserve(cluster, 1)?;
        let run = reservation.run();
        let host = self.geometry.host_offset(run.first);
        let place = Place { cluster, host, content: run.content, filled: Subclusters::NONE };
        self.fill_touched(&place, (buf, offset))?;
        self.copy_untouched(&place, subclusters, &touched)?;
        self.publish_filled(cluster, host, touched)?;
        reservation.keep();
        Ok(buf.len() as u64)
    }

    /// Makes parts of clusters read as zeroes: whole subclusters by the mapping alone.
    pub(super) fn zero_parts(&self, range: ByteRange) -> Result<()> {
        let mut at = range;
        while !at.is_empty() {
            let cluster_end = self.geometry.align_down(at.start()) + self.cluster_size();
            self.zero_part(ByteRange::between(at.start(), cluster_end.min(at.end())))?;
            at = ByteRange::between(cluster_end, at.end());
        }
        Ok(())
    }

    /// Such a part of one cluster.
    fn zero_part(&self, range: ByteRange) -> Result<()> {
        let grain = self.geometry.subcluster_size();
        let whole = ByteRange::between(
            range.start().next_multiple_of(grain).min(range.end()),
            (range.end() / grain * grain).max(range.start()),
        );
        if !self.geometry.has_subclusters() || whole.is_empty() {
            return self.write_zero_bytes(range);
        }
        self.write_zero_bytes(ByteRange::between(range.start(), whole.start()))?;
        self.zero_subclusters(whole)?;
        self.write_zero_bytes(ByteRange::between(whole.end(), range.end()))
    }

    /// Whole subclusters of one cluster.
    fn zero_subclusters(&self, range: ByteRange) -> Result<()> {
        self.commit_if_due()?;
        {
            let _in_flight = self.epochs.enter();
            let cluster = self.geometry.guest_cluster(GuestOffset(range.start()));
            let _ours = self.cluster_locks.lock(cluster.get(), cluster.get() + 1);
            if self.is_known_zero(range)? {
                return Ok(());
            }
            if !matches!(self.entry_of(cluster)?, L2Entry::Compressed(_)) {
                self.zero_data_file(range, Space::Keep)?;
                let zeroed = self.touched(cluster, range);
                return self.publish(cluster, 1, Space::Keep, |_, old| match old.subclusters() {
                    Some((subclusters, space)) => {
                        let subclusters = subclusters.with(zeroed.clone(), SubclusterState::Zero);
                        L2Entry::of_subclusters(space, subclusters)
                    }
                    None => *old,
                });
            }
        }
        self.write_zero_bytes(range)
    }

    /// The entry of a cluster as it stands now.
    fn entry_of(&self, cluster: GuestCluster) -> Result<L2Entry> {
        let (key, index) = self.slice_index(cluster);
        match self.slice(key)? {
            Some(slice) => self.decode(slice.get(index), cluster),
            None => Ok(L2Entry::Unallocated),
        }
    }

    /// The subclusters of `cluster` that `range` has a part of.
    fn touched(&self, cluster: GuestCluster, range: ByteRange) -> Range<u64> {
        let start = self.geometry.guest_offset(cluster).get();
        let grain = self.geometry.subcluster_size();
        (range.start() - start) / grain..(range.end() - start).div_ceil(grain)
    }

    /// The guest bytes of some subclusters.
    fn bytes_of(&self, cluster: GuestCluster, subclusters: &Range<u64>) -> ByteRange {
        let start = self.geometry.guest_offset(cluster).get();
        let grain = self.geometry.subcluster_size();
        ByteRange::between(start + subclusters.start * grain, start + subclusters.end * grain)
    }

    /// Writes `buf` and, around it, what the guest sees in the rest of the subclusters at its ends, unless these are in
    /// the space already.
    fn fill_touched(&self, place: &Place, (buf, offset): (&[u8], u64)) -> Result<()> {
        let end = offset + buf.len() as u64;
        let touched = self.touched(place.cluster, ByteRange::between(offset, end));
        let around = self.bytes_of(place.cluster, &touched);
        let edge = |subcluster: u64, range: ByteRange| match place.filled.state(subcluster) {
            SubclusterState::Data => Ok(Vec::new()),
            _ => self.edge(range, place.content),
        };
        let head = edge(touched.start, ByteRange::between(around.start(), offset))?;
        let tail = edge(touched.end - 1, ByteRange::between(end, self.fill_end(around.end())))?;
        let start = if head.is_empty() { offset } else { around.start() };
        let in_cluster = self.geometry.offset_in_cluster(start);
        let mut parts = [IoSlice::new(&head), IoSlice::new(buf), IoSlice::new(&tail)];
        self.data.write(&mut parts, HostOffset(place.host.get() + in_cluster), start)
    }

    /// Copies the data of subclusters that a write does not touch from the cluster that is about to be given up.
    fn copy_untouched(&self, place: &Place, old: Subclusters, touched: &Range<u64>) -> Result<()> {
        let mut next = 0;
        while next < SUBCLUSTERS {
            let limit = if next < touched.start { touched.start } else { SUBCLUSTERS };
            let run = old.run(next, limit);
            let is_data = old.state(next) == SubclusterState::Data;
            next = run.end;
            if touched.contains(&run.start) {
                next = touched.end;
                continue;
            }
            if is_data {
                let range = self.bytes_of(place.cluster, &run);
                let bytes = self.edge(range, Content::Stale)?;
                let host = place.host.get() + self.geometry.offset_in_cluster(range.start());
                self.data.write(&mut [IoSlice::new(&bytes)], HostOffset(host), range.start())?;
            }
        }
        Ok(())
    }

    /// Publishes `touched` as data in the cluster at `host`, which is the guest cluster's alone.
    fn publish_filled(&self, cluster: GuestCluster, host: HostOffset, touched: Range<u64>) -> Result<()> {
        let space = Some(Allocated { host, copied: true });
        self.publish(cluster, 1, Space::Keep, |_, old| {
            let (subclusters, _) = old.subclusters().unwrap_or((Subclusters::ALL_DATA, None));
            L2Entry::of_subclusters(space, subclusters.with(touched.clone(), SubclusterState::Data))
        })
    }
}
