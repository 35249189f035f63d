//! How long the file of an image gets once every guest cluster has been written.
//!
//! An upper bound that QEMU's `measure` gives, not the place of anything: tables are counted whole.

use super::refcount_space::{Headroom, RefcountSpace};
use super::{LayoutError, MAX_L1_BYTES};
use crate::format::qcow2::{Geometry, TABLE_ENTRY_SIZE};

/// Refuses a disk of `size` bytes whose L1 table would be longer than readers accept.
pub fn check_disk_size(geometry: Geometry, size: u64) -> Result<(), LayoutError> {
    let l1_entries = geometry.l1_entries_for(size);
    let max = MAX_L1_BYTES / TABLE_ENTRY_SIZE;
    if l1_entries > max { Err(LayoutError::DiskTooLarge { l1_entries, max }) } else { Ok(()) }
}

/// Bytes of the file with all of a disk of `size` bytes written; `None` for more than 64 bits hold.
pub fn full_size(geometry: Geometry, size: u64) -> Option<u64> {
    let cluster_size = geometry.cluster_size();
    let data = size.checked_next_multiple_of(cluster_size)?;
    let l2_tables = geometry.l1_entries_for(data);
    let l1_clusters = geometry.clusters_for(l2_tables.checked_mul(TABLE_ENTRY_SIZE)?);
    // The header takes one cluster.
    let tables = l2_tables.checked_add(l1_clusters)?.checked_add(1)?;
    let counted = geometry.clusters_for(data).checked_add(tables)?;
    let refcounts = RefcountSpace::for_clusters(geometry, counted, Headroom::Exact);
    let clusters = counted.checked_add(refcounts.blocks)?.checked_add(refcounts.table_clusters)?;
    clusters.checked_mul(cluster_size)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What qemu-img 10.0 measured.
    #[test]
    fn sizes_are_those_that_qemu_img_measures() {
        let geometry = Geometry::new(16, 4).unwrap();
        assert_eq!(full_size(geometry, 1 << 30), Some(1074135040));
        assert_eq!(full_size(geometry, 1001), Some(393216));
    }

    #[test]
    fn the_largest_disk_has_a_size() {
        let geometry = Geometry::new(9, 6).unwrap();
        assert!(full_size(geometry.with_extended_l2(true), i64::MAX as u64).is_some());
        assert!(check_disk_size(geometry, i64::MAX as u64).is_err());
    }
}
