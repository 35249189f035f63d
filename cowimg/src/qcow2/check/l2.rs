//! The L2 tables: what they refer to, what is wrong with their entries, and how scattered the data is.
//!
//! Each table is read once, however many L1 entries lead to it; what it refers to counts that often.

use std::collections::BTreeMap;
use std::io;

use super::issue::Finding;
use super::ledger::{Ledger, Role, Subject};
use super::sites::{L2Problem, L2Site};
use super::stored::StoredRefcounts;
use crate::format::qcow2::{CompressedRun, HostOffset, Incompatible, L2Entry, L2EntryError, Version};

/// Tables that are collected before they are read: enough for 128 TiB of guest data in clusters of 64 KiB, and a bound
/// on memory for an image that names more.
const MAX_COLLECTED: usize = 1 << 18;
/// Tables away from cluster boundaries that are read. They can overlap, so that they are not bounded by the file's length;
/// an image that has more of them was made so.
const MAX_UNALIGNED: u64 = 1024;

/// Raw bit 63 of L1 and L2 entries: the refcount is exactly one.
pub(super) const COPIED: u64 = 1 << 63;
/// Entries that are worth being looked at together.
const MIN_RUN: usize = 8;
/// Places that an L2 entry can say are below this, in bytes.
const MAX_PLACE: u64 = 1 << 56;
/// Raw bit 0 of L2 entries: the cluster reads as zeroes.
const ZERO: u64 = 1;

/// The L1 entries that lead to a table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Uses {
    /// Entries of the active L1 table.
    pub(super) active: u64,
    /// Entries of snapshots' L1 tables.
    pub(super) inactive: u64,
    /// The first of the active ones.
    pub(super) first_active: u64,
}

impl Uses {
    fn total(self) -> u64 {
        self.active.saturating_add(self.inactive)
    }
}

/// How the clusters of the active disk are stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tallies {
    pub(super) allocated: u64,
    pub(super) fragmented: u64,
    pub(super) compressed: u64,
}

/// The tables of an image, as the L1 tables name them.
#[derive(Debug)]
pub(super) struct L2Tables<'a> {
    subject: Subject<'a>,
    stored: StoredRefcounts<'a>,
    collected: BTreeMap<u64, Uses>,
    tallies: Tallies,
    unaligned: u64,
    /// Whether the last table had no entries, so that it may pay to ask whether the next is in a hole.
    last_was_empty: bool,
    buf: Vec<u8>,
}

/// The table that is being read.
#[derive(Debug, Clone, Copy)]
struct Table {
    uses: Uses,
    /// Whether the copied flags are to be held against the refcounts.
    check_copied: bool,
    /// Where the next cluster would start if the data were in one piece; 0 before the first.
    next_in_line: u64,
}

/// An entry that is not all zeroes.
#[derive(Debug, Clone, Copy)]
struct Entry {
    site: L2Site,
    raw: u64,
    subclusters: u64,
}

