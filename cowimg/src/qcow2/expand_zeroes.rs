//! What a change of version does to tables, whole or not at all (`draft`).
//!
//! Version 2 has no zero clusters. Where there is a backing file, which would show, they become clusters of zeroes;
//! elsewhere nothing at all, which reads the same. That is so in the tables of snapshots too. A cluster that is kept
//! for a zero cluster, and that nothing else refers to, is filled with zeroes where it is: until the tables change
//! nobody reads it.
//!
//! Version 3 has every snapshot state the size of its disk.

use std::collections::HashMap;
use std::io::IoSlice;

use super::Qcow2;
use super::amend::Steps;
use super::draft::Draft;
use super::refcounts::Change;
use super::snapshots::{Present, encode_table, next_state, store_l1, store_snapshots};
use crate::disk::Disk;
use crate::error::Result;
use crate::format::qcow2::{Allocated, GuestCluster, HostOffset, L1Entry, L2Entry, RawL2Entry};

/// The tables that have been looked at.
#[derive(Debug, Default)]
struct Expansion {
    /// Where each L2 table that had zero clusters is now, by where it was.
    moved: HashMap<HostOffset, HostOffset>,
}

impl Qcow2 {
    /// Takes the zero clusters out of every table.
    pub(super) fn expand_zeroes(&self, steps: &Steps<'_>) -> Result<()> {
        self.change_whole_disk(|image, meta| {
            image.settle(meta)?;
            let Present { header, mut snapshots, table_len } = image.present()?;
            let mut l1 = image.read_l1().entries.clone();
            let of_snapshots: u64 = snapshots.iter().map(|snapshot| u64::from(snapshot.l1_entries)).sum();
            let total = l1.len() as u64 + of_snapshots;
            image.redraft(meta, |draft| {
                let mut expansion = Expansion::default();
                let mut visited = 0;
                let mut changed = expansion.expand_l1(draft, &mut l1, &mut || {
                    visited += 1;
                    steps.report(visited, total)
                })?;
                for snapshot in &mut snapshots {
                    let mut entries = image.snapshot_l1(snapshot)?;
                    let moves = expansion.expand_l1(draft, &mut entries, &mut || {
                        visited += 1;
                        steps.report(visited, total)
                    })?;
                    if moves {
                        draft.release_table(snapshot.l1_table, entries.len() as u64 * 8)?;
                        snapshot.l1_table = store_l1(draft, &entries)?;
                        changed = true;
                    }
                }
                let header =
                    if changed { store_snapshots(draft, &header, (&snapshots, table_len))? } else { header };
                next_state(draft, header, l1)
            })
        })
    }

