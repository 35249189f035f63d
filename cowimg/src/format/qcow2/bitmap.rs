//! Persistent bitmaps: the directory, with one entry for each bitmap that the image stores, and the bitmaps' tables
//! (specification, "Bitmaps").
//!
//! ```text
//! header extension ──> directory ──> table of a bitmap ──> clusters of its bits
//! ```
//!
//! An entry of the directory:
//!
//! | bytes | field | meaning |
//! |---|---|---|
//! | 0..8 | table offset | where the bitmap's table starts, at a cluster boundary |
//! | 8..12 | table size | entries of the table |
//! | 12..16 | flags | 0: in use, 1: auto (records writes), 2: extra data may be ignored |
//! | 16 | type | 1: dirty tracking |
//! | 17 | granularity | log2 of the guest bytes that one bit stands for |
//! | 18..20 | length of name | bytes of the name, at most 1023 |
//! | 20..24 | size of extra data | bytes between here and the name |
//! | 24.. | extra data, name, padding to 8 | |
//!
//! An entry of a bitmap's table, each for a cluster of the bitmap's bits (bit 0 of byte 0 is the first):
//!
//! ```text
//! bit    63      56 55                      9 8      1  0
//!      | reserved  | bits 9-55 of the offset | reserved | A |
//!
//! offset 0: no cluster; its bits are all ones where A is set, else all zeroes. A is reserved where there is a cluster.
//! ```

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::address::HostOffset;
use super::extensions::BitmapsExtension;
use super::geometry::Geometry;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawEntry {
    table: U64,
    table_entries: U32,
    flags: U32,
    kind: u8,
    granularity_bits: u8,
    name_len: U16,
    extra_len: U32,
}

/// An entry of the bitmap directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BitmapEntry {
    /// Where the bitmap's table starts.
    pub table: HostOffset,
    /// Entries of the table.
    pub table_entries: u32,
    /// The flags as stored; see [`BitmapEntry::IN_USE`] and [`BitmapEntry::AUTO`].
    pub flags: u32,
    /// The type; [`BitmapEntry::DIRTY_TRACKING`] is the only one so far.
    pub kind: u8,
    /// log2 of the guest bytes that one bit stands for; at most 31 in an image that QEMU opens.
    pub granularity_bits: u8,
    /// Data of which the specification says nothing.
    pub extra: Vec<u8>,
    /// The bitmap's name.
    pub name: Vec<u8>,
}

/// Why a bitmap directory was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BitmapDirectoryError {
    /// It ends within an entry.
    #[error("the bitmap directory ends within its entry {nth}")]
    Truncated {
        /// Which entry, counted from 0.
        nth: u32,
    },
    /// A granularity that no bitmap can have.
    #[error("entry {nth} of the bitmap directory has a granularity of 2^{bits} bytes")]
    Granularity {
        /// Which entry.
        nth: u32,
        /// log2 of the granularity.
        bits: u8,
    },
    /// More or longer entries than a directory may have.
    #[error("a bitmap directory of {count} bitmaps and {bytes} bytes passes the limits of the format")]
    TooLarge {
        /// Number of bitmaps.
        count: u64,
        /// Size of the directory in bytes.
        bytes: u64,
    },
}

/// Where a cluster of a bitmap's bits is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BitmapTableEntry {
    /// Nowhere: all bits are zero.
    Zeroes,
    /// Nowhere: all bits are one.
    Ones,
    /// In this cluster of the file.
    Cluster(HostOffset),
}

impl BitmapTableEntry {
    const ALL_ONES: u64 = 1;
    const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;

