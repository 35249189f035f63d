//! The repair: tables are mended, refcounts and copied flags made to agree with the references that the check finds.
//!
//! ```text
//!   1. marks       unknown autoclear bits, and bitmaps that cannot be used, are cleared (W7)           -- sync --
//!   2. area        copies, a new snapshot table, new refcounts behind the end of the file              -- sync --
//!                  the header names them                                                               -- sync --
//!   3. entries     damaged entries of tables are mended in place, each within its sector               -- sync --
//!   4. refcounts   too low: raised                                                                     -- sync --
//!                  too high: lowered, where all references are known                                   -- sync --
//!   5. flags       copied flags                                                                        -- sync --
//!   6. marks       dirty and corrupt are taken off the header once nothing contradicts
//! ```
//!
//! Steps that have nothing to do are left out; [`super::area`] has the picture of the second. After each sync the image is
//! no worse than before and can be repaired again: nothing is freed while a reference may lead to it, and no entry
//! refers to what is not counted.

use super::accounting::{Direction, change_refcounts};
use super::area::{Area, Kept, host_of};
use super::bitmap_mend::SoundBitmaps;
use super::bitmaps;
use super::entry_walk::{CopiedFlags, walk};
use super::fail_stop::FailStop;
use super::header_damage::{self, HeaderDamage};
use super::l1_search::{self, FoundL1};
use super::ledger::Subject;
use super::mend::Mender;
use super::moves::Moves;
use super::phases::Phase;
use super::snapshot_mend::MendedSnapshots;
use super::{CheckReport, Examined, examine};
use crate::error::{Error, ErrorKind, Result};
use crate::format::qcow2::header_fields::{self, FieldWrite};
use crate::format::qcow2::{Autoclear, Header, Incompatible, TABLE_ENTRY_SIZE, Version};
use crate::limits::Limits;
use crate::progress::Control;
use crate::storage::{Storage, StorageExt};

/// Rounds of mending tables: one is enough for what can be mended at all, a second for what the first has laid open.
const MAX_ROUNDS: usize = 3;

/// What a repair may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Repair {
    /// Refcounts that are too high. Copied flags only where they are all that is wrong.
    Leaks,
    /// Refcounts, which are built anew where they have no sound place, and copied flags. Tables stay as they are: no entry
    /// changes what it refers to.
    Refcounts,
    /// Everything.
    All,
}

/// What a repair has found, done and left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepairReport {
    /// The check before.
    pub before: CheckReport,
    /// Clusters whose refcount was too high and is not any more.
    pub leaks_fixed: u64,
    /// Contradictions that are gone.
    pub corruptions_fixed: u64,
    /// The check after.
    pub after: CheckReport,
}

/// Checks and repairs the qcow2 image in `storage`, which nobody else may use meanwhile.
///
/// What can be read before reads the same after, unless that was through an L1 table that is not the image's. Entries
/// whose data cannot be had read as zeroes after [`Repair::All`]; [`super::plan_storage`] tells beforehand what becomes of
/// each finding. What cannot be repaired stays as it is and is in the report after. Leaks are left alone where tables are
/// damaged, for what looks leaked may be what a lost entry referred to. The dirty and the corrupt bit are cleared once
/// nothing contradicts.
///
/// Fails with [`ErrorKind::ReadOnly`] on a storage that cannot be written, and where the image cannot be checked. Once the
/// host fails to read a part of it nothing more is changed, and the repair fails: it can be repeated where reading succeeds.
pub fn repair_storage(storage: &dyn Storage, repair: Repair) -> Result<RepairReport> {
    repair_storage_with(storage, repair, &Limits::default(), &Control::default())
}

/// The same for a caller who wants to hear how far it is, in bytes of tables, who may cancel it before anything is
/// changed, and who says how much the image may ask for: more fails with [`ErrorKind::OverLimit`].
pub fn repair_storage_with(
    storage: &dyn Storage,
    repair: Repair,
    limits: &Limits,
    control: &Control<'_>,
) -> Result<RepairReport> {
    if storage.is_read_only() {
        return Err(Error::new(ErrorKind::ReadOnly));
    }
    let storage = FailStop::new(storage);
    let repaired = repair_readable(&storage, repair, (limits, control));
    storage.outcome(repaired)
}

