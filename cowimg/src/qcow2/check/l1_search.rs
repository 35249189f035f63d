//! The active L1 table, where what the header says of it cannot be: too few or too many entries, or a place where it is
//! not.
//!
//! Nothing else in an image names the table. But everything else is counted: with the right table a check finds nothing at
//! all, and that is what a place has to pass before it is believed. So
//! * a length is believed if the check finds no more with it than with any other;
//! * a place is believed if its clusters are counted as in use, nothing refers to them, every entry leads to a cluster of
//!   which the same is true, and the check is spotless then. An image that has other damage, leaks among it, is left
//!   alone: there is no telling what is the disk's.

use std::collections::BTreeSet;

use super::header_damage::{HeaderDamage, L1Damage};
use super::issue::Finding;
use super::l2::COPIED;
use super::remedy::Remedy;
use super::sites::Structure;
use super::stored::StoredRefcounts;
use super::{CheckReport, Examined, examine};
use crate::error::Result;
use crate::format::qcow2::{Header, HostCluster, L1Entry, TABLE_ENTRY_SIZE};
use crate::progress::Control;

/// Places that are held against the whole image. More than one that looks like a table in every entry was made so.
const MAX_TRIALS: usize = 16;

/// The most entries that a table may have.
const MAX_ENTRIES: u64 = Header::MAX_L1_BYTES / TABLE_ENTRY_SIZE;

/// What the header should say of the table.
#[derive(Debug)]
pub(super) struct FoundL1 {
    /// The header with it. Where [`FoundL1::is_short`], with the entries that there are: the table has to grow.
    pub(super) header: Header,
    /// Whether the disk needs more entries than the table has, so that zeroes follow in a new one.
    pub(super) is_short: bool,
    /// What that is called.
    pub(super) remedy: Remedy,
}

/// Finds the table if it is not what the header says; `None` where it is, or where nobody can tell.
pub(super) fn find(examined: &Examined<'_>) -> Result<Option<FoundL1>> {
    if !is_suspect(examined) {
        return Ok(None);
    }
    let fitting = fitting(examined)?;
    if let Some((found, Agreement::Whole)) = fitting {
        return Ok(Some(found));
    }
    let is_about_l1 =
        |finding: &Finding| matches!(finding, Finding::HeaderField { table: Structure::L1Table, .. });
    let found = if examined.damage.findings.iter().all(is_about_l1) { elsewhere(examined)? } else { None };
    Ok(found.or(fitting.map(|(found, _)| found)))
}

/// What the rest of the image says to a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Agreement {
    /// Nothing is wrong with it.
    Whole,
    /// Not more is wrong with it than without.
    InPart,
}

/// Whether the header may be wrong about the table.
fn is_suspect(examined: &Examined<'_>) -> bool {
    let Examined { subject, damage, ledger, .. } = examined;
    let (header, geometry) = (subject.header, subject.geometry);
    let bytes = u64::from(header.l1_entries) * TABLE_ENTRY_SIZE;
    // With a wrong place, the right one is left over. The wrong one may be anything: zeroes are the table of an empty disk.
    let is_odd = ledger.issues.damaged.entries || examined.report.allocated_clusters == 0;
    let is_elsewhere = is_odd && examined.report.leaks > 0;
    if damage.l1.is_some() || ledger.issues.bad_l1 || is_elsewhere {
        return true;
    }
    if bytes == 0 || !ledger.is_within_file(header.l1_table.get(), bytes) {
        return bytes > 0;
    }
    let first = geometry.host_cluster(header.l1_table).get();
    let mut stored = examined.stored.again();
    (first..first + geometry.clusters_for(bytes))
        .any(|cluster| ledger.references.get(cluster) != 1 || stored.get(cluster) == Some(0))
}

