//! From a guest range to what is to be done with it: the only place that looks mappings up. No data I/O happens here.
//!
//! A plan is a value, good for as long as the caller stays in its epoch: what it points at may lose its reference
//! meanwhile, and is not reused before the epoch has passed.

use std::sync::Arc;

use super::Qcow2;
use super::table_cache::{MAX_SLICE_BYTES, Slice};
use crate::corruption::Corruption;
use crate::error::{Error, Result};
use crate::format::qcow2::{
    Allocated, CompressedRun, GuestCluster, GuestOffset, HostOffset, L2Entry, RawL2Entry, SUBCLUSTERS,
    SubclusterState,
};
use crate::range::ByteRange;
use crate::storage::StorageExt;

/// The most bytes that one allocating write handles at a time, so that reservations and locks stay small.
pub(super) const MAX_WRITTEN: u64 = 4 << 20;
/// The same of what the host copies, which most often is to note that two files share space. A plan goes no further than
/// one slice of an L2 table, so that this is 32 MiB with clusters of 64 KiB.
pub(super) const MAX_COPIED: u64 = 64 << 20;

/// Where the bytes of a guest range are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// Nowhere in this image: the backing disk answers. A divided cluster may keep space for it.
    Below(Option<HostOffset>),
    /// Nowhere: they are zeroes. Space may be kept for them.
    Zero(Option<HostOffset>),
    /// In the file, in one piece from here on.
    Host(HostOffset),
    /// In this compressed cluster, which holds the guest cluster around the range.
    Compressed(CompressedRun),
}

/// A guest range with one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) range: ByteRange,
    pub(super) source: Source,
}

/// What a write does with the first part of its range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WritePlan {
    /// Write `len` bytes there; the mapping stays.
    InPlace { host: HostOffset, len: u64 },
    /// Clusters that read as zeroes and have space of their own: fill them whole and turn them into data.
    Revive { first: GuestCluster, count: u64, host: HostOffset },
    /// Clusters without space of their own: take some, fill them, publish them.
    Allocate { first: GuestCluster, count: u64 },
    /// A part of one cluster that is divided: fill the subclusters that it touches.
    Divide { cluster: GuestCluster },
}

impl Qcow2 {
    /// Entries in a slice of the table cache.
    pub(super) fn slice_entries(&self) -> u64 {
        self.geometry.cluster_size().min(MAX_SLICE_BYTES) / self.geometry.l2_entry_size()
    }

    /// The slice that holds a guest cluster's entry, and the entry's index in it.
    pub(super) fn slice_index(&self, cluster: GuestCluster) -> (u64, usize) {
        let per_slice = self.slice_entries();
        (cluster.get() / per_slice, (cluster.get() % per_slice) as usize)
    }

    /// The L1 index of a slice's table, and the slice's offset in the table.
    pub(super) fn slice_place(&self, key: u64) -> (u64, u64) {
        let per_table = self.geometry.l2_entries() / self.slice_entries();
        (key / per_table, key % per_table * self.slice_entries() * self.geometry.l2_entry_size())
    }

    /// The slice of this key, `None` when there is no L2 table.
    pub(super) fn slice(&self, key: u64) -> Result<Option<Arc<Slice>>> {
        self.slices.get_or_load(key, || self.load_slice(key))
    }

    fn load_slice(&self, key: u64) -> Result<Option<Slice>> {
        let (l1_index, offset_in_table) = self.slice_place(key);
        let Some(Allocated { host, .. }) = self.checked_l1_entry(l1_index)?.table else { return Ok(None) };
        let what = "the L2 table";
        if !self.geometry.is_aligned(host.get()) {
            return Err(Corruption::Unaligned { what, host: host.get() }.into());
        }
        if let Some(file_len) = self.is_past_end(host)? {
            return Err(Corruption::PastEnd { what, host: host.get(), file_len }.into());
        }
        let entry_size = self.geometry.l2_entry_size();
        let mut raw = vec![0; (self.slice_entries() * entry_size) as usize];
        self.storage
            .read_padded_at(&mut raw, host.get() + offset_in_table)
            .map_err(|error| Error::io("read an L2 table", error))?;
        let words = raw.as_chunks::<8>().0.iter().map(|bytes| u64::from_be_bytes(*bytes));
        Ok(Some(Slice::new(words, (entry_size / 8) as usize)))
    }

    /// The length of the file, if `host` is not within it.
    pub(super) fn is_past_end(&self, host: HostOffset) -> Result<Option<u64>> {
        use super::sync::atomic::Ordering::Relaxed;
        if host.get() < self.known_len.load(Relaxed) {
            return Ok(None);
        }
        let file_len = self.storage.len().map_err(|error| Error::io("read the length of the file", error))?;
        self.known_len.fetch_max(file_len, Relaxed);
        Ok((host.get() >= file_len).then_some(file_len))
    }

    /// Decodes the entry of `cluster`.
    pub(super) fn decode(&self, raw: RawL2Entry, cluster: GuestCluster) -> Result<L2Entry> {
        if self.data.external().is_some() {
            return self.decode_external(raw, cluster);
        }
        L2Entry::decode(raw, &self.geometry, self.version).map_err(|error| {
            let guest = self.geometry.guest_offset(cluster).get();
            Corruption::L2Entry { guest, entry: raw.descriptor, why: error.why() }.into()
        })
    }