/// The repair of an image of which everything can be read that is there.
fn repair_readable(
    storage: &dyn Storage,
    repair: Repair,
    (limits, control): (&Limits, &Control<'_>),
) -> Result<RepairReport> {
    let mut walks = Walks { storage, limits, control, done: 0 };
    let (header, damage) = header_damage::read(storage)?;
    let phase = walks.next();
    let first_control = Control { cancel: control.cancel, ..phase.control() };
    let first = examine(storage, &header, &damage, (limits, &first_control))?;
    let before = first.report.clone();
    if before.is_clean() && !is_marked(&header) {
        return Ok(RepairReport { after: before.clone(), before, leaks_fixed: 0, corruptions_fixed: 0 });
    }
    match l1_search::find(&first)? {
        Some(found) if repair == Repair::All => return repair_with_l1(&first, &found, control),
        // What looks leaked is what belongs to the disk.
        Some(_) => {
            return Ok(RepairReport { after: before.clone(), before, leaks_fixed: 0, corruptions_fixed: 0 });
        }
        None => {}
    }
    if repair == Repair::All {
        // A limit that the new tables pass is met here, before anything is changed.
        let mut area = Area::new(&first);
        let moves = Moves::plan(&first.ledger, &mut area).unwrap_or_default();
        MendedSnapshots::plan(&first, &mut area, &moves)?;
    }
    if repair == Repair::All
        && let Some(sound) = SoundBitmaps::find(&first)
    {
        clear_autoclear(&first, Repair::All)?;
        if sound.write(storage)? {
            return repair_rest(before, storage, (limits, control));
        }
    }
    let flags_before = first.ledger.issues.copied;
    clear_autoclear(&first, repair)?;
    let needs_tables = needs_tables(&first, repair);
    let (leaks_fixed, corruptions_fixed) = if needs_tables {
        mend_tables(first, repair, &mut walks)?;
        (0, 0)
    } else {
        change_accounts(&first, repair)?
    };
    // Unbounded work is nowhere in here: each step is one walk.
    let (now, flags_fixed) = finish(&mut walks, repair)?;
    let mut report = RepairReport { before, leaks_fixed, corruptions_fixed, after: now };
    if needs_tables {
        let others_before = report.before.corruptions - flags_before;
        report.corruptions_fixed = others_before.saturating_sub(report.after.corruptions);
        report.leaks_fixed = report.before.leaks.saturating_sub(report.after.leaks);
    }
    report.corruptions_fixed += flags_fixed;
    if report.after.corruptions == 0 && report.after.check_errors == 0 {
        clear_marks(storage)?;
    }
    Ok(report)
}

/// Makes the header say what was found out about the L1 table, and repairs what is left.
fn repair_with_l1(first: &Examined<'_>, found: &FoundL1, control: &Control<'_>) -> Result<RepairReport> {
    let (storage, limits) = (first.subject.storage, first.subject.limits);
    clear_autoclear(first, Repair::All)?;
    if found.is_short {
        let damage = HeaderDamage::default();
        let uncancelled = Control { cancel: None, progress: None };
        mend_once(&examine(storage, &found.header, &damage, (limits, &uncancelled))?, Repair::All)?;
    } else {
        write_field(storage, &header_fields::size_and_l1_table(&found.header))?;
    }
    repair_rest(first.report.clone(), storage, (limits, control))
}

/// Repairs what is left after the first changes, which have met what `before` has.
fn repair_rest(
    before: CheckReport,
    storage: &dyn Storage,
    (limits, control): (&Limits, &Control<'_>),
) -> Result<RepairReport> {
    let rest = repair_storage_with(storage, Repair::All, limits, &Control { cancel: None, ..*control })?;
    Ok(RepairReport {
        leaks_fixed: before.leaks.saturating_sub(rest.after.leaks),
        corruptions_fixed: before.corruptions.saturating_sub(rest.after.corruptions),
        before,
        after: rest.after,
    })
}

/// The walks over the image that a repair makes one after the other.
struct Walks<'a> {
    storage: &'a dyn Storage,
    limits: &'a Limits,
    control: &'a Control<'a>,
    done: u64,
}

impl<'a> Walks<'a> {
    /// How many there mostly are.
    const USUAL: u64 = 3;

    fn next(&mut self) -> Phase<'a> {
        self.done += 1;
        Phase::new(self.control, self.done - 1, Walks::USUAL)
    }
}

/// Whether there is more to do than to change refcounts and flags where they stand.
pub(super) fn needs_tables(examined: &Examined<'_>, repair: Repair) -> bool {
    let ledger = &examined.ledger;
    match repair {
        Repair::Leaks => return false,
        _ if lost_l1(examined) => return false,
        Repair::Refcounts => return ledger.needs_rebuild,
        Repair::All => {}
    }
    let damaged = ledger.issues.damaged;
    let is_shared = || Moves::plan(ledger, &mut Area::new(examined)).is_none_or(|moves| !moves.is_empty());
    let is_damaged = damaged.entries || damaged.snapshots || damaged.bitmaps;
    ledger.needs_rebuild
        || is_damaged
        || fitting_l1(examined).is_some()
        || MendedSnapshots::is_needed(ledger)
        || is_shared()
}

