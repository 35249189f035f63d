//! What becomes of a damaged entry of an L1 or L2 table: decided from the entry and from what a check has found out about
//! the clusters that it names. Nothing is written here.
//!
//! What can be read before reads the same after. Where an entry names a place that cannot be right, the cluster that it
//! starts in is taken if it is counted as in use and no other reference explains that; else what the entry mapped is given
//! up, and reads as zeroes rather than as an error.

use foldhash::HashSet;

use super::Examined;
use super::l2::COPIED;
use super::moves::Moves;
use super::remedy::Remedy;
use super::stored::StoredRefcounts;
use crate::format::qcow2::{
    CompressedRun, Geometry, HostOffset, Incompatible, L1Entry, L1EntryError, L2Entry, L2EntryError, Version,
};

/// Raw bit 0 of L2 entries: the cluster reads as zeroes.
const ZERO: u64 = 1;

/// Bits of L2 entries that say where the cluster is.
const L2_PLACE: u64 = 0x00ff_ffff_ffff_fe00;

/// An L2 entry as stored; the second word is 0 where entries have one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Words {
    pub(super) raw: u64,
    pub(super) subclusters: u64,
}

/// Decides about entries.
#[derive(Debug)]
pub(super) struct Mender<'e> {
    pub(super) examined: &'e Examined<'e>,
    pub(super) moves: &'e Moves,
    stored: StoredRefcounts<'e>,
    geometry: Geometry,
    extended: bool,
    has_data_file: bool,
    version: Version,
    /// With a data file: the tables that entries seen so far lead to, but for those that a single entry did from the start.
    led_to: HashSet<u64>,
}

/// What an offset may be meant for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meant {
    Table,
    Data,
}

