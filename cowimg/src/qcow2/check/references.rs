//! How many references there are to each cluster of the file, in memory that follows what is referred to and not
//! what the file's length promises.
//!
//! Counts are in pages that exist where something was counted. A page gives each cluster as many bits as its largest count
//! needs: one while all are 0 or 1, as in an image without snapshots, then 4, then 16; a count that needs more is kept
//! aside.

use foldhash::HashMap;
use std::ops::Range;

use crate::error::{Error, ErrorKind, Result};

/// Clusters counted by a page. Small, so that references scattered on purpose do not fill the memory.
const PAGE: u64 = 2048;
/// A 16-bit count of this value is in the map.
const ASIDE: u64 = u16::MAX as u64;

/// The counts of consecutive clusters.
#[derive(Debug)]
struct Page {
    /// Bits of a count: 1, 4 or 16.
    width: u8,
    words: Box<[u64]>,
}

impl Page {
    fn new(width: u8) -> Page {
        Page { width, words: vec![0; (PAGE * u64::from(width) / 64) as usize].into_boxed_slice() }
    }

    /// Bytes of memory of a page with counts of so many bits.
    const fn bytes(width: u8) -> u64 {
        PAGE * width as u64 / 8
    }

    /// Bytes of memory that a page takes more once it has a count of at most [`ASIDE`].
    fn growth(page: Option<&Page>, count: u64) -> u64 {
        let width = match count {
            0 | 1 => 1,
            2..16 => 4,
            _ => 16,
        };
        match page {
            None => Page::bytes(width),
            Some(page) if page.width < width => Page::bytes(width) - Page::bytes(page.width),
            Some(_) => 0,
        }
    }

    fn max(&self) -> u64 {
        (1 << self.width) - 1
    }

    fn place(&self, index: u64) -> (usize, u64) {
        let bit = index * u64::from(self.width);
        ((bit / 64) as usize, bit % 64)
    }

    fn get(&self, index: u64) -> u64 {
        let (word, shift) = self.place(index);
        self.words[word] >> shift & self.max()
    }

    /// Counts the first reference to each of the `count` clusters from `index` on, which are in one word where a count has
    /// one bit. Does nothing, and says no, where one of them has been referred to already.
    fn add_first(&mut self, index: u64, count: u64) -> bool {
        let bits = u64::MAX >> (64 - count) << (index % 64);
        let Some(word) = self.words.get_mut((index / 64) as usize).filter(|_| self.width == 1) else {
            return false;
        };
        let is_first = *word & bits == 0;
        *word |= if is_first { bits } else { 0 };
        is_first
    }

    /// Sets a count of at most [`ASIDE`], with wider counts where it needs them.
    fn set(&mut self, index: u64, count: u64) {
        while count > self.max() {
            let mut wider = Page::new(self.width * 4);
            (0..PAGE).for_each(|index| wider.set(index, self.get(index)));
            *self = wider;
        }
        let (word, shift) = self.place(index);
        self.words[word] = self.words[word] & !(self.max() << shift) | count << shift;
    }
}

/// References to each cluster.
#[derive(Debug)]
pub(super) struct References {
    pages: Vec<Option<Page>>,
    aside: HashMap<u64, u64>,
    clusters: u64,
    /// Bytes of memory that this takes, or would take, and the most that it may.
    bytes: u64,
    limit: u64,
}

impl References {
    /// Bytes of memory of a count that is kept aside, with its part of the map's own.
    const ASIDE_BYTES: u64 = 32;

    /// The most clusters that a file may have to be checked, QEMU's limit.
    pub(super) const MAX_CLUSTERS: u64 = i32::MAX as u64;

