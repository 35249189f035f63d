//! What a repair does about a finding, as a value.

use std::fmt;

/// What a repair does about a finding. Printed, it is a clause without a subject: "set the refcount to 1".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Remedy {
    /// Nothing.
    Leave {
        /// Why it stays.
        why: &'static str,
    },
    /// The cluster gets the refcount that its references make.
    SetRefcount {
        /// That refcount.
        refcount: u64,
    },
    /// All refcounts are built anew behind the end of the file.
    RebuildRefcounts,
    /// The copied flag becomes what the refcount says.
    CorrectCopied,
    /// Bits that mean nothing are cleared. What the entry refers to stays.
    ClearBits,
    /// The entry is made to refer to the cluster that it starts in, which nothing else claims.
    Relink {
        /// Where that cluster is, in bytes of the file.
        host: u64,
    },
    /// The entry keeps that the cluster reads as zeroes, and loses a cluster that it does not need.
    KeepZeroes,
    /// The entry's data cannot be had; it reads as zeroes.
    ReadAsZeroes,
    /// The entry goes: what it mapped reads as the backing file does, or as zeroes.
    Unmap,
    /// The claim moves to a copy of the cluster, and reads as before.
    Copy,
    /// The L1 table becomes as long as the disk needs.
    FitL1,
    /// The header is made to name the L1 table that the whole rest of the image agrees with.
    FindL1 {
        /// Where that table is, in bytes of the file.
        host: u64,
    },
    /// The snapshot's entry is written with what it lacks.
    CompleteSnapshot,
    /// The snapshot's L1 table becomes as long as its disk needs.
    FitSnapshotL1,
    /// The snapshot goes, as its disk cannot be found.
    DropSnapshot,
    /// The snapshots that can be read stay, in a new table.
    RewriteSnapshots,
    /// The bitmaps that are sound stay, in a directory without the others.
    RewriteBitmaps,
    /// All bitmaps become invalid, so that nobody trusts them.
    DropBitmaps,
    /// The bitmap says that all of this part has changed.
    MarkDirty,
}

impl Remedy {
    /// Whether something changes.
    pub const fn changes(self) -> bool {
        !matches!(self, Remedy::Leave { .. })
    }

    /// Whether it gives up data or a snapshot that the image names and that nobody could read before either.
    pub const fn gives_up(self) -> bool {
        matches!(self, Remedy::ReadAsZeroes | Remedy::Unmap | Remedy::DropSnapshot | Remedy::RewriteSnapshots)
    }
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Remedy::Leave { why } => return write!(f, "leave it: {why}"),
            Remedy::SetRefcount { refcount } => return write!(f, "set the refcount to {refcount}"),
            Remedy::Relink { host } => {
                return write!(f, "refer to the cluster at {host:#x}, which nothing else claims");
            }
            Remedy::FindL1 { host } => {
                return write!(f, "take the L1 table at {host:#x}, with which all of the image agrees");
            }
            Remedy::RebuildRefcounts => "build all refcounts anew",
            Remedy::CorrectCopied => "make the copied flag agree with the refcount",
            Remedy::ClearBits => "clear the bits that mean nothing",
            Remedy::KeepZeroes => "keep the zeroes, drop the cluster kept for them",
            Remedy::ReadAsZeroes => "give its data up: it reads as zeroes",
            Remedy::Unmap => "give it up: this part reads as the backing file does, or as zeroes",
            Remedy::Copy => "give each claim a copy of the cluster",
            Remedy::FitL1 => "make the L1 table as long as the disk needs",
            Remedy::CompleteSnapshot => "complete the snapshot's entry",
            Remedy::FitSnapshotL1 => "make the snapshot's L1 table as long as its disk needs",
            Remedy::DropSnapshot => "give the snapshot up",
            Remedy::RewriteSnapshots => "keep the snapshots that can be read",
            Remedy::RewriteBitmaps => "keep the bitmaps that are sound, and no others",
            Remedy::DropBitmaps => "make the bitmaps invalid",
            Remedy::MarkDirty => "let the bitmap say that all of this part has changed",
        })
    }
}
