//! An entry of an L1 table: where an L2 table is.
//!
//! ```text
//! bit    63  62     56 55                      9 8       0
//!      | C | reserved | bits 9-55 of the offset | reserved |
//!
//! C (copied): the table's refcount is exactly one, so it may be written in place. Right in the active L1 table
//! only. An offset of 0 means that there is no table.
//! ```

use super::address::HostOffset;
use super::geometry::Geometry;
use super::l2_entry::{Allocated, COPIED, OFFSET_MASK};

/// An entry of an L1 table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct L1Entry {
    /// The L2 table, if there is one.
    pub table: Option<Allocated>,
}

/// Why an L1 entry was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum L1EntryError {
    /// The table does not start at a cluster boundary.
    #[error("the L2 table at file offset {host:#x} does not start at a cluster boundary")]
    Unaligned {
        /// Where the entry points.
        host: u64,
    },
}

impl L1EntryError {
    /// The reason as a clause, without the values.
    pub const fn why(&self) -> &'static str {
        match self {
            L1EntryError::Unaligned { .. } => "the L2 table does not start at a cluster boundary",
        }
    }
}

impl L1Entry {
    /// The entry of a table, at a cluster boundary.
    pub const fn new(host: HostOffset, copied: bool) -> L1Entry {
        L1Entry { table: Some(Allocated { host, copied }) }
    }

    /// What an entry says. Reserved bits are passed over: see [`L1Entry::reserved_bits`].
    pub fn decode(raw: u64, g: &Geometry) -> Result<L1Entry, L1EntryError> {
        let host = raw & OFFSET_MASK;
        if host == 0 {
            return Ok(L1Entry { table: None });
        }
        if !g.is_aligned(host) {
            return Err(L1EntryError::Unaligned { host });
        }
        Ok(L1Entry { table: Some(Allocated { host: HostOffset(host), copied: raw & COPIED != 0 }) })
    }

    /// The entry as it stands in the file.
    pub fn encode(&self) -> u64 {
        self.table.map_or(0, Allocated::bits)
    }

    /// Those of the reserved bits that are set; an image that is in order has none.
    pub const fn reserved_bits(raw: u64) -> u64 {
        raw & !(OFFSET_MASK | COPIED)
    }
}

#[cfg(test)]
#[allow(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test may fail"
)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_geometry() -> impl Strategy<Value = Geometry> {
        (9_u32..=21).prop_map(|bits| Geometry::new(bits, 4).unwrap())
    }

    #[test]
    fn a_table_that_is_not_there_is_none() {
        let g = Geometry::new(16, 4).unwrap();
        assert_eq!(L1Entry::decode(0, &g), Ok(L1Entry::default()));
        assert_eq!(L1Entry::decode(COPIED, &g), Ok(L1Entry::default()));
    }

    #[test]
    fn an_entry_that_qemu_wrote_is_read() {
        let g = Geometry::new(16, 4).unwrap();
        let entry = L1Entry::decode(0x8000_0000_0004_0000, &g).unwrap();
        assert_eq!(entry, L1Entry::new(HostOffset(0x40000), true));
        assert_eq!(entry.encode(), 0x8000_0000_0004_0000);
    }

    #[test]
    fn an_unaligned_table_is_refused() {
        let g = Geometry::new(16, 4).unwrap();
        let error = L1Entry::decode(COPIED | 0x40200, &g).unwrap_err();
        assert_eq!(error, L1EntryError::Unaligned { host: 0x40200 });
    }

    proptest! {
        #[test]
        fn an_entry_survives_encoding(g in any_geometry(), cluster in 1_u64..1 << 35, copied: bool) {
            let entry = L1Entry::new(HostOffset(cluster << g.cluster_bits()), copied);
            prop_assert_eq!(L1Entry::decode(entry.encode(), &g), Ok(entry));
            prop_assert_eq!(L1Entry::reserved_bits(entry.encode()), 0);
        }

        #[test]
        fn bits_that_mean_something_survive_decoding(g in any_geometry(), raw: u64) {
            let raw = raw & !(OFFSET_MASK & (g.cluster_size() - 1));
            let entry = L1Entry::decode(raw, &g).unwrap();
            let kept = if entry.table.is_some() { raw & !L1Entry::reserved_bits(raw) } else { 0 };
            prop_assert_eq!(entry.encode(), kept);
        }

        #[test]
        fn decoding_never_panics(g in any_geometry(), raw: u64) {
            let _ = L1Entry::decode(raw, &g);
        }
    }
}
