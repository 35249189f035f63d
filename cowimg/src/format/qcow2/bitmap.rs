//! The bitmap directory: one entry for each bitmap that the image stores (specification, "Bitmaps").
//!
//! | bytes | field | meaning |
//! |---|---|---|
//! | 0..8 | bitmap_table_offset | where the bitmap's table starts, at a cluster boundary |
//! | 8..12 | bitmap_table_size | entries of the table |
//! | 12..16 | flags | 0: in use, 1: auto (records writes), 2: extra data may be ignored |
//! | 16 | type | 1: dirty tracking |
//! | 17 | granularity_bits | log2 of the guest bytes that one bit stands for |
//! | 18..20 | name_size | bytes of the name, at most 1023 |
//! | 20..24 | extra_data_size | bytes between here and the name |
//! | 24.. | extra data, name, padding to 8 | |

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::address::HostOffset;

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
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
}

impl BitmapEntry {
    /// Flag: the bitmap was not saved properly, so that its content means nothing.
    pub const IN_USE: u32 = 1;
    /// Flag: the bitmap records every write.
    pub const AUTO: u32 = 2;
    /// Type: the bitmap tracks which parts of the disk were written.
    pub const DIRTY_TRACKING: u8 = 1;

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

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes: Vec<u8>, count: u32) {
            let _ = BitmapEntry::decode_directory(&bytes, count);
        }
    }
}
