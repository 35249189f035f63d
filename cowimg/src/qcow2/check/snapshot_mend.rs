//! The snapshot table made anew from what can be read of the old one.
//!
//! An entry is kept if its L1 table can be found: where it is said to be, or in the cluster that it is said to start in, if
//! that is counted as in use and nothing refers to it. Its length can be told from the size of the disk. An L1 table that
//! is something else as well is copied.
//!
//! Entries have no fixed length, so that after one that makes no sense the next ones cannot be found.

use super::Examined;
use super::area::{Area, host_of};
use super::issue::Finding;
use super::ledger::Ledger;
use super::moves::Moves;
use super::remedy::Remedy;
use super::sites::SnapshotProblem;
use super::stored::StoredRefcounts;
use super::window::Window;
use crate::error::Result;
use crate::format::qcow2::{Header, HostOffset, Snapshot, TABLE_ENTRY_SIZE, Version};

/// The most bytes of L1 tables that are copied: more are not shared by accident.
const MAX_COPIED: u64 = 64 << 20;
/// Lengths of extra data that are tried where the stored one cannot be right: what QEMU has been writing.
const USUAL_EXTRA: [u32; 2] = [24, 16];
/// More extra data than this is a wrong length.
const MAX_LONG_EXTRA: u32 = 1 << 20;
/// Where an entry has the length of its extra data, which follow.
const EXTRA_LEN: std::ops::Range<usize> = 36..40;

/// The snapshots that stay.
#[derive(Debug)]
pub(super) struct MendedSnapshots {
    pub(super) snapshots: Vec<Snapshot>,
    /// What was done to each entry that was read, where it is not as it was.
    pub(super) remedies: Vec<Option<Remedy>>,
    /// Whether an L1 table was found that the check has not counted from.
    pub(super) found_l1: bool,
    is_changed: bool,
}

impl MendedSnapshots {
    /// Whether the table, or an L1 table that it names, is damaged or something else as well.
    pub(super) fn is_needed(ledger: &Ledger) -> bool {
        let mut structures = ledger.fixed.counted(0..ledger.fixed.clusters());
        ledger.issues.damaged.snapshots || structures.any(|cluster| ledger.fixed.get(cluster) > 1)
    }

    /// What the snapshot table is to be; `None` where it may stay. Where clusters are to be copied it may be the table
    /// that claims too much.
    pub(super) fn plan(
        examined: &Examined<'_>,
        area: &mut Area,
        moves: &Moves,
    ) -> Result<Option<MendedSnapshots>> {
        if !MendedSnapshots::is_needed(&examined.ledger) && moves.is_empty() {
            return Ok(None);
        }
        let limits = examined.subject.limits;
        let (host, count) = examined.damage.snapshots.unwrap_or_else(|| {
            let header = examined.subject.header;
            (header.snapshot_table.get(), header.snapshot_count)
        });
        let mut mended = MendedSnapshots {
            snapshots: Vec::new(),
            remedies: Vec::new(),
            found_l1: false,
            is_changed: examined.damage.snapshots.is_some(),
        };
        let mut reader = Reader::new(examined, examined.subject.geometry.align_down(host));
        let mut stored = examined.stored.again();
        let (mut copied, mut bytes) = (0, 0_u64);
        for index in 0..count.min(Header::MAX_SNAPSHOTS) {
            let Some((mut snapshot, as_stored)) = reader.next() else {
                mended.is_changed = true;
                break;
            };
            limits.check_snapshots(index.saturating_add(1))?;
            bytes = bytes.saturating_add(snapshot.encode().len() as u64);
            limits.check_table("the snapshot table", bytes.min(MAX_COPIED))?;
            let remedy = mend(examined, &mut stored, &mut snapshot);
            mended.is_changed |= remedy.is_some() || !as_stored;
            mended.found_l1 |= matches!(remedy, Some(Remedy::Relink { .. } | Remedy::FitSnapshotL1));
            mended.remedies.push(remedy.or((!as_stored).then_some(Remedy::CompleteSnapshot)));
            if remedy == Some(Remedy::DropSnapshot) {
                continue;
            }
            if copied < MAX_COPIED
                && let Some(bytes) = copy_l1(examined, area, &mut snapshot)?
            {
                copied += bytes;
                mended.is_changed = true;
            }
            make_distinct(&mut snapshot, index, &mended.snapshots);
            mended.snapshots.push(snapshot);
        }
        Ok(mended.is_changed.then_some(mended))
    }

