//! The header: the first cluster of the file.
//!
//! ```text
//! offset  size  field
//!   0     4     magic "QFI\xfb"
//!   4     4     version, 2 or 3
//!   8     8     offset of the backing file's name, 0 for none
//!  16     4     length of that name, at most 1023
//!  20     4     cluster_bits
//!  24     8     size of the disk in bytes
//!  32     4     encryption: 0 none, 1 AES, 2 LUKS
//!  36     4     entries in the active L1 table
//!  40     8     offset of the active L1 table
//!  48     8     offset of the refcount table
//!  56     4     clusters of the refcount table
//!  60     4     number of snapshots
//!  64     8     offset of the snapshot table
//! ------------- version 2 ends here; the values that it then has are in the last column
//!  72     8     incompatible feature bits                                                 0
//!  80     8     compatible feature bits                                                   0
//!  88     8     autoclear feature bits                                                    0
//!  96     4     refcount_order                                                            4
//! 100     4     header_length h, a multiple of 8                                         72
//! ------------- a header of 104 bytes ends here
//! 104     1     compression type: 0 deflate, 1 zstd                                       0
//! 105     h-105 fields of the future, and padding of zeroes
//!   h     ..    extensions, up to an end marker of 8 zeroes (see `extensions`)
//!  ..     ..    name of the backing file, without a terminator
//! ```
//!
//! [`Header::decode`] refuses what contradicts itself or passes a limit, so that whoever holds a decoded header can
//! take the memory that it asks for and do arithmetic with its offsets. Features that are merely unknown are for
//! the caller to refuse, who can name them.

mod codec;
mod error;
mod validate;

pub use error::HeaderError;

use super::address::HostOffset;
use super::extensions::{BitmapsExtension, Extension};
use super::features::{Autoclear, Compatible, FeatureKind, FeatureNames, Incompatible};
use super::geometry::{Geometry, MAX_CLUSTER_BITS, MIN_CLUSTER_BITS};

/// Version of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// Without feature bits, zero clusters and refcounts other than of 16 bits ("compat 0.10").
    V2,
    /// With all of those ("compat 1.1").
    V3,
}

impl Version {
    /// The number in the header.
    pub const fn number(self) -> u32 {
        match self {
            Version::V2 => 2,
            Version::V3 => 3,
        }
    }

    const fn from_number(number: u32) -> Option<Version> {
        match number {
            2 => Some(Version::V2),
            3 => Some(Version::V3),
            _ => None,
        }
    }
}

/// How compressed clusters are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum CompressionType {
    /// Deflate without a zlib header, although it is called "zlib".
    #[default]
    Deflate,
    /// Zstandard.
    Zstd,
}

impl CompressionType {
    /// The name that users know it by.
    pub const fn as_str(self) -> &'static str {
        match self {
            CompressionType::Deflate => "zlib",
            CompressionType::Zstd => "zstd",
        }
    }

    const fn raw(self) -> u8 {
        match self {
            CompressionType::Deflate => 0,
            CompressionType::Zstd => 1,
        }
    }
}

/// How guest data is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum CryptMethod {
    /// It is not.
    #[default]
    None,
    /// AES in CBC mode, the old method.
    Aes,
    /// LUKS.
    Luks,
    /// A method that the specification does not know.
    Other(u32),
}

impl CryptMethod {
    /// The number in the header.
    pub const fn code(self) -> u32 {
        match self {
            CryptMethod::None => 0,
            CryptMethod::Aes => 1,
            CryptMethod::Luks => 2,
            CryptMethod::Other(code) => code,
        }
    }

    const fn from_code(code: u32) -> CryptMethod {
        match code {
            0 => CryptMethod::None,
            1 => CryptMethod::Aes,
            2 => CryptMethod::Luks,
            other => CryptMethod::Other(other),
        }
    }
}

/// A header, decoded and validated.
///
/// The fields may be changed; [`Header::encode`] validates again, so that no header is written that could not be
/// read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Version of the format.
    pub version: Version,
    /// log2 of the cluster size.
    pub cluster_bits: u32,
    /// Size of the disk in bytes.
    pub size: u64,
    /// How guest data is encrypted.
    pub crypt_method: CryptMethod,
    /// Entries in the active L1 table.
    pub l1_entries: u32,
    /// Where the active L1 table starts.
    pub l1_table: HostOffset,
    /// Where the refcount table starts.
    pub refcount_table: HostOffset,
    /// Clusters of the refcount table.
    pub refcount_table_clusters: u32,
    /// Number of snapshots.
    pub snapshot_count: u32,
    /// Where the snapshot table starts.
    pub snapshot_table: HostOffset,
    /// Features that one must know.
    pub incompatible: Incompatible,
    /// Features that one may ignore.
    pub compatible: Compatible,
    /// Features that a change by the ignorant ends.
    pub autoclear: Autoclear,
    /// log2 of the width of a refcount in bits.
    pub refcount_order: u32,
    /// How compressed clusters are compressed.
    pub compression: CompressionType,
    /// The header's bytes from offset 105 on, kept as they are; empty when they are all zero.
    pub unknown_fields: Vec<u8>,
    /// Length of the header's fields as stored, 72 in version 2. Where the fields need more, they get more.
    pub header_length: u32,
    /// Extensions in the order of the file, without the end marker.
    pub extensions: Vec<Extension>,
    /// Name of the backing file as stored, 1 to 1023 bytes.
    pub backing_file: Option<Vec<u8>>,
}

