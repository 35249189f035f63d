//! The arithmetic of clusters and tables: the only place where offsets, indices and sizes are turned into each other.
//!
//! ```text
//! guest offset:  | L1 index | L2 index | offset in cluster |
//!                            l2_bits     cluster_bits          (one bit less of l2_bits where entries are extended)
//! host cluster:  | refcount table index | index in refcount block |
//!                                         refcount_block_bits
//! ```
//!
//! A `Geometry` can only be made from values in the format's bounds, which is why its shifts cannot overflow.

use super::address::{GuestCluster, GuestOffset, HostCluster, HostOffset};

/// Smallest cluster: 512 bytes (specification, `cluster_bits`).
pub const MIN_CLUSTER_BITS: u32 = 9;
/// Largest cluster: 2 MiB, QEMU's limit, which is everyone's.
pub const MAX_CLUSTER_BITS: u32 = 21;
/// Widest refcount: 1 << 6 = 64 bits.
pub const MAX_REFCOUNT_ORDER: u32 = 6;
/// Size in bytes of an L1, L2 (not extended), refcount table entry.
pub const TABLE_ENTRY_SIZE: u64 = 8;
/// log2 of [`TABLE_ENTRY_SIZE`].
const TABLE_ENTRY_BITS: u32 = 3;
/// Subclusters of a cluster, in images with extended L2 entries.
pub const SUBCLUSTERS: u64 = 32;
/// log2 of [`SUBCLUSTERS`].
const SUBCLUSTER_COUNT_BITS: u32 = 5;

/// Why a geometry was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GeometryError {
    /// Not a cluster size of the format.
    #[error("cluster_bits is {0}; the cluster size must be a power of two from 512 bytes (9) to 2 MiB (21)")]
    ClusterBits(u32),
    /// Not a refcount width of the format.
    #[error("refcount_order is {0}; refcounts have 1 to 64 bits, an order of at most 6")]
    RefcountOrder(u32),
}

/// Cluster size and refcount width of an image, and all arithmetic that follows from them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Geometry {
    cluster_bits: u32,
    refcount_order: u32,
    /// Entries of L2 tables are extended by a word that says what is in each subcluster.
    extended_l2: bool,
}

// Every shift below is by a value that `new` has bounded, and every subtraction is of a smaller such value.
#[allow(clippy::arithmetic_side_effects, reason = "operands are bounded by Geometry::new")]
impl Geometry {
    /// A geometry of clusters of `1 << cluster_bits` bytes and refcounts of `1 << refcount_order` bits.
    pub const fn new(cluster_bits: u32, refcount_order: u32) -> Result<Geometry, GeometryError> {
        if cluster_bits < MIN_CLUSTER_BITS || cluster_bits > MAX_CLUSTER_BITS {
            return Err(GeometryError::ClusterBits(cluster_bits));
        }
        if refcount_order > MAX_REFCOUNT_ORDER {
            return Err(GeometryError::RefcountOrder(refcount_order));
        }
        Ok(Geometry { cluster_bits, refcount_order, extended_l2: false })
    }

    /// The geometry nearest to these values that the format has.
    pub(super) fn clamped(cluster_bits: u32, refcount_order: u32) -> Geometry {
        Geometry {
            cluster_bits: cluster_bits.clamp(MIN_CLUSTER_BITS, MAX_CLUSTER_BITS),
            refcount_order: refcount_order.min(MAX_REFCOUNT_ORDER),
            extended_l2: false,
        }
    }

    /// The same with extended L2 entries, if `extended`.
    #[must_use]
    pub const fn with_extended_l2(self, extended: bool) -> Geometry {
        Geometry { extended_l2: extended, ..self }
    }

    /// Whether entries of L2 tables are extended, and clusters divided into [`SUBCLUSTERS`].
    pub const fn has_subclusters(&self) -> bool {
        self.extended_l2
    }

    /// Bytes in a subcluster; in a cluster, where clusters are not divided.
    pub const fn subcluster_size(&self) -> u64 {
        if self.extended_l2 { 1 << (self.cluster_bits - SUBCLUSTER_COUNT_BITS) } else { self.cluster_size() }
    }

    /// Bytes in an entry of an L2 table.
    pub const fn l2_entry_size(&self) -> u64 {
        if self.extended_l2 { 2 * TABLE_ENTRY_SIZE } else { TABLE_ENTRY_SIZE }
    }

    /// log2 of the cluster size.
    pub const fn cluster_bits(&self) -> u32 {
        self.cluster_bits
    }

    /// Bytes in a cluster.
    pub const fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// log2 of the width of a refcount in bits.
    pub const fn refcount_order(&self) -> u32 {
        self.refcount_order
    }

    /// Width of a refcount in bits.
    pub const fn refcount_bits(&self) -> u32 {
        1 << self.refcount_order
    }

    /// Largest refcount that an entry can hold.
    pub const fn refcount_max(&self) -> u64 {
        u64::MAX >> (64 - self.refcount_bits())
    }

    /// Entries in an L2 table (one cluster).
    pub const fn l2_entries(&self) -> u64 {
        1 << self.l2_bits()
    }