    /// The entry as stored, or what is wrong with it.
    pub fn decode(raw: u64, g: &Geometry) -> Result<BitmapTableEntry, &'static str> {
        let offset = raw & Self::OFFSET_MASK;
        let reserved = !Self::OFFSET_MASK & if offset == 0 { !Self::ALL_ONES } else { u64::MAX };
        if raw & reserved != 0 {
            return Err("reserved bits are set");
        }
        if !g.is_aligned(offset) {
            return Err("its cluster does not start at a cluster boundary");
        }
        Ok(match (offset, raw) {
            (0, 0) => BitmapTableEntry::Zeroes,
            (0, _) => BitmapTableEntry::Ones,
            (offset, _) => BitmapTableEntry::Cluster(HostOffset(offset)),
        })
    }

    /// The entry as it stands in the file.
    pub const fn encode(self) -> u64 {
        match self {
            BitmapTableEntry::Zeroes => 0,
            BitmapTableEntry::Ones => Self::ALL_ONES,
            BitmapTableEntry::Cluster(HostOffset(offset)) => offset,
        }
    }
}

impl BitmapEntry {
    /// Flag: the bitmap was not saved properly, so that its content means nothing.
    pub const IN_USE: u32 = 1;
    /// Flag: the bitmap records every write.
    pub const AUTO: u32 = 2;
    /// Type: the bitmap tracks which parts of the disk were written.
    pub const DIRTY_TRACKING: u8 = 1;

    /// Flag: extra data that is not known may be ignored, and is kept.
    pub const EXTRA_COMPATIBLE: u32 = 4;
    /// All other flags.
    pub const RESERVED_FLAGS: u32 =
        !(BitmapEntry::IN_USE | BitmapEntry::AUTO | BitmapEntry::EXTRA_COMPATIBLE);
    /// Longest name in bytes.
    pub const MAX_NAME: usize = 1023;
    /// Smallest granularity, as log2 of bytes.
    pub const MIN_GRANULARITY_BITS: u8 = 9;
    /// Largest granularity, as log2 of bytes; QEMU's limit.
    pub const MAX_GRANULARITY_BITS: u8 = 31;
    /// The most entries of a bitmap table; QEMU's limit.
    pub const MAX_TABLE_ENTRIES: u32 = 0x0800_0000;
    /// The most bytes of bits that a bitmap may have; QEMU's limit.
    pub const MAX_BYTES: u64 = 0x2000_0000;
    /// Where the flags stand within an entry of the directory. Entries start at multiples of 8, so that the flags never
    /// cross the border of a sector.
    pub const FLAGS_OFFSET: u64 = 12;

    /// Bytes of bits of a bitmap with this granularity for a disk of `size` bytes.
    pub fn bytes_for(size: u64, granularity_bits: u8) -> u64 {
        let bits = size.div_ceil(1_u64.checked_shl(granularity_bits.into()).unwrap_or(1 << 63));
        bits.div_ceil(8)
    }

