//! Clusters past the end of the file that something refers to: a file that grows over them would give them a meaning.
//!
//! They are kept as ranges, the nearest ones, so that an image that names exabytes takes no more memory than its own.

use std::collections::BTreeMap;

/// The most ranges that are remembered.
const MAX_RANGES: usize = 1 << 16;

/// A set of clusters, as ranges that neither overlap nor touch.
#[derive(Debug, Clone)]
pub(super) struct PastEnd {
    /// The first cluster of each range, and the one after its last.
    ranges: BTreeMap<u64, u64>,
    /// From here on nobody knows what is referred to.
    known_to: u64,
}

impl PastEnd {
    pub(super) const fn new() -> PastEnd {
        PastEnd { ranges: BTreeMap::new(), known_to: u64::MAX }
    }

    /// Remembers the clusters from `first` to `last`.
    pub(super) fn add(&mut self, first: u64, last: u64) {
        let (mut first, mut end) = (first, last.saturating_add(1));
        if first >= self.known_to || end <= first {
            return;
        }
        // The ranges that it overlaps or touches become one with it.
        while let Some((&start, &stop)) =
            self.ranges.range(..=end).next_back().filter(|(_, stop)| **stop >= first)
        {
            self.ranges.remove(&start);
            (first, end) = (first.min(start), end.max(stop));
        }
        self.ranges.insert(first, end);
        if self.ranges.len() > MAX_RANGES
            && let Some((farthest, _)) = self.ranges.pop_last()
        {
            self.known_to = farthest;
        }
    }

    /// The first place from `from` on where `count` clusters are that nothing refers to; `None` where there is none below
    /// `limit`.
    pub(super) fn gap(&self, from: u64, count: u64, limit: u64) -> Option<u64> {
        let mut start = from;
        loop {
            let end = start.checked_add(count).filter(|&end| end <= limit.min(self.known_to))?;
            match self.ranges.range(..end).next_back().filter(|(_, stop)| **stop > start) {
                Some((_, &stop)) => start = stop,
                None => return Some(start),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn gaps_are_between_what_is_named() {
        let mut named = PastEnd::new();
        named.add(10, 19);
        named.add(25, 25);
        assert_eq!(named.gap(0, 10, 100), Some(0));
        assert_eq!(named.gap(0, 11, 100), Some(26));
        assert_eq!(named.gap(5, 5, 100), Some(5));
        assert_eq!(named.gap(12, 5, 100), Some(20));
        assert_eq!(named.gap(12, 6, 100), Some(26));
        assert_eq!(named.gap(26, 74, 100), Some(26));
        assert_eq!(named.gap(26, 75, 100), None);
    }

    #[test]
    fn an_exabyte_is_one_range_and_the_farthest_of_many_are_given_up() {
        let mut named = PastEnd::new();
        named.add(1 << 20, u64::MAX);
        assert_eq!(named.gap(0, 1 << 20, u64::MAX), Some(0));
        assert_eq!(named.gap(1, 1 << 20, u64::MAX), None);
        let mut named = PastEnd::new();
        let many = MAX_RANGES as u64 + 100;
        (0..many).rev().for_each(|nth| named.add(nth * 2, nth * 2));
        assert_eq!(named.ranges.len(), MAX_RANGES);
        assert_eq!(named.gap(0, 1, u64::MAX), Some(1));
        assert_eq!(named.gap(0, 2, u64::MAX), None, "what was given up is taken for named");
        named.add(u64::MAX - 1, u64::MAX);
        assert_eq!(named.ranges.len(), MAX_RANGES);
    }

    proptest! {
        #[test]
        fn it_is_the_set_of_what_was_added(
            added in prop::collection::vec((0_u64..60, 0_u64..6), 0..30), from in 0_u64..70, count in 1_u64..8,
        ) {
            let mut named = PastEnd::new();
            let mut flags = [false; 100];
            for (first, more) in added {
                named.add(first, first + more);
                flags[first as usize..=(first + more) as usize].fill(true);
            }
            let is_free = |start: &u64| !flags[*start as usize..(*start + count) as usize].contains(&true);
            let expected = (from..=100 - count).find(is_free);
            prop_assert_eq!(named.gap(from, count, 100), expected);
            let mut ends = named.ranges.iter().zip(named.ranges.keys().skip(1));
            prop_assert!(ends.all(|((_, end), next)| end < next));
        }
    }
}
