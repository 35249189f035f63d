//! Where a finding is, and what is wrong there: entries of L1 and L2 tables, snapshots, structures as a whole.

use std::fmt;

/// A structure of the file that is one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Structure {
    /// The header.
    Header,
    /// The active L1 table.
    L1Table,
    /// The L1 table of a snapshot.
    SnapshotL1Table,
    /// The snapshot table.
    SnapshotTable,
    /// The refcount table.
    RefcountTable,
    /// The header of the encryption.
    EncryptionHeader,
    /// The bitmap directory.
    BitmapDirectory,
    /// The table of a bitmap.
    BitmapTable,
}

impl fmt::Display for Structure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Structure::Header => "the header",
            Structure::L1Table => "the L1 table",
            Structure::SnapshotL1Table => "a snapshot's L1 table",
            Structure::SnapshotTable => "the snapshot table",
            Structure::RefcountTable => "the refcount table",
            Structure::EncryptionHeader => "the encryption header",
            Structure::BitmapDirectory => "the bitmap directory",
            Structure::BitmapTable => "a bitmap table",
        })
    }
}

/// What is wrong with an entry of the snapshot table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SnapshotProblem {
    /// It lacks the sizes of disk and machine state that version 3 wants.
    Incomplete,
    /// Its L1 table does not start at a cluster boundary.
    L1Unaligned,
    /// Its L1 table is larger than any may be.
    L1TooLarge,
    /// Its L1 table is said to be in the header.
    L1InHeader,
}

impl fmt::Display for SnapshotProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SnapshotProblem::Incomplete => "its entry is incomplete",
            SnapshotProblem::L1Unaligned => "its L1 table does not start at a cluster boundary",
            SnapshotProblem::L1TooLarge => "its L1 table is larger than 32 MiB",
            SnapshotProblem::L1InHeader => "its L1 table is said to be in the header",
        })
    }
}

/// What is wrong with an entry of the refcount table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RefcountTableProblem {
    /// Bits are set that are reserved.
    ReservedBits,
    /// The refcount block does not start at a cluster boundary.
    Unaligned,
    /// The refcount block lies past the largest offset that a file can have.
    PastLimit,
    /// The refcount block lies past the end of the file.
    PastEnd,
}

impl fmt::Display for RefcountTableProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RefcountTableProblem::ReservedBits => "reserved bits are set",
            RefcountTableProblem::Unaligned => "the refcount block does not start at a cluster boundary",
            RefcountTableProblem::PastLimit => "the refcount block lies past the largest file offset",
            RefcountTableProblem::PastEnd => "the refcount block lies past the end of the file",
        })
    }
}

/// An entry of an L1 table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct L1Site {
    /// Where in the file the entry is, in bytes.
    pub host: u64,
    /// Its index in the active L1 table; `None` in a snapshot's.
    pub index: Option<u64>,
    /// The entry as stored.
    pub entry: u64,
}

/// An entry of an L2 table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct L2Site {
    /// Where in the file the table starts, in bytes.
    pub table: u64,
    /// The entry's index in the table.
    pub index: u64,
    /// The guest offset in bytes that the entry maps, where the active L1 table refers to the table.
    pub guest: Option<u64>,
    /// The entry as stored (its first word, where L2 entries are extended).
    pub entry: u64,
}

/// What is wrong with an L1 entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum L1Problem {
    /// Bits are set that are reserved.
    ReservedBits,
    /// Bits are set, and there is no table.
    NoTable,
    /// The table does not start at a cluster boundary.
    Unaligned,
    /// The table lies past the end of the file.
    PastEnd {
        /// The length of the file in bytes.
        file_len: u64,
    },
    /// The table of an earlier entry, where data is in a file of its own: there a table maps one part of the disk alone, for
    /// each cluster is at its own place.
    TableOfAnother,
    /// The copied flag says the opposite of the table's refcount.
    Copied {
        /// The table's refcount as stored.
        refcount: u64,
    },
}

