//! The bytes of a fresh image, made piece by piece in the order of the file.

use std::cmp::Ordering;
use std::ops::Range;

use super::allocator::{Allocation, RefcountTable};
use super::preallocate::Mapping;
use super::{FreshImage, index};
use crate::format::qcow2::{
    Allocated, CryptMethod, Geometry, Header, HostCluster, HostOffset, L1Entry, L2Entry, Subclusters,
    TABLE_ENTRY_SIZE,
};

/// Most bytes of a piece; a multiple of every table entry's size.
const MAX_PIECE: u64 = 1 << 20;
/// Bytes of a table entry, as the length of a slice.
const ENTRY: usize = size_of::<u64>();

/// Bytes to be written in one go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Where in the file.
    pub offset: HostOffset,
    /// What to write; at most 1 MiB.
    pub bytes: Vec<u8>,
}

/// A structure of the file. All start at a cluster boundary.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    cluster: u64,
    structure: Structure,
}

#[derive(Debug, Clone, Copy)]
enum Structure {
    Header,
    RefcountTable,
    /// What is left of a refcount table that was replaced: its place among such tables.
    OldTable(u32),
    /// The refcount block at this index of the table.
    RefcountBlock(u32),
    L1,
    /// The L2 table at this index of the L1 table.
    L2(u32),
}

/// The structures of an image in the order of the file.
pub(super) fn parts(header: &Header, allocation: &Allocation, mapping: &Mapping) -> Vec<Part> {
    let geometry = header.geometry();
    let mut parts = vec![
        Part { cluster: 0, structure: Structure::Header },
        Part { cluster: allocation.table.first, structure: Structure::RefcountTable },
    ];
    if header.l1_entries > 0 {
        parts.push(Part { cluster: geometry.host_cluster(header.l1_table).get(), structure: Structure::L1 });
    }
    for (number, table) in (0..).zip(&allocation.old_tables) {
        let structure = Structure::OldTable(number);
        parts.extend(leftovers(table, allocation).map(|run| Part { cluster: run.start, structure }));
    }
    let blocks = (0..).zip(&allocation.table.blocks);
    parts.extend(blocks.filter_map(|(number, block)| {
        block.map(|cluster| Part { cluster, structure: Structure::RefcountBlock(number) })
    }));
    let tables = (0..).zip(&mapping.l2_tables);
    parts.extend(tables.map(|(number, &cluster)| Part { cluster, structure: Structure::L2(number) }));
    parts.sort_unstable_by_key(|part| part.cluster);
    parts
}

/// Clusters of a replaced table that nothing has been put on.
fn leftovers<'a>(table: &RefcountTable, allocation: &'a Allocation) -> impl Iterator<Item = Range<u64>> + 'a {
    let mut rest = table.first..table.first.saturating_add(table.clusters);
    std::iter::from_fn(move || {
        let start = allocation.used.find_gap(rest.start, 1);
        let count = allocation.used.gap_at(start, rest.end.checked_sub(start)?);
        rest.start = start.saturating_add(count);
        (count > 0).then_some(start..rest.start)
    })
}

/// What is to be written for a fresh image, in ascending order of offsets.
#[derive(Debug, Clone)]
pub struct Pieces<'a> {
    image: &'a FreshImage,
    /// Index of the next part, and how many of its bytes have been given already.
    part: usize,
    done: u64,
}