    /// Takes a place for the table and says so in the header. `None` where there is no room.
    pub(super) fn place(&self, examined: &Examined<'_>, area: &mut Area, header: &mut Header) -> Option<()> {
        header.snapshot_count = self.snapshots.len() as u32;
        header.snapshot_table = HostOffset(0);
        if !self.snapshots.is_empty() {
            let bytes: Vec<u8> = self.snapshots.iter().flat_map(Snapshot::encode).collect();
            let cluster = area.table(bytes, examined.subject.geometry.cluster_size())?;
            header.snapshot_table = host_of(examined, cluster);
        }
        Some(())
    }

    /// What is done about a finding about entry `index`.
    pub(super) fn remedy(&self, index: u64) -> Remedy {
        let known = usize::try_from(index).ok().and_then(|index| self.remedies.get(index).copied().flatten());
        known.unwrap_or(Remedy::RewriteSnapshots)
    }
}

/// Reads entries one after the other.
struct Reader<'a> {
    examined: &'a Examined<'a>,
    window: Window<'a>,
    at: u64,
}

impl<'a> Reader<'a> {
    fn new(examined: &'a Examined<'a>, at: u64) -> Reader<'a> {
        Reader { examined, window: Window::new(examined.subject), at }
    }

    /// The next entry, and whether it is what is stored; `None` where nothing can be read as one.
    fn next(&mut self) -> Option<(Snapshot, bool)> {
        if self.at == 0 || self.at >= self.examined.subject.file_len {
            return None;
        }
        let bytes = self.window.at(self.at, Snapshot::MAX_LEN as u64).ok()?.to_vec();
        let stored = Snapshot::decode(&bytes).ok();
        let usual = || USUAL_EXTRA.into_iter().find_map(|len| with_extra(&bytes, len)).filter(is_named);
        let (mut snapshot, used, mut as_stored) = match stored {
            Some((snapshot, used)) if is_named(&(snapshot.clone(), used)) => (snapshot, used, true),
            stored => {
                let long = self.with_long_extra(&bytes).filter(is_named);
                let guessed = long.or_else(usual).map(|(snapshot, used)| (snapshot, used, false));
                guessed.or(stored.map(|(snapshot, used)| (snapshot, used, true)))?
            }
        };
        if snapshot.l1_table.get() == 0 && snapshot.l1_entries == 0 {
            return None;
        }
        // Names end at the first zero, which none has that a tool wrote.
        if let Some(end) = snapshot.name.iter().position(|&byte| byte == 0) {
            snapshot.name.truncate(end);
            as_stored = false;
        }
        let is_whole = self.examined.ledger.is_within_file(self.at, used as u64);
        self.at = if is_whole { self.at + used as u64 } else { u64::MAX };
        Some((snapshot, as_stored && is_whole))
    }

    /// The entry that starts with `bytes`, if it has more extra data than it may, without what nobody knows of it.
    fn with_long_extra(&mut self, bytes: &[u8]) -> Option<(Snapshot, usize)> {
        let known = usize::try_from(USUAL_EXTRA[0]).ok()?;
        let extra = u32::from_be_bytes(bytes.get(EXTRA_LEN)?.try_into().ok()?);
        if extra <= Snapshot::MAX_EXTRA || extra > MAX_LONG_EXTRA {
            return None;
        }
        let names_at = self.at + EXTRA_LEN.end as u64 + u64::from(extra);
        let names = self.window.at(names_at, 2 * u64::from(u16::MAX)).ok()?;
        let short = [bytes.get(..EXTRA_LEN.end + known)?, names].concat();
        let (snapshot, used) = with_extra(&short, USUAL_EXTRA[0])?;
        Some((snapshot, (used - known + extra as usize).next_multiple_of(8)))
    }
}

/// The entry, if its extra data are taken to be `len` bytes long.
fn with_extra(bytes: &[u8], len: u32) -> Option<(Snapshot, usize)> {
    let mut bytes = bytes.to_vec();
    bytes.get_mut(EXTRA_LEN)?.copy_from_slice(&len.to_be_bytes());
    Snapshot::decode(&bytes).ok()
}

