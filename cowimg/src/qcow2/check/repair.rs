//! The repair: refcounts and copied flags are made to agree with the references that the check has found.
//!
//! Only accounting is changed, in place. No guest data, no table's target and no size is: where tables themselves are
//! damaged, or a refcount has no sound block to stand in, the finding stays in the report after the repair.
//!
//! The order makes a power cut at any moment harmless: refcounts are raised and synced before any is lowered or a copied
//! flag is changed, and marks of damage are taken off the header last, once a check finds no contradiction.

use super::issue::{CheckIssue, Finding, L1Problem, L2Problem, Severity};
use super::stored::Block;
use super::{CheckReport, Examined, check, examine};
use crate::error::{Error, ErrorKind, Result};
use crate::format::qcow2::header_fields::{self, FieldWrite};
use crate::format::qcow2::{Autoclear, Header, HostOffset, Incompatible, Version, refcounts};
use crate::qcow2::Qcow2;
use crate::storage::{Storage, StorageExt};

const COPIED: u64 = 1 << 63;
/// Bytes of a refcount block that are looked at, and written, at a time.
const PIECE: u64 = 64 << 10;

/// Rounds of repairing copied flags: a report lists 10,000 at most.
const MAX_ROUNDS: usize = 1 << 12;

/// What a repair may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Repair {
    /// Refcounts that are too high. Copied flags only where they are all that is wrong.
    Leaks,
    /// Refcounts that are too low as well, and copied flags.
    All,
}

/// What a repair has found, done and left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepairReport {
    /// The check before.
    pub before: CheckReport,
    /// Clusters whose refcount was too high and is not any more.
    pub leaks_fixed: u64,
    /// Contradictions that are gone: refcounts that were raised, copied flags that were changed.
    pub corruptions_fixed: u64,
    /// The check after.
    pub after: CheckReport,
}

/// Checks and repairs the qcow2 image in `storage`, which nobody else may use meanwhile.
///
/// What cannot be repaired stays as it is and is in the report after: entries of tables that are damaged, refcounts
/// that no sound refcount block holds. Leaks are left alone where tables are damaged, for what looks leaked may be what
/// a lost entry referred to. The dirty and the corrupt bit are cleared once nothing contradicts.
///
/// Fails with [`ErrorKind::ReadOnly`] on a storage that cannot be written, and where the image cannot be checked.
pub fn repair_storage(storage: &dyn Storage, repair: Repair) -> Result<RepairReport> {
    if storage.is_read_only() {
        return Err(Error::new(ErrorKind::ReadOnly));
    }
    let header = Qcow2::read_header(storage)?;
    let Examined { subject, ledger, stored, report: before } = examine(storage, &header)?;
    clear_unknown_autoclear(storage, &header, &before)?;

    let mut report = RepairReport { after: before.clone(), before, leaks_fixed: 0, corruptions_fixed: 0 };
    let first = Examined { subject, ledger, stored, report: report.before.clone() };
    if repair == Repair::All && report.before.corruptions > 0 {
        report.corruptions_fixed += change_refcounts(&first, Direction::Raise)?;
    }
    if report.before.leaks > 0 && tables_are_sound(&report.before) {
        report.leaks_fixed += change_refcounts(&first, Direction::Lower)?;
    }
    drop(first);
    if report.leaks_fixed + report.corruptions_fixed > 0 {
        report.after = check(storage, &header)?;
    }
    // Each round repairs what one report lists.
    for _ in 0..MAX_ROUNDS {
        let fixed = change_copied_flags(storage, &header, &report.after, repair)?;
        if fixed == 0 {
            break;
        }
        report.corruptions_fixed += fixed;
        report.after = check(storage, &header)?;
    }
    if report.after.corruptions == 0 && report.after.check_errors == 0 {
        clear_marks(storage, &header)?;
    }
    Ok(report)
}

/// Whether every contradiction is one of accounting, so that all references are known.
fn tables_are_sound(report: &CheckReport) -> bool {
    let all_listed = report.corruptions == listed(report, |_| true);
    let accounting = |issue: &CheckIssue| {
        is_copied(&issue.finding) || matches!(issue.finding, Finding::RefcountTooLow { .. })
    };
    report.check_errors == 0 && all_listed && report.corruptions == listed(report, accounting)
}

/// How many of the report's contradictions are listed and are such.
fn listed(report: &CheckReport, is_such: impl Fn(&CheckIssue) -> bool) -> u64 {
    let contradictions =
        report.issues.iter().filter(|issue| issue.finding.severity() == Severity::Corruption);
    contradictions.filter(|issue| is_such(issue)).map(|issue| issue.times).sum()
}

fn is_copied(finding: &Finding) -> bool {
    matches!(
        finding,
        Finding::L1Entry { problem: L1Problem::Copied { .. }, .. }
            | Finding::L2Entry { problem: L2Problem::Copied { .. }, .. }
    )
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Raise,
    Lower,
}

