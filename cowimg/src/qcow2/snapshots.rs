//! Internal snapshots: taken, applied, deleted; each whole or not at all (`draft`).
//!
//! ```text
//!  active L1 ──> L2 ──> clusters          a cluster's refcount is the number of paths that lead to it,
//!  snapshot's L1 ──┘                      whether they part at the L1, at the L2 or at the entry
//! ```
//!
//! No guest data is read or written: the cost is in proportion to the tables. A snapshot waits for changes of the disk
//! that run, and changes that come wait for it: it holds every write that had returned, none that was asked for later,
//! and of those that it met halfway all or nothing.
//!
//! Tables that a snapshot takes over stay as they are, copied flags included, which mean nothing there; the active tree
//! gets copies where flags are to change. That is so for tables written since the last snapshot: the others are shared.

use super::draft::{Draft, NextState};
use super::metadata::Metadata;
use super::refcounts::Change;
use super::snapshot_table::{SnapshotSelector, SnapshotSize, encode_snapshots, next_id, read_snapshots};
use super::sync::MutexGuard;
use super::{Mode, Qcow2};
use crate::corruption::Corruption;
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::format::qcow2::{
    Allocated, Geometry, GuestCluster, Header, HostCluster, HostOffset, L1Entry, L2Entry, RawL2Entry,
    Snapshot, SnapshotExtra, Version, encode_words,
};
use crate::limits::Limits;
use crate::range::ByteRange;
use crate::storage::{Storage, StorageExt};

/// Bytes of a name: what the table has room for.
const MAX_NAME: usize = u16::MAX as usize;

/// A snapshot that is to be taken of the disk as it is. It has no state of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NewSnapshot {
    /// What people know it by: at most 65,535 bytes, and for QEMU's sake better at most 255.
    pub name: Vec<u8>,
    /// Whether another snapshot may have this name.
    pub names: SnapshotNames,
    /// Now, in seconds since 1970.
    pub date_sec: u32,
    /// And the nanoseconds of that.
    pub date_nsec: u32,
    /// How long the guest had been running, in nanoseconds.
    pub vm_clock_nsec: u64,
}

/// Whether two snapshots may have one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SnapshotNames {
    /// They may not: a name that is taken is refused.
    #[default]
    Unique,
    /// They may, as `qemu-img` has it; a name then means the first of them.
    MayRepeat,
}

/// What the snapshot operations go by: the header and the table as they are in the file.
pub(super) struct Present {
    pub(super) header: Header,
    pub(super) snapshots: Vec<Snapshot>,
    /// Bytes that the snapshot table takes.
    pub(super) table_len: u64,
}

impl Qcow2 {
    /// The snapshots, in the order of the table.
    pub(crate) fn snapshots(&self) -> Result<Vec<Snapshot>> {
        let _one_at_a_time = self.lock_commit();
        Ok(read_snapshots(&*self.storage, &self.header(), &self.limits)?.0)
    }

    /// A snapshot shares clusters, which a data file cannot.
    fn refuse_with_data_file(&self) -> Result<()> {
        match self.data.external() {
            None => Ok(()),
            Some(_) => {
                Err(Error::unsupported("an image with an external data file cannot have internal snapshots"))
            }
        }
    }

    /// Takes a snapshot of the disk as it is.
    pub(crate) fn create_snapshot(&self, new: &NewSnapshot) -> Result<Snapshot> {
        self.refuse_with_data_file()?;
        if new.name.len() > MAX_NAME {
            return Err(Error::invalid(format!("a snapshot's name has at most {MAX_NAME} bytes")));
        }
        let _no_other = self.lock_all_changes();
        self.check_writable()?;
        let others = self.present()?.snapshots;
        if new.names == SnapshotNames::Unique && others.iter().any(|other| other.name == new.name) {
            let name = String::from_utf8_lossy(&new.name).into_owned();
            return Err(Error::new(ErrorKind::SnapshotExists { name }));
        }
        let mut made = Snapshot::default();
        self.change_alone(|image, meta| {
            let Present { header, mut snapshots, table_len } = image.present()?;
            snapshots.push(image.describe(new, &header, &snapshots));
            // Its length is what counts here; where its L1 table is comes later.
            encode_snapshots(&snapshots)?;
            let l1 = image.read_l1().entries.clone();
            image.redraft(meta, |draft| {
                change_references(draft, &l1, Change::OneMore)?;
                if let Some(snapshot) = snapshots.last_mut() {
                    snapshot.l1_table = store_l1(draft, &without_flags(draft, &l1)?)?;
                    made.clone_from(snapshot);
                }
                let header = store_snapshots(draft, &header, (&snapshots, table_len))?;
                next_state(draft, header, l1)
            })
        })?;
        Ok(made)
    }