impl<'a> L2Tables<'a> {
    pub(super) fn new(subject: Subject<'a>, stored: StoredRefcounts<'a>) -> L2Tables<'a> {
        let buf = vec![0; subject.geometry.cluster_size() as usize];
        L2Tables {
            subject,
            stored,
            collected: BTreeMap::new(),
            tallies: Tallies::default(),
            unaligned: 0,
            last_was_empty: false,
            buf,
        }
    }

    /// The refcount of the cluster that holds an offset; `None` where it cannot be read.
    pub(super) fn stored_refcount(&mut self, host: u64) -> Option<u64> {
        self.stored.get(host >> self.subject.geometry.cluster_bits())
    }

    /// Notes that `uses` lead to the table at `host`.
    pub(super) fn add(&mut self, ledger: &mut Ledger, host: u64, uses: Uses) {
        let known = self.collected.entry(host).or_default();
        if known.active == 0 {
            known.first_active = uses.first_active;
        }
        known.active = known.active.saturating_add(uses.active);
        known.inactive = known.inactive.saturating_add(uses.inactive);
        if self.collected.len() >= MAX_COLLECTED {
            self.read_collected(ledger);
        }
    }

    /// Reads the tables that are left.
    pub(super) fn finish(mut self, ledger: &mut Ledger) -> (Tallies, StoredRefcounts<'a>) {
        self.read_collected(ledger);
        (self.tallies, self.stored)
    }

    fn read_collected(&mut self, ledger: &mut Ledger) {
        let collected = std::mem::take(&mut self.collected);
        let table_len = self.buf.len() as u64;
        ledger.expect(table_len * collected.len() as u64);
        for (host, uses) in collected {
            if !ledger.advance(&self.subject, table_len) {
                return;
            }
            if self.is_one_too_many(host) {
                let error = io::Error::other("too many tables do not start at a cluster boundary");
                ledger.unreadable("an L2 table", host, &error);
                continue;
            }
            if self.is_hole(host) {
                continue;
            }
            let mut buf = std::mem::take(&mut self.buf);
            match self.subject.read(&mut buf, host) {
                Ok(()) => self.read_table(ledger, host, uses, &buf),
                Err(error) => ledger.unreadable("an L2 table", host, &error),
            }
            self.buf = buf;
        }
    }

    fn is_one_too_many(&mut self, host: u64) -> bool {
        self.unaligned += u64::from(!self.subject.geometry.is_aligned(host));
        self.unaligned > MAX_UNALIGNED && !self.subject.geometry.is_aligned(host)
    }

    fn is_hole(&self, host: u64) -> bool {
        let end = host + self.subject.geometry.cluster_size();
        self.last_was_empty && self.subject.hole_end(host).is_some_and(|hole_end| hole_end >= end)
    }

    fn read_table(&mut self, ledger: &mut Ledger, host: u64, uses: Uses, bytes: &[u8]) {
        let check_copied = uses.active > 0 && self.stored_refcount(host).is_some();
        let mut table = Table { uses, check_copied, next_in_line: 0 };
        let extended = self.subject.header.incompatible.contains(Incompatible::EXTENDED_L2);
        let entry_size: usize = if extended { 16 } else { 8 };
        let entries = bytes.len() / entry_size;
        self.last_was_empty = true;
        let mut in_run = 0;
        for (index, entry) in bytes.chunks_exact(entry_size).enumerate() {
            if index < in_run {
                continue;
            }
            if !extended && let Some(len) = self.plain_run(ledger, &mut table, &bytes[index * entry_size..]) {
                in_run = index + len;
                continue;
            }
            let (raw, subclusters) = entry.split_at(8);
            let raw = u64::from_be_bytes(raw.try_into().expect("entries have at least eight bytes"));
            let subclusters = subclusters.try_into().map_or(0, u64::from_be_bytes);
            if raw == 0 && subclusters == 0 {
                continue;
            }
            self.last_was_empty = false;
            let cluster = uses.first_active.saturating_mul(entries as u64).saturating_add(index as u64);
            let guest = cluster.saturating_mul(self.subject.geometry.cluster_size());
            let guest = (uses.active > 0).then_some(guest);
            let site = L2Site { table: host, index: index as u64, guest, entry: raw };
            // Extended entries have no zero flag: their subclusters say it.
            let raw = if extended { raw & !ZERO } else { raw };
            self.read_entry(ledger, &mut table, &Entry { site, raw, subclusters });
        }
    }

    /// How most tables look: entries that name one cluster after the other, each of which is theirs alone. If `entries`
    /// begin with some that do, and nothing is wrong with any, these are counted in one go, and their number returned.
    fn plain_run(&mut self, ledger: &mut Ledger, table: &mut Table, entries: &[u8]) -> Option<usize> {
        let geometry = self.subject.geometry;
        let entries = entries.as_chunks::<8>().0;
        let raw = u64::from_be_bytes(*entries.get(MIN_RUN)?);
        let first = raw.wrapping_sub(MIN_RUN as u64 * geometry.cluster_size());
        let is_usual = table.check_copied && table.uses.total() == 1 && !self.subject.has_data_file();
        if !is_usual || u64::from_be_bytes(entries[0]) != first || first & COPIED == 0 {
            return None;
        }
        let host = first & !COPIED;
        let expected = (0..).map(|nth: u64| first.wrapping_add(nth << geometry.cluster_bits()));
        let len = entries
            .iter()
            .zip(expected)
            .take_while(|(entry, raw)| u64::from_be_bytes(**entry) == *raw)
            .count();
        let bytes = (len as u64) << geometry.cluster_bits();
        let is_place = host != 0 && host < MAX_PLACE && geometry.is_aligned(host);
        let clusters = host >> geometry.cluster_bits()..(host + bytes) >> geometry.cluster_bits();
        if len < MIN_RUN
            || !is_place
            || host + bytes > self.subject.file_len
            || !self.stored.are_one(clusters.clone())
        {
            return None;
        }
        self.last_was_empty = false;
        self.tallies.allocated += len as u64;
        self.tallies.fragmented += u64::from(table.next_in_line != 0 && table.next_in_line != host);
        table.next_in_line = host + bytes;
        ledger.references.add_each(clusters);
        Some(len)
    }

    fn read_entry(&mut self, ledger: &mut Ledger, table: &mut Table, entry: &Entry) {
        let version = self.subject.header.version;
        let problem = |ledger: &mut Ledger, problem: L2Problem| {
            ledger.issues.add(Finding::L2Entry { site: entry.site, problem }, table.uses.total());
        };
        // Version 3 knows every flag, so that an entry of version 2 with the zero flag says where its cluster is.
        if L2Entry::reserved_bits(entry.raw, Version::V3) != 0 {
            problem(ledger, L2Problem::ReservedBits);
        }
        // The second words are looked at further down.
        let undivided = self.subject.geometry.with_extended_l2(false);
        let (host, zero) = match L2Entry::decode(entry.raw, &undivided, Version::V3) {
            Ok(L2Entry::Compressed(run)) => return self.compressed(ledger, table, entry, run),
            Err(L2EntryError::CompressedPastLimit { host }) => {
                return self.compressed(
                    ledger,
                    table,
                    entry,
                    CompressedRun { host: HostOffset(host), sectors: 0 },
                );
            }
            Err(L2EntryError::Unaligned { host }) => {
                problem(ledger, L2Problem::Unaligned);
                (Some(host), entry.raw & ZERO != 0)
            }
            Ok(L2Entry::Standard(at)) => (Some(at.host.0), false),
            Ok(L2Entry::Zero(at)) => (at.map(|at| at.host.0), true),
            // In a data file, the first cluster is data; only the copied flag tells it from none.
            Ok(L2Entry::Unallocated) if self.subject.has_data_file() && entry.raw & COPIED != 0 => {
                (Some(0), false)
            }
            Ok(L2Entry::Unallocated | L2Entry::Divided(_)) | Err(_) => (None, false),
        };
        if zero && version == Version::V2 {
            problem(ledger, L2Problem::ZeroInVersion2);
        }
        match host {
            Some(host) => {
                if entry.subclusters >> 32 & entry.subclusters != 0 {
                    problem(ledger, L2Problem::SubclustersTwice { subclusters: entry.subclusters });
                }
                self.standard(ledger, table, entry, host);
            }
            None if entry.subclusters as u32 != 0 => {
                problem(ledger, L2Problem::SubclustersNowhere { subclusters: entry.subclusters });
            }
            None => {}
        }
    }

    /// A cluster stored as it is, or kept for one that reads as zeroes.
    fn standard(&mut self, ledger: &mut Ledger, table: &mut Table, entry: &Entry, host: u64) {
        let Uses { active, .. } = table.uses;
        let cluster_size = self.subject.geometry.cluster_size();
        self.tallies.allocated += active;
        if table.next_in_line != 0 && table.next_in_line != host {
            self.tallies.fragmented += active;
        }
        table.next_in_line = host + cluster_size;
        if !self.subject.has_data_file() {
            self.count(ledger, table, entry, (host, cluster_size));
        } else if self.subject.geometry.is_aligned(host)
            && entry.site.guest.is_some_and(|guest| guest != host)
        {
            let problem = L2Problem::NotItsPlace;
            ledger.issues.add(Finding::L2Entry { site: entry.site, problem }, 1);
        }
        if table.check_copied {
            self.check_copied(ledger, table, entry, host);
        }
    }

    fn check_copied(&mut self, ledger: &mut Ledger, table: &Table, entry: &Entry, host: u64) {
        // The clusters of a data file have no refcounts and are never shared.
        let refcount = if self.subject.has_data_file() { Some(1) } else { self.stored_refcount(host) };
        let Some(refcount) = refcount else { return };
        if (refcount == 1) != (entry.raw & COPIED != 0) {
            let problem = L2Problem::Copied { refcount };
            ledger.issues.add(Finding::L2Entry { site: entry.site, problem }, table.uses.active);
        }
    }

    fn compressed(&mut self, ledger: &mut Ledger, table: &Table, entry: &Entry, run: CompressedRun) {
        let times = table.uses.total();
        let mut problem = |problem| ledger.issues.add(Finding::L2Entry { site: entry.site, problem }, times);
        if entry.raw & COPIED != 0 {
            problem(L2Problem::CopiedCompressed);
        }
        if self.subject.has_data_file() {
            return problem(L2Problem::CompressedWithDataFile);
        }
        if entry.subclusters != 0 {
            return problem(L2Problem::CompressedWithSubclusters { subclusters: entry.subclusters });
        }
        // Sectors are the unit of I/O, and compressed clusters share them: none can be read in one piece.
        self.tallies.allocated += table.uses.active;
        self.tallies.compressed += table.uses.active;
        self.tallies.fragmented += table.uses.active;
        self.count(ledger, table, entry, (run.host.0, run.max_len()));
    }

    /// Counts what an entry refers to, or reports that it lies past the end of the file.
    fn count(&self, ledger: &mut Ledger, table: &Table, entry: &Entry, (host, len): (u64, u64)) {
        let times = table.uses.total();
        if !ledger.count(Role::Data, host, len, times) && len > 0 {
            let problem = L2Problem::PastEnd { host, file_len: self.subject.file_len };
            ledger.issues.add(Finding::L2Entry { site: entry.site, problem }, times);
        }
    }
}
