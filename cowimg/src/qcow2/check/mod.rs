//! The consistency check: reads everything that refers to clusters, and compares that with the refcounts.
//!
//! ```text
//! scan       header, L1 tables ──> l2 (L2 tables), snapshots, bitmaps     what refers to which cluster (ledger)
//! stored     refcount table and blocks                                    what the image says
//! compare    ledger against stored                                        leaks and corruptions
//! ```
//!
//! The check works on the storage alone: it knows no open image, no cache and no path, changes nothing, and takes every
//! byte for an attack. Memory follows what the image really stores, and work is linear in it: tables that are shared, or
//! that overlap, are read once and counted as often as they are named ([`tables`], [`l2`]).
//!
//! Findings and numbers are those of `qemu-img check`, except that
//! * an L1 entry with flags and no table, and the zero flag in version 2, are corruptions here;
//! * a structure that cannot be read is a finding, and the check goes on without it. As what it refers to is not known,
//!   nothing is called leaked then.
//!
//! Start at [`check`].

mod bitmaps;
mod compare;
mod issue;
mod l2;
mod ledger;
mod references;
mod repair;
mod scan;
mod snapshots;
mod stored;
mod tables;
#[cfg(test)]
mod tests;
mod window;

use self::ledger::{Ledger, Subject};
use self::stored::StoredRefcounts;
use super::Qcow2;
use crate::error::{Error, Result};
use crate::format::qcow2::Header;
use crate::storage::Storage;

pub use issue::{CheckIssue, Finding, L1Problem, L1Site, L2Problem, L2Site, Severity};
pub use repair::{Repair, RepairReport, repair_storage};

/// What a check found. Clusters are counted as the image's own, whatever a backing file has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckReport {
    /// The first findings, at most [`CheckReport::MAX_ISSUES`]; the totals count all.
    pub issues: Vec<CheckIssue>,
    /// Clusters whose refcount is too high.
    pub leaks: u64,
    /// Contradictions.
    pub corruptions: u64,
    /// Things that could not be checked.
    pub check_errors: u64,
    /// Where the highest cluster in use ends, in bytes of the image file.
    pub image_end_offset: u64,
    /// Guest clusters of the disk.
    pub total_clusters: u64,
    /// Guest clusters that the image has data or kept space for. The state of a machine, which lies past the disk's
    /// end, counts as well.
    pub allocated_clusters: u64,
    /// Those of them that do not follow the one before in the file, and all compressed ones.
    pub fragmented_clusters: u64,
    /// Those of them that are compressed.
    pub compressed_clusters: u64,
}

impl CheckReport {
    /// The most findings that a report lists.
    pub const MAX_ISSUES: usize = 10_000;

    /// Whether there is nothing to report.
    pub fn is_clean(&self) -> bool {
        self.leaks == 0 && self.corruptions == 0 && self.check_errors == 0
    }
}

/// What a check has read, and what it says.
struct Examined<'a> {
    subject: Subject<'a>,
    ledger: Ledger,
    stored: StoredRefcounts<'a>,
    report: CheckReport,
}

/// Checks the image in `storage`, whose header has been decoded. What an engine holds back must have been flushed.
pub fn check(storage: &dyn Storage, header: &Header) -> Result<CheckReport> {
    Ok(examine(storage, header)?.report)
}

/// The check, with all that a repair needs of it.
fn examine<'a>(storage: &'a dyn Storage, header: &'a Header) -> Result<Examined<'a>> {
    let unknown = header.unknown_incompatible();
    if !unknown.is_empty() {
        return Err(Error::unsupported(format!(
            "the image uses features that are not known: {}",
            unknown.join(", ")
        )));
    }
    let subject = Subject::new(storage, header)?;
    let mut ledger = Ledger::new(&subject)?;
    let stored = StoredRefcounts::read(subject)?;

    let (tallies, stored) = scan::scan(subject, stored, &mut ledger);
    compare::refcount_blocks(&subject, &stored, &mut ledger);
    let image_end_offset = compare::compare(&subject, &stored, &mut ledger);

    let found = std::mem::take(&mut ledger.issues);
    let report = CheckReport {
        leaks: found.leaks,
        corruptions: found.corruptions,
        check_errors: found.check_errors,
        issues: found.into_issues(),
        image_end_offset,
        total_clusters: subject.geometry.clusters_for(header.size / 512 * 512),
        allocated_clusters: tallies.allocated,
        fragmented_clusters: tallies.fragmented,
        compressed_clusters: tallies.compressed,
    };
    Ok(Examined { subject, ledger, stored, report })
}

/// Checks the qcow2 image in `storage`: [`check`] with the header as it stands there.
pub fn check_storage(storage: &dyn Storage) -> Result<CheckReport> {
    check(storage, &Qcow2::read_header(storage)?)
}
