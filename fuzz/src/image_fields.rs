//! Where a qcow2 image says what: the places of its fields, found by following its own tables as far as they lead.
//!
//! The image may be damaged already. What lies outside of it is left out, and tables are followed for a few entries, so that
//! the list is short whatever the image says.

/// A number in an image, in big-endian order.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Where it is, in bytes.
    pub at: usize,
    /// How long it is, in bytes: 1, 2, 4 or 8.
    pub width: usize,
}

/// The fields of one kind of structure.
pub type Group = Vec<Field>;

/// The most entries of a table that are listed.
const ENTRIES: usize = 72;
/// The most snapshots and bitmaps that are listed.
const STRUCTURES: usize = 8;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

const SIZE: usize = 24;
const L1: (usize, usize) = (36, 40);
const REFCOUNTS: (usize, usize) = (48, 56);
const SNAPSHOTS: (usize, usize) = (60, 64);
const HEADER_LENGTH: usize = 100;
const BITMAPS_EXTENSION: u64 = 0x2385_2875;

/// The fields of the image, by the structures that they are in; no group is empty.
pub fn groups(image: &[u8]) -> Vec<Group> {
    let mut found = Listing { image, groups: Vec::new() };
    found.header();
    found.refcounts();
    found.mapping(found.number(L1.1, 8), found.number(L1.0, 4));
    found.snapshots();
    found.extensions();
    found.groups.retain(|group| !group.is_empty());
    found.groups
}

/// Bytes in a cluster, as far as the image makes sense.
pub fn cluster_size(image: &[u8]) -> usize {
    1 << Listing { image, groups: Vec::new() }.number(20, 4).clamp(9, 21)
}

struct Listing<'a> {
    image: &'a [u8],
    groups: Vec<Group>,
}

impl Listing<'_> {
    /// The number at a place; 0 outside of the image.
    fn number(&self, at: usize, width: usize) -> u64 {
        let bytes = at.checked_add(width).and_then(|end| self.image.get(at..end)).unwrap_or(&[]);
        bytes.iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
    }

    fn add(&self, group: &mut Group, at: usize, widths: &[usize]) {
        let mut at = at;
        for &width in widths {
            if at.checked_add(width).is_some_and(|end| end <= self.image.len()) {
                group.push(Field { at, width });
            }
            at = at.saturating_add(width);
        }
    }

    fn words(&mut self, at: u64, count: u64) {
        let mut group = Group::new();
        let count = (count as usize).min(ENTRIES);
        self.add(&mut group, usize::try_from(at).unwrap_or(usize::MAX), &vec![8; count]);
        self.groups.push(group);
    }

    fn header(&mut self) {
        let mut group = Group::new();
        // Up to the version, what anybody reads before anything else is left as it is.
        self.add(&mut group, 8, &[8, 4, 4, 8, 4, 4, 8, 8, 4, 4, 8]);
        // The version is changed now and then.
        self.add(&mut group, 4, &[4]);
        self.add(&mut group, 72, &[8, 8, 8, 4, 4, 1]);
        self.groups.push(group);
        let mut size = Group::new();
        self.add(&mut size, SIZE, &[8]);
        self.groups.push(size);
    }

    fn refcounts(&mut self) {
        let table = self.number(REFCOUNTS.1 - 8, 8);
        let clusters = self.number(REFCOUNTS.1, 4).min(4);
        self.words(table, clusters * cluster_size(self.image) as u64 / 8);
        for index in 0..4 {
            let block = self.number((table as usize).saturating_add(index * 8), 8) & OFFSET;
            if block == 0 {
                continue;
            }
            let mut group = Group::new();
            let bits = 1_usize << self.number(96, 4).min(6);
            let width = (bits / 8).max(1);
            let used = self.image.len().div_ceil(cluster_size(self.image)) * bits;
            self.add(&mut group, block as usize, &vec![width; used.div_ceil(8 * width).min(ENTRIES * 4)]);
            self.groups.push(group);
        }
    }

    /// An L1 table and the L2 tables that it leads to.
    fn mapping(&mut self, l1: u64, entries: u64) {
        self.words(l1, entries);
        for index in 0..entries.min(4) {
            let l2 = self.number((l1 as usize).saturating_add(index as usize * 8), 8) & OFFSET;
            if l2 != 0 {
                self.words(l2, cluster_size(self.image) as u64 / 8);
            }
        }
    }

    fn snapshots(&mut self) {
        let mut at = self.number(SNAPSHOTS.1, 8) as usize;
        for _ in 0..self.number(SNAPSHOTS.0, 4).min(STRUCTURES as u64) {
            let mut group = Group::new();
            self.add(&mut group, at, &[8, 4, 2, 2, 4, 4, 8, 4, 4, 8, 8, 8]);
            self.groups.push(group);
            self.mapping(self.number(at, 8), self.number(at.saturating_add(8), 4));
            let texts = self.number(at.saturating_add(12), 2) + self.number(at.saturating_add(14), 2);
            let len = 40 + texts + self.number(at.saturating_add(36), 4);
            at = at.saturating_add(len as usize).saturating_add(7) & !7;
        }
    }

    fn extensions(&mut self) {
        let mut at = if self.number(4, 4) == 2 { 72 } else { self.number(HEADER_LENGTH, 4) as usize };
        for _ in 0..STRUCTURES {
            let (kind, len) = (self.number(at, 4), self.number(at.saturating_add(4), 4) as usize);
            let mut group = Group::new();
            self.add(&mut group, at, &[4, 4]);
            if kind == BITMAPS_EXTENSION {
                self.add(&mut group, at + 8, &[4, 4, 8, 8]);
                self.bitmaps(self.number(at + 24, 8), self.number(at + 8, 4));
            } else {
                self.add(&mut group, at.saturating_add(8), &vec![8; len.min(64) / 8]);
            }
            self.groups.push(group);
            if kind == 0 {
                break;
            }
            at = at.saturating_add(8).saturating_add(len.saturating_add(7) & !7);
        }
    }

    fn bitmaps(&mut self, directory: u64, count: u64) {
        let mut at = directory as usize;
        for _ in 0..count.min(STRUCTURES as u64) {
            let mut group = Group::new();
            self.add(&mut group, at, &[8, 4, 4, 1, 1, 2, 4, 8]);
            self.groups.push(group);
            self.words(self.number(at, 8), self.number(at.saturating_add(8), 4));
            let names = self.number(at.saturating_add(18), 2) + self.number(at.saturating_add(20), 4);
            at = at.saturating_add(24 + names as usize).saturating_add(7) & !7;
        }
    }
}