/// Whether ID and name look like such.
fn is_named((snapshot, _): &(Snapshot, usize)) -> bool {
    let is_text = |text: &[u8]| std::str::from_utf8(text).is_ok_and(|text| !text.contains(char::is_control));
    !snapshot.id.is_empty() && is_text(&snapshot.id) && is_text(&snapshot.name)
}

/// Makes `snapshot` one that can be used, and says how; `None` where it is.
fn mend(
    examined: &Examined<'_>,
    stored: &mut StoredRefcounts<'_>,
    snapshot: &mut Snapshot,
) -> Option<Remedy> {
    let geometry = examined.subject.geometry;
    let mut remedy = None;
    if examined.subject.header.version == Version::V3 && snapshot.extra.disk_size.is_none() {
        snapshot.extra.vm_state_size = Some(snapshot.vm_state_size());
        snapshot.extra.disk_size = Some(examined.subject.header.size);
        remedy = Some(Remedy::CompleteSnapshot);
    }
    if u64::from(snapshot.l1_entries) * TABLE_ENTRY_SIZE > Header::MAX_L1_BYTES {
        let disk = snapshot.extra.disk_size.unwrap_or(examined.subject.header.size);
        let entries = geometry.l1_entries_for(disk.saturating_add(snapshot.vm_state_size()));
        snapshot.l1_entries = u32::try_from(entries).unwrap_or(u32::MAX);
        remedy = Some(Remedy::FitSnapshotL1);
    }
    let host = geometry.align_down(snapshot.l1_table.get());
    let bytes = u64::from(snapshot.l1_entries) * TABLE_ENTRY_SIZE;
    if bytes > 0
        && (host == 0 || bytes > Header::MAX_L1_BYTES || !examined.ledger.is_within_file(host, bytes))
    {
        return Some(Remedy::DropSnapshot);
    }
    let first = host >> geometry.cluster_bits();
    let mut clusters = first..first + geometry.clusters_for(bytes);
    // The check has not followed such a table, so that nothing may refer to it.
    let is_free =
        |cluster| examined.ledger.references.get(cluster) == 0 && stored.get(cluster).is_none_or(|n| n > 0);
    if snapshot.l1_table.get() != host {
        if !clusters.all(is_free) {
            return Some(Remedy::DropSnapshot);
        }
        snapshot.l1_table = HostOffset(host);
        remedy = Some(Remedy::Relink { host });
    }
    remedy
}

/// Gives the snapshot a copy of its L1 table if that is something else as well; returns its length in bytes.
fn copy_l1(examined: &Examined<'_>, area: &mut Area, snapshot: &mut Snapshot) -> Result<Option<u64>> {
    let geometry = examined.subject.geometry;
    let (host, len) = (snapshot.l1_table.get(), u64::from(snapshot.l1_entries) * TABLE_ENTRY_SIZE);
    let first = host >> geometry.cluster_bits();
    let is_shared = |cluster| examined.ledger.fixed.get(cluster) > 1;
    if len == 0 || !(first..first + geometry.clusters_for(len)).any(is_shared) {
        return Ok(None);
    }
    examined.subject.limits.check_table("a snapshot's L1 table", len)?;
    let mut bytes = vec![0; len as usize];
    if examined.subject.read(&mut bytes, host).is_err() {
        return Ok(None);
    }
    let Some(cluster) = area.table(bytes, geometry.cluster_size()) else { return Ok(None) };
    snapshot.l1_table = host_of(examined, cluster);
    Ok(Some(len))
}

/// Gives an ID to a snapshot that has none, or another's.
fn make_distinct(snapshot: &mut Snapshot, index: u32, others: &[Snapshot]) {
    if snapshot.id.is_empty() && others.iter().all(|other| other.id != (index + 1).to_string().as_bytes()) {
        snapshot.id = (index + 1).to_string().into_bytes();
    }
}

/// Whether a finding says that the snapshot table cannot stay as it is.
pub(super) fn is_about_snapshots(finding: &Finding) -> bool {
    use super::sites::Structure::{SnapshotL1Table, SnapshotTable};
    matches!(
        finding,
        Finding::Snapshot {
            problem: SnapshotProblem::Incomplete
                | SnapshotProblem::L1Unaligned
                | SnapshotProblem::L1TooLarge
                | SnapshotProblem::L1InHeader,
            ..
        } | Finding::SnapshotTable { .. }
            | Finding::PastEnd { what: SnapshotTable | SnapshotL1Table, .. }
            | Finding::HeaderField { table: SnapshotTable, .. }
    )
}