/// Steps 2 and 3, and 4 after them, until nothing more can be done to the tables.
fn mend_tables(first: Examined<'_>, repair: Repair, walks: &mut Walks<'_>) -> Result<()> {
    let storage = walks.storage;
    mend_once(&first, repair)?;
    drop(first);
    for round in 1..=MAX_ROUNDS {
        let (header, damage) = header_damage::read(storage)?;
        let phase = walks.next();
        let control = phase.control();
        let examined = examine(storage, &header, &damage, (walks.limits, &control))?;
        let is_last = round == MAX_ROUNDS || !needs_tables(&examined, repair);
        if is_last || !mend_once(&examined, repair)? {
            change_accounts(&examined, repair)?;
            break;
        }
    }
    Ok(())
}

/// Steps 2 and 3; returns whether anything was changed.
fn mend_once(examined: &Examined<'_>, repair: Repair) -> Result<bool> {
    if repair != Repair::All {
        let next = examined.subject.header.clone();
        let moves = Moves::default();
        Area::new(examined).publish(&mut Mender::new(examined, &moves), Kept::AsFound, next)?;
        return Ok(true);
    }
    let storage = examined.subject.storage;
    let mut area = Area::new(examined);
    let mut next = examined.subject.header.clone();
    // Without room for copies what is shared stays so.
    let moves = Moves::plan(&examined.ledger, &mut area);
    let room_for_copies = moves.is_some();
    let moves = moves.unwrap_or_default();
    if !room_for_copies {
        area = Area::new(examined);
    }
    let snapshots = MendedSnapshots::plan(examined, &mut area, &moves)?;
    let placed = snapshots.as_ref().and_then(|mended| mended.place(examined, &mut area, &mut next));
    if snapshots.is_some() && placed.is_none() {
        return Err(Error::unsupported("there is no room for a new snapshot table"));
    }
    let mut mender = Mender::new(examined, &moves);
    let fitting_l1 = fitting_l1(examined);
    next.l1_entries = fitting_l1.unwrap_or(next.l1_entries);
    let grown_l1 = grow_l1(examined, &mut area, &mut next)?;
    let is_other = snapshots.is_some() || fitting_l1.is_some();
    let is_new = examined.ledger.needs_rebuild || !area.is_empty() || is_other;
    if is_new {
        let found_l1 =
            grown_l1 || fitting_l1.is_some() || snapshots.as_ref().is_some_and(|mended| mended.found_l1);
        let kept = if found_l1 { Kept::AsStored } else { Kept::AsFound };
        next = area.publish(&mut mender, kept, next)?;
    }
    if examined.ledger.issues.damaged.bitmaps {
        next.autoclear = next.autoclear.without(Autoclear::BITMAPS);
    }
    let subject = Subject::new(storage, &next, examined.subject.limits, examined.subject.control)?;
    let mut changed = walk(subject, examined, &mut mender)?;
    changed += bitmaps::mark_dirty(&subject, &examined.ledger)?;
    if changed > 0 {
        sync(storage)?;
    }
    Ok(is_new || changed > 0)
}

/// Gives an L1 table that has too few entries for the disk a longer one; returns whether it has.
fn grow_l1(examined: &Examined<'_>, area: &mut Area, next: &mut Header) -> Result<bool> {
    let Examined { subject, damage, .. } = examined;
    let (header, needed) = (subject.header, subject.geometry.l1_entries_for(subject.header.size));
    if u64::from(header.l1_entries) >= needed || damage.lacks_l1() {
        return Ok(false);
    }
    let mut bytes = vec![0; (u64::from(header.l1_entries) * TABLE_ENTRY_SIZE) as usize];
    let read = subject.read(&mut bytes, header.l1_table.get());
    read.map_err(|error| Error::io("read the L1 table", error))?;
    bytes.resize((needed * TABLE_ENTRY_SIZE) as usize, 0);
    let place = area.table(bytes, subject.geometry.cluster_size());
    let place = place.ok_or_else(|| Error::unsupported("there is no room for a longer L1 table"))?;
    next.l1_table = host_of(examined, place);
    next.l1_entries = needed as u32;
    Ok(true)
}

/// Whether the L1 table cannot be had. Nothing else says what is the disk's then, so that tables had better stay as they
/// are: a file that grows would give the missing part a meaning.
pub(super) fn lost_l1(examined: &Examined<'_>) -> bool {
    let header = examined.subject.header;
    if examined.damage.lacks_l1() {
        return true;
    }
    let bytes = u64::from(header.l1_entries) * TABLE_ENTRY_SIZE;
    let is_past_end = bytes > 0 && !examined.ledger.is_within_file(header.l1_table.get(), bytes);
    is_past_end && fitting_l1(examined).is_none()
}