    /// The same where data is in a file of its own: there the place at offset 0 is one like any other, and is taken if the
    /// copied flag says so.
    fn decode_external(&self, raw: RawL2Entry, cluster: GuestCluster) -> Result<L2Entry> {
        let guest = self.geometry.guest_offset(cluster).get();
        let refused = |why| Corruption::L2Entry { guest, entry: raw.descriptor, why };
        let decoded = L2Entry::decode_external(raw, &self.geometry).map_err(|error| refused(error.why()))?;
        match decoded.space() {
            Some(space) if space.host.get() != guest => {
                Err(refused("in a data file each cluster is where it is on the disk").into())
            }
            _ => Ok(decoded),
        }
    }

    /// The longest segment that starts at `range.start()`, one source, one slice, and its source.
    pub(super) fn next_segment(&self, range: ByteRange) -> Result<Segment> {
        let cluster = self.geometry.guest_cluster(GuestOffset(range.start()));
        let (key, index) = self.slice_index(cluster);
        let load = || self.load_slice(key);
        if let Some(segment) = self.slices.look(key, load, |slice| self.segment_in(slice, index, range))? {
            return segment;
        }
        let l1_index = self.geometry.l1_index(cluster);
        let end = l1_index.saturating_add(1).saturating_mul(self.geometry.l2_coverage());
        Ok(Segment { range: range.intersection(ByteRange::between(0, end)), source: Source::Below(None) })
    }

    /// The same, in the slice that has the first entry at `index`.
    fn segment_in(&self, slice: &Slice, index: usize, range: ByteRange) -> Result<Segment> {
        let cluster = self.geometry.guest_cluster(GuestOffset(range.start()));
        let in_cluster = self.geometry.offset_in_cluster(range.start());
        let entry = self.decode(slice.get(index), cluster)?;
        let source = self.source_at(&entry, in_cluster, cluster)?;
        if let L2Entry::Divided(divided) = &entry {
            let run = divided.subclusters.run(in_cluster / self.geometry.subcluster_size(), SUBCLUSTERS);
            let start = self.geometry.guest_offset(cluster).get();
            let end = start + run.end * self.geometry.subcluster_size();
            return Ok(Segment { range: range.intersection(ByteRange::between(0, end)), source });
        }
        let wanted = self.geometry.clusters_for(in_cluster + range.len());
        let mut count = 1;
        while count < wanted && index + (count as usize) < self.slice_entries() as usize {
            let next = GuestCluster(cluster.get() + count);
            let entry = self.decode(slice.get(index + count as usize), next)?;
            let distance = count * self.cluster_size() - in_cluster;
            let is_divided = matches!(entry, L2Entry::Divided(_));
            if is_divided || !continues(&source, &self.source_at(&entry, 0, next)?, distance) {
                break;
            }
            count += 1;
        }
        let end = self.geometry.guest_offset(GuestCluster(cluster.get() + count)).get();
        Ok(Segment { range: range.intersection(ByteRange::between(0, end)), source })
    }

    /// Where the byte at `in_cluster` of a guest cluster is.
    fn source_at(&self, entry: &L2Entry, in_cluster: u64, cluster: GuestCluster) -> Result<Source> {
        let at = |host: HostOffset| HostOffset(host.get() + in_cluster);
        Ok(match entry {
            L2Entry::Unallocated => Source::Below(None),
            L2Entry::Zero(space) => Source::Zero(space.as_ref().map(|allocated| at(allocated.host))),
            L2Entry::Standard(allocated) => {
                self.check_within_file(allocated.host, cluster)?;
                Source::Host(at(allocated.host))
            }
            L2Entry::Compressed(run) => {
                self.check_within_file(run.host, cluster)?;
                Source::Compressed(*run)
            }
            L2Entry::Divided(divided) => {
                match divided.subclusters.state(in_cluster / self.geometry.subcluster_size()) {
                    SubclusterState::Unallocated => Source::Below(divided.host().map(at)),
                    SubclusterState::Zero => Source::Zero(divided.host().map(at)),
                    SubclusterState::Data => {
                        // Decoding has seen to it that data has a place.
                        let host = divided.host().unwrap_or(HostOffset(0));
                        self.check_within_file(host, cluster)?;
                        Source::Host(at(host))
                    }
                }
            }
        })
    }

    fn check_within_file(&self, host: HostOffset, cluster: GuestCluster) -> Result<()> {
        if self.data.external().is_some() {
            return Ok(());
        }
        match self.is_past_end(host)? {
            None => Ok(()),
            Some(file_len) => {
                let guest = self.geometry.guest_offset(cluster).get();
                Err(Corruption::L2EntryPastEnd { guest, host: host.get(), file_len }.into())
            }
        }
    }