    /// Makes the disk what it was when the snapshot was taken, its size included. What the disk holds now is gone.
    pub(crate) fn apply_snapshot(&self, selector: &SnapshotSelector) -> Result<()> {
        self.refuse_with_data_file()?;
        let _no_other = self.lock_all_changes();
        self.check_writable()?;
        let Present { header, snapshots, .. } = self.present()?;
        let snapshot = &snapshots[selector.find_in(&snapshots)?];
        self.check_applicable(&header, snapshot)?;
        self.change_alone(|image, meta| {
            let mut header = image.header();
            let mut l1 = image.snapshot_l1(snapshot)?;
            header.size = snapshot.extra.disk_size.unwrap_or(header.size);
            let needed = image.geometry.l1_entries_for(header.size).max(l1.len() as u64);
            l1.resize(needed as usize, 0);
            let old = image.read_l1().entries.clone();
            image.redraft(meta, |draft| {
                // The lower first, so that no refcount is higher on the way than before and after.
                change_references(draft, &old, Change::OneFewer)?;
                change_references(draft, &l1, Change::OneMore)?;
                next_state(draft, header, l1)
            })?;
            image.give_back_unused(meta, &old);
            Ok(())
        })
    }

    /// Deletes a snapshot. What only it held is free afterwards.
    pub(crate) fn delete_snapshot(&self, selector: &SnapshotSelector) -> Result<()> {
        let _no_other = self.lock_all_changes();
        self.check_writable()?;
        selector.find_in(&self.present()?.snapshots)?;
        self.change_alone(|image, meta| {
            let Present { header, mut snapshots, table_len } = image.present()?;
            let snapshot = snapshots.remove(selector.find_in(&snapshots)?);
            let gone = image.snapshot_l1(&snapshot)?;
            let l1 = image.read_l1().entries.clone();
            image.redraft(meta, |draft| {
                change_references(draft, &gone, Change::OneFewer)?;
                draft.release_table(snapshot.l1_table, gone.len() as u64 * 8)?;
                let header = store_snapshots(draft, &header, (&snapshots, table_len))?;
                next_state(draft, header, l1)
            })?;
            image.give_back_unused(meta, &gone);
            Ok(())
        })
    }

    /// The header that an image would have whose disk is a snapshot of this one; good for reading only.
    pub(crate) fn header_at_snapshot(
        storage: &dyn Storage,
        header: &Header,
        (selector, size, limits): (&SnapshotSelector, SnapshotSize, &Limits),
    ) -> Result<Header> {
        let (snapshots, _) = read_snapshots(storage, header, limits)?;
        let snapshot = &snapshots[selector.find_in(&snapshots)?];
        let geometry = header.geometry();
        let damaged = |why: String| Error::from(Corruption::SnapshotTable(why));
        snapshot.validate(&geometry).map_err(|error| damaged(error.to_string()))?;
        if size == SnapshotSize::OfTheDisk {
            let (l1_table, l1_entries) = (snapshot.l1_table, snapshot.l1_entries);
            return Ok(Header { l1_entries, l1_table, ..header.clone() });
        }
        let size = snapshot.extra.disk_size.unwrap_or(header.size);
        if size > ByteRange::MAX_END || geometry.l1_entries_for(size) > u64::from(snapshot.l1_entries) {
            return Err(damaged(format!("a snapshot's L1 table is too small for its disk of {size} bytes")));
        }
        let (l1_table, l1_entries) = (snapshot.l1_table, snapshot.l1_entries);
        Ok(Header { size, l1_entries, l1_table, ..header.clone() })
    }

