//! Every way in which a header can contradict itself or pass a limit.

use super::{CompressionType, Header};
use crate::format::qcow2::geometry::GeometryError;

/// Why a header was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// The file ends within its header.
    #[error("the header needs {needed} bytes, and the file has {len}")]
    Truncated {
        /// Bytes that are there.
        len: u64,
        /// Bytes that are needed.
        needed: u64,
    },
    /// The first bytes are not those of a qcow2 image.
    #[error("the file does not start with the qcow2 magic")]
    Magic,
    /// A version other than 2 and 3.
    #[error("version {0} of qcow2 is not supported; 2 and 3 are")]
    Version(u32),
    /// Cluster size or refcount width out of bounds.
    #[error("{0}")]
    Geometry(#[from] GeometryError),
    /// A length of the header that no header can have.
    #[error(
        "header_length is {length}; it must be a multiple of 8 from 104 to the cluster size, {cluster_size}"
    )]
    HeaderLength {
        /// The length in bytes.
        length: u32,
        /// The cluster size in bytes.
        cluster_size: u64,
    },
    /// Something that version 2 has no room for.
    #[error("version 2 cannot have {what}")]
    NeedsVersion3 {
        /// What it is.
        what: &'static str,
    },
    /// Extended L2 entries with clusters too small to be divided by 32.
    #[error("extended L2 entries need clusters of at least 16384 bytes; these have {cluster_size}")]
    SubclusterSize {
        /// The cluster size in bytes.
        cluster_size: u64,
    },
    /// A compression type that the specification does not know.
    #[error("compression type {0} is unknown")]
    CompressionType(u8),
    /// The compression type and its feature bit do not agree.
    #[error("the compression type is {} and its feature bit says otherwise", compression.as_str())]
    CompressionBit {
        /// The type in the header.
        compression: CompressionType,
    },
    /// A table that does not start at a cluster boundary.
    #[error("the {table} at file offset {host:#x} does not start at a cluster boundary")]
    TableUnaligned {
        /// Which table.
        table: &'static str,
        /// Where it is said to be.
        host: u64,
    },
    /// A table over the header.
    #[error("the {table} at file offset {host:#x} lies within the header's cluster")]
    TableInHeader {
        /// Which table.
        table: &'static str,
        /// Where it is said to be.
        host: u64,
    },
    /// A table larger than its limit.
    #[error("the {table} has {bytes} bytes; the limit is {limit}")]
    TableTooLarge {
        /// Which table.
        table: &'static str,
        /// Its size in bytes.
        bytes: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// A table that ends past the largest file offset.
    #[error("the {table} at file offset {host:#x} lies past the largest file offset")]
    TablePastLimit {
        /// Which table.
        table: &'static str,
        /// Where it is said to be.
        host: u64,
    },
    /// A refcount table of no clusters.
    #[error("the image has no refcount table")]
    NoRefcountTable,
    /// An L1 table that is too short for the disk.
    #[error("the L1 table has {entries} entries, and a disk of {size} bytes needs {needed}")]
    L1TooSmall {
        /// Entries of the table.
        entries: u32,
        /// Entries that the size needs.
        needed: u64,
        /// Size of the disk in bytes.
        size: u64,
    },
    /// More snapshots than an image may have.
    #[error("the image has {count} snapshots; the limit is {}", Header::MAX_SNAPSHOTS)]
    TooManySnapshots {
        /// Number of snapshots.
        count: u32,
    },
    /// The backing file's name is where no name can be.
    #[error(
        "the backing file's name is at file offset {offset}, which is not between the header and the end of its cluster"
    )]
    BackingNamePlace {
        /// Where it is said to be.
        offset: u64,
    },
    /// The backing file's name has no bytes or too many.
    #[error("the backing file's name has {len} bytes; there is room for {room}")]
    BackingNameLength {
        /// Length in bytes.
        len: u64,
        /// The most that it may have.
        room: u64,
    },
    /// The extensions end within the head of one.
    #[error("the header extensions end {available} bytes into one")]
    ExtensionsCut {
        /// Bytes that are left for the extension.
        available: u64,
    },
    /// An extension that does not fit in the space for extensions.
    #[error(
        "the header extension {kind:#010x} has {len} bytes of data, and {available} bytes are left for all of it"
    )]
    ExtensionTooLarge {
        /// Which extension.
        kind: u32,
        /// Length of its data as stated.
        len: u32,
        /// Bytes that are left, from the start of the extension on.
        available: u64,
    },
    /// An extension that may be there once is there twice.
    #[error("the header extension {kind:#010x} ({name}) is there twice")]
    ExtensionTwice {
        /// Which extension.
        kind: u32,
        /// What it is called.
        name: &'static str,
    },
    /// An extension of kind 0, which would end the list.
    #[error("kind 0 ends the list of header extensions and cannot be one of them")]
    ExtensionKind,
    /// The bitmaps extension contradicts itself.
    #[error("the bitmaps extension is invalid: {why}")]
    Bitmaps {
        /// What is wrong with it.
        why: &'static str,
    },
    /// The data file is said to be a raw image, and there is none.
    #[error("the feature bit of a raw data file is set, and the image has no data file")]
    NoRawDataFile,
    /// The header does not fit in one cluster.
    #[error(
        "the header with its extensions and the backing file's name needs {bytes} bytes; a cluster has {cluster_size}"
    )]
    TooLarge {
        /// Bytes that it needs.
        bytes: u64,
        /// The cluster size in bytes.
        cluster_size: u64,
    },
}