impl Header {
    /// The first four bytes of every image.
    pub const MAGIC: [u8; 4] = *b"QFI\xfb";
    /// Largest L1 table in bytes; QEMU's limit.
    pub const MAX_L1_BYTES: u64 = 32 << 20;
    /// Largest refcount table in bytes; QEMU's limit.
    pub const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
    /// Most snapshots; QEMU's limit.
    pub const MAX_SNAPSHOTS: u32 = 65536;
    /// Longest name of a backing file in bytes.
    pub const MAX_BACKING_NAME: u64 = 1023;

    /// Length in bytes of the header's fields in new images of a version.
    pub const fn default_length(version: Version) -> u32 {
        match version {
            Version::V2 => codec::LENGTH_V2,
            Version::V3 => codec::LENGTH_V3,
        }
    }

    /// The cluster size's log2 of the image that starts with these bytes (24 are enough), so that the rest of the
    /// first cluster can be read; `None` when [`Header::decode`] would refuse it anyway.
    pub fn cluster_bits_of(first_bytes: &[u8]) -> Option<u32> {
        let magic = first_bytes.first_chunk::<4>()?;
        let version = u32::from_be_bytes(*first_bytes.get(4..)?.first_chunk()?);
        let bits = u32::from_be_bytes(*first_bytes.get(20..)?.first_chunk()?);
        let known = *magic == Header::MAGIC && Version::from_number(version).is_some();
        (known && (MIN_CLUSTER_BITS..=MAX_CLUSTER_BITS).contains(&bits)).then_some(bits)
    }

    /// The geometry that the header states. A header whose fields have been set out of bounds by hand, which
    /// [`Header::encode`] refuses, is taken to mean the nearest bound.
    pub fn geometry(&self) -> Geometry {
        let extended_l2 = self.incompatible.contains(Incompatible::EXTENDED_L2);
        Geometry::clamped(self.cluster_bits, self.refcount_order).with_extended_l2(extended_l2)
    }

    fn extension(&self, kind: u32) -> Option<&[u8]> {
        self.extensions
            .iter()
            .find(|extension| extension.kind == kind)
            .map(|extension| extension.data.as_slice())
    }

    /// Name of the backing file's format, where the image states one.
    pub fn backing_format(&self) -> Option<&[u8]> {
        self.extension(Extension::BACKING_FORMAT)
    }

    /// Changes the backing file and its format. The format's extension goes before all others, as QEMU has it.
    /// Without a name, or with an empty one, there is no backing file and no format.
    pub fn set_backing(&mut self, name: Option<&[u8]>, format: Option<&[u8]>) {
        self.backing_file = name.filter(|name| !name.is_empty()).map(<[u8]>::to_vec);
        self.extensions.retain(|extension| extension.kind != Extension::BACKING_FORMAT);
        if let (Some(_), Some(format)) = (&self.backing_file, format) {
            let extension = Extension { kind: Extension::BACKING_FORMAT, data: format.to_vec() };
            self.extensions.insert(0, extension);
        }
    }

    /// Adds an extension, before those that QEMU writes after it: its order is that of [`Extension`]'s constants.
    pub fn insert_extension(&mut self, extension: Extension) {
        let rank = |kind: u32| match kind {
            Extension::BACKING_FORMAT => 0,
            Extension::DATA_FILE => 1,
            Extension::ENCRYPTION => 2,
            Extension::FEATURE_NAMES => 3,
            Extension::BITMAPS => 4,
            _ => 5,
        };
        let new = rank(extension.kind);
        let at = self.extensions.iter().position(|other| rank(other.kind) > new);
        self.extensions.insert(at.unwrap_or(self.extensions.len()), extension);
    }

    /// Name of the external data file, where the image states one.
    pub fn data_file_name(&self) -> Option<&[u8]> {
        self.extension(Extension::DATA_FILE)
    }

    /// Where the encryption header is: its offset and its length, in bytes.
    pub fn crypto_header(&self) -> Option<(u64, u64)> {
        let data = self.extension(Extension::ENCRYPTION)?;
        let word = |at: usize| data.get(at..at.saturating_add(8))?.try_into().ok().map(u64::from_be_bytes);
        Some((word(0)?, word(8)?))
    }

    /// What this image calls its feature bits.
    pub fn feature_names(&self) -> FeatureNames {
        self.extension(Extension::FEATURE_NAMES).map(FeatureNames::decode).unwrap_or_default()
    }

    /// Where the bitmaps are. `None` unless the feature bit says that they agree with the image: what the extension
    /// says of an image that was changed without it holds for nothing.
    pub fn bitmaps(&self) -> Option<BitmapsExtension> {
        if !self.autoclear.contains(Autoclear::BITMAPS) {
            return None;
        }
        BitmapsExtension::decode(self.extension(Extension::BITMAPS)?, self.geometry()).ok()
    }

    /// What the unknown incompatible features are called, "bit 40" where a bit has no name; empty when all are known.
    pub fn unknown_incompatible(&self) -> Vec<String> {
        match self.incompatible.unknown() {
            0 => Vec::new(),
            unknown => self.feature_names().names(FeatureKind::Incompatible, unknown),
        }
    }
}
