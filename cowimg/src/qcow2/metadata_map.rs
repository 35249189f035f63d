//! Which clusters of the file hold metadata, one bit each, so that no guest data is ever written over a table.
//!
//! In a sound image this never finds anything: refcounts keep data and tables apart. A damaged or hostile image can
//! have a refcount of 0 for a table, or an L2 entry that points at one; here it ends.
//!
//! Marked are the header, the refcount table and its blocks, the L1 tables, active and of snapshots, with their L2 tables,
//! the snapshot table, the directory, tables and bits of bitmaps, and the header of a LUKS volume.
//!
//! QEMU looks at less: by default (`overlap-check=cached`) not at the L2 tables of snapshots, and never at the bits of
//! bitmaps or a LUKS header. Here there is nothing to choose: a bit for each cluster is 2 MiB for a file of 1 TiB.

use std::sync::{PoisonError, RwLock};

/// One bit for each cluster of the file, as far as any is marked.
#[derive(Debug, Default)]
pub(super) struct MetadataMap {
    words: RwLock<Vec<u64>>,
}

impl MetadataMap {
    /// Marks `count` clusters from `first` on.
    pub(super) fn mark(&self, first: u64, count: u64) {
        let mut words = self.words.write().unwrap_or_else(PoisonError::into_inner);
        for cluster in first..first + count {
            let at = (cluster / 64) as usize;
            if at >= words.len() {
                words.resize(at + 1, 0);
            }
            words[at] |= 1 << (cluster % 64);
        }
    }

    /// Takes the mark from a cluster that is free.
    pub(super) fn unmark(&self, cluster: u64) {
        let mut words = self.words.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(word) = words.get_mut((cluster / 64) as usize) {
            *word &= !(1 << (cluster % 64));
        }
    }

    /// The same marks, to be changed apart from these.
    pub(super) fn fork(&self) -> MetadataMap {
        let words = self.words.read().unwrap_or_else(PoisonError::into_inner).clone();
        MetadataMap { words: RwLock::new(words) }
    }

    /// Takes over the marks of `other`.
    pub(super) fn replace(&self, other: MetadataMap) {
        let words = other.words.into_inner().unwrap_or_else(PoisonError::into_inner);
        *self.words.write().unwrap_or_else(PoisonError::into_inner) = words;
    }

    /// Takes every mark away.
    pub(super) fn clear(&self) {
        self.words.write().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The first marked cluster among `count` from `first` on.
    pub(super) fn first_marked(&self, first: u64, count: u64) -> Option<u64> {
        let words = self.words.read().unwrap_or_else(PoisonError::into_inner);
        let end = (first + count).min(words.len() as u64 * 64);
        let mut at = first;
        while at < end {
            let word = words[(at / 64) as usize] >> (at % 64);
            if word != 0 {
                let found = at + u64::from(word.trailing_zeros());
                return (found < end).then_some(found);
            }
            at = (at / 64 + 1) * 64;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_found_within_their_range_only() {
        let map = MetadataMap::default();
        map.mark(0, 1);
        map.mark(127, 3);
        assert_eq!(map.first_marked(0, 1000), Some(0));
        assert_eq!(map.first_marked(1, 1000), Some(127));
        assert_eq!(map.first_marked(1, 126), None);
        assert_eq!(map.first_marked(128, 1), Some(128));
        assert_eq!(map.first_marked(130, u64::MAX / 2), None);
        map.unmark(128);
        assert_eq!(map.first_marked(128, 10), Some(129));
    }
}