    /// log2 of [`Geometry::l2_entries`].
    pub const fn l2_bits(&self) -> u32 {
        self.cluster_bits - TABLE_ENTRY_BITS - self.extended_l2 as u32
    }

    /// Guest bytes that one L2 table maps.
    pub const fn l2_coverage(&self) -> u64 {
        1 << (self.cluster_bits + self.l2_bits())
    }

    /// Refcounts in a refcount block (one cluster).
    pub const fn refcounts_per_block(&self) -> u64 {
        1 << self.refcount_block_bits()
    }

    const fn refcount_block_bits(self) -> u32 {
        self.cluster_bits + 3 - self.refcount_order
    }

    /// Offset within the cluster of a guest or host offset.
    pub const fn offset_in_cluster(&self, offset: u64) -> u64 {
        offset & (self.cluster_size() - 1)
    }

    /// Whether an offset is at a cluster boundary.
    pub const fn is_aligned(&self, offset: u64) -> bool {
        self.offset_in_cluster(offset) == 0
    }

    /// The offset rounded down to a cluster boundary.
    pub const fn align_down(&self, offset: u64) -> u64 {
        offset & !(self.cluster_size() - 1)
    }

    /// Clusters needed for `bytes`, rounded up.
    pub const fn clusters_for(&self, bytes: u64) -> u64 {
        (bytes >> self.cluster_bits) + (self.offset_in_cluster(bytes) != 0) as u64
    }

    /// The guest cluster that holds an offset.
    pub const fn guest_cluster(&self, offset: GuestOffset) -> GuestCluster {
        GuestCluster(offset.0 >> self.cluster_bits)
    }

    /// Where a guest cluster starts. Saturates for clusters that no disk has.
    pub const fn guest_offset(&self, cluster: GuestCluster) -> GuestOffset {
        GuestOffset(cluster.0.saturating_mul(self.cluster_size()))
    }

    /// The host cluster that holds an offset.
    pub const fn host_cluster(&self, offset: HostOffset) -> HostCluster {
        HostCluster(offset.0 >> self.cluster_bits)
    }

    /// Where a host cluster starts. Saturates for clusters that no file has.
    pub const fn host_offset(&self, cluster: HostCluster) -> HostOffset {
        HostOffset(cluster.0.saturating_mul(self.cluster_size()))
    }

    /// Index in the L1 table of the L2 table that maps a guest cluster.
    pub const fn l1_index(&self, cluster: GuestCluster) -> u64 {
        cluster.0 >> self.l2_bits()
    }

    /// Index of a guest cluster's entry in its L2 table.
    pub const fn l2_index(&self, cluster: GuestCluster) -> u64 {
        cluster.0 & (self.l2_entries() - 1)
    }

    /// L1 entries that a disk of `size` bytes needs.
    pub const fn l1_entries_for(&self, size: u64) -> u64 {
        let shift = self.cluster_bits + self.l2_bits();
        (size >> shift) + (size & ((1 << shift) - 1) != 0) as u64
    }

    /// Index in the refcount table of the block that counts a host cluster.
    pub const fn refcount_table_index(&self, cluster: HostCluster) -> u64 {
        cluster.0 >> self.refcount_block_bits()
    }

    /// Index of a host cluster's refcount within its block.
    pub const fn refcount_index(&self, cluster: HostCluster) -> u64 {
        cluster.0 & (self.refcounts_per_block() - 1)
    }

    /// First host cluster that the refcount block at this index of the table counts. Saturates.
    pub const fn first_counted(&self, table_index: u64) -> HostCluster {
        HostCluster(table_index.saturating_mul(self.refcounts_per_block()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_of_the_format_are_the_bounds_of_a_geometry() {
        assert!(Geometry::new(8, 4).is_err());
        assert!(Geometry::new(22, 4).is_err());
        assert!(Geometry::new(16, 7).is_err());
        assert!(Geometry::new(9, 0).is_ok());
        assert!(Geometry::new(21, 6).is_ok());
    }

    #[test]
    fn extended_entries_halve_what_a_table_maps() {
        let g = Geometry::new(16, 4).unwrap().with_extended_l2(true);
        assert_eq!(g.l2_entries(), 4096);
        assert_eq!(g.l2_coverage(), 256 << 20);
        assert_eq!(g.subcluster_size(), 2048);
        assert_eq!(g.l1_entries_for(1 << 30), 4);
        assert_eq!(Geometry::new(16, 4).unwrap().subcluster_size(), 65536);
    }

    #[test]
    fn qemus_default_geometry_maps_512_mib_per_l2_table() {
        let g = Geometry::new(16, 4).unwrap();
        assert_eq!(g.l2_coverage(), 512 << 20);
        assert_eq!(g.refcounts_per_block(), 32768);
        assert_eq!(g.l1_entries_for(1 << 30), 2);
        assert_eq!(g.l1_entries_for((1 << 30) + 1), 3);
        assert_eq!(g.l1_entries_for(0), 0);
        assert_eq!(g.refcount_max(), 0xffff);
        assert_eq!(Geometry::new(16, 6).unwrap().refcount_max(), u64::MAX);
        assert_eq!(Geometry::new(16, 0).unwrap().refcount_max(), 1);
    }
}
