//! Every way in which a qcow2 image can contradict itself, as values with named fields.

use crate::format::qcow2::HeaderError;

/// A contradiction found in an image. Offsets are in bytes: `host` within the image file, `guest` on the disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Corruption {
    /// The header cannot be what it says.
    #[error("{0}")]
    Header(#[from] HeaderError),
    /// A table or cluster does not start at a cluster boundary.
    #[error("{what} at file offset {host:#x} does not start at a cluster boundary")]
    Unaligned {
        /// Which structure, as a phrase: "the L2 table".
        what: &'static str,
        /// Where it is said to be.
        host: u64,
    },
    /// A table lies beyond the end of the file.
    #[error("{what} at file offset {host:#x} lies past the end of the file ({file_len} bytes)")]
    PastEnd {
        /// Which structure.
        what: &'static str,
        /// Where it is said to be.
        host: u64,
        /// Length of the file.
        file_len: u64,
    },
    /// An L2 entry names a cluster beyond the end of the file.
    #[error(
        "the L2 entry for guest offset {guest:#x} points at file offset {host:#x}, past the end of the file \
         ({file_len} bytes)"
    )]
    L2EntryPastEnd {
        /// The guest cluster's offset.
        guest: u64,
        /// Where the entry points.
        host: u64,
        /// Length of the file.
        file_len: u64,
    },
    /// An L2 entry that no image of this version may have.
    #[error("the L2 entry {entry:#018x} for guest offset {guest:#x} is invalid: {why}")]
    L2Entry {
        /// The guest cluster's offset.
        guest: u64,
        /// The entry as stored.
        entry: u64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Data would be written over metadata.
    #[error(
        "guest offset {guest:#x} is mapped to file offset {host:#x}, which holds a table of the image itself"
    )]
    OverlapsMetadata {
        /// The guest cluster's offset.
        guest: u64,
        /// Where it is mapped.
        host: u64,
    },
    /// Space for something new would be taken where a table is.
    #[error(
        "the refcounts call the cluster at file offset {host:#x} free, and it holds a table of the image itself"
    )]
    TableIsFree {
        /// The cluster's offset in the file.
        host: u64,
    },
    /// A compressed cluster that does not decompress to one cluster.
    #[error(
        "the compressed cluster for guest offset {guest:#x} at file offset {host:#x} cannot be decompressed"
    )]
    CompressedData {
        /// The guest cluster's offset.
        guest: u64,
        /// Where the compressed bytes start.
        host: u64,
    },
    /// A refcount that cannot fall or rise any further.
    #[error("the refcount of the cluster at file offset {host:#x} is {refcount}, which cannot be so here")]
    Refcount {
        /// The cluster's offset in the file.
        host: u64,
        /// Its refcount.
        refcount: u64,
    },
    /// The bitmap directory cannot be read as one.
    #[error("{0}")]
    BitmapDirectory(String),
    /// An entry of a bitmap's table that no image may have.
    #[error("the table of the bitmap {name:?} has the entry {entry:#018x}, which is invalid: {why}")]
    BitmapTable {
        /// The bitmap's name.
        name: String,
        /// The entry as stored.
        entry: u64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The snapshot table cannot be read as one.
    #[error("the snapshot table is invalid: {0}")]
    SnapshotTable(String),
    /// The LUKS header, which says how the guest's data is encrypted, makes no sense.
    #[error("the LUKS header: {0}")]
    LuksHeader(String),
    /// The header of a qcow image of version 1 makes no sense.
    #[error("the qcow header: {0}")]
    Qcow1Header(String),
}