impl<'e> Mender<'e> {
    pub(super) fn new(examined: &'e Examined<'e>, moves: &'e Moves) -> Mender<'e> {
        let header = examined.subject.header;
        Mender {
            examined,
            moves,
            stored: examined.stored.again(),
            geometry: examined.subject.geometry,
            extended: header.incompatible.contains(Incompatible::EXTENDED_L2),
            has_data_file: examined.subject.has_data_file(),
            version: header.version,
            led_to: HashSet::default(),
        }
    }

    /// What the L1 entry `raw` is to be, where it is to be something else.
    pub(super) fn l1(&mut self, raw: u64) -> Option<(u64, Remedy)> {
        let reserved = L1Entry::reserved_bits(raw);
        let host = match L1Entry::decode(raw, &self.geometry) {
            Ok(L1Entry { table: None }) => return (raw != 0).then_some((0, Remedy::ClearBits)),
            Ok(L1Entry { table: Some(table) }) => table.host.get(),
            Err(L1EntryError::Unaligned { host }) => {
                return Some(match self.relink(host, Meant::Table) {
                    Some(host) => (host, Remedy::Relink { host }),
                    None => (0, Remedy::Unmap),
                });
            }
        };
        if !self.examined.ledger.is_within_file(host, self.geometry.cluster_size()) {
            return Some((0, Remedy::Unmap));
        }
        if let Some(copy) = self.moves.table(self.cluster(host)) {
            return Some((copy << self.geometry.cluster_bits() | raw & COPIED, Remedy::Copy));
        }
        (reserved != 0).then_some((raw & !reserved, Remedy::ClearBits))
    }

    /// Whether the active L1 entry `raw`, which is to be `mended` if that is something else, leads to the table of another entry
    /// where it may not: each entry is asked about once, in order, and the first may.
    pub(super) fn is_table_of_another(&mut self, raw: u64, mended: Option<u64>) -> bool {
        let entry = L1Entry::decode(mended.unwrap_or(raw), &self.geometry);
        let (true, Ok(L1Entry { table: Some(table) })) = (self.has_data_file, entry) else { return false };
        let cluster = self.cluster(table.host.get());
        // The check has counted entries as they were.
        let is_counted = L1Entry::decode(raw, &self.geometry) == entry;
        match (self.examined.ledger.l2_tables.get(cluster), is_counted) {
            (1, true) => false,
            (1.., false) => true,
            _ => !self.led_to.insert(cluster),
        }
    }

    /// What an L2 entry is to be, where it is to be something else. `guest` is the offset that it maps, where that is known:
    /// in a data file a cluster has no other place.
    pub(super) fn l2(&mut self, entry: Words, guest: Option<u64>) -> Option<(Words, Remedy)> {
        let mended = self.l2_anywhere(entry);
        let now = mended.map_or(entry, |(words, _)| words);
        let Some(guest) = guest.filter(|_| self.has_data_file) else { return mended };
        let without_zero = if self.extended { now.raw & !ZERO } else { now.raw };
        let undivided = self.geometry.with_extended_l2(false);
        let host = match L2Entry::decode(without_zero, &undivided, Version::V3) {
            Ok(L2Entry::Standard(at) | L2Entry::Zero(Some(at))) => at.host.get(),
            Ok(L2Entry::Unallocated) if now.raw & COPIED != 0 => 0,
            _ => return mended,
        };
        if host == guest {
            return mended;
        }
        let raw = now.raw & !L2_PLACE | COPIED | guest;
        Some((Words { raw, ..now }, Remedy::Relink { host: guest }))
    }

    fn l2_anywhere(&mut self, entry: Words) -> Option<(Words, Remedy)> {
        // Extended entries have no zero flag: their subclusters say it. Version 3 knows every flag.
        let without_zero = if self.extended { entry.raw & !ZERO } else { entry.raw };
        let undivided = self.geometry.with_extended_l2(false);
        let (mended, remedy) = match L2Entry::decode(without_zero, &undivided, Version::V3) {
            Ok(L2Entry::Compressed(run)) => self.compressed(entry, Some(run))?,
            Err(L2EntryError::CompressedPastLimit { .. }) => self.compressed(entry, None)?,
            Err(L2EntryError::Unaligned { host }) => self.unaligned(entry, host),
            Ok(L2Entry::Standard(at)) => self.standard(entry, Some(at.host.get()))?,
            Ok(L2Entry::Zero(at)) => self.standard(entry, at.map(|at| at.host.get()))?,
            Ok(L2Entry::Unallocated) if self.has_data_file && entry.raw & COPIED != 0 => {
                self.standard(entry, Some(0))?
            }
            Ok(L2Entry::Unallocated | L2Entry::Divided(_)) | Err(_) => self.standard(entry, None)?,
        };
        Some((mended, remedy))
    }

    fn compressed(&self, entry: Words, run: Option<CompressedRun>) -> Option<(Words, Remedy)> {
        let lost =
            Some((self.zeroes(Words { raw: 0, subclusters: u64::from(u32::MAX) }), Remedy::ReadAsZeroes));
        let Some(run) = run.filter(|_| !self.has_data_file) else { return lost };
        if !self.examined.ledger.is_within_file(run.host.get(), run.max_len()) {
            return lost;
        }
        let clusters = run.clusters(&self.geometry);
        let copy = self.moves.data(clusters.start().get()).filter(|_| clusters.start() == clusters.end());
        if let Some(copy) = copy {
            let limit = CompressedRun::offset_limit(&self.geometry);
            let host = copy << self.geometry.cluster_bits() | self.geometry.offset_in_cluster(run.host.get());
            let raw = entry.raw & !COPIED & !(limit - 1) | host;
            return (host < limit).then_some((Words { raw, subclusters: 0 }, Remedy::Copy));
        }
        let mended = Words { raw: entry.raw & !COPIED, subclusters: 0 };
        (mended != entry).then_some((mended, Remedy::ClearBits))
    }

    fn unaligned(&mut self, entry: Words, host: u64) -> (Words, Remedy) {
        if entry.raw & ZERO != 0 && !self.extended {
            return (Words { raw: self.zero_flag(), ..entry }, Remedy::KeepZeroes);
        }
        match self.relink(host, Meant::Data) {
            Some(host) => {
                let clean = Words { raw: host | self.kept_copied(entry.raw), ..entry };
                (self.without_contradiction(clean), Remedy::Relink { host })
            }
            None => (self.zeroes(entry), Remedy::ReadAsZeroes),
        }
    }

    /// A cluster stored as it is, kept for one that reads as zeroes, or none.
    fn standard(&self, entry: Words, host: Option<u64>) -> Option<(Words, Remedy)> {
        let Some(host) = host else {
            let raw = entry.raw & if self.extended { 0 } else { self.zero_flag() };
            // Without a cluster no subcluster can be allocated.
            let mended = Words { raw, subclusters: entry.subclusters & !u64::from(u32::MAX) };
            let is_free_of_flags =
                entry.raw & !(COPIED | ZERO) == 0 && mended.subclusters == entry.subclusters;
            let zero_in_version_2 = self.version == Version::V2 && entry.raw & ZERO != 0;
            return (!is_free_of_flags || zero_in_version_2).then_some((mended, Remedy::ClearBits));
        };
        let ledger = &self.examined.ledger;
        if !self.has_data_file && !ledger.is_within_file(host, self.geometry.cluster_size()) {
            let remedy = if self.reads_as_zeroes(entry) { Remedy::KeepZeroes } else { Remedy::ReadAsZeroes };
            return Some((self.zeroes(entry), remedy));
        }
        let reserved = L2Entry::reserved_bits(entry.raw, Version::V3) | self.zero_in_version_2(entry.raw);
        let clean = self.without_contradiction(Words { raw: entry.raw & !reserved, ..entry });
        let copy = self.moves.data(self.cluster(host)).filter(|_| !self.has_data_file);
        if let Some(copy) = copy {
            let flags = clean.raw & (COPIED | if self.extended { 0 } else { ZERO });
            return Some((
                Words { raw: copy << self.geometry.cluster_bits() | flags, ..clean },
                Remedy::Copy,
            ));
        }
        (clean != entry).then_some((clean, Remedy::ClearBits))
    }

    /// An entry for what is lost. Subclusters that the backing file shows stay so.
    fn zeroes(&self, entry: Words) -> Words {
        if !self.extended {
            return Words { raw: self.zero_flag(), subclusters: 0 };
        }
        let allocated = entry.subclusters & u64::from(u32::MAX);
        Words { raw: 0, subclusters: entry.subclusters & !u64::from(u32::MAX) | allocated << 32 }
    }

    fn reads_as_zeroes(&self, entry: Words) -> bool {
        if self.extended { entry.subclusters as u32 == 0 } else { entry.raw & ZERO != 0 }
    }

    /// Of subclusters that are both data and zero, the data are kept.
    fn without_contradiction(&self, entry: Words) -> Words {
        let twice = entry.subclusters >> 32 & entry.subclusters & u64::from(u32::MAX);
        Words { subclusters: if self.extended { entry.subclusters & !(twice << 32) } else { 0 }, ..entry }
    }

    /// The clusters of a data file have the copied flag always; another gets it when its refcount is known.
    fn kept_copied(&self, raw: u64) -> u64 {
        if self.has_data_file { raw & COPIED } else { 0 }
    }

    fn zero_flag(&self) -> u64 {
        if self.version == Version::V3 { ZERO } else { 0 }
    }

    fn zero_in_version_2(&self, raw: u64) -> u64 {
        if self.version == Version::V2 { raw & ZERO } else { 0 }
    }

    /// The cluster that `host` lies in, if it is counted as in use and no other reference explains that: the check has
    /// counted this one there.
    fn relink(&mut self, host: u64, meant: Meant) -> Option<u64> {
        let start = self.geometry.align_down(host);
        if self.has_data_file && meant == Meant::Data {
            return Some(start);
        }
        let cluster = self.cluster(start);
        let ledger = &self.examined.ledger;
        let is_table = ledger.fixed.get(cluster) > 0
            || ledger.refcounts.get(cluster) > 0
            || meant == Meant::Data && ledger.l2_tables.get(cluster) > 0;
        if start == 0 || is_table || !ledger.is_within_file(start, self.geometry.cluster_size()) {
            return None;
        }
        let references = ledger.references.get(cluster);
        let is_explained = match self.stored.get(cluster) {
            Some(refcount) => refcount < references,
            None => references > 1,
        };
        (!is_explained).then_some(start)
    }

    fn cluster(&self, host: u64) -> u64 {
        self.geometry.host_cluster(HostOffset(host)).get()
    }
}
