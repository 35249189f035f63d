//! How many clusters the refcounts of an image take, themselves included.

use crate::format::qcow2::{Geometry, TABLE_ENTRY_SIZE};

/// Whether room is left for growth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Headroom {
    /// What is needed now, no more.
    Exact,
    /// Half as much again, so that the next growth is not soon.
    Generous,
}

/// Clusters for refcount blocks and for the refcount table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RefcountSpace {
    /// Refcount blocks, one cluster each.
    pub blocks: u64,
    /// Clusters of the refcount table.
    pub table_clusters: u64,
}

// Cluster counts are below 2^55 (a 63-bit offset over the smallest cluster), so that sums of a few stay in 64 bits.
#[allow(clippy::arithmetic_side_effects, reason = "sums of a few numbers below 2^56")]
impl RefcountSpace {
    /// What `clusters` clusters of other use need. The blocks and the table are counted by the blocks too, so this is
    /// a fixed point and not a formula.
    pub fn for_clusters(geometry: Geometry, clusters: u64, headroom: Headroom) -> RefcountSpace {
        let exact = fixed_point(geometry, clusters, RefcountSpace { blocks: 0, table_clusters: 0 });
        match headroom {
            Headroom::Exact => exact,
            Headroom::Generous => fixed_point(geometry, clusters + exact.table_clusters.div_ceil(2), exact),
        }
    }
}

/// Counts blocks and table clusters, starting with an estimate that is not too high, until the numbers stand.
#[allow(clippy::arithmetic_side_effects, reason = "sums of a few numbers below 2^56")]
fn fixed_point(geometry: Geometry, clusters: u64, estimate: RefcountSpace) -> RefcountSpace {
    let blocks_per_table_cluster = geometry.cluster_size() / TABLE_ENTRY_SIZE;
    let mut space = estimate;
    loop {
        let counted = clusters + space.blocks + space.table_clusters;
        let blocks = counted.div_ceil(geometry.refcounts_per_block());
        let next = RefcountSpace { blocks, table_clusters: blocks.div_ceil(blocks_per_table_cluster) };
        if next == space {
            return space;
        }
        space = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_blocks_count_themselves_and_the_table() {
        let geometry = Geometry::new(9, 6).unwrap();
        for clusters in [1, 62, 63, 64, 4000, 4096, 1 << 20, 1 << 30] {
            for headroom in [Headroom::Exact, Headroom::Generous] {
                let space = RefcountSpace::for_clusters(geometry, clusters, headroom);
                assert!(space.blocks * 64 >= clusters + space.blocks + space.table_clusters);
                assert!(space.table_clusters * 64 >= space.blocks);
                assert!((space.blocks - 1) * 64 < clusters + space.blocks + 2 * space.table_clusters);
            }
        }
    }
}
