//! Header extensions: the tagged fields between the header and the backing file's name.
//!
//! ```text
//! offset  size  field
//!  0      4     kind: 0 ends the list
//!  4      4     length n of the data
//!  8      n     data
//!  8+n    0-7   padding to a multiple of 8, of any content
//!
//! kind        data
//! 0xe2792aca  name of the backing file's format
//! 0x6803f857  feature names (see `features`)
//! 0x23852875  bitmaps (below)
//! 0x0537be77  place of the encryption header: u64 offset, u64 length
//! 0x44415441  name of the external data file
//! other       kept as it is
//!
//! bitmaps extension, 24 bytes:
//! offset  size  field
//!  0      4     number of bitmaps, at least 1
//!  4      4     reserved, 0
//!  8      8     size of the bitmap directory in bytes
//! 16      8     offset of the bitmap directory in the file, at a cluster boundary
//! ```

use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::address::HostOffset;
use super::geometry::Geometry;
use super::header::HeaderError;

/// A header extension as it stands in the file, less its padding.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Extension {
    /// Which extension.
    pub kind: u32,
    /// Its data.
    pub data: Vec<u8>,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawExtensionHeader {
    kind: U32,
    len: U32,
}

impl Extension {
    /// Ends the list; no extension of a decoded header is of this kind.
    pub const END: u32 = 0;
    /// Name of the backing file's format.
    pub const BACKING_FORMAT: u32 = 0xe2792aca;
    /// Names of feature bits.
    pub const FEATURE_NAMES: u32 = 0x6803f857;
    /// Where the bitmap directory is.
    pub const BITMAPS: u32 = 0x23852875;
    /// Where the header of the full-disk encryption is.
    pub const ENCRYPTION: u32 = 0x0537be77;
    /// Name of the external data file.
    pub const DATA_FILE: u32 = 0x44415441;

    /// What an extension is called, for those that this library knows.
    pub const fn name(kind: u32) -> Option<&'static str> {
        match kind {
            Extension::BACKING_FORMAT => Some("backing format"),
            Extension::FEATURE_NAMES => Some("feature name table"),
            Extension::BITMAPS => Some("bitmaps"),
            Extension::ENCRYPTION => Some("encryption header"),
            Extension::DATA_FILE => Some("external data file"),
            _ => None,
        }
    }

    /// Bytes that the extension takes in the file, padding included. Saturates.
    pub(super) fn stored_len(&self) -> u64 {
        let data = (self.data.len() as u64).div_ceil(8).saturating_mul(8);
        data.saturating_add(size_of::<RawExtensionHeader>() as u64)
    }

    /// Appends the extension as it stands in the file. The caller has checked that it fits in a cluster.
    pub(super) fn encode_into(&self, out: &mut Vec<u8>) {
        let len = u32::try_from(self.data.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(RawExtensionHeader { kind: self.kind.into(), len: len.into() }.as_bytes());
        out.extend_from_slice(&self.data);
        out.resize(out.len().next_multiple_of(8), 0);
    }
}

/// The marker that ends the list of extensions.
pub(super) const END_MARKER: [u8; 8] = [0; 8];

/// The extensions in `area`, which lies between the header's fields and the backing file's name (or the end of the
/// first cluster, or of the file). The list ends with its marker or with the area.
pub(super) fn decode_list(mut area: &[u8]) -> Result<Vec<Extension>, HeaderError> {
    let mut extensions = Vec::new();
    while !area.is_empty() {
        let available = area.len() as u64;
        let Ok((header, rest)) = RawExtensionHeader::ref_from_prefix(area) else {
            return Err(HeaderError::ExtensionsCut { available });
        };
        let (kind, len) = (header.kind.get(), header.len.get());
        if kind == Extension::END {
            break;
        }
        let Some((data, rest)) = rest.split_at_checked(len as usize) else {
            return Err(HeaderError::ExtensionTooLarge { kind, len, available });
        };
        extensions.push(Extension { kind, data: data.to_vec() });
        let padding = data.len().wrapping_neg() % 8;
        area = rest.get(padding..).unwrap_or_default();
    }
    Ok(extensions)
}