/// What is wrong with an L2 entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum L2Problem {
    /// Bits are set that are reserved.
    ReservedBits,
    /// The zero flag, which version 2 does not have.
    ZeroInVersion2,
    /// The data cluster does not start at a cluster boundary.
    Unaligned,
    /// The data lies past the end of the file.
    PastEnd {
        /// Where it is said to be, in bytes.
        host: u64,
        /// The length of the file in bytes.
        file_len: u64,
    },
    /// A compressed cluster with the copied flag, which would let it be overwritten in place.
    CopiedCompressed,
    /// A compressed cluster in an image whose data is in a file of its own.
    CompressedWithDataFile,
    /// A compressed cluster with subclusters.
    CompressedWithSubclusters {
        /// The entry's second word.
        subclusters: u64,
    },
    /// A cluster of a data file that is not where the guest's offset is, as each of them must be.
    NotItsPlace,
    /// Subclusters that are both allocated and zero.
    SubclustersTwice {
        /// The entry's second word.
        subclusters: u64,
    },
    /// Allocated subclusters, and no cluster that could hold them.
    SubclustersNowhere {
        /// The entry's second word.
        subclusters: u64,
    },
    /// The copied flag says the opposite of the cluster's refcount.
    Copied {
        /// The cluster's refcount as stored.
        refcount: u64,
    },
}

impl L1Site {
    pub(super) fn write(&self, f: &mut fmt::Formatter<'_>, problem: L1Problem) -> fmt::Result {
        let L1Site { host, index, entry } = *self;
        if let (L1Problem::Copied { refcount }, Some(index)) = (problem, index) {
            return write!(
                f,
                "ERROR OFLAG_COPIED L2 cluster: l1_index={index} l1_entry={entry:x} refcount={refcount}"
            );
        }
        match index {
            Some(index) => write!(f, "ERROR L1 entry {index} ({entry:#x}): ")?,
            None => write!(f, "ERROR L1 entry of a snapshot at offset {host:#x} ({entry:#x}): ")?,
        }
        match problem {
            L1Problem::ReservedBits => f.write_str("reserved bits are set"),
            L1Problem::NoTable => f.write_str("flags are set for a table that does not exist"),
            L1Problem::Unaligned => f.write_str("the L2 table does not start at a cluster boundary"),
            L1Problem::PastEnd { file_len } => {
                write!(f, "the L2 table lies past the end of the file ({file_len} bytes)")
            }
            L1Problem::TableOfAnother => {
                f.write_str("the L2 table is that of an earlier entry, in an image with a data file")
            }
            L1Problem::Copied { refcount } => {
                write!(f, "the copied flag contradicts the refcount {refcount}")
            }
        }
    }
}

impl L2Site {
    pub(super) fn write(&self, f: &mut fmt::Formatter<'_>, problem: L2Problem) -> fmt::Result {
        let L2Site { table, index, guest, entry } = *self;
        if let L2Problem::Copied { refcount } = problem {
            return write!(f, "ERROR OFLAG_COPIED data cluster: l2_entry={entry:x} refcount={refcount}");
        }
        write!(f, "ERROR L2 entry {index} ({entry:#x}) of the table at offset {table:#x}")?;
        if let Some(guest) = guest {
            write!(f, ", guest offset {guest:#x}")?;
        }
        f.write_str(": ")?;
        match problem {
            L2Problem::ReservedBits => f.write_str("reserved bits are set"),
            L2Problem::ZeroInVersion2 => f.write_str("the zero flag is set, which version 2 does not have"),
            L2Problem::Unaligned => f.write_str("the cluster does not start at a cluster boundary"),
            L2Problem::PastEnd { host, file_len } => {
                write!(f, "the data at offset {host:#x} lies past the end of the file ({file_len} bytes)")
            }
            L2Problem::CopiedCompressed => f.write_str("the copied flag is set on a compressed cluster"),
            L2Problem::CompressedWithDataFile => {
                f.write_str("a compressed cluster in an image with a data file")
            }
            L2Problem::NotItsPlace => f.write_str("the cluster is not at its own place in the data file"),
            L2Problem::CompressedWithSubclusters { subclusters } => {
                write!(f, "a compressed cluster with subclusters ({subclusters:#x})")
            }
            L2Problem::SubclustersTwice { subclusters } => {
                write!(f, "subclusters are both allocated and zero ({subclusters:#x})")
            }
            L2Problem::SubclustersNowhere { subclusters } => {
                write!(f, "subclusters are allocated ({subclusters:#x}) and the cluster is not")
            }
            L2Problem::Copied { refcount } => {
                write!(f, "the copied flag contradicts the refcount {refcount}")
            }
        }
    }
}
