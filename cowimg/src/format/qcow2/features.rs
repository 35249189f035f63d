//! Feature bits and the names that an image gives them.
//!
//! ```text
//! incompatible (header offset 72): an image with an unknown bit must not be opened
//!   0 dirty   1 corrupt   2 external data file   3 compression type   4 extended L2 entries
//! compatible (80): unknown bits are kept and ignored
//!   0 lazy refcounts
//! autoclear (88): unknown bits are cleared before the first change (rule W7)
//!   0 bitmaps are consistent   1 the external data file can be read as a raw image
//!
//! entry of the feature name table (extension 0x6803f857), 48 bytes:
//! offset  size  field
//!  0      1     kind: 0 incompatible, 1 compatible, 2 autoclear
//!  1      1     bit number, 0 to 63
//!  2      46    name, padded with zeroes
//! ```

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::extensions::Extension;

macro_rules! feature_bits {
    ($(#[$doc:meta])* $name:ident { $($(#[$bit_doc:meta])* $bit:ident = $number:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
        pub struct $name(pub u64);

        impl $name {
            $($(#[$bit_doc])* pub const $bit: $name = $name(1 << $number);)+

            const KNOWN: u64 = $(Self::$bit.0)|+;

            /// Whether all bits of `bits` are set.
            pub const fn contains(self, bits: $name) -> bool {
                self.0 & bits.0 == bits.0
            }

            /// These bits and those of `bits`.
            #[must_use]
            pub const fn with(self, bits: $name) -> $name {
                $name(self.0 | bits.0)
            }

            /// These bits less those of `bits`.
            #[must_use]
            pub const fn without(self, bits: $name) -> $name {
                $name(self.0 & !bits.0)
            }

            /// The bits that this library has no name for.
            pub const fn unknown(self) -> u64 {
                self.0 & !Self::KNOWN
            }
        }
    };
}

feature_bits! {
    /// Features that one must know to open the image at all.
    Incompatible {
        /// Refcounts may be wrong: the image was not closed, or keeps its refcounts lazily.
        DIRTY = 0,
        /// Any structure may be wrong; only a repair may write.
        CORRUPT = 1,
        /// Guest data is in a file of its own.
        DATA_FILE = 2,
        /// The header names a compression type other than deflate.
        COMPRESSION = 3,
        /// L2 entries have 16 bytes, with 32 subclusters each.
        EXTENDED_L2 = 4,
    }
}

feature_bits! {
    /// Features that one may ignore.
    Compatible {
        /// Refcounts may be left behind while the dirty bit is set.
        LAZY_REFCOUNTS = 0,
    }
}

feature_bits! {
    /// Promises that end with the first change by somebody who does not know them.
    Autoclear {
        /// The bitmaps extension agrees with the image.
        BITMAPS = 0,
        /// The external data file is a raw image of the disk.
        DATA_FILE_RAW = 1,
    }
}

/// One of the three sets of feature bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FeatureKind {
    /// [`Incompatible`].
    Incompatible,
    /// [`Compatible`].
    Compatible,
    /// [`Autoclear`].
    Autoclear,
}

impl FeatureKind {
    const fn raw(self) -> u8 {
        match self {
            FeatureKind::Incompatible => 0,
            FeatureKind::Compatible => 1,
            FeatureKind::Autoclear => 2,
        }
    }

    const fn from_raw(raw: u8) -> Option<FeatureKind> {
        match raw {
            0 => Some(FeatureKind::Incompatible),
            1 => Some(FeatureKind::Compatible),
            2 => Some(FeatureKind::Autoclear),
            _ => None,
        }
    }
}

/// The names that QEMU writes, in its order.
const WELL_KNOWN: [(FeatureKind, u8, &str); 8] = [
    (FeatureKind::Incompatible, 0, "dirty bit"),
    (FeatureKind::Incompatible, 1, "corrupt bit"),
    (FeatureKind::Incompatible, 2, "external data file"),
    (FeatureKind::Incompatible, 3, "compression type"),
    (FeatureKind::Incompatible, 4, "extended L2 entries"),
    (FeatureKind::Compatible, 0, "lazy refcounts"),
    (FeatureKind::Autoclear, 0, "bitmaps"),
    (FeatureKind::Autoclear, 1, "raw external data"),
];

const NAME_LEN: usize = 46;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawName {
    kind: u8,
    bit: u8,
    name: [u8; NAME_LEN],
}

/// The table of names as QEMU writes it, into images of version 3 whose clusters are larger than 4096 bytes.
pub fn name_table_extension() -> Extension {
    let mut data = Vec::with_capacity(size_of::<[RawName; WELL_KNOWN.len()]>());
    for (kind, bit, name) in WELL_KNOWN {
        let mut raw = RawName { kind: kind.raw(), bit, name: [0; NAME_LEN] };
        for (to, from) in raw.name.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        data.extend_from_slice(raw.as_bytes());
    }
    Extension { kind: Extension::FEATURE_NAMES, data }
}

/// What the feature bits of an image are called: by its own table first, else by their well-known names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FeatureNames {
    table: Vec<(FeatureKind, u8, String)>,
}

impl FeatureNames {
    /// The names in the data of a feature name table. Entries that make no sense are passed over, for a wrong name
    /// is no reason not to open an image.
    pub(super) fn decode(data: &[u8]) -> FeatureNames {
        let table = data
            .chunks_exact(size_of::<RawName>())
            .filter_map(|entry| RawName::ref_from_bytes(entry).ok())
            .filter(|entry| entry.bit < 64)
            .filter_map(|entry| {
                Some((FeatureKind::from_raw(entry.kind)?, entry.bit, printable(&entry.name)?))
            })
            .collect();
        FeatureNames { table }
    }

    /// What a bit is called, or `None` when neither the image nor this library has a name for it.
    pub fn name(&self, kind: FeatureKind, bit: u8) -> Option<&str> {
        let own =
            self.table.iter().find(|entry| entry.0 == kind && entry.1 == bit).map(|entry| entry.2.as_str());
        let well_known =
            || WELL_KNOWN.iter().find(|entry| entry.0 == kind && entry.1 == bit).map(|entry| entry.2);
        own.or_else(well_known)
    }

    /// The names of all bits that are set in `bits`, lowest first; a bit without a name is called "bit 40".
    pub fn names(&self, kind: FeatureKind, bits: u64) -> Vec<String> {
        (0..64)
            .filter(|&bit| bits & (1 << bit) != 0)
            .map(|bit| self.name(kind, bit).map_or_else(|| format!("bit {bit}"), str::to_owned))
            .collect()
    }
}

/// A name up to its padding. It goes to a terminal some day, so it may not carry control characters there.
fn printable(name: &[u8]) -> Option<String> {
    let end = name.split(|&byte| byte == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(end);
    let text: String =
        text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect();
    (!text.is_empty()).then_some(text)
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

    #[test]
    fn the_name_table_has_eight_entries_of_48_bytes() {
        let table = name_table_extension();
        assert_eq!(table.kind, Extension::FEATURE_NAMES);
        assert_eq!(table.data.len(), 8 * 48);
        assert_eq!(&table.data[..12], b"\0\0dirty bit\0");
        assert_eq!(&table.data[7 * 48..7 * 48 + 20], b"\x02\x01raw external data\0");
        let names = FeatureNames::decode(&table.data);
        for (kind, bit, name) in WELL_KNOWN {
            assert_eq!(names.name(kind, bit), Some(name));
        }
    }

    #[test]
    fn the_images_own_name_goes_before_the_well_known_one() {
        let mut entry = vec![1, 0];
        entry.extend([b'x'; NAME_LEN]);
        let names = FeatureNames::decode(&entry);
        assert_eq!(names.name(FeatureKind::Compatible, 0), Some("x".repeat(NAME_LEN).as_str()));
        assert_eq!(names.name(FeatureKind::Incompatible, 0), Some("dirty bit"));
        assert_eq!(names.name(FeatureKind::Compatible, 1), None);
        assert_eq!(
            names.names(FeatureKind::Incompatible, 1 << 63 | 0b11),
            ["dirty bit", "corrupt bit", "bit 63"]
        );
    }

    #[test]
    fn entries_that_make_no_sense_are_passed_over() {
        for start in [[3, 0, b'x'], [0, 64, b'x'], [0, 9, 0]] {
            let mut entry = start.to_vec();
            entry.resize(48, 0);
            assert_eq!(FeatureNames::decode(&entry), FeatureNames::default());
            assert_eq!(FeatureNames::decode(&entry[..47]), FeatureNames::default());
        }
    }

    #[test]
    fn only_bits_without_a_name_are_unknown() {
        let known = Incompatible(0).with(Incompatible::DIRTY).with(Incompatible::EXTENDED_L2);
        assert_eq!(known.unknown(), 0);
        assert_eq!(Incompatible(0x3f).unknown(), 0x20);
        assert_eq!(Compatible(3).unknown(), 2);
        assert_eq!(Autoclear(7).unknown(), 4);
        assert!(known.contains(Incompatible::DIRTY) && !known.contains(Incompatible::CORRUPT));
        assert!(!Incompatible::DIRTY.contains(known), "all of the bits, not any");
        assert_eq!(known.without(Incompatible::DIRTY), Incompatible::EXTENDED_L2);
    }

    proptest! {
        #[test]
        fn names_are_decoded_from_any_bytes_and_are_printable(
            data in prop::collection::vec(prop_oneof![0_u8..4, any::<u8>()], 0..200),
        ) {
            for (_, _, name) in FeatureNames::decode(&data).table {
                prop_assert!(!name.is_empty() && !name.chars().any(char::is_control));
            }
        }
    }
}
