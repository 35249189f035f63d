//! The walk of a repair over the entries of all L1 and L2 tables, each of which may be given another value in place.
//!
//! An entry lies within a sector, so that each change happens whole or not at all. L1 tables come first: an L2 table is
//! looked for where its L1 entry says that it is then.

use std::collections::BTreeMap;

use super::Examined;
use super::l2::COPIED;
use super::ledger::{Ledger, Subject};
use super::mend::{Mender, Words};
use super::sites::Structure;
use super::snapshots::SnapshotTable;
use super::stored::StoredRefcounts;
use super::tables::{self, TablePart};
use crate::error::{Error, Result};
use crate::format::qcow2::{Incompatible, L1Entry, L2Entry, TABLE_ENTRY_SIZE};
use crate::storage::StorageExt;

/// Tables that are collected before they are read, a bound on memory.
const MAX_COLLECTED: usize = 1 << 18;

/// Says what entries are to be; `None` leaves one as it is.
pub(super) trait EntryFixer {
    /// About an entry of an L1 table.
    fn l1(&mut self, raw: u64, tree: Tree) -> Option<u64>;
    /// About an entry of an L2 table.
    fn l2(&mut self, entry: Words, at: Place) -> Option<Words>;
}

/// Where an entry of an L2 table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) tree: Tree,
    /// The guest offset in bytes that it maps, where the active tables lead to it.
    pub(super) guest: Option<u64>,
}

/// Which tables lead to an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tree {
    /// Those of snapshots alone.
    Snapshots,
    /// The active ones, maybe others too.
    Active,
}

/// Walks over the tables of the image as it is in the file now; returns how many entries were changed. Tables that are
/// something else as well, as `examined` has it, are not written to.
pub(super) fn walk(subject: Subject<'_>, examined: &Examined<'_>, fixer: &mut dyn EntryFixer) -> Result<u64> {
    // What cannot be read has been reported.
    let mut unread = Ledger::new(&subject)?;
    let snapshots = SnapshotTable::read(&subject, &mut unread)?;
    let len = u64::from(subject.header.l1_entries) * TABLE_ENTRY_SIZE;
    let active = (subject.header.l1_table.get(), len);
    let mut walk = Walk { subject, examined, fixer, collected: BTreeMap::new(), changed: 0, failed: None };
    walk.l1_table(&mut unread, (Structure::L1Table, active), Tree::Active);
    let places = snapshots.l1_tables.places.iter().filter(|(_, len)| *len > 0);
    for place in places.collect::<std::collections::BTreeSet<_>>() {
        walk.l1_table(&mut unread, (Structure::SnapshotL1Table, *place), Tree::Snapshots);
    }
    walk.read_collected();
    match walk.failed {
        Some(error) => Err(error),
        None => Ok(walk.changed),
    }
}

struct Walk<'w> {
    subject: Subject<'w>,
    examined: &'w Examined<'w>,
    fixer: &'w mut dyn EntryFixer,
    /// L2 tables, and the guest offset that the first entry of each maps.
    collected: BTreeMap<u64, Place>,
    changed: u64,
    failed: Option<Error>,
}

impl Walk<'_> {
    fn l1_table(&mut self, unread: &mut Ledger, (what, (start, len)): (Structure, (u64, u64)), tree: Tree) {
        let part = TablePart { what, start, end: start.saturating_add(len) };
        let subject = self.subject;
        tables::for_each_entry_of(&subject, unread, &part, |_, host, raw| {
            if self.failed.is_some() {
                return;
            }
            let cluster = host >> subject.geometry.cluster_bits();
            let is_alone = self.may_write_l1(cluster, tree);
            let fixed = self.fixer.l1(raw, tree).filter(|_| is_alone);
            let now = fixed.unwrap_or(raw);
            if let Some(fixed) = fixed {
                self.write(host, &fixed.to_be_bytes());
            }
            if let Ok(L1Entry { table: Some(table) }) = L1Entry::decode(now, &subject.geometry)
                // What lies past the end that was examined is a copy, which was mended before.
                && table.host.get() < self.examined.subject.file_len
            {
                let index = (host - start) / TABLE_ENTRY_SIZE;
                let guest =
                    (tree == Tree::Active).then(|| index.saturating_mul(subject.geometry.l2_coverage()));
                let known = self.collected.entry(table.host.get()).or_insert(Place { tree, guest });
                *known = Place { tree: tree.max(known.tree), guest: known.guest.or(guest) };
            }
            if self.collected.len() >= MAX_COLLECTED {
                self.read_collected();
            }
        });
    }

    /// Whether a cluster was counted as one of an L1 table, and as nothing else that is changed in place. One that was not,
    /// as the table lies past the end of the file with its other part, may be anybody's.
    fn may_write_l1(&self, cluster: u64, tree: Tree) -> bool {
        let subject = &self.examined.subject;
        let is_new = cluster >= subject.geometry.clusters_for(subject.file_len);
        match self.examined.ledger.fixed.get(cluster) {
            0 => is_new,
            1 => true,
            _ => tree == Tree::Snapshots,
        }
    }

    fn read_collected(&mut self) {
        let mut bytes = vec![0; self.subject.geometry.cluster_size() as usize];
        for (host, first) in std::mem::take(&mut self.collected) {
            let cluster = host >> self.subject.geometry.cluster_bits();
            let ledger = &self.examined.ledger;
            let is_alone = ledger.references.get(cluster) == ledger.l2_tables.get(cluster);
            if self.failed.is_none() && is_alone && self.subject.read(&mut bytes, host).is_ok() {
                self.l2_table(host, &bytes, first);
            }
        }
    }

    fn l2_table(&mut self, host: u64, bytes: &[u8], first: Place) {
        let subject = self.subject;
        for (at, entry) in entries(&subject, bytes) {
            let within = (at / entry_size(&subject) as u64) << subject.geometry.cluster_bits();
            let place = Place { guest: first.guest.map(|guest| guest.saturating_add(within)), ..first };
            if let Some(fixed) = self.fixer.l2(entry, place) {
                self.write(host + at, &encoded(&subject, fixed));
            }
            if self.failed.is_some() {
                return;
            }
        }
    }

    fn write(&mut self, at: u64, bytes: &[u8]) {
        match self.subject.storage.write_all_at(bytes, at) {
            Ok(()) => self.changed += 1,
            Err(error) => self.failed = Some(Error::io("write the repaired metadata", error)),
        }
    }
}