    /// What keeps the bitmap's table from being found.
    pub fn table_problem(&self, g: &Geometry) -> Option<&'static str> {
        if self.kind != BitmapEntry::DIRTY_TRACKING {
            return Some("its type is not known");
        }
        if self.table.0 == 0 || !g.is_aligned(self.table.0) {
            return Some("its table does not start at a cluster boundary past the header");
        }
        if self.table_entries == 0 || self.table_entries > BitmapEntry::MAX_TABLE_ENTRIES {
            return Some("its table is empty or too long");
        }
        None
    }

    /// What else contradicts the specification, for a disk of `size` bytes.
    pub fn problem(&self, g: &Geometry, size: u64) -> Option<&'static str> {
        if self.flags & BitmapEntry::RESERVED_FLAGS != 0 {
            return Some("reserved flags are set");
        }
        if self.name.len() > BitmapEntry::MAX_NAME {
            return Some("its name is longer than 1023 bytes");
        }
        let granularities = BitmapEntry::MIN_GRANULARITY_BITS..=BitmapEntry::MAX_GRANULARITY_BITS;
        if !granularities.contains(&self.granularity_bits) {
            return Some("its granularity is out of bounds");
        }
        // One that is in use was not saved, perhaps since before the disk grew.
        let saved = self.flags & BitmapEntry::IN_USE == 0;
        let needed = g.clusters_for(BitmapEntry::bytes_for(size, self.granularity_bits));
        if saved && u64::from(self.table_entries) != needed {
            return Some("its table does not fit the size of the disk");
        }
        None
    }

    /// Bytes that the entry takes in the directory, padding included. Saturates.
    pub fn stored_len(&self) -> u64 {
        let variable = (self.extra.len() as u64).saturating_add(self.name.len() as u64);
        let len = variable.saturating_add(size_of::<RawEntry>() as u64);
        len.checked_next_multiple_of(8).unwrap_or(u64::MAX)
    }

    /// The directory that lists `entries`.
    pub fn encode_directory(entries: &[BitmapEntry]) -> Result<Vec<u8>, BitmapDirectoryError> {
        let count = entries.len() as u64;
        let bytes = entries.iter().map(BitmapEntry::stored_len).fold(0, u64::saturating_add);
        if count > BitmapsExtension::MAX_BITMAPS.into() || bytes > BitmapsExtension::MAX_DIRECTORY_SIZE {
            return Err(BitmapDirectoryError::TooLarge { count, bytes });
        }
        let mut out = Vec::new();
        for entry in entries {
            let too_large = BitmapDirectoryError::TooLarge { count, bytes };
            let raw = RawEntry {
                table: entry.table.0.into(),
                table_entries: entry.table_entries.into(),
                flags: entry.flags.into(),
                kind: entry.kind,
                granularity_bits: entry.granularity_bits,
                name_len: u16::try_from(entry.name.len()).map_err(|_| too_large)?.into(),
                extra_len: u32::try_from(entry.extra.len()).map_err(|_| too_large)?.into(),
            };
            out.extend_from_slice(raw.as_bytes());
            out.extend_from_slice(&entry.extra);
            out.extend_from_slice(&entry.name);
            out.resize(out.len().next_multiple_of(8), 0);
        }
        Ok(out)
    }

    /// The first `count` entries of a directory.
    pub fn decode_directory(bytes: &[u8], count: u32) -> Result<Vec<BitmapEntry>, BitmapDirectoryError> {
        let mut rest = bytes;
        let mut entries = Vec::new();
        for nth in 0..count {
            let truncated = BitmapDirectoryError::Truncated { nth };
            let (entry, used) = BitmapEntry::decode(rest).ok_or(truncated)?;
            if entry.granularity_bits > 63 {
                return Err(BitmapDirectoryError::Granularity { nth, bits: entry.granularity_bits });
            }
            // The padding of the last entry may be missing.
            rest = rest.get(used..).unwrap_or_default();
            entries.push(entry);
        }
        Ok(entries)
    }

    /// The entries of a directory, however many it has; `None` unless they fill `bytes` to the last.
    pub fn decode_all(bytes: &[u8]) -> Option<Vec<BitmapEntry>> {
        let mut rest = bytes;
        let mut entries = Vec::new();
        while !rest.is_empty() {
            let (entry, used) = BitmapEntry::decode(rest)?;
            rest = rest.get(used..)?;
            entries.push(entry);
        }
        Some(entries)
    }

    /// The entry at the start of `bytes`, and its length with padding.
    fn decode(bytes: &[u8]) -> Option<(BitmapEntry, usize)> {
        let (raw, rest) = RawEntry::ref_from_prefix(bytes).ok()?;
        let (extra, rest) = rest.split_at_checked(usize::try_from(raw.extra_len.get()).ok()?)?;
        let (name, _) = rest.split_at_checked(usize::from(raw.name_len.get()))?;
        let used = size_of::<RawEntry>().checked_add(extra.len())?.checked_add(name.len())?;
        let entry = BitmapEntry {
            table: HostOffset(raw.table.get()),
            table_entries: raw.table_entries.get(),
            flags: raw.flags.get(),
            kind: raw.kind,
            granularity_bits: raw.granularity_bits,
            extra: extra.to_vec(),
            name: name.to_vec(),
        };
        Some((entry, used.checked_next_multiple_of(8)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(name: &[u8], flags: u32) -> Vec<u8> {
        let mut bytes = 0x50000u64.to_be_bytes().to_vec();
        bytes.extend(1u32.to_be_bytes());
        bytes.extend(flags.to_be_bytes());
        bytes.extend([BitmapEntry::DIRTY_TRACKING, 16]);
        bytes.extend(u16::try_from(name.len()).unwrap().to_be_bytes());
        bytes.extend(0u32.to_be_bytes());
        bytes.extend(name);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    #[test]
    fn entries_follow_each_other_at_multiples_of_eight() {
        let directory = [entry(b"b0", BitmapEntry::AUTO), entry(b"a longer name", 0)].concat();
        let entries = BitmapEntry::decode_directory(&directory, 2).unwrap();
        let seen: Vec<_> = entries.iter().map(|entry| (entry.name.as_slice(), entry.flags)).collect();
        assert_eq!(seen, [(&b"b0"[..], BitmapEntry::AUTO), (&b"a longer name"[..], 0)]);
        assert_eq!(
            BitmapEntry::decode_directory(&directory, 3),
            Err(BitmapDirectoryError::Truncated { nth: 2 })
        );
    }

    #[test]
    fn table_entries_say_zeroes_ones_or_a_cluster() {
        let g = Geometry::new(16, 4).unwrap();
        let decode = |raw| BitmapTableEntry::decode(raw, &g);
        assert_eq!(decode(0), Ok(BitmapTableEntry::Zeroes));
        assert_eq!(decode(1), Ok(BitmapTableEntry::Ones));
        assert_eq!(decode(0x30000), Ok(BitmapTableEntry::Cluster(HostOffset(0x30000))));
        assert_eq!(decode(0x30001), Err("reserved bits are set"));
        assert_eq!(decode(2), Err("reserved bits are set"));
        assert_eq!(decode(1 << 56), Err("reserved bits are set"));
        assert_eq!(decode(0x30200), Err("its cluster does not start at a cluster boundary"));
        for raw in [0, 1, 0x30000] {
            assert_eq!(decode(raw).unwrap().encode(), raw);
        }
    }

    #[test]
    fn a_directory_survives_decoding_and_encoding_with_what_is_not_known() {
        let known = [entry(b"b0", 2), entry(b"12345678", 0)].concat();
        let mut entries = BitmapEntry::decode_directory(&known, 2).unwrap();
        for entry in &mut entries {
            entry.extra = b"from the future".to_vec();
            entry.flags |= BitmapEntry::EXTRA_COMPATIBLE | 1 << 20;
            entry.kind = 77;
        }
        let bytes = BitmapEntry::encode_directory(&entries).unwrap();
        assert_eq!(bytes.len() as u64, entries.iter().map(BitmapEntry::stored_len).sum::<u64>());
        assert_eq!(BitmapEntry::decode_directory(&bytes, 2).unwrap(), entries);
    }

    #[test]
    fn a_directory_has_limits() {
        let one = BitmapEntry::decode_directory(&entry(b"b", 0), 1).unwrap().remove(0);
        let many = vec![one.clone(); 65_536];
        assert!(matches!(
            BitmapEntry::encode_directory(&many),
            Err(BitmapDirectoryError::TooLarge { count: 65_536, .. })
        ));
        let long = BitmapEntry { name: vec![b'x'; 70_000], ..one };
        assert!(BitmapEntry::encode_directory(&[long]).is_err());
    }

    #[test]
    fn a_bit_stands_for_each_started_piece_of_the_disk() {
        assert_eq!(BitmapEntry::bytes_for(0, 16), 0);
        assert_eq!(BitmapEntry::bytes_for(1, 16), 1);
        assert_eq!(BitmapEntry::bytes_for(8 << 16, 16), 1);
        assert_eq!(BitmapEntry::bytes_for((8 << 16) + 1, 16), 2);
        assert_eq!(BitmapEntry::bytes_for(u64::MAX, 63), 1);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes: Vec<u8>, count: u32) {
            let _ = BitmapEntry::decode_directory(&bytes, count);
        }
    }
}