#[allow(clippy::arithmetic_side_effects, reason = "offsets in the file are below 2^63")]
impl<'a> Pieces<'a> {
    pub(super) fn new(image: &'a FreshImage) -> Pieces<'a> {
        Pieces { image, part: 0, done: 0 }
    }

    /// Adds what of the next part fits, unless it is not adjacent.
    fn extend(&mut self, piece: &mut Piece) -> Option<()> {
        let part = self.image.parts.get(self.part)?;
        let geometry = self.image.geometry();
        let at = geometry.host_offset(HostCluster(part.cluster)).get() + self.done;
        let end = piece.offset.get() + piece.bytes.len() as u64;
        // Only the L1 table ends within a cluster: a gap below a cluster is its unwritten rest.
        let gap = at.checked_sub(end).filter(|&gap| gap < geometry.cluster_size())?;
        let room = MAX_PIECE.checked_sub(piece.bytes.len() as u64 + gap).filter(|&room| room > 0)?;
        let len = part_len(self.image, *part);
        let take = room.min(len - self.done);
        piece.bytes.resize(piece.bytes.len() + index(gap), 0);
        let filled = piece.bytes.len();
        piece.bytes.resize(filled + index(take), 0);
        fill(self.image, *part, self.done, piece.bytes.get_mut(filled..)?);
        self.done += take;
        if self.done == len {
            self.part += 1;
            self.done = 0;
        }
        Some(())
    }
}

#[allow(clippy::arithmetic_side_effects, reason = "offsets in the file are below 2^63")]
impl Iterator for Pieces<'_> {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        let part = self.image.parts.get(self.part)?;
        let start = self.image.geometry().host_offset(HostCluster(part.cluster)).get() + self.done;
        let len = self.image.file_len().saturating_sub(start).min(MAX_PIECE);
        let mut piece = Piece { offset: HostOffset(start), bytes: Vec::with_capacity(index(len)) };
        while self.extend(&mut piece).is_some() {}
        Some(piece)
    }
}

/// Bytes of a structure.
#[allow(clippy::arithmetic_side_effects, reason = "offsets in the file are below 2^63")]
fn part_len(image: &FreshImage, part: Part) -> u64 {
    let cluster_size = image.geometry().cluster_size();
    match part.structure {
        Structure::Header | Structure::RefcountBlock(_) | Structure::L2(_) => cluster_size,
        Structure::RefcountTable => image.allocation.table.clusters * cluster_size,
        Structure::OldTable(number) => {
            let table = image.allocation.old_tables.get(number as usize);
            let end = table.map_or(0, |table| table.first + table.clusters);
            image.allocation.used.gap_at(part.cluster, end.saturating_sub(part.cluster)) * cluster_size
        }
        Structure::L1 => u64::from(image.header.l1_entries) * TABLE_ENTRY_SIZE,
    }
}

/// Fills a buffer of zeroes with the bytes of a structure from `from` on, a multiple of the entry size.
#[allow(clippy::arithmetic_side_effects, reason = "offsets in the file are below 2^63")]
fn fill(image: &FreshImage, part: Part, from: u64, buf: &mut [u8]) {
    let geometry = image.geometry();
    let first_entry = from / TABLE_ENTRY_SIZE;
    match part.structure {
        Structure::Header => {
            let bytes = image.header_bytes.get(index(from)..).unwrap_or_default();
            buf.iter_mut().zip(bytes).for_each(|(to, byte)| *to = *byte);
        }
        Structure::RefcountTable => fill_refcount_table(&image.allocation.table, geometry, first_entry, buf),
        Structure::OldTable(number) => {
            if let Some(table) = image.allocation.old_tables.get(number as usize) {
                let skipped = (part.cluster - table.first) * (geometry.cluster_size() / TABLE_ENTRY_SIZE);
                fill_refcount_table(table, geometry, skipped + first_entry, buf);
            }
        }
        Structure::RefcountBlock(number) => fill_refcount_block(image, u64::from(number), from, buf),
        Structure::L1 => {
            let tables = image.mapping.l2_tables.get(index(first_entry)..).unwrap_or_default();
            fill_entries(
                buf,
                tables.iter().map(|&table| L1Entry { table: Some(allocated(geometry, table)) }.encode()),
            );
        }
        Structure::L2(number) => {
            let first = u64::from(number) * geometry.l2_entries() + from / geometry.l2_entry_size();
            fill_l2(image, first, buf);
        }
    }
}

fn fill_entries(buf: &mut [u8], entries: impl Iterator<Item = u64>) {
    for (to, entry) in buf.chunks_exact_mut(ENTRY).zip(entries) {
        to.copy_from_slice(&entry.to_be_bytes());
    }
}

fn fill_refcount_table(table: &RefcountTable, geometry: Geometry, first: u64, buf: &mut [u8]) {
    let blocks = table.blocks.get(index(first)..).unwrap_or_default();
    let offset =
        |block: &Option<u64>| block.map_or(0, |block| geometry.host_offset(HostCluster(block)).get());
    fill_entries(buf, blocks.iter().map(offset));
}

