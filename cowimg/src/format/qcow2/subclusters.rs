//! The second word of an extended L2 entry: what each of a cluster's 32 subclusters is. (Specification, section
//! "Extended L2 Entries".)
//!
//! ```text
//! bit   63                       32 31                        0
//!      | subcluster 31 .. 0: zero  | subcluster 31 .. 0: here  |
//!
//! zero 0, here 0   the backing file answers
//! zero 0, here 1   stored in the cluster that the first word names
//! zero 1, here 0   reads as zeroes
//! zero 1, here 1   invalid
//! ```

use std::ops::Range;

use super::address::HostOffset;
use super::geometry::SUBCLUSTERS;
use super::l2_entry::Allocated;

/// What one subcluster is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SubclusterState {
    /// The backing file answers, and where there is none it reads as zeroes.
    Unallocated,
    /// It reads as zeroes.
    Zero,
    /// It is stored in its cluster.
    Data,
}

/// What each subcluster of a cluster is. No subcluster is both stored and zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Subclusters {
    data: u32,
    zero: u32,
}

impl Subclusters {
    /// All stored.
    pub const ALL_DATA: Subclusters = Subclusters { data: u32::MAX, zero: 0 };
    /// All zero.
    pub const ALL_ZERO: Subclusters = Subclusters { data: 0, zero: u32::MAX };
    /// None of either.
    pub const NONE: Subclusters = Subclusters { data: 0, zero: 0 };

    /// From the word in the file; `None` if a subcluster is said to be both stored and zero.
    pub const fn decode(raw: u64) -> Option<Subclusters> {
        let data = (raw & 0xffff_ffff) as u32;
        let zero = (raw >> 32) as u32;
        if data & zero == 0 { Some(Subclusters { data, zero }) } else { None }
    }

    /// The word as it stands in the file.
    pub const fn encode(self) -> u64 {
        (self.zero as u64) << 32 | self.data as u64
    }

    /// Whether any is stored.
    pub const fn has_data(self) -> bool {
        self.data != 0
    }

    /// What subcluster `index` is; none has an index of 32 or more.
    pub const fn state(self, index: u64) -> SubclusterState {
        if mask_of(index) & self.data != 0 {
            SubclusterState::Data
        } else if mask_of(index) & self.zero != 0 {
            SubclusterState::Zero
        } else {
            SubclusterState::Unallocated
        }
    }

    /// The same with the subclusters of `range` changed to `state`.
    #[must_use]
    pub fn with(self, range: Range<u64>, state: SubclusterState) -> Subclusters {
        let mask = range.fold(0, |mask, index| mask | mask_of(index));
        let (data, zero) = (self.data & !mask, self.zero & !mask);
        match state {
            SubclusterState::Unallocated => Subclusters { data, zero },
            SubclusterState::Zero => Subclusters { data, zero: zero | mask },
            SubclusterState::Data => Subclusters { data: data | mask, zero },
        }
    }

    /// The subclusters from `first` on, up to but not including `end`, that are what `first` is, without a gap.
    pub fn run(self, first: u64, end: u64) -> Range<u64> {
        let state = self.state(first);
        let run_end = (first..end.min(SUBCLUSTERS)).find(|&index| self.state(index) != state);
        first..run_end.unwrap_or(end.min(SUBCLUSTERS))
    }
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "an index is below 32 here, and its bit within a word of 32"
)]
const fn mask_of(index: u64) -> u32 {
    if index < SUBCLUSTERS { 1_u32.wrapping_shl(index as u32) } else { 0 }
}

/// A cluster whose subclusters are not all alike, or that has space of which nothing is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Divided {
    /// The cluster in the file, if there is one. There is, if any subcluster is stored.
    pub space: Option<Allocated>,
    /// What each subcluster is.
    pub subclusters: Subclusters,
}

impl Divided {
    /// Where the cluster is in the file.
    pub fn host(&self) -> Option<HostOffset> {
        self.space.map(|allocated| allocated.host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_in_the_file() {
        assert_eq!(Subclusters::decode(1 << 32 | 1), None);
        let both = Subclusters::NONE.with(0..4, SubclusterState::Data).with(2..6, SubclusterState::Zero);
        assert_eq!(both.encode(), 0b111100 << 32 | 0b11);
        assert_eq!(Subclusters::decode(both.encode()), Some(both));
        assert_eq!(Subclusters::ALL_DATA.encode(), 0xffff_ffff);
        assert_eq!(Subclusters::NONE.with(0..32, SubclusterState::Zero), Subclusters::ALL_ZERO);
        assert_eq!(Subclusters::ALL_ZERO.with(0..32, SubclusterState::Unallocated), Subclusters::NONE);
    }

    #[test]
    fn runs_end_where_the_state_changes() {
        let states = Subclusters::NONE.with(3..7, SubclusterState::Data);
        assert_eq!(states.run(0, 32), 0..3);
        assert_eq!(states.run(4, 32), 4..7);
        assert_eq!(states.run(4, 6), 4..6);
        assert_eq!(states.run(7, 32), 7..32);
        assert_eq!(states.state(31), SubclusterState::Unallocated);
        assert_eq!(states.state(6), SubclusterState::Data);
    }
}