/// The entries that the L1 table has room for and the disk needs, if the table is said to go on past the end of the file.
pub(super) fn fitting_l1(examined: &Examined<'_>) -> Option<u32> {
    let (header, ledger) = (examined.subject.header, &examined.ledger);
    let is_within = |entries: u64| ledger.is_within_file(header.l1_table.get(), entries * TABLE_ENTRY_SIZE);
    let needed = examined.subject.geometry.l1_entries_for(header.size);
    let is_too_long = header.l1_entries > 0 && !is_within(header.l1_entries.into());
    u32::try_from(needed).ok().filter(|_| is_too_long && is_within(needed))
}

/// Step 4; returns how many refcounts were too high and how many too low.
fn change_accounts(examined: &Examined<'_>, repair: Repair) -> Result<(u64, u64)> {
    let issues = &examined.ledger.issues;
    let raised = match repair {
        Repair::Refcounts | Repair::All if issues.corruptions > 0 => {
            change_refcounts(examined, Direction::Raise)?
        }
        _ => 0,
    };
    // What looks leaked may be what a damaged entry refers to.
    let lowered = if issues.leaks > 0 && issues.is_accounting() {
        change_refcounts(examined, Direction::Lower)?
    } else {
        0
    };
    Ok((lowered, raised))
}

/// Step 5; returns the last check, and how many flags were changed.
fn finish(walks: &mut Walks<'_>, repair: Repair) -> Result<(CheckReport, u64)> {
    let storage = walks.storage;
    let (header, damage) = header_damage::read(storage)?;
    let phase = walks.next();
    let control = phase.control();
    let examined = examine(storage, &header, &damage, (walks.limits, &control))?;
    let issues = &examined.ledger.issues;
    let nothing_else = issues.check_errors == 0 && issues.corruptions == issues.copied;
    let is_allowed = match repair {
        Repair::Refcounts | Repair::All => true,
        Repair::Leaks => nothing_else && issues.leaks == 0,
    };
    if issues.copied == 0 || !is_allowed {
        return Ok((examined.report, 0));
    }
    let mut flags = CopiedFlags { stored: examined.stored.again(), may_set: nothing_else };
    let changed = walk(examined.subject, &examined, &mut flags)?;
    if changed == 0 {
        return Ok((examined.report, 0));
    }
    sync(storage)?;
    let flags_before = issues.copied;
    let phase = walks.next();
    let control = phase.control();
    let after = examine(storage, &header, &damage, (walks.limits, &control))?;
    Ok((after.report, flags_before.saturating_sub(after.ledger.issues.copied)))
}

/// Rule W7, before the first change. Bitmaps that cannot be read are given up with the same write.
fn clear_autoclear(examined: &Examined<'_>, repair: Repair) -> Result<()> {
    let header = examined.subject.header;
    let mut ours = Autoclear::BITMAPS.with(Autoclear::DATA_FILE_RAW);
    let gives_bitmaps_up = repair == Repair::All && examined.ledger.issues.damaged.bitmaps;
    if gives_bitmaps_up {
        ours = ours.without(Autoclear::BITMAPS);
    }
    let kept = Autoclear(header.autoclear.0 & ours.0);
    let is_right = header.autoclear == kept && !(gives_bitmaps_up && examined.damage.bitmaps);
    if header.version != Version::V3 || is_right {
        return Ok(());
    }
    write_field(examined.subject.storage, &header_fields::autoclear(kept))
}

/// Whether the image is marked dirty or corrupt.
pub(super) fn is_marked(header: &Header) -> bool {
    header.incompatible.contains(Incompatible::DIRTY) || header.incompatible.contains(Incompatible::CORRUPT)
}

/// Takes the dirty and the corrupt bit off the header.
fn clear_marks(storage: &dyn Storage) -> Result<()> {
    let (header, _) = header_damage::read(storage)?;
    if header.version != Version::V3 || !is_marked(&header) {
        return Ok(());
    }
    let kept = header.incompatible.without(Incompatible::DIRTY).without(Incompatible::CORRUPT);
    write_field(storage, &header_fields::incompatible(kept))
}

fn write_field(storage: &dyn Storage, (at, bytes): &FieldWrite) -> Result<()> {
    storage.write_all_at(bytes, *at).map_err(|error| Error::io("write the header", error))?;
    sync(storage)
}

fn sync(storage: &dyn Storage) -> Result<()> {
    storage.sync().map_err(|error| Error::io("sync the repaired metadata", error))
}