/// Sets the refcounts of the clusters in use to one.
#[allow(clippy::arithmetic_side_effects, reason = "cluster numbers are below 2^55")]
fn fill_refcount_block(image: &FreshImage, number: u64, from: u64, buf: &mut [u8]) {
    let geometry = image.geometry();
    let counted = |bytes: u64| (bytes * 8) >> geometry.refcount_order();
    let first = geometry.first_counted(number).get() + counted(from);
    for run in image.allocation.used.runs_in(first..first + counted(buf.len() as u64)) {
        set_ones(buf, geometry.refcount_order(), run.start - first..run.end - first);
    }
}

/// Sets refcounts that are zero to one. Refcounts below a byte are packed from the least significant bit on; wider ones
/// are big-endian.
#[allow(clippy::arithmetic_side_effects, reason = "entries are inside the buffer; an order is at most 6")]
fn set_ones(buf: &mut [u8], order: u32, entries: Range<u64>) {
    if let Some(width_order) = order.checked_sub(3) {
        let width = 1 << width_order;
        let bytes = buf.get_mut(index(entries.start) * width..index(entries.end) * width);
        for entry in bytes.unwrap_or_default().chunks_exact_mut(width) {
            if let Some(last) = entry.last_mut() {
                *last = 1;
            }
        }
        return;
    }
    let per_byte = 8_u64 >> order;
    let set = |buf: &mut [u8], entry: u64| {
        if let Some(byte) = buf.get_mut(index(entry / per_byte)) {
            *byte |= 1 << ((entry % per_byte) << order);
        }
    };
    let whole = entries.start.next_multiple_of(per_byte)..entries.end / per_byte * per_byte;
    if whole.start >= whole.end {
        entries.for_each(|entry| set(buf, entry));
        return;
    }
    let every = (0..per_byte).fold(0_u8, |byte, entry| byte | 1 << (entry << order));
    if let Some(bytes) = buf.get_mut(index(whole.start / per_byte)..index(whole.end / per_byte)) {
        bytes.fill(every);
    }
    (entries.start..whole.start).chain(whole.end..entries.end).for_each(|entry| set(buf, entry));
}

/// Entries of L2 tables from a guest cluster on.
#[allow(clippy::arithmetic_side_effects, reason = "cluster numbers are below 2^55")]
fn fill_l2(image: &FreshImage, first: u64, buf: &mut [u8]) {
    let (mapping, geometry) = (&image.mapping, image.geometry());
    let at = mapping.runs.binary_search_by(|run| {
        if run.guest > first {
            Ordering::Greater
        } else if run.guest + run.count <= first {
            Ordering::Less
        } else {
            Ordering::Equal
        }
    });
    let runs = mapping.runs.get(at.unwrap_or(usize::MAX)..).unwrap_or_default();
    let hosts = runs.iter().flat_map(|run| {
        let skipped = first.saturating_sub(run.guest);
        run.host + skipped..run.host + run.count
    });
    if geometry.has_subclusters() {
        // Space alone: the backing file, if there is one, shows through until a subcluster is written.
        let words = hosts.flat_map(|host| {
            let entry = L2Entry::of_subclusters(Some(allocated(geometry, host)), Subclusters::NONE);
            let raw = entry.encode(&geometry);
            [raw.descriptor, raw.subclusters]
        });
        return fill_entries(buf, words);
    }
    // What nobody has encrypted reads as noise, so that space for it is only kept.
    let encrypted = image.header.crypt_method != CryptMethod::None;
    let entry = |host| {
        let allocated = allocated(geometry, host);
        let entry = if encrypted { L2Entry::Zero(Some(allocated)) } else { L2Entry::Standard(allocated) };
        entry.encode(&geometry).descriptor
    };
    fill_entries(buf, hosts.map(entry));
}

fn allocated(geometry: Geometry, cluster: u64) -> Allocated {
    Allocated { host: geometry.host_offset(HostCluster(cluster)), copied: true }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::qcow2::refcounts;

    #[test]
    fn ones_are_set_where_refcounts_are_read() {
        for order in 0..=6 {
            let mut buf = [0; 512];
            let entries = (buf.len() as u64 * 8) >> order;
            let ranges = [0..1, 3..5, 7..30, 33..40, entries - 1..entries];
            for range in &ranges {
                set_ones(&mut buf, order, range.clone());
            }
            for entry in 0..entries {
                let expected = ranges.iter().any(|range| range.contains(&entry));
                assert_eq!(refcounts::get(&buf, order, entry), Some(expected.into()), "{order}: {entry}");
            }
        }
    }
}