    /// What a write does first with `range`; it takes new space for at most `most_new` bytes, or one cluster.
    pub(super) fn plan_write(&self, range: ByteRange, most_new: u64) -> Result<WritePlan> {
        let first = self.geometry.guest_cluster(GuestOffset(range.start()));
        let (key, index) = self.slice_index(first);
        let in_cluster = self.geometry.offset_in_cluster(range.start());
        let left_in_slice = self.slice_entries() - index as u64;
        let wanted = self.geometry.clusters_for(in_cluster + range.len()).min(left_in_slice);
        // Where clusters are divided, those that are not filled are written one by one.
        let whole = (in_cluster + range.len()) / self.cluster_size();
        let is_part = self.geometry.has_subclusters() && (in_cluster > 0 || whole == 0);
        let most_new = (most_new / self.cluster_size()).max(1);
        let most_new = if self.geometry.has_subclusters() { most_new.min(whole.max(1)) } else { most_new };
        let Some(slice) = self.slice(key)? else {
            let count = wanted.min(most_new);
            return Ok(if is_part {
                WritePlan::Divide { cluster: first }
            } else {
                WritePlan::Allocate { first, count }
            });
        };
        if let Some(plan) = self.plan_divided(&slice, index, range)? {
            return Ok(plan);
        }
        let start = self.place_of(&slice, index, first)?;
        let mut count = 1;
        let most = match start {
            Place::Own(_) => wanted,
            _ if is_part => return Ok(WritePlan::Divide { cluster: first }),
            _ => wanted.min(most_new),
        };
        while count < most {
            let next = GuestCluster(first.get() + count);
            let place = self.place_of(&slice, index + count as usize, next)?;
            if place != start.moved_by(count * self.cluster_size()) {
                break;
            }
            count += 1;
        }
        Ok(match start {
            Place::Own(host) => {
                let len = (count * self.cluster_size() - in_cluster).min(range.len());
                WritePlan::InPlace { host: HostOffset(host.get() + in_cluster), len }
            }
            Place::Kept(host) => WritePlan::Revive { first, count, host },
            Place::Elsewhere => WritePlan::Allocate { first, count },
        })
    }

    /// What a write does first with `range`, which starts in the cluster of the entry at `index`, where that cluster is
    /// divided.
    fn plan_divided(&self, slice: &Slice, index: usize, range: ByteRange) -> Result<Option<WritePlan>> {
        let cluster = self.geometry.guest_cluster(GuestOffset(range.start()));
        let L2Entry::Divided(divided) = self.decode(slice.get(index), cluster)? else { return Ok(None) };
        let in_cluster = self.geometry.offset_in_cluster(range.start());
        let subcluster_size = self.geometry.subcluster_size();
        let run = divided.subclusters.run(in_cluster / subcluster_size, SUBCLUSTERS);
        Ok(Some(match divided.space {
            Some(Allocated { host, copied: true })
                if divided.subclusters.state(run.start) == SubclusterState::Data =>
            {
                self.check_within_file(host, cluster)?;
                let len = (run.end * subcluster_size - in_cluster).min(range.len());
                WritePlan::InPlace { host: HostOffset(host.get() + in_cluster), len }
            }
            _ if in_cluster == 0 && range.len() >= self.cluster_size() => match divided.space {
                Some(Allocated { host, copied: true }) => {
                    WritePlan::Revive { first: cluster, count: 1, host }
                }
                _ => WritePlan::Allocate { first: cluster, count: 1 },
            },
            _ => WritePlan::Divide { cluster },
        }))
    }

    fn place_of(&self, slice: &Slice, index: usize, cluster: GuestCluster) -> Result<Place> {
        Ok(match self.decode(slice.get(index), cluster)? {
            L2Entry::Standard(Allocated { host, copied: true }) => {
                self.check_within_file(host, cluster)?;
                Place::Own(host)
            }
            L2Entry::Zero(Some(Allocated { host, copied: true })) => Place::Kept(host),
            _ => Place::Elsewhere,
        })
    }

    /// Whether bytes of the backing disk would show through an unallocated cluster.
    pub(super) fn backing_covers(&self, range: ByteRange) -> bool {
        self.backing.as_ref().is_some_and(|backing| backing.size() > range.start())
    }
}

/// Where a write to a cluster goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// To the cluster's own space, which nobody shares.
    Own(HostOffset),
    /// To space that is kept for it while it reads as zeroes.
    Kept(HostOffset),
    /// To space that is yet to be taken.
    Elsewhere,
}

impl Place {
    fn moved_by(self, bytes: u64) -> Place {
        match self {
            Place::Own(host) => Place::Own(HostOffset(host.get() + bytes)),
            Place::Kept(host) => Place::Kept(HostOffset(host.get() + bytes)),
            Place::Elsewhere => Place::Elsewhere,
        }
    }
}

/// Whether `next` goes on where `first` is after `distance` bytes.
fn continues(first: &Source, next: &Source, distance: u64) -> bool {
    match (first, next) {
        (Source::Below(None), Source::Below(None)) | (Source::Zero(None), Source::Zero(None)) => true,
        (Source::Host(a), Source::Host(b)) | (Source::Zero(Some(a)), Source::Zero(Some(b))) => {
            a.get().checked_add(distance) == Some(b.get())
        }
        _ => false,
    }
}