/// Refuses a list that names one thing twice: which of the two would hold? An unknown kind may have its own rule.
pub(super) fn check_list(extensions: &[Extension]) -> Result<(), HeaderError> {
    let mut seen = Vec::new();
    for extension in extensions {
        let kind = extension.kind;
        if kind == Extension::END {
            return Err(HeaderError::ExtensionKind);
        }
        let Some(name) = Extension::name(kind) else { continue };
        if seen.contains(&kind) {
            return Err(HeaderError::ExtensionTwice { kind, name });
        }
        seen.push(kind);
    }
    Ok(())
}

/// Where an image keeps its bitmaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BitmapsExtension {
    /// Number of bitmaps.
    pub count: u32,
    /// Size of the bitmap directory in bytes.
    pub directory_size: u64,
    /// Where the bitmap directory starts.
    pub directory: HostOffset,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawBitmaps {
    count: U32,
    reserved: U32,
    directory_size: U64,
    directory: U64,
}

impl BitmapsExtension {
    /// The most bitmaps that an image may have; QEMU's limit.
    pub const MAX_BITMAPS: u32 = 65535;
    /// The largest bitmap directory in bytes; QEMU's limit, of 1024 for each bitmap.
    pub const MAX_DIRECTORY_SIZE: u64 = 65535 * 1024;

