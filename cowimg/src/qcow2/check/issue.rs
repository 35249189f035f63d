//! What a check can find, as values, and the log that keeps them within bounds.
//!
//! The lines for leaks, wrong refcounts and wrong copied flags have the form that scripts have been searching for
//! since there are checks of this format; the others say in plain words what is wrong and where.

use std::fmt;

use super::sites::{L1Problem, L1Site, L2Problem, L2Site, RefcountTableProblem, SnapshotProblem, Structure};
use super::snapshot_mend::is_about_snapshots;

/// What a finding means for the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Space is held that nothing uses. No data is at risk.
    Leak,
    /// Structures contradict each other: data may be wrong, or may become wrong with the next write.
    Corruption,
    /// Something could not be checked.
    CheckError,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Leak => "leak",
            Severity::Corruption => "corruption",
            Severity::CheckError => "check error",
        })
    }
}

/// One finding of a check. Printed, it is one line.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CheckIssue {
    /// What it means for the image.
    pub severity: Severity,
    /// What was found, and where.
    pub finding: Finding,
    /// How often it counts in the report's totals: a wrong entry of an L2 table that three snapshots share is listed
    /// once and counts three times.
    pub times: u64,
}

/// What a check found. Offsets are in bytes of the image file, clusters are numbered from its start.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Finding {
    /// A cluster's refcount is higher than the number of references to it.
    Leaked {
        /// The cluster.
        cluster: u64,
        /// Its refcount as stored.
        refcount: u64,
        /// The references that were found.
        references: u64,
    },
    /// A cluster's refcount is lower than the number of references to it.
    RefcountTooLow {
        /// The cluster.
        cluster: u64,
        /// Its refcount as stored.
        refcount: u64,
        /// The references that were found.
        references: u64,
    },
    /// A cluster has more references than a refcount of this image can say. Counts once for each that is too much.
    TooManyReferences {
        /// The cluster.
        cluster: u64,
        /// The references that were found.
        references: u64,
        /// The largest refcount.
        max: u64,
    },
    /// Refcounts that cannot be read. Counts once for each cluster.
    RefcountsUnknown {
        /// Index of their block in the refcount table.
        block: u64,
        /// Where the block is said to be.
        host: u64,
        /// The first cluster whose refcount is unknown.
        first_cluster: u64,
        /// How many there are.
        clusters: u64,
        /// Why.
        why: String,
    },
    /// An entry of the refcount table that cannot be used.
    RefcountTableEntry {
        /// Its index.
        index: u64,
        /// The entry as stored.
        entry: u64,
        /// What is wrong with it.
        problem: RefcountTableProblem,
    },
    /// The header's pointer to a table is not one, or the header says impossible things about the table.
    HeaderField {
        /// Which table.
        table: Structure,
        /// What is wrong.
        why: String,
    },
    /// A refcount block that is something else as well.
    SharedRefcountBlock {
        /// Its index in the refcount table.
        index: u64,
        /// Where it is.
        host: u64,
        /// References to its cluster.
        references: u64,
    },
    /// An entry of an L1 table.
    L1Entry {
        /// Which entry.
        site: L1Site,
        /// What is wrong with it.
        problem: L1Problem,
    },
    /// An entry of an L2 table.
    L2Entry {
        /// Which entry.
        site: L2Site,
        /// What is wrong with it.
        problem: L2Problem,
    },
    /// Something is said to lie where the file has no bytes.
    PastEnd {
        /// What.
        what: Structure,
        /// Where.
        host: u64,
        /// Its length in bytes.
        len: u64,
        /// The length of the file in bytes.
        file_len: u64,
    },
    /// An entry of the snapshot table.
    Snapshot {
        /// Its index in the table.
        index: u64,
        /// The snapshot's ID and name.
        name: String,
        /// What is wrong with it.
        problem: SnapshotProblem,
    },
    /// The image has snapshots and an external data file, which cannot have any.
    SnapshotsWithDataFile {
        /// Number of snapshots.
        count: u64,
    },
    /// The snapshot table cannot be read as one, so that what the snapshots refer to is not known.
    SnapshotTable {
        /// What is wrong with it.
        why: String,
    },
    /// The bitmap directory cannot be read as one, so that what the bitmaps refer to is not known.
    BitmapDirectory {
        /// What is wrong with it.
        why: String,
    },
    /// An entry of the bitmap directory.
    Bitmap {
        /// Its index.
        index: u64,
        /// What is wrong.
        why: &'static str,
    },
    /// An entry of a bitmap's table.
    BitmapTableEntry {
        /// Where in the file the entry is.
        host: u64,
        /// The entry as stored.
        entry: u64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The host could not read a structure.
    Unreadable {
        /// Which.
        what: String,
        /// Where it is.
        host: u64,
        /// The operating system's answer.
        why: String,
    },
}