    /// Runs `change` while no other change of the disk, no commit and no read runs.
    pub(super) fn change_whole_disk(
        &self,
        change: impl FnOnce(&Qcow2, &mut MutexGuard<'_, Metadata>) -> Result<()>,
    ) -> Result<()> {
        let _no_other = self.lock_all_changes();
        self.change_alone(change)
    }

    /// The same for a caller that holds all changes back already: what is refused is refused before, for this prepares the
    /// image for its first change.
    fn change_alone(
        &self,
        change: impl FnOnce(&Qcow2, &mut MutexGuard<'_, Metadata>) -> Result<()>,
    ) -> Result<()> {
        self.begin_change()?;
        let _one_at_a_time = self.lock_commit();
        let _nothing_in_flight = self.epochs.close();
        self.failure.check()?;
        change(self, &mut self.lock_meta())
    }

    /// Refuses what cannot be changed, and changes nothing for it.
    pub(super) fn check_writable(&self) -> Result<()> {
        if self.mode == Mode::ReadOnly {
            return Err(Error::new(ErrorKind::ReadOnly));
        }
        self.failure.check_for_change()
    }

    pub(super) fn present(&self) -> Result<Present> {
        let header = self.header();
        let (snapshots, table_len) = read_snapshots(&*self.storage, &header, &self.limits)?;
        Ok(Present { header, snapshots, table_len })
    }

    fn describe(&self, new: &NewSnapshot, header: &Header, others: &[Snapshot]) -> Snapshot {
        Snapshot {
            l1_table: HostOffset(0),
            l1_entries: header.l1_entries,
            id: next_id(others),
            name: new.name.clone(),
            date_sec: new.date_sec,
            date_nsec: new.date_nsec,
            vm_clock_nsec: new.vm_clock_nsec,
            vm_state_size_32: 0,
            extra: SnapshotExtra {
                vm_state_size: Some(0),
                disk_size: Some(self.size()),
                icount: Some(0),
                unknown: Vec::new(),
            },
        }
    }

    /// Refuses what QEMU refuses, and a size that no disk can have.
    fn check_applicable(&self, header: &Header, snapshot: &Snapshot) -> Result<()> {
        if self.has_bitmaps() {
            return Err(Error::unsupported(
                "the image has bitmaps, which record changes of the disk as it is now: remove them before a \
                 snapshot is applied",
            ));
        }
        let size = snapshot.extra.disk_size.unwrap_or(header.size);
        if size != header.size && self.version == Version::V2 {
            return Err(Error::unsupported(
                "the snapshot's disk has another size, and a version 2 image with snapshots cannot be resized",
            ));
        }
        if size > ByteRange::MAX_END || self.geometry.l1_entries_for(size) * 8 > Header::MAX_L1_BYTES {
            let why = format!("a snapshot's disk has {size} bytes, more than an image of this kind can have");
            return Err(Corruption::SnapshotTable(why).into());
        }
        Ok(())
    }

    /// The entries of a snapshot's L1 table.
    pub(super) fn snapshot_l1(&self, snapshot: &Snapshot) -> Result<Vec<u64>> {
        snapshot
            .validate(&self.geometry)
            .map_err(|error| Error::from(Corruption::SnapshotTable(error.to_string())))?;
        let bytes = u64::from(snapshot.l1_entries) * 8;
        let file_len = self.file_len()?;
        if bytes > 0 && snapshot.l1_table.get().saturating_add(bytes) > file_len.next_multiple_of(512) {
            let (what, host) = ("a snapshot's L1 table", snapshot.l1_table.get());
            return Err(Corruption::PastEnd { what, host, file_len }.into());
        }
        self.read_entries(snapshot.l1_table, bytes, "read a snapshot's L1 table")
    }

    /// The L2 table that an L1 entry names: where it is, and its entries.
    pub(super) fn table_of(&self, raw: u64) -> Result<Option<(HostOffset, Vec<RawL2Entry>)>> {
        let what = "the L2 table";
        let host = raw & 0x00ff_ffff_ffff_fe00;
        let entry = L1Entry::decode(raw, &self.geometry).map_err(|_| Corruption::Unaligned { what, host })?;
        let Some(Allocated { host, .. }) = entry.table else { return Ok(None) };
        let file_len = self.file_len()?;
        if host.get() >= file_len {
            return Err(Corruption::PastEnd { what, host: host.get(), file_len }.into());
        }
        let raw = self.read_table(host, self.cluster_size(), "read an L2 table")?;
        let words = raw.as_chunks::<8>().0;
        let word = |bytes: &[u8; 8]| u64::from_be_bytes(*bytes);
        let entries = if self.geometry.has_subclusters() {
            let pairs = words.as_chunks::<2>().0.iter();
            let entry = |[first, second]: &[[u8; 8]; 2]| RawL2Entry {
                descriptor: word(first),
                subclusters: word(second),
            };
            pairs.map(entry).collect()
        } else {
            words.iter().map(|bytes| RawL2Entry::from(word(bytes))).collect()
        };
        Ok(Some((host, entries)))
    }

    fn read_entries(&self, host: HostOffset, bytes: u64, action: &'static str) -> Result<Vec<u64>> {
        let raw = self.read_table(host, bytes, action)?;
        Ok(raw.as_chunks::<8>().0.iter().map(|bytes| u64::from_be_bytes(*bytes)).collect())
    }

    fn read_table(&self, host: HostOffset, bytes: u64, action: &'static str) -> Result<Vec<u8>> {
        let mut raw = vec![0; bytes as usize];
        self.storage.read_padded_at(&mut raw, host.get()).map_err(|error| Error::io(action, error))?;
        Ok(raw)
    }

    fn file_len(&self) -> Result<u64> {
        self.storage.len().map_err(|error| Error::io("read the length of the file", error))
    }

    /// The clusters that entries of an L2 table have to themselves, in the order of the entries. What cannot be decoded has
    /// none.
    fn own_clusters(&self, entries: &[RawL2Entry]) -> Vec<OwnCluster> {
        let used = entries.iter().enumerate().filter(|(_, entry)| entry.descriptor != 0);
        let space = |(entry, &raw): (usize, &RawL2Entry)| {
            let decoded = L2Entry::decode(raw, &self.geometry, self.version).ok()?;
            let Allocated { host, copied } = decoded.space()?;
            Some(OwnCluster { entry, cluster: self.geometry.host_cluster(host), copied })
        };
        used.filter_map(space).collect()
    }

    /// Gives back to the host what was reached from these L1 entries and is free now. Nothing has been put there since:
    /// the caller still holds the metadata. Failing costs space only.
    fn give_back_unused(&self, meta: &mut Metadata, l1: &[u64]) {
        for &raw in l1 {
            let Ok(Some((host, entries))) = self.table_of(raw) else { continue };
            let mut free = Vec::new();
            let mut spaces = self.own_clusters(&entries);
            spaces.push(OwnCluster { entry: 0, cluster: self.geometry.host_cluster(host), copied: false });
            for run in spaces.chunk_by(OwnCluster::is_before) {
                let mut cluster = run[0].cluster.get();
                let looked =
                    meta.refcounts.each_of(&*self.storage, (run[0].cluster, run.len() as u64), |refcount| {
                        free.extend((refcount == 0).then_some(cluster));
                        cluster += 1;
                    });
                if looked.is_err() {
                    return;
                }
            }
            free.sort_unstable();
            free.dedup();
            for run in free.chunk_by(|a, b| a + 1 == *b) {
                let start = self.geometry.host_offset(HostCluster(run[0])).get();
                let end = start + run.len() as u64 * self.cluster_size();
                let _unsupported_or_failed = self.storage.punch_hole(ByteRange::between(start, end));
            }
            meta.refcounts.evict();
        }
    }
}

/// Counts one reference more or fewer to everything that these L1 entries lead to.
fn change_references(draft: &mut Draft<'_>, l1: &[u64], change: Change) -> Result<()> {
    let (geometry, version) = (draft.image().geometry, draft.image().version);
    for (index, &raw) in l1.iter().enumerate() {
        let Some((host, entries)) = draft.image().table_of(raw)? else { continue };
        let first = index as u64 * geometry.l2_entries();
        // Neighbours in the disk are neighbours in the file mostly, and are counted together.
        let mut run = Held::default();
        for (nth, entry) in entries.into_iter().enumerate().filter(|&(_, entry)| entry.descriptor != 0) {
            let guest = geometry.guest_offset(GuestCluster(first + nth as u64)).get();
            let entry = L2Entry::decode(entry, &geometry, version).map_err(|error| Corruption::L2Entry {
                guest,
                entry: entry.descriptor,
                why: error.why(),
            })?;
            let Some((first, count)) = entry.clusters(&geometry) else { continue };
            let held = Held { first: first.get(), count, guest };
            if !run.extend(&held, &geometry) {
                std::mem::replace(&mut run, held).change(draft, change)?;
            }
        }
        run.change(draft, change)?;
        match change {
            Change::OneMore => draft.change(geometry.host_cluster(host), 1, change)?,
            Change::OneFewer => draft.release_table(host, geometry.cluster_size())?,
        }
        draft.keep_within_limits()?;
    }
    Ok(())
}

/// Clusters in a row that entries in a row hold.
#[derive(Debug, Clone, Copy, Default)]
struct Held {
    first: u64,
    count: u64,
    /// Where the disk has what the first is for.
    guest: u64,
}

impl Held {
    /// Takes in what follows in the disk and in the file; whether it does.
    fn extend(&mut self, next: &Held, geometry: &Geometry) -> bool {
        let follows = next.first == self.first + self.count
            && next.guest == self.guest + self.count * geometry.cluster_size();
        self.count += if follows { next.count } else { 0 };
        follows
    }

    fn change(self, draft: &mut Draft<'_>, change: Change) -> Result<()> {
        draft.change_data(HostCluster(self.first), (self.count, self.guest), change)
    }
}

/// A cluster that an entry of an L2 table has to itself.
#[derive(Debug, Clone, Copy)]
struct OwnCluster {
    /// The entry's place in its table.
    entry: usize,
    cluster: HostCluster,
    copied: bool,
}

impl OwnCluster {
    /// Whether `other` is the next cluster of the file.
    fn is_before(&self, other: &OwnCluster) -> bool {
        self.cluster.get() + 1 == other.cluster.get()
    }
}

/// The same L1 entries without copied flags, which mean nothing in a snapshot's table.
fn without_flags(draft: &Draft<'_>, l1: &[u64]) -> Result<Vec<u64>> {
    let geometry = draft.image().geometry;
    let clear = |&raw: &u64| {
        let what = "the L2 table";
        let entry = L1Entry::decode(raw, &geometry).map_err(|_| Corruption::Unaligned { what, host: raw })?;
        Ok(entry.table.map_or(0, |table| L1Entry::new(table.host, false).encode()))
    };
    l1.iter().map(clear).collect()
}

pub(super) fn store_l1(draft: &mut Draft<'_>, entries: &[u64]) -> Result<HostOffset> {
    draft.store_table(&encode_words(entries.iter().copied()), "write the L1 table")
}

/// Replaces the snapshot table; the header that names the new one.
pub(super) fn store_snapshots(
    draft: &mut Draft<'_>,
    header: &Header,
    (snapshots, old_len): (&[Snapshot], u64),
) -> Result<Header> {
    let table = encode_snapshots(snapshots)?;
    if old_len > 0 {
        draft.release_table(header.snapshot_table, old_len)?;
    }
    let snapshot_table = draft.store_table(&table, "write the snapshot table")?;
    Ok(Header { snapshot_table, snapshot_count: snapshots.len() as u32, ..header.clone() })
}

/// The next state with these active entries: their flags made right, their table stored in place of the present one.
pub(super) fn next_state(draft: &mut Draft<'_>, mut header: Header, mut l1: Vec<u64>) -> Result<NextState> {
    settle_flags(draft, &mut l1)?;
    if !l1.is_empty() {
        let (old, old_len) = (header.l1_table, u64::from(header.l1_entries) * 8);
        header.l1_table = store_l1(draft, &l1)?;
        draft.release_table(old, old_len)?;
    }
    header.l1_entries = l1.len() as u32;
    Ok(NextState { header, l1 })
}

/// Makes the copied flags of the active tree agree with the refcounts. A table in which one changes is stored anew:
/// what it was belongs to the present state, and maybe to a snapshot.
fn settle_flags(draft: &mut Draft<'_>, l1: &mut [u64]) -> Result<()> {
    let geometry = draft.image().geometry;
    for raw in l1 {
        let Some((host, mut entries)) = draft.image().table_of(*raw)? else {
            *raw = 0;
            continue;
        };
        let mut changes = false;
        // What cannot be decoded is kept for whoever meets it; it has no flag that could be wrong.
        let spaces = draft.image().own_clusters(&entries);
        for run in spaces.chunk_by(OwnCluster::is_before) {
            let mut these = run.iter();
            draft.refcounts(run[0].cluster, run.len() as u64, |refcount| {
                let copied = refcount == 1;
                if let Some(space) = these.next().filter(|space| space.copied != copied) {
                    entries[space.entry] = entries[space.entry].with_copied(copied);
                    changes = true;
                }
            })?;
        }
        let host = if changes {
            let copy = draft.store_table(&encode_table(&entries, &geometry), "write an L2 table")?;
            draft.release_table(host, geometry.cluster_size())?;
            copy
        } else {
            host
        };
        let copied = draft.refcount(geometry.host_cluster(host))? == 1;
        *raw = L1Entry::new(host, copied).encode();
        draft.keep_within_limits()?;
    }
    Ok(())
}

/// An L2 table as it stands in the file.
pub(super) fn encode_table(entries: &[RawL2Entry], geometry: &Geometry) -> Vec<u8> {
    if geometry.has_subclusters() {
        let words: Vec<u64> =
            entries.iter().flat_map(|entry| [entry.descriptor, entry.subclusters]).collect();
        encode_words(words.into_iter())
    } else {
        encode_words(entries.iter().map(|entry| entry.descriptor))
    }
}