/// Makes the refcounts that are too low, or too high, what the references say; returns how many.
fn change_refcounts(examined: &Examined<'_>, direction: Direction) -> Result<u64> {
    let Examined { subject, ledger, stored, .. } = examined;
    if direction == Direction::Lower && !ledger.complete {
        return Ok(0);
    }
    let geometry = subject.geometry;
    let piece_len = PIECE.min(geometry.cluster_size());
    let per_piece = piece_len * 8 / u64::from(geometry.refcount_bits());
    let clusters = ledger.references.clusters();
    let mut bytes = vec![0; piece_len as usize];
    let mut changed = 0;
    for index in 0..stored.table().len() as u64 {
        let first = index * geometry.refcounts_per_block();
        if first >= clusters {
            break;
        }
        let Some(host) = sound_block(examined, index) else { continue };
        let end = clusters.min(first + geometry.refcounts_per_block());
        for (piece, first) in (0..).zip((first..end).step_by(per_piece as usize)) {
            let at = host + piece * piece_len;
            // What cannot be read is in the report already.
            if subject.read(&mut bytes, at).is_err() {
                continue;
            }
            let range = first..end.min(first + per_piece);
            let in_piece = change_piece(examined, &mut bytes, range, direction);
            if in_piece > 0 {
                write(subject.storage, (at, &bytes))?;
            }
            changed += in_piece;
        }
    }
    if changed > 0 {
        sync(subject.storage)?;
    }
    Ok(changed)
}

/// Changes the refcounts of `clusters` in the piece of a block that has them.
fn change_piece(
    examined: &Examined<'_>,
    bytes: &mut [u8],
    clusters: std::ops::Range<u64>,
    direction: Direction,
) -> u64 {
    let geometry = examined.subject.geometry;
    let mut changed = 0;
    for (position, cluster) in (0..).zip(clusters) {
        let references = examined.ledger.references.get(cluster).min(geometry.refcount_max());
        let Some(refcount) = refcounts::get(bytes, geometry.refcount_order(), position) else { continue };
        let is_wrong = match direction {
            Direction::Raise => refcount < references,
            Direction::Lower => refcount > references,
        };
        if is_wrong && refcounts::set(bytes, geometry.refcount_order(), position, references) {
            changed += 1;
        }
    }
    changed
}

/// Where refcount block `index` is, if it is nothing else besides and lies in the file as a whole.
fn sound_block(examined: &Examined<'_>, index: u64) -> Option<u64> {
    let Examined { subject, ledger, stored, .. } = examined;
    let geometry = subject.geometry;
    let Block::At(host) = stored.block(index) else { return None };
    let entry = *stored.table().get(usize::try_from(index).ok()?)?;
    let is_whole = host.checked_add(geometry.cluster_size())? <= subject.file_len;
    let is_alone = ledger.references.get(geometry.host_cluster(HostOffset(host)).get()) == 1;
    let is_sound = is_whole && is_alone && refcounts::table_entry_reserved_bits(entry) == 0;
    is_sound.then_some(host)
}

/// Makes the listed copied flags agree with the refcounts; returns how many. A flag is set only where nothing else is
/// wrong, as it lets its cluster be overwritten in place.
fn change_copied_flags(
    storage: &dyn Storage,
    header: &Header,
    report: &CheckReport,
    repair: Repair,
) -> Result<u64> {
    let nothing_else = report.check_errors == 0
        && report.corruptions == listed(report, |_| true)
        && report.corruptions == listed(report, |issue| is_copied(&issue.finding));
    if repair == Repair::Leaks && (!nothing_else || report.leaks > 0) {
        return Ok(0);
    }
    let entry_size = header.geometry().l2_entry_size();
    let mut fixed = 0;
    for issue in &report.issues {
        let (host, entry, refcount) = match issue.finding {
            Finding::L1Entry { site, problem: L1Problem::Copied { refcount } } => {
                (site.host, site.entry, refcount)
            }
            Finding::L2Entry { site, problem: L2Problem::Copied { refcount } } => {
                (site.table + site.index * entry_size, site.entry, refcount)
            }
            _ => continue,
        };
        let right = if refcount == 1 { entry | COPIED } else { entry & !COPIED };
        if right == entry || (refcount == 1 && !nothing_else) {
            continue;
        }
        write(storage, (host, &right.to_be_bytes()))?;
        fixed += issue.times;
    }
    if fixed > 0 {
        sync(storage)?;
    }
    Ok(fixed)
}

/// Rule W7, before the first change.
fn clear_unknown_autoclear(storage: &dyn Storage, header: &Header, before: &CheckReport) -> Result<()> {
    let kept = Autoclear(header.autoclear.0 & Autoclear::BITMAPS.with(Autoclear::DATA_FILE_RAW).0);
    let is_marked = header.incompatible.contains(Incompatible::DIRTY)
        || header.incompatible.contains(Incompatible::CORRUPT);
    if (before.is_clean() && !is_marked) || header.version != Version::V3 || header.autoclear == kept {
        return Ok(());
    }
    write_field(storage, &header_fields::autoclear(kept))
}

/// Takes the dirty and the corrupt bit off the header.
fn clear_marks(storage: &dyn Storage, header: &Header) -> Result<()> {
    let marks = Incompatible::DIRTY.with(Incompatible::CORRUPT);
    let kept = Incompatible(header.incompatible.0 & !marks.0);
    if header.version != Version::V3 || header.incompatible == kept {
        return Ok(());
    }
    write_field(storage, &header_fields::incompatible(kept))
}

fn write_field(storage: &dyn Storage, (at, bytes): &FieldWrite) -> Result<()> {
    write(storage, (*at, bytes))?;
    sync(storage)
}

fn write(storage: &dyn Storage, (at, bytes): (u64, &[u8])) -> Result<()> {
    storage.write_all_at(bytes, at).map_err(|error| Error::io("write the repaired metadata", error))
}

fn sync(storage: &dyn Storage) -> Result<()> {
    storage.sync().map_err(|error| Error::io("sync the repaired metadata", error))
}