impl Finding {
    /// What it means for the image.
    pub const fn severity(&self) -> Severity {
        match self {
            Finding::Leaked { .. } => Severity::Leak,
            Finding::RefcountsUnknown { .. }
            | Finding::SnapshotTable { .. }
            | Finding::BitmapDirectory { .. }
            | Finding::Bitmap { .. }
            | Finding::PastEnd { what: Structure::BitmapDirectory, .. }
            | Finding::HeaderField { .. }
            | Finding::Unreadable { .. } => Severity::CheckError,
            _ => Severity::Corruption,
        }
    }

    /// The copied flags are looked at while the tables are in memory; they are listed last all the same, for they
    /// matter least and are often a consequence.
    pub(super) const fn is_about_copied(&self) -> bool {
        matches!(
            self,
            Finding::L1Entry { problem: L1Problem::Copied { .. }, .. }
                | Finding::L2Entry { problem: L2Problem::Copied { .. }, .. }
        )
    }
}

impl fmt::Display for CheckIssue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.finding)?;
        match self.times {
            0 | 1 => Ok(()),
            times => write!(f, " (counts {times} times)"),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::Leaked { cluster, refcount, references } => {
                write!(f, "Leaked cluster {cluster} refcount={refcount} reference={references}")
            }
            Finding::RefcountTooLow { cluster, refcount, references } => {
                write!(f, "ERROR cluster {cluster} refcount={refcount} reference={references}")
            }
            Finding::TooManyReferences { cluster, references, max } => {
                write!(f, "ERROR cluster {cluster} has {references} references, refcounts go to {max} only")
            }
            Finding::SharedRefcountBlock { index, host, references } => {
                write!(
                    f,
                    "ERROR refcount block {index} refcount={references}: offset {host:#x} is used twice"
                )
            }
            Finding::L1Entry { site, problem } => site.write(f, *problem),
            Finding::L2Entry { site, problem } => site.write(f, *problem),
            Finding::RefcountsUnknown { block, host, first_cluster, clusters, why } => write!(
                f,
                "ERROR no refcounts for {clusters} clusters from {first_cluster} on: refcount block {block} at offset \
                 {host:#x}: {why}"
            ),
            Finding::RefcountTableEntry { index, entry, problem } => {
                write!(f, "ERROR refcount table entry {index} ({entry:#x}): {problem}")
            }
            Finding::PastEnd { what, host, len, file_len } => write!(
                f,
                "ERROR {what} at offset {host:#x} ({len} bytes) lies past the end of the file ({file_len} bytes)"
            ),
            Finding::Snapshot { index, name, problem } => {
                write!(f, "ERROR snapshot {index} ({name}): {problem}")
            }
            Finding::SnapshotsWithDataFile { count } => {
                write!(f, "ERROR {count} snapshots in an image with an external data file")
            }
            Finding::HeaderField { why, .. } => write!(f, "ERROR the header: {why}"),
            Finding::SnapshotTable { why } => write!(f, "ERROR the snapshot table cannot be read: {why}"),
            Finding::BitmapDirectory { why } => write!(f, "ERROR {why}"),
            Finding::Bitmap { index, why } => write!(f, "ERROR bitmap {index} of the directory: {why}"),
            Finding::BitmapTableEntry { host, entry, why } => {
                write!(f, "ERROR bitmap table entry {entry:#x} at offset {host:#x}: {why}")
            }
            Finding::Unreadable { what, host, why } => {
                write!(f, "ERROR could not read {what} at offset {host:#x}: {why}")
            }
        }
    }
}