/// The table where the header has it, with the entries that the disk needs or with those that the header says.
fn fitting(examined: &Examined<'_>) -> Result<Option<(FoundL1, Agreement)>> {
    let Examined { subject, report, .. } = examined;
    let header = subject.header;
    let as_needed = |header: Header| FoundL1 { header, is_short: false, remedy: Remedy::FitL1 };
    let damage = match examined.damage.l1 {
        Some(L1Damage::Nowhere { .. }) => return Ok(None),
        Some(damage) => damage,
        None => {
            let needed = u32::try_from(subject.geometry.l1_entries_for(header.size));
            let Some(needed) = needed.ok().filter(|&needed| needed < header.l1_entries) else {
                return Ok(None);
            };
            let fitting = Header { l1_entries: needed, ..header.clone() };
            let is_clean = is_there(examined, &fitting) && trial(examined, &fitting)?.is_clean();
            return Ok(is_clean.then(|| (as_needed(fitting), Agreement::Whole)));
        }
    };
    if is_there(examined, header) {
        let with = trial(examined, header)?;
        if with.is_clean() {
            return Ok(Some((as_needed(header.clone()), Agreement::Whole)));
        }
    }
    let is_elsewhere = report.allocated_clusters == 0 && stored_without_reference(examined);
    let first = Header { l1_entries: 1, ..header.clone() };
    if is_elsewhere || !is_there(examined, &first) {
        return Ok(None);
    }
    let L1Damage::TooSmall { entries } = damage else {
        return Ok(Some((as_needed(header.clone()), Agreement::InPart)));
    };
    // What is behind the entries is the rest of the table if it explains itself as well as they do.
    let short = Header { l1_entries: entries, ..header.clone() };
    let wrong = |report: CheckReport| report.corruptions.saturating_add(report.check_errors);
    if is_there(examined, header) && wrong(trial(examined, header)?) <= wrong(trial(examined, &short)?) {
        return Ok(Some((as_needed(header.clone()), Agreement::InPart)));
    }
    let grown = FoundL1 { header: short, is_short: true, remedy: Remedy::FitL1 };
    Ok(Some((grown, Agreement::InPart)))
}

/// Whether clusters are counted as in use that nothing refers to.
fn stored_without_reference(examined: &Examined<'_>) -> bool {
    let mut stored = examined.stored.again();
    let references = &examined.ledger.references;
    (0..references.clusters())
        .any(|cluster| stored.get(cluster).is_some_and(|refcount| refcount > references.get(cluster)))
}

fn is_there(examined: &Examined<'_>, header: &Header) -> bool {
    let bytes = u64::from(header.l1_entries) * TABLE_ENTRY_SIZE;
    bytes == 0 || examined.ledger.is_within_file(header.l1_table.get(), bytes)
}

/// What a check finds if the header says this.
fn trial(examined: &Examined<'_>, header: &Header) -> Result<CheckReport> {
    let subject = &examined.subject;
    let control = Control { progress: None, cancel: subject.control.cancel };
    Ok(examine(subject.storage, header, &HeaderDamage::default(), (subject.limits, &control))?.report)
}

/// The table in a place that nothing refers to.
fn elsewhere(examined: &Examined<'_>) -> Result<Option<FoundL1>> {
    let subject = &examined.subject;
    let needed = subject.geometry.l1_entries_for(subject.header.size);
    let stated = match examined.damage.l1 {
        Some(L1Damage::Nowhere { entries }) => entries,
        _ => subject.header.l1_entries,
    };
    let is_possible = |&entries: &u64| entries > 0 && entries >= needed && entries <= MAX_ENTRIES;
    // The table that the header has now is no table, and what it seems to refer to must not count.
    let none = Header { l1_entries: 0, ..subject.header.clone() };
    let control = Control { progress: None, cancel: subject.control.cancel };
    let damage = HeaderDamage::default();
    let without = examine(subject.storage, &none, &damage, (subject.limits, &control))?;
    let lengths = BTreeSet::from([needed, u64::from(stated)]);
    for entries in lengths.into_iter().rev().filter(is_possible).filter_map(|entries| entries.try_into().ok())
    {
        let mut search = Search { stored: without.stored.again(), without: &without, entries };
        for cluster in search.candidates()? {
            let l1_table = subject.geometry.host_offset(HostCluster(cluster));
            let header = Header { l1_table, l1_entries: entries, ..subject.header.clone() };
            if trial(examined, &header)?.is_clean() {
                let remedy = Remedy::FindL1 { host: l1_table.get() };
                return Ok(Some(FoundL1 { header, is_short: false, remedy }));
            }
        }
    }
    Ok(None)
}