    /// No references to any of `clusters` clusters, in at most `limit` bytes of memory.
    pub(super) fn new(clusters: u64, limit: u64) -> Result<References> {
        if clusters > Self::MAX_CLUSTERS {
            return Err(Error::new(ErrorKind::LimitExceeded {
                what: "counting the references to the image's clusters",
                bytes: clusters.saturating_mul(2),
                limit: Self::MAX_CLUSTERS * 2,
            }));
        }
        // One more than there are: the file may end within its last cluster.
        let pages = (clusters + 1).div_ceil(PAGE);
        let bytes = pages * size_of::<Option<Page>>() as u64;
        let pages = (0..if bytes > limit { 0 } else { pages }).map(|_| None).collect();
        Ok(References { pages, aside: HashMap::default(), clusters, bytes, limit })
    }

    /// Bytes of memory that the counts take. More than they may means that some references are not counted.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether so many bytes more may be taken; they are, then.
    fn may_take(&mut self, bytes: u64) -> bool {
        if self.bytes <= self.limit {
            self.bytes = self.bytes.saturating_add(bytes);
        }
        self.bytes <= self.limit
    }

    /// Clusters that have a count: those of the file, and the one after its end once it is referred to.
    pub(super) fn clusters(&self) -> u64 {
        self.clusters
    }

    /// References to a cluster.
    pub(super) fn get(&self, cluster: u64) -> u64 {
        let page = self.pages.get((cluster / PAGE) as usize);
        match page.and_then(Option::as_ref).map_or(0, |page| page.get(cluster % PAGE)) {
            ASIDE => self.aside.get(&cluster).copied().unwrap_or(ASIDE),
            count => count,
        }
    }

    /// Counts `times` more. The cluster is at most the one after the file's last.
    pub(super) fn add(&mut self, cluster: u64, times: u64) {
        let before = self.get(cluster);
        let count = before.saturating_add(times);
        let index = (cluster / PAGE) as usize;
        let Some(page) = self.pages.get(index) else { return };
        let aside = if before < ASIDE && count >= ASIDE { Self::ASIDE_BYTES } else { 0 };
        let more = Page::growth(page.as_ref(), count.min(ASIDE)) + aside;
        if more > 0 && !self.may_take(more) {
            return;
        }
        let Some(page) = self.pages.get_mut(index) else { return };
        self.clusters = self.clusters.max(cluster + 1);
        page.get_or_insert_with(|| Page::new(1)).set(cluster % PAGE, count.min(ASIDE));
        if count >= ASIDE {
            self.aside.insert(cluster, count);
        }
    }

    /// Counts one reference more to each of `clusters`, which are among those that have a count.
    pub(super) fn add_each(&mut self, clusters: Range<u64>) {
        let mut next = clusters.start;
        while next < clusters.end {
            let count = (64 - next % 64).min(clusters.end - next);
            // A page that is not there yet is made by the other way.
            let page = self.pages.get_mut((next / PAGE) as usize).and_then(Option::as_mut);
            let has_room = page.is_some_and(|page| page.add_first(next % PAGE, count));
            if !has_room {
                (next..next + count).for_each(|cluster| self.add(cluster, 1));
            }
            next += count;
        }
    }

    /// Whether all of 64 clusters, the first of which has a number that is a multiple of 64, have the same count of 0 or 1.
    pub(super) fn common_count(&self, first: u64) -> Option<u64> {
        let page = self.pages.get((first / PAGE) as usize)?.as_ref();
        let word =
            page.map_or(Some(0), |page| (page.width == 1).then(|| page.words[(first % PAGE / 64) as usize]))?;
        match word {
            0 => Some(0),
            u64::MAX => Some(1),
            _ => None,
        }
    }

    /// The first of `clusters` that may have references. Looks at no page beyond them.
    pub(super) fn next_counted(&self, clusters: Range<u64>) -> Option<u64> {
        if clusters.is_empty() {
            return None;
        }
        let mut pages = clusters.start / PAGE..=(clusters.end - 1) / PAGE;
        let page = pages.find(|&page| self.pages.get(page as usize).is_some_and(Option::is_some))?;
        Some(clusters.start.max(page * PAGE))
    }

