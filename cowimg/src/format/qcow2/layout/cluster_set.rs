//! A set of host clusters, kept as runs so that it costs what the runs cost and not what the clusters would.

use std::collections::BTreeMap;
use std::ops::Range;

/// Host clusters that are in use. Runs never touch each other.
#[derive(Debug, Clone, Default)]
pub(super) struct ClusterSet {
    /// First cluster of a run to one past its last.
    runs: BTreeMap<u64, u64>,
}

impl ClusterSet {
    /// Adds a range, whatever part of it is in the set already.
    pub(super) fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let Range { mut start, mut end } = range;
        while let Some((first, last)) = self.run_starting_by(end).filter(|&(_, last)| last >= start) {
            self.runs.remove(&first);
            start = start.min(first);
            end = end.max(last);
        }
        self.runs.insert(start, end);
    }

    /// Takes a range out, whatever part of it is in the set.
    pub(super) fn remove(&mut self, range: Range<u64>) {
        while let Some((first, last)) = self.overlapping(&range) {
            self.runs.remove(&first);
            if first < range.start {
                self.runs.insert(first, range.start);
            }
            if last > range.end {
                self.runs.insert(range.end, last);
            }
        }
    }

    /// Whether a cluster is in the set.
    pub(super) fn contains(&self, cluster: u64) -> bool {
        self.run_starting_by(cluster).is_some_and(|(_, last)| last > cluster)
    }

    /// The first place at or after `from` where `count` clusters in a row are not in the set.
    pub(super) fn find_gap(&self, from: u64, count: u64) -> u64 {
        let mut at = self.run_starting_by(from).map_or(from, |(_, last)| last.max(from));
        for (&first, &last) in self.runs.range(at..) {
            if first.saturating_sub(at) >= count {
                break;
            }
            at = last;
        }
        at
    }

    /// How many clusters from `from` on are not in the set, at most `limit`.
    pub(super) fn gap_at(&self, from: u64, limit: u64) -> u64 {
        if self.contains(from) {
            return 0;
        }
        self.runs.range(from..).next().map_or(limit, |(&first, _)| limit.min(first.saturating_sub(from)))
    }

    /// One past the highest cluster of the set.
    pub(super) fn end(&self) -> u64 {
        self.runs.last_key_value().map_or(0, |(_, &last)| last)
    }

    /// The parts of the set that lie in `range`, in order.
    pub(super) fn runs_in(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let from = self.run_starting_by(range.start).map_or(range.start, |(first, _)| first);
        let clip = range.clone();
        self.runs
            .range(from.min(range.end)..range.end)
            .map(move |(&first, &last)| first.max(clip.start)..last.min(clip.end))
            .filter(|run| !run.is_empty())
    }

    fn run_starting_by(&self, cluster: u64) -> Option<(u64, u64)> {
        self.runs.range(..=cluster).next_back().map(|(&first, &last)| (first, last))
    }

    fn overlapping(&self, range: &Range<u64>) -> Option<(u64, u64)> {
        let last_inside = range.end.checked_sub(1).filter(|_| !range.is_empty())?;
        self.run_starting_by(last_inside).filter(|&(_, last)| last > range.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(runs: &[Range<u64>]) -> ClusterSet {
        let mut set = ClusterSet::default();
        for run in runs {
            set.insert(run.clone());
        }
        set
    }

    fn all(set: &ClusterSet) -> Vec<Range<u64>> {
        set.runs_in(0..u64::MAX).collect()
    }

    #[test]
    fn runs_that_touch_become_one_and_a_removal_splits() {
        let mut set = set(&[0..3, 5..6, 3..5, 10..12]);
        assert_eq!(all(&set), [0..6, 10..12]);
        set.insert(5..11);
        assert_eq!(set.gap_at(5, 9), 0);
        assert_eq!(set.runs_in(0..20).count(), 1);
        set.remove(1..2);
        set.remove(8..20);
        assert_eq!(all(&set), [0..1, 2..8]);
        assert_eq!(set.end(), 8);
    }

    #[test]
    fn a_gap_is_the_first_that_is_long_enough() {
        let set = set(&[0..3, 5..6, 8..20]);
        assert_eq!(set.find_gap(0, 1), 3);
        assert_eq!(set.find_gap(4, 2), 6);
        assert_eq!(set.find_gap(4, 1), 4);
        assert_eq!(set.find_gap(0, 3), 20);
        assert_eq!(set.find_gap(30, 3), 30);
        assert_eq!(set.gap_at(3, 9), 2);
        assert_eq!(set.gap_at(5, 9), 0);
        assert_eq!(set.gap_at(20, 9), 9);
        assert_eq!(set.runs_in(4..9).collect::<Vec<_>>(), [5..6, 8..9]);
    }
}