/// Fixes the entries of an L2 table in memory.
pub(super) fn fix_table(subject: &Subject<'_>, bytes: &mut [u8], fixer: &mut dyn EntryFixer) {
    let old = bytes.to_vec();
    for (at, entry) in entries(subject, &old) {
        if let Some(fixed) = fixer.l2(entry, Place { tree: Tree::Active, guest: None }) {
            let encoded = encoded(subject, fixed);
            bytes[at as usize..at as usize + encoded.len()].copy_from_slice(&encoded);
        }
    }
}

fn entry_size(subject: &Subject<'_>) -> usize {
    if subject.header.incompatible.contains(Incompatible::EXTENDED_L2) { 16 } else { 8 }
}

/// The entries of an L2 table that are not all zeroes, with their places.
fn entries(subject: &Subject<'_>, bytes: &[u8]) -> impl Iterator<Item = (u64, Words)> {
    let size = entry_size(subject);
    let words = bytes.chunks_exact(size).map(|entry| {
        let (raw, subclusters) = entry.split_at(8);
        let raw = u64::from_be_bytes(raw.try_into().expect("entries have at least eight bytes"));
        Words { raw, subclusters: subclusters.try_into().map_or(0, u64::from_be_bytes) }
    });
    let placed = (0..).step_by(size).zip(words);
    placed.filter(|(_, entry)| entry.raw != 0 || entry.subclusters != 0)
}

fn encoded(subject: &Subject<'_>, entry: Words) -> Vec<u8> {
    let mut bytes = [entry.raw.to_be_bytes(), entry.subclusters.to_be_bytes()].concat();
    bytes.truncate(entry_size(subject));
    bytes
}

impl EntryFixer for Mender<'_> {
    fn l1(&mut self, raw: u64, tree: Tree) -> Option<u64> {
        let mended = Mender::l1(self, raw).map(|(mended, _)| mended);
        if tree == Tree::Active && self.is_table_of_another(raw, mended) { Some(0) } else { mended }
    }

    fn l2(&mut self, entry: Words, at: Place) -> Option<Words> {
        Mender::l2(self, entry, at.guest).map(|(mended, _)| mended)
    }
}

/// Makes copied flags of the active tables agree with the refcounts in the file.
#[derive(Debug)]
pub(super) struct CopiedFlags<'a> {
    pub(super) stored: StoredRefcounts<'a>,
    /// Whether a flag may be set, which lets its cluster be overwritten in place: only where nothing else is wrong.
    pub(super) may_set: bool,
}

impl CopiedFlags<'_> {
    /// The entry with the flag that it should have.
    fn corrected(&mut self, raw: u64, host: u64, has_refcounts: bool) -> Option<u64> {
        let cluster = host >> self.stored.subject().geometry.cluster_bits();
        let refcount = if has_refcounts { self.stored.get(cluster)? } else { 1 };
        let right = if refcount == 1 { raw | COPIED } else { raw & !COPIED };
        (right != raw && (refcount != 1 || self.may_set)).then_some(right)
    }
}

impl EntryFixer for CopiedFlags<'_> {
    fn l1(&mut self, raw: u64, tree: Tree) -> Option<u64> {
        let geometry = self.stored.subject().geometry;
        let table = L1Entry::decode(raw, &geometry).ok()?.table.filter(|_| tree == Tree::Active)?;
        self.corrected(raw, table.host.get(), true)
    }

    fn l2(&mut self, entry: Words, at: Place) -> Option<Words> {
        let tree = at.tree;
        let subject = *self.stored.subject();
        let undivided = subject.geometry.with_extended_l2(false);
        let has_data_file = subject.has_data_file();
        // In extended entries bit 0 is no zero flag; what is found is the cluster's place in either case.
        let space = match L2Entry::decode(entry.raw, &undivided, crate::format::qcow2::Version::V3).ok()? {
            L2Entry::Compressed(_) => return None,
            L2Entry::Unallocated if has_data_file && entry.raw & COPIED != 0 => return None,
            decoded => decoded.space()?,
        };
        if tree != Tree::Active {
            return None;
        }
        let raw = self.corrected(entry.raw, space.host.get(), !has_data_file)?;
        Some(Words { raw, ..entry })
    }
}