    /// The clusters among `clusters` that have references, in order.
    pub(super) fn counted(&self, clusters: Range<u64>) -> impl Iterator<Item = u64> {
        let mut next = clusters.start;
        std::iter::from_fn(move || {
            loop {
                let cluster = self.next_counted(next..clusters.end)?;
                next = cluster + 1;
                if self.get(cluster) > 0 {
                    return Some(cluster);
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_exact_past_sixteen_bits() {
        let mut references = References::new(10_000, u64::MAX).unwrap();
        for times in [1, 65_533, 1, 1, 1 << 40] {
            references.add(7, times);
        }
        assert_eq!(references.get(7), (1 << 40) + 65_536);
        assert_eq!(references.get(6), 0);
        references.add(7, u64::MAX);
        assert_eq!(references.get(7), u64::MAX);
    }

    #[test]
    fn runs_count_as_their_clusters_do_one_by_one() {
        let (mut runs, mut single) =
            (References::new(8192, u64::MAX).unwrap(), References::new(8192, u64::MAX).unwrap());
        for range in [3..5, 60..200, 64..128, 4000..4200, 128..129, 0..8192] {
            runs.add_each(range.clone());
            range.for_each(|cluster| single.add(cluster, 1));
        }
        for cluster in 0..8192 {
            assert_eq!(runs.get(cluster), single.get(cluster), "cluster {cluster}");
        }
        assert_eq!((runs.common_count(0), runs.common_count(6208)), (None, Some(1)));
        assert_eq!(References::new(8192, u64::MAX).unwrap().common_count(64), Some(0));
    }

    #[test]
    fn no_more_memory_is_taken_than_is_allowed_and_it_shows() {
        let pages = 4 * size_of::<Option<Page>>() as u64;
        let limit = pages + 2 * Page::bytes(1);
        let mut references = References::new(3 * PAGE, limit).unwrap();
        references.add_each(0..2 * PAGE);
        assert_eq!((references.bytes(), references.get(2 * PAGE - 1)), (limit, 1));
        let wider = |references: &mut References| references.add(5, 1);
        let another = |references: &mut References| references.add_each(2 * PAGE..2 * PAGE + 64);
        for grow in [wider, another] {
            let mut references = References::new(3 * PAGE, limit).unwrap();
            references.add_each(0..2 * PAGE);
            grow(&mut references);
            assert!(references.bytes() > limit);
            assert_eq!(references.pages.iter().flatten().map(|page| page.width).collect::<Vec<_>>(), [1, 1]);
        }
        let none = References::new(3 * PAGE, pages - 1).unwrap();
        assert!(none.bytes() > pages - 1 && none.pages.is_empty());
    }

    #[test]
    fn the_cluster_after_the_last_counts_once_it_is_referred_to() {
        let mut references = References::new(4096, u64::MAX).unwrap();
        assert_eq!(references.clusters(), 4096);
        references.add(4096, 1);
        assert_eq!((references.clusters(), references.get(4096)), (4097, 1));
    }

    #[test]
    fn memory_follows_what_is_counted_and_has_a_limit() {
        let mut references = References::new(References::MAX_CLUSTERS, u64::MAX).unwrap();
        references.add(1 << 30, 1);
        assert_eq!(references.pages.iter().flatten().count(), 1);
        let end = References::MAX_CLUSTERS;
        assert_eq!(references.next_counted(5..end), Some(1 << 30));
        assert_eq!(references.next_counted(5..1 << 30), None);
        assert_eq!(references.next_counted((1 << 30) + 5..(1 << 30) + 5), None);
        assert_eq!(references.next_counted((1 << 30) + 5..end), Some((1 << 30) + 5));
        assert_eq!(references.next_counted((1 << 30) + PAGE..end), None);
        let error = References::new(References::MAX_CLUSTERS + 1, u64::MAX).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::LimitExceeded { .. }));
    }
}