struct Search<'s> {
    /// The image without an active L1 table.
    without: &'s Examined<'s>,
    stored: StoredRefcounts<'s>,
    entries: u32,
}

impl Search<'_> {
    /// Where tables may start, as clusters: each entry could be one.
    fn candidates(&mut self) -> Result<Vec<u64>> {
        let geometry = self.without.subject.geometry;
        let len = geometry.clusters_for(u64::from(self.entries) * TABLE_ENTRY_SIZE);
        let (mut found, mut empty) = (Vec::new(), Vec::new());
        let (mut unexplained, mut in_a_row) = (0, 0);
        for cluster in 0..self.without.ledger.references.clusters() {
            self.without.subject.control.check()?;
            let references = self.without.ledger.references.get(cluster);
            let Some(refcount) = self.stored.get(cluster) else { return Ok(Vec::new()) };
            unexplained += u64::from(refcount > references);
            in_a_row = if refcount == 1 && references == 0 { in_a_row + 1 } else { 0 };
            if in_a_row < len || found.len() >= MAX_TRIALS {
                continue;
            }
            let first = cluster + 1 - len;
            match self.looks_like_a_table(first) {
                Some(true) => found.push(first),
                // Zeroes everywhere are the table of an empty disk, of which nothing else is left over.
                Some(false) if empty.len() < MAX_TRIALS => empty.push(first),
                _ => {}
            }
        }
        if unexplained == len {
            found.extend(empty);
        }
        Ok(found)
    }

    /// Whether entries of the table that starts at this cluster lead anywhere; `None` where one cannot be an entry.
    fn looks_like_a_table(&mut self, first: u64) -> Option<bool> {
        let subject = &self.without.subject;
        let start = subject.geometry.host_offset(HostCluster(first)).get();
        let len = u64::from(self.entries) * TABLE_ENTRY_SIZE;
        let mut leads_somewhere = false;
        let mut at = 0;
        let mut bytes = vec![0; PIECE.min(len) as usize];
        while at < len {
            bytes.truncate((len - at) as usize);
            subject.read(&mut bytes, start + at).ok()?;
            for raw in bytes.chunks_exact(8) {
                let raw = u64::from_be_bytes(raw.try_into().ok()?);
                leads_somewhere |= raw != 0;
                if raw != 0 && !self.looks_like_an_entry(raw) {
                    return None;
                }
            }
            at += bytes.len() as u64;
        }
        Some(leads_somewhere)
    }

    fn looks_like_an_entry(&mut self, raw: u64) -> bool {
        let Examined { subject, ledger, .. } = self.without;
        let Ok(L1Entry { table: Some(table) }) = L1Entry::decode(raw, &subject.geometry) else {
            return false;
        };
        let cluster = subject.geometry.host_cluster(table.host).get();
        let is_within = ledger.is_within_file(table.host.get(), subject.geometry.cluster_size());
        let Some(refcount) = self.stored.get(cluster).filter(|_| is_within) else { return false };
        L1Entry::reserved_bits(raw) == 0
            && refcount > ledger.references.get(cluster)
            && (refcount == 1) == (raw & COPIED != 0)
    }
}

/// Bytes that are looked at first: most places are no table, and that shows in the first of them.
const PIECE: u64 = 4096;