    /// The extension's fields, or what is wrong with them.
    pub(super) fn decode(data: &[u8], g: Geometry) -> Result<BitmapsExtension, &'static str> {
        let Ok(raw) = RawBitmaps::ref_from_bytes(data) else {
            return Err("its length is not 24");
        };
        if raw.reserved.get() != 0 {
            return Err("its reserved field is not zero");
        }
        let count = raw.count.get();
        if count == 0 || count > BitmapsExtension::MAX_BITMAPS {
            return Err("it has not from 1 to 65535 bitmaps");
        }
        let (directory, directory_size) = (raw.directory.get(), raw.directory_size.get());
        if directory_size == 0 || directory_size > BitmapsExtension::MAX_DIRECTORY_SIZE {
            return Err("its bitmap directory is empty or larger than 1024 bytes for each of 65535 bitmaps");
        }
        if directory == 0 || !g.is_aligned(directory) {
            return Err("its bitmap directory does not start at a cluster boundary past the header");
        }
        // Safe from here on: the directory's end cannot overflow, for its size is bounded.
        if directory > (i64::MAX as u64).saturating_sub(BitmapsExtension::MAX_DIRECTORY_SIZE) {
            return Err("its bitmap directory lies past the largest file offset");
        }
        Ok(BitmapsExtension { count, directory_size, directory: HostOffset(directory) })
    }

    /// The extension that says this.
    pub fn to_extension(&self) -> Extension {
        let raw = RawBitmaps {
            count: self.count.into(),
            reserved: U32::ZERO,
            directory_size: self.directory_size.into(),
            directory: self.directory.0.into(),
        };
        Extension { kind: Extension::BITMAPS, data: raw.as_bytes().to_vec() }
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

    const KIND: u32 = 0x01020304;

    #[test]
    fn the_list_ends_with_its_marker_or_with_the_area() {
        let one = [1, 2, 3, 4, 0, 0, 0, 3, b'a', b'b', b'c', 0xee, 0xee, 0xee, 0xee, 0xee];
        let expected = [Extension { kind: KIND, data: b"abc".to_vec() }];
        assert_eq!(decode_list(&one).unwrap(), expected, "padding may be anything");
        assert_eq!(decode_list(&one[..11]).unwrap(), expected, "and may be cut by the end of the file");
        let marker = [one.as_slice(), &END_MARKER, &one].concat();
        assert_eq!(decode_list(&marker).unwrap(), expected);
        assert_eq!(decode_list(&[one, one].concat()).unwrap().len(), 2);
        assert_eq!(decode_list(&[]), Ok(Vec::new()));
    }

    #[test]
    fn an_extension_past_the_area_is_refused() {
        for len in [1_u32, 9, u32::MAX] {
            let bytes = [KIND.to_be_bytes(), len.to_be_bytes()].concat();
            assert_eq!(
                decode_list(&bytes),
                Err(HeaderError::ExtensionTooLarge { kind: KIND, len, available: 8 })
            );
        }
        assert_eq!(decode_list(&[1; 7]), Err(HeaderError::ExtensionsCut { available: 7 }));
        // The marker's length is of no interest.
        assert_eq!(decode_list(&[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]), Ok(Vec::new()));
    }

    #[test]
    fn a_known_kind_may_be_there_once() {
        let extension = |kind| Extension { kind, data: Vec::new() };
        for kind in [
            Extension::BACKING_FORMAT,
            Extension::FEATURE_NAMES,
            Extension::BITMAPS,
            Extension::ENCRYPTION,
            Extension::DATA_FILE,
        ] {
            assert_eq!(check_list(&[extension(kind)]), Ok(()));
            let error = check_list(&[extension(kind), extension(KIND), extension(kind)]).unwrap_err();
            assert!(matches!(error, HeaderError::ExtensionTwice { kind: twice, .. } if twice == kind));
        }
        assert_eq!(check_list(&[extension(KIND), extension(KIND)]), Ok(()));
        assert_eq!(check_list(&[extension(Extension::END)]), Err(HeaderError::ExtensionKind));
    }

    #[test]
    fn bitmaps_that_no_image_has_are_refused() {
        let g = Geometry::new(12, 4).unwrap();
        let good = BitmapsExtension { count: 2, directory_size: 64, directory: HostOffset(0x8000) };
        let decode = |bitmaps: BitmapsExtension| BitmapsExtension::decode(&bitmaps.to_extension().data, g);
        assert_eq!(decode(good), Ok(good));
        let bad = [
            BitmapsExtension { count: 0, ..good },
            BitmapsExtension { count: 65536, ..good },
            BitmapsExtension { directory_size: 0, ..good },
            BitmapsExtension { directory_size: 65535 * 1024 + 1, ..good },
            BitmapsExtension { directory: HostOffset(0), ..good },
            BitmapsExtension { directory: HostOffset(0x8200), ..good },
            BitmapsExtension { directory: HostOffset(i64::MAX as u64 & !0xfff), ..good },
        ];
        for bitmaps in bad {
            assert!(decode(bitmaps).is_err(), "{bitmaps:?}");
        }
        let mut data = good.to_extension().data;
        data[7] = 1;
        assert_eq!(BitmapsExtension::decode(&data, g), Err("its reserved field is not zero"));
        assert_eq!(BitmapsExtension::decode(&data[..23], g), Err("its length is not 24"));
    }

    proptest! {
        #[test]
        fn a_list_survives_encoding(
            list in prop::collection::vec((1..=u32::MAX, prop::collection::vec(any::<u8>(), 0..30)), 0..8),
        ) {
            let list: Vec<Extension> = list.into_iter().map(|(kind, data)| Extension { kind, data }).collect();
            let mut bytes = Vec::new();
            for extension in &list {
                let start = bytes.len() as u64;
                extension.encode_into(&mut bytes);
                prop_assert_eq!(bytes.len() as u64 - start, extension.stored_len());
            }
            prop_assert_eq!(&decode_list(&bytes).unwrap(), &list);
            bytes.extend(END_MARKER);
            prop_assert_eq!(decode_list(&bytes).unwrap(), list);
        }

        #[test]
        fn decoding_never_panics(bytes in prop::collection::vec(prop_oneof![Just(0_u8), any::<u8>()], 0..100)) {
            let _ = decode_list(&bytes);
        }
    }
}