    /// Whether a table of the disk or of a snapshot has a compressed cluster: what is compressed with zstd cannot be read in
    /// version 2. (QEMU looks at the disk alone.)
    pub(super) fn has_compressed_clusters(&self) -> Result<bool> {
        // The tables are read from the file.
        self.flush()?;
        let mut entries = self.read_l1().entries.clone();
        for snapshot in &self.snapshots()? {
            entries.extend(self.snapshot_l1(snapshot)?);
        }
        entries.sort_unstable();
        entries.dedup();
        for raw in entries {
            let Some((_, table)) = self.table_of(raw)? else { continue };
            let is_compressed = |entry: &RawL2Entry| {
                matches!(L2Entry::decode(*entry, &self.geometry, self.version), Ok(L2Entry::Compressed(_)))
            };
            if table.iter().any(is_compressed) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Has every snapshot state the size of its disk, which in version 2 is that of the image.
    pub(super) fn state_snapshot_sizes(&self) -> Result<()> {
        let states = |extra: &crate::format::qcow2::SnapshotExtra| {
            extra.disk_size.is_some() && extra.vm_state_size.is_some()
        };
        if self.snapshots()?.iter().all(|snapshot| states(&snapshot.extra)) {
            return Ok(());
        }
        self.change_whole_disk(|image, meta| {
            let Present { header, mut snapshots, table_len } = image.present()?;
            let size = image.size();
            for snapshot in &mut snapshots {
                snapshot.extra.vm_state_size = Some(snapshot.vm_state_size());
                snapshot.extra.disk_size.get_or_insert(size);
            }
            let l1 = image.read_l1().entries.clone();
            image.redraft(meta, |draft| {
                let header = store_snapshots(draft, &header, (&snapshots, table_len))?;
                next_state(draft, header, l1)
            })
        })
    }
}

impl Expansion {
    /// Takes the zero clusters out of the tables that these entries name; whether any entry changes.
    fn expand_l1(
        &mut self,
        draft: &mut Draft<'_>,
        l1: &mut [u64],
        visited: &mut dyn FnMut() -> Result<()>,
    ) -> Result<bool> {
        let geometry = draft.image().geometry;
        let mut changed = false;
        for (index, raw) in l1.iter_mut().enumerate() {
            if let Some((host, entries)) = draft.image().table_of(*raw)? {
                let first = index as u64 * geometry.l2_entries();
                if let Some(moved) = self.expand_table(draft, (host, &entries), first)? {
                    // Flags of the active table are made right at the end; they mean nothing in a snapshot's.
                    *raw = L1Entry::new(moved, false).encode();
                    changed = true;
                }
                draft.keep_within_limits()?;
            }
            visited()?;
        }
        Ok(changed)
    }

    /// Where the table goes that has no zero clusters; none if it has none now.
    fn expand_table(
        &mut self,
        draft: &mut Draft<'_>,
        (host, entries): (HostOffset, &[RawL2Entry]),
        first: u64,
    ) -> Result<Option<HostOffset>> {
        let geometry = draft.image().geometry;
        if !entries.iter().any(|&entry| zero_of(draft, entry).is_some()) {
            return Ok(None);
        }
        let new = if let Some(&new) = self.moved.get(&host) {
            let moved = draft.image().table_of(L1Entry::new(new, false).encode())?;
            let moved = moved.map_or(Vec::new(), |(_, entries)| entries);
            draft.change(geometry.host_cluster(new), 1, Change::OneMore)?;
            recount(draft, (entries, &moved), first, Change::OneMore)?;
            new
        } else {
            let new = store_expanded(draft, (host, entries), first)?;
            self.moved.insert(host, new);
            new
        };
        draft.release_table(host, geometry.cluster_size())?;
        Ok(Some(new))
    }
}

/// Stores the table without its zero clusters, for the first of the paths to it.
fn store_expanded(
    draft: &mut Draft<'_>,
    (host, entries): (HostOffset, &[RawL2Entry]),
    first: u64,
) -> Result<HostOffset> {
    let geometry = draft.image().geometry;
    let mut expanded = entries.to_vec();
    let paths = draft.refcount(geometry.host_cluster(host))?;
    for (nth, entry) in expanded.iter_mut().enumerate() {
        let Some(zero) = zero_of(draft, *entry) else { continue };
        let guest = geometry.guest_offset(GuestCluster(first + nth as u64)).get();
        *entry = expand(draft, zero, (guest, paths))?;
    }
    let new = draft.store_table(&encode_table(&expanded, &geometry), "write an L2 table")?;
    recount(draft, (entries, &expanded), first, Change::OneFewer)?;
    Ok(new)
}

/// A zero cluster.
#[derive(Debug, Clone, Copy)]
struct ZeroCluster {
    /// The cluster that is kept for it.
    kept: Option<Allocated>,
}

/// The zero cluster that the entry is, if it is one. What cannot be decoded is kept for whoever meets it.
fn zero_of(draft: &Draft<'_>, entry: RawL2Entry) -> Option<ZeroCluster> {
    match L2Entry::decode(entry, &draft.image().geometry, draft.image().version) {
        Ok(L2Entry::Zero(kept)) => Some(ZeroCluster { kept }),
        _ => None,
    }
}

/// The entry for a zero cluster of a table that `paths` lead to.
fn expand(draft: &mut Draft<'_>, zero: ZeroCluster, (guest, paths): (u64, u64)) -> Result<RawL2Entry> {
    let geometry = draft.image().geometry;
    // A cluster that every reference reaches through this table is a zero cluster to all of them.
    let own = match zero.kept {
        Some(kept) if draft.refcount(geometry.host_cluster(kept.host))? == paths => Some(kept),
        _ => None,
    };
    let host = match own {
        Some(own) => own.host,
        None if draft.image().backing.is_none() => return Ok(L2Entry::Unallocated.encode(&geometry)),
        None => draft.take_data()?,
    };
    let zeroes = vec![0; geometry.cluster_size() as usize];
    draft.image().data.write(&mut [IoSlice::new(&zeroes)], host, guest)?;
    Ok(L2Entry::Standard(Allocated { host, copied: false }).encode(&geometry))
}

/// Counts, for one path to a table, what its zero clusters no longer refer to; and what they refer to instead, unless
/// `new` says that this is counted already.
fn recount(
    draft: &mut Draft<'_>,
    (before, after): (&[RawL2Entry], &[RawL2Entry]),
    first: u64,
    new: Change,
) -> Result<()> {
    let (geometry, version) = (draft.image().geometry, draft.image().version);
    for (nth, (&old, &expanded)) in before.iter().zip(after).enumerate() {
        let Some(ZeroCluster { kept }) = zero_of(draft, old) else { continue };
        let guest = geometry.guest_offset(GuestCluster(first + nth as u64)).get();
        let space = L2Entry::decode(expanded, &geometry, version).ok().and_then(|entry| entry.space());
        if kept.map(|kept| kept.host) == space.map(|space| space.host) {
            continue;
        }
        if kept.is_some() {
            draft.change_entry(&L2Entry::Zero(kept), guest, Change::OneFewer)?;
        }
        if let (Some(space), Change::OneMore) = (space, new) {
            draft.change_entry(&L2Entry::Standard(space), guest, Change::OneMore)?;
        }
    }
    Ok(())
}