/// The findings of a check: all are counted, the first ones are kept.
#[derive(Debug, Default)]
pub(super) struct IssueLog {
    listed: Vec<CheckIssue>,
    listed_last: Vec<CheckIssue>,
    pub(super) leaks: u64,
    pub(super) corruptions: u64,
    pub(super) check_errors: u64,
    /// Contradictions of copied flags, which are among the corruptions.
    pub(super) copied: u64,
    /// Refcounts that are too low, which are among the corruptions.
    pub(super) too_low: u64,
    /// Which tables need more than right refcounts and flags.
    pub(super) damaged: Damaged,
    /// Whether entries of the active L1 table make no sense, or it is not there.
    pub(super) bad_l1: bool,
}

/// What a repair must see to before refcounts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Damaged {
    /// Entries of L1 and L2 tables.
    pub(super) entries: bool,
    /// The snapshot table.
    pub(super) snapshots: bool,
    /// The bitmap directory, or what it names.
    pub(super) bitmaps: bool,
}

impl Damaged {
    fn note(&mut self, finding: &Finding) {
        match finding {
            Finding::L1Entry { .. } | Finding::L2Entry { .. } => self.entries |= !finding.is_about_copied(),
            Finding::BitmapTableEntry { .. } => self.entries = true,
            Finding::BitmapDirectory { .. }
            | Finding::Bitmap { .. }
            | Finding::PastEnd { what: Structure::BitmapDirectory | Structure::BitmapTable, .. }
            | Finding::HeaderField { table: Structure::BitmapDirectory, .. } => self.bitmaps = true,
            finding => self.snapshots |= is_about_snapshots(finding),
        }
    }
}

impl IssueLog {
    /// Records a finding that counts `times` times.
    pub(super) fn add(&mut self, finding: Finding, times: u64) {
        if times == 0 {
            return;
        }
        let severity = finding.severity();
        let total = match severity {
            Severity::Leak => &mut self.leaks,
            Severity::Corruption => &mut self.corruptions,
            Severity::CheckError => &mut self.check_errors,
        };
        *total = total.saturating_add(times);
        if finding.is_about_copied() {
            self.copied = self.copied.saturating_add(times);
        }
        if matches!(finding, Finding::RefcountTooLow { .. }) {
            self.too_low = self.too_low.saturating_add(times);
        }
        self.damaged.note(&finding);
        self.bad_l1 |= match &finding {
            Finding::L1Entry { site, .. } => site.index.is_some() && !finding.is_about_copied(),
            finding => matches!(finding, Finding::PastEnd { what: Structure::L1Table, .. }),
        };
        let list = if finding.is_about_copied() { &mut self.listed_last } else { &mut self.listed };
        if list.len() < super::CheckReport::MAX_ISSUES {
            list.push(CheckIssue { severity, finding, times });
        }
    }

    /// The first of them.
    pub(super) fn issues(&self) -> Vec<CheckIssue> {
        let all = self.listed.iter().chain(&self.listed_last);
        all.take(super::CheckReport::MAX_ISSUES).cloned().collect()
    }

    /// Whether all is well but refcounts and copied flags.
    pub(super) fn is_accounting(&self) -> bool {
        self.check_errors == 0 && self.corruptions == self.copied.saturating_add(self.too_low)
    }
}
