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
//! * a cluster of a data file that is not at its own place is a corruption: QEMU says so when it is read;
//! * a structure that cannot be read is a finding, and the check goes on without it. As what it refers to is not known,
//!   nothing is called leaked then.
//!
//! A repair decides from the same: [`repair`] has its steps, [`mend`] what becomes of an entry, [`area`] what is written
//! anew. Start at [`check_storage`] and [`repair_storage`].

mod accounting;
mod area;
mod bitmap_mend;
mod bitmaps;
mod compare;
mod entry_walk;
mod fail_stop;
mod header_damage;
mod issue;
mod l1_search;
mod l2;
mod ledger;
mod mend;
mod moves;
mod past_end;
mod phases;
mod plan;
mod references;
mod remedy;
mod repair;
mod scan;
mod sites;
mod snapshot_mend;
mod snapshots;
mod stored;
mod tables;
#[cfg(test)]
mod tests;
mod window;

use self::header_damage::HeaderDamage;
use self::ledger::{Ledger, Subject};
use self::stored::StoredRefcounts;
use crate::error::{Error, ErrorKind, Result};
use crate::format::qcow2::{Header, TABLE_ENTRY_SIZE};
use crate::limits::Limits;
use crate::progress::Control;
use crate::storage::Storage;

pub(crate) use header_damage::read_damaged_header;
pub use issue::{CheckIssue, Finding, Severity};
pub use plan::{PlannedStep, RepairPlan, plan_storage, plan_storage_with};
pub use remedy::Remedy;
pub use repair::{Repair, RepairReport, repair_storage, repair_storage_with};
pub use sites::{L1Problem, L1Site, L2Problem, L2Site, RefcountTableProblem, SnapshotProblem, Structure};

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
#[derive(Debug)]
struct Examined<'a> {
    subject: Subject<'a>,
    damage: &'a HeaderDamage,
    ledger: Ledger,
    stored: StoredRefcounts<'a>,
    report: CheckReport,
}

/// Refuses an image whose header asks for more than it may. What is not in the header is judged when it is read.
pub(crate) fn check_header(header: &Header, limits: &Limits) -> Result<()> {
    limits.check_table("the L1 table", u64::from(header.l1_entries) * TABLE_ENTRY_SIZE)?;
    let refcounts =
        u64::from(header.refcount_table_clusters).saturating_mul(header.geometry().cluster_size());
    limits.check_table("the refcount table", refcounts)?;
    limits.check_snapshots(header.snapshot_count)
}

/// Checks the image, with all that a repair needs to know of it.
fn examine<'a>(
    storage: &'a dyn Storage,
    header: &'a Header,
    damage: &'a HeaderDamage,
    (limits, control): (&'a Limits, &'a Control<'a>),
) -> Result<Examined<'a>> {
    let unknown = header.unknown_incompatible();
    if !unknown.is_empty() {
        return Err(Error::unsupported(format!(
            "the image uses features that are not known: {}",
            unknown.join(", ")
        )));
    }
    check_header(header, limits)?;
    let subject = Subject::new(storage, header, limits, control)?;
    let mut ledger = Ledger::new(&subject)?;
    let stored = StoredRefcounts::read(subject)?;
    damage.findings.iter().for_each(|finding| ledger.report(finding.clone()));
    ledger.complete = damage.snapshots.is_none() && !damage.bitmaps && !damage.lacks_l1();
    ledger.needs_rebuild = damage.no_refcounts;

    let (tallies, stored) = scan::scan(subject, stored, &mut ledger)?;
    compare::refcount_blocks(&subject, &stored, &mut ledger);
    let image_end_offset = compare::compare(&subject, &stored, &mut ledger);

    ledger.check_counts(&subject)?;
    if ledger.is_cancelled {
        return Err(Error::new(ErrorKind::Cancelled));
    }
    let report = CheckReport {
        leaks: ledger.issues.leaks,
        corruptions: ledger.issues.corruptions,
        check_errors: ledger.issues.check_errors,
        issues: ledger.issues.issues(),
        image_end_offset,
        total_clusters: subject.geometry.clusters_for(header.size / 512 * 512),
        allocated_clusters: tallies.allocated,
        fragmented_clusters: tallies.fragmented,
        compressed_clusters: tallies.compressed,
    };
    Ok(Examined { subject, damage, ledger, stored, report })
}

/// Checks the qcow2 image in `storage`, as it stands there: what an engine holds back must have been flushed. A header
/// that says impossible things about refcounts, snapshots or bitmaps is a finding; fails where it cannot be read as one.
pub fn check_storage(storage: &dyn Storage) -> Result<CheckReport> {
    check_storage_with(storage, &Limits::default(), &Control::default())
}

/// The same for a caller who wants to hear how far it is, in bytes of tables, who may cancel it, and who says how much the
/// image may ask for: more fails with [`ErrorKind::OverLimit`].
pub fn check_storage_with(
    storage: &dyn Storage,
    limits: &Limits,
    control: &Control<'_>,
) -> Result<CheckReport> {
    let (header, damage) = header_damage::read(storage)?;
    Ok(examine(storage, &header, &damage, (limits, control))?.report)
}
