//! Gives every guest cluster of an image that is being laid out a host cluster.

use super::allocator::Allocator;
use super::refcount_space::Headroom;
use super::{LayoutError, index};
use crate::format::qcow2::{GuestCluster, HostCluster};
use crate::range::ByteRange;

/// Most bytes that are mapped at a time, before rounding to clusters: the largest number that a C `int` holds.
const MAX_REQUEST: u64 = i32::MAX as u64;

/// Guest clusters in a row whose host clusters are in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MappedRun {
    /// First guest cluster.
    pub(super) guest: u64,
    /// First host cluster.
    pub(super) host: u64,
    /// Clusters.
    pub(super) count: u64,
}

/// Where the L2 tables and the data of an image are.
#[derive(Debug, Clone, Default)]
pub(super) struct Mapping {
    /// Host clusters of the L2 tables, by L1 index; empty without preallocation.
    pub(super) l2_tables: Vec<u64>,
    /// Host clusters of the data, by guest cluster and without a gap between them.
    pub(super) runs: Vec<MappedRun>,
}

#[allow(
    clippy::arithmetic_side_effects,
    reason = "cluster numbers are below 2^55, as their offsets fit in 63 bits"
)]
impl Mapping {
    /// Maps a disk of `size` bytes, one piece of it after the other: tables and data are mixed as they come.
    pub(super) fn interleaved(allocator: &mut Allocator, size: u64) -> Result<Mapping, LayoutError> {
        let geometry = allocator.geometry();
        let clusters = geometry.clusters_for(size);
        // Bytes of the last cluster that lie past the disk's last subcluster.
        let used = geometry.offset_in_cluster(size).next_multiple_of(geometry.subcluster_size());
        let unused = if used == 0 { 0 } else { geometry.cluster_size() - used };
        // Said now, not after a long search for the cluster that is one too many.
        allocator.check_end(clusters)?;
        let mut mapping = Mapping::default();
        let most = MAX_REQUEST / geometry.cluster_size();
        let mut guest = 0;
        while guest < clusters {
            let run = mapping.map_contiguous(allocator, guest..clusters.min(guest + most))?;
            guest += run.count;
            if guest == clusters {
                // Only the end of the last run is made sure to be in the file.
                let end = geometry.host_offset(HostCluster(run.host + run.count)).get();
                allocator.note_written_bytes(end - unused);
            }
        }
        Ok(mapping)
    }

    /// Maps `clusters` guest clusters to one run of host clusters, and returns where in the file that is.
    pub(super) fn contiguous(
        allocator: &mut Allocator,
        clusters: u64,
    ) -> Result<(Mapping, ByteRange), LayoutError> {
        let geometry = allocator.geometry();
        allocator.check_end(clusters)?;
        let l2_tables = clusters.div_ceil(geometry.l2_entries()) + 1;
        let end = allocator.used_end();
        let host = allocator.replace_table(end, clusters + l2_tables, Headroom::Exact, None)?;
        let count = allocator.allocate_at(host, clusters)?;
        debug_assert_eq!(count, clusters, "nothing is behind a refcount table that was just placed");
        allocator.note_written(host + clusters);
        let mut mapping = Mapping::default();
        mapping.push(MappedRun { guest: 0, host, count: clusters });
        for first in (0..clusters).step_by(index(geometry.l2_entries())) {
            mapping.require_table(allocator, first)?;
        }
        let start = geometry.host_offset(HostCluster(host)).get();
        let data_end = geometry.host_offset(HostCluster(host + clusters)).get();
        Ok((mapping, ByteRange::between(start, data_end)))
    }

    /// Maps `clusters` guest clusters to the same places of an external data file.
    pub(super) fn external(allocator: &mut Allocator, clusters: u64) -> Result<Mapping, LayoutError> {
        let mut mapping = Mapping::default();
        mapping.push(MappedRun { guest: 0, host: 0, count: clusters });
        for first in (0..clusters).step_by(index(allocator.geometry().l2_entries())) {
            mapping.require_table(allocator, first)?;
        }
        Ok(mapping)
    }

    /// Maps as much of a guest range as has its host clusters in a row.
    fn map_contiguous(
        &mut self,
        allocator: &mut Allocator,
        guest: std::ops::Range<u64>,
    ) -> Result<MappedRun, LayoutError> {
        let geometry = allocator.geometry();
        let mut run: Option<MappedRun> = None;
        let mut at = guest.start;
        while at < guest.end {
            let wanted = (geometry.l2_entries() - geometry.l2_index(GuestCluster(at))).min(guest.end - at);
            self.require_table(allocator, at)?;
            let count = match &mut run {
                None => {
                    let host = allocator.allocate(wanted)?;
                    run = Some(MappedRun { guest: at, host, count: wanted });
                    wanted
                }
                Some(run) => {
                    let count = allocator.allocate_at(run.host + run.count, wanted)?;
                    run.count += count;
                    count
                }
            };
            if count == 0 {
                break;
            }
            at += count;
        }
        let run = run.unwrap_or(MappedRun { guest: guest.start, host: 0, count: 0 });
        self.push(run);
        Ok(run)
    }

    /// Makes sure that the L2 table of a guest cluster is there.
    fn require_table(&mut self, allocator: &mut Allocator, guest: u64) -> Result<(), LayoutError> {
        let geometry = allocator.geometry();
        if geometry.l1_index(GuestCluster(guest)) >= self.l2_tables.len() as u64 {
            let table = allocator.allocate(1)?;
            allocator.note_written(table + 1);
            self.l2_tables.push(table);
        }
        Ok(())
    }

    fn push(&mut self, run: MappedRun) {
        match self.runs.last_mut() {
            _ if run.count == 0 => {}
            Some(last) if last.host + last.count == run.host => last.count += run.count,
            _ => self.runs.push(run),
        }
    }
}
